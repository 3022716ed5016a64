"""Time of one update of the agents with a replay buffer for Box actions, as multiples of TD3's.

    python bench/update_times.py [--rounds 20]

Pendulum-v1, networks of 64-64, batches of 128, one thread; the agents take turns of 40 updates, and the ratios are
those of the medians and of the minima of the rounds.
"""

import argparse
import os
import time
from collections import defaultdict

os.environ["FASTRL_NUM_THREADS"] = "1"  # before _harness sets the threads of everything from it

import numpy as np
from _harness import processor

from fastrl.agents import ALGORITHMS

UPDATES = 40
SETTINGS = {
    "td3": {},
    "ddpg": {},
    "d4pg": {},
    "sac": {},
    "tqc": {},
    "crossq": {"critic_hidden": (64, 64)},
    "naf": {},
    "qt_opt": {"cem_samples": 16, "cem_elites": 4},
    "qt_opt, 64 samples": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    agents = {
        name: ALGORITHMS[name.split(",")[0]](
            "Pendulum-v1", hidden=(64, 64), batch_size=128, learning_starts=500, **settings
        ).learn(600, progress=False)
        for name, settings in SETTINGS.items()
    }
    seconds = defaultdict(list)
    for _ in range(rounds):
        for name, agent in agents.items():
            began = time.thread_time()
            for _ in range(UPDATES):
                agent._update()
            seconds[name].append((time.thread_time() - began) / UPDATES)
    print(f"{processor()}\n")
    print("| agent | us an update, median | least | of td3's median | of td3's least |\n" + "|---" * 5 + "|")
    median, least = (({name: f(x) for name, x in seconds.items()}) for f in (np.median, np.min))
    for name in SETTINGS:
        ratios = f"{median[name] / median['td3']:.2f} | {least[name] / least['td3']:.2f}"
        print(f"| {name} | {1e6 * median[name]:.0f} | {1e6 * least[name]:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
