"""The normal head's loops in Numba; arguments are checked as in the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.normal.reference import load_log_std, load_mean
from fastrl.kernels.random._numba import draw

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@njit(nogil=True, cache=True, error_model="numpy")
def _sample(mean: Any, log_std: Any, noise: Any, action: Any, log_prob: Any) -> None:
    for b in range(mean.shape[0]):
        log_prob[b] = 0.0
        for j in range(mean.shape[1]):
            eps, s = noise[b, j], log_std[b, j]
            action[b, j] = mean[b, j] + math.exp(s) * eps
            log_prob[b] += -0.5 * eps * eps - (s + _HALF_LOG_2PI)


@njit(nogil=True, cache=True, error_model="numpy")
def _sample_backward(log_std: Any, noise: Any, ga: Any, gl: Any, grad: Any) -> None:
    for b in range(noise.shape[0]):
        for j in range(noise.shape[1]):
            grad[b, j] += ga[b, j] * math.exp(log_std[b, j]) * noise[b, j] - gl[b]


@njit(nogil=True, cache=True, error_model="numpy")
def _log_prob_entropy(mean: Any, log_std: Any, action: Any, log_prob: Any, entropy: Any) -> None:
    for b in range(mean.shape[0]):
        log_prob[b] = entropy[b] = 0.0
        for j in range(mean.shape[1]):
            s = log_std[b, j]
            z = (action[b, j] - mean[b, j]) * math.exp(-s)
            log_prob[b] += -0.5 * z * z - (s + _HALF_LOG_2PI)
            entropy[b] += s + (0.5 + _HALF_LOG_2PI)


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(mean: Any, log_std: Any, action: Any, gl: Any, gh: Any, g_mean: Any, g_log_std: Any) -> None:
    for b in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            inverse = math.exp(-log_std[b, j])
            z = (action[b, j] - mean[b, j]) * inverse
            g_mean[b, j] = gl[b] * (z * inverse)
            g_log_std[b, j] += gl[b] * (z * z - 1.0) + gh[b]


def sum_to(log_std: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Zeros like log_std, and their [B, A] view whose rows are one where log_std is [A]."""
    zeros = np.zeros(log_std.shape)
    return zeros, np.lib.stride_tricks.as_strided(zeros, shape, (0, *zeros.strides)) if zeros.ndim == 1 else zeros


def _rows(grad: Any, where: str, first: Any, name: str) -> Any:
    g = _arrays.load_row_grad(grad, where, first, name)
    return np.zeros(first.shape[0]) if grad is None else g[:, 0]


def normal_sample(mean: Any, log_std: Any, noise: Any, state: Any, with_noise: bool) -> tuple[Any, Any, Any]:
    m = load_mean(mean, "normal_sample: mean")
    s = load_log_std(log_std, "normal_sample: log_std", mean, "mean")
    if noise is None:
        eps = draw(state, m.size, True).reshape(m.shape)
    else:
        eps = _arrays.load_matrix(noise, "normal_sample: noise", mean, "mean")
    action, log_prob = np.empty(m.shape), np.empty(len(m))
    _sample(m, np.broadcast_to(s, m.shape), eps, action, log_prob)
    drawn = _arrays.hand_back(eps, mean) if with_noise else None
    return _arrays.hand_back(action, mean), _arrays.hand_back(log_prob, mean), drawn


def normal_sample_backward(log_std: Any, noise: Any, grad_action: Any, grad_log_prob: Any) -> Any:
    op = "normal_sample_backward"
    eps = load_mean(noise, f"{op}: noise")
    s = load_log_std(log_std, f"{op}: log_std", noise, "noise")
    if grad_action is None:
        ga = np.zeros(eps.shape)
    else:
        ga = _arrays.load_matrix(grad_action, f"{op}: grad_action", noise, "noise")
    gl = _rows(grad_log_prob, f"{op}: grad_log_prob", noise, "noise")
    grad, rows = sum_to(s, eps.shape)
    _sample_backward(np.broadcast_to(s, eps.shape), eps, ga, gl, rows)
    return _arrays.hand_back(grad, log_std)


def normal_log_prob_entropy(mean: Any, log_std: Any, action: Any) -> tuple[Any, Any]:
    op = "normal_log_prob_entropy"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, "mean")
    x = _arrays.load_matrix(action, f"{op}: action", mean, "mean")
    log_prob, entropy = np.empty(len(m)), np.empty(len(m))
    _log_prob_entropy(m, np.broadcast_to(s, m.shape), x, log_prob, entropy)
    return _arrays.hand_back(log_prob, mean), _arrays.hand_back(entropy, mean)


def normal_log_prob_entropy_backward(
    mean: Any,
    log_std: Any,
    action: Any,
    grad_log_prob: Any,
    grad_entropy: Any,
    want_mean: bool,
    want_log_std: bool,
    want_action: bool,
) -> tuple[Any, Any, Any]:
    op = "normal_log_prob_entropy_backward"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, "mean")
    x = _arrays.load_matrix(action, f"{op}: action", mean, "mean")
    gl = _rows(grad_log_prob, f"{op}: grad_log_prob", mean, "mean")
    gh = _rows(grad_entropy, f"{op}: grad_entropy", mean, "mean")
    g_mean = np.empty(m.shape)
    g_log_std, rows = sum_to(s, m.shape)
    _backward(m, np.broadcast_to(s, m.shape), x, gl, gh, g_mean, rows)
    return (
        _arrays.hand_back(g_mean, mean) if want_mean else None,
        _arrays.hand_back(g_log_std, log_std) if want_log_std else None,
        _arrays.hand_back(-g_mean, mean) if want_action else None,
    )
