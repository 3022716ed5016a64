"""The loops of the quadratic advantage in Numba; arguments are checked as in the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.quadratic_advantage.reference import load_arguments, load_grad


@njit(nogil=True, cache=True, error_model="numpy")
def _transposed_product(entries: Any, mean: Any, action: Any, d: Any, u: Any) -> None:
    k = 0
    for i in range(len(mean)):
        d[i] = action[i] - mean[i]
        u[i] = 0.0
        for j in range(i):
            u[j] += entries[k] * d[i]
            k += 1
        u[i] += math.exp(entries[k]) * d[i]
        k += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(mean: Any, entries: Any, action: Any, out: Any) -> None:
    d, u = np.empty(mean.shape[1]), np.empty(mean.shape[1])
    for b in range(mean.shape[0]):
        _transposed_product(entries[b], mean[b], action[b], d, u)
        total = 0.0
        for j in range(mean.shape[1]):
            total += u[j] * u[j]
        out[b] = -0.5 * total


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(mean: Any, entries: Any, action: Any, grad: Any, g_mean: Any, g_entries: Any) -> None:
    d, u = np.empty(mean.shape[1]), np.empty(mean.shape[1])
    for b in range(mean.shape[0]):
        _transposed_product(entries[b], mean[b], action[b], d, u)
        k = 0
        for i in range(mean.shape[1]):
            total = 0.0
            for j in range(i + 1):
                factor = math.exp(entries[b, k]) if i == j else entries[b, k]
                total += factor * u[j]
                g_entries[b, k] = -grad[b] * u[j] * d[i] * (factor if i == j else 1.0)
                k += 1
            g_mean[b, i] = grad[b] * total


def quadratic_advantage(mean: Any, cholesky: Any, action: Any) -> Any:
    m, entries, x = load_arguments("quadratic_advantage", mean, cholesky, action)
    out = np.empty(len(m))
    _forward(m, entries, x, out)
    return _arrays.hand_back(out, mean)


def quadratic_advantage_backward(mean: Any, cholesky: Any, action: Any, grad: Any) -> tuple[Any, Any]:
    op = "quadratic_advantage_backward"
    m, entries, x = load_arguments(op, mean, cholesky, action)
    g = load_grad(grad, f"{op}: grad", mean)
    g_mean, g_entries = np.empty(m.shape), np.empty(entries.shape)
    _backward(m, entries, x, g, g_mean, g_entries)
    return _arrays.hand_back(g_mean, mean), _arrays.hand_back(g_entries, mean)
