"""n_step_gather for torch.compile, and with torch operations on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.autograd import detached, into, register
from fastrl.kernels._core.backends import choose
from fastrl.kernels.n_step_gather.reference import ReferenceGather

backend = choose(__package__)


class TorchGather(ReferenceGather):
    """The same with torch operations, on any one device.  Checking indices and flags waits for the device."""

    xp = torch

    def _load(self, name: str, obj: Any, dtypes: tuple[str, ...]) -> Any:
        if name == "rewards":
            self._rewards = obj
        if dtypes == _arrays.FLOATS and self._rewards.is_cuda:
            dtypes = (*_arrays.FLOATS, *_arrays.HALVES)
        return _arrays.load_tensor(obj, f"n_step_gather: {name}", dtypes, self._rewards, "rewards")

    def _dtype(self, array: Any) -> str:
        return _arrays.dtype_name(array)

    def _cast(self, array: Any, dtype: str) -> Any:
        return array.to(getattr(self.xp, dtype))

    def _full(self, n: int, value: int, like: Any) -> Any:
        return self.xp.full((n,), value, device=self._rewards.device)

    def _out(self, array: Any, like: Any) -> Any:
        return array


def _gather(*arguments: Any) -> Any:
    return TorchGather()(*arguments)  # one a call, because it keeps the call's rewards


fallback = SimpleNamespace(n_step_gather=_gather)


def _n_step_gather(
    rewards: Tensor, terminated: Tensor, truncated: Tensor | None, indices: Tensor, cursor: Tensor | None,
    size: Tensor | None,
    one_cursor: int, one_size: int, gamma: float, n: int, next_values: Tensor | None, cut: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor, Tensor] = backend.of(rewards).n_step_gather(
        rewards, terminated, truncated, indices, one_cursor if cursor is None else cursor,
        one_size if size is None else size, gamma, n, next_values, cut, None,
    )  # fmt: skip
    return found


_n_step_gather_op = register(
    _n_step_gather,
    lambda rewards, terminated, truncated, indices, *_: (
        rewards.new_empty(indices.shape),
        rewards.new_empty(indices.shape),
        rewards.new_empty(indices.shape, dtype=torch.int64),
    ),
)


def n_step_gather(
    rewards: Tensor, terminated: Tensor, truncated: Tensor | None, indices: Tensor, cursor: Any, size: Any,
    gamma: float,
    n: int, next_values: Tensor | None, cut: Tensor | None, out: Any,
) -> Any:  # fmt: skip
    """`cursor` and `size` are each an int or a tensor: two arguments of the op, for a schema has one type for each."""
    tensors = [x if isinstance(x, Tensor) else None for x in (cursor, size)]
    ints = [0 if isinstance(x, Tensor) else x for x in (cursor, size)]
    arrays = detached((rewards, terminated, truncated, indices, *tensors))
    found = _n_step_gather_op(*arrays, *ints, gamma, n, *detached((next_values, cut)))
    return into(out, found, "n_step_gather", "")
