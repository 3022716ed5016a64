"""What a benchmark is made of, and how it is timed: contenders that take turns, each answer checked first."""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], Any]
OURS = "fastrl"


class NotApplicable(Exception):
    """This contender cannot do this size."""


class Problem(NamedTuple):
    """A kernel at one size: builders of the functions to time, and the check of what these return.

    The first contender is fastrl and the second the reference, which is the plain way to write it.  A builder raises
    ImportError when its library is not installed.
    """

    contenders: dict[str, Callable[[], Call]]
    check: Callable[[Any], None]  # raises AssertionError


class Kernel(NamedTuple):
    problem: Callable[..., Problem]
    sizes: Sequence[Mapping[str, int]]
    quick: Mapping[str, int]  # the one size of a quick run


class Row(NamedTuple):
    """A line of the result: microseconds a call, and how many times longer than fastrl (medians over the rounds)."""

    kernel: str
    size: str
    contender: str
    us: float
    us_25: float
    us_75: float
    ratio: float


def size_label(size: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in size.items())


def _time_block(call: Call, calls: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / calls / 1e3  # us per call


def interleave(
    contenders: Mapping[str, Call], rounds: int, block_ms: float, warm_up_ms: float = 100.0
) -> dict[str, NDArray[np.float64]]:
    """us per call, `rounds` values each: A B C A B C ..., each visit a block of calls that lasts about `block_ms`.

    Load from elsewhere hits all contenders alike, so that the ratio within a round is steadier than either time.
    """
    calls = {}
    for name, call in contenders.items():
        end = time.perf_counter() + warm_up_ms / 1e3
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


def library(name: str) -> Any:
    """A module that need not be installed."""
    return importlib.import_module(name)


def close(found: Any, wanted: Sequence[NDArray[Any]], rtol: float = 1e-4) -> None:
    """Peers compute in float32."""
    for x, y in zip(found, wanted, strict=True):
        x = x.detach() if hasattr(x, "detach") else x
        np.testing.assert_allclose(np.asarray(x), y, rtol=rtol, atol=rtol * float(np.abs(y).max(initial=0.0)))


GAMMA, LAM = 0.99, 0.95


def with_gradients(both: Callable[..., Any], leaves: Sequence[Any], weights: Sequence[Any]) -> Call:
    """The outputs of `both(*leaves)` and their gradients, for given gradients of the outputs."""
    torch = library("torch")

    def call() -> Any:
        found = both(*leaves)
        return (*found, *torch.autograd.grad(found, leaves, weights))

    return call
