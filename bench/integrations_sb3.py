"""Stable-Baselines3's runs with fastrl.integrations.sb3 in the place of its classes, in turns with the host's own.

    python bench/integrations_sb3.py [--tasks dqn sac64 td3 sac256 ppo a2c crossq] [--rounds 5] [--threads 1] [--sbx PY]
        [--note TEXT] [--no-save]
    python bench/integrations_sb3.py --returns 10 [--of PPO DQN A2C SAC TD3 DDPG]

Needs the extra sb3, and sb3-contrib for CrossQ.  PY is the interpreter of a virtual environment with sbx-rl, the same
algorithms on JAX.  Before anything is timed a short run of each class must end where the host's run of the same seed
ends.  Then every round runs all contenders of a task once, each in a fresh process pinned to `--threads` processors:
environment steps a second with an update a step, warm-up and compilation not counted.  On one thread a second is one of
the process's CPU time, which other programs on the machine change least.

With --returns nothing is timed: both libraries train `RETURNS` with the same settings and so many seeds of their own
each, in one process on one thread, and the table says what the runs earned and the p of a Mann-Whitney test.  A run is
a line of bench/results/integrations_sb3_returns.jsonl when it is complete; those that are there are not run again, and
the table is of all that are there.
"""

import functools
import importlib
import json
import sys
import warnings
from typing import Any, NamedTuple

from _harness import RESULTS, fresh_run, interleaved_speeds, machine, runs_parser, runs_report


class Task(NamedTuple):
    algorithm: str
    env: str
    envs: int
    settings: dict
    hidden: int
    warm: int  # steps before the clock
    steps: int  # timed
    contrib: bool = False


TASKS = {
    "dqn": Task("DQN", "CartPole-v1", 1, {"batch_size": 64, "learning_starts": 500, "train_freq": 1}, 64, 700, 2000),
    "sac64": Task("SAC", "Pendulum-v1", 1, {"batch_size": 128, "learning_starts": 300}, 64, 400, 800),
    "td3": Task("TD3", "Pendulum-v1", 1, {"batch_size": 128, "learning_starts": 300}, 64, 400, 1000),
    "sac256": Task("SAC", "Pendulum-v1", 1, {"batch_size": 256, "learning_starts": 300}, 256, 350, 250),
    "ppo": Task("PPO", "CartPole-v1", 8, {"n_steps": 32, "n_epochs": 20, "batch_size": 256}, 64, 1024, 8192),
    "a2c": Task("A2C", "CartPole-v1", 8, {}, 64, 800, 8000),
    "crossq": Task("CrossQ", "Pendulum-v1", 1, {"batch_size": 128, "learning_starts": 300}, 64, 400, 800, True),
}
HOST, OURS, SBX = "stable_baselines3", "fastrl.integrations.sb3", "sbx"
CONTRIB = {HOST: "sb3_contrib", OURS: "fastrl.integrations.sb3_contrib"}
CODE = """
warnings.filterwarnings("error", message=".*is not compiled.*")
if LIBRARY != "sbx":
    import torch
    torch.set_num_threads(THREADS)
import importlib
from stable_baselines3.common.env_util import make_vec_env
make = getattr(importlib.import_module(LIBRARY), algorithm, None) or sys.exit(3)
model = make(
    "MlpPolicy", make_vec_env(env, envs, seed=SEED), seed=SEED, device="cpu", policy_kwargs={"net_arch": [hidden] * 2},
    **settings,
)
model.learn(warm)
clock = time.process_time if THREADS == 1 else time.perf_counter
start, before = clock(), model.num_timesteps
if steps:
    model.learn(steps, reset_num_timesteps=False)
found = {"speed": (model.num_timesteps - before) / (clock() - start)}
if LIBRARY != "sbx":
    found["parameters"] = [p.detach().norm().item() for p in model.policy.parameters()]
report(**found, obs=model._last_obs.tolist(), updates=int(model._n_updates))
"""


