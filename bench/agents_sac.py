"""SAC, TD3 and DDPG as wholes: environment steps a second of ours beside eager and compiled scripts and SB3's.

    python bench/agents_sac.py                        all, on Pendulum-v1; keeps bench/results/agents_sac.json and .md
    python bench/agents_sac.py --algorithm sac        a part, which takes its place in the kept results
    python bench/agents_sac.py --env HalfCheetah-v5   needs gymnasium[mujoco]

All: networks 256-256 with ReLU, batch 256, one update a step, tau 0.005, Adam, one thread.  The scripts below are in
the style of CleanRL: with torch's plain Adam and a loop over the targets, with its fused and foreach forms, and then
with their updates under torch.compile.  Each contender is made once and takes its steps in turns; the steps before the
first update and some after it are not timed.  Steps of ours with a timer in each part give the shares of time.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ["FASTRL_NUM_THREADS"] = "1"  # before _harness sets the threads of everything from it

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from _harness import RESULTS, PartTimer, agents_main, header, interleaved_speeds
from torch import nn

from fastrl.agents import ALGORITHMS, sac
from fastrl.kernels import MLP

HIDDEN, BATCH, CAPACITY, STARTS, WARM_UP = (256, 256), 256, 50_000, 300, 40
GAMMA, TAU, LEARNING_RATE, ACTOR_RATE = 0.99, 0.005, 1e-3, 3e-4
PARTS = ("act", "env", "buffer", "forward", "backward", "head", "optimizer", "loop")
AGENTS = ("sac", "td3", "ddpg")


def mlp(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, n_out))


def squashed(out: Any, scale: float) -> tuple[Any, Any]:
    """SAC's action and its log-probability, from the actor's output."""
    mean, log_std = out.chunk(2, 1)
    log_std = -5 + 3.5 * (torch.tanh(log_std) + 1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    x = normal.rsample()
    y = torch.tanh(x)
    log_prob = normal.log_prob(x) - torch.log(scale * (1 - y.pow(2)) + 1e-6)
    return y * scale, log_prob.sum(1, keepdim=True)


class Updates(NamedTuple):
    """What the script below calls: the networks and optimizers are inside."""

    critic: Callable[..., None]
    actor: Callable[..., None]
    targets: Callable[[], None]
    act: Callable[[Any], Any]


def updates(algorithm: str, n_obs: int, n_actions: int, scale: float, fused: bool, compiled: bool) -> Updates:
    n_critics = 1 if algorithm == "ddpg" else 2
    actor = mlp(n_obs, 2 * n_actions if algorithm == "sac" else n_actions)
    critics = [mlp(n_obs + n_actions, 1) for _ in range(n_critics)]
    target_actor, target_critics = mlp(n_obs, n_actions), [mlp(n_obs + n_actions, 1) for _ in range(n_critics)]
    for net, target in zip(critics, target_critics, strict=True):
        target.load_state_dict(net.state_dict())
    online = [p for net in critics for p in net.parameters()]
    targets = [p for net in target_critics for p in net.parameters()]
    kind = {"fused": True} if fused else {}
    critic_optimizer = torch.optim.Adam(online, lr=LEARNING_RATE, **kind)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=ACTOR_RATE, **kind)
    if algorithm != "sac":
        target_actor.load_state_dict(actor.state_dict())
        online, targets = [*online, *actor.parameters()], [*targets, *target_actor.parameters()]
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=LEARNING_RATE, **kind)

    def policy(obs):
        return squashed(actor(obs), scale)

    def value(nets, obs, action):
        x = torch.cat([obs, action], 1)
        return torch.min(nets[0](x), nets[1](x)) if n_critics == 2 else nets[0](x)

    def critic_update(obs, action, next_obs, done, reward):
        with torch.no_grad():
            if algorithm == "sac":
                next_action, log_prob = policy(next_obs)
                next_value = value(target_critics, next_obs, next_action) - log_alpha.exp() * log_prob
            else:
                next_action = torch.tanh(target_actor(next_obs)) * scale
                if algorithm == "td3":
                    noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5) * scale
                    next_action = (next_action + noise).clamp(-scale, scale)
                next_value = value(target_critics, next_obs, next_action)
            y = reward + (1 - done) * GAMMA * next_value
        x = torch.cat([obs, action], 1)
        loss = sum(F.mse_loss(net(x), y) for net in critics)
        critic_optimizer.zero_grad()
        loss.backward()
        critic_optimizer.step()

    def actor_update(obs):
        if algorithm == "sac":
            action, log_prob = policy(obs)
            loss = (log_alpha.detach().exp() * log_prob - value(critics, obs, action)).mean()
        else:
            loss = -critics[0](torch.cat([obs, torch.tanh(actor(obs)) * scale], 1)).mean()
        actor_optimizer.zero_grad()
        loss.backward()
        actor_optimizer.step()
        if algorithm == "sac":
            alpha_loss = (-log_alpha.exp() * (log_prob.detach() - n_actions)).mean()
            alpha_optimizer.zero_grad()
            alpha_loss.backward()
            alpha_optimizer.step()

    if compiled:
        critic_update, actor_update = torch.compile(critic_update), torch.compile(actor_update)

    @torch.no_grad()
    def act(obs):
        if algorithm == "sac":
            return policy(torch.Tensor(obs))[0].numpy()
        action = torch.tanh(actor(torch.Tensor(obs))) * scale
        return (action + torch.normal(0.0, scale * 0.1, size=action.shape)).numpy().clip(-scale, scale)

    @torch.no_grad()
    def update_targets():
        if fused:
            torch._foreach_lerp_(targets, online, TAU)
        else:
            for p, target in zip(online, targets, strict=True):
                target.data.copy_(TAU * p.data + (1 - TAU) * target.data)

    return Updates(critic_update, actor_update, update_targets, act)


def script(algorithm: str, env_id: str, *, fused: bool = False, compiled: bool = False) -> Iterator[None]:
    """One environment step each `next`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    env = gym.vector.SyncVectorEnv([lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))])
    space = env.single_action_space
    n_obs, n_actions, scale = env.single_observation_space.shape[0], space.shape[0], float(space.high[0])
    update = updates(algorithm, n_obs, n_actions, scale, fused, compiled)
    obs_, next_obs_ = (np.zeros((CAPACITY, n_obs), np.float32) for _ in range(2))
    action_, reward_ = np.zeros((CAPACITY, n_actions), np.float32), np.zeros((CAPACITY, 1), np.float32)
    done_ = np.zeros((CAPACITY, 1), np.float32)
    obs, _ = env.reset(seed=0)
    for step in itertools.count():
        action = update.act(obs) if step >= STARTS else rng.uniform(-scale, scale, (1, n_actions)).astype(np.float32)
        next_obs, reward, terminated, *_ = env.step(action)
        i = step % CAPACITY
        obs_[i], next_obs_[i], action_[i], reward_[i], done_[i] = obs[0], next_obs[0], action[0], reward, terminated
        obs = next_obs
        if step >= STARTS:
            rows = rng.integers(min(step + 1, CAPACITY), size=BATCH)
            o, a, o2, d, r = (torch.from_numpy(x[rows]) for x in (obs_, action_, next_obs_, done_, reward_))
            update.critic(o, a, o2, d, r)
            if algorithm != "td3" or step % 2 == 0:
                update.actor(o)
                update.targets()
        yield


