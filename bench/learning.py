"""Does it learn?  Every variant over several seeds, the greedy policy's return at the END of training, from kept logs.

    python bench/learning.py --jobs 2       run what is missing; one CSV a run under bench/results/learning
    python bench/learning.py --table        the table in markdown, from those files alone

A run's file appears when the run is complete, so a killed matrix goes on where it was.  The hyperparameters are
the defaults of `DQNConfig`, for every variant and environment.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "learning"
SWITCHES = ("double", "dueling", "prioritized")
VARIANTS = {"plain": (), "double": SWITCHES[:1], "dueling": SWITCHES[1:2], "prioritized": SWITCHES[2:], "all": SWITCHES}
TASKS = {"CartPole-v1": (50_000, 475.0), "Acrobot-v1": (100_000, -100.0)}  # steps, and what the mean must reach
EPISODES = 20
EVALUATE_EVERY = 5_000
COLUMNS = ("step", "greedy_return", "greedy_return_std", "training_return", "seconds")


def log_path(env: str, variant: str, seed: int) -> Path:
    return RESULTS / "dqn" / env / variant / f"seed{seed}.csv"


def run(env: str, variant: str, seed: int) -> str:
    """Train one agent and write its evaluation curve."""
    import numpy as np
    import torch

    from fastrl.agents import DQN

    torch.set_num_threads(1)
    agent = DQN(env, seed=seed, **dict.fromkeys(VARIANTS[variant], True))
    rows, seconds = [], 0.0
    for step in range(EVALUATE_EVERY, TASKS[env][0] + 1, EVALUATE_EVERY):
        began = time.perf_counter()
        agent.learn(step, progress=False)
        seconds += time.perf_counter() - began
        returns = agent.evaluate(EPISODES)
        training = np.mean([r for r, _ in agent.envs.recent])
        rows.append((agent.steps, returns.mean(), returns.std(), round(training, 2), round(seconds, 1)))
    path = log_path(env, variant, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    path.with_suffix(".part").replace(path)
    return f"{env} {variant} seed {seed}: {rows[-1][1]:.1f} after {seconds:.0f} s"


def table(seeds: int) -> str:
    """Interquartile mean over the seeds of the last evaluation, with its 95 % bootstrap interval."""
    import numpy as np
    from scipy.stats import bootstrap, trim_mean

    def iqm(x, axis=-1):
        return trim_mean(x, 0.25, axis=axis)

    lines = [
        "| environment | variant | seeds | IQM | 95 % interval | each seed | wanted | steps | s a run |",
        "|---" * 9 + "|",
    ]
    for env, (steps, wanted) in TASKS.items():
        for variant in VARIANTS:
            last = []
            for seed in range(seeds):
                path = log_path(env, variant, seed)
                if path.exists():
                    with path.open() as file:
                        last.append(list(csv.DictReader(file))[-1])
            if not last:
                continue
            if any(int(row["step"]) != steps for row in last):
                raise SystemExit(f"{env} {variant}: a log does not end at step {steps}")
            final = np.array([float(row["greedy_return"]) for row in last])
            low, high = final.min(), final.max()
            if low < high:
                low, high = bootstrap((final,), iqm, n_resamples=9999, method="percentile", rng=0).confidence_interval
            seconds = np.mean([float(row["seconds"]) for row in last])
            each = " ".join(f"{x:.0f}" for x in final)
            reached = f"{'>=' if iqm(final) >= wanted else 'MISSED'} {wanted:g}"
            lines.append(
                f"| {env} | {variant} | {len(final)} | {iqm(final):.1f} | {low:.1f} to {high:.1f} | {each} | {reached} "
                f"| {steps:,} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", action="append", choices=TASKS, help="only this environment; repeatable")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only this variant; repeatable")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    args = parser.parse_args()
    if args.table:
        print(table(args.seeds))
        return
    todo = [
        (env, variant, seed)
        for env in args.env or TASKS
        for seed in range(args.seeds)
        for variant in args.variant or VARIANTS
        if not log_path(env, variant, seed).exists()
    ]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FASTRL_NUM_THREADS"):
        os.environ[name] = "1"
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, *job) for job in todo]):
            print(done.result(), flush=True)
    print(table(args.seeds))


if __name__ == "__main__":
    main()