def run(library: str, python: str, task: Task, threads: int, seed: int) -> Any:
    module = CONTRIB.get(library, library) if task.contrib else library
    return fresh_run(python, CODE, threads, LIBRARY=module, THREADS=threads, SEED=seed, **task._asdict())


def check(name: str, task: Task) -> None:
    """The same seed, the same run: 50 updates at least, then the observations and the norm of every parameter."""
    start = task.settings.get("learning_starts")
    short = task._replace(warm=start + 50 if start else 512, steps=0)
    theirs, ours = (run(library, sys.executable, short, 1, 0) for library in (HOST, OURS))
    assert ours["updates"] == theirs["updates"] > 0, (name, ours["updates"], theirs["updates"])
    for key in ("obs", "parameters"):
        pairs = zip(_flat(ours[key]), _flat(theirs[key]), strict=True)
        worst = max(abs(x - y) / (1 + abs(y)) for x, y in pairs)
        assert worst < 1e-3, f"{name}: {key} are {worst:.1e} apart from the host's"


def _flat(x: object) -> list[float]:
    return [z for y in x for z in _flat(y)] if isinstance(x, list) else [x]


def measure(name: str, pythons: dict[str, str], rounds: int, threads: int) -> dict[str, Any]:
    task, updates = TASKS[name], set()
    check(name, task)

    def timed(library: str, seed: int) -> Any:
        found = run(library, pythons[library], task, threads, seed)
        if found is not None:
            updates.add(found["updates"])
        return found

    results = interleaved_speeds({library: functools.partial(timed, library) for library in pythons}, rounds)
    assert len(updates) == 1 and 0 not in updates, f"{name}: not all made as many updates, but {updates}"
    return {"task": name, **task._asdict(), "results": results}


def label(r: Any) -> str:
    batch = r["settings"].get("batch_size", 40)  # of A2C: 5 steps of 8 environments
    return f"{r['algorithm']} {r['env']}, {r['hidden']}-{r['hidden']}, batch {batch}"


# ---- returns

OFF_POLICY = {"learning_rate": 1e-3, "batch_size": 64, "learning_starts": 500, "train_freq": 1}
DQN = {**OFF_POLICY, "target_update_interval": 250, "exploration_fraction": 0.2}
RETURNS = {  # those of `Task` that matter; `steps` is the whole run, so long that each has learned by its end
    "PPO": Task("PPO", "CartPole-v1", 8, {"n_steps": 32, "n_epochs": 10, "learning_rate": 1e-3}, 32, 0, 20_000),
    "DQN": Task("DQN", "CartPole-v1", 1, DQN, 32, 0, 10_000),
    "A2C": Task("A2C", "CartPole-v1", 8, {}, 32, 0, 20_000),
    "SAC": Task("SAC", "Pendulum-v1", 1, OFF_POLICY, 32, 0, 6_000),
    "TD3": Task("TD3", "Pendulum-v1", 1, OFF_POLICY, 32, 0, 8_000),
    "DDPG": Task("DDPG", "Pendulum-v1", 1, OFF_POLICY, 32, 0, 8_000),
}
# Seeds of the two are disjoint: from one seed both make the same run for a while, and a test for samples that are
# independent would say too easily that they are alike.
FIRST_SEED = {HOST: 0, OURS: 100}
MEASURES = {"end": "20 greedy episodes at the end", "training": "all episodes of the training"}
LOGS = RESULTS / "integrations_sb3_returns.jsonl"


