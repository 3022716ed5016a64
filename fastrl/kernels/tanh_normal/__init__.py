"""Tanh-Gaussian policy head (Haarnoja et al. 2018, arXiv:1801.01290, appendix C): an action squashed into its bounds.

u_bj ~ N(mean_bj, sigma_bj^2), sigma = e^log_std; action_bj = bias_j + scale_j tanh(u_bj), with
scale = (high - low) / 2 and bias = (high + low) / 2; independent over j = 0 .. A-1.  log_std is [A], one for all rows,
or [B, A].  Each call is one fused pass over its arrays, and so is each gradient.

log(1 - tanh^2 u) = 2 (log 2 - |u| - log(1 + e^{-2 |u|})) and 1 - tanh^2 u = 4 e^{-2 |u|} / (1 + e^{-2 |u|})^2 are exact
for every u, where 1 - tanh(u)^2 itself rounds to 0 from |u| = 9 in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.arrays import A
from fastrl.kernels._core.backends import choose
from fastrl.kernels.random import Generator, state_of
from fastrl.kernels.tanh_normal import reference
from fastrl.kernels.tanh_normal._arguments import UNLIMITED, bounds_in_float32, bounds_like, limits_of

backend = choose(__package__)


def tanh_normal_sample(
    mean: A,
    log_std: A,
    *,
    noise: A | None = None,
    generator: Generator | None = None,
    low: Any = -1.0,
    high: Any = 1.0,
    log_std_min: float | None = None,
    log_std_max: float | None = None,
    correction: str = "stable",
    epsilon: float = 1e-6,
) -> tuple[A, A]:
    """Draw one action a row, with its log-probability.

    u_bj = mean_bj + e^{s_bj} eps_bj,  s = log_std clamped to [log_std_min, log_std_max]
    action_bj = bias_j + scale_j tanh(u_bj)
    log_prob_b = sum_j [ - eps_bj^2 / 2 - s_bj - log(2 pi) / 2 - log scale_j - 2 (log 2 - u_bj - softplus(-2 u_bj)) ]

    with b = 0 .. B-1 and j = 0 .. A-1.  correction="epsilon" puts log(scale_j (1 - tanh^2 u_bj) + epsilon) in place of
    the last two terms: what many code bases compute, kept for parity with their checkpoints.  It is far off from
    |u| = 8 on.

    eps is drawn as in `normal_sample`: the same seed gives the same numbers, to rounding, on every backend and with any
    number of threads.  Gradients with respect to mean and log_std flow through the action (the reparameterisation) and
    the log_prob, for eps held fixed; second ones raise.  With t = tanh u, G the gradient of the loss for action and g
    for log_prob: d mean = G scale (1 - t^2) + 2 g t;  d log_std = d mean e^s eps - g, and 0 where log_std is clamped.

    Args:
        mean: float32 or float64 [B, A], any strides, NumPy or torch; bfloat16 and float16 too.
        log_std: [A] or [B, A], of the same kind, device and dtype.
        noise: eps [B, A] instead of a draw, of the same kind, device and dtype; taken as a constant.
        generator: a `Generator` on the same device; None: the default one (`fastrl.manual_seed`).
        low, high: the bounds of the action: numbers or arrays [A] (also of another kind or dtype, as
            `action_space.low`), which are rounded to the dtype of `mean`; finite, low < high, with a number of the
            dtype between them.
        log_std_min, log_std_max: numbers, or None for no clamping.
        correction: "stable" or "epsilon".
        epsilon: of the "epsilon" form, > 0.

    Returns:
        action [B, A] in [low, high] and log_prob [B], of the kind, device and dtype of `mean`.  Where mean, noise or
        the clamped log_std is NaN or infinite, the action and its row's log_prob are NaN.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value; a `noise` or bound that requires a gradient.  On
            CUDA the values of bounds that are tensors are not checked: where they are wrong, NaN results.

    >>> import numpy as np, fastrl
    >>> mean, log_std, noise = np.array([[0.0, 50.0]]), np.zeros(2), np.zeros((1, 2))
    >>> action, log_prob = fastrl.tanh_normal_sample(mean, log_std, noise=noise, low=0.0, high=2.0)
    >>> action.tolist(), round(float(log_prob[0]), 4)
    ([[1.0, 2.0]], 96.7758)
    """
    limits = UNLIMITED
    if log_std_min is not None or log_std_max is not None or correction != "stable":
        limits = limits_of("tanh_normal_sample", log_std_min, log_std_max, correction, epsilon)
    if type(low) is not float or type(high) is not float:
        low, high = bounds_like("tanh_normal_sample", low, high, mean)
    if _arrays.is_half(mean):
        action, log_prob = tanh_normal_sample(
            *map(_arrays.to_float32, (mean, log_std)), noise=_arrays.to_float32(noise), generator=generator,
            **bounds_in_float32(low, high, mean), log_std_min=log_std_min, log_std_max=log_std_max,
            correction=correction, epsilon=epsilon,
        )  # fmt: skip
        return _arrays.to_half(action, mean), _arrays.to_half(log_prob, mean)
    if _arrays.is_compiling():
        from fastrl.kernels.tanh_normal import _torch

        return _torch.tanh_normal_sample(mean, log_std, noise, generator, low, high, *limits)  # type: ignore[no-any-return]
    if noise is not None and getattr(noise, "requires_grad", False):
        raise ValueError("tanh_normal_sample: noise must not require a gradient: it is taken as a constant")
    state = None if noise is not None else state_of(generator, mean, "tanh_normal_sample")
    if _arrays.wants_grad(mean, log_std, low, high):
        from fastrl.kernels.tanh_normal import _torch

        drawn: tuple[A, A] = _torch.tanh_normal_sample_autograd(mean, log_std, noise, state, low, high, *limits)
        return drawn
    action, log_prob, _ = backend.of(mean).tanh_normal_sample(mean, log_std, noise, state, low, high, *limits, False)
    return action, log_prob


def tanh_normal_sample_pullback(
    mean: Any,
    log_std: Any,
    *,
    noise: Any = None,
    generator: Generator | None = None,
    low: Any = -1.0,
    high: Any = 1.0,
    log_std_min: float | None = None,
    log_std_max: float | None = None,
    correction: str = "stable",
    epsilon: float = 1e-6,
) -> tuple[Any, Any, Callable[[Any, Any], tuple[Any, Any]]]:
    """`tanh_normal_sample` without autograd: action, log_prob, and how gradients go back through them.

    The third result maps the gradients of a loss for action [B, A] and log_prob [B] to those for mean and log_std.
    Arguments, values and errors are those of `tanh_normal_sample`; nothing is recorded.

    >>> import numpy as np, fastrl
    >>> mean, log_std = np.zeros((1, 1)), np.zeros(1)
    >>> action, log_prob, pullback = fastrl.tanh_normal_sample_pullback(mean, log_std, noise=np.zeros((1, 1)))
    >>> pullback(np.ones((1, 1)), np.ones(1))
    (array([[1.]]), array([-1.]))
    """
    limits = UNLIMITED
    if log_std_min is not None or log_std_max is not None or correction != "stable":
        limits = limits_of("tanh_normal_sample", log_std_min, log_std_max, correction, epsilon)
    state = None if noise is not None else state_of(generator, mean, "tanh_normal_sample")
    kernels = backend.of(mean)
    action, log_prob, saved = kernels.tanh_normal_sample(mean, log_std, noise, state, low, high, *limits, True)

    def pullback(grad_action: Any, grad_log_prob: Any) -> tuple[Any, Any]:
        found: tuple[Any, Any] = kernels.tanh_normal_sample_backward(
            saved, log_std, grad_action, grad_log_prob, low, high, *limits, True, True
        )
        return found

    return action, log_prob, pullback


def tanh_normal_log_prob(
    mean: A,
    log_std: A,
    action: A,
    *,
    low: Any = -1.0,
    high: Any = 1.0,
    log_std_min: float | None = None,
    log_std_max: float | None = None,
    correction: str = "stable",
    epsilon: float = 1e-6,
) -> A:
    """Log-probability of given actions.

    x_bj = (action_bj - bias_j) / scale_j,  u_bj = atanh(x_bj),  z_bj = (u_bj - mean_bj) e^{-s_bj}
    log_prob_b = sum_j [ - z_bj^2 / 2 - s_bj - log(2 pi) / 2 - log scale_j - log(1 - x_bj^2) ]

    with s, scale, bias and correction="epsilon" as in `tanh_normal_sample`.  1 - |x| comes from the distance to the
    nearer bound, without rounding.  An action at or beyond a bound counts as the last number of its dtype inside, and
    its gradient is that there.  1 / sigma is taken as no larger than e^709 (then log_prob is -inf, unless u = mean to
    within 1e-150), and a row's gradient beyond the dtype as its largest number: finite for every finite argument, but
    for sums of such numbers over the rows (the gradient of a log_std [A]).

    Gradients with respect to mean, log_std and action; second ones raise.  d log_prob / d mean = z / sigma,
    d log_prob / d log_std = z^2 - 1 (0 where clamped), d log_prob / d action = (2 x - z / sigma) / (scale (1 - x^2)).

    Args:
        mean: float32 or float64 [B, A], any strides, NumPy or torch; bfloat16 and float16 too.
        log_std: [A] or [B, A], of the same kind, device and dtype.
        action: [B, A], of the same kind, device and dtype.
        low, high, log_std_min, log_std_max, correction, epsilon: as in `tanh_normal_sample`.

    Returns:
        log_prob [B], of the kind, device and dtype of `mean`; NaN where mean, action or the clamped log_std of the row
        holds NaN or an infinity.

    Raises:
        TypeError, ValueError: as `tanh_normal_sample`.

    >>> import numpy as np, fastrl
    >>> log_prob = fastrl.tanh_normal_log_prob(np.zeros((1, 1)), np.zeros(1), np.array([[0.5]]))
    >>> np.allclose(log_prob, -0.5 * np.arctanh(0.5) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(0.75))
    True
    """
    limits = UNLIMITED
    if log_std_min is not None or log_std_max is not None or correction != "stable":
        limits = limits_of("tanh_normal_log_prob", log_std_min, log_std_max, correction, epsilon)
    if type(low) is not float or type(high) is not float:
        low, high = bounds_like("tanh_normal_log_prob", low, high, mean)
    if _arrays.is_half(mean):
        log_prob = tanh_normal_log_prob(
            *map(_arrays.to_float32, (mean, log_std, action)), **bounds_in_float32(low, high, mean),
            log_std_min=log_std_min, log_std_max=log_std_max, correction=correction, epsilon=epsilon,
        )  # fmt: skip
        return _arrays.to_half(log_prob, mean)  # type: ignore[no-any-return]
    if _arrays.is_compiling():
        from fastrl.kernels.tanh_normal import _torch

        return _torch.tanh_normal_log_prob(mean, log_std, action, low, high, *limits)  # type: ignore[no-any-return]
    if _arrays.wants_grad(mean, log_std, action, low, high):
        from fastrl.kernels.tanh_normal import _torch

        return _torch.tanh_normal_log_prob_autograd(mean, log_std, action, low, high, *limits)  # type: ignore[no-any-return]
    return backend.of(mean).tanh_normal_log_prob(mean, log_std, action, low, high, *limits)  # type: ignore[no-any-return]


def tanh_normal_mode(mean: A, *, low: Any = -1.0, high: Any = 1.0) -> A:
    """The action without noise: action_bj = bias_j + scale_j tanh(mean_bj), b = 0 .. B-1, j = 0 .. A-1.

    The gradient with respect to mean is that of action times scale (1 - tanh^2 mean); second ones raise.

    Args:
        mean: float32 or float64 [B, A], any strides, NumPy or torch; bfloat16 and float16 too.
        low, high: as in `tanh_normal_sample`.

    Returns:
        action [B, A] in [low, high], of the kind, device and dtype of `mean`; NaN where mean is NaN or infinite.

    Raises:
        TypeError, ValueError: as `tanh_normal_sample`.

    >>> import numpy as np, fastrl
    >>> fastrl.tanh_normal_mode(np.array([[0.0, -50.0]]), low=0.0, high=2.0)
    array([[1., 0.]])
    """
    if type(low) is not float or type(high) is not float:
        low, high = bounds_like("tanh_normal_mode", low, high, mean)
    if _arrays.is_half(mean):
        action = tanh_normal_mode(_arrays.to_float32(mean), **bounds_in_float32(low, high, mean))
        return _arrays.to_half(action, mean)  # type: ignore[no-any-return]
    if _arrays.is_compiling():
        from fastrl.kernels.tanh_normal import _torch

        return _torch.tanh_normal_mode(mean, low, high)  # type: ignore[no-any-return]
    if _arrays.wants_grad(mean, low, high):
        from fastrl.kernels.tanh_normal import _torch

        return _torch.tanh_normal_mode_autograd(mean, low, high)  # type: ignore[no-any-return]
    return backend.of(mean).tanh_normal_mode(mean, low, high)  # type: ignore[no-any-return]


def tanh_normal_sample_reference(
    mean: A,
    log_std: A,
    *,
    noise: A | None = None,
    generator: Generator | None = None,
    low: Any = -1.0,
    high: Any = 1.0,
    log_std_min: float | None = None,
    log_std_max: float | None = None,
    correction: str = "stable",
    epsilon: float = 1e-6,
) -> tuple[A, A]:
    """`tanh_normal_sample` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    limits = limits_of("tanh_normal_sample", log_std_min, log_std_max, correction, epsilon)
    state = None if noise is not None else state_of(generator, mean, "tanh_normal_sample")
    return reference.tanh_normal_sample(mean, log_std, noise, state, low, high, *limits, False)[:2]


def tanh_normal_log_prob_reference(
    mean: A,
    log_std: A,
    action: A,
    *,
    low: Any = -1.0,
    high: Any = 1.0,
    log_std_min: float | None = None,
    log_std_max: float | None = None,
    correction: str = "stable",
    epsilon: float = 1e-6,
) -> A:
    """`tanh_normal_log_prob` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    limits = limits_of("tanh_normal_log_prob", log_std_min, log_std_max, correction, epsilon)
    return reference.tanh_normal_log_prob(mean, log_std, action, low, high, *limits)  # type: ignore[no-any-return]


def tanh_normal_mode_reference(mean: A, *, low: Any = -1.0, high: Any = 1.0) -> A:
    """`tanh_normal_mode` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    return reference.tanh_normal_mode(mean, low, high)  # type: ignore[no-any-return]
