"""Steps a second of A3C with one and with two workers, in turns, on CartPole-v1.

    python bench/a3c_workers.py [--rounds 5] [--steps 100000]

Wall time needs a quiet machine with two cores.  "a CPU second" is all steps by the mean CPU time of a worker, which
other programs do not change much; it lacks what waiting would cost, and nobody waits here.
"""

import argparse
import os
import resource
import time

os.environ["FASTRL_NUM_THREADS"] = "1"  # before _harness sets the threads of everything from it

import numpy as np
from _harness import processor

from fastrl.agents import A3C


def cpu() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(workers: int, steps: int) -> tuple[float, float]:
    agent = A3C("CartPole-v1", workers=workers, seed=1)
    agent.learn(2_000, schedule_steps=steps, progress=False)
    began, used = time.perf_counter(), cpu()
    before = agent.steps
    agent.learn(steps, progress=False)
    done = agent.steps - before
    return done / (time.perf_counter() - began), done / ((cpu() - used) / workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    args = parser.parse_args()
    rounds = [[run(workers, args.steps) for workers in (1, 2)] for _ in range(args.rounds)]
    found = {workers: np.median([one[i] for one in rounds], 0) for i, workers in enumerate((1, 2))}
    print(f"{processor()}\n\n| workers | steps a second | a CPU second |\n|---|---|---|")
    for workers, (wall, used) in found.items():
        print(f"| {workers} | {wall:,.0f} | {used:,.0f} |")
    print(f"two by one: {found[2][0] / found[1][0]:.2f} in wall time, {found[2][1] / found[1][1]:.2f} by CPU seconds")


if __name__ == "__main__":
    main()
