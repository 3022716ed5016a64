"""gather_rows by NumPy's take, which is compiled: it serves where Numba is too, whose loop does not beat it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays


def lists_of(arrays: Any, out: Any) -> tuple[bool, list[Any], list[Any] | None]:
    """Whether it is one array, the arrays, and those to write to."""
    single = not isinstance(arrays, (list, tuple))
    sources = [arrays] if single else list(arrays)
    if out is None:
        return single, sources, None
    if single:
        return single, sources, [out]
    if isinstance(out, (list, tuple)) and len(out) == len(sources):
        return single, sources, list(out)
    what = f"{len(out)} arrays" if isinstance(out, (list, tuple)) else type(out).__name__
    raise ValueError(f"gather_rows: out must be {len(sources)} arrays like arrays, got {what}")


def gather_rows(arrays: Any, indices: Any, out: Any) -> Any:
    single, sources, outs = lists_of(arrays, out)
    index = _arrays.load(indices, "gather_rows: indices", ("int64", "int32"), (-1,))
    views = []
    for a, source in enumerate(sources):
        name = "arrays" if single else f"arrays[{a}]"
        view = _arrays.load(source, f"gather_rows: {name}")
        if view.ndim == 0:
            raise ValueError(f"gather_rows: {name} must have shape [N, ...], got ()")
        if view.dtype.hasobject:
            raise ValueError(f"gather_rows: {name} must have a dtype without Python objects, got {view.dtype}")
        views.append(view)
    targets: list[Any] = []
    if outs is not None:
        for a, (target, view) in enumerate(zip(outs, views, strict=True)):
            name = "out" if single else f"out[{a}]"
            loaded = _arrays.load(target, f"gather_rows: {name}")
            shape = (len(index), *view.shape[1:])
            if loaded.dtype != view.dtype:
                raise ValueError(f"gather_rows: {name} must have dtype {view.dtype} like its array, got {loaded.dtype}")
            if loaded.shape != shape:
                raise ValueError(f"gather_rows: {name} must have shape {shape}, got {loaded.shape}")
            if not loaded.flags.c_contiguous or not loaded.flags.writeable:
                raise ValueError(f"gather_rows: {name} must be C-contiguous and writable")
            if any(np.may_share_memory(loaded, view) for view in views):
                raise ValueError(f"gather_rows: {name} must not share memory with arrays")
            if any(np.may_share_memory(loaded, other) for other in targets):
                raise ValueError(f"gather_rows: {name} must not share memory with another out")
            targets.append(loaded)
    rows = min((len(view) for view in views), default=0)
    bad = (index < 0) | (index >= rows)
    if views and bad.any():
        i = int(np.nonzero(bad)[0][0])
        raise IndexError(f"gather_rows: indices[{i}] is {int(index[i])}, outside [0, {rows})")
    if outs is None:
        found = [_arrays.like(view.take(index, axis=0), s) for view, s in zip(views, sources, strict=True)]
        return found[0] if single else found
    for view, target in zip(views, targets, strict=True):
        target[...] = view.take(index, axis=0)
    return out


__all__ = ["gather_rows"]