def steps_of(iterator: Iterator[None]) -> Callable[[int], object]:
    return lambda n: [next(iterator) for _ in range(n)]


def ours(algorithm: str, env_id: str):
    """As the scripts: one environment, whose episodes are counted by Envs."""
    return ALGORITHMS[algorithm](
        env_id,
        hidden=HIDDEN,
        batch_size=BATCH,
        buffer_size=CAPACITY,
        learning_starts=STARTS,
        gamma=GAMMA,
        tau=TAU,
        learning_rate=LEARNING_RATE,
        actor_learning_rate=ACTOR_RATE,
    )


def sb3(algorithm: str, env_id: str) -> Callable[[int], object]:
    import stable_baselines3

    model = getattr(stable_baselines3, algorithm.upper())(
        "MlpPolicy", env_id, policy_kwargs={"net_arch": [256, 256]}, batch_size=BATCH, buffer_size=CAPACITY,
        learning_starts=STARTS, train_freq=1, gradient_steps=1, learning_rate=LEARNING_RATE, seed=0, device="cpu",
    )  # fmt: skip
    return lambda n: model.learn(n, reset_num_timesteps=False)


def contenders(algorithm: str, env_id: str) -> dict[str, Callable[[int], object]]:
    agent = ours(algorithm, env_id)
    found = {
        "fastrl": lambda n: agent.learn(agent.steps + n, progress=False),
        "eager": steps_of(script(algorithm, env_id)),
        "eager, fused": steps_of(script(algorithm, env_id, fused=True)),
        "torch.compile": steps_of(script(algorithm, env_id, fused=True, compiled=True)),
    }
    if importlib.util.find_spec("stable_baselines3"):
        found["SB3"] = sb3(algorithm, env_id)
    return found


