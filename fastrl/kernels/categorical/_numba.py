"""The categorical head's loops in Numba; arguments are checked as in the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.categorical.reference import invalid_row, load_action, load_logits
from fastrl.kernels.random._numba import draw


@njit(nogil=True, cache=True, error_model="numpy")
def _base(z: Any) -> Any:
    """What a row of logits is measured from: their largest, or 0 where all are masked."""
    largest = -math.inf
    for k in range(len(z)):
        largest = max(largest, np.float64(z[k]))
    return 0.0 if largest == -math.inf else largest


@njit(nogil=True, cache=True, error_model="numpy")
def _exp(d: Any) -> Any:
    return 0.0 if d < -708.0 else math.exp(d)


@njit(nogil=True, cache=True, error_model="numpy")
def _totals(z: Any, base: Any) -> Any:
    """(sum e^d, sum e^d d), d = z - base; NaN for a row without a distribution."""
    total, total_ed = 0.0, 0.0
    for k in range(len(z)):
        d = np.float64(z[k]) - base
        e = _exp(d)
        total += e
        if e != 0.0:
            total_ed += e * d
    if not 0.0 < total < math.inf:
        return math.nan, math.nan
    return total, total_ed


@njit(nogil=True, cache=True, error_model="numpy")
def _first_invalid(z: Any) -> Any:
    for b in range(len(z)):
        if math.isnan(_totals(z[b], _base(z[b]))[0]):
            return b
    return -1


@njit(nogil=True, cache=True, error_model="numpy")
def _draw(z: Any, u: Any, action: Any, log_prob: Any) -> None:
    prefix = np.empty(z.shape[1])
    for b in range(len(z)):
        base, total = _base(z[b]), 0.0
        for k in range(z.shape[1]):
            total += _exp(np.float64(z[b, k]) - base)
            prefix[k] = total
        target, k = u[b] * total, 0
        while prefix[k] <= target and prefix[k] < total:
            k += 1
        action[b] = k
        log_prob[b] = (np.float64(z[b, k]) - base) - math.log(total)


@njit(nogil=True, cache=True, error_model="numpy")
def _log_prob_entropy(z: Any, action: Any, log_prob: Any, entropy: Any) -> None:
    for b in range(len(z)):
        base = _base(z[b])
        total, total_ed = _totals(z[b], base)
        log_total = math.log(total)
        log_prob[b] = (np.float64(z[b, action[b]]) - base) - log_total
        entropy[b] = log_total - total_ed / total


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(z: Any, action: Any, gl: Any, gh: Any, grad: Any) -> None:
    for b in range(len(z)):
        base = _base(z[b])
        total, total_ed = _totals(z[b], base)
        log_total = math.log(total)
        entropy = log_total - total_ed / total
        for k in range(z.shape[1]):
            d = np.float64(z[b, k]) - base
            p = _exp(d) / total
            g = -gl[b] * p
            if p != 0.0:
                g -= gh[b] * (p * (d - log_total + entropy))
            grad[b, k] = g + gl[b] if k == action[b] else g


def _rows(grad: Any, where: str, logits: Any) -> Any:
    g = _arrays.load_row_grad(grad, where, logits, "logits")
    return np.zeros(logits.shape[0]) if grad is None else g[:, 0]


def categorical_sample(logits: Any, state: Any, uniform: Any) -> tuple[Any, Any]:
    z = load_logits(logits, "categorical_sample")
    bad = _first_invalid(z)
    if bad >= 0:
        raise invalid_row(bad)
    if uniform is None:
        u = draw(state, len(z), False)
    else:
        u = _arrays.load_on_device(uniform, "categorical_sample: uniform")
    action, log_prob = np.empty(len(z), np.int64), np.empty(len(z))
    _draw(z, u, action, log_prob)
    return _arrays.hand_back(action, logits, "int64"), _arrays.hand_back(log_prob, logits)


def categorical_log_prob_entropy(logits: Any, action: Any) -> tuple[Any, Any]:
    z = load_logits(logits, "categorical_log_prob_entropy")
    a = load_action(action, "categorical_log_prob_entropy", logits)
    log_prob, entropy = np.empty(len(z)), np.empty(len(z))
    _log_prob_entropy(z, a, log_prob, entropy)
    return _arrays.hand_back(log_prob, logits), _arrays.hand_back(entropy, logits)


def categorical_log_prob_entropy_backward(logits: Any, action: Any, grad_log_prob: Any, grad_entropy: Any) -> Any:
    op = "categorical_log_prob_entropy_backward"
    z = load_logits(logits, op)
    a = load_action(action, op, logits)
    gl = _rows(grad_log_prob, f"{op}: grad_log_prob", logits)
    gh = _rows(grad_entropy, f"{op}: grad_entropy", logits)
    grad = np.empty(z.shape)
    _backward(z, a, gl, gh, grad)
    return _arrays.hand_back(grad, logits)