def train(library: str, task: Task, seed: int) -> dict[str, Any]:
    """The mean return of greedy episodes after training, and the return of each episode in it."""
    import numpy as np
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.noise import NormalActionNoise

    envs = make_vec_env(task.env, task.envs, seed=seed)
    settings = {**task.settings, "policy_kwargs": {"net_arch": [task.hidden] * 2}}
    if task.algorithm in ("TD3", "DDPG"):
        settings["action_noise"] = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    made = getattr(importlib.import_module(library), task.algorithm)
    model = made("MlpPolicy", envs, seed=seed, device="cpu", **settings).learn(task.steps)
    returns = [round(float(x), 1) for of_one in envs.env_method("get_episode_rewards") for x in of_one]
    end, _ = evaluate_policy(model, make_vec_env(task.env, 1, seed=10**6), n_eval_episodes=20)
    return {"end": round(float(end), 2), "training": round(float(np.mean(returns)), 2), "returns": returns}


def compare_returns(seeds: int, names: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*is not compiled.*")
    done = {(r["task"], r["library"], r["seed"]) for r in _logs()}
    for seed in range(seeds):
        for name in names:
            for library, first in FIRST_SEED.items():
                key = {"task": name, "library": library, "seed": first + seed}
                if tuple(key.values()) not in done:
                    line = json.dumps({**key, **train(library, RETURNS[name], first + seed)})
                    with LOGS.open("a") as file:
                        file.write(line + "\n")
        LOGS.with_suffix(".md").write_text(_returns_markdown())
    print(LOGS.with_suffix(".md").read_text())


def _logs() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LOGS.read_text().splitlines()] if LOGS.exists() else []


def _returns_markdown() -> str:
    import numpy as np
    from scipy.stats import bootstrap, mannwhitneyu

    m, names = machine(), ("stable-baselines3", "torch", "gymnasium")
    lines = [
        f"# {LOGS.stem}",
        "",
        "`python bench/integrations_sb3.py --returns SEEDS`: the same settings, seeds of its own for each library "
        "(their number in brackets). The mean return, its 95 % bootstrap interval over the seeds, and the p of a "
        "two-sided Mann-Whitney test of the runs' means.",
        "Versions: " + ", ".join(f"{name} {m['versions'][name]}" for name in names) + f"; {m['cpu']}, one thread.",
        "",
        "| task | return of | " + " | ".join(FIRST_SEED) + " | p |",
        "|---" * (len(FIRST_SEED) + 3) + "|",
    ]
    logs = _logs()
    for name, task in RETURNS.items():
        for measure, text in MEASURES.items():
            cells, samples = [], []
            for library in FIRST_SEED:
                x = np.array([r[measure] for r in logs if (r["task"], r["library"]) == (name, library)])
                samples.append(x)
                if len(x) < 2:
                    cells.append(f"({len(x)})")
                    continue
                low, high = bootstrap((x,), np.mean, method="percentile", rng=0).confidence_interval
                cells.append(f"{x.mean():.1f} [{low:.1f}, {high:.1f}] ({len(x)})")
            p = mannwhitneyu(*samples).pvalue if all(map(len, samples)) else np.nan
            label = f"{name} {task.env}, {task.steps:,} steps"
            lines.append(f"| {label} | {text} | " + " | ".join(cells) + f" | {p:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = runs_parser(__doc__, TASKS)
    parser.add_argument("--sbx", metavar="PY", help="an interpreter with sbx-rl")
    parser.add_argument("--returns", type=int, metavar="SEEDS", help="compare what is earned; times nothing")
    parser.add_argument("--of", nargs="+", default=list(RETURNS), choices=RETURNS, help="with --returns: only these")
    args = parser.parse_args()
    if args.returns is not None:
        compare_returns(args.returns, args.of)
        return
    pythons = {OURS: sys.executable, HOST: sys.executable} | ({SBX: args.sbx} if args.sbx else {})
    installed = {name: (sys.executable, name) for name in ("stable-baselines3", "sb3-contrib", "torch")}
    if args.sbx:
        installed["sbx-rl"] = args.sbx, "sbx-rl"
    records = (measure(name, pythons, args.rounds, args.threads) for name in args.tasks)
    runs_report("integrations_sb3", args, records, label, installed)


if __name__ == "__main__":
    main()
