"""Rollouts whose axes come in another order than time, environment: views of them go through the same kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_AXES = {"TN": "[T, N]", "NT": "[N, T]", "TN1": "[T, N, 1]", "NT1": "[N, T, 1]"}


def call(op: Callable[..., Any], layout: Any, out: Any, **arguments: Any) -> Any:
    """``op(**arguments, out=out)``, of which all arrays and results are in `layout`."""
    name = op.__name__
    if not isinstance(layout, str) or layout not in _AXES:
        raise ValueError(f"{name}: layout must be one of {', '.join(_AXES)}, got {layout!r}")
    longer = layout.index("T") if arguments.get("next_values", 0) is None else None  # axis of T + 1 values
    shape: tuple[int, ...] | None = None
    for argument, x in arguments.items():
        shape = _check(f"{name}: {argument}", x, layout, shape, longer if argument == "values" else None)
    for i, x in enumerate(out) if isinstance(out, (tuple, list)) else [(None, out)]:
        _check(f"{name}: out" if i is None else f"{name}: out[{i}]", x, layout, shape, None)
    outs = tuple(_turned(x, layout) for x in out) if isinstance(out, (tuple, list)) else _turned(out, layout)
    found = op(**{argument: _turned(x, layout) for argument, x in arguments.items()}, out=outs)
    if out is not None:
        return out
    return tuple(_back(y, layout) for y in found) if isinstance(found, tuple) else _back(found, layout)


def _check(
    where: str, x: Any, layout: str, shape: tuple[int, ...] | None, longer: int | None
) -> tuple[int, ...] | None:
    """The shape of `x`, or else of rewards; what is no array is the kernel's to refuse."""
    if not getattr(x, "ndim", 0):
        return shape
    found = tuple(x.shape)
    if len(found) != len(layout) or (layout[-1] == "1" and found[-1] != 1):
        raise ValueError(f'{where} must have shape {_AXES[layout]}, which is layout="{layout}", got {found}')
    if shape is None or found == shape:
        return found
    if longer is not None and found == tuple(n + (axis == longer) for axis, n in enumerate(shape)):
        return shape
    raise ValueError(f"{where} must have shape {shape} like rewards, got {found}")


def _turned(x: Any, layout: str) -> Any:
    """[T, N], a view."""
    if getattr(x, "ndim", 0) != len(layout):
        return x
    x = x[..., 0] if layout[-1] == "1" else x
    return x.T if layout[0] == "N" else x


def _back(y: Any, layout: str) -> Any:
    """From [T, N], in one piece as other results are."""
    y = y.T if layout[0] == "N" else y
    y = y[..., None] if layout[-1] == "1" else y
    if isinstance(y, np.ndarray):
        return np.ascontiguousarray(y)
    return y.contiguous() if hasattr(y, "contiguous") else y
