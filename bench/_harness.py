"""What the benchmark files share: a `Case` is a group of contenders that do the same work at the same sizes.

`contenders` maps a name to a factory: `factory(**size)` builds the contender, asserts that its answer is right and
returns the zero-argument function to time.  It raises ImportError when the peer is not installed and `NotApplicable` at
a size that the peer cannot do.  conftest.py turns each contender into one pytest-benchmark test; compare.py interleaves
them.  The benchmarks of whole agents (agents*.py) take `interleaved_speeds`, `PartTimer` and `agents_main` from here.
"""

import argparse
import json
import os
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

# One thread unless FASTRL_NUM_THREADS says otherwise, for us and for every peer (torch, Numba, JAX): they are imported
# after this file.
THREADS = os.environ.setdefault("FASTRL_NUM_THREADS", "1")
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC"):
    os.environ[_name] = THREADS
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if THREADS == "1":
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

warnings.filterwarnings("ignore")  # peers deprecate much at import

# The timing itself is that of `fastrl bench`.
from fastrl.bench import NotApplicable, interleave, processor, size_label  # noqa: E402

__all__ = [
    "OURS",
    "RESULTS",
    "RTOL",
    "THREADS",
    "Case",
    "NotApplicable",
    "PartTimer",
    "agents_main",
    "header",
    "interleave",
    "interleaved_speeds",
    "machine",
    "size_label",
]

OURS = "fastrl"  # ratios are time / time of this contender
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "numpy",
    "numba",
    "torch",
    "torchrl",
    "tianshou",
    "stable-baselines3",
    "sb3-contrib",
    "cpprb",
    "flashbax",
    "jax",
    "gymnasium",
    "envpool",
)

# The tolerance of every answer check: peers compute in float32.
RTOL = 1e-5


@dataclass(frozen=True)
class Case:
    name: str
    sizes: Sequence[Mapping[str, Any]]
    contenders: Mapping[str, Callable[..., Callable[[], Any]]]


def interleaved_speeds(runs: Mapping[str, Callable[[int], float]], repeats: int) -> dict[str, Any]:
    """Of contenders `run(seed) -> environment steps a second`, ours among them, taking turns: A B C A B C ...

    The ratio is that of ours to the fastest of the others (by its median), the median over the repeats.
    """
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for seed in range(repeats):
        for name, run in runs.items():
            speeds[name].append(run(seed))
    fastest = max((name for name in runs if name != OURS), key=lambda name: np.median(speeds[name]))
    ratios = np.array(speeds[OURS]) / speeds[fastest]
    return {
        "steps_per_s": {name: [round(s, 1) for s in values] for name, values in speeds.items()},
        "median": {name: round(float(np.median(values)), 1) for name, values in speeds.items()},
        "fastest_other": fastest,
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_range": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
    }


class PartTimer:
    """Shares of time by part, each without the parts that it calls: a context in which methods carry timers.

    >>> with PartTimer() as timer:
    ...     timer.time(agent.envs, "step", "env")
    ...     timer.time(agent, "learn", "loop")
    ...     agent.learn(1000)
    >>> timer.shares(("env", "loop"))
    """

    def __enter__(self) -> "PartTimer":
        self._spent: dict[str, float] = defaultdict(float)
        self._inner = [0.0]  # the time in timed calls, a level of nesting each
        self._undo: list[Callable[[], None]] = []
        return self

    def time(self, owner: Any, method: str, part: str) -> None:
        call = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - began
                self._spent[part] += seconds - self._inner.pop()
                self._inner[-1] += seconds

        if method in vars(owner):
            self._undo.append(lambda: setattr(owner, method, call))
        else:  # a bound method: the attribute was the class's
            self._undo.append(lambda: delattr(owner, method))
        setattr(owner, method, timed)

    def __exit__(self, *_: object) -> None:
        for undo in reversed(self._undo):
            undo()

    def shares(self, parts: Sequence[str]) -> dict[str, float]:
        """In percent; every part that was timed must be named."""
        assert set(self._spent) <= set(parts), f"not named: {set(self._spent) - set(parts)}"
        return {part: round(100 * self._spent[part] / sum(self._spent.values()), 1) for part in parts}


def machine():
    versions = {"python": platform.python_version()}
    for name in ("fastrl-kernels", *PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    from fastrl import _backend, _info

    info = _info.info()
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": int(THREADS),
        "simd": info.get("SIMD"),
        "cpu_backend": _backend.CPU_BACKEND,
        "versions": versions,
    }


def header(report: Mapping[str, Any], name: str, what: str) -> list[str]:
    """How a report of whole agents begins, in markdown."""
    m, settings = report["machine"], f"--repeats {report['repeats']} --steps {report['steps']}"
    return [
        f"# {name}",
        "",
        f"`python bench/{name}.py {settings}` with 1 thread on {m['cpu']} "
        f"({m['cores']} cores, {m['system']}); backend {m['cpu_backend']}, {m['simd']}.",
        f"{what}, environment steps a second: medians of interleaved runs, and the median of their ratios.",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in m["versions"].items()) + f". {report['note']}".rstrip(),
        "",
    ]


def agents_main(
    doc: str | None,
    name: str,
    steps: int,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
    options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
) -> None:
    """The command line of a benchmark of whole agents: measure, print, and keep bench/results/`name`.json and .md."""
    import gymnasium
    import torch

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=steps, help="timed steps a run")
    parser.add_argument("--note", default="", help="a remark to keep with the results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {"machine": machine(), "repeats": args.repeats, "steps": args.steps, "note": args.note}
    report["machine"]["versions"]["gymnasium"] = gymnasium.__version__
    report |= measure(args)
    text = markdown(report)
    print(text)
    if not args.no_save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(text + "\n")
