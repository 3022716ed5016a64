"""Conjugate gradient against dense solves and SciPy, and on systems without an answer."""

import importlib

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl import conjugate_gradient

from ..backends import BACKENDS, load_kernels
from .helpers import spd

cg = importlib.import_module("fastrl.kernels.conjugate_gradient.solve")


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 129, 500])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8])
def test_dense_solve(solve, rng, n, condition):
    A, b = spd(rng, n, condition), rng.normal(size=n)
    x, info = solve(A, b, max_iter=40 * n + 10, rtol=1e-8)
    assert info.status == "converged"
    # The recurrence's r is the true one but for rounding: some eps ||A|| ||x|| an iteration, ||A|| = 1.
    wanted = np.linalg.solve(A, b)
    rounding = 10 * np.finfo(np.float64).eps * (info.iterations + n) * np.linalg.norm(wanted)
    residual = np.linalg.norm(b - A @ x)
    assert residual <= 1e-8 * np.linalg.norm(b) + rounding
    assert np.linalg.norm(x - wanted) <= condition * (residual + rounding)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_exact_in_n_steps(solve, rng, n):
    A, b = spd(rng, n, 10.0), rng.normal(size=n)
    x, info = solve(A, b, max_iter=n, rtol=0.0, atol=0.0)
    assert info.iterations <= n
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-9, atol=1e-9)


def test_k_eigenvalues_take_k_steps(solve, rng):
    q = scipy.linalg.qr(rng.normal(size=(40, 40)))[0]
    A = (q * np.repeat([1.0, 2.0, 5.0], [10, 10, 20])) @ q.T
    _, info = solve(A, rng.normal(size=40), max_iter=40, rtol=1e-12)
    assert (info.iterations, info.status) == (3, "converged")


@pytest.mark.parametrize("preconditioned", [False, True])
def test_same_iterates_as_scipy(solve, rng, preconditioned):
    """After every number of iterations, not only at the end."""
    A, b, x0 = spd(rng, 30, 100.0), rng.normal(size=30), rng.normal(size=30)
    d = 1 / np.diag(A)
    for k in range(1, 12):
        M = scipy.sparse.linalg.LinearOperator((30, 30), matvec=lambda r: d * r) if preconditioned else None
        theirs, _ = scipy.sparse.linalg.cg(A, b, x0=x0, rtol=0.0, atol=0.0, maxiter=k, M=M)
        for inverse in (d, lambda r: d * r) if preconditioned else (None,):
            ours, info = solve(A, b, x0=x0, max_iter=k, rtol=0.0, preconditioner=inverse)
            assert (info.iterations, info.status) == (k, "max_iter")
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(info.residual_norm, np.linalg.norm(b - A @ ours), rtol=1e-6)


def test_stops_when_scipy_stops(solve, rng):
    A, b = spd(rng, 60, 100.0), rng.normal(size=60)
    for rtol, atol in ((1e-3, 0.0), (1e-6, 0.0), (0.0, 1e-4), (1e-8, 1e-2)):
        count = []
        scipy.sparse.linalg.cg(A, b, rtol=rtol, atol=atol, maxiter=500, callback=count.append)
        _, info = solve(A, b, rtol=rtol, atol=atol, max_iter=500)
        assert abs(info.iterations - len(count)) <= 1
        assert info.residual_norm <= max(rtol * np.linalg.norm(b), atol)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 4095, 4096, 4097, 300_001])
def test_awkward_sizes(solve, rng, n):
    d, b = rng.uniform(1, 2, n), rng.normal(size=n)
    x, info = solve(lambda p: d * p, b, max_iter=60, rtol=1e-12, damping=0.5)
    assert info.status == "converged"
    np.testing.assert_allclose(x, b / (d + 0.5), rtol=1e-9, atol=1e-9)


