"""Whole agents, environment steps a second with updates running: fastrl beside other libraries, in turns.

    python bench/whole_agents.py --python fastrl=PY [--python sb3=PY] [--python sbx=PY] [--python baseline=PY] \
        [--python rltools=PY] [--tasks dqn sac64 td3 sac256 ppo] [--rounds 5] [--threads 1] [--note TEXT] [--no-save]

Each PY is the interpreter of a virtual environment that holds that contender: fastrl-kernels[agents] (baseline: of the
commit to compare with), stable-baselines3, sbx-rl, or "rltools[mkl]" with gymnasium and a C++ compiler.  Every round
runs all contenders of a task once, each in a fresh process pinned to `--threads` processors.  Same environment,
network, batch, one update a step; warm-up and compilation are not counted.  RLtools has no DQN, and its PPO drops
truncation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import NamedTuple

from _harness import RESULTS, machine


class Task(NamedTuple):
    env: str
    hidden: int
    batch: int
    warm: int  # steps before the clock
    steps: int  # timed


TASKS = {
    "dqn": Task("CartPole-v1", 64, 64, 1000, 3000),
    "sac64": Task("Pendulum-v1", 64, 128, 400, 1500),
    "td3": Task("Pendulum-v1", 64, 128, 400, 1500),
    "sac256": Task("Pendulum-v1", 256, 256, 400, 300),
    "ppo": Task("CartPole-v1", 64, 256, 1024, 16384),
}
FASTRL = """
import torch; torch.set_num_threads(THREADS)
import fastrl; fastrl.set_num_threads(THREADS)
from fastrl.agents import DQN, SAC, TD3, PPO
h = dict(seed=SEED, hidden=(H, H))
if NAME == "dqn":
    agent = DQN(ENV, batch_size=B, train_every=1, learning_starts=500, averaging=False, **h)
elif NAME == "ppo":
    agent = PPO(ENV, num_envs=8, n_steps=32, epochs=20, minibatches=1, **h)
else:
    agent = (TD3 if NAME == "td3" else SAC)(ENV, batch_size=B, learning_starts=300, **h)
agent.learn(WARM, progress=False)
start, before = time.perf_counter(), agent.steps
agent.learn(agent.steps + STEPS, progress=False)
report((agent.steps - before) / (time.perf_counter() - start))
"""
SB3 = """
import torch; torch.set_num_threads(THREADS)
from LIBRARY import DQN, SAC, TD3, PPO
from stable_baselines3.common.env_util import make_vec_env
k = dict(seed=SEED, batch_size=B, policy_kwargs=dict(net_arch=[H, H]))
if NAME == "ppo":
    agent = PPO("MlpPolicy", make_vec_env(ENV, 8), n_steps=32, n_epochs=20, **k)
elif NAME == "dqn":
    agent = DQN("MlpPolicy", ENV, learning_starts=500, train_freq=1, **k)
else:
    agent = (TD3 if NAME == "td3" else SAC)("MlpPolicy", ENV, learning_starts=300, **k)
agent.learn(WARM)
start, before = time.perf_counter(), agent.num_timesteps
agent.learn(STEPS, reset_num_timesteps=False)
report((agent.num_timesteps - before) / (time.perf_counter() - start))
"""
RLTOOLS = """
import gymnasium as gym
from rltools import SAC, TD3
if NAME not in ("sac64", "sac256", "td3"):
    raise SystemExit(3)
make = lambda: gym.wrappers.RescaleAction(gym.make(ENV), -1, 1)
module = (TD3 if NAME == "td3" else SAC)(
    make, enable_evaluation=False, STEP_LIMIT=WARM + STEPS, ACTOR_HIDDEN_DIM=H, CRITIC_HIDDEN_DIM=H,
    ACTOR_BATCH_SIZE=B, CRITIC_BATCH_SIZE=B, N_WARMUP_STEPS=300, interface_name=f"{NAME}{WARM + STEPS}",
)
state, n = module.State(SEED), 0
while not state.step():
    n += 1
    if n == WARM:
        start = time.perf_counter()
