"""The agents on Ray (extra `ray`): do they learn, and what does the transport carry?  The results are kept.

python bench/apex.py learn --seeds 5     a run a seed: CSVs in bench/results/apex; --algorithm impala: results/impala
python bench/apex.py transport           batches of 512 through shards and Ray, without a learner
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
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
    steps = steps or usual
    for seed in range(seeds):
        kept = RESULTS.parent / algorithm / (env if steps == usual else f"{env}-{steps}") / f"seed{seed}.csv"
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("learn", "transport"))
    parser.add_argument("--algorithm", default="apex", choices=tuple(CLASS_NAMES))
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    if given.what == "learn":
        learn(given.algorithm, given.env, given.steps, given.seeds)
    else:
        with connected(import_ray("bench/apex.py"), None, 4):
            transport()
