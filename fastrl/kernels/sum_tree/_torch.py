"""The tree on torch operations, in GPU memory."""

from __future__ import annotations

from typing import Any

import torch

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.sum_tree.reference import ReferenceCore


class TorchCore(ReferenceCore):
    """`ReferenceCore` on torch tensors, on the device of `state` (the generator's int64 tensor [3]).

    It reads values back to check them, so it raises as a CPU tree does, and cannot be captured in a CUDA graph.
    """

    xp = torch

    def __init__(self, capacity: int, dtype: str, state: torch.Tensor, tensor_type: Any = None) -> None:
        self.device = state.device  # before the buffers are made
        super().__init__(capacity, dtype, state, tensor_type)

    def check(self) -> None:
        """Nothing waits to be raised."""

    def _full(self, n: int, value: float, dtype: Any) -> torch.Tensor:
        return torch.full((n,), value, dtype=dtype, device=self.device)

    def _load(self, obj: Any, where: str, dtypes: tuple[str, ...]) -> torch.Tensor:
        if not isinstance(obj, torch.Tensor):
            raise TypeError(f"{where} must be a torch tensor on {self.device}, got {type(obj).__name__}")
        if obj.device != self.device:
            raise ValueError(f"{where} must be on {self.device} like the tree, got {obj.device}")
        if obj.layout != torch.strided or type(obj).__name__ == "FakeTensor":
            raise ValueError(f"{where} has no data (a fake, meta or sparse tensor?)")
        name = _arrays.dtype_name(obj)
        if name not in dtypes:
            raise ValueError(f"{where} must have dtype {' or '.join(dtypes)}, got {name}")
        if obj.ndim != 1:
            raise ValueError(f"{where} must have shape [B], got {tuple(obj.shape)}")
        return obj.detach()

    def _out(self, array: Any, like: Any) -> Any:
        return array

    def _number(self, value: Any) -> torch.Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=self.device)

    def _store(self, indices: torch.Tensor, priorities: torch.Tensor) -> None:
        # torch writes duplicates in no fixed order, so each is given the value of its last one.
        ascending, order = torch.sort(indices, stable=True)
        last = order[torch.searchsorted(ascending, indices, right=True) - 1]
        self._levels[0][indices] = priorities[last]

    def priorities(self) -> Any:
        with self._lock:
            return self._levels[0][: self.capacity].cpu().numpy().copy()

    def load(self, priorities: Any) -> None:
        super().load(torch.from_numpy(priorities).to(self.device))


SumTreeCore = TorchCore
