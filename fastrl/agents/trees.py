"""Extremely randomised trees (Geurts et al. 2006, doi:10.1007/s10994-006-6226-1) for regression, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIELDS = ("feature", "threshold", "child", "value")


class Nodes(NamedTuple):
    """Nodes of binary trees: x goes to `child` if x[feature] < threshold, else to child + 1; leaves have child 0."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    child: NDArray[np.int64]
    value: NDArray[np.float64]  # the mean of what reached the node


def grow(x: NDArray[np.float32], y: NDArray[np.float64], trees: int, min_split: int, rng: np.random.Generator) -> Nodes:
    """Trees that are fitted to y ``[N]`` at x ``[N, d]``, each on all of it; their roots are the first nodes.

    A node of at least `min_split` rows is split by one cut of every feature, drawn uniformly between the least and the
    greatest of its rows: by that which leaves the least sum of squares.  It is a leaf where none separates anything,
    or where all its y are equal.
    """
    rows = np.tile(np.arange(len(x)), trees)  # of all nodes of a level, one after another
    starts = np.arange(trees) * len(x)
    levels, made = [], trees
    while len(starts):
        n = np.diff(starts, append=len(rows))
        node = np.repeat(np.arange(len(starts)), n)
        targets = y[rows]
        total = np.add.reduceat(targets, starts)
        best, cut = np.full(len(starts), -np.inf), np.zeros(len(starts), np.float32)
        feature = np.zeros(len(starts), np.int64)
        for f in range(x.shape[1]):
            column = x[rows, f]
            low, high = np.minimum.reduceat(column, starts), np.maximum.reduceat(column, starts)
            at = (high - (high - low) * rng.random(len(starts))).astype(np.float32)
            left = column < at[node]
            n_left = np.add.reduceat(left, starts, dtype=np.int64)
            of_left = np.add.reduceat(targets * left, starts)
            with np.errstate(invalid="ignore", divide="ignore"):
                score = of_left**2 / n_left + (total - of_left) ** 2 / (n - n_left)
            better = (n_left > 0) & (n_left < n) & (score > best)
            best[better], cut[better], feature[better] = score[better], at[better], f
        spread = np.maximum.reduceat(targets, starts) > np.minimum.reduceat(targets, starts)
        splits = (n >= min_split) & spread & (best > -np.inf)
        child = np.zeros(len(starts), np.int64)
        child[splits] = made + 2 * np.arange(np.count_nonzero(splits))
        made += 2 * int(np.count_nonzero(splits))
        levels.append(Nodes(feature, cut, child, total / n))
        kept = splits[node]
        rows, node = rows[kept], node[kept]
        right = x[rows, feature[node]] >= cut[node]
        key = (child[node] - child[splits].min(initial=made)) + right
        order = np.argsort(key, kind="stable")
        rows, key = rows[order], key[order]
        starts = np.flatnonzero(np.diff(key, prepend=-1))
    return Nodes(*(np.concatenate(parts) for parts in zip(*levels, strict=True)))


class Forest:
    """`trees` of each of `actions` actions: Q(s, a) is the mean of those of a; 0 before `fit`.

    `vector` holds the values of all nodes.
    """

    def __init__(self, inputs: int, actions: int, trees: int, min_split: int) -> None:
        self.inputs, self.actions, self.trees, self.min_split = inputs, actions, trees, min_split
        n = actions * trees
        self.nodes = Nodes(np.zeros(n, np.int64), np.zeros(n, np.float32), np.zeros(n, np.int64), np.zeros(n))

    @property
    def vector(self) -> NDArray[np.float64]:
        return self.nodes.value

    def fit(
        self,
        x: NDArray[np.float32],
        action: NDArray[np.int64],
        y: NDArray[np.float64],
        rng: np.random.Generator,
        *_: Any,
    ) -> None:
        """New trees of the values y ``[N]`` of `action` at x; those of an action that was not taken are one leaf, 0."""
        none = Nodes(*(np.zeros(self.trees, array.dtype) for array in self.nodes))
        each = [
            grow(x[action == a], y[action == a], self.trees, self.min_split, rng) if (action == a).any() else none
            for a in range(self.actions)
        ]
        m, begin, moved = self.trees, self.actions * self.trees, []
        for nodes in each:  # the roots of all come first, and then what is behind a forest's own
            child = np.where(nodes.child > 0, nodes.child - m + begin, 0)
            moved.append(nodes._replace(child=child))
            begin += len(child) - m
        columns = zip(*moved, strict=True)
        self.nodes = Nodes(*(np.concatenate([*(x[:m] for x in c), *(x[m:] for x in c)]) for c in columns))

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Q ``[B, actions]`` for x ``[B, d]``."""
        feature, threshold, child, value = self.nodes
        n = self.actions * self.trees
        at = np.tile(np.arange(n), len(x))
        row = np.repeat(np.arange(len(x)), n)
        inner = np.flatnonzero(child[at])
        while len(inner):
            now = at[inner]
            now = child[now] + (x[row[inner], feature[now]] >= threshold[now])
            at[inner] = now
            inner = inner[child[now] > 0]
        q: NDArray[np.float32] = value[at].reshape(len(x), self.actions, self.trees).mean(2).astype(np.float32)
        return q

    def state_dict(self) -> dict[str, Any]:
        return dict(zip(FIELDS, self.nodes, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != set(FIELDS):
            raise ValueError(f"trees must have {', '.join(FIELDS)}, got {', '.join(sorted(state))}")
        arrays = [np.asarray(state[name]) for name in FIELDS]
        n, roots = len(arrays[0]), self.actions * self.trees
        dtypes = [array.dtype for array in self.nodes]
        for name, array, dtype in zip(FIELDS, arrays, dtypes, strict=True):
            if array.shape != (n,) or array.dtype != dtype or n < roots:
                raise ValueError(f"{name} must be {dtype} [{max(n, roots)}], got {array.dtype} {array.shape}")
        nodes = Nodes(*(np.array(array) for array in arrays))
        later = nodes.child > np.maximum(np.arange(n), roots - 1)  # so that every walk ends
        if (
            not ((nodes.child == 0) | (later & (nodes.child < n - 1))).all()
            or not ((nodes.feature >= 0) & (nodes.feature < self.inputs)).all()
        ):
            raise ValueError("trees are damaged: a child or a feature is none")
        if not (np.isfinite(nodes.value).all() and np.isfinite(nodes.threshold).all()):
            raise ValueError("values and thresholds of trees must be finite")
        self.nodes = nodes
