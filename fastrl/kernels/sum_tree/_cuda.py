"""The tree in GPU memory on the compiled kernels, whose buffers torch owns."""

from __future__ import annotations

import itertools
import math
import numbers
from typing import Any

import torch

from fastrl import _backend
from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.sum_tree._torch import TorchCore
from fastrl.kernels.sum_tree.reference import MAX_PRIORITY, check_batch_size, check_normalize

# By CudaFlag (csrc/sum_tree/cuda.h).
_FLAGS: list[tuple[type[Exception], str]] = [
    (IndexError, "sum_tree.update: indices[{i}] is outside [0, {capacity})"),
    (ValueError, "sum_tree.update: priorities[{i}] must be finite and >= 0"),
    (ValueError, "sum_tree.update: priorities[{i}] must be at most {limit} in a {dtype} tree"),
    (IndexError, "sum_tree.update_from_td_errors: indices[{i}] is outside [0, {capacity})"),
    (ValueError, "sum_tree.update_from_td_errors: td_errors[{i}] must be finite"),
    (IndexError, "sum_tree.get: indices[{i}] is outside [0, {capacity})"),
    (ValueError, "sum_tree.find: prefix_sums[{i}] must be in [0, total]"),
    (ValueError, "sum_tree.find: the total priority is 0: nothing to sample"),
    (ValueError, "sum_tree.sample: the total priority is 0: nothing to sample"),
    (ValueError, "sum_tree.sample: batch_size must be at most the number of positive priorities, without replacement"),
    (ValueError, "sum_tree.sample_weighted: the total priority is 0: nothing to sample"),
]


class CudaCore(TorchCore):
    """The kernels of csrc/sum_tree on buffers that torch owns; what the host asks for is read from them by torch."""

    def __init__(self, capacity: int, dtype: str, state: torch.Tensor, tensor_type: Any = None) -> None:
        super().__init__(capacity, dtype, state, tensor_type)
        # All levels of a kind in one buffer; the lists hold views of it.
        widths = [len(level) for level in self._levels]
        flat = []
        for levels in (self._levels, self._mins, self._maxs):
            flat.append(torch.cat(levels[1:]))
            ends = itertools.accumulate(widths[1:])
            levels[1:] = [flat[-1][end - width : end] for end, width in zip(ends, widths[1:], strict=True)]
        self._flag = self._full(1, -1, torch.int64)
        winner, smallest = self._full(widths[0], -1, torch.int32), self._full(1, -1, torch.int64)
        self._kernels = _backend._C_cuda.SumTreeCore(
            capacity, widths, self._levels[0], *flat, winner, self._flag, smallest, state
        )

    def check(self) -> None:
        """Wait for the device, and raise the first bad item of the calls since the last check."""
        flag = int(self._flag)
        if flag == -1:
            return
        self._flag.fill_(-1)
        error, text = _FLAGS[flag & 15]
        limit = MAX_PRIORITY[self.dtype][1]
        raise error(text.format(i=flag >> 4, capacity=self.capacity, limit=limit, dtype=self.dtype))

    @property
    def total(self) -> float:
        self.check()
        return super().total

    @property
    def min(self) -> float:
        self.check()
        return super().min

    @property
    def max(self) -> float:
        self.check()
        return super().max

    def __len__(self) -> int:
        self.check()
        return super().__len__()

    def priorities(self) -> Any:
        self.check()
        return super().priorities()

    def get(self, indices: Any) -> Any:
        if not _arrays.is_number(indices, numbers.Integral):
            return self._kernels.get(indices)
        self.check()
        return super().get(indices)

    def find(self, prefix_sums: Any) -> Any:
        if not _arrays.is_number(prefix_sums, numbers.Real):
            return self._kernels.find(prefix_sums)
        self.check()
        return super().find(prefix_sums)

    def update(self, indices: Any, priorities: Any) -> None:
        # Python numbers are checked here and now.
        if _arrays.is_number(indices, numbers.Integral):
            indices = max(-(2**63), min(int(indices), 2**63 - 1))
            if not 0 <= indices < self.capacity:
                raise IndexError(f"sum_tree.update: indices[0] is {indices}, outside [0, {self.capacity})")
        if _arrays.is_number(priorities, numbers.Real):
            priorities = _arrays.to_float(priorities)
            limit, text = MAX_PRIORITY[self.dtype]
            if not 0 <= priorities < math.inf:
                raise ValueError(f"sum_tree.update: priorities[0] is {priorities!r}, must be finite and >= 0")
            if priorities > limit:
                raise ValueError(
                    f"sum_tree.update: priorities[0] is {priorities!r}, must be at most {text} in a {self.dtype} tree"
                )
        self._kernels.update(indices, priorities)

    def update_from_td_errors(
        self, indices: Any, td_errors: Any, alpha: Any, eps: Any, keep_zeros: bool
    ) -> torch.Tensor:
        where = "sum_tree.update_from_td_errors"
        alpha = _arrays.load_float(alpha, f"{where}: alpha")
        eps = _arrays.load_float(eps, f"{where}: eps")
        largest: torch.Tensor = self._kernels.update_from_td_errors(indices, td_errors, alpha, eps, keep_zeros)
        return largest

    def sample(self, batch_size: Any, stratified: bool, replacement: bool) -> tuple[torch.Tensor, torch.Tensor]:
        n = check_batch_size(batch_size, "sample")
        if not replacement and n > self.capacity:
            raise ValueError(
                f"sum_tree.sample: batch_size must be at most {self.capacity}, the capacity, without replacement, "
                f"got {n}"
            )
        drawn: tuple[torch.Tensor, torch.Tensor] = self._kernels.sample(n, stratified, replacement)
        return drawn

    def sample_weighted(
        self, batch_size: Any, beta: Any, normalize: Any, stratified: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n = check_batch_size(batch_size, "sample_weighted")
        beta = _arrays.load_float(beta, "sum_tree.sample_weighted: beta")
        check_normalize(normalize)
        drawn: tuple[torch.Tensor, torch.Tensor] = self._kernels.sample_weighted(
            n, beta, normalize == "tree", stratified
        )
        return drawn


SumTreeCore = CudaCore
