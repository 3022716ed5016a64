"""The tree in NumPy, and what the cores written in Python share."""

from __future__ import annotations

import math
import numbers
import operator
import threading
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.random.reference import uniforms

FANOUT = 16
MAX_CAPACITY = 2**31 - 1
# The largest priority, and how the error texts write it: sums of 2^31 - 1 of them must stay finite in float64.
MAX_PRIORITY = {
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
            self._like = _arrays.torch().empty(0)
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
        return uniforms(self._state, n)

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
            values = self._load(priorities, "sum_tree.update: priorities", _arrays.FLOATS)
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
        alpha, eps = _arrays.load_float(alpha, f"{where}: alpha"), _arrays.load_float(eps, f"{where}: eps")
        index = self.xp.asarray(self._load(indices, f"{where}: indices", _arrays.INTS), dtype=self.xp.int64)
        errors = self._load(td_errors, f"{where}: td_errors", _arrays.FLOATS)
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
            values = (x**alpha).clip(_MIN_PRIORITY[self.dtype], MAX_PRIORITY[self.dtype][0])
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
            u = self._load(prefix_sums, "sum_tree.find: prefix_sums", _arrays.FLOATS)
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
            # Through _number: a GPU multiplies by the reciprocal of a Python number, which rounds twice.
            probability = self.xp.asarray(self._levels[0][index], dtype=self.xp.float64) / self._number(total)
        return self._out(index, self._like), self._out(probability, self._like)

    def sample_weighted(self, batch_size: Any, beta: Any, normalize: Any, stratified: bool) -> tuple[Any, Any]:
        n = check_batch_size(batch_size, "sample_weighted")
        beta = _arrays.load_float(beta, "sum_tree.sample_weighted: beta")
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
            if slice < _MIN_PRIORITY["float64"]:
                return self._find((i + r) / self._number(n) * self.total)  # _number: as in sample
            return self._find((i + r) * slice)
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
            index = self.xp.asarray(self._load(indices, f"{where}: indices", _arrays.INTS), dtype=self.xp.int64)
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
        limit, text = MAX_PRIORITY[self.dtype]
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
    if not 1 <= n <= MAX_CAPACITY:
        raise ValueError(f"sum_tree.{method}: batch_size must be in [1, {MAX_CAPACITY}], got {n}")
    return n


def check_normalize(normalize: Any) -> None:
    if not isinstance(normalize, str):
        raise TypeError(f"sum_tree.sample_weighted: normalize must be a str, got {type(normalize).__name__}")
    if normalize not in ("batch", "tree"):
        raise ValueError(f'sum_tree.sample_weighted: normalize must be "batch" or "tree", got {normalize!r}')


SumTreeCore = ReferenceCore

__all__ = ["SumTreeCore"]
