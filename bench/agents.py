"""Whole agents: environment steps a second of our DQN beside an eager DQN in the style of CleanRL, which is below.

    python bench/agents.py                          writes bench/results/agents.json and .md
    python bench/agents.py --repeats 1 --steps 500 --no-save    a quick look

Both: CartPole-v1 in a SyncVectorEnv of 1, MLP 120-84, Adam, batch 128, 10,000 transitions, epsilon 0.1, the target
copied every 500 steps, one thread, one update every 10 steps or every step.  Runs are interleaved; the steps before
the first update and 300 more are not timed.  A run more of ours, with a timer in each part, gives the shares of time.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

os.environ["FASTRL_NUM_THREADS"] = "1"  # before _harness sets the threads of everything from it

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from _harness import PartTimer, agents_main, header, interleaved_speeds
from torch import nn

from fastrl.agents import DQN

EVERY = (10, 1)  # environment steps an update
BATCH, CAPACITY, LEARNING_STARTS, EPSILON, GAMMA, LEARNING_RATE = 128, 10_000, 200, 0.1, 0.99, 2.5e-4
WARM_UP = LEARNING_STARTS + 300


def make_env() -> gym.vector.SyncVectorEnv:
    return gym.vector.SyncVectorEnv([lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))])


def eager_dqn(every: int, seed: int) -> Iterator[None]:
    """One environment step each `next`.  As such scripts do, it also learns from the step that resets."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    env = make_env()
    online, target = (nn.Sequential(nn.Linear(4, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2))
                      for _ in range(2))  # fmt: skip
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=LEARNING_RATE)
    observations, next_observations = (np.zeros((CAPACITY, 4), np.float32) for _ in range(2))
    actions, rewards = np.zeros((CAPACITY, 1), np.int64), np.zeros(CAPACITY, np.float32)
    terminations = np.zeros(CAPACITY, np.float32)
    obs, _ = env.reset(seed=seed)
    for step in itertools.count():
        if rng.random() < EPSILON:
            action = rng.integers(2, size=1)
        else:
            action = online(torch.as_tensor(obs)).argmax(1).numpy()
        next_obs, reward, terminated, *_ = env.step(action)
        i = step % CAPACITY
        observations[i], next_observations[i], actions[i] = obs[0], next_obs[0], action
        rewards[i], terminations[i] = reward[0], terminated[0]
        obs = next_obs
        if step >= LEARNING_STARTS and (step + 1) % every == 0:
            rows = rng.integers(min(step + 1, CAPACITY), size=BATCH)
            with torch.no_grad():
                best = target(torch.from_numpy(next_observations[rows])).amax(1)
                y = torch.from_numpy(rewards[rows]) + GAMMA * best * (1 - torch.from_numpy(terminations[rows]))
            q = online(torch.from_numpy(observations[rows])).gather(1, torch.from_numpy(actions[rows])).squeeze(1)
            loss = F.mse_loss(q, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (step + 1) % 500 == 0:
            target.load_state_dict(online.state_dict())
        yield


def eager_run(every: int, seed: int, steps: int) -> float:
    agent = eager_dqn(every, seed)
    for _ in range(WARM_UP):
        next(agent)
    began = time.perf_counter()
    for _ in range(steps):
        next(agent)
    return steps / (time.perf_counter() - began)


def our_agent(every: int, seed: int) -> DQN:
    return DQN(
        make_env(),
        hidden=(120, 84),
        learning_rate=LEARNING_RATE,
        learning_rate_end=LEARNING_RATE,
        gamma=GAMMA,
        buffer_size=CAPACITY,
        batch_size=BATCH,
        learning_starts=LEARNING_STARTS,
        train_every=every,
        target_every=500 // every,
        tau=1.0,
        averaging=False,
        max_grad_norm=None,
        epsilon_start=EPSILON,
        epsilon_end=EPSILON,
        seed=seed,
    ).learn(WARM_UP, progress=False)


def our_run(every: int, seed: int, steps: int) -> float:
    agent = our_agent(every, seed)
    began = time.perf_counter()
    agent.learn(WARM_UP + steps, progress=False)
    return steps / (time.perf_counter() - began)


def profile(every: int, steps: int) -> dict[str, float]:
    """Shares of our time in percent, each part without the parts that it calls."""
    agent = our_agent(every, 0)
    with PartTimer() as timer:
        timer.time(agent, "_act", "act")
        timer.time(agent.envs, "step", "env")
        timer.time(agent.buffer, "add", "buffer")
        timer.time(agent.buffer, "sample", "buffer")
        timer.time(agent.online, "backward", "backward")
        timer.time(agent.optimizer, "step", "optimizer")
        timer.time(agent, "_update", "forward")  # and what little else an update does
        timer.time(agent, "learn", "loop")
        agent.learn(WARM_UP + steps, progress=False)
    return timer.shares(("act", "env", "buffer", "forward", "backward", "optimizer", "loop"))


def measure(every: int, repeats: int, steps: int) -> dict[str, object]:
    runs = {
        "fastrl": lambda seed: our_run(every, seed, steps),
        "eager": lambda seed: eager_run(every, seed, steps),
    }
    return {"steps_an_update": every, **interleaved_speeds(runs, repeats), "profile": profile(every, steps)}


def markdown(report: dict) -> str:
    records = report["records"]
    parts = list(records[0]["profile"])

    def count(r: dict) -> str:
        return "step" if r["steps_an_update"] == 1 else f"{r['steps_an_update']} steps"

    return "\n".join([
        *header(report, "agents", "DQN on CartPole-v1"),
        "| one update every | fastrl | eager, CleanRL style | fastrl / eager | least to most |",
        "|---|---|---|---|---|",
        *(f"| {count(r)} | {r['median']['fastrl']:,.0f} | {r['median']['eager']:,.0f} "
          f"| {r['ratio']:.2f} | {r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f} |" for r in records),
        "",
        "Where the time of fastrl goes, in percent (with timers in place; an update is buffer, forward, backward and "
        "optimizer):",
        "",
        "| one update every | " + " | ".join(parts) + " |",
        "|---" * (len(parts) + 1) + "|",
        *(f"| {count(r)} | " + " | ".join(f"{r['profile'][p]:.1f}" for p in parts) + " |"
          for r in records),
    ])  # fmt: skip


def main() -> None:
    agents_main(
        __doc__,
        "agents",
        10_000,
        lambda args: {"records": [measure(every, args.repeats, args.steps) for every in EVERY]},
        markdown,
    )


if __name__ == "__main__":
    main()
