"""The agents on Ray (extra `ray`): do they learn, and what does the transport carry?  The results are kept.

python bench/apex.py learn --seeds 5     a run a seed: CSVs in bench/results/apex; --algorithm impala: results/impala
python bench/apex.py transport           batches of 512 through shards and Ray, without a learner
python bench/apex.py peers               the same beside cpprb's multi-process buffer and RLlib's episode buffers
python bench/apex.py memory --minutes 10 what Ray's object store and this process hold while Ape-X learns
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.agents.hyperparameters import ApeXConfig
from fastrl.agents.loading import algorithm_class
from fastrl.cli.algorithms import ALGORITHMS
from fastrl.distributed import CLASS_NAMES
from fastrl.distributed.cluster import connected, import_ray

RESULTS = Path(__file__).parent / "results" / "apex"
WIDTH, BATCH = 17, 512  # of HalfCheetah's observations


def learn(algorithm: str, env: str, steps: int | None, seeds: int) -> None:
    """Train with the defaults, and keep the logs and the greedy policy's return over 20 episodes at the end."""
    usual = ALGORITHMS[algorithm].total_steps
    steps, name = steps or usual, env.replace("/", "_")
    for seed in range(seeds):
        kept = RESULTS.parent / algorithm / (name if steps == usual else f"{name}-{steps}") / f"seed{seed}.csv"
        if kept.exists():
            continue
        make: Any = algorithm_class(algorithm)
        with tempfile.TemporaryDirectory() as folder, make(env, seed=seed) as agent:
            began = time.perf_counter()
            agent.learn(steps, folder=Path(folder) / "run")
            seconds, returns = time.perf_counter() - began, agent.evaluate()
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder) / "run" / "progress.csv", kept)
        table = kept.parent / "final.csv"
        new = not table.exists()
        with table.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(("seed", "steps", "greedy_return", "seconds"))
            writer.writerow((seed, agent.steps, returns.mean(), round(seconds, 1)))
        print(f"{algorithm} {env} seed {seed}: {returns.mean():.1f} after {seconds:.0f} s", flush=True)


def chunk(rng: np.random.Generator, n: int) -> tuple[Any, ...]:
    """Transitions as an actor sends them."""
    obs = rng.normal(size=(n + 1, WIDTH)).astype(np.float32)
    zeros, begins = np.zeros(n, np.bool_), np.arange(n) == 0
    return obs[:-1], rng.integers(4, size=n), np.ones(n), obs[1:], zeros, zeros, begins, rng.random(n, np.float32)


def transport(seconds: float = 5.0) -> None:
    """Batches a second that are drawn, fetched and given priorities, while writers add 200 transitions at a time."""
    import gymnasium as gym

    from fastrl.distributed.shard import Shard

    ray, rows = import_ray("bench/apex.py"), []
    spaces = gym.spaces.Box(-np.inf, np.inf, (WIDTH,)), gym.spaces.Discrete(4)
    remote = ray.remote(num_cpus=0, max_concurrency=4)(Shard)
    writer = ray.remote(num_cpus=0)(write)
    for shards, writers, prefetch in [(s, w, p) for p in (1, 8) for s in (1, 2, 4) for w in (0, 1, 2, 4)]:
        if prefetch == 1 and (shards, writers) not in ((1, 0), (1, 1)):
            continue
        config = ApeXConfig(shards=shards, batch_size=BATCH, buffer_size=200_000)
        handles = [remote.remote(config, *spaces, seed) for seed in range(shards)]
        rng = np.random.default_rng(0)
        ray.get([handle.add.remote(chunk(rng, 20_000)) for handle in handles], timeout=120)
        tasks = [writer.remote(handles, seed, seconds) for seed in range(writers)]
        batches = draw(ray, handles, prefetch, seconds)
        added = sum(ray.get(tasks, timeout=120))
        rows.append((shards, writers, prefetch, round(batches / seconds, 1), round(added / seconds)))
        print(*rows[-1], flush=True)
        for handle in handles:
            ray.kill(handle)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "transport.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("shards", "writers", "prefetch", "batches_per_s", "added_per_s"), *rows])


