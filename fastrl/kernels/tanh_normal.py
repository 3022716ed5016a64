"""Tanh-Gaussian policy head (Haarnoja et al. 2018, arXiv:1801.01290, appendix C): an action squashed into its bounds.

u_bj ~ N(mean_bj, sigma_bj^2), sigma = e^log_std; action_bj = bias_j + scale_j tanh(u_bj), with
scale = (high - low) / 2 and bias = (high + low) / 2; independent over j = 0 .. A-1.  log_std is [A], one for all rows,
or [B, A].  Each call is one fused pass over its arrays, and so is each gradient.

log(1 - tanh^2 u) = 2 (log 2 - |u| - log(1 + e^{-2 |u|})) and 1 - tanh^2 u = 4 e^{-2 |u|} / (1 + e^{-2 |u|})^2 are exact
for every u, where 1 - tanh(u)^2 itself rounds to 0 from |u| = 9 in float32.
"""

from __future__ import annotations

import functools
import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastrl import _backend
from fastrl.kernels import _arrays, _heads
from fastrl.kernels.generator import Generator

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_LARGEST = sys.float_info.max
_UNLIMITED = (-math.inf, math.inf, 0.0)
TINY = 2.0**-1000  # below it a distance to a bound is no good divisor
MIN_LOG_STD = -709.0  # sigma of a given action is no smaller than its e^, so that no 0 is multiplied by infinity


def tanh_normal_sample(
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
) -> tuple[Any, Any]:
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
    limits = _UNLIMITED
    if log_std_min is not None or log_std_max is not None or correction != "stable":
        limits = _limits("tanh_normal_sample", log_std_min, log_std_max, correction, epsilon)
    if type(low) is not float or type(high) is not float:
        low, high = _bounds_like("tanh_normal_sample", low, high, mean)
    if _heads.is_half(mean):
        action, log_prob = tanh_normal_sample(
            *map(_heads.to_float32, (mean, log_std)), noise=_heads.to_float32(noise), generator=generator,
            **_bounds_in_float32(low, high, mean), log_std_min=log_std_min, log_std_max=log_std_max,
            correction=correction, epsilon=epsilon,
        )  # fmt: skip
        return _heads.to_half(action, mean), _heads.to_half(log_prob, mean)
    if _arrays.is_compiling():
        from fastrl.kernels import _torch

        return _torch.tanh_normal_sample(mean, log_std, noise, generator, low, high, *limits)
    if noise is not None and getattr(noise, "requires_grad", False):
        raise ValueError("tanh_normal_sample: noise must not require a gradient: it is taken as a constant")
    state = None if noise is not None else _heads.state_of(generator, mean, "tanh_normal_sample")
    if _heads.wants_grad(mean, log_std, low, high):
        from fastrl.kernels import _torch

        drawn: tuple[Any, Any] = _torch.tanh_normal_sample_autograd(mean, log_std, noise, state, low, high, *limits)
        return drawn
    action, log_prob, _ = kernels_for(mean).tanh_normal_sample(mean, log_std, noise, state, low, high, *limits, False)
    return action, log_prob


def tanh_normal_log_prob(
    mean: Any,
    log_std: Any,
    action: Any,
    *,
    low: Any = -1.0,
    high: Any = 1.0,
    log_std_min: float | None = None,
    log_std_max: float | None = None,
    correction: str = "stable",
    epsilon: float = 1e-6,
) -> Any:
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
    limits = _UNLIMITED
    if log_std_min is not None or log_std_max is not None or correction != "stable":
        limits = _limits("tanh_normal_log_prob", log_std_min, log_std_max, correction, epsilon)
    if type(low) is not float or type(high) is not float:
        low, high = _bounds_like("tanh_normal_log_prob", low, high, mean)
    if _heads.is_half(mean):
        log_prob = tanh_normal_log_prob(
            *map(_heads.to_float32, (mean, log_std, action)), **_bounds_in_float32(low, high, mean),
            log_std_min=log_std_min, log_std_max=log_std_max, correction=correction, epsilon=epsilon,
        )  # fmt: skip
        return _heads.to_half(log_prob, mean)
    if _arrays.is_compiling():
        from fastrl.kernels import _torch

        return _torch.tanh_normal_log_prob(mean, log_std, action, low, high, *limits)
    if _heads.wants_grad(mean, log_std, action, low, high):
        from fastrl.kernels import _torch

        return _torch.tanh_normal_log_prob_autograd(mean, log_std, action, low, high, *limits)
    return kernels_for(mean).tanh_normal_log_prob(mean, log_std, action, low, high, *limits)


