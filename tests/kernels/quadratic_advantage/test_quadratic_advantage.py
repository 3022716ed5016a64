"""The quadratic advantage on every backend: an oracle by matrices, gradients by torch, bad input."""

import numpy as np
import pytest

import fastrl
from fastrl.kernels import (
    quadratic_advantage,
    quadratic_advantage_pullback,
    quadratic_advantage_reference,
)
from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose

SIZES = [(0, 1), (1, 1), (128, 1), (5, 2), (63, 3), (64, 6), (989, 7), (3, 40)]


def inputs(rng, rows, a, dtype=np.float32):
    mean, action = (rng.normal(size=(rows, a)).astype(dtype) for _ in range(2))
    return mean, rng.normal(size=(rows, a * (a + 1) // 2)).astype(dtype), action


def oracle(mean, cholesky, action):
    a = mean.shape[1]
    found = np.zeros(len(mean))
    for b in range(len(mean)):
        factor = np.zeros((a, a))
        factor[np.tril_indices(a)] = cholesky[b]
        factor[np.diag_indices(a)] = np.exp(np.diag(factor))
        d = action[b].astype(np.float64) - mean[b]
        found[b] = -0.5 * d @ factor @ factor.T @ d
    return found


def by_torch(torch, mean, cholesky, action):
    a = mean.shape[1]
    row, column = np.tril_indices(a)
    factor = torch.zeros(len(mean), a, a, dtype=mean.dtype)
    factor[:, row, column] = torch.where(torch.from_numpy(row == column), cholesky.exp(), cholesky)
    return -0.5 * ((factor.transpose(1, 2) @ (action - mean)[:, :, None]) ** 2).sum((1, 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(backend, rng, tolerance, size, dtype):
    arrays = inputs(rng, *size, dtype)
    found, wanted = quadratic_advantage(*arrays), oracle(*arrays)
    assert found.dtype == dtype and found.shape == size[:1]
    np.testing.assert_allclose(found, wanted, **tolerance(found.dtype))
    np.testing.assert_allclose(quadratic_advantage_reference(*arrays), wanted, **tolerance(found.dtype))
    pulled, _ = quadratic_advantage_pullback(*arrays)
    np.testing.assert_array_equal(pulled, found)


def test_strides(backend, rng):
    mean, cholesky, action = inputs(rng, 33, 3)
    out = np.concatenate((action, mean, cholesky, action), 1)  # as a network gives them
    np.testing.assert_array_equal(
        quadratic_advantage(out[:, 3:6], out[:, 6:12], out[:, 12:]), quadratic_advantage(mean, cholesky, action)
    )
    stepped = [np.repeat(x[::-1], 2, 1)[::-1, ::2] for x in (mean, cholesky, action)]
    unaligned = np.zeros(action.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(action.shape)
    unaligned[...] = action
    for args in (stepped, (mean, cholesky, unaligned)):
        np.testing.assert_array_equal(quadratic_advantage(*args), quadratic_advantage(mean, cholesky, action))
        grad = np.repeat(rng.normal(size=33).astype(np.float32), 2)[::2]
        ours = quadratic_advantage_pullback(*args)[1](grad)
        for x, y in zip(ours, quadratic_advantage_pullback(mean, cholesky, action)[1](grad.copy()), strict=True):
            np.testing.assert_array_equal(x, y)


def test_extremes(backend):
    """Beyond the dtype it is -inf, at the mean 0, and NaN where an argument is: never an error."""
    x = np.array([[1.0, 2.0]], np.float32)
    zero = np.zeros_like(x)
    assert quadratic_advantage(zero, np.array([[200.0, 0.0, 0.0]], np.float32), x)[0] == -np.inf
    assert quadratic_advantage(x, np.array([[200.0, 0.0, 0.0]], np.float32), x)[0] == 0
    assert np.isnan(quadratic_advantage(zero, np.array([[np.nan, 0.0, 0.0]], np.float32), x)[0])
    assert quadratic_advantage(zero, np.array([[-1e4, 0, -1e4]], np.float32), x)[0] == 0


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_against_torch(backend, torch, rng, tolerance, size):
    arrays = [torch.from_numpy(x).requires_grad_() for x in inputs(rng, *size, np.float64)]
    weights = torch.from_numpy(rng.normal(size=size[0]))
    theirs = torch.autograd.grad((by_torch(torch, *arrays) * weights).sum(), arrays)
    ours = torch.autograd.grad((quadratic_advantage(*arrays) * weights).sum(), arrays)
    _, pullback = quadratic_advantage_pullback(*(x.detach().numpy() for x in arrays))
    for found, pulled, wanted in zip(ours, pullback(weights.numpy()), theirs, strict=True):
        scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        np.testing.assert_allclose(found / scale, wanted / scale, **tolerance(found.dtype))
        np.testing.assert_array_equal(pulled, found)


def test_gradcheck_half_compile_and_second_derivatives(backend, torch, rng):
    arrays = [torch.from_numpy(x).requires_grad_() for x in inputs(rng, 4, 3, np.float64)]
    assert torch.autograd.gradcheck(quadratic_advantage, arrays)
    only = [arrays[0].detach(), arrays[1], arrays[2].detach()]
    assert torch.autograd.gradcheck(lambda c: quadratic_advantage(only[0], c, only[2]), only[1:2])
    (gradient,) = torch.autograd.grad(quadratic_advantage(*arrays).sum(), arrays[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(gradient.sum(), arrays[0])
    half = quadratic_advantage(*(x.detach().bfloat16() for x in arrays))
    assert half.dtype == torch.bfloat16
    compiled = torch.compile(lambda *a: quadratic_advantage(*a).sum(), backend="aot_eager", fullgraph=True)
    for found, wanted in zip(
        torch.autograd.grad(compiled(*arrays), arrays),
        torch.autograd.grad(quadratic_advantage(*arrays).sum(), arrays),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_reference_on_torch_operations(torch, rng, tolerance, monkeypatch):
    """What serves a GPU, here on the CPU."""
    reference = choose("fastrl.kernels.quadratic_advantage").named("reference")
    arrays = inputs(rng, 9, 3, np.float64)
    grad = rng.normal(size=9)
    wanted = reference.quadratic_advantage(*arrays), *reference.quadratic_advantage_backward(*arrays, grad)
    monkeypatch.setattr(_arrays, "load_on_device", lambda obj, *_, **__: obj.detach())
    tensors = [torch.from_numpy(x) for x in arrays]
    found = (
        reference.quadratic_advantage(*tensors),
        *reference.quadratic_advantage_backward(*tensors, torch.from_numpy(grad)),
    )
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, **tolerance(x.dtype))


def test_thread_count_changes_no_bit(backend, rng):
    arrays, grad = inputs(rng, 20_011, 3), rng.normal(size=20_011).astype(np.float32)
    before, results = fastrl.get_num_threads(), []
    try:
        for threads in (1, 3):
            fastrl.set_num_threads(threads)
            value, pullback = quadratic_advantage_pullback(*arrays)
            results.append((value, *pullback(grad)))
    finally:
        fastrl.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


X, L = np.zeros((5, 2), np.float32), np.zeros((5, 3), np.float32)
BAD = {
    "list": (([[0.0]], L, X), TypeError, "mean must be an array, got list"),
    "int": ((X.astype(int), L, X), ValueError, "mean must have dtype float32 or float64, got int64"),
    "vector": ((X[0], L, X), ValueError, "mean must have shape [B, A]"),
    "no actions": ((X[:, :0], L, X), ValueError, "mean must have shape [B, A] with A >= 1, got (5, 0)"),
    "cholesky dtype": ((X, L.astype(np.float64), X), ValueError, "cholesky must have dtype float32 like mean"),
    "cholesky full": (
        (X, np.zeros((5, 4), np.float32), X),
        ValueError,
        "cholesky must have shape (5, 3), [B, A (A + 1) / 2], got (5, 4)",
    ),
    "cholesky rows": ((X, L[1:], X), ValueError, "cholesky must have shape (5, 3), [B, A (A + 1) / 2], got (4, 3)"),
    "cholesky None": ((X, None, X), TypeError, "cholesky must be an array, got NoneType"),
    "action shape": ((X, L, L), ValueError, "action must have shape (5, 2) like mean, got (5, 3)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_errors(backend, name):
    args, error, text = BAD[name]
    with pytest.raises(error) as raised:
        quadratic_advantage(*args)
    assert f"quadratic_advantage: {text}" in str(raised.value)
    reference = choose("fastrl.kernels.quadratic_advantage").named("reference")
    with pytest.raises(error) as wanted:
        reference.quadratic_advantage(*args)
    assert str(wanted.value) == str(raised.value)


def test_errors_of_the_gradient(backend):
    _, pullback = quadratic_advantage_pullback(X, L, X)
    with pytest.raises(ValueError, match=r"^quadratic_advantage_backward: grad must have shape \(5,\), got \(5, 1\)$"):
        pullback(np.zeros((5, 1), np.float32))
    with pytest.raises(ValueError, match="quadratic_advantage_backward: grad must have dtype float32 like mean"):
        pullback(np.zeros(5))
