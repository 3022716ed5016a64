"""Sum tree: draw an index with a probability proportional to its priority, in O(log N).

A leaf holds p_i; an inner node holds the float64 sum (and the smallest positive and the largest value) of its 16
children, always recomputed from them, so that nothing drifts.  The prefix sums within a node are added in one fixed
order (a Sklansky scan), in which they never decrease and a zero child adds exactly nothing: hence the same seed gives
the same indices on every backend, and no draw ever lands on a zero priority.

Source: Schaul et al., "Prioritized Experience Replay" (2016), arXiv:1511.05952.
"""

from __future__ import annotations

import copy
import math
import numbers
import operator
import sys
import threading
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fastrl import _backend, _fork
from fastrl.kernels import _arrays
from fastrl.kernels.generator import Generator, advance, default_generator, device_name, uniform_reference

FANOUT = 16
_MAX_CAPACITY = 2**31 - 1
_INDEX_DTYPES = ("int64", "int32")
_FLOAT_DTYPES = ("float32", "float64")
# The largest priority, and how the error texts write it: sums of 2^31 - 1 of them must stay finite in float64.
_MAX_PRIORITY = {
    "float32": (float(np.finfo(np.float32).max), "3.4028234663852886e+38"),
    "float64": (2.0**960, "2**960"),
}
# What a smaller positive priority is raised to, so that its item is not lost and sums have all their bits: the smallest
# normal number.
_MIN_PRIORITY = {"float32": 2.0**-126, "float64": 2.0**-1022}


def prefix_reference(children: Any) -> Any:
    """Inclusive prefix sums of the 16 children [..., 16] of nodes, float64, in the order that every backend uses.

    for h in 1, 2, 4, 8: for each j with bit h set: x_j += x_{(j & ~(2h - 1)) + h - 1}
    """
    x = children + 0.0  # a copy
    for h in (1, 2, 4, 8):
        for j in range(FANOUT):
            if j & h:
                x[..., j] += x[..., (j & ~(2 * h - 1)) + h - 1]
    return x


