"""Random calls of every op on every backend against plain float64: a few here, 20,000 of each in the long stage."""

import os

import numpy as np
import pytest

from fastrl import _backend
from fastrl.kernels._core.backends import ops

from ..backends import BACKENDS, load_kernels
from . import learning, policies, replay

# `CASES[op](rng, oracle)` draws the arguments of one call, works out the answer, and gives a function that makes the
# call on the backend that serves meanwhile, and compares.
CASES = {**replay.CASES, **policies.CASES, **learning.CASES}

CHOSEN = os.environ.get("FASTRL_BACKEND")


def serve(name, monkeypatch):
    """One backend serves every op that it has."""
    monkeypatch.setattr(_backend, "CPU_BACKEND", name)
    for op, backend in ops().items():
        if name != "numba" or backend._has("_numba"):
            monkeypatch.setattr(backend, "cpu", load_kernels(op, name))


def run(op, oracle, monkeypatch, count, backends):
    """Calls 0 .. count - 1 of an op on each backend."""
    for first in range(0, count, 100):
        numbers = range(first, min(first + 100, count))
        checks = [CASES[op](np.random.default_rng([number, *op.encode()]), oracle) for number in numbers]
        for name in backends:
            with monkeypatch.context() as patch:
                serve(name, patch)
                for number, check in zip(numbers, checks, strict=True):
                    try:
                        check()
                    except Exception as error:
                        raise AssertionError(f"{op}: call {number}, backend {name}") from error


@pytest.mark.parametrize("op", CASES)
def test_some_calls(op, oracle, monkeypatch, backend_name):
    run(op, oracle, monkeypatch, 5, [backend_name])


@pytest.mark.long
@pytest.mark.parametrize("op", CASES)
def test_20_000_calls(op, oracle, monkeypatch, report):
    backends = [CHOSEN] if CHOSEN else BACKENDS
    run(op, oracle, monkeypatch, 20_000, backends)
    report("20,000 calls on " + ", ".join(backends))
