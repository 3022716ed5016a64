"""The tanh-Gaussian head in NumPy, float64 inside; the same lines run on torch tensors for what is on a GPU."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.random.reference import normals

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_LARGEST = sys.float_info.max
TINY = 2.0**-1000  # below it a distance to a bound is no good divisor
MIN_LOG_STD = -709.0  # sigma of a given action is no smaller than its e^, so that no 0 is multiplied by infinity


def floats_of(first: Any) -> tuple[str, ...]:
    """The dtypes that an op takes where its first array is."""
    return (*_arrays.FLOATS, *_arrays.HALVES) if getattr(first, "is_cuda", False) else _arrays.FLOATS


def load_mean(mean: Any, where: str) -> Any:
    array = _arrays.load_on_device(mean, where, floats_of(mean))
    if array.ndim != 2:
        raise ValueError(f"{where} must have shape [B, A], got {tuple(array.shape)}")
    return _arrays.to_float64(array)


def load_matrix(obj: Any, where: str, first: Any, name: str) -> Any:
    array = _arrays.load_on_device(obj, where, floats_of(first), first, name, True)
    if tuple(array.shape) != tuple(first.shape):
        raise ValueError(f"{where} must have shape {tuple(first.shape)} like {name}, got {tuple(array.shape)}")
    return _arrays.to_float64(array)


def load_log_std(log_std: Any, where: str, first: Any, shape: tuple[int, ...], name: str) -> Any:
    """log_std for rows and columns of the shape of `first`, which is called `name`."""
    array = _arrays.load_on_device(log_std, where, floats_of(first), first, name, True)
    if tuple(array.shape) not in (shape, shape[1:]):
        raise ValueError(f"{where} must have shape {shape[1:]} or {shape} like {name}, got {tuple(array.shape)}")
    return _arrays.to_float64(array)


def load_row_grad(obj: Any, where: str, first: Any, name: str, rows: int) -> Any:
    """The gradient [B, 1] of a result [B], in float64; 0.0 for None."""
    if obj is None:
        return 0.0
    array = _arrays.load_on_device(obj, where, floats_of(first), first, name, True)
    if tuple(array.shape) != (rows,):
        raise ValueError(f"{where} must have shape ({rows},), got {tuple(array.shape)}")
    return _arrays.to_float64(array)[:, None]


def load_saved(op: str, saved: Any, log_std: Any, grad_action: Any) -> tuple[Any, Any, Any]:
    """What a forward pass kept, u and e^s eps as [2, B, A] in no less than float32; log_std; the gradient or 0.0."""
    s = _arrays.load_on_device(log_std, f"{op}: log_std", floats_of(log_std))
    half = str(s.dtype).endswith("float16")
    kept = _arrays.load_on_device(
        saved, f"{op}: saved", ("float32",) if half else _arrays.FLOATS, log_std, "log_std", not half
    )
    if kept.ndim != 3 or kept.shape[0] != 2:
        raise ValueError(f"{op}: saved must have shape [2, B, A], got {tuple(kept.shape)}")
    shape = tuple(kept.shape[1:])
    s = load_log_std(log_std, f"{op}: log_std", log_std, shape, "saved")
    ga: Any = 0.0
    if grad_action is not None:
        ga = _arrays.load_on_device(grad_action, f"{op}: grad_action", floats_of(log_std), log_std, "log_std", True)
        if tuple(ga.shape) != shape:
            raise ValueError(f"{op}: grad_action must have shape {shape} like saved, got {tuple(ga.shape)}")
        ga = _arrays.to_float64(ga)
    return _arrays.to_float64(kept), s, ga


def rounded(number: float, first: Any) -> float:
    """In the dtype of `first`."""
    dtype = _arrays.dtype_name(first)
    if dtype == "bfloat16":
        torch = _arrays.module_of(first)
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
            self.log_scale = _arrays.module_of(self.scale).log(self.scale)

    @staticmethod
    def _load(bound: Any, where: str, first: Any, columns: int) -> Any:
        if _arrays.is_number(bound):
            number = rounded(_arrays.to_float(bound), first)
            if getattr(first, "is_cuda", False):
                torch = _arrays.module_of(first)
                return torch.full((columns,), number, dtype=torch.float64, device=first.device)
            return np.full(columns, number)
        if not (isinstance(bound, np.ndarray) or hasattr(type(bound), "__dlpack__")):
            raise TypeError(f"{where} must be a number or an array, got {type(bound).__name__}")
        array = _arrays.load_on_device(bound, where, floats_of(first), first, "mean", True)
        if tuple(array.shape) != (columns,):
            raise ValueError(f"{where} must have shape ({columns},), got {tuple(array.shape)}")
        return _arrays.to_float64(array)

    def inside(self, first: Any) -> tuple[Any, Any]:
        """The first and the last number inside, of the dtype of `first`, in float64."""
        xp = _arrays.module_of(self.low)
        dtype = getattr(xp, _arrays.dtype_name(first))
        low, high = xp.asarray(self.low, dtype=dtype), xp.asarray(self.high, dtype=dtype)
        return _arrays.to_float64(_next(low, high)), _arrays.to_float64(_next(high, low))


def _next(x: Any, towards: Any) -> Any:
    """nextafter; torch has none for float16."""
    xp = _arrays.module_of(x)
    if str(x.dtype) != "torch.float16":
        return xp.nextafter(x, towards)
    bits = xp.where((x > 0) == (towards > x), 1, -1).to(xp.int16) + x.view(xp.int16)
    smallest = xp.where(towards > x, 2.0**-24, -(2.0**-24)).to(x.dtype)
    return xp.where(x == 0, smallest, bits.view(x.dtype))


def _clamp(log_std: Any, low: float, high: float, first: Any) -> Any:
    """NaN stays."""
    return _arrays.module_of(log_std).clip(log_std, rounded(low, first), rounded(high, first))


def _squash(u: Any) -> tuple[Any, Any, Any]:
    """tanh u, 1 - tanh^2 u and log(1 - tanh^2 u)."""
    xp = _arrays.module_of(u)
    w = xp.exp(-2.0 * abs(u))
    return xp.tanh(u), 4.0 * w / (1.0 + w) ** 2, 2.0 * (math.log(2.0) - abs(u) - xp.log1p(w))


def _log_width(width: Any, log_slope: Any, bounds: Bounds, epsilon: float) -> Any:
    """log(scale (1 - t^2)), or with epsilon added, from scale (1 - t^2) and log(1 - t^2)."""
    if epsilon == 0.0:
        return bounds.log_scale + log_slope
    return _arrays.module_of(width).log(width + epsilon)


def _saved_dtype(first: Any) -> str:
    return "float32" if str(first.dtype).endswith("float16") else ""


def _log_std_grad(grad: Any, s: Any, low: float, high: float, log_std: Any) -> Any:
    """From that of the clamped one: 0 where log_std, `s` in float64, is outside, and summed over b where it is [A]."""
    outside = (s < rounded(low, log_std)) | (s > rounded(high, log_std))
    grad = _arrays.module_of(grad).where(outside, 0.0, grad)
    return _arrays.hand_back(grad.sum(0) if s.ndim == 1 else grad, log_std)


def tanh_normal_sample(
    mean: Any, log_std: Any, noise: Any, state: Any, low: Any, high: Any,
    log_std_min: float, log_std_max: float, epsilon: float, with_saved: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    op = "tanh_normal_sample"
    m = load_mean(mean, f"{op}: mean")
    s = load_log_std(log_std, f"{op}: log_std", mean, tuple(m.shape), "mean")
    given = None if noise is None else load_matrix(noise, f"{op}: noise", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    eps = normals(state, m.shape[0] * m.shape[1]).reshape(m.shape) if given is None else given
    xp = _arrays.module_of(m)
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
        saved = _arrays.hand_back(kept, mean, _saved_dtype(mean)) if with_saved else None
        return _arrays.hand_back(action, mean), _arrays.hand_back(log_prob, mean), saved


def tanh_normal_sample_backward(
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
            _arrays.hand_back(g_mean, log_std) if want_mean else None,
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
    xp = _arrays.module_of(m)
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


def tanh_normal_log_prob(
    mean: Any, log_std: Any, action: Any, low: Any, high: Any, log_std_min: float, log_std_max: float, epsilon: float
) -> Any:
    _, s, bounds, _, width, log_slope, z, _ = _standardize(
        "tanh_normal_log_prob", mean, log_std, action, low, high, log_std_min, log_std_max
    )
    with np.errstate(all="ignore"):
        log_prob = (-0.5 * z**2 - s - _HALF_LOG_2PI - _log_width(width, log_slope, bounds, epsilon)).sum(1)
        return _arrays.hand_back(log_prob, mean)


def tanh_normal_log_prob_backward(
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
            _arrays.hand_back(g_mean, mean) if want_mean else None,
            _log_std_grad(g_log_std, given, log_std_min, log_std_max, log_std) if want_log_std else None,
            _arrays.hand_back(g_action, mean) if want_action else None,
        )


def largest_of(first: Any, xp: Any) -> float:
    """The largest number of the dtype of `first`."""
    return float(xp.finfo(getattr(xp, _arrays.dtype_name(first))).max)


def largest_kept(first: Any) -> float:
    """The largest number of the dtype in which u and e^log_std eps are kept for the gradient."""
    return _LARGEST if str(first.dtype).endswith("float64") else float(np.finfo(np.float32).max)


def _bounded(grad: Any, derivative: Any, first: Any) -> Any:
    """The upstream gradient times a derivative, as a finite number of the dtype of `first`; NaN stays NaN."""
    xp = _arrays.module_of(derivative)
    largest = largest_of(first, xp)
    return xp.clip(grad * xp.clip(derivative, -_LARGEST, _LARGEST), -largest, largest)


def tanh_normal_mode(mean: Any, low: Any, high: Any) -> Any:
    m = load_mean(mean, "tanh_normal_mode: mean")
    bounds = Bounds("tanh_normal_mode", low, high, mean, m.shape[1])
    xp = _arrays.module_of(m)
    with np.errstate(all="ignore"):
        t = xp.tanh(m + 0.0 * m)
        return _arrays.hand_back(xp.clip(bounds.bias + bounds.scale * t, bounds.low, bounds.high), mean)


def tanh_normal_mode_backward(mean: Any, grad_action: Any, low: Any, high: Any) -> Any:
    op = "tanh_normal_mode_backward"
    m = load_mean(mean, f"{op}: mean")
    ga = load_matrix(grad_action, f"{op}: grad_action", mean, "mean")
    bounds = Bounds(op, low, high, mean, m.shape[1])
    with np.errstate(all="ignore"):
        return _arrays.hand_back(ga * bounds.scale * _squash(m + 0.0 * m)[1], mean)


__all__ = [
    "tanh_normal_log_prob",
    "tanh_normal_log_prob_backward",
    "tanh_normal_mode",
    "tanh_normal_mode_backward",
    "tanh_normal_sample",
    "tanh_normal_sample_backward",
]
