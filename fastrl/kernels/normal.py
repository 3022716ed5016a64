"""Diagonal normal policy head: draw an action with its log-probability; log-probability and entropy of given actions.

x_bj ~ N(mean_bj, sigma_bj^2), sigma = e^log_std, independent over j = 0 .. A-1; log_std is [A], one for all rows, or
[B, A].  Inside, everything is float64.  Each call is one fused pass over its arrays, and so is each gradient.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastrl import _backend
from fastrl.kernels import _arrays, _heads
from fastrl.kernels.generator import Generator

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def normal_sample(mean: Any, log_std: Any, *, noise: Any = None, generator: Generator | None = None) -> tuple[Any, Any]:
    """Draw one action a row, with its log-probability.

    action_bj = mean_bj + e^{log_std_bj} eps_bj
    log_prob_b = sum_j [ - eps_bj^2 / 2 - log_std_bj - log(2 pi) / 2 ],  b = 0 .. B-1, j = 0 .. A-1

    eps_bj, element i = b A + j, is made from block counter + i // 4 of the generator, which advances by ceil(B A / 4):
    sqrt(-2 log u) times cos(2 pi v) where i is even, sin(2 pi v) where it is odd (Box and Muller 1958), with
    u = (x | 1) 2^-32 and v = y 2^-32 of words x, y = 0, 1 of the block for i mod 4 < 2, else 2, 3; so |eps| < 6.67.  A
    seed gives the same numbers, to rounding, on every backend and with any number of threads.

    Gradients with respect to mean and log_std flow through the action (the reparameterisation) and the log_prob, for
    eps held fixed; second ones raise.

    Args:
        mean: float32 or float64 [B, A], any strides, NumPy or torch; bfloat16 and float16 too.
        log_std: [A] or [B, A], of the same kind, device and dtype.
        noise: eps [B, A] instead of a draw, of the same kind, device and dtype; taken as a constant.
        generator: a `Generator` on the same device; None: the default one (`fastrl.manual_seed`).

    Returns:
        action [B, A] and log_prob [B], of the kind, device and dtype of `mean`.

    Raises:
        TypeError, ValueError: a wrong kind, dtype or shape; a `noise` that requires a gradient.

    >>> import numpy as np, fastrl
    >>> fastrl.normal_sample(np.array([[1.0, 2.0]]), np.zeros(2), noise=np.array([[0.5, -1.0]]))[0]
    array([[1.5, 1. ]])
    """
    if _heads.is_half(mean):
        arrays = _heads.to_float32(mean), _heads.to_float32(log_std)
        action, log_prob = normal_sample(*arrays, noise=_heads.to_float32(noise), generator=generator)
        return _heads.to_half(action, mean), _heads.to_half(log_prob, mean)
    if _arrays.is_compiling():
        from fastrl.kernels import _torch

        return _torch.normal_sample(mean, log_std, noise, generator)
    if noise is not None and getattr(noise, "requires_grad", False):
        raise ValueError("normal_sample: noise must not require a gradient: it is taken as a constant")
    state = None if noise is not None else _heads.state_of(generator, mean, "normal_sample")
    if _heads.wants_grad(mean, log_std):
        from fastrl.kernels import _torch

        drawn: tuple[Any, Any] = _torch.normal_sample_autograd(mean, log_std, noise, state)
        return drawn
    action, log_prob, _ = kernels_for(mean).normal_sample(mean, log_std, noise, state, False)
    return action, log_prob


def normal_log_prob_entropy(mean: Any, log_std: Any, action: Any) -> tuple[Any, Any]:
    """Log-probability of given actions, and the entropy.

    log_prob_b = sum_j [ - (action_bj - mean_bj)^2 / (2 sigma_bj^2) - log_std_bj - log(2 pi) / 2 ]
    entropy_b = sum_j [ log_std_bj + (1 + log(2 pi)) / 2 ],  b = 0 .. B-1, j = 0 .. A-1

    Gradients with respect to mean, log_std (summed over b where it is [A]) and action; second ones raise.  With
    z = (action - mean) / sigma: d log_prob / d mean = z / sigma, d log_prob / d action = - z / sigma,
    d log_prob / d log_std = z^2 - 1, d entropy / d log_std = 1.

    Args:
        mean: float32 or float64 [B, A], any strides, NumPy or torch; bfloat16 and float16 too.
        log_std: [A] or [B, A], of the same kind, device and dtype.
        action: [B, A], of the same kind, device and dtype.

    Returns:
        log_prob [B] and entropy [B], of the kind, device and dtype of `mean`.

    Raises:
        TypeError, ValueError: a wrong kind, dtype or shape.

    >>> import numpy as np, fastrl
    >>> log_prob, _ = fastrl.normal_log_prob_entropy(np.zeros((1, 2)), np.zeros(2), np.zeros((1, 2)))
    >>> np.allclose(log_prob, -np.log(2 * np.pi))
    True
    """
    if _heads.is_half(mean):
        log_prob, entropy = normal_log_prob_entropy(*map(_heads.to_float32, (mean, log_std, action)))
        return _heads.to_half(log_prob, mean), _heads.to_half(entropy, mean)
    if _arrays.is_compiling():
        from fastrl.kernels import _torch

        return _torch.normal_log_prob_entropy(mean, log_std, action)
    if _heads.wants_grad(mean, log_std, action):
        from fastrl.kernels import _torch

        result: tuple[Any, Any] = _torch.normal_log_prob_entropy_autograd(mean, log_std, action)
    else:
        result = kernels_for(mean).normal_log_prob_entropy(mean, log_std, action)
    return result


def normal_sample_reference(
    mean: Any, log_std: Any, *, noise: Any = None, generator: Generator | None = None
) -> tuple[Any, Any]:
    """`normal_sample` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    state = None if noise is not None else _heads.state_of(generator, mean, "normal_sample")
    return _sample(mean, log_std, noise, state, False)[:2]


