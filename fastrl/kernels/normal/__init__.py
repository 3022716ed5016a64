"""Diagonal normal policy head: draw an action with its log-probability; log-probability and entropy of given actions.

x_bj ~ N(mean_bj, sigma_bj^2), sigma = e^log_std, independent over j = 0 .. A-1; log_std is [A], one for all rows, or
[B, A].  Inside, everything is float64.  Each call is one fused pass over its arrays, and so is each gradient.
"""

from __future__ import annotations

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.arrays import A
from fastrl.kernels._core.backends import choose
from fastrl.kernels.normal import reference
from fastrl.kernels.random import Generator, state_of

backend = choose(__package__)


def normal_sample(mean: A, log_std: A, *, noise: A | None = None, generator: Generator | None = None) -> tuple[A, A]:
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
    if _arrays.is_half(mean):
        arrays = _arrays.to_float32(mean), _arrays.to_float32(log_std)
        action, log_prob = normal_sample(*arrays, noise=_arrays.to_float32(noise), generator=generator)
        return _arrays.to_half(action, mean), _arrays.to_half(log_prob, mean)
    if _arrays.is_compiling():
        from fastrl.kernels.normal import _torch

        return _torch.normal_sample(mean, log_std, noise, generator)  # type: ignore[no-any-return]
    if noise is not None and getattr(noise, "requires_grad", False):
        raise ValueError("normal_sample: noise must not require a gradient: it is taken as a constant")
    state = None if noise is not None else state_of(generator, mean, "normal_sample")
    if _arrays.wants_grad(mean, log_std):
        from fastrl.kernels.normal import _torch

        drawn: tuple[A, A] = _torch.normal_sample_autograd(mean, log_std, noise, state)
        return drawn
    action, log_prob, _ = backend.of(mean).normal_sample(mean, log_std, noise, state, False)
    return action, log_prob


def normal_log_prob_entropy(mean: A, log_std: A, action: A) -> tuple[A, A]:
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
    if _arrays.is_half(mean):
        log_prob, entropy = normal_log_prob_entropy(*map(_arrays.to_float32, (mean, log_std, action)))
        return _arrays.to_half(log_prob, mean), _arrays.to_half(entropy, mean)
    if _arrays.is_compiling():
        from fastrl.kernels.normal import _torch

        return _torch.normal_log_prob_entropy(mean, log_std, action)  # type: ignore[no-any-return]
    if _arrays.wants_grad(mean, log_std, action):
        from fastrl.kernels.normal import _torch

        result: tuple[A, A] = _torch.normal_log_prob_entropy_autograd(mean, log_std, action)
    else:
        result = backend.of(mean).normal_log_prob_entropy(mean, log_std, action)
    return result


def normal_sample_reference(
    mean: A, log_std: A, *, noise: A | None = None, generator: Generator | None = None
) -> tuple[A, A]:
    """`normal_sample` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    state = None if noise is not None else state_of(generator, mean, "normal_sample")
    return reference.normal_sample(mean, log_std, noise, state, False)[:2]


def normal_log_prob_entropy_reference(mean: A, log_std: A, action: A) -> tuple[A, A]:
    """`normal_log_prob_entropy` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    return reference.normal_log_prob_entropy(mean, log_std, action)
