"""Tianshou's own prioritized buffers on a compiled tree, and its returns: change one import.

    from fastrl.integrations.tianshou import PrioritizedVectorReplayBuffer

Each class IS a subclass of the host's.  `compute_episodic_return` and `compute_nstep_return` go in the place of the
static methods of every algorithm:

    Algorithm.compute_nstep_return = staticmethod(compute_nstep_return)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrl.integrations._version import installed, untested
from fastrl.kernels import SumTree, gae, lambda_returns, n_step_returns

with installed("Tianshou", "tianshou", "tianshou", "torch"):
    import tianshou.data as host
    import torch

__all__ = [
    "PrioritizedReplayBuffer",
    "PrioritizedVectorReplayBuffer",
    "SegmentTree",
    "compute_episodic_return",
    "compute_nstep_return",
]

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


def compute_episodic_return(
    batch: Any,
    buffer: Any,
    indices: Any,
    v_s_: Any = None,
    v_s: Any = None,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
) -> tuple[Any, Any]:
    """The host's ``Algorithm.compute_episodic_return`` by `fastrl.gae`: returns and advantages ``[B]``, in float64.

    ``batch = buffer[indices]``, episodes one after the other; those that go on end where the buffer does.  v_s_, v_s:
    V of the next and of these observations, of any shape with B numbers.  Without `v_s` the advantage is the return
    less the v_s_ of the row before, as the host has it, which at an episode's first step is that of another episode.

    Raises ValueError for a `gae_lambda` below 1 without v_s_, and as `fastrl.gae` does.
    """
    indices = np.asarray(indices)
    rewards = np.asarray(batch.rew, np.float64)
    terminated = np.asarray(batch.terminated, bool)
    ended = np.asarray(batch.truncated, bool) | np.isin(indices, buffer.unfinished_index())
    if v_s_ is None and not np.isclose(gae_lambda, 1.0):
        raise ValueError(f"compute_episodic_return: gae_lambda must be 1 without v_s_, got {gae_lambda!r}")
    following = np.zeros_like(rewards) if v_s_ is None else _column(v_s_)
    if v_s is not None:
        advantages, returns = gae(rewards, _column(v_s), following, terminated, ended, gamma=gamma, lam=gae_lambda)
        return returns, advantages
    returns = lambda_returns(rewards, following, terminated, ended, gamma=gamma, lam=gae_lambda)
    return returns, returns - np.roll(np.where(terminated, 0.0, following), 1)


def _column(values: Any) -> Any:
    return np.asarray(host.to_numpy(values), np.float64).reshape(-1)


def compute_nstep_return(
    batch: Any,
    buffer: Any,
    indices: Any,
    target_q_fn: Callable[[Any, Any], torch.Tensor],
    gamma: float = 0.99,
    n_step: int = 1,
) -> Any:
    """The host's ``Algorithm.compute_nstep_return`` by `fastrl.n_step_returns`: `batch`, with ``returns`` ``[B, ...]``.

        G_i = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) Q(s_m)

    over the m <= n_step steps from indices[i] on that the episode has.  ``target_q_fn(buffer, last)`` gives Q of the
    observations after the steps `last`, ``[B, ...]``.  Only the flags of these steps are read, where the host copies
    those of the whole buffer, and Q is not written to, as the host does.

    Raises ValueError for as many `indices` as `batch` has not, and as `fastrl.n_step_returns` does.
    """
    if len(indices) != len(batch):
        raise ValueError(
            f"compute_nstep_return: batch and indices must have one length, got {len(batch)} and {len(indices)}"
        )
    steps = [np.asarray(indices)]
    while len(steps) < n_step:
        steps.append(buffer.next(steps[-1]))
    at = np.stack(steps)  # [n, B]
    with torch.no_grad():
        target = target_q_fn(buffer, at[-1])
    q = host.to_numpy(target).reshape(len(batch), -1)
    terminated = buffer.terminated[at]
    ended = buffer.truncated[at] | np.isin(at, buffer.unfinished_index())
    rewards = np.asarray(buffer.rew[at], np.float64)
    found: Any = n_step_returns(rewards, None, terminated, ended, gamma=gamma, n=n_step)
    reward, discount = (x[0][:, None] for x in found[:2])
    batch.returns = host.to_torch_as(reward + np.where(discount > 0, discount * q, 0.0), target)
    if hasattr(batch, "weight"):
        batch.weight = host.to_torch_as(batch.weight, target)
    return batch
