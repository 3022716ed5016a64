"""The sum tree's inner loops in Numba; everything around them is the reference's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels.random._numba import draw
from fastrl.kernels.sum_tree.reference import FANOUT, ReferenceCore


@njit(nogil=True, cache=True, error_model="numpy")
def _prefix(x: Any) -> None:
    """`prefix_reference` in place: the same additions in the same order."""
    for h in (1, 2, 4, 8):
        for j in range(FANOUT):
            if j & h:
                x[j] += x[(j & ~(2 * h - 1)) + h - 1]


@njit(nogil=True, cache=True, error_model="numpy")
def _repair(leaves: Any, sums: Any, mins: Any, maxs: Any, start: Any, marks: Any, nodes: Any) -> None:
    """Recompute the ancestors of the leaves `nodes`; level l >= 1 is [start[l], start[l + 1]) of the flat arrays."""
    x = np.empty(FANOUT)
    count = len(nodes)
    for level in range(1, len(start) - 1):
        kept = 0
        for i in range(count):
            node = nodes[i] // FANOUT
            if not marks[start[level] + node]:
                marks[start[level] + node] = True
                nodes[kept] = node
                kept += 1
        count = kept
        for i in range(count):
            node = nodes[i]
            low, high = math.inf, 0.0
            for j in range(FANOUT):
                if level == 1:
                    p = np.float64(leaves[node * FANOUT + j])
                    x[j] = p
                    if p > 0:
                        low = min(low, p)
                    high = max(high, p)
                else:
                    child = start[level - 1] + node * FANOUT + j
                    x[j] = sums[child]
                    low = min(low, np.float64(mins[child]))
                    high = max(high, np.float64(maxs[child]))
            _prefix(x)
            at = start[level] + node
            sums[at], mins[at], maxs[at] = x[FANOUT - 1], low, high
            marks[at] = False


@njit(nogil=True, cache=True, error_model="numpy")
def _find_all(leaves: Any, sums: Any, start: Any, us: Any, out: Any) -> None:
    x = np.empty(FANOUT)
    for i in range(len(us)):
        u, node = us[i], 0
        for level in range(len(start) - 3, -1, -1):
            for j in range(FANOUT):
                if level == 0:
                    x[j] = leaves[node * FANOUT + j]
                else:
                    x[j] = sums[start[level] + node * FANOUT + j]
            _prefix(x)
            k = 0
            for j in range(FANOUT):
                k += x[j] <= u
            if k == FANOUT:
                k = 0
                for j in range(FANOUT):
                    k += x[j] < x[FANOUT - 1]
            if k > 0:
                u -= x[k - 1]
            node = node * FANOUT + k
        out[i] = node


@njit(nogil=True, cache=True, error_model="numpy")
def _draw_distinct(
    leaves: Any, sums: Any, mins: Any, maxs: Any, start: Any, marks: Any, r: Any, out: Any, taken: Any
) -> None:
    one = np.empty(1, np.int64)
    u = np.empty(1)
    for i in range(len(r)):
        u[0] = r[i] * sums[start[len(start) - 2]]
        _find_all(leaves, sums, start, u, out[i : i + 1])
        taken[i] = leaves[out[i]]
        leaves[out[i]] = 0
        one[0] = out[i]
        _repair(leaves, sums, mins, maxs, start, marks, one)
    for i in range(len(r)):
        leaves[out[i]] = taken[i]
    _repair(leaves, sums, mins, maxs, start, marks, out.copy())


class NumbaCore(ReferenceCore):
    def __init__(self, capacity: int, dtype: str, state: Any, tensor_type: Any = None) -> None:
        super().__init__(capacity, dtype, state, tensor_type)
        # The levels again as flat arrays, so that one compiled call walks all of them.
        widths = [len(level) for level in self._levels]
        self._start = np.array([0, 0, *np.cumsum(widths[1:])], np.int64)
        self._flat: list[Any] = []
        for per_level in (self._levels, self._mins, self._maxs):
            flat = np.concatenate(per_level[1:])
            for level in range(1, len(widths)):
                per_level[level] = flat[self._start[level] : self._start[level + 1]]
            self._flat.append(flat)
        self._marks = np.zeros(len(self._flat[0]), np.bool_)

    def _update(self, index: Any, values: Any) -> None:
        self._store(index, values)
        sums, mins, maxs = self._flat
        _repair(self._levels[0], sums, mins, maxs, self._start, self._marks, index.copy())

    def _find(self, u: Any) -> Any:
        index = np.empty(len(u), np.int64)
        _find_all(self._levels[0], self._flat[0], self._start, u, index)
        return index

    def _uniform(self, n: int) -> Any:
        return draw(self._state, n, False)

    def _draw_successively(self, r: Any) -> Any:
        index, taken = np.empty(len(r), np.int64), np.empty(len(r), self._levels[0].dtype)
        sums, mins, maxs = self._flat
        _draw_distinct(self._levels[0], sums, mins, maxs, self._start, self._marks, r, index, taken)
        return index


SumTreeCore = NumbaCore
