"""gather_rows of CUDA tensors by torch's index_select."""

from __future__ import annotations

from typing import Any

import torch

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.gather_rows import reference


def gather_rows(arrays: Any, indices: Any, out: Any) -> Any:
    single, sources, outs = reference.lists_of(arrays, out)
    if not all(_arrays.is_tensor(s) and s.is_cuda for s in sources):
        return reference.gather_rows(arrays, indices, out)  # which says what is wrong
    found = _gather(sources, indices, outs)
    return out if outs is not None else found[0] if single else found


def _gather(sources: list[Any], index: Any, outs: list[Any] | None) -> list[Any]:
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
    if not torch.cuda.is_current_stream_capturing():
        bad = (index < 0) | (index >= rows)
        if bool(bad.any()):  # waits for the device: an index out of range there would end the process's use of it
            i = int(bad.to(torch.int8).argmax())
            raise IndexError(f"gather_rows: indices[{i}] is {int(index[i])}, outside [0, {rows})")
    found = [torch.index_select(source, 0, index) for source in sources]
    for target, value in zip(outs or (), found, strict=bool(outs)):
        target.copy_(value)
    return found
