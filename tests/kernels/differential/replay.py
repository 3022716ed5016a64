"""Scans, n-step returns of a ring, SumTree, and gathered rows."""

import functools
from fractions import Fraction

import numpy as np

import fastrl
from fastrl.kernels._core.backends import choose

from ..n_step_gather.helpers import Ring, histories
from ..scans import problems
from .helpers import LAYOUTS, TOL, compare, drawn_dtype, generator_at, laid_out, normals, same, size


def scan(op, rng, oracle):
    T, N = (int(x) for x in (rng.integers(1, 13), size(rng, 70)) if x)
    if rng.random() < 0.1:
        T, N = int(rng.integers(13, 60)), int(rng.integers(1, 5))
    found = problems.problem.__wrapped__(
        op, T, N, N == 1 and bool(rng.integers(2)), str(rng.choice(["float32", "float64"])), int(rng.integers(2**32)),
        LAYOUTS,
    )  # fmt: skip
    return compare(lambda: getattr(fastrl, op)(**found.kwargs), found.wanted, terms=10.0)


def n_step_gather(rng, oracle):
    slots, n_envs = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    one = n_envs == 1 and bool(rng.integers(2))
    written = histories(rng.integers(1, 15, n_envs).tolist(), int(rng.integers(2**32)), end=rng.choice([0.0, 0.2, 0.8]))
    dtype, flags = str(rng.choice(["float32", "float64"])), str(rng.choice(["bool", "uint8"]))
    ring = Ring(written, slots, first=int(rng.integers(slots)), dtype=dtype, flags=flags, one=one)
    tolerance = lambda dtype: {"rtol": TOL[str(dtype)], "atol": TOL[str(dtype)] * 20}  # noqa: E731 (rewards up to 2)
    gamma, n = float(rng.choice([0.0, 0.5, 0.9, 1.0])), int(rng.choice([1, 2, 3, 5, 20]))
    options = {"values": bool(rng.integers(2)), "cuts": bool(rng.integers(2))}
    return lambda: ring.check(fastrl.n_step_gather, tolerance, gamma, n, **options)


def sum_tree(rng, oracle):
    capacity, dtype = size(rng, 600), drawn_dtype(rng)
    plain, updates = oracle.Tree(capacity, dtype), []
    for _ in range(int(rng.integers(1, 4))):
        indices = rng.integers(0, capacity, size(rng, 300))
        priorities = (10.0 ** rng.uniform(-3, 3, len(indices)) * (rng.random(len(indices)) > 0.3)).astype(dtype)
        updates.append((indices, priorities))
        plain.update(indices, priorities)
    seed, counter, make = generator_at(rng)
    n, stratified, beta = size(rng, 60), bool(rng.integers(2)), float(rng.choice([0.0, 0.4, 1.0]))
    boundaries, slack, total = plain.boundaries(), plain.find_slack(), plain.total
    u = np.array(oracle.uniforms(seed, counter, n))
    points = (np.arange(n) + u) * (total / n) if stratified else u * total
    p = plain.priorities.astype(np.float64)

    def check():
        core = {"_core_class": choose("fastrl.kernels.sum_tree").cpu.SumTreeCore}
        generator = make()
        tree = type("SumTree", (fastrl.SumTree,), core)(capacity, dtype=dtype, generator=generator)
        for update in updates:
            tree.update(*update)
        np.testing.assert_array_equal(tree[np.arange(capacity)], plain.priorities)
        same(np.array([tree.total]), np.array([total]), total)
        assert (tree.min, tree.max, len(tree)) == (plain.min, plain.max, len(plain))
        if not total:
            return
        state = generator.state_dict()
        indices, probabilities = tree.sample(n, stratified=stratified)
        for point, index in zip(points.tolist(), indices.tolist(), strict=True):
            assert p[index] > 0
            assert boundaries[index] - 2 * slack <= Fraction(point) <= boundaries[index + 1] + 2 * slack
        same(probabilities, p[indices] / total)
        generator.load_state_dict(state)
        again, weights = tree.sample_weighted(n, beta, stratified=stratified)
        np.testing.assert_array_equal(again, indices)
        same(weights, (p[indices].min() / p[indices]) ** beta)

    return check


def gather_rows(rng, oracle):
    rows = size(rng, 50)
    arrays = []
    for _ in range(int(rng.integers(1, 4))):
        shape = (rows, *rng.integers(1, 6, rng.integers(0, 3)))
        arrays.append(
            laid_out(rng, (100 * normals(rng, shape, np.float64)).astype(rng.choice(["f4", "f8", "u1", "i8"])))
        )
    indices = rng.integers(0, rows, size(rng, 100)).astype(rng.choice(["int32", "int64"]))
    wanted = [np.array([x[i] for i in indices.tolist()], x.dtype).reshape(len(indices), *x.shape[1:]) for x in arrays]

    def check():
        for got, right in zip(fastrl.gather_rows(arrays, indices), wanted, strict=True):
            assert got.dtype == right.dtype
            np.testing.assert_array_equal(got, right)

    return check


CASES = {op: functools.partial(scan, op) for op in problems.OPS} | {
    "n_step_gather": n_step_gather,
    "gather_rows": gather_rows,
    "SumTree": sum_tree,
}