def test_backends_agree(rng):
    A, b = spd(rng, 200, 1e3).astype(np.float32), rng.normal(size=200).astype(np.float32)
    runs = [cg.solve(A, b, None, 8, 0.0, 0.0, 0.1, None, load_kernels("conjugate_gradient", name)) for name in BACKENDS]
    for x, info, r in runs[1:]:
        np.testing.assert_allclose(x, runs[0][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(r, runs[0][2], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(info.residual_norm, runs[0][1].residual_norm, rtol=1e-4)


def test_threads_do_not_change_a_bit(rng):
    import fastrl

    if fastrl._backend.CPU_BACKEND != "cpp":
        pytest.skip("only the C++ kernels have threads")
    d, b = rng.uniform(1, 2, 1_000_003).astype(np.float32), rng.normal(size=1_000_003).astype(np.float32)
    before, results = fastrl.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            fastrl.set_num_threads(threads)
            results.append(conjugate_gradient(lambda p: d * p, b, max_iter=5))
    finally:
        fastrl.set_num_threads(before)
    for x, info in results[1:]:
        assert x.tobytes() == results[0][0].tobytes()
        assert tuple(info) == tuple(results[0][1])


def test_damping_is_added(solve, rng):
    A, b = spd(rng, 25, 50.0), rng.normal(size=25)
    x, _ = solve(A, b, damping=0.3, max_iter=50, rtol=1e-12)
    np.testing.assert_allclose(x, np.linalg.solve(A + 0.3 * np.eye(25), b), rtol=1e-9, atol=1e-9)
    y, _ = solve(A + 0.3 * np.eye(25), b, max_iter=50, rtol=1e-12)
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


def test_preconditioner_saves_iterations(solve, rng):
    d = np.geomspace(1, 1e6, 200)
    A = np.diag(d) + 0.1 * spd(rng, 200, 10.0)
    b = rng.normal(size=200)
    _, plain = solve(A, b, max_iter=2000, rtol=1e-8)
    x, scaled = solve(A, b, max_iter=2000, rtol=1e-8, preconditioner=1 / d)
    assert scaled.status == "converged" and scaled.iterations * 5 < plain.iterations
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-5, atol=1e-7)


def test_warm_start_at_the_solution(solve, rng):
    A, b = spd(rng, 20, 10.0), rng.normal(size=20)
    x0 = np.linalg.solve(A, b)
    x, info = solve(A, b, x0=x0)
    assert (info.iterations, info.status) == (0, "converged")
    np.testing.assert_array_equal(x, x0)


def test_operators(rng, torch):
    A, b = spd(rng, 12, 10.0), rng.normal(size=12)
    wanted = np.linalg.solve(A, b)
    operators = (
        A,
        lambda p: A @ p,
        scipy.sparse.linalg.aslinearoperator(A),
        scipy.sparse.csr_matrix(A),
    )
    for operator in operators:
        x, _ = conjugate_gradient(operator, b, max_iter=30, rtol=1e-12)
        assert isinstance(x, np.ndarray)
        np.testing.assert_allclose(x, wanted, rtol=1e-9, atol=1e-9)
    x, _ = conjugate_gradient(torch.from_numpy(A), torch.from_numpy(b), max_iter=30, rtol=1e-12)
    assert isinstance(x, torch.Tensor) and not x.requires_grad
    np.testing.assert_allclose(x.numpy(), wanted, rtol=1e-9, atol=1e-9)


def test_product_may_be_its_argument_or_one_buffer(solve, rng):
    b, buffer = rng.normal(size=33), np.empty(33)
    x, info = solve(lambda p: p, b)  # the identity, by aliasing
    assert info.iterations == 1
    np.testing.assert_allclose(x, b, rtol=1e-12)
    d = rng.uniform(1, 3, 33)
    x, _ = solve(lambda p: np.multiply(d, p, out=buffer), b, max_iter=60, rtol=1e-12)
    np.testing.assert_allclose(x, b / d, rtol=1e-9)


def test_one_product_an_iteration(solve, rng):
    """pfrl takes two: one for the step and one for the residual."""
    A, b, calls = spd(rng, 50, 1e6), rng.normal(size=50), []
    _, info = solve(lambda p: calls.append(1) or A @ p, b, max_iter=10)
    assert info.iterations == len(calls) == 10
    calls.clear()
    solve(lambda p: calls.append(1) or A @ p, b, x0=np.ones(50), max_iter=10)
    assert len(calls) == 11
    calls.clear()
    solve(lambda p: calls.append(1) or A @ p, np.zeros(50))
    assert not calls


def test_arguments_are_not_modified(solve, rng):
    A, b, x0, inverse = spd(rng, 20, 1e3), rng.normal(size=20), rng.normal(size=20), rng.uniform(1, 2, 20)
    copies = [a.copy() for a in (A, b, x0, inverse)]
    for a in (A, b, x0, inverse):
        a.flags.writeable = False
    x, _ = solve(A, b, x0=x0, preconditioner=inverse)
    assert not np.shares_memory(x, x0) and not np.shares_memory(x, b)
    for a, copy in zip((A, b, x0, inverse), copies, strict=True):
        np.testing.assert_array_equal(a, copy)


def test_strided_vectors(solve, rng):
    A, wide = spd(rng, 20, 10.0), rng.normal(size=(20, 3))
    b, x0, inverse = wide[:, 1], rng.normal(size=40)[::-2], rng.uniform(1, 2, 60)[::3]
    out = np.empty((20, 2))

    def product(p):
        out[:, 0] = A @ p
        return out[:, 0]

    x, _ = solve(product, b, x0=x0, preconditioner=inverse, max_iter=60, rtol=1e-12)
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-9, atol=1e-9)


def test_zero_right_hand_side(solve, rng):
    for x0 in (None, rng.normal(size=9), np.full(9, np.nan)):
        x, info = solve(spd(rng, 9, 10.0), np.zeros(9), x0=x0)
        assert tuple(info) == (0, 0.0, "converged")
        np.testing.assert_array_equal(x, np.zeros(9))
    x, info = solve(np.zeros((0, 0)), np.zeros(0))
    assert x.shape == (0,) and info.status == "converged"


def test_negative_curvature_keeps_the_last_good_x(solve):
    """sb3-contrib #38: a negative p.Ap makes the step length's root NaN."""
    A, b = np.diag([1.0, 2.0, -3.0]), np.array([1.0, 1.0, 1e-3])
    x, info = solve(A, b, max_iter=50, rtol=1e-12)
    assert info.status == "negative_curvature"
    assert np.isfinite(x).all()
    y, earlier = solve(A, b, max_iter=info.iterations, rtol=1e-12)
    assert earlier.status == "max_iter"
    np.testing.assert_array_equal(x, y)
    x, info = solve(-np.eye(4), np.ones(4))
    assert (info.iterations, info.status) == (0, "negative_curvature")
    np.testing.assert_array_equal(x, np.zeros(4))
    assert info.residual_norm == 2.0


def test_zero_operator(solve):
    x, info = solve(np.zeros((3, 3)), np.ones(3))
    assert info.status == "negative_curvature"
    np.testing.assert_array_equal(x, np.zeros(3))


def test_singular_but_consistent(solve, rng):
    q = scipy.linalg.qr(rng.normal(size=(30, 30)))[0]
    A = (q * np.r_[np.zeros(10), np.linspace(1, 2, 20)]) @ q.T
    b = A @ rng.normal(size=30)
    x, info = solve(A, b, max_iter=100, rtol=1e-8)
    assert info.status == "converged"
    np.testing.assert_allclose(A @ x, b, atol=1e-6)


def test_singular_and_inconsistent(solve, rng):
    A = np.diag(np.r_[np.zeros(3), np.ones(5)])
    x, info = solve(A, np.ones(8), max_iter=100, rtol=1e-8)
    assert info.status in ("negative_curvature", "breakdown", "max_iter")
    assert np.isfinite(x).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_not_finite(solve, rng, bad, dtype):
    A, b = spd(rng, 6, 10.0).astype(dtype), rng.normal(size=6).astype(dtype)
    poisoned = b.copy()
    poisoned[2] = bad
    x, info = solve(A, poisoned)
    assert info.status == "breakdown"
    np.testing.assert_array_equal(x, np.zeros(6))
    x, info = solve(A, b, x0=poisoned)
    assert info.status == "breakdown" and np.isfinite(x).all()
    x, info = solve(lambda p: np.full_like(p, bad), b)
    assert (info.iterations, info.status) == (0, "breakdown")
    np.testing.assert_array_equal(x, np.zeros(6))
    for preconditioner in (lambda r: r * bad, np.full(6, bad, dtype)):
        x, info = solve(A, b, preconditioner=preconditioner)
        assert info.status == "breakdown" and np.isfinite(x).all()
    calls = []

    def fails_third(p):
        calls.append(1)
        return A @ p if len(calls) < 3 else A @ p * np.asarray(bad, dtype)

    x, info = solve(fails_third, b, rtol=0.0)
    assert (info.iterations, info.status) == (2, "breakdown")
    np.testing.assert_array_equal(x, solve(A, b, max_iter=2, rtol=0.0)[0])


def test_overflowing_x_is_not_returned(solve):
    tiny, large = np.full(2, 1e-38, np.float32), np.full(2, 1e10, np.float32)
    x, info = solve(lambda p: tiny * p, large)
    assert info.status in ("breakdown", "negative_curvature")
    np.testing.assert_array_equal(x, np.zeros(2))


def test_indefinite_preconditioner(solve, rng):
    for preconditioner in (-np.ones(6), lambda r: -r):
        x, info = solve(spd(rng, 6, 10.0), rng.normal(size=6), preconditioner=preconditioner)
        assert info.status == "breakdown" and np.isfinite(x).all()


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(-40, 40), st.sampled_from(["float32", "float64"]))
def test_x_is_finite_whatever_a_is(n, seed, exponent, dtype):
    rng = np.random.default_rng(seed)
    A = (rng.normal(size=(n, n)) * 10.0**exponent).astype(dtype)
    A = A + A.T if seed % 2 else A
    b = (rng.normal(size=n) * 10.0 ** rng.uniform(-30, 30)).astype(dtype)
    with np.errstate(all="ignore"):
        x, info = conjugate_gradient(A, b, max_iter=20)
    assert np.isfinite(x).all()
    assert info.status in cg.STATUS[1:]
    assert 0 <= info.iterations <= 20


def test_no_iterations(solve, rng):
    b = rng.normal(size=5)
    x, info = solve(np.eye(5), b, max_iter=0)
    assert (info.iterations, info.status) == (0, "max_iter")
    np.testing.assert_array_equal(x, np.zeros(5))
    np.testing.assert_allclose(info.residual_norm, np.linalg.norm(b))
