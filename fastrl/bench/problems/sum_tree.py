"""Prioritized replay's tree: draw a batch, write its priorities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastrl
from fastrl.bench.timing import OURS, Call, Kernel, Problem, library

ALPHA, BETA = 0.6, 0.4


class Tree(NamedTuple):
    """What every contender gets: TD errors of all leaves, and of the batches that are written."""

    td: NDArray[np.float32]  # [capacity]
    new: list[NDArray[np.float32]]  # [batch] each


def _contender(x: Tree, sample: Call, update: Callable[[Any, Any], Any], eps: float) -> Call:
    """Its draws are checked here, before an update; what it returns is the last draw."""
    p = (x.td.astype(np.float64) + eps) ** ALPHA
    edges = np.arange(17) * len(x.td) // 16
    share, counts, drawn = np.add.reduceat(p, edges[:-1]) / p.sum(), np.zeros(16), 0
    while drawn < 4096:
        indices, weights = (np.asarray(found) for found in sample())
        scaled = weights * p[indices] ** BETA
        np.testing.assert_allclose(scaled, scaled[0], rtol=1e-4)
        counts += np.histogram(indices, edges)[0]
        drawn += len(indices)
    chi_square = np.sum((counts - drawn * share) ** 2 / (drawn * share))
    assert chi_square < 56, f"chi-square {chi_square:.0f} of the draws"  # by chance once in 1e6
    k = 0

    def call() -> Any:
        nonlocal k
        k += 1
        indices, weights = sample()
        update(indices, x.new[k % len(x.new)])
        return indices, weights

    return call


def _ours(x: Tree) -> Call:
    td, capacity, batch = x.td, len(x.td), len(x.new[0])
    tree = fastrl.SumTree(capacity, seed=0)
    tree.update_from_td_errors(np.arange(capacity), td, ALPHA, 1e-6)
    return _contender(
        x,
        lambda: tree.sample_weighted(batch, BETA),
        lambda indices, td: tree.update_from_td_errors(indices, td, ALPHA, 1e-6),
        1e-6,
    )


def _reference(x: Tree) -> Call:
    td, capacity, batch = x.td, len(x.td), len(x.new[0])
    p, rng = td.astype(np.float64) ** ALPHA, np.random.default_rng(0)

    def sample() -> Any:
        sums = np.cumsum(p)
        indices = np.minimum(np.searchsorted(sums, rng.random(batch) * sums[-1], side="right"), capacity - 1)
        weights = p[indices] ** -BETA
        return indices, weights / weights.max()

    def update(indices: Any, td: Any) -> None:
        p[indices] = td**ALPHA

    return _contender(x, sample, update, 0.0)


def _tianshou(x: Tree) -> Call:
    td, capacity, batch = x.td, len(x.td), len(x.new[0])
    data = library("tianshou.data")
    np.random.seed(0)  # noqa: NPY002  (the generator that tianshou draws from)
    buffer = data.PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta=BETA)
    zeros, no = np.zeros((capacity, 1), np.float32), np.zeros(capacity, bool)
    flags = {"terminated": no, "truncated": no.copy(), "done": no.copy()}
    buffer.set_batch(data.Batch(obs=zeros, act=zeros[:, 0], rew=zeros[:, 0], **flags, info=data.Batch()))
    buffer._size = capacity
    buffer.update_weight(np.arange(capacity), td)

    def sample() -> Any:
        indices = buffer.sample_indices(batch)
        weights = buffer.get_weight(indices)
        return indices, weights / np.max(weights)

    return _contender(x, sample, buffer.update_weight, float(np.finfo(np.float32).eps))


def _cpprb(x: Tree) -> Call:  # it cannot sample without gathering: one float column is the least
    td, capacity, batch = x.td, len(x.td), len(x.new[0])
    buffer = library("cpprb").PrioritizedReplayBuffer(capacity, {"r": {"shape": 1}}, alpha=ALPHA, eps=1e-4)
    buffer.add(r=np.zeros((capacity, 1), np.float32), priorities=td)

    def sample() -> Any:
        found = buffer.sample(batch, BETA)
        return found["indexes"], found["weights"]

    return _contender(x, sample, buffer.update_priorities, 1e-4)


def _torchrl(x: Tree) -> Call:
    td, capacity, batch = x.td, len(x.td), len(x.new[0])
    torch = library("torch")
    library("torchrl._torchrl").SumSegmentTreeFp32  # noqa: B018  (the sampler fails late without it)
    torch.manual_seed(0)
    sampler = library("torchrl.data.replay_buffers.samplers").PrioritizedSampler(capacity, alpha=ALPHA, beta=BETA)
    storage = library("torchrl.data").LazyTensorStorage(capacity)
    storage.set(range(capacity), torch.zeros(capacity, 1))
    sampler.update_priority(torch.arange(capacity), torch.from_numpy(td))

    def sample() -> Any:
        indices, info = sampler.sample(storage, batch)
        return indices, info["priority_weight"]

    return _contender(x, sample, lambda i, td: sampler.update_priority(i, torch.from_numpy(td)), 1e-8)


def _sum_tree(capacity: int, batch: int) -> Problem:
    """Draw with importance weights, then write priorities (|td| + eps)^alpha."""
    rng = np.random.default_rng(0)
    td = (np.abs(rng.standard_normal(capacity)) + 1e-3).astype(np.float32)
    x = Tree(td, [(np.abs(rng.standard_normal(batch)) + 1e-3).astype(np.float32) for _ in range(61)])

    def check(found: Any) -> None:
        indices, weights = (np.asarray(part) for part in found)
        assert indices.shape == weights.shape == (batch,) and weights.min() > 0 and weights.max() <= 1.0001

    return Problem(
        {
            OURS: lambda: _ours(x),
            "reference: NumPy": lambda: _reference(x),
            "tianshou": lambda: _tianshou(x),
            "cpprb": lambda: _cpprb(x),
            "torchrl": lambda: _torchrl(x),
        },
        check,
    )


KERNELS = {
    "sum_tree": Kernel(_sum_tree, [{"capacity": 2**20, "batch": 256}], {"capacity": 1000, "batch": 32}),
}