def write(handles: list[Any], seed: int, seconds: float) -> int:
    """Add chunks to the shards in turn; how many transitions."""
    ray = import_ray("bench/apex.py")
    until, added, made = time.monotonic() + seconds, 0, chunk(np.random.default_rng(seed), 200)
    while time.monotonic() < until:
        ray.get(handles[added // 200 % len(handles)].add.remote(made), timeout=60)
        added += 200
    return added


def draw(ray: Any, handles: list[Any], prefetch: int, seconds: float) -> int:
    """How many batches were drawn, checked and given priorities."""
    until, batches, requests = time.monotonic() + seconds, 0, []
    errors = np.ones(BATCH * prefetch, np.float32)
    while time.monotonic() < until:
        while len(requests) < 2:
            handle = handles[batches // prefetch % len(handles)]
            requests.append((handle, handle.sample.remote(BATCH, prefetch)))
        handle, ref = requests.pop(0)
        held, batch = ray.get(ref, timeout=60)
        assert batch.obs.shape == (BATCH * prefetch, WIDTH) and held.size >= 20_000
        assert not batch.obs.flags.writeable and (batch.weights > 0).all()
        handle.update.remote(batch.indices, errors)
        batches += prefetch
    return batches


def memory(minutes: float) -> None:
    """Every minute of a run on CartPole-v1: the objects in Ray's store and their MB, and the MB of processes besides:
    of this one, which learns, of the actors and the shard, and of Ray."""
    import re

    from fastrl.distributed import ApeX

    ray, rows = import_ray("bench/apex.py"), []
    import psutil  # Ray's

    began = time.monotonic()

    def of(process: Any) -> int:
        with suppress(psutil.Error):  # it has ended
            info = process.memory_info()
            return int(info.rss - info.shared)  # what is shared is the store's
        return 0

    def callback(agent: Any) -> bool:
        seconds = time.monotonic() - began
        if seconds >= 60 * (len(rows) + 1):
            from ray._private.internal_api import memory_summary

            text = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
            (used,) = re.findall(r"Plasma memory usage (\d+) MiB, (\d+) objects", text)
            below = psutil.Process().children(recursive=True)
            ours = [p for p in below if p.name().startswith(("ray::Actor", "ray::Shard"))]
            held = (of(psutil.Process()), sum(map(of, ours)), sum(of(p) for p in below if p not in ours))
            rows.append((round(seconds), agent.steps, *map(int, used), *(x >> 20 for x in held)))
            print(*rows[-1], flush=True)
        return seconds < 60 * minutes

    ApeX("CartPole-v1", actors=2, seed=0, buffer_size=50_000).learn(10**9, callback=callback, progress=False)
    with (RESULTS / "memory.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows(
            [("seconds", "steps", "store_mb", "objects", "learner_mb", "actors_shards_mb", "ray_mb"), *rows]
        )


# ---- beside peers: 100,000 transitions held, drawn by this process; nobody or one process adds 200 at a time


def of_a_shard(prefetch: int) -> Any:
    """Ours: a shard in a process of its own."""

    def rate(writers: int, seconds: float) -> tuple[int, int]:
        import gymnasium as gym

        from fastrl.distributed.shard import Shard

        ray = import_ray("bench/apex.py")
        spaces = gym.spaces.Box(-np.inf, np.inf, (WIDTH,)), gym.spaces.Discrete(4)
        config = ApeXConfig(batch_size=BATCH, buffer_size=100_000)
        shard = ray.remote(num_cpus=0, max_concurrency=4)(Shard).remote(config, *spaces, 0)
        ray.get(shard.add.remote(chunk(np.random.default_rng(0), 100_000)), timeout=120)
        tasks = [ray.remote(num_cpus=0)(write).remote([shard], seed, seconds) for seed in range(writers)]
        batches = draw(ray, [shard], prefetch, seconds)
        added = sum(ray.get(tasks, timeout=120))
        ray.kill(shard)
        return batches, added

    return rate


def of_cpprb(writers: int, seconds: float) -> tuple[int, int]:
    """MPPrioritizedReplayBuffer, whose memory processes share."""
    import multiprocessing

    from cpprb import MPPrioritizedReplayBuffer

    space: dict[str, Any] = {"obs": {"shape": WIDTH}, "act": {"dtype": np.int64}, "rew": {}}
    space |= {"next_obs": {"shape": WIDTH}, "done": {}}
    buffer = MPPrioritizedReplayBuffer(100_000, space, alpha=0.6)
    rng = np.random.default_rng(0)
    names = ("obs", "act", "rew", "next_obs", "done")
    big, small = chunk(rng, 100_000)[:5], chunk(rng, 200)[:5]
    buffer.add(**dict(zip(names, big, strict=True)), priorities=np.ones(100_000))
    added, until = multiprocessing.Value("q", 0), time.monotonic() + seconds

    def write_on() -> None:
        while time.monotonic() < until:
            buffer.add(**dict(zip(names, small, strict=True)), priorities=np.ones(200))
            added.value += 200

    processes = [multiprocessing.get_context("fork").Process(target=write_on, daemon=True) for _ in range(writers)]
    for process in processes:
        process.start()
    batches, errors = 0, np.ones(BATCH)
    while time.monotonic() < until:
        batch = buffer.sample(BATCH, beta=0.4)
        assert batch["obs"].shape == (BATCH, WIDTH) and (batch["weights"] > 0).all()
        buffer.update_priorities(batch["indexes"], errors)
        batches += 1
    for process in processes:
        process.join(timeout=30)
        process.kill()
    return batches, added.value


def episode(seed: int, steps: int = 200) -> Any:
    """As RLlib's environment runners send it."""
    import gymnasium as gym
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    obs, action, reward, *_ = chunk(np.random.default_rng(seed), steps)
    return SingleAgentEpisode(
        observations=[*obs, obs[0]], actions=list(action), rewards=list(reward), terminated=True, len_lookback_buffer=0,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (WIDTH,)), action_space=gym.spaces.Discrete(4),
    ).to_numpy()  # fmt: skip


def of_rllib(module: str) -> Any:
    """RLlib's DQN holds the buffer in the process that learns, and makes arrays of the episodes behind it."""

    def rate(writers: int, seconds: float) -> tuple[int, int]:
        from importlib import import_module

        ray = import_ray("bench/apex.py")
        buffer = import_module(module).PrioritizedEpisodeReplayBuffer(capacity=100_000, alpha=0.6)
        buffer.add([episode(seed) for seed in range(500)])
        runner = ray.remote(num_cpus=0)(episode)
        seed, batches, added, errors = 1000, 0, 0, np.ones(BATCH)
        under_way = [runner.remote(seed + i) for i in range(2 * writers)]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            ready, under_way = ray.wait(under_way, timeout=0) if under_way else ([], [])
            for ref in ready:
                buffer.add([ray.get(ref, timeout=60)])
                seed, added = seed + 1, added + 200
                under_way.append(runner.remote(seed))
            drawn = buffer.sample(num_items=BATCH, n_step=1, gamma=0.99, beta=0.4, sample_episodes=True)
            assert len(drawn) == BATCH
            buffer.update_priorities(errors)
            batches += 1
        return batches, added

    return rate


def peers(seconds: float = 5.0, rounds: int = 3) -> None:
    """Batches and added transitions a second, the median of rounds in turns."""
    contenders = {
        "fastrl, a shard on Ray, 8 batches in a request": of_a_shard(8),
        "fastrl, a shard on Ray, 1 batch in a request": of_a_shard(1),
        "cpprb MPPrioritizedReplayBuffer": of_cpprb,
        "RLlib PrioritizedEpisodeReplayBuffer": of_rllib("ray.rllib.utils.replay_buffers"),
        "the same of fastrl.integrations.rllib": of_rllib("fastrl.integrations.rllib"),
    }
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, rate in contenders.items():
            for writers in (0, 1):
                batches, added = rate(writers, seconds)
                found.setdefault((name, writers), []).append((batches / seconds, added / seconds))
                print(name, writers, *found[name, writers][-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "peers.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("buffer", "writers", "batches_per_s", "added_per_s"))
        for (name, writers), rates in found.items():
            table.writerow((name, writers, *np.median(rates, axis=0).round(1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("learn", "transport", "peers", "memory"))
    parser.add_argument("--algorithm", default="apex", choices=tuple(CLASS_NAMES))
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    if given.what == "learn":
        learn(given.algorithm, given.env, given.steps, given.seeds)
    elif given.what == "memory":
        memory(given.minutes)
    else:
        with connected(import_ray("bench/apex.py"), None, 4):
            transport() if given.what == "transport" else peers()
