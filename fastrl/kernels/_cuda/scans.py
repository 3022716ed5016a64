"""The scans on a GPU: the compiled kernels of csrc/scans/cuda.cu, or torch operations (`TorchScans`)."""

from __future__ import annotations

import functools
from typing import Any

import torch

from fastrl import _backend
from fastrl.kernels import _arrays, scans
from fastrl.kernels.scans import Call, ReferenceScans


class TorchCall(Call):
    """`Call` with torch tensors, on the device of the first one."""

    xp = torch

    def load(self, name: str, obj: Any, dtypes: tuple[str, ...]) -> Any:
        if dtypes == scans.FLOATS:
            dtypes = (*scans.FLOATS, "float16", "bfloat16")
        return _arrays.load_tensor(obj, f"{self.op}: {name}", dtypes, self.first, self.first_name)

    def like(self, result: Any) -> Any:
        return result.contiguous()

    def cast(self, array: Any, dtype: str) -> Any:
        return array.to(getattr(torch, dtype))

    def overlap(self, x: Any, y: Any) -> bool:
        return _arrays.tensors_overlap(x, y)

    def full(self, value: Any) -> Any:
        dtype = torch.bool if isinstance(value, bool) else torch.float64
        return torch.full((self.T, self.N), value, dtype=dtype, device=self.first.device)

    def number(self, name: str, value: Any, high: float = 1.0) -> Any:
        # A tensor, because torch makes float32 of a Python number times a bool tensor.
        x = super().number(name, value, high)
        return torch.full((), x, dtype=torch.float64, device=self.first.device)


class TorchScans(ReferenceScans):
    """`ReferenceScans` on torch tensors, on any one device.  Checking uint8 flags waits for a GPU."""

    call = TorchCall


@functools.cache
def backend() -> Any:
    """What serves CUDA tensors: the extension `fastrl._C_cuda`, or `TorchScans` where it cannot."""
    if _backend.cuda_backend()[0] == "cuda" and hasattr(_backend._C_cuda, "gae"):
        return _backend._C_cuda
    return TorchScans()
