"""The arguments of the public functions: bounds of another kind, limits and the form of the correction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.tanh_normal.reference import rounded

UNLIMITED = (-math.inf, math.inf, 0.0)


def bounds_like(op: str, low: Any, high: Any, mean: Any) -> tuple[Any, Any]:
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
        return _arrays.torch().as_tensor(bound).to(mean.device, mean.dtype)
    if bound.dtype.kind not in "fiu":
        raise TypeError(f"{where} must be a number or an array of numbers, got dtype {bound.dtype}")
    if _arrays.is_tensor(mean):
        return _arrays.torch().tensor(bound, dtype=mean.dtype, device=mean.device)
    dtype = _arrays.dtype_name(mean)
    return _arrays.like(bound.astype(dtype, copy=False), mean) if dtype in _arrays.FLOATS else bound


def bounds_in_float32(low: Any, high: Any, mean: Any) -> dict[str, Any]:
    """Bounds that are in the dtype of `mean`, which is a half, in float32."""
    return {
        name: rounded(_arrays.to_float(x), mean) if _arrays.is_number(x) else _arrays.to_float32(x)
        for name, x in (("low", low), ("high", high))
    }


def _number(value: Any, where: str) -> float:
    if not _arrays.is_number(value):
        raise TypeError(f"{where} must be a number, got {type(value).__name__}")
    return _arrays.to_float(value)


def limits_of(
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
