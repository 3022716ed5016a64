"""Sum tree: draw an index with a probability proportional to its priority, in O(log N).

A leaf holds p_i; an inner node holds the float64 sum (and the smallest positive and the largest value) of its 16
children, always recomputed from them, so that nothing drifts.  The prefix sums within a node are added in one fixed
order (a Sklansky scan), in which they never decrease and a zero child adds exactly nothing: hence the same seed gives
the same indices on every backend, and no draw ever lands on a zero priority.

Source: Schaul et al., "Prioritized Experience Replay" (2016), arXiv:1511.05952.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fastrl import _fork
from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose
from fastrl.kernels.random import Generator, default_generator, device_name
from fastrl.kernels.sum_tree.reference import MAX_CAPACITY, ReferenceCore

backend = choose(__package__)


class SumTree:
    """A batched sum tree over `capacity` non-negative priorities p_0 .. p_{capacity - 1}, all 0 at first.

    P(i) = p_i / sum_k p_k.  Leaves are kept in `dtype`, sums in float64.  Safe for one or several threads that update
    and several that sample; the GIL is not held meanwhile.

    Args:
        capacity: int in [1, 2^31 - 1]; it need not be a power of two.
        dtype: of the leaves: float32 or float64.  A NumPy dtype makes `sample` return NumPy arrays, a torch dtype
            (``torch.float32``) torch tensors.
        device: "cpu" or a CUDA device ("cuda", "cuda:1", torch.device): the tree then lives on that GPU, takes and
            returns torch tensors, never waits for the device and can be captured in a CUDA graph.  An invalid index or
            priority is skipped there, and `check()` or the next read of a number raises.
        seed: int in [0, 2^64) for a `Generator` of its own; or
        generator: a `Generator` on the same device, which may be shared.  With neither, the default generator
            (see `fastrl.manual_seed`).

    Every error leaves the tree, and its generator, as they were.  A pickle, copy or deepcopy is a tree of its own, with
    a generator of its own that goes on where this one stands.  As with any tensor, what runs on several CUDA streams is
    the caller's to order: use a CUDA tree on one stream at a time.

    Source: Schaul et al., "Prioritized Experience Replay" (2016), arXiv:1511.05952.

    >>> import numpy as np, fastrl
    >>> tree = fastrl.SumTree(8, seed=0)
    >>> tree[np.array([1, 5])] = np.array([1.0, 3.0])
    >>> tree.total, tree.find(0.5), tree.find(1.0)
    (4.0, 1, 5)
    """

    _core_class: Any = None  # the core of one backend, for tests and SumTreeReference; None: chosen by device

    def __init__(
        self,
        capacity: int,
        *,
        dtype: Any = np.float32,
        device: Any = "cpu",
        seed: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)):
            raise TypeError(f"sum_tree: capacity must be an int, got {type(capacity).__name__}")
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"sum_tree: capacity must be in [1, {MAX_CAPACITY}], got {capacity}")
        is_torch = type(dtype).__module__ == "torch"
        try:
            name = str(dtype).removeprefix("torch.") if is_torch or dtype is None else np.dtype(dtype).name
        except TypeError:
            name = repr(dtype)
        if name not in _arrays.FLOATS:
            raise ValueError(f"sum_tree: dtype must be float32 or float64, got {name}")
        self.device = device_name(device, "sum_tree")
        if generator is None:
            generator = default_generator(self.device) if seed is None else Generator(seed, self.device)
        elif seed is not None:
            raise ValueError("sum_tree: give seed or generator, not both")
        elif not isinstance(generator, Generator):
            raise TypeError(f"sum_tree: generator must be a fastrl.Generator, got {type(generator).__name__}")
        elif generator.device != self.device:
            raise ValueError(f"sum_tree: generator must be on {self.device} like the tree, got {generator.device}")
        self.capacity = int(capacity)
        self.dtype = np.dtype(name)
        self.generator = generator
        core_class = self._core_class or (backend.on(self.device).SumTreeCore)
        self._is_torch = is_torch
        tensor_type = _arrays.torch().Tensor if is_torch else None
        try:
            self._core = core_class(self.capacity, name, generator.state, tensor_type)
        except MemoryError:
            raise MemoryError(f"sum_tree: no memory for a tree of {capacity} {name} priorities") from None
        _fork.guarded.add(self._core)

    def update(self, indices: Any, priorities: Any) -> None:
        """p[indices[b]] = priorities[b] for b = 0 .. B-1 in order, so that of equal indices the last one wins.

        O(B log N): the ancestors of the changed leaves are recomputed from their children.  All or nothing.

        Args:
            indices: int, or int64 / int32 array [B], each in [0, capacity).
            priorities: float, or float32 / float64 array [B]; finite and >= 0, at most 2^960, rounded to the dtype of
                the tree.  A positive one below that dtype's smallest normal number counts as that number.

        Raises:
            IndexError, ValueError: naming the first index outside the tree, or the first NaN, infinite or negative
                priority.
            TypeError: not arrays.
        """
        self._core.update(indices, priorities)

    def __setitem__(self, indices: Any, priorities: Any) -> None:
        """`update`, of a list or a slice of indices too, and then with a number or a list of priorities.

        An int, or an int in a list, counts from the end where it is negative, as in any list.
        """
        if isinstance(indices, (list, range, slice)):
            number = _arrays.is_number(priorities)
            if number or isinstance(priorities, (list, tuple)):
                indices = self._listed(indices, self._is_torch)
                priorities = np.full(len(indices), priorities, np.float64) if number else self._numbers(priorities)
                priorities = self._like_tree(priorities, self._is_torch)
            else:
                indices = self._listed(indices, _arrays.is_tensor(priorities))
        self._core.update(self._positive(indices), priorities)

    def _numbers(self, priorities: Any) -> Any:
        found = np.array(priorities, object)
        if found.ndim != 1 or not all(map(_arrays.is_number, priorities)):
            raise TypeError(f"sum_tree: priorities must be a number or a list of numbers, got {priorities!r:.100}")
        return found.astype(np.float64)

    def _listed(self, indices: Any, tensor: bool) -> Any:
        """An array of the indices in a list or a slice."""
        if isinstance(indices, slice):
            return self._like_tree(np.arange(*indices.indices(self.capacity)), tensor)
        found = np.array(indices, None if len(indices) else np.int64)
        if found.dtype.kind == "i":
            found = found.astype(np.int64)  # of NumPy's small ints
            found = np.where((found < 0) & (found >= -self.capacity), found + self.capacity, found)
        return self._like_tree(found, tensor)

    def _positive(self, index: Any) -> Any:
        """An int from the end as one from the beginning; all else as it is."""
        return int(index) + self.capacity if _arrays.is_int(index) and -self.capacity <= index < 0 else index

    def _like_tree(self, array: Any, tensor: bool) -> Any:
        return _arrays.torch().from_numpy(array).to(self.device) if tensor or self.device != "cpu" else array

    def update_from_td_errors(
        self, indices: Any, td_errors: Any, alpha: float, eps: float, *, keep_zeros: bool = False
    ) -> Any:
        """p[indices[b]] = (|td_errors[b]| + eps)^alpha: the update of prioritized replay, power included, in one pass.

        A positive |td_error| + eps gives a priority in the normal range of the tree's dtype (and at most 2^960): none
        is lost by rounding to 0 or refused.

        Args:
            indices: int64 / int32 array [B], each in [0, capacity); of equal ones the last wins.
            td_errors: float32 / float64 array [B], finite, of either sign.
            alpha: finite, >= 0; 0 makes all priorities 1.
            eps: finite, >= 0: what an error of 0 is raised to.
            keep_zeros: leave leaves of priority 0 as they are: items that have left the buffer stay out of it.

        Returns:
            The largest priority written, 0.0 if none was: a float; of a CUDA tree a float64 tensor [] on its device,
            which nothing has waited for.

        Raises:
            IndexError, ValueError, TypeError: as `update`, and for a NaN or infinite error; the tree is unchanged.
        """
        return self._core.update_from_td_errors(indices, td_errors, alpha, eps, bool(keep_zeros))

    def __getitem__(self, indices: Any) -> Any:
        """p[indices]: a float for an int; else an array [B] of the tree's dtype, of the same kind as `indices`.

        Of a list or a slice it is of the kind that `sample` returns.  An int, or an int in a list, counts from the end
        where it is negative, as in any list.
        """
        if isinstance(indices, (list, range, slice)):
            indices = self._listed(indices, self._is_torch)
        return self._core.get(self._positive(indices))

    def find(self, prefix_sums: Any) -> Any:
        """The index i with sum(p[:i]) <= u < sum(p[:i+1]), for each u in `prefix_sums`.

        Never an index with p_i = 0, also at u = total or where rounding would step past the end (then the last i with
        p_i > 0).

        Args:
            prefix_sums: float, or float32 / float64 array [B], each in [0, total].

        Returns:
            int, or int64 array [B] of the same kind as `prefix_sums`.

        Raises:
            ValueError: a value outside [0, total] or NaN (the first is named), or a total of 0.
        """
        return self._core.find(prefix_sums)

    def sample(self, batch_size: int, *, stratified: bool = True, replacement: bool = True) -> tuple[Any, Any]:
        """Draw `batch_size` indices with P(i) = p_i / total.

        stratified: u_b uniform in slice b of `batch_size` equal slices of [0, total); else independent draws.
        replacement=False: distinct indices by successive sampling (draw one, take it out, draw the next from the
        rest); `stratified` has no meaning then, and the tree is the same afterwards.

        Returns:
            indices int64 [B], probabilities P(i) float64 [B].

        Raises:
            ValueError: batch_size < 1, a total of 0, or fewer positive priorities than draws without replacement.
        """
        return self._core.sample(batch_size, bool(stratified), bool(replacement))  # type: ignore[no-any-return]

    def sample_weighted(
        self,
        batch_size: int,
        beta: float,
        normalize: Literal["batch", "tree"] = "batch",
        *,
        stratified: bool = True,
    ) -> tuple[Any, Any]:
        """Draw indices together with their importance-sampling weights, in one pass.

        w_b = (N P(i_b))^-beta / max_j (N P(j))^-beta = (p_min / p_{i_b})^beta, where the largest weight is that of the
        batch ("batch") or of the whole tree ("tree", p_min = `tree.min`); N cancels.

        Args:
            beta: finite, >= 0.

        Returns:
            indices int64 [B], weights [B] in the tree's dtype, in [0, 1] (0 where the power is too small for it).

        Raises:
            ValueError: as `sample`; or a bad `beta` or `normalize`.
        """
        return self._core.sample_weighted(batch_size, beta, normalize, bool(stratified))  # type: ignore[no-any-return]

    @property
    def total(self) -> float:
        """The sum of all priorities, float64."""
        return float(self._core.total)

    @property
    def min(self) -> float:
        """The smallest positive priority; inf when there is none."""
        return float(self._core.min)

    @property
    def max(self) -> float:
        """The largest priority; 0.0 when none is positive."""
        return float(self._core.max)

    def __len__(self) -> int:
        """The number of positive priorities: of the indices that can be drawn."""
        return len(self._core)

    __iter__ = None  # else Python would iterate by __getitem__, over all leaves and not over len of them

    def clear(self) -> None:
        """Set all priorities to 0; the generator goes on."""
        self._core.clear()

    def check(self) -> None:
        """Raise what a call on a CUDA tree could not raise without waiting for the device; elsewhere nothing."""
        if self.device != "cpu":
            self._core.check()

    def state_dict(self) -> dict[str, Any]:
        """{"capacity": int, "dtype": str, "priorities": NumPy copy [capacity], "generator": its state_dict}."""
        return {
            "capacity": self.capacity,
            "dtype": self.dtype.name,
            "priorities": self._core.priorities(),
            "generator": self.generator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue bit for bit where `state_dict` was taken.

        Raises ValueError, and changes nothing, for the state of another capacity or dtype or one that is damaged.
        """
        keys = {"capacity", "dtype", "priorities", "generator"}
        if not isinstance(state, Mapping) or set(state) != keys:
            raise ValueError(f"sum_tree.load_state_dict: state must have exactly the keys {', '.join(sorted(keys))}")
        for name, own in (("capacity", self.capacity), ("dtype", self.dtype.name)):
            if state[name] != own:
                raise ValueError(f"sum_tree.load_state_dict: {name} must be {own} like the tree's, got {state[name]}")
        priorities = _arrays.load(
            state["priorities"], "sum_tree.load_state_dict: priorities", (self.dtype.name,), (self.capacity,)
        )
        before = self.generator.state_dict()
        self.generator.load_state_dict(state["generator"])
        try:
            self._core.load(priorities)
        except BaseException:
            self.generator.load_state_dict(before)
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**self.state_dict(), "generator": self.generator, "device": self.device, "is_torch": self._is_torch}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        dtype = state["dtype"]
        if state["is_torch"]:
            import torch

            dtype = getattr(torch, dtype)
        SumTree.__init__(self, state["capacity"], dtype=dtype, device=state["device"], generator=state["generator"])
        self._core.load(state["priorities"])

    def __copy__(self) -> SumTree:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        return f"fastrl.SumTree(capacity={self.capacity}, dtype={self.dtype.name}, device={self.device!r})"


class SumTreeReference(SumTree):
    """`SumTree` on the plain NumPy core that every backend is tested against."""

    _core_class = ReferenceCore