report((n - WARM) / (time.perf_counter() - start))
"""
CODE = {
    "fastrl": FASTRL,
    "baseline": FASTRL,
    "sb3": SB3.replace("LIBRARY", "stable_baselines3"),
    "sbx": SB3.replace("LIBRARY", "sbx"),
    "rltools": RLTOOLS,
}


def run(contender: str, python: str, name: str, seed: int, threads: int) -> tuple[float, float] | None:
    """Steps a second and peak memory in MB; None: it has no such agent, or failed, which is said."""
    values = {"NAME": name, "SEED": seed, "THREADS": threads}
    values |= dict(zip(("ENV", "H", "B", "WARM", "STEPS"), TASKS[name], strict=True))
    head = "import time, warnings; warnings.filterwarnings('ignore')\n"
    head += "".join(f"{key} = {value!r}\n" for key, value in values.items())
    head += "import resource; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
    head += "report = lambda x: print('RESULT', x, peak(), flush=True)\n"
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "FASTRL_NUM_THREADS")
    flags = f"--xla_cpu_multi_thread_eigen={'false' if threads == 1 else 'true'}"
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "XLA_FLAGS": flags}
    command = ["taskset", "-c", cpus, python, "-c", head + CODE[contender]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            speed, peak = map(float, line.split()[1:])
            return speed, peak
    if done.returncode != 3:
        print(f"{contender} {name}: {done.stderr.strip().splitlines()[-1:] or done.returncode}", file=sys.stderr)
    return None


def measure(name: str, pythons: dict[str, str], rounds: int, threads: int) -> dict[str, object]:
    runs: dict[str, list[tuple[float, float] | None]] = {contender: [] for contender in pythons}
    for seed in range(rounds):
        for contender, python in pythons.items():
            runs[contender].append(run(contender, python, name, seed, threads))
    results = {}
    for contender, found in runs.items():
        known = [x[0] for x in found if x]
        ratios = [ours[0] / x[0] for ours, x in zip(runs["fastrl"], found, strict=True) if ours and x]
        if known and ratios:
            results[contender] = {
                "steps_per_s": [round(x, 1) for x in known],
                "ratio": round(statistics.median(ratios), 2),
                "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "peak_mb": round(statistics.median(x[1] for x in found if x)),
            }
    return {"task": name, **TASKS[name]._asdict(), "results": results}


def markdown(report: dict) -> str:
    m, contenders = report["machine"], list(dict.fromkeys(c for r in report["records"] for c in r["results"]))
    lines = [
        "# whole_agents",
        "",
        f"`python bench/whole_agents.py --rounds {report['rounds']} --threads {report['threads']} ...` on {m['cpu']} "
        f"({m['cores']} cores, {m['system']}).",
        "Environment steps a second with an update a step: medians of interleaved rounds; in brackets the median (and "
        "range) of the ratios fastrl / other; then the peak memory of the process.",
        "Versions: " + ", ".join(report["versions"]) + f". {report['note']}".rstrip(),
        "",
        "| task | " + " | ".join(contenders) + " |",
        "|---" * (len(contenders) + 1) + "|",
    ]
    for r in report["records"]:
        cells = []
        for contender in contenders:
            found = r["results"].get(contender)
            speed = f"{statistics.median(found['steps_per_s']):,.0f}" if found else "-"
            if found and contender != "fastrl":
                low, high = found["ratio_range"]
                speed += f" ({found['ratio']:.1f}x, {low:.1f} to {high:.1f})"
            if found:
                speed += f", {found['peak_mb']} MB"
            cells.append(speed)
        what = f"{r['task']}: {r['env']}, {r['hidden']}-{r['hidden']}, batch {r['batch']}"
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", required=True, metavar="NAME=PY")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="a remark to keep with the results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in args.python)
    unknown = set(pythons) - set(CODE)
    if unknown or "fastrl" not in pythons:
        parser.error(f"--python must name fastrl and others of {', '.join(CODE)}, got {', '.join(pythons)}")
    records = []
    for name in args.tasks:
        records.append(measure(name, pythons, args.rounds, args.threads))
        print(json.dumps(records[-1]), flush=True)
    distributions = {"sb3": "stable-baselines3", "sbx": "sbx-rl", "rltools": "rltools"}
    versions = []
    for contender, python in pythons.items():
        code = f"from importlib.metadata import version; print(version({distributions.get(contender, 'torch')!r}))"
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/").stdout.strip()
        versions.append(f"{distributions.get(contender, contender + chr(39) + 's torch')} {found}")
    report = {"machine": machine(), "rounds": args.rounds, "threads": args.threads, "note": args.note}
    report |= {"versions": versions, "records": records}
    text = markdown(report)
    print(text)
    if not args.no_save:
        (RESULTS / "whole_agents.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "whole_agents.md").write_text(text)


if __name__ == "__main__":
    main()