def profile(algorithm: str, env_id: str, steps: int) -> dict[str, float]:
    """Shares of our time in percent, each part without the parts that it calls."""
    agent = ours(algorithm, env_id).learn(STARTS + WARM_UP, progress=False)
    networks = [part for part in agent._parts().values() if isinstance(part, MLP)]
    with PartTimer() as timer:
        for owner, method, part in (
            (agent, "_act", "act"),
            (agent.envs, "step", "env"),
            (agent.buffer, "add", "buffer"),
            (agent.buffer, "sample", "buffer"),
            *((network, name, "forward") for network in networks for name in ("forward", "forward_cached")),
            *((network, "backward", "backward") for network in networks),
            (sac, "tanh_normal_sample", "head"),
            (sac, "tanh_normal_sample_pullback", "head"),
            (agent.actor_optimizer, "step", "optimizer"),
            (agent.critic_optimizer, "step", "optimizer"),
            (agent, "learn", "loop"),
        ):
            timer.time(owner, method, part)
        agent.learn(agent.steps + steps, progress=False)
    return timer.shares(PARTS)


def measure(algorithm: str, env_id: str, repeats: int, steps: int) -> dict[str, object]:
    advance = contenders(algorithm, env_id)
    for go in advance.values():
        go(STARTS + WARM_UP)

    def run(go: Callable[[int], object]) -> float:
        began = time.perf_counter()
        go(steps)
        return steps / (time.perf_counter() - began)

    speeds = interleaved_speeds({name: lambda _, go=go: run(go) for name, go in advance.items()}, repeats)
    return {"algorithm": algorithm, "env": env_id, **speeds, "profile": profile(algorithm, env_id, steps)}


def markdown(report: dict) -> str:
    records = report["records"]
    names = list(dict.fromkeys(name for r in records for name in r["median"]))

    def row(r: dict) -> str:
        speeds = [f"{r['median'][name]:.1f}" if name in r["median"] else "" for name in names]
        low, high = r["ratio_range"]
        cells = [r["algorithm"], r["env"], *speeds, f"{r['ratio']:.2f} ({low:.2f} to {high:.2f}), {r['fastest_other']}"]
        return "| " + " | ".join(cells) + " |"

    return "\n".join([
        *header(report, "agents_sac", "SAC, TD3 and DDPG"),
        "| | | " + " | ".join(names) + " | fastrl / fastest other |",
        "|---" * (len(names) + 3) + "|",
        *map(row, records),
        "",
        "Where the time of fastrl goes, in percent (with timers in place; `head` is SAC's tanh-Gaussian, `forward` and "
        "`backward` are the networks, `optimizer` clips, steps and moves the targets):",
        "",
        "| | | " + " | ".join(PARTS) + " |",
        "|---" * (len(PARTS) + 2) + "|",
        *(f"| {r['algorithm']} | {r['env']} | " + " | ".join(f"{r['profile'][p]:.1f}" for p in PARTS) + " |"
          for r in records),
    ])  # fmt: skip


def measure_all(args) -> dict[str, object]:
    records = {}
    kept = RESULTS / "agents_sac.json"
    if kept.exists() and not args.no_save:
        records = {(r["algorithm"], r["env"]): r for r in json.loads(kept.read_text())["records"]}
    for env_id in args.env or ["Pendulum-v1"]:
        for algorithm in args.algorithm or AGENTS:
            records[algorithm, env_id] = measure(algorithm, env_id, args.repeats, args.steps)
    return {"records": list(records.values())}


def options(parser) -> None:
    parser.add_argument("--algorithm", action="append", choices=AGENTS, help="only this one; repeatable")
    parser.add_argument("--env", action="append", help="instead of Pendulum-v1; repeatable")


if __name__ == "__main__":
    agents_main(__doc__, "agents_sac", 500, measure_all, markdown, options)
