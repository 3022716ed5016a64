"""CUDA tensors: torch's own multi-tensor kernel, after the checks of the reference."""

from __future__ import annotations

from typing import Any

import torch

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.adam.reference import ReferenceAdam, is_dense


class TorchAdam(ReferenceAdam):
    """CUDA tensors: torch's own multi-tensor kernel, after the same checks."""

    def _load(self, obj: Any, where: str, first: Any) -> Any:
        return _arrays.load_tensor(obj, where, _arrays.FLOATS, first, "params[0]")

    def _check_memory(self, array: Any, where: str, name: str, first: Any) -> None:
        if name == "steps":
            if array.dtype != torch.float32:  # torch's kernel reads no other
                raise ValueError(f"{where} must have dtype float32, got {_arrays.dtype_name(array)}")
        elif array.stride() != first.stride() or not is_dense(array):
            raise ValueError(f"{where} must have no gaps on CUDA, and one order of dimensions in all lists")

    def _rate(self, lr: Any, params: Any) -> Any:
        if not isinstance(lr, torch.Tensor) or not params:
            return super()._rate(lr, params)
        lr = self._load(lr, "adam_step: lr", params[0])
        if lr.ndim:
            raise ValueError(f"adam_step: lr must have shape (), got {tuple(lr.shape)}")
        return lr

    def _update_all(
        self, lists: dict[str, list[Any]], lr: Any, beta1: float, beta2: float, eps: float, decay: float
    ) -> None:
        torch._foreach_add_(lists["steps"], 1)
        for dtype in {p.dtype for p in lists["params"]}:  # a call takes one
            chosen = [[x for x, p in zip(arrays, lists["params"], strict=True) if p.dtype == dtype]
                      for arrays in lists.values()]  # fmt: skip
            _fused_adam(
                *chosen[:4], [], chosen[4], lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps,
                amsgrad=False, maximize=False,
            )  # fmt: skip


_fused_adam: Any = torch._fused_adam_  # torch's stub wants a list of a known length
fallback = TorchAdam()
