"""The tanh-Gaussian head's loops in Numba, in float64; arguments are checked as in the reference."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.normal._numba import sum_to
from fastrl.kernels.random._numba import draw
from fastrl.kernels.tanh_normal.reference import (
    MIN_LOG_STD,
    TINY,
    Bounds,
    largest_kept,
    largest_of,
    load_log_std,
    load_matrix,
    load_mean,
    load_row_grad,
    load_saved,
    rounded,
)

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_LOG_2 = math.log(2.0)
_LARGEST = sys.float_info.max


@njit(nogil=True, cache=True, error_model="numpy")
def _clamp(x: Any, low: Any, high: Any) -> Any:
    """NaN stays."""
    return low if x < low else high if x > high else x


@njit(nogil=True, cache=True, error_model="numpy")
def _slope(u: Any) -> Any:
    """1 - tanh^2 u."""
    w = math.exp(-2.0 * abs(u))
    return 4.0 * w / (1.0 + w) ** 2


@njit(nogil=True, cache=True, error_model="numpy")
def _bounded(grad: Any, derivative: Any, largest: Any) -> Any:
    """The upstream gradient times a derivative, as a finite number; NaN stays NaN."""
    return _clamp(grad * _clamp(derivative, -_LARGEST, _LARGEST), -largest, largest)


@njit(nogil=True, cache=True, error_model="numpy")
def _sample(
    mean: Any, log_std: Any, noise: Any, low: Any, high: Any, s_min: Any, s_max: Any, epsilon: Any, largest: Any,
    action: Any, log_prob: Any, saved: Any,
) -> None:  # fmt: skip
    for b in range(mean.shape[0]):
        log_prob[b] = 0.0
        for j in range(mean.shape[1]):
            m, s, eps = mean[b, j], _clamp(log_std[b, j], s_min, s_max), noise[b, j]
            scale, bias = 0.5 * high[j] - 0.5 * low[j], 0.5 * high[j] + 0.5 * low[j]
            d = min(math.exp(s), _LARGEST) * eps
            u = _clamp(m + d, -_LARGEST, _LARGEST) + (0.0 * m + 0.0 * s + 0.0 * eps)
            action[b, j] = _clamp(bias + scale * math.tanh(u), low[j], high[j])
            if epsilon == 0.0:
                log_width = math.log(scale) + 2.0 * (_LOG_2 - abs(u) - math.log1p(math.exp(-2.0 * abs(u))))
            else:
                log_width = math.log(scale * _slope(u) + epsilon)
            log_prob[b] += -0.5 * eps * eps - s - _HALF_LOG_2PI - log_width
            saved[0, b, j], saved[1, b, j] = _clamp(u, -largest, largest), _clamp(d, -largest, largest)


@njit(nogil=True, cache=True, error_model="numpy")
def _sample_backward(
    saved: Any, log_std: Any, ga: Any, gl: Any, low: Any, high: Any, s_min: Any, s_max: Any, epsilon: Any,
    g_mean: Any, g_log_std: Any,
) -> None:  # fmt: skip
    for b in range(g_mean.shape[0]):
        for j in range(g_mean.shape[1]):
            u, s = saved[0, b, j], log_std[b, j]
            width = (0.5 * high[j] - 0.5 * low[j]) * _slope(u)
            share = width / (width + epsilon) if epsilon > 0.0 else 1.0
            g = ga[b, j] * width + gl[b] * (2.0 * math.tanh(u)) * share
            g_mean[b, j] = g
            if not (s < s_min or s > s_max):
                g_log_std[b, j] += g * saved[1, b, j] - gl[b]


@njit(nogil=True, cache=True, error_model="numpy")
def _unsquash(m: Any, s: Any, action: Any, low: Any, high: Any, first_in: Any, last_in: Any) -> Any:
    """z, 1 / sigma, x = tanh u, scale (1 - x^2) and its logarithm."""
    poison = 0.0 * m + 0.0 * s + 0.0 * action
    scale, bias = 0.5 * high - 0.5 * low, 0.5 * high + 0.5 * low
    a = _clamp(action, first_in, last_in)
    x = (a - bias) / scale
    distance = min(a - low, high - a)  # to the nearer bound; 1 - |x| = distance / scale
    if distance / scale > TINY:
        two_u = math.log1p(2.0 * abs(x) / (distance / scale))
    else:
        two_u = _LOG_2 + math.log(scale) - math.log(distance)
    inverse = math.exp(-MIN_LOG_STD if s < MIN_LOG_STD else -s)
    z = (math.copysign(0.5 * two_u, x) - m) * inverse + poison
    return z, inverse, x, distance * (1.0 + abs(x)), math.log(scale) + 2.0 * math.log1p(abs(x)) - two_u


@njit(nogil=True, cache=True, error_model="numpy")
def _log_prob(
    mean: Any, log_std: Any, action: Any, low: Any, high: Any, first_in: Any, last_in: Any,
    s_min: Any, s_max: Any, epsilon: Any, log_prob: Any,
) -> None:  # fmt: skip
    for b in range(mean.shape[0]):
        log_prob[b] = 0.0
        for j in range(mean.shape[1]):
            s = _clamp(log_std[b, j], s_min, s_max)
            z, _, _, width, log_width = _unsquash(mean[b, j], s, action[b, j], low[j], high[j], first_in[j], last_in[j])
            if epsilon > 0.0:
                log_width = math.log(width + epsilon)
            log_prob[b] += -0.5 * z * z - s - _HALF_LOG_2PI - log_width


@njit(nogil=True, cache=True, error_model="numpy")
def _log_prob_backward(
    mean: Any, log_std: Any, action: Any, gl: Any, low: Any, high: Any, first_in: Any, last_in: Any,
    s_min: Any, s_max: Any, epsilon: Any, largest: Any, g_mean: Any, g_log_std: Any, g_action: Any,
) -> None:  # fmt: skip
    for b in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            given = log_std[b, j]
            z, inverse, x, width, _ = _unsquash(
                mean[b, j], _clamp(given, s_min, s_max), action[b, j], low[j], high[j], first_in[j], last_in[j]
            )
            g_mean[b, j] = _bounded(gl[b], z * inverse, largest)
            if not (given < s_min or given > s_max):
                g_log_std[b, j] += _bounded(gl[b], z * z - 1.0, largest)
            share = width / (width + epsilon) if epsilon > 0.0 else 1.0
            g_action[b, j] = _bounded(gl[b], (2.0 * x * share - z * inverse) / width, largest)


@njit(nogil=True, cache=True, error_model="numpy")
def _mode(mean: Any, ga: Any, low: Any, high: Any, action: Any, grad: Any) -> None:
    for b in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            u = mean[b, j] + 0.0 * mean[b, j]
            scale, bias = 0.5 * high[j] - 0.5 * low[j], 0.5 * high[j] + 0.5 * low[j]
            action[b, j] = _clamp(bias + scale * math.tanh(u), low[j], high[j])
            grad[b, j] = ga[b, j] * scale * _slope(u)


def _rows(grad: Any, where: str, first: Any, name: str, rows: int) -> Any:
    g = load_row_grad(grad, where, first, name, rows)
    return np.zeros(rows) if grad is None else g[:, 0]


def tanh_normal_sample(
    mean: Any, log_std: Any, noise: Any, state: Any, low: Any, high: Any,
    log_std_min: float, log_std_max: float, epsilon: float, with_saved: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    op = "tanh_normal_sample"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, m.shape, "mean")
    given = None if noise is None else load_matrix(noise, f"{op}: noise", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    if given is None:
        given = draw(state, m.size, True).reshape(m.shape)
    action, log_prob, saved = np.empty(m.shape), np.empty(len(m)), np.empty((2, *m.shape))
    limits = rounded(log_std_min, mean), rounded(log_std_max, mean), epsilon, largest_kept(mean)
    _sample(m, np.broadcast_to(s, m.shape), given, bounds.low, bounds.high, *limits, action, log_prob, saved)
    kept = _arrays.hand_back(saved, mean) if with_saved else None
    return _arrays.hand_back(action, mean), _arrays.hand_back(log_prob, mean), kept


def tanh_normal_sample_backward(
    saved: Any, log_std: Any, grad_action: Any, grad_log_prob: Any, low: Any, high: Any,
    log_std_min: float, log_std_max: float, epsilon: float, want_mean: bool, want_log_std: bool,
) -> tuple[Any, Any]:  # fmt: skip
    op = "tanh_normal_sample_backward"
    kept, s, ga = load_saved(op, saved, log_std, grad_action)
    shape = kept.shape[1:]
    gl = _rows(grad_log_prob, f"{op}: grad_log_prob", log_std, "log_std", shape[0])
    bounds = Bounds(op, low, high, log_std, shape[1])
    g_mean = np.empty(shape)
    g_log_std, rows = sum_to(s, shape)
    limits = rounded(log_std_min, log_std), rounded(log_std_max, log_std), epsilon
    ga = np.broadcast_to(ga, shape)
    _sample_backward(kept, np.broadcast_to(s, shape), ga, gl, bounds.low, bounds.high, *limits, g_mean, rows)
    return (
        _arrays.hand_back(g_mean, log_std) if want_mean else None,
        _arrays.hand_back(g_log_std, log_std) if want_log_std else None,
    )


def tanh_normal_log_prob(
    mean: Any, log_std: Any, action: Any, low: Any, high: Any, log_std_min: float, log_std_max: float, epsilon: float
) -> Any:
    op = "tanh_normal_log_prob"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, m.shape, "mean")
    a = load_matrix(action, f"{op}: action", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    log_prob = np.empty(len(m))
    limits = rounded(log_std_min, mean), rounded(log_std_max, mean), epsilon
    _log_prob(m, np.broadcast_to(s, m.shape), a, bounds.low, bounds.high, *bounds.inside(mean), *limits, log_prob)
    return _arrays.hand_back(log_prob, mean)


def tanh_normal_log_prob_backward(
    mean: Any, log_std: Any, action: Any, grad_log_prob: Any, low: Any, high: Any,
    log_std_min: float, log_std_max: float, epsilon: float, want_mean: bool, want_log_std: bool, want_action: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    op = "tanh_normal_log_prob_backward"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, m.shape, "mean")
    a = load_matrix(action, f"{op}: action", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    gl = _rows(grad_log_prob, f"{op}: grad_log_prob", mean, "mean", len(m))
    g_mean, g_action = np.empty(m.shape), np.empty(m.shape)
    g_log_std, rows = sum_to(s, m.shape)
    limits = rounded(log_std_min, mean), rounded(log_std_max, mean), epsilon
    _log_prob_backward(
        m, np.broadcast_to(s, m.shape), a, gl, bounds.low, bounds.high, *bounds.inside(mean), *limits,
        largest_of(mean, np), g_mean, rows, g_action,
    )  # fmt: skip
    return (
        _arrays.hand_back(g_mean, mean) if want_mean else None,
        _arrays.hand_back(g_log_std, log_std) if want_log_std else None,
        _arrays.hand_back(g_action, mean) if want_action else None,
    )


def tanh_normal_mode(mean: Any, low: Any, high: Any) -> Any:
    m = load_mean(mean, "tanh_normal_mode: mean")
    bounds = Bounds("tanh_normal_mode", low, high, mean, m.shape[1])
    action = np.empty(m.shape)
    _mode(m, m, bounds.low, bounds.high, action, np.empty(m.shape))
    return _arrays.hand_back(action, mean)


def tanh_normal_mode_backward(mean: Any, grad_action: Any, low: Any, high: Any) -> Any:
    op = "tanh_normal_mode_backward"
    m = load_mean(mean, f"{op}: mean")
    ga = load_matrix(grad_action, f"{op}: grad_action", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    grad = np.empty(m.shape)
    _mode(m, ga, bounds.low, bounds.high, np.empty(m.shape), grad)
    return _arrays.hand_back(grad, mean)
