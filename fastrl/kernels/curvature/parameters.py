"""The parameters of a product as one flat vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastrl.kernels._core import arrays as _arrays

if TYPE_CHECKING:
    pass


def import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            'curvature products need PyTorch; to install: pip install "fastrl-kernels[torch]"'
        ) from error
    return torch


class Parameters:
    """The parameters as one vector: their places in it, and the checks of a vector given for it."""

    def __init__(self, parameters: Any, op: str) -> None:
        torch = import_torch()
        if isinstance(parameters, torch.Tensor):
            parameters = [parameters]
        elif isinstance(parameters, torch.nn.Module):
            parameters = [p for p in parameters.parameters() if p.requires_grad]
        elif not isinstance(parameters, Iterable):
            raise TypeError(f"{op}: params must be tensors, got {type(parameters).__name__}")
        self.op = op
        self.tensors: list[Any] = list(parameters)
        if not self.tensors:
            raise ValueError(f"{op}: params must name at least one tensor that requires a gradient, got none")
        for i, p in enumerate(self.tensors):
            if not isinstance(p, torch.Tensor):
                raise TypeError(f"{op}: params[{i}] must be a torch.Tensor, got {type(p).__name__}")
            if not p.requires_grad:
                raise ValueError(f"{op}: params[{i}] must require a gradient")
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{op}: params[{i}] must have dtype float32 or float64, got {_arrays.dtype_name(p)}")
            first = self.tensors[0]
            if (p.dtype, p.device) != (first.dtype, first.device):
                raise ValueError(
                    f"{op}: params[{i}] must be {_arrays.dtype_name(first)} on {first.device} like params[0], "
                    f"got {_arrays.dtype_name(p)} on {p.device}"
                )
        if len({id(p) for p in self.tensors}) < len(self.tensors):
            raise ValueError(f"{op}: params must not name a tensor twice")
        self.dtype, self.device = self.tensors[0].dtype, self.tensors[0].device
        self.sizes = [p.numel() for p in self.tensors]
        self.n = sum(self.sizes)

    def check(self, v: Any) -> Any:
        """`v`, detached and contiguous."""
        torch = _arrays.torch()
        if not isinstance(v, torch.Tensor):
            raise TypeError(f"{self.op}: v must be a torch.Tensor, got {type(v).__name__}")
        if v.dim() != 1 or v.shape[0] != self.n:
            raise ValueError(f"{self.op}: v must have shape ({self.n},), got {tuple(v.shape)}")
        if v.dtype != self.dtype:
            raise ValueError(
                f"{self.op}: v must have dtype {_arrays.dtype_name(self)} like the parameters, "
                f"got {_arrays.dtype_name(v)}"
            )
        if v.device != self.device:
            raise ValueError(f"{self.op}: v must be on {self.device} like the parameters, got {v.device}")
        return v.detach().contiguous()

    def split(self, vector: Any) -> list[Any]:
        """Views of a flat vector, of the parameters' shapes."""
        return [part.view(p.shape) for part, p in zip(vector.split(self.sizes), self.tensors, strict=True)]

    def join(self, parts: Sequence[Any]) -> Any:
        """The flat vector of gradients of which some may be None, for 0."""
        torch = _arrays.torch()
        flat = [
            p.detach().new_zeros(p.numel()) if part is None else part.detach().reshape(-1)
            for part, p in zip(parts, self.tensors, strict=True)
        ]
        return torch.cat(flat)
