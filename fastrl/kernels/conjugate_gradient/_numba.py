"""Conjugate gradient's passes in Numba; arguments are checked as in the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels.conjugate_gradient.reference import (
    BREAKDOWN,
    CONVERGED,
    NEGATIVE_CURVATURE,
    RUNNING,
    load_like,
    view,
)

_NOTHING = {"float32": np.empty(0, np.float32), "float64": np.empty(0, np.float64)}


@njit(nogil=True, cache=True, error_model="numpy")
def _dot(u: Any, v: Any) -> float:
    total = 0.0
    for i in range(len(u)):
        total += np.float64(u[i]) * np.float64(v[i])
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def _residual(b: Any, x: Any, z: Any, damping: float, r: Any) -> None:
    for i in range(len(b)):
        r[i] = np.float64(b[i]) - (np.float64(z[i]) + damping * np.float64(x[i]))


@njit(nogil=True, cache=True, error_model="numpy")
def _curvature(p: Any, z: Any, damping: float) -> float:
    total = 0.0
    for i in range(len(p)):
        total += np.float64(p[i]) * (np.float64(z[i]) + damping * np.float64(p[i]))
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def _update(
    x: Any, x_next: Any, r: Any, r_next: Any, p: Any, z: Any, inverse: Any, damping: float, alpha: float
) -> tuple[float, float, bool]:
    rr = ry = 0.0
    finite = True
    for i in range(len(p)):
        direction = np.float64(p[i])
        x_next[i] = np.float64(x[i]) + alpha * direction
        r_next[i] = np.float64(r[i]) - alpha * (np.float64(z[i]) + damping * direction)
        finite &= math.isfinite(x_next[i])
        residual = np.float64(r_next[i])
        rr += residual * residual
        ry += residual * (residual * np.float64(inverse[i]) if len(inverse) else residual)
    return rr, ry, finite


@njit(nogil=True, cache=True, error_model="numpy")
def _next(y: Any, inverse: Any, beta: float, p: Any) -> None:
    for i in range(len(p)):
        value = np.float64(y[i]) * np.float64(inverse[i]) if len(inverse) else np.float64(y[i])
        p[i] = value + beta * np.float64(p[i])


def _scale(inverse: Any, b: Any) -> Any:
    return _NOTHING[str(b.dtype)] if inverse is None else view(inverse)


def cg_start(b: Any, x: Any, z: Any, inverse: Any, damping: float, r: Any, p: Any) -> tuple[float, float, float]:
    right, residual, direction = view(b), view(r), view(p)
    if z is None:
        residual[:] = right
    else:
        _residual(right, view(x), load_like(z, "the result of matvec", b), damping, residual)
    direction[:] = 0
    _next(residual, _scale(inverse, right), 0.0, direction)
    return _dot(right, right), _dot(residual, residual), _dot(residual, direction)


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
    z = load_like(z, "the result of matvec", r)
    residual, direction = view(r_next), view(p)
    curvature = _curvature(direction, z, damping)
    if not math.isfinite(curvature):
        return BREAKDOWN, 0.0, 0.0
    if curvature <= 0:
        return NEGATIVE_CURVATURE, 0.0, 0.0
    scale, alpha = _scale(inverse, residual), rz / curvature
    rr, ry, finite = _update(view(x), view(x_next), view(r), residual, direction, z, scale, damping, alpha)
    if not (finite and math.isfinite(rr)):
        return BREAKDOWN, 0.0, 0.0
    if rr <= target:
        return CONVERGED, rr, ry
    if fused:
        _next(residual, scale, ry / rz, direction)
    return RUNNING, rr, ry


def cg_direction(y: Any, r: Any, p: Any, rz: float) -> float:
    y = load_like(y, "the result of preconditioner", r)
    residual, direction = view(r), view(p)
    ry = float(_dot(residual, y))
    if rz == 0:
        direction[:] = y
    else:
        _next(y, _NOTHING[str(y.dtype)], ry / rz, direction)
    return ry
