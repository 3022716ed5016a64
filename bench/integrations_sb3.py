"""Stable-Baselines3's runs with fastrl.integrations.sb3 in the place of its classes, in turns with the host's own.

    python bench/integrations_sb3.py [--tasks dqn sac64 td3 sac256 ppo a2c] [--rounds 5] [--threads 1] [--sbx PY]
        [--note TEXT] [--no-save]

Needs the extra sb3.  PY is the interpreter of a virtual environment with sbx-rl, the same algorithms on JAX.  Before
anything is timed a short run of each class must end where the host's run of the same seed ends.  Then every round runs
all contenders of a task once, each in a fresh process pinned to `--threads` processors: environment steps a second with
an update a step, warm-up and compilation not counted.  On one thread a second is one of the process's CPU time, which
other programs on the machine change least.
"""

import functools
import sys
from typing import Any, NamedTuple

from _harness import fresh_run, interleaved_speeds, runs_parser, runs_report


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
    return fresh_run(python, CODE, threads, LIBRARY=library, THREADS=threads, SEED=seed, **task._asdict())


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


def main() -> None:
    parser = runs_parser(__doc__, TASKS)
    parser.add_argument("--sbx", metavar="PY", help="an interpreter with sbx-rl")
    args = parser.parse_args()
    pythons = {OURS: sys.executable, HOST: sys.executable} | ({SBX: args.sbx} if args.sbx else {})
    installed = {name: (sys.executable, name) for name in ("stable-baselines3", "torch")}
    if args.sbx:
        installed["sbx-rl"] = args.sbx, "sbx-rl"
    records = (measure(name, pythons, args.rounds, args.threads) for name in args.tasks)
    runs_report("integrations_sb3", args, records, label, installed)


if __name__ == "__main__":
    main()
