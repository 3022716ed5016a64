"""TorchRL's own classes on compiled kernels: change one import.

    from fastrl.integrations.torchrl import GAE, PrioritizedSampler

Each class IS a subclass of the host's, with its constructor, keys and TensorDicts ``[env, time]``.  Neither needs
TorchRL's C++ extension, which loads only beside the PyTorch that it was built for.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np

from fastrl.integrations._version import installed, untested
from fastrl.kernels import SumTree, gae

with installed("TorchRL", "torchrl", "torchrl", "tensordict", "torch"):
    import torch
    from tensordict.nn import dispatch, set_skip_existing
    from torch import Tensor
    from torchrl.data.replay_buffers import samplers
    from torchrl.objectives import hold_out_net
    from torchrl.objectives.value import advantages as host

__all__ = ["GAE", "PrioritizedSampler"]

TESTED = "0.14"


class GAE(host.GAE):  # type: ignore[misc]
    """``torchrl.objectives.value.GAE`` with the recursion by `fastrl.gae`.

    The values are the host's (`value_network`, or those in the TensorDict), and so are the keys written and
    `average_gae`.  ``("next", "done")`` ends a trace, and where ``("next", "terminated")`` is set nothing is
    bootstrapped.  With `differentiable`, `shifted`, `auto_reset_env`, functional parameters, a discount of each step or
    signals that have not the shape and dtype of the values, the host's own code runs, after one warning that says why.
    """

    _warned = False

    @dispatch  # type: ignore[untyped-decorator]
    def forward(
        self, tensordict: Any, *, params: Any = None, target_params: Any = None, time_dim: int | None = None
    ) -> Any:
        reason = self._why_not(tensordict, params, target_params)
        found = None if reason else self._arrays(tensordict)
        if found is None:
            self._warn(reason or "reward, done, terminated and the values differ in shape or dtype")
            return super().forward(tensordict, params=params, target_params=target_params, time_dim=time_dim)
        dim = self._get_time_dim(time_dim, tensordict)
        reward, value, next_value, done, terminated = found
        turned = [x.movedim(dim, 0).flatten(1) for x in (reward, value, next_value, terminated, done)]
        results = gae(*turned, gamma=float(self.gamma), lam=float(self.lmbda))
        shape = value.movedim(dim, 0).shape
        advantage, target = (y.view(shape).movedim(0, dim).contiguous() for y in results)
        if self.average_gae:
            advantage = self._normalize_advantage(advantage, None, groups=self._group_ids(tensordict))
        tensordict.set(self.tensor_keys.advantage, advantage)
        tensordict.set(self.tensor_keys.value_target, target)
        return tensordict

    def _why_not(self, tensordict: Any, params: Any, target_params: Any) -> str | None:
        """Why the host's own code must run, or None."""
        if type(self)._prepare_signals is not host.GAE._prepare_signals:
            return "a subclass changes its signals"
        for name in ("differentiable", "shifted", "auto_reset_env"):
            if getattr(self, name):
                return f"{name} is set"
        if params is not None or target_params is not None:
            return "the value network's parameters are given"
        if self.gamma.numel() != 1 or self.lmbda.numel() != 1:
            return "gamma or lmbda is no number"
        if tensordict.batch_dims < 1 or tensordict.get(self.tensor_keys.steps_to_next_obs, None) is not None:
            return "steps go over several observations, or there is no time"
        return untested("torchrl", TESTED)

    def _arrays(self, tensordict: Any) -> tuple[Tensor, ...] | None:
        """Reward, V, V', done and terminated, or None if they are not of one shape and the floats of one dtype."""
        keys, skip = self.tensor_keys, self.skip_existing
        with torch.no_grad(), contextlib.nullcontext() if skip is None else set_skip_existing(skip):
            if self.value_network is None:
                value, next_value = tensordict.get(keys.value, None), tensordict.get(("next", keys.value), None)
            else:
                with hold_out_net(self.value_network):
                    value, next_value, _ = self._call_value_nets(
                        data=tensordict, params=None, next_params=None, single_call=False, value_key=keys.value,
                        detach_next=True, vmap_randomness=self.vmap_randomness,
                    )  # fmt: skip
        reward, done = tensordict.get(("next", keys.reward)), tensordict.get(("next", keys.done))
        terminated = tensordict.get(("next", keys.terminated), done)
        if value is None or next_value is None:
            return None
        found = (reward, value.detach(), next_value.detach(), done, terminated)
        same = all(x.shape == reward.shape for x in found) and reward.dtype == value.dtype == next_value.dtype
        return found if same and reward.dtype in (torch.float32, torch.float64) else None

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"fastrl.integrations.torchrl.GAE is not compiled, TorchRL's own code runs instead: {reason}",
                stacklevel=4,
            )


