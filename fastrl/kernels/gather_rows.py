"""Gather rows of several arrays by one list of indices, in one threaded call: what a replay buffer samples with."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastrl import _backend
from fastrl.kernels import _arrays


def gather_rows(arrays: Any, indices: Any, *, out: Any = None) -> Any:
    """out[a][b] = arrays[a][indices[b]] for every array a and b = 0 .. B-1.

    Args:
        arrays: one array [N, ...] or a list / tuple of them, of any dtype, any strides and each with its own N >= the
            largest index + 1: NumPy (memory-mapped ones too), torch CPU tensors or DLPack producers.  CUDA tensors,
            with indices beside them, are gathered on their GPU by torch; checking the indices waits for the device.
        indices: int64 / int32 array [B], each in [0, N).
        out: None, or C-contiguous array(s) of the shapes [B, ...] and the dtypes of `arrays`, of any of these kinds,
            written in place.  They must not share memory with `arrays`.

    Returns:
        `out`, or new arrays of the same kinds as `arrays`: one, or a list of them.

    Raises:
        IndexError: naming the first index out of range; nothing is written then.
        ValueError, TypeError: a wrong dtype, shape or kind of array.
    """
    found = _gather_rows(arrays, indices, out)
    if out is not None:
        _arrays.mark_written(out)
    return found


def gather_rows_reference(arrays: Any, indices: Any, *, out: Any = None) -> Any:
    """`gather_rows` by NumPy's take (or torch's index_select for CUDA tensors), on one thread."""
    return _gather_python(arrays, indices, out)


def _gather_python(arrays: Any, indices: Any, out: Any) -> Any:
    single = not isinstance(arrays, (list, tuple))
    sources = [arrays] if single else list(arrays)
    if out is None:
        outs = None
    elif single:
        outs = [out]
    elif isinstance(out, (list, tuple)) and len(out) == len(sources):
        outs = list(out)
    else:
        what = f"{len(out)} arrays" if isinstance(out, (list, tuple)) else type(out).__name__
        raise ValueError(f"gather_rows: out must be {len(sources)} arrays like arrays, got {what}")
    if sources and all(_arrays.is_tensor(s) and s.is_cuda for s in sources):
        found = _gather_cuda(sys.modules["torch"], sources, indices, outs)
        return out if outs is not None else found[0] if single else found
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


def _gather_cuda(torch: Any, sources: list[Any], index: Any, outs: list[Any] | None) -> list[Any]:
    device = sources[0].device
    if not isinstance(index, torch.Tensor) or index.device != device:
        got = index.device if isinstance(index, torch.Tensor) else type(index).__name__
        raise ValueError(f"gather_rows: indices must be a tensor on {device} like arrays, got {got}")
    if index.dtype not in (torch.int64, torch.int32) or index.ndim != 1:
        raise ValueError(f"gather_rows: indices must be int64 or int32 [B], got {index.dtype} {tuple(index.shape)}")
    for source, target in zip(sources, outs or (), strict=bool(outs)):
        shape = (len(index), *source.shape[1:])
        if target.shape != shape or target.dtype != source.dtype or target.device != device:
            raise ValueError(
                f"gather_rows: out must be {source.dtype} {shape} on {device}, got {target.dtype} "
                f"{tuple(target.shape)} on {target.device}"
            )
    rows = min(len(source) for source in sources)
    bad = (index < 0) | (index >= rows)
    if bool(bad.any()):  # waits for the device: an index out of range there would end the process's use of it
        i = int(bad.to(torch.int8).argmax())
        raise IndexError(f"gather_rows: indices[{i}] is {int(index[i])}, outside [0, {rows})")
    found = [torch.index_select(source, 0, index) for source in sources]
    for target, value in zip(outs or (), found, strict=bool(outs)):
        target.copy_(value)
    return found


def _gather_cpp(arrays: Any, indices: Any, out: Any) -> Any:
    first = arrays[0] if isinstance(arrays, (list, tuple)) and arrays else arrays
    if getattr(first, "is_cuda", False):
        return _gather_python(arrays, indices, out)
    return _backend._C.gather_rows(arrays, indices, out)


# Without the extension NumPy's own compiled take serves, also where Numba is installed: a Numba loop does not beat it.
_gather_rows = _gather_cpp if _backend.CPU_BACKEND == "cpp" else _gather_python
