"""The vector work of an iteration in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays

OP = "conjugate_gradient"
# What a step says; a solve that is still running when its iterations are used up ends with MAX_ITER.
RUNNING, CONVERGED, MAX_ITER, NEGATIVE_CURVATURE, BREAKDOWN = range(5)


def load_like(obj: Any, name: str, b: Any, op: str = OP) -> Any:
    """An array of the kind, device, dtype and shape of b; a NumPy view of it on CPU."""
    where = f"{op}: {name}"
    array = _arrays.load_on_device(obj, where, _arrays.FLOATS, b, "b", same_dtype=True)
    if tuple(array.shape) != tuple(b.shape):
        raise ValueError(f"{where} must have shape {tuple(b.shape)} like b, got {tuple(array.shape)}")
    return array


def dot(u: Any, v: Any) -> float:
    with np.errstate(all="ignore"):
        return float(np.dot(u.astype(np.float64, copy=False), v.astype(np.float64, copy=False)))


def view(array: Any) -> Any:
    return _arrays.load(array, OP)


def _damped(z: Any, p: Any, damping: float) -> Any:
    return z.astype(np.float64) + damping * p.astype(np.float64)


def cg_start(b: Any, x: Any, z: Any, inverse: Any, damping: float, r: Any, p: Any) -> tuple[float, float, float]:
    """r = b - (z + damping x), or b where z is None; p = inverse * r, or r.  Returns b.b, r.r and r.p."""
    if z is not None:
        z = load_like(z, "the result of matvec", b)
    right, start, residual, direction = view(b), view(x), view(r), view(p)
    with np.errstate(all="ignore"):
        residual[:] = right if z is None else right - _damped(z, start, damping)
        direction[:] = residual if inverse is None else residual * view(inverse)
    return dot(right, right), dot(residual, residual), dot(residual, direction)


def cg_step(
    x: Any,
    x_next: Any,
    r: Any,
    r_next: Any,
    p: Any,
    z: Any,
    inverse: Any,
    damping: float,
    rz: float,
    target: float,
    fused: bool,
) -> tuple[int, float, float]:
    """One iteration after its product z: x_next and r_next, and if `fused` the next p.  Returns a code, r.r and r.y.

    x and r stay, and p does where there is no next iteration.
    """
    z = load_like(z, "the result of matvec", r)
    now, following, residual, direction = view(x), view(x_next), view(r_next), view(p)
    with np.errstate(all="ignore"):
        damped = _damped(z, direction, damping)
        curvature = dot(direction, damped)
        if not -math.inf < curvature < math.inf:
            return BREAKDOWN, 0.0, 0.0
        if curvature <= 0:
            return NEGATIVE_CURVATURE, 0.0, 0.0
        alpha = rz / curvature
        following[:] = now + alpha * direction.astype(np.float64)
        residual[:] = view(r) - alpha * damped
        y = residual if inverse is None else residual * view(inverse)
        rr, rz_next = dot(residual, residual), dot(residual, y)
        if not (rr < math.inf and np.isfinite(following).all()):
            return BREAKDOWN, 0.0, 0.0
        if rr <= target:
            return CONVERGED, rr, rz_next
        if fused:
            direction[:] = y + (rz_next / rz) * direction.astype(np.float64)
    return RUNNING, rr, rz_next


def cg_direction(y: Any, r: Any, p: Any, rz: float) -> float:
    """p = y + beta p, beta = r.y / rz (0 if rz is 0).  Returns r.y."""
    y = load_like(y, "the result of preconditioner", r)
    residual, direction = view(r), view(p)
    rz_next = dot(residual, y)
    with np.errstate(all="ignore"):
        direction[:] = y if rz == 0 else y + (rz_next / rz) * direction.astype(np.float64)
    return rz_next


__all__ = ["cg_direction", "cg_start", "cg_step"]