def normal_log_prob_entropy_reference(mean: Any, log_std: Any, action: Any) -> tuple[Any, Any]:
    """`normal_log_prob_entropy` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    return _log_prob_entropy(mean, log_std, action)


# ---- reference ---------------------------------------------------------------------------------------------------


def load_mean(mean: Any, where: str) -> Any:
    array = _heads.load(mean, where)
    if array.ndim != 2:
        raise ValueError(f"{where} must have shape [B, A], got {tuple(array.shape)}")
    return _heads.to_float64(array)


def load_log_std(log_std: Any, where: str, first: Any, name: str) -> Any:
    array = _heads.load(log_std, where, first=first, name=name, same_dtype=True)
    shape = tuple(first.shape)
    if tuple(array.shape) not in (shape, shape[1:]):
        raise ValueError(f"{where} must have shape {shape[1:]} or {shape} like {name}, got {tuple(array.shape)}")
    return _heads.to_float64(array)


def _exp(x: Any) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return _heads.module_of(x).exp(x)


def _sample(mean: Any, log_std: Any, noise: Any, state: Any, with_noise: bool) -> tuple[Any, Any, Any]:
    m = load_mean(mean, "normal_sample: mean")
    s = load_log_std(log_std, "normal_sample: log_std", mean, "mean")
    if noise is None:
        eps = _heads.normals(state, m.shape[0] * m.shape[1]).reshape(m.shape)
    else:
        eps = _heads.load_matrix(noise, "normal_sample: noise", mean, "mean")
    with np.errstate(invalid="ignore", over="ignore"):
        action = m + _exp(s) * eps
        log_prob = (-0.5 * eps**2 - (s + _HALF_LOG_2PI)).sum(1)
    drawn = _heads.hand_back(eps, mean) if with_noise else None
    return _heads.hand_back(action, mean), _heads.hand_back(log_prob, mean), drawn


def _sample_backward(log_std: Any, noise: Any, grad_action: Any, grad_log_prob: Any) -> Any:
    op = "normal_sample_backward"
    eps = load_mean(noise, f"{op}: noise")
    s = load_log_std(log_std, f"{op}: log_std", noise, "noise")
    ga = 0.0 if grad_action is None else _heads.load_matrix(grad_action, f"{op}: grad_action", noise, "noise")
    gl = _heads.load_row_grad(grad_log_prob, f"{op}: grad_log_prob", noise, "noise")
    grad = ga * _exp(s) * eps - gl
    return _heads.hand_back(grad.sum(0) if s.ndim == 1 else grad, log_std)


def _log_prob_entropy(mean: Any, log_std: Any, action: Any) -> tuple[Any, Any]:
    op = "normal_log_prob_entropy"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, "mean")
    x = _heads.load_matrix(action, f"{op}: action", mean, "mean")
    with np.errstate(invalid="ignore", over="ignore"):
        z = (x - m) * _exp(-s)
        log_prob = (-0.5 * z**2 - (s + _HALF_LOG_2PI)).sum(1)
        entropy = (s + (0.5 + _HALF_LOG_2PI) + _heads.module_of(m).zeros_like(m)).sum(1)
    return _heads.hand_back(log_prob, mean), _heads.hand_back(entropy, mean)


def _log_prob_entropy_backward(
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
    x = _heads.load_matrix(action, f"{op}: action", mean, "mean")
    gl = _heads.load_row_grad(grad_log_prob, f"{op}: grad_log_prob", mean, "mean")
    gh = _heads.load_row_grad(grad_entropy, f"{op}: grad_entropy", mean, "mean")
    with np.errstate(invalid="ignore", over="ignore"):
        inverse = _exp(-s)
        z = (x - m) * inverse
        g_mean = gl * (z * inverse)
        g_log_std = gl * (z**2 - 1.0) + gh
    return (
        _heads.hand_back(g_mean, mean) if want_mean else None,
        _heads.hand_back(g_log_std.sum(0) if s.ndim == 1 else g_log_std, log_std) if want_log_std else None,
        _heads.hand_back(-g_mean, mean) if want_action else None,
    )


# ---- backends ----------------------------------------------------------------------------------------------------

reference = SimpleNamespace(
    normal_sample=_sample,
    normal_sample_backward=_sample_backward,
    normal_log_prob_entropy=_log_prob_entropy,
    normal_log_prob_entropy_backward=_log_prob_entropy_backward,
)


@functools.cache
def _cpu() -> Any:
    """What serves CPU arrays; Numba is imported when it is first needed."""
    if _backend.CPU_BACKEND == "cpp":
        return _backend._C
    if _backend.CPU_BACKEND == "numba":
        from fastrl.kernels._numba import normal

        return normal
    return reference


@functools.cache  # at the first call, because it imports torch
def _cuda() -> Any:
    return _backend._C_cuda if _backend.cuda_backend()[0] == "cuda" else reference


def kernels_for(mean: Any) -> Any:
    """The kernels of a backend: functions of the names, arguments and errors of those in `reference`."""
    return _cuda() if getattr(mean, "is_cuda", False) else _cpu()