def tanh_normal_mode(mean: Any, *, low: Any = -1.0, high: Any = 1.0) -> Any:
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
        low, high = _bounds_like("tanh_normal_mode", low, high, mean)
    if _heads.is_half(mean):
        action = tanh_normal_mode(_heads.to_float32(mean), **_bounds_in_float32(low, high, mean))
        return _heads.to_half(action, mean)
    if _arrays.is_compiling():
        from fastrl.kernels import _torch

        return _torch.tanh_normal_mode(mean, low, high)
    if _heads.wants_grad(mean, low, high):
        from fastrl.kernels import _torch

        return _torch.tanh_normal_mode_autograd(mean, low, high)
    return kernels_for(mean).tanh_normal_mode(mean, low, high)


def tanh_normal_sample_reference(
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
) -> tuple[Any, Any]:
    """`tanh_normal_sample` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    limits = _limits("tanh_normal_sample", log_std_min, log_std_max, correction, epsilon)
    state = None if noise is not None else _heads.state_of(generator, mean, "tanh_normal_sample")
    return _sample(mean, log_std, noise, state, low, high, *limits, False)[:2]


def tanh_normal_log_prob_reference(
    mean: Any,
    log_std: Any,
    action: Any,
    *,
    low: Any = -1.0,
    high: Any = 1.0,
    log_std_min: float | None = None,
    log_std_max: float | None = None,
    correction: str = "stable",
    epsilon: float = 1e-6,
) -> Any:
    """`tanh_normal_log_prob` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    limits = _limits("tanh_normal_log_prob", log_std_min, log_std_max, correction, epsilon)
    return _log_prob(mean, log_std, action, low, high, *limits)


