"""The normal head in NumPy, float64 inside; the same lines run on torch tensors for what is on a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.random.reference import normals

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def load_mean(mean: Any, where: str) -> Any:
    array = _arrays.load_on_device(mean, where)
    if array.ndim != 2:
        raise ValueError(f"{where} must have shape [B, A], got {tuple(array.shape)}")
    return _arrays.to_float64(array)


def load_log_std(log_std: Any, where: str, first: Any, name: str) -> Any:
    array = _arrays.load_on_device(log_std, where, first=first, name=name, same_dtype=True)
    shape = tuple(first.shape)
    if tuple(array.shape) not in (shape, shape[1:]):
        raise ValueError(f"{where} must have shape {shape[1:]} or {shape} like {name}, got {tuple(array.shape)}")
    return _arrays.to_float64(array)


def _exp(x: Any) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return _arrays.module_of(x).exp(x)


def normal_sample(mean: Any, log_std: Any, noise: Any, state: Any, with_noise: bool) -> tuple[Any, Any, Any]:
    m = load_mean(mean, "normal_sample: mean")
    s = load_log_std(log_std, "normal_sample: log_std", mean, "mean")
    if noise is None:
        eps = normals(state, m.shape[0] * m.shape[1]).reshape(m.shape)
    else:
        eps = _arrays.load_matrix(noise, "normal_sample: noise", mean, "mean")
    with np.errstate(invalid="ignore", over="ignore"):
        action = m + _exp(s) * eps
        log_prob = (-0.5 * eps**2 - (s + _HALF_LOG_2PI)).sum(1)
    drawn = _arrays.hand_back(eps, mean) if with_noise else None
    return _arrays.hand_back(action, mean), _arrays.hand_back(log_prob, mean), drawn


def normal_sample_backward(log_std: Any, noise: Any, grad_action: Any, grad_log_prob: Any) -> Any:
    op = "normal_sample_backward"
    eps = load_mean(noise, f"{op}: noise")
    s = load_log_std(log_std, f"{op}: log_std", noise, "noise")
    ga = 0.0 if grad_action is None else _arrays.load_matrix(grad_action, f"{op}: grad_action", noise, "noise")
    gl = _arrays.load_row_grad(grad_log_prob, f"{op}: grad_log_prob", noise, "noise")
    grad = ga * _exp(s) * eps - gl
    return _arrays.hand_back(grad.sum(0) if s.ndim == 1 else grad, log_std)


def normal_log_prob_entropy(mean: Any, log_std: Any, action: Any) -> tuple[Any, Any]:
    op = "normal_log_prob_entropy"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, "mean")
    x = _arrays.load_matrix(action, f"{op}: action", mean, "mean")
    with np.errstate(invalid="ignore", over="ignore"):
        z = (x - m) * _exp(-s)
        log_prob = (-0.5 * z**2 - (s + _HALF_LOG_2PI)).sum(1)
        entropy = (s + (0.5 + _HALF_LOG_2PI) + _arrays.module_of(m).zeros_like(m)).sum(1)
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
    gl = _arrays.load_row_grad(grad_log_prob, f"{op}: grad_log_prob", mean, "mean")
    gh = _arrays.load_row_grad(grad_entropy, f"{op}: grad_entropy", mean, "mean")
    with np.errstate(invalid="ignore", over="ignore"):
        inverse = _exp(-s)
        z = (x - m) * inverse
        g_mean = gl * (z * inverse)
        g_log_std = gl * (z**2 - 1.0) + gh
    return (
        _arrays.hand_back(g_mean, mean) if want_mean else None,
        _arrays.hand_back(g_log_std.sum(0) if s.ndim == 1 else g_log_std, log_std) if want_log_std else None,
        _arrays.hand_back(-g_mean, mean) if want_action else None,
    )


__all__ = ["normal_log_prob_entropy", "normal_log_prob_entropy_backward", "normal_sample", "normal_sample_backward"]
