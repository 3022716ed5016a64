"""Small benchmarks of the kernels for any machine: what `fastrl bench` runs.

Every contender does the same work, and its answer is checked before it is timed.  The contenders take turns, so that
load from elsewhere hits all of them alike.  The repository's own benchmarks (bench/) share the timing with this module
and have more sizes, cases and peers.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence

import numpy as np

import fastrl
from fastrl import _backend
from fastrl.bench.problems import KERNELS
from fastrl.bench.report import COLUMNS, draw, microseconds, write_csv
from fastrl.bench.timing import OURS, Kernel, NotApplicable, Problem, Row, interleave, library, size_label

__all__ = [
    "COLUMNS",
    "KERNELS",
    "Kernel",
    "NotApplicable",
    "Problem",
    "Row",
    "draw",
    "interleave",
    "machine",
    "microseconds",
    "processor",
    "run",
    "set_threads",
    "size_label",
    "write_csv",
]


def run(
    kernels: Sequence[str], quick: bool, report: Callable[[str], object], left_out: dict[str, str]
) -> Iterator[Row]:
    """The rows of the named kernels; `report` hears what comes next, and `left_out` gets contenders and why."""
    for name in kernels:
        kernel = KERNELS[name]
        for size in [kernel.quick] if quick else kernel.sizes:
            label = size_label(size)
            report(f"{name} {label}")
            problem = kernel.problem(**size)
            calls = {}
            for contender, build in problem.contenders.items():
                try:
                    call = build()
                    problem.check(call())
                except Exception as error:  # whatever another version of a library does
                    if contender == OURS:
                        raise
                    if isinstance(error, ImportError):
                        left_out[contender] = _short(error)
                    else:
                        what = "its answer is another" if isinstance(error, AssertionError) else "it fails"
                        left_out[f"{contender} ({name})"] = f"{what}: {_short(error)}"
                    continue
                calls[contender] = call
            times = interleave(calls, *((5, 1.0, 10.0) if quick else (15, 4.0, 100.0)))
            for contender, t in times.items():
                low, median, high = np.percentile(t, (25, 50, 75))
                yield Row(name, label, contender, median, low, high, float(np.median(t / times[OURS])))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 100 else f"{text[:100]} ..."


def set_threads(threads: int) -> None:
    """As many for every contender, as far as a library that is loaded already lets one."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    fastrl.set_num_threads(threads)
    library("torch").set_num_threads(threads)


def processor() -> str:
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return cpu


def machine() -> str:
    """One line: processor, threads, backend."""
    threads = fastrl.get_num_threads()
    simd = f", {_backend._C.simd_level()}" if _backend._C is not None else ""
    backend = f"backend {_backend.CPU_BACKEND}{simd}"
    return f"fastrl {fastrl.__version__} on {processor()}, {threads} thread{'s' * (threads > 1)}, {backend}"
