"""Gather rows of several arrays by one list of indices, in one threaded call: what a replay buffer samples with."""

from __future__ import annotations

from typing import Any

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose
from fastrl.kernels.gather_rows import reference

backend = choose(__package__)


def gather_rows(arrays: Any, indices: Any, *, out: Any = None) -> Any:
    """out[a][b] = arrays[a][indices[b]] for every array a and b = 0 .. B-1.

    Args:
        arrays: one array [N, ...] or a list / tuple of them, of any dtype, any strides and each with its own N >= the
            largest index + 1: NumPy (memory-mapped ones too), torch CPU tensors or DLPack producers.  CUDA tensors,
            with indices beside them, are gathered on their GPU by torch; checking the indices waits for the device.
            While a CUDA graph is captured it is left out: in a replay an index out of range fails torch's assertion on
            the device, after which the process cannot use the GPU.
        indices: int64 / int32 array [B], each in [0, N).
        out: None, or C-contiguous array(s) of the shapes [B, ...] and the dtypes of `arrays`, of any of these kinds,
            written in place.  They must not share memory with `arrays`.

    Returns:
        `out`, or new arrays of the same kinds as `arrays`: one, or a list of them.

    Raises:
        IndexError: naming the first index out of range; nothing is written then.
        ValueError, TypeError: a wrong dtype, shape or kind of array.
    """
    first = arrays[0] if isinstance(arrays, (list, tuple)) and arrays else arrays
    found = backend.of(first).gather_rows(arrays, indices, out)
    if out is not None:
        _arrays.mark_written(out)
    return found


def gather_rows_reference(arrays: Any, indices: Any, *, out: Any = None) -> Any:
    """`gather_rows` by NumPy's take (or torch's index_select for CUDA tensors), on one thread."""
    first = arrays[0] if isinstance(arrays, (list, tuple)) and arrays else arrays
    if getattr(first, "is_cuda", False):
        from fastrl.kernels.gather_rows import _torch

        return _torch.gather_rows(arrays, indices, out)
    return reference.gather_rows(arrays, indices, out)