def tanh_normal_mode_reference(mean: Any, *, low: Any = -1.0, high: Any = 1.0) -> Any:
    """`tanh_normal_mode` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    return _mode(mean, low, high)


# ---- arguments ---------------------------------------------------------------------------------------------------


def _bounds_like(op: str, low: Any, high: Any, mean: Any) -> tuple[Any, Any]:
    return _bound_like(low, f"{op}: low", mean), _bound_like(high, f"{op}: high", mean)


def _bound_like(bound: Any, where: str, mean: Any) -> Any:
    """A number, or an array of the kind, device and dtype of `mean`, as `action_space.low` seldom is."""
    bound = _arrays.scalar_of(bound)
    if _arrays.is_number(bound) or not hasattr(mean, "dtype"):
        return bound
    if _arrays.is_tensor(bound):
        if _arrays.is_tensor(mean):
            return bound.to(mean.device, mean.dtype)
        bound = bound.detach().cpu().double().numpy()
    if isinstance(bound, np.ma.MaskedArray):
        return _arrays.load(bound, where)  # which refuses it
    if isinstance(bound, (list, tuple)):
        try:
            bound = np.asarray(bound)
        except ValueError:  # ragged
            bound = np.asarray(None)
    if not isinstance(bound, np.ndarray):
        return bound
    if _arrays.is_compiling():  # which knows no more of NumPy's dtypes
        return sys.modules["torch"].as_tensor(bound).to(mean.device, mean.dtype)
    if bound.dtype.kind not in "fiu":
        raise TypeError(f"{where} must be a number or an array of numbers, got dtype {bound.dtype}")
    if _arrays.is_tensor(mean):
        return sys.modules["torch"].tensor(bound, dtype=mean.dtype, device=mean.device)
    dtype = _arrays.dtype_name(mean)
    return _arrays.like(bound.astype(dtype, copy=False), mean) if dtype in _heads._FLOATS else bound


def _bounds_in_float32(low: Any, high: Any, mean: Any) -> dict[str, Any]:
    """Bounds that are in the dtype of `mean`, which is a half, in float32."""
    return {
        name: rounded(_arrays.to_float(x), mean) if _arrays.is_number(x) else _heads.to_float32(x)
        for name, x in (("low", low), ("high", high))
    }


def _number(value: Any, where: str) -> float:
    if not _arrays.is_number(value):
        raise TypeError(f"{where} must be a number, got {type(value).__name__}")
    return _arrays.to_float(value)


def _limits(
    op: str, log_std_min: float | None, log_std_max: float | None, correction: str, epsilon: float
) -> tuple[float, float, float]:
    """What the backends take: the bounds of log_std, and epsilon, 0 for the stable form."""
    low = -math.inf if log_std_min is None else _number(log_std_min, f"{op}: log_std_min")
    high = math.inf if log_std_max is None else _number(log_std_max, f"{op}: log_std_max")
    if not low <= high:
        raise ValueError(f"{op}: log_std_min must be at most log_std_max, got {low!r} and {high!r}")
    if not isinstance(correction, str):
        raise TypeError(f"{op}: correction must be a str, got {type(correction).__name__}")
    if correction not in ("stable", "epsilon"):
        raise ValueError(f"{op}: correction must be 'stable' or 'epsilon', got {correction!r}")
    if correction == "stable":
        return low, high, 0.0
    number = _number(epsilon, f"{op}: epsilon")
    if not 0.0 < number < math.inf:
        raise ValueError(f"{op}: epsilon must be finite and > 0, got {number!r}")
    return low, high, number


def floats_of(first: Any) -> tuple[str, ...]:
    """The dtypes that an op takes where its first array is."""
    return ("float32", "float64", "float16", "bfloat16") if getattr(first, "is_cuda", False) else _heads._FLOATS


def load_mean(mean: Any, where: str) -> Any:
    array = _heads.load(mean, where, floats_of(mean))
    if array.ndim != 2:
        raise ValueError(f"{where} must have shape [B, A], got {tuple(array.shape)}")
    return _heads.to_float64(array)


def load_matrix(obj: Any, where: str, first: Any, name: str) -> Any:
    array = _heads.load(obj, where, floats_of(first), first, name, True)
    if tuple(array.shape) != tuple(first.shape):
        raise ValueError(f"{where} must have shape {tuple(first.shape)} like {name}, got {tuple(array.shape)}")
    return _heads.to_float64(array)


def load_log_std(log_std: Any, where: str, first: Any, shape: tuple[int, ...], name: str) -> Any:
    """log_std for rows and columns of the shape of `first`, which is called `name`."""
    array = _heads.load(log_std, where, floats_of(first), first, name, True)
    if tuple(array.shape) not in (shape, shape[1:]):
        raise ValueError(f"{where} must have shape {shape[1:]} or {shape} like {name}, got {tuple(array.shape)}")
    return _heads.to_float64(array)


def load_row_grad(obj: Any, where: str, first: Any, name: str, rows: int) -> Any:
    """The gradient [B, 1] of a result [B], in float64; 0.0 for None."""
    if obj is None:
        return 0.0
    array = _heads.load(obj, where, floats_of(first), first, name, True)
    if tuple(array.shape) != (rows,):
        raise ValueError(f"{where} must have shape ({rows},), got {tuple(array.shape)}")
    return _heads.to_float64(array)[:, None]


def load_saved(op: str, saved: Any, log_std: Any, grad_action: Any) -> tuple[Any, Any, Any]:
    """What a forward pass kept, u and e^s eps as [2, B, A] in no less than float32; log_std; the gradient or 0.0."""
    s = _heads.load(log_std, f"{op}: log_std", floats_of(log_std))
    half = str(s.dtype).endswith("float16")
    kept = _heads.load(saved, f"{op}: saved", ("float32",) if half else _heads._FLOATS, log_std, "log_std", not half)
    if kept.ndim != 3 or kept.shape[0] != 2:
        raise ValueError(f"{op}: saved must have shape [2, B, A], got {tuple(kept.shape)}")
    shape = tuple(kept.shape[1:])
    s = load_log_std(log_std, f"{op}: log_std", log_std, shape, "saved")
    ga: Any = 0.0
    if grad_action is not None:
        ga = _heads.load(grad_action, f"{op}: grad_action", floats_of(log_std), log_std, "log_std", True)
        if tuple(ga.shape) != shape:
            raise ValueError(f"{op}: grad_action must have shape {shape} like saved, got {tuple(ga.shape)}")
        ga = _heads.to_float64(ga)
    return _heads.to_float64(kept), s, ga


def rounded(number: float, first: Any) -> float:
    """In the dtype of `first`."""
    dtype = str(first.dtype).removeprefix("torch.")
    if dtype == "bfloat16":
        torch = _heads.module_of(first)
        return float(torch.tensor(number, dtype=torch.bfloat16))
    with np.errstate(over="ignore"):
        return float(np.asarray(number).astype(dtype))


class Bounds:
    """low and high in the dtype of `first`, as float64 [A]; scale and bias."""

    def __init__(self, op: str, low: Any, high: Any, first: Any, columns: int) -> None:
        self.low, self.high = (
            self._load(low, f"{op}: low", first, columns),
            self._load(high, f"{op}: high", first, columns),
        )
        checked = isinstance(self.low, np.ndarray) or (_arrays.is_number(low) and _arrays.is_number(high))
        with np.errstate(all="ignore"):
            first_in, _ = self.inside(first)
        if checked:
            limits = (self.low.tolist(), self.high.tolist(), first_in.tolist())
            for j, (lo, hi, first_one) in enumerate(zip(*limits, strict=True)):
                got = f"got {lo!r} and {hi!r} in dimension {j}"
                if not -math.inf < lo < hi < math.inf:
                    raise ValueError(f"{op}: low must be finite and below high, {got}")
                if first_one == hi:
                    raise ValueError(f"{op}: low and high must have a number of their dtype between them, {got}")
        with np.errstate(over="ignore"):
            self.scale = 0.5 * self.high - 0.5 * self.low
            if not checked:
                good = (-math.inf < self.low) & (first_in < self.high) & (self.high < math.inf)
                self.scale[~good] = math.nan
            self.bias = 0.5 * self.high + 0.5 * self.low
            self.log_scale = _heads.module_of(self.scale).log(self.scale)

    @staticmethod
    def _load(bound: Any, where: str, first: Any, columns: int) -> Any:
        if _arrays.is_number(bound):
            number = rounded(_arrays.to_float(bound), first)
            if getattr(first, "is_cuda", False):
                torch = _heads.module_of(first)
                return torch.full((columns,), number, dtype=torch.float64, device=first.device)
            return np.full(columns, number)
        if not (isinstance(bound, np.ndarray) or hasattr(type(bound), "__dlpack__")):
            raise TypeError(f"{where} must be a number or an array, got {type(bound).__name__}")
        array = _heads.load(bound, where, floats_of(first), first, "mean", True)
        if tuple(array.shape) != (columns,):
            raise ValueError(f"{where} must have shape ({columns},), got {tuple(array.shape)}")
        return _heads.to_float64(array)

    def inside(self, first: Any) -> tuple[Any, Any]:
        """The first and the last number inside, of the dtype of `first`, in float64."""
        xp = _heads.module_of(self.low)
        dtype = getattr(xp, str(first.dtype).removeprefix("torch."))
        low, high = xp.asarray(self.low, dtype=dtype), xp.asarray(self.high, dtype=dtype)
        return _heads.to_float64(_next(low, high)), _heads.to_float64(_next(high, low))


def _next(x: Any, towards: Any) -> Any:
    """nextafter; torch has none for float16."""
    xp = _heads.module_of(x)
    if str(x.dtype) != "torch.float16":
        return xp.nextafter(x, towards)
    bits = xp.where((x > 0) == (towards > x), 1, -1).to(xp.int16) + x.view(xp.int16)
    smallest = xp.where(towards > x, 2.0**-24, -(2.0**-24)).to(x.dtype)
    return xp.where(x == 0, smallest, bits.view(x.dtype))


# ---- reference ---------------------------------------------------------------------------------------------------


def _clamp(log_std: Any, low: float, high: float, first: Any) -> Any:
    """NaN stays."""
    return _heads.module_of(log_std).clip(log_std, rounded(low, first), rounded(high, first))


def _squash(u: Any) -> tuple[Any, Any, Any]:
    """tanh u, 1 - tanh^2 u and log(1 - tanh^2 u)."""
    xp = _heads.module_of(u)
    w = xp.exp(-2.0 * abs(u))
    return xp.tanh(u), 4.0 * w / (1.0 + w) ** 2, 2.0 * (math.log(2.0) - abs(u) - xp.log1p(w))


def _log_width(width: Any, log_slope: Any, bounds: Bounds, epsilon: float) -> Any:
    """log(scale (1 - t^2)), or with epsilon added, from scale (1 - t^2) and log(1 - t^2)."""
    if epsilon == 0.0:
        return bounds.log_scale + log_slope
    return _heads.module_of(width).log(width + epsilon)


def _saved_dtype(first: Any) -> str:
    return "float32" if str(first.dtype).endswith("float16") else ""


def _log_std_grad(grad: Any, s: Any, low: float, high: float, log_std: Any) -> Any:
    """From that of the clamped one: 0 where log_std, `s` in float64, is outside, and summed over b where it is [A]."""
    outside = (s < rounded(low, log_std)) | (s > rounded(high, log_std))
    grad = _heads.module_of(grad).where(outside, 0.0, grad)
    return _heads.hand_back(grad.sum(0) if s.ndim == 1 else grad, log_std)


def _sample(
    mean: Any, log_std: Any, noise: Any, state: Any, low: Any, high: Any,
    log_std_min: float, log_std_max: float, epsilon: float, with_saved: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    op = "tanh_normal_sample"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, tuple(m.shape), "mean")
    given = None if noise is None else load_matrix(noise, f"{op}: noise", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    eps = _heads.normals(state, m.shape[0] * m.shape[1]).reshape(m.shape) if given is None else given
    xp = _heads.module_of(m)
    with np.errstate(all="ignore"):
        s = _clamp(s, log_std_min, log_std_max, mean)
        d = xp.clip(xp.exp(s), None, _LARGEST) * eps
        u = xp.clip(m + d, -_LARGEST, _LARGEST) + (0.0 * m + 0.0 * s + 0.0 * eps)
        t, slope, log_slope = _squash(u)
        action = xp.clip(bounds.bias + bounds.scale * t, bounds.low, bounds.high)
        log_prob = (
            -0.5 * eps**2 - s - _HALF_LOG_2PI - _log_width(bounds.scale * slope, log_slope, bounds, epsilon)
        ).sum(1)
        largest = largest_kept(mean)
        kept = xp.clip(xp.stack((u, d)), -largest, largest)
        saved = _heads.hand_back(kept, mean, _saved_dtype(mean)) if with_saved else None
        return _heads.hand_back(action, mean), _heads.hand_back(log_prob, mean), saved


def _sample_backward(
    saved: Any, log_std: Any, grad_action: Any, grad_log_prob: Any, low: Any, high: Any,
    log_std_min: float, log_std_max: float, epsilon: float, want_mean: bool, want_log_std: bool,
) -> tuple[Any, Any]:  # fmt: skip
    op = "tanh_normal_sample_backward"
    kept, s, ga = load_saved(op, saved, log_std, grad_action)
    u, d = kept[0], kept[1]
    shape = tuple(u.shape)
    gl = load_row_grad(grad_log_prob, f"{op}: grad_log_prob", log_std, "log_std", shape[0])
    bounds = Bounds(op, low, high, log_std, shape[1])
    with np.errstate(all="ignore"):
        t, slope, _ = _squash(u)
        share = bounds.scale * slope / (bounds.scale * slope + epsilon) if epsilon else 1.0
        g_mean = ga * bounds.scale * slope + gl * (2.0 * t * share)
        g_log_std = g_mean * d - gl
        return (
            _heads.hand_back(g_mean, log_std) if want_mean else None,
            _log_std_grad(g_log_std, s, log_std_min, log_std_max, log_std) if want_log_std else None,
        )


def _standardize(
    op: str, mean: Any, log_std: Any, action: Any, low: Any, high: Any, log_std_min: float, log_std_max: float
) -> Any:
    """log_std as given and clamped, bounds; x, scale (1 - x^2) and log(1 - x^2); z and 1 / sigma."""
    m = load_mean(mean, f"{op}: mean")
    given = load_log_std(log_std, f"{op}: log_std", mean, tuple(m.shape), "mean")
    a = load_matrix(action, f"{op}: action", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    xp = _heads.module_of(m)
    with np.errstate(all="ignore"):
        s = _clamp(given, log_std_min, log_std_max, mean)
        poison = 0.0 * m + 0.0 * s + 0.0 * a
        first_in, last_in = bounds.inside(mean)
        a = xp.where(a < first_in, first_in, xp.where(a > last_in, last_in, a))
        x = (a - bounds.bias) / bounds.scale
        distance = xp.minimum(a - bounds.low, bounds.high - a)  # to the nearer bound
        near = distance / bounds.scale  # 1 - |x|; where it is tiny, |x| is 1
        far = math.log(2.0) + bounds.log_scale - xp.log(distance)
        two_u = xp.where(near > TINY, xp.log1p(2.0 * abs(x) / near), far)
        log_slope = 2.0 * xp.log1p(abs(x)) - two_u
        inverse = xp.exp(-xp.clip(s, MIN_LOG_STD, None))
        z = (xp.copysign(0.5 * two_u, x) - m) * inverse + poison
        return given, s, bounds, x, distance * (1.0 + abs(x)), log_slope, z, inverse


def _log_prob(
    mean: Any, log_std: Any, action: Any, low: Any, high: Any, log_std_min: float, log_std_max: float, epsilon: float
) -> Any:
    _, s, bounds, _, width, log_slope, z, _ = _standardize(
        "tanh_normal_log_prob", mean, log_std, action, low, high, log_std_min, log_std_max
    )
    with np.errstate(all="ignore"):
        log_prob = (-0.5 * z**2 - s - _HALF_LOG_2PI - _log_width(width, log_slope, bounds, epsilon)).sum(1)
        return _heads.hand_back(log_prob, mean)


def _log_prob_backward(
    mean: Any, log_std: Any, action: Any, grad_log_prob: Any, low: Any, high: Any,
    log_std_min: float, log_std_max: float, epsilon: float, want_mean: bool, want_log_std: bool, want_action: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    op = "tanh_normal_log_prob_backward"
    given, _, _, x, width, _, z, inverse = _standardize(op, mean, log_std, action, low, high, log_std_min, log_std_max)
    gl = load_row_grad(grad_log_prob, f"{op}: grad_log_prob", mean, "mean", len(z))
    with np.errstate(all="ignore"):
        g_mean = _bounded(gl, z * inverse, mean)
        g_log_std = _bounded(gl, z**2 - 1.0, mean)
        share = width / (width + epsilon) if epsilon else 1.0
        g_action = _bounded(gl, (2.0 * x * share - z * inverse) / width, mean)
        return (
            _heads.hand_back(g_mean, mean) if want_mean else None,
            _log_std_grad(g_log_std, given, log_std_min, log_std_max, log_std) if want_log_std else None,
            _heads.hand_back(g_action, mean) if want_action else None,
        )


def largest_of(first: Any, xp: Any) -> float:
    """The largest number of the dtype of `first`."""
    return float(xp.finfo(getattr(xp, str(first.dtype).removeprefix("torch."))).max)


def largest_kept(first: Any) -> float:
    """The largest number of the dtype in which u and e^log_std eps are kept for the gradient."""
    return _LARGEST if str(first.dtype).endswith("float64") else float(np.finfo(np.float32).max)


def _bounded(grad: Any, derivative: Any, first: Any) -> Any:
    """The upstream gradient times a derivative, as a finite number of the dtype of `first`; NaN stays NaN."""
    xp = _heads.module_of(derivative)
    largest = largest_of(first, xp)
    return xp.clip(grad * xp.clip(derivative, -_LARGEST, _LARGEST), -largest, largest)


def _mode(mean: Any, low: Any, high: Any) -> Any:
    m = load_mean(mean, "tanh_normal_mode: mean")
    bounds = Bounds("tanh_normal_mode", low, high, mean, m.shape[1])
    xp = _heads.module_of(m)
    with np.errstate(all="ignore"):
        t = xp.tanh(m + 0.0 * m)
        return _heads.hand_back(xp.clip(bounds.bias + bounds.scale * t, bounds.low, bounds.high), mean)


def _mode_backward(mean: Any, grad_action: Any, low: Any, high: Any) -> Any:
    op = "tanh_normal_mode_backward"
    m = load_mean(mean, f"{op}: mean")
    ga = load_matrix(grad_action, f"{op}: grad_action", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    with np.errstate(all="ignore"):
        return _heads.hand_back(ga * bounds.scale * _squash(m + 0.0 * m)[1], mean)


# ---- backends ----------------------------------------------------------------------------------------------------

reference = SimpleNamespace(
    tanh_normal_sample=_sample,
    tanh_normal_sample_backward=_sample_backward,
    tanh_normal_log_prob=_log_prob,
    tanh_normal_log_prob_backward=_log_prob_backward,
    tanh_normal_mode=_mode,
    tanh_normal_mode_backward=_mode_backward,
)


@functools.cache
def _cpu() -> Any:
    """What serves CPU arrays; Numba is imported when it is first needed."""
    if _backend.CPU_BACKEND == "cpp":
        return _backend._C
    if _backend.CPU_BACKEND == "numba":
        from fastrl.kernels._numba import tanh_normal

        return tanh_normal
    return reference


@functools.cache  # at the first call, because it imports torch
def _cuda() -> Any:
    return _backend._C_cuda if _backend.cuda_backend()[0] == "cuda" else reference


def kernels_for(mean: Any) -> Any:
    """The kernels of a backend: functions of the names, arguments and errors of those in `reference`."""
    return _cuda() if getattr(mean, "is_cuda", False) else _cpu()