class PrioritizedSampler(samplers.PrioritizedSampler):  # type: ignore[misc]
    """``torchrl.data.PrioritizedSampler`` on a `fastrl.SumTree`, which serves as its sum and its minimum tree.

    Goes into ``TensorDictReplayBuffer(sampler=..., priority_key=...)``.  The host's constructor, `alpha` and `beta`
    (also by a scheduler), `update_priority` and random numbers; P(i) = p_i / sum_k p_k and the weights
    (p_i / min_k p_k)^-beta with p = (priority + eps)^alpha, and sums in float64.  The tree is on the CPU, also beside a
    storage on a GPU.

    Raises ValueError for a `device` other than the CPU, and a `dtype` other than float32 and float64.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        reason = untested("torchrl", TESTED)
        if reason:
            warnings.warn(f"fastrl.integrations.torchrl.PrioritizedSampler: {reason}", stacklevel=2)

    def _init(self) -> None:
        if self._device is not None and self._device.type != "cpu":
            raise ValueError(f"PrioritizedSampler: device must be None or the CPU, got {self._device}")
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"PrioritizedSampler: dtype must be float32 or float64, got {self.dtype}")
        self._sum_tree = _Sums(self._max_capacity, self.dtype)
        self._max_priority = None

    def _tree_device_from_storage(self, storage: Any) -> None:
        """The tree stays where it is."""

    @property
    def _min_tree(self) -> _Minima:
        return _Minima(self._sum_tree)

    @_min_tree.setter
    def _min_tree(self, tree: Any) -> None:
        """It is a view of the other tree."""

    def sample(self, storage: Any, batch_size: int) -> Any:
        """Indices ``[B]`` (a tuple for a storage of several dimensions) and their ``priority_weight``."""
        if len(storage) == 0:
            raise RuntimeError("PrioritizedSampler: the storage is empty")
        tree = self._sum_tree.tree
        if self._rng is None:  # as the host
            mass = torch.from_numpy(np.random.uniform(0.0, tree.total, batch_size))  # noqa: NPY002
        else:
            mass = torch.rand(batch_size, generator=self._rng, dtype=torch.float64) * tree.total
        index = tree.find(mass).clamp_max_(len(storage) - 1)
        weight = torch.pow(tree[index] / tree.min, -self._beta)
        if storage.ndim > 1:
            index = torch.unravel_index(index, storage.shape)
        return index, {"priority_weight": weight}


class _Sums:
    """The host's SumSegmentTree of a capacity."""

    def __init__(self, capacity: int, dtype: Any) -> None:
        self.tree, self.dtype = SumTree(capacity, dtype=dtype, seed=0), dtype  # the draws are the host's

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            return self.tree[index]
        index = torch.as_tensor(index)
        return self.tree[index.reshape(-1)].reshape(index.shape)

    def __setitem__(self, index: Any, priority: Any) -> None:
        index = torch.as_tensor(index)
        priority = torch.as_tensor(priority, dtype=self.dtype).expand(index.shape)
        self.tree.update(index.reshape(-1), priority.reshape(-1))

    def __len__(self) -> int:
        return self.tree.capacity

    def query(self, start: int, end: int) -> float:
        """The sum of p[start:end]."""
        if start == 0 and end >= self.tree.capacity:
            return self.tree.total
        return float(self.tree[torch.arange(start, end)].double().sum())

    def scan_lower_bound(self, mass: Any) -> Any:
        """The index that each prefix sum falls on."""
        return self.tree.find(mass)


class _Minima:
    """The host's MinSegmentTree, read off a sum tree."""

    def __init__(self, sums: _Sums | None) -> None:
        self._sums: Any = sums

    def __getitem__(self, index: Any) -> Any:
        return self._sums[index]

    def __setitem__(self, index: Any, priority: Any) -> None:
        """The sum tree has it already."""

    def query(self, start: int, end: int) -> float:
        """The smallest positive priority of p[start:end], inf if there is none."""
        tree = self._sums.tree
        if start == 0 and end >= tree.capacity:
            return float(tree.min)
        found = tree[torch.arange(start, end)]
        return min(found[found > 0].tolist(), default=float("inf"))

    def __deepcopy__(self, memo: Any) -> _Minima:
        return _Minima(None)  # in a state_dict, beside the copy of the sum tree
