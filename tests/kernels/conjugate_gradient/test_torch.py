"""The loop for GPUs, on CPU tensors and, where there is one, on a GPU."""

import importlib
import math

import numpy as np
import pytest
from cuda_graphs import captured

from fastrl import conjugate_gradient
from fastrl.kernels import conjugate_gradient_reference

from .helpers import spd

cg = importlib.import_module("fastrl.kernels.conjugate_gradient.solve")


@pytest.fixture
def device_solve(torch):
    """The loop for GPUs with its torch reference, on CPU tensors."""

    def call(A, b, *, x0=None, max_iter=10, rtol=1e-5, atol=0.0, damping=0.0, preconditioner=None):
        inverse = preconditioner if isinstance(preconditioner, torch.Tensor) else None
        function = None if inverse is not None else preconditioner
        product = A if callable(A) else A.__matmul__
        arguments = (b, x0, max_iter, rtol, atol, damping, inverse, function)
        fallback = importlib.import_module("fastrl.kernels.conjugate_gradient._torch").fallback
        return cg._solve_on_device(fallback, product, *arguments)[:2]

    return call


def test_device_loop_gives_the_same(device_solve, torch, rng):
    A, b, x0 = spd(rng, 30, 100.0), rng.normal(size=30), rng.normal(size=30)
    d = 1 / np.diag(A)
    tensors = [torch.from_numpy(a) for a in (A, b, x0, d)]
    T, tb, t0, td = tensors
    for k in (0, 1, 5, 12, 100):
        for start, inverse, t_start, t_inverse in (
            (None, None, None, None),
            (x0, d, t0, td),
            (x0, lambda r: d * r, t0, lambda r: td * r),
        ):
            ours, info = device_solve(T, tb, x0=t_start, max_iter=k, rtol=1e-11, damping=0.1, preconditioner=t_inverse)
            x, wanted = conjugate_gradient_reference(
                A, b, x0=start, max_iter=k, rtol=1e-11, damping=0.1, preconditioner=inverse
            )
            assert info.status == wanted.status == ("converged" if k == 100 else "max_iter")
            assert abs(info.iterations - wanted.iterations) <= (3 if k == 100 else 0)
            np.testing.assert_allclose(ours.numpy(), x, rtol=1e-9, atol=1e-9)
            if k < 100:
                np.testing.assert_allclose(info.residual_norm, wanted.residual_norm, rtol=1e-6)


def test_device_loop_on_systems_without_an_answer(device_solve, torch):
    eye, ones = torch.eye(3), torch.ones(3)
    cases = {
        "negative_curvature": (-eye, ones, 0),
        "breakdown": (eye * math.nan, ones, 0),
        "converged": (eye, torch.zeros(3), 0),
    }
    for status, (A, b, iterations) in cases.items():
        x, info = device_solve(A, b)
        assert (info.iterations, info.status) == (iterations, status)
        assert torch.equal(x, torch.zeros(3))
    x, info = device_solve(eye, torch.zeros(3), x0=torch.tensor([1.0, math.nan, 0.0]))
    assert tuple(info) == (0, 0.0, "converged") and torch.equal(x, torch.zeros(3))
    x, info = device_solve(eye, torch.tensor([1.0, math.inf, 0.0]))
    assert info.status == "breakdown" and torch.equal(x, torch.zeros(3))
    A, b = torch.diag(torch.tensor([1.0, 2.0, -3.0])), torch.tensor([1.0, 1.0, 1e-3])
    x, info = device_solve(A, b, max_iter=50)
    y, wanted = conjugate_gradient_reference(A, b, max_iter=50)
    assert tuple(info)[::2] == tuple(wanted)[::2] and torch.isfinite(x).all()
    torch.testing.assert_close(x, y)


def test_device_info_is_read_late(device_solve, torch, monkeypatch):
    """No number leaves the device before somebody looks."""
    looked = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _f=original, _n=name: (looked.append(_n), _f(self, *a))[1]
        )
    _, info = device_solve(torch.diag(torch.tensor([1.0, 2.0])), torch.ones(2))
    assert not looked
    assert info.status == "converged" and looked == ["tolist"]


@pytest.mark.parametrize("captures", [False, True])
def test_device_info_waits_for_the_stream_of_the_solve(device_solve, torch, streams, captures):
    """Not for the one that is current at the first look; a captured solve has not run on any."""
    streams.captures = captures
    _, info = device_solve(torch.diag(torch.tensor([1.0, 2.0])), torch.ones(2))
    streams.current, streams.captures = "second", False
    assert not streams.waited
    assert info.status == "converged" and info.iterations == 2
    assert streams.waited == ([] if captures else ["first"])


def test_cuda(torch):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    rng = np.random.default_rng(0)
    A, b = spd(rng, 200, 1e3), rng.normal(size=200)
    T, tb = torch.from_numpy(A).cuda(), torch.from_numpy(b).cuda()
    d = 1 / torch.diag(T)
    for options in ({}, {"preconditioner": d}, {"preconditioner": lambda r: d * r}, {"x0": torch.ones_like(tb)}):
        for k in (3, 400):
            x, info = conjugate_gradient(T, tb, max_iter=k, rtol=1e-9, **options)
            y, wanted = conjugate_gradient_reference(T, tb, max_iter=k, rtol=1e-9, **options)
            assert info.status == wanted.status and abs(info.iterations - wanted.iterations) <= 3
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    x, info = conjugate_gradient(-T, tb)
    assert info.status == "negative_curvature" and not x.any()


def test_cuda_graph(torch):
    """The whole solve captured once, and replayed on another right-hand side."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    A = torch.diag(torch.linspace(1, 3, 500, device="cuda"))
    b = torch.randn(500, device="cuda")
    graph, (x, _) = captured(lambda: conjugate_gradient(A, b, max_iter=40))
    b.copy_(torch.randn(500))
    graph.replay()
    torch.testing.assert_close(A @ x, b, rtol=1e-3, atol=1e-3)
