"""PPO as a whole: environment steps a second of ours beside an eager PPO in the style of CleanRL, which is below.

    python bench/agents_ppo.py                          writes bench/results/agents_ppo.json and .md
    python bench/agents_ppo.py --repeats 1 --steps 1024 --no-save    a quick look

Both: CartPole-v1, 4 environments x 128 steps, policy and value 64-64 tanh, 4 epochs of 4 minibatches, Adam, clipped
ratio and value, entropy bonus, one thread.  Runs are interleaved; the first two rollouts are not timed.  A run more of
each, with a timer in each part, gives the shares of time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace

os.environ["FASTRL_NUM_THREADS"] = "1"  # before _harness sets the threads of everything from it

import gymnasium as gym
import numpy as np
import torch
from _harness import PartTimer, agents_main, header, interleaved_speeds
from torch import nn

from fastrl.agents import PPO

N, T, EPOCHS, MINIBATCHES = 4, 128, 4, 4
GAMMA, LAMBDA, CLIP, ENTROPY, VALUE, MAX_NORM, LEARNING_RATE = 0.99, 0.95, 0.2, 0.01, 0.5, 0.5, 2.5e-4
WARM_UP = 2 * N * T
PARTS = ("act", "env", "advantages", "batches", "forward", "backward", "optimizer", "loop")


def make_env() -> gym.vector.SyncVectorEnv:
    makers = [lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))] * N
    return gym.vector.SyncVectorEnv(makers)


def mlp(n_out: int, std: float) -> nn.Sequential:
    layers = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_out)]
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, std if layer is layers[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class EagerPPO:
    """As such scripts are: torch for every step, `torch.distributions`, a Python loop for GAE, a tensor a layer."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.env = make_env()
        self.actor, self.critic = mlp(2, 0.01), mlp(1, 1.0)
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, eps=1e-5)

    @torch.no_grad()
    def act(self, obs):
        dist = torch.distributions.Categorical(logits=self.actor(obs))
        action = dist.sample()
        return action, dist.log_prob(action), self.critic(obs).flatten()

    @torch.no_grad()
    def advantages(self, rewards, values, dones, next_value, next_done):
        advantages, last = torch.zeros_like(rewards), 0
        for t in reversed(range(T)):
            go_on = 1.0 - (next_done if t == T - 1 else dones[t + 1])
            after = next_value if t == T - 1 else values[t + 1]
            delta = rewards[t] + GAMMA * after * go_on - values[t]
            advantages[t] = last = delta + GAMMA * LAMBDA * go_on * last
        return advantages, advantages + values

    def batch(self, arrays, rows):
        return [x[rows] for x in arrays]

    def backward(self, loss):
        self.optimizer.zero_grad()
        loss.backward()

    def step(self):
        nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()

    def update(self, obs, action, old_log_prob, advantage, returns, old_value):
        dist = torch.distributions.Categorical(logits=self.actor(obs))
        ratio = (dist.log_prob(action) - old_log_prob).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        value = self.critic(obs).view(-1)
        clipped = old_value + (value - old_value).clamp(-CLIP, CLIP)
        value_loss = 0.5 * torch.max((value - returns) ** 2, (clipped - returns) ** 2).mean()
        loss = policy_loss - ENTROPY * dist.entropy().mean() + VALUE * value_loss
        self.backward(loss)
        self.step()

    def rollouts(self, seed: int) -> Iterator[None]:
        """One rollout and its update each `next`."""
        obs_, action_ = torch.zeros(T, N, 4), torch.zeros(T, N, dtype=torch.long)
        log_prob_, reward_, done_, value_ = (torch.zeros(T, N) for _ in range(4))
        obs, _ = self.env.reset(seed=seed)
        obs, done = torch.Tensor(obs), torch.zeros(N)
        while True:
            for t in range(T):
                obs_[t], done_[t] = obs, done
                action_[t], log_prob_[t], value_[t] = self.act(obs)
                next_obs, reward, terminated, truncated, _ = self.env.step(action_[t].numpy())
                reward_[t] = torch.tensor(reward).view(-1)
                obs, done = torch.Tensor(next_obs), torch.Tensor(np.logical_or(terminated, truncated))
            with torch.no_grad():
                next_value = self.critic(obs).flatten()
            advantage, returns = self.advantages(reward_, value_, done_, next_value, done)
            flat = [obs_.reshape(-1, 4)] + [x.reshape(-1) for x in (action_, log_prob_, advantage, returns, value_)]
            rows = np.arange(T * N)
            for _ in range(EPOCHS):
                self.rng.shuffle(rows)
                for start in range(0, T * N, T * N // MINIBATCHES):
                    self.update(*self.batch(flat, rows[start : start + T * N // MINIBATCHES]))
            yield

    def run(self, steps: int, seed: int) -> float:
        rollouts = self.rollouts(seed)
        for _ in range(WARM_UP // (N * T)):
            next(rollouts)
        began = time.perf_counter()
        for _ in range(steps // (N * T)):
            next(rollouts)
        return steps / (time.perf_counter() - began)


class OurPPO:
    def __init__(self, seed: int) -> None:
        self.agent = PPO(
            make_env(),
            n_steps=T,
            epochs=EPOCHS,
            minibatches=MINIBATCHES,
            gamma=GAMMA,
            gae_lambda=LAMBDA,
            clip_range=CLIP,
            clip_value=CLIP,
            entropy_coef=ENTROPY,
            value_coef=VALUE,
            max_grad_norm=MAX_NORM,
            learning_rate=LEARNING_RATE,
            learning_rate_end=LEARNING_RATE,
            seed=seed,
        )

    def run(self, steps: int, seed: int) -> float:
        self.agent.learn(WARM_UP, progress=False)
        began = time.perf_counter()
        self.agent.learn(WARM_UP + steps, progress=False)
        return steps / (time.perf_counter() - began)


def profile(name: str, steps: int) -> dict[str, float]:
    """Shares of time in percent, each part without the parts that it calls."""
    from fastrl.agents import rollout

    agent = CONTENDERS[name](0)
    agent.run(N * T, 0)  # not timed
    with PartTimer() as timer:
        timer.time(torch.Tensor, "backward", "backward")
        if name == "fastrl":
            a = agent.agent
            calls = [(a.policy, "act", "act"), (a.envs, "step", "env"), (a.rollout, "values", "advantages")]
            calls += [(rollout, "gae", "advantages"), (a.rollout, "batch", "batches")]
            calls += [
                (rollout, "gather_rows", "batches"),
                (a.optimizer, "step", "optimizer"),
                (a.policy, "backward", "backward"),
                (a, "_loss", "forward"),
            ]
            run = SimpleNamespace(run=lambda: a.learn(a.steps + steps, progress=False))
        else:
            calls = [(agent, "act", "act"), (agent.env, "step", "env"), (agent, "advantages", "advantages")]
            calls += [(agent, "batch", "batches"), (agent, "backward", "optimizer"), (agent, "step", "optimizer")]
            calls += [(agent, "update", "forward")]
            run = SimpleNamespace(run=lambda: agent.run(steps, 0))
        for owner, method, part in calls:
            timer.time(owner, method, part)
        timer.time(run, "run", "loop")
        run.run()
    return timer.shares(PARTS)


CONTENDERS = {"fastrl": OurPPO, "eager": EagerPPO}


def measure(repeats: int, steps: int) -> dict[str, object]:
    runs = {name: lambda seed, make=make: make(seed).run(steps, seed) for name, make in CONTENDERS.items()}
    return {**interleaved_speeds(runs, repeats), "profile": {name: profile(name, steps) for name in CONTENDERS}}


def markdown(report: dict) -> str:
    r = report["record"]
    return "\n".join([
        *header(report, "agents_ppo", "PPO on CartPole-v1"),
        f"fastrl {r['median']['fastrl']:,.0f}, eager in the style of CleanRL {r['median']['eager']:,.0f}: "
        f"{r['ratio']:.2f} times as fast ({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f}).",
        "",
        "Where the time goes, in percent (with timers in place; `optimizer` includes clipping and zeroing gradients):",
        "",
        "| | " + " | ".join(PARTS) + " |",
        "|---" * (len(PARTS) + 1) + "|",
        *(" | ".join([f"| {name}", *(f"{shares[p]:.1f}" for p in PARTS)]) + " |"
          for name, shares in r["profile"].items()),
    ])  # fmt: skip


def main() -> None:
    agents_main(__doc__, "agents_ppo", 20_480, lambda args: {"record": measure(args.repeats, args.steps)}, markdown)


if __name__ == "__main__":
    main()
