"""Where the time of an agent's step goes, beside that of an earlier build, and what a second thread brings.

    python bench/profile_updates.py --python fastrl=PY [--python baseline=PY] [--tasks dqn sac64 td3 sac256 ppo] \
        [--note TEXT] [--no-save]

writes bench/results/profile_updates.md.  PY and tasks are those of whole_agents.py.  Every task runs once plainly, for
its microseconds an environment step, and once under cProfile, for the shares: each function's own time counts for who
wrote it.  The profiler makes Python's small calls longer than they are, so those shares are upper bounds.

The second table is one update of SAC with networks of 256-256 (batch 256), call by call, with one thread and with two,
each the least of many; torch.mm beside it tells what two threads of the machine can bring.
"""

import argparse
from typing import Any

from _harness import RESULTS, fresh_run, machine
from whole_agents import AGENT, TASKS

GROUPS = ("fastrl's kernels", "torch", "fastrl's Python", "NumPy", "environment", "rest")
SHARES = """
import cProfile, pstats, time

def group(file, name):
    text = file + name
    for key, words in (
        ("torch", ("/torch/", "torch.", "torch._C")),
        ("environment", ("/gymnasium/",)),
        ("NumPy", ("/numpy/", "numpy")),
        ("fastrl's kernels", ("fastrl._C", "pybind11", "_fastrl")),
        ("fastrl's Python", ("/fastrl/",)),
    ):
        if any(word in text for word in words):
            return key
    return "rest"

agent.learn(WARM, progress=False)
begun, start = agent.steps, time.perf_counter()
agent.learn(agent.steps + STEPS, progress=False)
step = (time.perf_counter() - start) / (agent.steps - begun)
profile = cProfile.Profile()
profile.runcall(agent.learn, agent.steps + STEPS, progress=False)
shares = {}
for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():
    key = group(file, name)
    shares[key] = shares.get(key, 0.0) + own
total = sum(shares.values())
report(step=step * 1e6, shares={key: value / total for key, value in shares.items()})
"""
PARTS = """
import time
from fastrl import MLP, FlatAdam

seen = []
def timed(cls, name):
    call = getattr(cls, name)
    def run(self, *args, **more):
        start = time.perf_counter()
        found = call(self, *args, **more)
        networks = "" if cls is FlatAdam else " of 1" if self.n is None else f" of {self.n}"
        columns = " to the actions" if more.get("inputs") else ""
        seen.append((f"{cls.__name__}.{name}{networks}{columns}", time.perf_counter() - start))
        return found
    setattr(cls, name, run)

def least(run, seconds):
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times.append(run())
    return [min(column) for column in zip(*times)]

def update():
    seen.clear()
    start = time.perf_counter()
    agent._update()
    return [t for _, t in seen] + [time.perf_counter() - start]

for name in ("forward", "forward_cached", "backward"):
    timed(MLP, name)
timed(FlatAdam, "step")
agent.learn(WARM, progress=False)
found = {1: [], 2: []}
for _ in range(ROUNDS):
    for threads in found:
        fastrl.set_num_threads(threads)
        found[threads].append(least(update, 0.3))
names = [name for name, _ in seen] + ["the whole update"]
import torch
a, b, c = torch.randn(512, 256), torch.randn(256, 256), torch.empty(512, 256)
def product():
    start = time.perf_counter()
    torch.mm(a, b, out=c)
    return [time.perf_counter() - start]
products = {1: [], 2: []}
for _ in range(ROUNDS):
    for threads in products:
        torch.set_num_threads(threads)
        products[threads].append(least(product, 0.3))
columns = {t: [min(x) for x in zip(*found[t])] + [min(x)[0] for x in [products[t]]] for t in found}
report(rows=[[n, x * 1e6, y * 1e6] for n, x, y in zip(names + ["torch.mm, 512 x 256 by 256 x 256"], *columns.values())])
"""


def run(code: str, python: str, name: str, threads: int, **more: Any) -> Any:
    task = TASKS[name]
    values = {"NAME": name, "THREADS": threads, "ENV": task.env, "H": task.hidden, "B": task.batch, "SEED": 0}
    return fresh_run(python, AGENT + code, threads, **values, WARM=task.warm, STEPS=task.steps, **more)


def markdown(args: argparse.Namespace, steps: dict[str, dict[str, Any]], parts: list[list[Any]]) -> str:
    m = machine()
    lines = [
        "# profile_updates",
        "",
        f"`python bench/profile_updates.py ...` on {m['cpu']} ({m['cores']} cores, {m['system']}); {m['simd']}. "
        f"{args.note}".rstrip(),
        "",
        "Microseconds an environment step with its update, one thread, and the shares of own time under cProfile.",
        "",
        "| task | build | us a step | " + " | ".join(GROUPS) + " |",
        "|---" * (len(GROUPS) + 3) + "|",
    ]
    for task, builds in steps.items():
        for build, found in builds.items():
            shares = " | ".join(f"{found['shares'].get(group, 0):.0%}" for group in GROUPS)
            lines.append(f"| {task} | {build} | {found['step']:,.0f} | {shares} |")
    lines += [
        "",
        "One update of SAC, 256-256, batch 256, microseconds (the least of many):",
        "",
        "| call, in order | one thread | two threads | ratio |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {one:,.0f} | {two:,.0f} | {one / two:.2f} |" for name, one, two in parts]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", required=True, metavar="NAME=PY")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the second table")
    parser.add_argument("--note", default="", help="a remark to keep with the results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in args.python)
    steps = {task: {name: run(SHARES, python, task, 1) for name, python in pythons.items()} for task in args.tasks}
    parts = run(PARTS, pythons["fastrl"], "sac256", 2, ROUNDS=args.rounds)["rows"]
    text = markdown(args, steps, parts)
    print(text)
    if not args.no_save:
        (RESULTS / "profile_updates.md").write_text(text)


if __name__ == "__main__":
    main()
