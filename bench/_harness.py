"""What the benchmark files share: a `Case` is a group of contenders that do the same work at the same sizes.

`contenders` maps a name to a factory: `factory(**size)` builds the contender, asserts that its answer is right and
returns the zero-argument function to time.  It raises ImportError when the peer is not installed and `NotApplicable` at
a size that the peer cannot do.  conftest.py turns each contender into one pytest-benchmark test; compare.py interleaves
them.  Below that is what the benchmarks of whole agents share (whole_agents.py, integrations_sb3.py): runs in fresh
processes, in turns, and their tables.
"""

import argparse
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    "fresh_run",
    "interleave",
    "interleaved_speeds",
    "machine",
    "runs_parser",
    "runs_report",
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


FRESH = """
import json, resource, sys, time, warnings
warnings.filterwarnings("ignore")
globals().update(json.loads(sys.argv[1]))
def report(**found):
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT", json.dumps(found), flush=True)
"""


def fresh_run(python: str, code: str, threads: int, **values: Any) -> dict[str, Any] | None:
    """What `code` gives to ``report(speed=..., ...)`` in a fresh process of `python`, pinned to `threads` processors.

    `code` sees `values` as variables; the peak memory of the process, in MB, is added to the report.  None: it exited
    with 3, for an agent that the library does not have.  Any other failure ends the benchmark.
    """
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[-threads:]))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "FASTRL_NUM_THREADS")
    flags = f"--xla_cpu_multi_thread_eigen={'false' if threads == 1 else 'true'}"
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "XLA_FLAGS": flags, "CUDA_VISIBLE_DEVICES": ""}
    command = ["taskset", "-c", cpus, python, "-c", FRESH + code, json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            return json.loads(line.removeprefix("RESULT"))
    if done.returncode == 3:
        return None
    raise SystemExit(f"{python} with {values} failed:\n{done.stderr[-2000:] or done.returncode}")


def interleaved_speeds(runs: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Of contenders ``run(seed) -> {"speed": environment steps a second, ...}``, in turns: A B C A B C ...

    The ratios are those of the first one's speeds to the others', round by round.  Who gives None is left out.
    """
    found: dict[str, list[Any]] = {name: [] for name in runs}
    for seed in range(rounds):
        for name, run in runs.items():
            found[name].append(run(seed))
    found = {name: reports for name, reports in found.items() if None not in reports}
    speeds = {name: np.array([r["speed"] for r in reports]) for name, reports in found.items()}
    results = {}
    for name, reports in found.items():
        ratios = next(iter(speeds.values())) / speeds[name]
        results[name] = {
            "steps_per_s": speeds[name].round(1).tolist(),
            "ratio": round(float(np.median(ratios)), 2),
            "ratio_range": [round(float(x), 2) for x in (ratios.min(), ratios.max())],
        }
        if "peak_mb" in reports[0]:
            results[name]["peak_mb"] = round(float(np.median([r["peak_mb"] for r in reports])))
    return results


def runs_parser(doc: str | None, tasks: Iterable[str]) -> argparse.ArgumentParser:
    """The options that the benchmarks of whole agents have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(tasks), choices=tasks)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="a remark to keep with the results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser


def runs_report(
    name: str,
    args: argparse.Namespace,
    records: Iterable[dict[str, Any]],
    label: Callable[[Any], str],
    installed: Mapping[str, tuple[str, str]],
) -> None:
    """Print `records`, each as it comes, then their table, and keep both in bench/results/`name`.json and .md.

    A record holds what `interleaved_speeds` gave as "results"; `label` names its row.  installed: what to call a
    version -> the interpreter and the distribution whose version it is.
    """
    kept = []
    for record in records:
        print(json.dumps(record), flush=True)
        kept.append(record)
    versions = []
    for what, (python, distribution) in installed.items():
        code = f"from importlib.metadata import version; print(version({distribution!r}))"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
        versions.append(f"{what} {done.stdout.strip()}")
    report = {"machine": machine(), "rounds": args.rounds, "threads": args.threads, "note": args.note}
    report |= {"versions": versions, "records": kept}
    text = _runs_markdown(name, report, label)
    print(text)
    if not args.no_save:
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(text)


def _runs_markdown(name: str, report: Mapping[str, Any], label: Callable[[Any], str]) -> str:
    m, records = report["machine"], report["records"]
    contenders = list(dict.fromkeys(contender for r in records for contender in r["results"]))
    lines = [
        f"# {name}",
        "",
        f"`python bench/{name}.py --rounds {report['rounds']} --threads {report['threads']} ...` on {m['cpu']} "
        f"({m['cores']} cores, {m['system']}).",
        "Environment steps a second with updates running: medians of interleaved rounds; in brackets the median (and "
        f"range) of the ratios {contenders[0]} / other; then the peak memory of the process.",
        "Versions: " + ", ".join(report["versions"]) + f". {report['note']}".rstrip(),
        "",
        "| task | " + " | ".join(contenders) + " |",
        "|---" * (len(contenders) + 1) + "|",
    ]
    for r in records:
        cells = []
        for contender in contenders:
            if (found := r["results"].get(contender)) is None:
                cells.append("-")
                continue
            speed, (low, high) = f"{np.median(found['steps_per_s']):,.0f}", found["ratio_range"]
            ratio = f" ({found['ratio']:.1f}x, {low:.1f} to {high:.1f})" if contender != contenders[0] else ""
            cells.append(f"{speed}{ratio}, {found['peak_mb']} MB")
        lines.append(f"| {label(r)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
