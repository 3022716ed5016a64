import importlib

import pytest

from ..backends import load_kernels

cg = importlib.import_module("fastrl.kernels.conjugate_gradient.solve")


@pytest.fixture
def solve(backend_name):
    """`conjugate_gradient` by one backend."""
    kernels = load_kernels("conjugate_gradient", backend_name)

    def call(A, b, *, x0=None, max_iter=10, rtol=1e-5, atol=0.0, damping=0.0, preconditioner=None):
        return cg.solve(A, b, x0, max_iter, rtol, atol, damping, preconditioner, kernels)[:2]

    return call
