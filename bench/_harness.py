"""What the benchmark files share: a `Case` is a group of contenders that do the same work at the same sizes.

`contenders` maps a name to a factory: `factory(**size)` builds the contender, asserts that its answer is right and
returns the zero-argument function to time.  It raises ImportError when the peer is not installed and `NotApplicable` at
a size that the peer cannot do.  conftest.py turns each contender into one pytest-benchmark test; compare.py interleaves
them.
"""

import gc
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

# The tolerance of every answer check: peers compute in float32.
RTOL = 1e-5


class NotApplicable(Exception):
    """This contender cannot do this size."""


@dataclass(frozen=True)
class Case:
    name: str
    sizes: Sequence[Mapping[str, Any]]
    contenders: Mapping[str, Callable[..., Callable[[], Any]]]


def size_label(size: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in size.items())


def _time_block(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / calls / 1e3  # us per call


def interleave(contenders: Mapping[str, Callable[[], Any]], rounds: int, block_ms: float) -> dict[str, np.ndarray]:
    """us per call, `rounds` values each: A B C A B C ..., each visit a block of calls that lasts about `block_ms`.

    Load from elsewhere hits all contenders alike, so that the ratio within a round is steadier than either time.
    """
    calls = {}
    for name, call in contenders.items():
        end = time.perf_counter() + 0.1
        best = _time_block(call, 1)
        while time.perf_counter() < end:
            best = min(best, _time_block(call, 1))
        calls[name] = max(1, int(block_ms * 1e3 / best))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in contenders.items():
                times[name].append(_time_block(call, calls[name]))
    finally:
        gc.enable()
    return {name: np.array(t) for name, t in times.items()}
