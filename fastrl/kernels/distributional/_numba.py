"""Distributions of returns as loops in Numba; arguments are checked as in the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels._core.call import give
from fastrl.kernels.distributional.reference import load_actor, load_c51, load_projection, load_quantiles

__all__ = ["c51_actor_loss", "c51_loss", "categorical_projection", "quantile_huber_loss"]


@njit(nogil=True, cache=True, error_model="numpy")
def _project(p: Any, r: Any, discount: Any, v_min: Any, v_max: Any, m: Any) -> None:
    """One row; `m` is overwritten."""
    n = len(m)
    step = (v_max - v_min) / (n - 1)
    lost = math.isnan(r) or not math.isfinite(discount)
    m[:] = 0.0
    for k in range(1 if discount == 0 else n):
        mass = 1.0 if discount == 0 else p[k]
        lost = lost or not math.isfinite(mass)
        if lost:
            break
        x = min(max(r + discount * (v_min + step * k) if discount != 0 else r, v_min), v_max)
        place = min((x - v_min) / step, n - 1.0)
        left = min(int(place), n - 2)
        m[left] += mass * (1 - (place - left))
        m[left + 1] += mass * (place - left)
    if lost:
        m[:] = math.nan


@njit(nogil=True, cache=True, error_model="numpy")
def _projections(p: Any, r: Any, discount: Any, v_min: Any, v_max: Any, m: Any) -> None:
    for i in range(len(p)):
        _project(p[i], r[i], discount[i], v_min, v_max, m[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _softmax(x: Any, p: Any) -> Any:
    """p of a row of logits; the largest, and the logarithm of the sum of exponentials of their distances to it."""
    top, total = x[0], 0.0
    for j in range(1, len(x)):
        top = max(top, x[j])
    for j in range(len(x)):
        p[j] = math.exp(x[j] - top)
        total += p[j]
    for j in range(len(x)):
        p[j] /= total
    return top, math.log(total)


@njit(nogil=True, cache=True, error_model="numpy")
def _argmax(values: Any) -> Any:
    """A NaN is the largest."""
    best = 0
    for a in range(1, len(values)):
        if values[a] > values[best] or (math.isnan(values[a]) and not math.isnan(values[best])):
            best = a
    return best


@njit(nogil=True, cache=True, error_model="numpy")
def _c51(
    x: Any, actions: Any, r: Any, discount: Any, after: Any, choose: Any, share: Any, v_min: Any, v_max: Any, d: Any,
    kl: Any,
) -> Any:  # fmt: skip
    rows, n_actions, n = x.shape
    p, m, values, step = np.empty(n), np.empty(n), np.empty(n_actions), (v_max - v_min) / (n - 1)
    loss, mean_q = 0.0, 0.0
    for i in range(rows):
        for a in range(n_actions):
            _softmax(choose[i, a], p)
            values[a] = 0.0
            for j in range(n):
                values[a] += p[j] * (v_min + step * j)
        _softmax(after[i, _argmax(values)], p)
        _project(p, r[i], discount[i], v_min, v_max, m)
        row = x[i, actions[i]]
        top, log_sum = _softmax(row, p)
        cross_entropy, entropy = 0.0, 0.0
        for j in range(n):
            if m[j] != 0:
                cross_entropy -= m[j] * ((row[j] - top) - log_sum)
                entropy -= m[j] * math.log(m[j])
            mean_q += p[j] * (v_min + step * j)
            d[i, actions[i], j] = share[i] * (p[j] - m[j])
        divergence = cross_entropy - entropy
        kl[i] = 0.0 if divergence < 0 else divergence
        loss += share[i] * cross_entropy
    return loss, mean_q / rows


@njit(nogil=True, cache=True, error_model="numpy")
def _actor(x: Any, v_min: Any, v_max: Any, d: Any) -> Any:
    rows, n = x.shape
    step, sum_q = (v_max - v_min) / (n - 1), 0.0
    for i in range(rows):
        _softmax(x[i], d[i])
        q = 0.0
        for j in range(n):
            q += d[i, j] * (v_min + step * j)
        for j in range(n):
            d[i, j] *= (q - (v_min + step * j)) / rows
        sum_q += q
    return -sum_q / rows


@njit(nogil=True, cache=True, error_model="numpy")
def _quantiles(
    x: Any, actions: Any, r: Any, discount: Any, after: Any, choose: Any, share: Any, tau: Any, kappa: Any, d: Any,
    errors: Any,
) -> Any:  # fmt: skip
    rows, _, n = x.shape
    n_next = after.shape[2]
    y, values = np.empty(n_next), np.empty(x.shape[1])
    loss, mean_q = 0.0, 0.0
    for i in range(rows):
        for a in range(len(values)):
            values[a] = choose[i, a].sum()
        best, theta, mean_y, mean_theta = _argmax(values), x[i, actions[i]], 0.0, 0.0
        for j in range(n_next):
            y[j] = r[i] + (discount[i] * after[i, best, j] if discount[i] != 0 else 0.0)
            mean_y += y[j] / n_next
        for k in range(n):
            slopes, row_loss = 0.0, 0.0
            for j in range(n_next):
                u = y[j] - theta[k]
                side = abs(tau[i, k] - (1.0 if u < 0 else 0.0))
                if abs(u) <= kappa:
                    row_loss, slopes = row_loss + side * 0.5 * u * u / kappa, slopes + side * u / kappa
                else:
                    slope = 1.0 if u > 0 else -1.0 if u < 0 else u
                    row_loss, slopes = row_loss + side * (abs(u) - 0.5 * kappa), slopes + side * slope
            loss += share[i] * row_loss / n_next
            d[i, actions[i], k] = -share[i] * slopes / n_next
            mean_theta += theta[k] / n
        errors[i] = mean_theta - mean_y
        mean_q += mean_theta / rows
    return loss, mean_q


def categorical_projection(probs: Any, rewards: Any, discounts: Any, v_min: float, v_max: float) -> Any:
    p, r, discount = load_projection(probs, rewards, discounts)
    m = np.empty_like(p)
    _projections(p, r, discount, v_min, v_max, m)
    return give(m, probs)


def _shares(w: Any, rows: int) -> Any:
    return (np.ones(rows) if w is None else w) / rows


def c51_loss(logits: Any, *arguments: Any) -> tuple[float, Any, Any, float]:
    v_min, v_max = arguments[-2:]
    x, a, r, discount, after, online, w = load_c51(logits, *arguments[:-2])
    d, kl = np.zeros_like(x), np.empty(len(x))
    chooser = after if online is None else online
    loss, mean_q = _c51(x, a, r, discount, after, chooser, _shares(w, len(x)), v_min, v_max, d, kl)
    return loss, give(d, logits), give(kl, arguments[1]), mean_q


def c51_actor_loss(logits: Any, v_min: float, v_max: float) -> tuple[float, Any]:
    x = load_actor(logits)
    d = np.empty_like(x)
    return _actor(x, v_min, v_max, d), give(d, logits)


def quantile_huber_loss(quantiles: Any, *arguments: Any) -> tuple[float, Any, Any, float]:
    x, a, r, discount, after, online, w, tau = load_quantiles(quantiles, *arguments[:-1])
    d, errors = np.zeros_like(x), np.empty(len(x))
    chooser = after if online is None else online
    loss, mean_q = _quantiles(
        x, a, r, discount, after, chooser, _shares(w, len(x)), tau, arguments[-1], d, errors
    )  # fmt: skip
    return loss, give(d, quantiles), give(errors, arguments[1]), mean_q