class ReferenceCore:
    """The tree in plain NumPy, and what the cores written in Python share (`xp` is NumPy, or torch on a GPU).

    `_levels[0]` holds the leaves; `_levels[k]`, `_mins[k]`, `_maxs[k]` the sums, smallest positive and largest values
    of the level's nodes; each level is padded to a multiple of 16 with zeros (min: inf) and the last has one node.
    """

    xp: Any = np

    def __init__(self, capacity: int, dtype: str, state: Any, tensor_type: Any = None) -> None:
        self.capacity, self.dtype, self._state = capacity, dtype, state
        self._lock = threading.RLock()
        self._like: Any = np.empty(0)
        if tensor_type is not None:
            self._like = sys.modules["torch"].empty(0)
        width = -(-capacity // FANOUT) * FANOUT
        leaf_dtype = getattr(self.xp, dtype)
        self._levels = [self._full(width, 0.0, leaf_dtype)]
        self._mins: list[Any] = [None]
        self._maxs: list[Any] = [None]
        while width > 1:
            nodes = width // FANOUT
            width = nodes if nodes == 1 else -(-nodes // FANOUT) * FANOUT
            self._levels.append(self._full(width, 0.0, self.xp.float64))
            self._mins.append(self._full(width, math.inf, leaf_dtype))
            self._maxs.append(self._full(width, 0.0, leaf_dtype))

    # What differs between NumPy and torch.
    def _full(self, n: int, value: float, dtype: Any) -> Any:
        return self.xp.full((n,), value, dtype=dtype)

    def _load(self, obj: Any, where: str, dtypes: tuple[str, ...]) -> Any:
        return _arrays.load(obj, where, dtypes, (-1,))

    def _out(self, array: Any, like: Any) -> Any:
        return _arrays.like(array, like)

    def _number(self, value: Any) -> Any:
        return float(value)

    def _leaf(self, values: Any) -> Any:
        """Checked priorities as leaves."""
        leaf, low = self.xp.asarray(values, dtype=getattr(self.xp, self.dtype)), _MIN_PRIORITY[self.dtype]
        return self.xp.where((values > 0) & (leaf < low), self._full(1, low, leaf.dtype), leaf)

    # What a fork holds other threads off with.
    def acquire(self) -> bool:
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def _store(self, indices: Any, priorities: Any) -> None:
        self._levels[0][indices] = priorities  # NumPy's assignment lets the last of duplicates win

    def _uniform(self, n: int) -> Any:
        return uniform_reference(*advance(self._state, n), n)

    # Reading
    @property
    def total(self) -> float:
        with self._lock:
            return float(self._levels[-1][0])

    @property
    def min(self) -> float:
        with self._lock:
            return float(self._mins[-1][0])

    @property
    def max(self) -> float:
        with self._lock:
            return float(self._maxs[-1][0])

    def __len__(self) -> int:
        with self._lock:
            return int((self._levels[0] > 0).sum())

    def get(self, indices: Any) -> Any:
        index, scalar = self._indices(indices, "sum_tree.get")
        with self._lock:
            values = self._levels[0][index]
        return float(values[0]) if scalar else self._out(values, indices)

    def priorities(self) -> Any:
        with self._lock:
            return self._levels[0][: self.capacity].copy()

    # Writing
    def update(self, indices: Any, priorities: Any) -> None:
        index, _ = self._indices(indices, "sum_tree.update", check=False)
        if _arrays.is_number(priorities, numbers.Real):
            values = self._full(len(index), _arrays.to_float(priorities), self.xp.float64)
        else:
            values = self._load(priorities, "sum_tree.update: priorities", _FLOAT_DTYPES)
            if len(values) != len(index):
                raise ValueError(
                    f"sum_tree.update: priorities must have shape ({len(index)},) like indices, got ({len(values)},)"
                )
        # Copies, because another thread may write to the caller's arrays meanwhile; + 0 also makes -0 a 0.
        index, values = index + 0, values + 0.0
        self._check_indices(index, "sum_tree.update")
        self._check_values(values)
        if len(index) == 0:
            return
        with self._lock:
            self._update(index, self._leaf(values))

    def update_from_td_errors(self, indices: Any, td_errors: Any, alpha: Any, eps: Any, keep_zeros: bool) -> Any:
        where = "sum_tree.update_from_td_errors"
        alpha, eps = check_not_negative(alpha, f"{where}: alpha"), check_not_negative(eps, f"{where}: eps")
        index = self.xp.asarray(self._load(indices, f"{where}: indices", _INDEX_DTYPES), dtype=self.xp.int64)
        errors = self._load(td_errors, f"{where}: td_errors", _FLOAT_DTYPES)
        if len(errors) != len(index):
            raise ValueError(f"{where}: td_errors must have shape ({len(index)},) like indices, got ({len(errors)},)")
        errors = self.xp.asarray(errors, dtype=self.xp.float64)
        self._check_indices(index, where)
        bad = ~(abs(errors) < math.inf)
        if bool(bad.any()):
            i = self._first(bad)
            raise ValueError(f"{where}: td_errors[{i}] is {float(errors[i])!r}, must be finite")
        if len(index) == 0:
            return self._number(0.0)
        x = abs(errors) + eps
        with np.errstate(over="ignore", under="ignore"):
            values = (x**alpha).clip(_MIN_PRIORITY[self.dtype], _MAX_PRIORITY[self.dtype][0])
        values = self.xp.where((x > 0) | (alpha == 0), values, 0.0)
        values = self.xp.asarray(values, dtype=getattr(self.xp, self.dtype))
        with self._lock:
            if keep_zeros:
                values = self.xp.where(self._levels[0][index] > 0, values, 0.0 * values)
            self._update(index, values)
        return self._number(values.max())

    def load(self, priorities: Any) -> None:
        """All leaves at once, of the tree's dtype."""
        values = self.xp.asarray(priorities) + 0.0  # a copy, as in update; + 0 also makes -0 a 0
        self._check_values(values)
        with self._lock:
            self._levels[0][: self.capacity] = self._leaf(values)
            nodes = self.xp.arange(0, len(self._levels[0]), FANOUT)
            self._update(nodes, self._levels[0][nodes])  # what is there already: for the sums

    def clear(self) -> None:
        with self._lock:
            for level, low, high in zip(self._levels, self._mins, self._maxs, strict=True):
                level[:] = 0.0
                if low is not None:
                    low[:] = math.inf
                    high[:] = 0.0

    def _update(self, index: Any, values: Any) -> None:
        self._store(index, values)
        nodes = index
        for level in range(1, len(self._levels)):
            nodes = self.xp.unique(nodes // FANOUT)
            children = self._levels[level - 1].reshape(-1, FANOUT)[nodes]
            self._levels[level][nodes] = prefix_reference(self.xp.asarray(children, dtype=self.xp.float64))[:, -1]
            if level == 1:
                low, high = self.xp.where(children > 0, children, math.inf), children
            else:
                low = self._mins[level - 1].reshape(-1, FANOUT)[nodes]
                high = self._maxs[level - 1].reshape(-1, FANOUT)[nodes]
            self._mins[level][nodes] = self.xp.amin(low, -1)
            self._maxs[level][nodes] = self.xp.amax(high, -1)

    # Searching and drawing
    def find(self, prefix_sums: Any) -> Any:
        scalar = _arrays.is_number(prefix_sums, numbers.Real)
        if scalar:
            u = self._full(1, _arrays.to_float(prefix_sums), self.xp.float64)
        else:
            u = self._load(prefix_sums, "sum_tree.find: prefix_sums", _FLOAT_DTYPES)
            u = self.xp.asarray(u, dtype=self.xp.float64) + 0.0  # a copy, as in update
        with self._lock:
            total = self._positive_total("find")
            bad = ~((u >= 0) & (u <= total))
            if bool(bad.any()):
                i = self._first(bad)
                raise ValueError(
                    f"sum_tree.find: prefix_sums[{i}] is {float(u[i])!r}, must be in [0, total] = [0, {total!r}]"
                )
            index = self._find(u)
        return int(index[0]) if scalar else self._out(index, prefix_sums)

    def sample(self, batch_size: Any, stratified: bool, replacement: bool) -> tuple[Any, Any]:
        n = check_batch_size(batch_size, "sample")
        with self._lock:
            total = self._positive_total("sample")
            if not replacement and n > len(self):
                raise ValueError(
                    f"sum_tree.sample: batch_size must be at most {len(self)}, the number of positive priorities, "
                    f"without replacement, got {n}"
                )
            index = self._draw(n, stratified) if replacement else self._draw_successively(self._uniform(n))
            probability = self.xp.asarray(self._levels[0][index], dtype=self.xp.float64) / total
        return self._out(index, self._like), self._out(probability, self._like)

    def sample_weighted(self, batch_size: Any, beta: Any, normalize: Any, stratified: bool) -> tuple[Any, Any]:
        n = check_batch_size(batch_size, "sample_weighted")
        beta = check_not_negative(beta, "sum_tree.sample_weighted: beta")
        check_normalize(normalize)
        with self._lock:
            self._positive_total("sample_weighted")
            index = self._draw(n, stratified)
            log_p = self.xp.log(self.xp.asarray(self._levels[0][index], dtype=self.xp.float64))
            smallest = log_p.min() if normalize == "batch" else math.log(self.min)
        weights = self.xp.exp(beta * (smallest - log_p))
        weights = self.xp.asarray(weights, dtype=getattr(self.xp, self.dtype))
        return self._out(index, self._like), self._out(weights, self._like)

    def _draw(self, n: int, stratified: bool) -> Any:
        r = self._uniform(n)
        if stratified:
            i = self.xp.cumsum(self.xp.ones_like(r), 0) - 1.0
            slice = self.total / n
            # A slice that is no normal number has too few bits.
            return self._find((i + r) * slice if slice >= _MIN_PRIORITY["float64"] else (i + r) / n * self.total)
        return self._find(r * self.total)

    def _find(self, u: Any) -> Any:
        xp = self.xp
        node = xp.zeros_like(u, dtype=xp.int64)
        row = xp.cumsum(node + 1, 0) - 1
        for level in reversed(self._levels[:-1]):
            prefix = prefix_reference(xp.asarray(level.reshape(-1, FANOUT)[node], dtype=xp.float64))
            k = (prefix <= u[:, None]).sum(-1)
            # Rounding can step past the end: then the last child that adds something.
            k = xp.where(k < FANOUT, k, (prefix < prefix[:, -1:]).sum(-1))
            u = u - xp.where(k > 0, prefix[row, xp.where(k > 0, k - 1, 0)], 0.0)
            node = node * FANOUT + k
        return node

    def _draw_successively(self, r: Any) -> Any:
        index = self.xp.zeros_like(r, dtype=self.xp.int64)
        for i in range(len(r)):
            index[i : i + 1] = self._find(r[i : i + 1] * self.total)
            if i == 0:
                taken = self._levels[0][index]
            taken[i] = self._levels[0][index[i]]
            self._update(index[i : i + 1], taken[:1] * 0)
        self._update(index, taken)
        return index

    # Checks
    def _positive_total(self, method: str) -> float:
        if not self.total > 0:
            raise ValueError(f"sum_tree.{method}: the total priority is 0: nothing to sample")
        return self.total

    def _indices(self, indices: Any, where: str, check: bool = True) -> tuple[Any, bool]:
        scalar = _arrays.is_number(indices, numbers.Integral)
        if scalar:
            # A Python int may exceed int64: clipped, it is outside the tree all the same.
            index = self._full(1, max(-(2**63), min(int(indices), 2**63 - 1)), self.xp.int64)
        else:
            index = self.xp.asarray(self._load(indices, f"{where}: indices", _INDEX_DTYPES), dtype=self.xp.int64)
        if check:
            self._check_indices(index, where)
        return index, scalar

    def _check_indices(self, index: Any, where: str) -> None:
        bad = (index < 0) | (index >= self.capacity)
        if bool(bad.any()):
            i = self._first(bad)
            raise IndexError(f"{where}: indices[{i}] is {int(index[i])}, outside [0, {self.capacity})")

    def _check_values(self, values: Any) -> None:
        values = self.xp.asarray(values, dtype=self.xp.float64)
        limit, text = _MAX_PRIORITY[self.dtype]
        for bad, wanted in (
            (~((values >= 0) & (values < math.inf)), "must be finite and >= 0"),
            (values > limit, f"must be at most {text} in a {self.dtype} tree"),
        ):
            if bool(bad.any()):
                i = self._first(bad)
                raise ValueError(f"sum_tree.update: priorities[{i}] is {float(values[i])!r}, {wanted}")

    def _first(self, bad: Any) -> int:
        return int(self.xp.argmax(self.xp.asarray(bad, dtype=self.xp.int64)))


def check_batch_size(batch_size: Any, method: str) -> int:
    if not _arrays.is_number(batch_size, numbers.Integral):
        raise TypeError(f"sum_tree.{method}: batch_size must be an int, got {type(batch_size).__name__}")
    n = operator.index(batch_size)
    if not 1 <= n <= _MAX_CAPACITY:
        raise ValueError(f"sum_tree.{method}: batch_size must be in [1, {_MAX_CAPACITY}], got {n}")
    return n


def check_not_negative(value: Any, where: str) -> float:
    if not _arrays.is_number(value, numbers.Real):
        raise TypeError(f"{where} must be a float, got {type(value).__name__}")
    x = _arrays.to_float(value)
    if not 0 <= x < math.inf:
        raise ValueError(f"{where} must be finite and >= 0, got {x!r}")
    return x


def check_normalize(normalize: Any) -> None:
    if not isinstance(normalize, str):
        raise TypeError(f"sum_tree.sample_weighted: normalize must be a str, got {type(normalize).__name__}")
    if normalize not in ("batch", "tree"):
        raise ValueError(f'sum_tree.sample_weighted: normalize must be "batch" or "tree", got {normalize!r}')


def _cpu_core() -> Any:
    if _backend.CPU_BACKEND == "cpp":
        return _backend._C.SumTreeCore
    if _backend.CPU_BACKEND == "numba":
        from fastrl.kernels._numba.sum_tree import NumbaCore

        return NumbaCore
    return ReferenceCore


def _cuda_core() -> Any:
    from fastrl.kernels._cuda import sum_tree as cuda

    return cuda.CudaCore if _backend.cuda_backend()[0] == "cuda" else cuda.TorchCore


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
        if not 1 <= capacity <= _MAX_CAPACITY:
            raise ValueError(f"sum_tree: capacity must be in [1, {_MAX_CAPACITY}], got {capacity}")
        is_torch = type(dtype).__module__ == "torch"
        try:
            name = str(dtype).removeprefix("torch.") if is_torch or dtype is None else np.dtype(dtype).name
        except TypeError:
            name = repr(dtype)
        if name not in _FLOAT_DTYPES:
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
        core_class = self._core_class or (_cpu_core() if self.device == "cpu" else _cuda_core())
        self._is_torch = is_torch
        tensor_type = sys.modules["torch"].Tensor if is_torch else None
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
        self._core.update(indices, priorities)

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
        """p[indices]: a float for an int; else an array [B] of the tree's dtype, of the same kind as `indices`."""
        return self._core.get(indices)

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
