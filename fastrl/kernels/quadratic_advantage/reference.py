"""The quadratic advantage in NumPy, float64 inside; the same lines run on torch tensors for what is on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays


def load_arguments(op: str, mean: Any, cholesky: Any, action: Any) -> tuple[Any, Any, Any]:
    """The three in float64."""
    m = _arrays.load_on_device(mean, f"{op}: mean")
    if m.ndim != 2 or m.shape[1] < 1:
        raise ValueError(f"{op}: mean must have shape [B, A] with A >= 1, got {tuple(m.shape)}")
    entries = _arrays.load_on_device(cholesky, f"{op}: cholesky", first=mean, name="mean", same_dtype=True)
    rows, a = m.shape
    wanted = (rows, a * (a + 1) // 2)
    if tuple(entries.shape) != wanted:
        raise ValueError(f"{op}: cholesky must have shape {wanted}, [B, A (A + 1) / 2], got {tuple(entries.shape)}")
    x = _arrays.load_matrix(action, f"{op}: action", mean, "mean")
    return _arrays.to_float64(m), _arrays.to_float64(entries), x


def load_grad(grad: Any, where: str, mean: Any) -> Any:
    g = _arrays.load_on_device(grad, where, first=mean, name="mean", same_dtype=True)
    if tuple(g.shape) != (mean.shape[0],):
        raise ValueError(f"{where} must have shape ({mean.shape[0]},), got {tuple(g.shape)}")
    return _arrays.to_float64(g)


def _factor(entries: Any, a: int) -> dict[tuple[int, int], Any]:
    """(i, j) -> L_ij [B], j <= i."""
    exp = _arrays.module_of(entries).exp
    packed = [(i, j) for i in range(a) for j in range(i + 1)]
    return {(i, j): exp(entries[:, k]) if i == j else entries[:, k] for k, (i, j) in enumerate(packed)}


def quadratic_advantage(mean: Any, cholesky: Any, action: Any) -> Any:
    m, entries, x = load_arguments("quadratic_advantage", mean, cholesky, action)
    a = m.shape[1]
    with np.errstate(all="ignore"):
        factor, d = _factor(entries, a), x - m
        u = [sum(factor[i, j] * d[:, i] for i in range(j, a)) for j in range(a)]
        return _arrays.hand_back(-0.5 * sum(v * v for v in u), mean)


def quadratic_advantage_backward(mean: Any, cholesky: Any, action: Any, grad: Any) -> tuple[Any, Any]:
    """The gradients of mean and cholesky; that of action is minus that of mean."""
    op = "quadratic_advantage_backward"
    m, entries, x = load_arguments(op, mean, cholesky, action)
    g, a, stack = load_grad(grad, f"{op}: grad", mean), m.shape[1], _arrays.module_of(m).stack
    with np.errstate(all="ignore"):
        factor, d = _factor(entries, a), x - m
        u = [sum(factor[i, j] * d[:, i] for i in range(j, a)) for j in range(a)]
        g_mean = [g * sum(factor[i, j] * u[j] for j in range(i + 1)) for i in range(a)]
        g_entries = [-g * u[j] * d[:, i] * (f if i == j else 1.0) for (i, j), f in factor.items()]
        return _arrays.hand_back(stack(g_mean, 1), mean), _arrays.hand_back(stack(g_entries, 1), mean)


__all__ = ["quadratic_advantage", "quadratic_advantage_backward"]
