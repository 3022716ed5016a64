"""Stable-Baselines3's runs with fastrl.integrations.sb3 in the place of its classes, in turns with the host's own.

    python bench/integrations_sb3.py [--tasks dqn sac64 td3 sac256 ppo a2c] [--rounds 5] [--threads 1] [--sbx PY]
        [--note TEXT] [--no-save]

Needs the extra sb3.  PY is the interpreter of a virtual environment with sbx-rl, the same algorithms on JAX.  Before
anything is timed a short run of each class must end where the host's run of the same seed ends.  Then every round runs
all contenders of a task once, each in a fresh process pinned to `--threads` processors: environment steps a second with
an update a step, warm-up and compilation not counted.  On one thread a second is one of the process's CPU time, which
other programs on the machine change least.
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
    algorithm: str
    env: str
    envs: int
    settings: dict
    hidden: int
    warm: int  # steps before the clock
    steps: int  # timed


TASKS = {
    "dqn": Task("DQN", "CartPole-v1", 1, {"batch_size": 64, "learning_starts": 500, "train_freq": 1}, 64, 700, 2000),
    "sac64": Task("SAC", "Pendulum-v1", 1, {"batch_size": 128, "learning_starts": 300}, 64, 400, 800),
    "td3": Task("TD3", "Pendulum-v1", 1, {"batch_size": 128, "learning_starts": 300}, 64, 400, 1000),
    "sac256": Task("SAC", "Pendulum-v1", 1, {"batch_size": 256, "learning_starts": 300}, 256, 350, 250),
    "ppo": Task("PPO", "CartPole-v1", 8, {"n_steps": 32, "n_epochs": 20, "batch_size": 256}, 64, 1024, 8192),
    "a2c": Task("A2C", "CartPole-v1", 8, {}, 64, 800, 8000),
}
HOST, OURS, SBX = "stable_baselines3", "fastrl.integrations.sb3", "sbx"
CODE = """
import importlib, json, os, sys, time, warnings
warnings.filterwarnings("error", message=".*is not compiled.*")
library, algorithm, env, envs, settings, hidden, warm, steps, seed, threads = json.loads(sys.argv[1])
if library != "sbx":
    import torch
    torch.set_num_threads(threads)
from stable_baselines3.common.env_util import make_vec_env
make = getattr(importlib.import_module(library), algorithm, None) or sys.exit(3)
model = make(
    "MlpPolicy", make_vec_env(env, envs, seed=seed), seed=seed, device="cpu", policy_kwargs={"net_arch": [hidden] * 2},
    **settings,
)
model.learn(warm)
clock = time.process_time if threads == 1 else time.perf_counter
start, before = clock(), model.num_timesteps
if steps:
    model.learn(steps, reset_num_timesteps=False)
speed = (model.num_timesteps - before) / (clock() - start)
found = {"speed": speed, "obs": model._last_obs.tolist(), "updates": int(model._n_updates)}
if library != "sbx":
    found["parameters"] = [p.detach().norm().item() for p in model.policy.parameters()]
print("RESULT", json.dumps(found))
"""


def run(library: str, python: str, task: Task, seed: int, threads: int) -> dict:
    """What CODE reports; {} if the library has no such class."""
    arguments = json.dumps([library, *task, seed, threads])
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[-threads:]))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "FASTRL_NUM_THREADS")
    flags = f"--xla_cpu_multi_thread_eigen={'false' if threads == 1 else 'true'}"
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "XLA_FLAGS": flags, "CUDA_VISIBLE_DEVICES": ""}
    command = ["taskset", "-c", cpus, python, "-c", CODE, arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            return json.loads(line.removeprefix("RESULT"))
    if done.returncode == 3:
        return {}
    raise SystemExit(f"{library} {task.algorithm} failed: {done.stderr[-2000:]}")


def check(name: str, task: Task) -> None:
    """The same seed, the same run: 50 updates at least, then the observations and the norm of every parameter."""
    start = task.settings.get("learning_starts")
    short = task._replace(warm=start + 50 if start else 512, steps=0)
    theirs, ours = (run(library, sys.executable, short, 0, 1) for library in (HOST, OURS))
    assert ours["updates"] == theirs["updates"] > 0, (name, ours["updates"], theirs["updates"])
    for key in ("obs", "parameters"):
        pairs = zip(_flat(ours[key]), _flat(theirs[key]), strict=True)
        worst = max(abs(x - y) / (1 + abs(y)) for x, y in pairs)
        assert worst < 1e-3, f"{name}: {key} are {worst:.1e} apart from the host's"


def _flat(x: object) -> list[float]:
    return [z for y in x for z in _flat(y)] if isinstance(x, list) else [x]


def measure(name: str, pythons: dict[str, str], rounds: int, threads: int) -> dict:
    task = TASKS[name]
    check(name, task)
    speeds = {library: [] for library in pythons}
    for seed in range(rounds):
        for library, python in pythons.items():
            speeds[library].append(run(library, python, task, seed, threads).get("speed"))
    results = {}
    for library, found in speeds.items():
        if None in found:
            continue
        ratios = [ours / x for ours, x in zip(speeds[OURS], found, strict=True)]
        results[library] = {
            "steps_per_s": [round(x, 1) for x in found],
            "ratio": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    return {"task": name, **task._asdict(), "results": results}


def markdown(report: dict) -> str:
    m, libraries = report["machine"], list(report["records"][0]["results"])
    lines = [
        "# integrations_sb3",
        "",
        f"`python bench/integrations_sb3.py --rounds {report['rounds']} --threads {report['threads']}` on {m['cpu']} "
        f"({m['cores']} cores, {m['system']}).",
        "Environment steps a second (of CPU time, on one thread), medians of rounds in turns; in brackets the median "
        "(and range) of the ratios ours / other.",
        "Versions: " + ", ".join(report["versions"]) + f". {report['note']}".rstrip(),
        "",
        "| task | " + " | ".join(libraries) + " |",
        "|---" * (len(libraries) + 1) + "|",
    ]
    for r in report["records"]:
        cells = []
        for library in libraries:
            if (found := r["results"].get(library)) is None:
                cells.append("has none")
                continue
            speed, (low, high) = f"{statistics.median(found['steps_per_s']):,.0f}", found["ratio_range"]
            cells.append(speed + (f" ({found['ratio']:.1f}x, {low:.1f} to {high:.1f})" if library != OURS else ""))
        what = f"{r['algorithm']} {r['env']}, {r['hidden']}-{r['hidden']}, batch {r['settings'].get('batch_size', 40)}"
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sbx", metavar="PY", help="an interpreter with sbx-rl")
    parser.add_argument("--note", default="", help="a remark to keep with the results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    pythons = {OURS: sys.executable, HOST: sys.executable} | ({SBX: args.sbx} if args.sbx else {})
    records = []
    for name in args.tasks:
        records.append(measure(name, pythons, args.rounds, args.threads))
        print(json.dumps(records[-1]), flush=True)
    versions = []
    for python, distribution in [
        (sys.executable, "stable-baselines3"),
        (sys.executable, "torch"),
        (args.sbx, "sbx-rl"),
    ]:
        if python:
            code = f"from importlib.metadata import version; print(version({distribution!r}))"
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
            versions.append(f"{distribution} {done.stdout.strip()}")
    report = {"machine": machine(), "rounds": args.rounds, "threads": args.threads, "note": args.note}
    report |= {"versions": versions, "records": records}
    text = markdown(report)
    print(text)
    if not args.no_save:
        (RESULTS / "integrations_sb3.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "integrations_sb3.md").write_text(text)


if __name__ == "__main__":
    main()
