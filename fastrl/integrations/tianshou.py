"""Tianshou's own prioritized buffers on a compiled tree: change one import.

    from fastrl.integrations.tianshou import PrioritizedVectorReplayBuffer

Each class IS a subclass of the host's.  Its advantages and n-step returns are compiled by the host itself (Numba) and
stay: ours are no faster there.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tianshou.data as host

from fastrl.integrations._version import untested
from fastrl.kernels import SumTree

__all__ = ["PrioritizedReplayBuffer", "PrioritizedVectorReplayBuffer", "SegmentTree"]

TESTED = "2.0"


class SegmentTree(host.SegmentTree):  # type: ignore[misc]
    """``tianshou.data.SegmentTree`` of `size` priorities on a `fastrl.SumTree` in float64.

    ``tree[indices]``, ``tree[indices] = priorities`` (of equal indices the last wins) and `get_prefix_sum_idx` take
    ints, floats and arrays of any shape.  A prefix sum never falls on a priority of 0.

    Raises IndexError and ValueError as `fastrl.SumTree`, and changes nothing then.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.tree = SumTree(size, dtype=np.float64, seed=0)  # the draws are the host's

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (int, np.integer)):
            return self.tree[int(index)]
        index = np.asarray(index)
        return self.tree[index.reshape(-1)].reshape(index.shape)

    def __setitem__(self, index: Any, value: Any) -> None:
        index = np.asarray(index, np.int64).reshape(-1)
        value = np.asarray(value, np.float64)
        self.tree.update(index, np.broadcast_to(value.reshape(-1) if value.ndim else value, index.shape))

    def reduce(self, start: int = 0, end: int | None = None) -> float:
        """sum_i p[i] for start <= i < end; an `end` below 0 counts from the last."""
        if start == 0 and end is None:
            return self.tree.total
        return float(self.tree[np.arange(*slice(start, end).indices(self._size))].sum())

    def get_prefix_sum_idx(self, value: Any) -> Any:
        """The index i with sum(p[:i]) <= value < sum(p[:i+1]): an int, or an array like `value`."""
        if not isinstance(value, np.ndarray):
            return self.tree.find(float(value))
        return self.tree.find(value.reshape(-1)).reshape(value.shape)


class _Weights:
    """Mixin before a host's prioritized buffer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        buffer: Any = self
        buffer.weight = SegmentTree(buffer.maxsize)
        reason = untested("tianshou", TESTED)
        if reason:
            warnings.warn(f"fastrl.integrations.tianshou.{type(self).__name__}: {reason}", stacklevel=2)

    def get_weight(self: Any, index: Any) -> Any:
        """(p_i / min_k p_k)^-beta; the host divides p = priority^alpha by a priority that is not raised to alpha."""
        return (self.weight[index] / self.weight.tree.min) ** -self._beta


class PrioritizedReplayBuffer(_Weights, host.PrioritizedReplayBuffer):  # type: ignore[misc]
    """``tianshou.data.PrioritizedReplayBuffer`` on `SegmentTree`: the host's samples of the same random numbers.

    The weights of ``weight_norm=False`` are those of Schaul et al. (2016); with True, the default, they are the host's.
    """


class PrioritizedVectorReplayBuffer(_Weights, host.PrioritizedVectorReplayBuffer):  # type: ignore[misc]
    """`PrioritizedReplayBuffer` of several environments: ``tianshou.data.PrioritizedVectorReplayBuffer``."""
