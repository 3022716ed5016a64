"""SumTree on every CPU backend against a plain float64 oracle. False-alarm rate of the statistical tests: 1e-6 each."""

import math
import os
import subprocess
import sys
import textwrap
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.kernels import Generator

FALSE_ALARM = 1e-6
CAPACITIES = [1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511, 512, 513, 4095, 4096, 4097]
LARGE = [65535, 65536, 65537, 1_000_003]
DTYPES = [np.float32, np.float64]

fast = settings(deadline=None, derandomize=True, max_examples=40)
capacities = st.sampled_from(CAPACITIES) | st.integers(1, 600)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)
# From 1e-30 to 1e30 together, zeros, equal values, and integers (whose sums are exact).
scales = st.sampled_from(["wide", "decades", "equal", "integers", "one", "subnormal"])


def draw_priorities(rng, n, scale, dtype):
    if scale == "wide":
        values = 10.0 ** rng.uniform(-30, 30, n)
    elif scale == "decades":
        values = 10.0 ** rng.uniform(-3, 3, n)
    elif scale == "equal":
        values = np.full(n, 0.1)
    elif scale == "integers":
        values = rng.integers(0, 1000, n).astype(np.float64)
    elif scale == "subnormal":
        values = rng.integers(0, 9, n) * float(np.finfo(dtype).smallest_subnormal)  # stored as the smallest normal one
    else:
        values = np.zeros(n)
        values[rng.integers(0, n)] = 3.25
    if scale in ("wide", "decades", "equal"):
        values[rng.random(n) < rng.choice([0.0, 0.3, 0.95])] = 0
    return values.astype(dtype)


def filled(kernels, priorities, **kwargs):
    tree = kernels.SumTree(len(priorities), dtype=priorities.dtype.type, **(kwargs or {"seed": 0}))
    tree.update(np.arange(len(priorities)), priorities)
    return tree


def check_find(tree, oracle_tree, prefix_sums, indices):
    """Never a zero leaf; the right leaf, or one whose boundary is within the stated rounding distance of u."""
    priorities = oracle_tree.priorities
    boundaries, slack = oracle_tree.boundaries(), oracle_tree.find_slack()
    assert indices.dtype == np.int64 and indices.shape == np.shape(prefix_sums)
    for u, index in zip(prefix_sums.tolist(), indices.tolist(), strict=True):
        assert 0 <= index < len(priorities)
        assert priorities[index] > 0, f"find({u!r}) returned leaf {index}, whose priority is 0"
        assert boundaries[index] - slack <= Fraction(u) <= boundaries[index + 1] + slack


# ---- reading back -----------------------------------------------------------------------------------------------


@fast
@given(capacity=capacities, dtype=dtypes, scale=scales, seed=seeds, data=st.data())
def test_updates_against_the_oracle(kernels, oracle, capacity, dtype, scale, seed, data):
    rng = np.random.default_rng(seed)
    tree, plain = kernels.SumTree(capacity, dtype=dtype, seed=0), oracle.Tree(capacity, dtype)
    for _ in range(data.draw(st.integers(1, 4))):
        n = data.draw(st.sampled_from([0, 1, 2, 19, 99, 300]))
        indices = rng.integers(0, capacity, n)  # duplicates are common
        priorities = draw_priorities(rng, n, scale, dtype) if n else np.zeros(0, dtype)
        tree.update(indices, priorities)
        plain.update(indices, priorities)
        got = tree[np.arange(capacity)]
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, plain.priorities)
        assert tree.total == pytest.approx(plain.total, rel=1e-14, abs=0)
        assert (tree.min, tree.max, len(tree)) == (plain.min, plain.max, len(plain))
        assert type(tree.total) is type(tree.min) is type(tree.max) is float


@pytest.mark.parametrize("capacity", LARGE)
def test_large_capacities(kernels, oracle, capacity):
    rng = np.random.default_rng(capacity)
    plain = oracle.Tree(capacity)
    plain.priorities = rng.integers(0, 100, capacity).astype(np.float32)
    tree = filled(kernels, plain.priorities)
    assert tree.total == plain.priorities.astype(np.float64).sum()  # integers: every sum is exact
    assert (tree.min, tree.max, len(tree)) == (plain.min, plain.max, len(plain))
    ends = np.cumsum(plain.priorities.astype(np.float64))
    u = np.r_[0.0, rng.uniform(0, ends[-1], 999), ends[:500], ends[-500:-1], np.nextafter(ends[-1], 0)]
    u = np.floor(u * 1024) / 1024  # exact under subtraction
    np.testing.assert_array_equal(tree.find(u), np.searchsorted(ends, u, side="right"))
    assert tree.find(tree.total) == np.flatnonzero(plain.priorities)[-1]
    changed = np.r_[capacity - 1, 0, rng.integers(0, capacity, 1000)]
    values = rng.integers(0, 100, len(changed)).astype(np.float32)
    tree.update(changed, values)
    plain.update(changed, values)
    np.testing.assert_array_equal(tree[np.arange(capacity)], plain.priorities)
    assert tree.total == plain.priorities.astype(np.float64).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_attributes_of_a_new_tree(kernels, dtype):
    tree = kernels.SumTree(17, dtype=dtype, seed=1)
    assert (tree.capacity, len(tree), tree.total, tree.min, tree.max) == (17, 0, 0.0, math.inf, 0.0)
    assert tree.dtype == dtype and str(tree.device) == "cpu"
    assert tree.generator.state_dict() == {"seed": 1, "counter": 0}
    np.testing.assert_array_equal(tree[np.arange(17)], np.zeros(17, dtype))
    assert bool(tree.capacity) and not len(tree)


def test_defaults(kernels):
    tree = kernels.SumTree(np.int64(4))
    assert tree.dtype == np.float32 and str(tree.device) == "cpu" and tree.capacity == 4


def test_last_duplicate_wins(kernels):
    tree = kernels.SumTree(40, seed=0)
    n = 100_000
    indices = np.random.default_rng(0).integers(0, 40, n)
    tree.update(indices, np.arange(n, dtype=np.float32))
    last = np.full(40, -1)
    last[indices] = np.arange(n)  # NumPy assigns in order
    np.testing.assert_array_equal(tree[np.arange(40)], last.astype(np.float32))
    tree.update(np.array([3, 3, 3]), np.array([5, 6, 0], np.float32))
    assert tree[3] == 0 and tree.total == last.sum() - last[3]


def test_scalar_forms(kernels):
    tree = kernels.SumTree(20, seed=0)
    tree[3] = 2.5
    tree.update(4, 1.5)
    assert tree[3] == 2.5 and type(tree[3]) is float
    assert tree.total == 4.0
    found = tree.find(3.0)
    assert found == 4 and type(found) is int
    assert (tree.find(0.0), tree.find(2.4), tree.find(2.5), tree.find(4.0)) == (3, 3, 4, 4)
    tree.update(np.array([5, 6]), 0.5)  # one priority for all
    tree[np.array([7, 8])] = 0.25
    np.testing.assert_array_equal(tree[np.arange(3, 9)], np.array([2.5, 1.5, 0.5, 0.5, 0.25, 0.25], np.float32))
    tree[np.int64(9)] = 1.0
    assert tree[np.int64(9)] == 1.0


def test_float32_leaf_of_a_float64_priority(kernels):
    """0.1 is rounded once, to the leaf; the sums are those of the leaves."""
    tree = kernels.SumTree(3, seed=0)
    tree.update(np.arange(3), np.array([0.1, 0.0, float(np.finfo(np.float32).max)]))
    np.testing.assert_array_equal(tree[np.arange(3)], np.array([0.1, 0, np.finfo(np.float32).max], np.float32))
    assert len(tree) == 2 and tree.min == float(np.float32(0.1))
    tree[0] = 0.1
    assert tree[0] == float(np.float32(0.1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_of_inputs(kernels, dtype):
    """Strided, reversed, broadcast, read-only, int32, the other float type: the same tree; inputs are not modified."""
    rng = np.random.default_rng(5)
    indices = rng.permutation(64)[:20].astype(np.int64)
    priorities = rng.integers(1, 50, 20) / 4.0
    wanted = np.zeros(64, dtype)
    wanted[indices] = priorities
    table = np.zeros((20, 3))
    table[:, 1] = priorities
    twice = np.repeat(indices, 2)
    frozen = indices.copy(), priorities.astype(np.float32)
    for array in frozen:
        array.flags.writeable = False
    forms = {
        "plain": (indices, priorities),
        "int32": (indices.astype(np.int32), priorities.astype(np.float32)),
        "strided": (twice[::2], table[:, 1]),
        "reversed": (indices[::-1].copy()[::-1], priorities[::-1].copy()[::-1]),
        "fortran": (np.asfortranarray(np.c_[indices, indices])[:, 0], np.asfortranarray(table)[:, 1]),
        "read-only": frozen,
    }
    for name, (some_indices, some_priorities) in forms.items():
        before = some_indices.copy(), some_priorities.copy()
        tree = kernels.SumTree(64, dtype=dtype, seed=0)
        tree.update(some_indices, some_priorities)
        np.testing.assert_array_equal(tree[np.arange(64)], wanted, err_msg=name)
        np.testing.assert_array_equal(tree[some_indices], priorities.astype(dtype), err_msg=name)
        u = np.linspace(0, tree.total, 41)
        np.testing.assert_array_equal(tree.find(u[::2]), tree.find(u)[::2], err_msg=name)
        np.testing.assert_array_equal(tree.find(u[::-1]), tree.find(u)[::-1], err_msg=name)
        np.testing.assert_array_equal(some_indices, before[0], err_msg=name)
        np.testing.assert_array_equal(some_priorities, before[1], err_msg=name)
    tree.update(indices, np.broadcast_to(np.float32(2), 20))
    assert tree.total == 40
    half = np.array([0.5, 1.5], np.float32)
    np.testing.assert_array_equal(tree.find(half), tree.find(half.astype(np.float64)))


def test_memory_mapped_and_subclassed_inputs(kernels, tmp_path):
    class Sub(np.ndarray):
        pass

    mapped = np.memmap(tmp_path / "indices", np.int64, "w+", shape=(3,))
    mapped[:] = (5, 1, 5)
    tree = kernels.SumTree(8, seed=0)
    tree.update(mapped, np.array([1, 2, 4], np.float32).view(Sub))
    assert (tree[5], tree[1], tree.total) == (4.0, 2.0, 6.0)
    assert type(tree[mapped]) is np.ndarray and type(tree.find(np.array([0.0, 5.0]).view(Sub))) is np.ndarray


def test_empty_arrays(kernels, oracle):
    tree = filled(kernels, np.ones(5, np.float32))
    before = oracle.snapshot(tree)
    tree.update(np.zeros(0, np.int64), np.zeros(0, np.float32))
    tree.update(np.zeros(0, np.int32), 1.0)
    assert tree[np.zeros(0, np.int64)].shape == (0,) and tree[np.zeros(0, np.int64)].dtype == np.float32
    assert tree.find(np.zeros(0)).shape == (0,) and tree.find(np.zeros(0)).dtype == np.int64
    assert oracle.snapshot(tree) == before


def test_clear(kernels, oracle):
    tree = filled(kernels, np.arange(300, dtype=np.float32), seed=4)
    tree.sample(7)
    tree.clear()
    assert (len(tree), tree.total, tree.min, tree.max) == (0, 0.0, math.inf, 0.0)
    assert not tree[np.arange(300)].any()
    assert tree.generator.state_dict() == {"seed": 4, "counter": 7}, "clear is about priorities, not about the stream"
    with pytest.raises(ValueError, match="total priority is 0"):
        tree.sample(1)
    tree.update(np.array([299]), 2.0)
    assert (tree.total, len(tree), tree.find(2.0)) == (2.0, 1, 299)


@pytest.mark.parametrize("capacity", [2**4, 2**8, 2**12, 2**16])
def test_no_level_too_many(kernels, capacity):
    """A full tree of 16^k leaves has k levels above the leaves; torchrl's has one more."""
    core = kernels.SumTree(capacity, seed=0)._core
    if not hasattr(core, "_levels"):
        pytest.skip(f"the {kernels.name} backend does not show its levels")
    assert len(core._levels) == 1 + round(math.log(capacity, 16))


# ---- update_from_td_errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given_as", DTYPES)
@pytest.mark.parametrize(
    ("alpha", "eps"), [(0.6, 1e-6), (0, 0.0), (0.4, 0), (1, 1e-6), (1.0, 0.0), (2.5, 0.5), (0.6, 1e6)]
)
def test_update_from_td_errors(kernels, tolerance, dtype, given_as, alpha, eps):
    """p = (|td| + eps)^alpha, once, kept in the normal range of the dtype where |td| + eps > 0."""
    rng = np.random.default_rng(1)
    errors = (rng.choice([-1, 1], 1001) * 10.0 ** rng.uniform(-30, 30, 1001)).astype(given_as)
    errors[:6] = 0, -0.0, 1, -1, np.finfo(given_as).smallest_subnormal, -np.finfo(given_as).max
    low, high = float(np.finfo(dtype).tiny), min(float(np.finfo(dtype).max), 2.0**960)
    wanted = []
    for error in np.abs(errors.astype(np.float64)).tolist():
        x = error + eps
        try:
            wanted.append(min(max(x**alpha, low), high) if x > 0 or alpha == 0 else 0.0)
        except OverflowError:
            wanted.append(high)
    tree = kernels.SumTree(1500, dtype=dtype, seed=0)
    tree.update(np.arange(1500), 2.0)
    kept = errors.copy()
    largest = tree.update_from_td_errors(np.arange(1001), errors, alpha, eps)
    np.testing.assert_array_equal(errors, kept)
    leaves = tree[np.arange(1001)]
    np.testing.assert_allclose(leaves.astype(np.float64), wanted, rtol=tolerance(np.dtype(dtype))["rtol"], atol=0)
    assert type(largest) is float and largest == leaves.max()
    assert (tree[np.arange(1001, 1500)] == 2).all()
    if alpha == 0:
        assert (leaves == 1).all()
    fresh = filled(kernels, tree[np.arange(1500)])
    assert (fresh.total, fresh.min, fresh.max, len(fresh)) == (tree.total, tree.min, tree.max, len(tree))
    u = np.linspace(0, tree.total, 99)
    np.testing.assert_array_equal(tree.find(u), fresh.find(u))


def test_update_from_td_errors_keeps_zeros(kernels):
    """A leaf of priority 0 stays 0 where asked; and what counts is the priority before the call."""
    priorities = np.random.default_rng(0).integers(0, 2, 300).astype(np.float32)
    errors = np.random.default_rng(1).normal(size=300).astype(np.float32)
    tree = filled(kernels, priorities)
    largest = tree.update_from_td_errors(np.arange(300), errors, 1.0, 0.0, keep_zeros=True)
    np.testing.assert_allclose(tree[np.arange(300)], np.abs(errors) * (priorities > 0), rtol=1e-5)
    assert largest == tree.max and len(tree) == priorities.sum()
    assert tree.update_from_td_errors(np.arange(300), errors, 1.0, 0.0) == np.abs(errors).max()
    assert len(tree) == 300
    # Only zeros: nothing is written, and 0.0 says so.
    tree = filled(kernels, np.array([0, 0, 1], np.float32))
    assert tree.update_from_td_errors(np.array([0, 1, 1]), np.ones(3), 0.6, 0.0, keep_zeros=True) == 0.0
    assert (tree.total, len(tree)) == (1.0, 1)
    # Duplicates of a zero and of a positive leaf: the last wins, and the zero stays.
    largest = tree.update_from_td_errors(np.array([0, 2, 2, 0]), np.array([5, 7.0, 3, 9]), 1.0, 0.0, keep_zeros=True)
    assert tree[np.arange(3)].tolist() == [0, 0, 3] and largest in (3.0, 7.0)


def test_update_from_td_errors_duplicates(kernels):
    n = 50_000
    indices = np.random.default_rng(0).integers(0, 40, n)
    tree = kernels.SumTree(40, seed=0)
    tree.update_from_td_errors(indices, -np.arange(1.0, n + 1), 1.0, 0.0)
    last = np.zeros(40)
    last[indices] = np.arange(1, n + 1)
    np.testing.assert_allclose(tree[np.arange(40)], last, rtol=1e-5)


def test_update_from_td_errors_layouts(kernels):
    wide = np.arange(40.0).reshape(20, 2)
    tree, plain = (kernels.SumTree(64, seed=0) for _ in range(2))
    plain.update_from_td_errors(np.arange(0, 40, 2), np.ascontiguousarray(wide[:, 1]), 0.6, 1e-6)
    tree.update_from_td_errors(np.arange(40, dtype=np.int32)[::2], wide[:, 1], 0.6, 1e-6)
    np.testing.assert_array_equal(tree[np.arange(64)], plain[np.arange(64)])
    assert tree.update_from_td_errors(np.zeros(0, np.int64), np.zeros(0), 0.6, 1e-6) == 0.0


def test_update_from_td_errors_torch(kernels, torch):
    tree, plain = kernels.SumTree(64, dtype=torch.float32, seed=0), kernels.SumTree(64, seed=0)
    errors = torch.randn(64, requires_grad=True)
    indices = torch.randperm(64)
    largest = tree.update_from_td_errors(indices, errors.detach(), 0.6, 1e-6)
    assert largest == plain.update_from_td_errors(indices.numpy(), errors.detach().numpy(), 0.6, 1e-6)
    np.testing.assert_array_equal(tree[indices].numpy(), plain[indices.numpy()])


# ---- no drift ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_updates_leave_no_drift(kernels, oracle, dtype):
    capacity, batch = 10_007, 2500
    rng = np.random.default_rng(8)
    tree, plain = kernels.SumTree(capacity, dtype=dtype, seed=3), oracle.Tree(capacity, dtype)
    for _ in range(1_000_000 // batch):
        indices = rng.integers(0, capacity, batch)
        priorities = (10.0 ** rng.uniform(-6, 6, batch)).astype(dtype)
        priorities[rng.random(batch) < 0.1] = 0
        tree.update(indices, priorities)
        plain.priorities[indices] = priorities
    np.testing.assert_array_equal(tree[np.arange(capacity)], plain.priorities)
    assert abs(tree.total - plain.total) <= 1e-12 * plain.total
    assert (tree.min, tree.max, len(tree)) == (plain.min, plain.max, len(plain))
    # Every node is a function of the leaves alone: a fresh tree is the same to the last bit.
    fresh = filled(kernels, plain.priorities, seed=3)
    assert oracle.snapshot(fresh) == oracle.snapshot(tree)
    u = rng.uniform(0, tree.total, 2000)
    np.testing.assert_array_equal(tree.find(u), fresh.find(u))
    for first, second in zip(tree.sample(500), fresh.sample(500), strict=True):
        np.testing.assert_array_equal(first, second)


def test_huge_then_small(kernels):
    """After 1e30 is replaced, the sums know nothing of it (a tree that adds deltas would)."""
    tree = kernels.SumTree(1000, seed=0)
    tree.update(np.arange(1000), 1.0)
    tree[500] = 1e30
    tree[500] = 1.0
    assert tree.total == 1000 and tree.max == 1.0
    tree[500] = 1e-30
    assert tree.min == float(np.float32(1e-30))
    tree[500] = 0.0
    assert (tree.min, tree.total, len(tree)) == (1.0, 999.0, 999)


def test_min_rises_and_max_falls(kernels):
    """tianshou's minimum never rises."""
    tree = kernels.SumTree(100, seed=0)
    tree.update(np.arange(100), np.arange(1, 101, dtype=np.float32))
    for i in range(99):
        tree[i] = 0.0
        assert tree.min == i + 2
    tree.update(np.arange(100), np.arange(1, 101, dtype=np.float32))
    for i in range(99, 0, -1):
        tree[i] = 0.5
        assert tree.max == i
        assert tree.min == 0.5


def test_float64_extremes(kernels, oracle):
    tree = kernels.SumTree(300, dtype=np.float64, seed=0)
    tree.update(np.arange(300), 2.0**960)
    assert tree.total == 300 * 2.0**960 and math.isfinite(tree.total)
    np.testing.assert_allclose(tree.sample(50)[1], 1 / 300, rtol=1e-15)
    before = oracle.snapshot(tree)
    with pytest.raises(ValueError, match=r"priorities\[1\] is .*2\*\*960"):
        tree.update(np.array([0, 1]), np.array([1.0, np.nextafter(2.0**960, np.inf)]))
    assert oracle.snapshot(tree) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiny_positive_priority_counts_as_the_smallest_normal_number(kernels, dtype):
    """None is rounded to 0, and a total of them has all its bits: two equal leaves are drawn alike."""
    info = np.finfo(dtype)
    tiny = float(info.tiny)
    tree = kernels.SumTree(6, dtype=dtype, seed=3)
    for i, priority in enumerate([5e-324, 1e-300, float(info.smallest_subnormal), tiny, 0.0, -0.0]):
        tree[i] = priority
    wanted = [tiny, tiny if dtype == np.float32 else 1e-300, tiny, tiny, 0, 0]
    np.testing.assert_array_equal(tree[np.arange(6)], np.array(wanted, dtype))
    tree.update(np.arange(2), np.array([5e-324, 5e-324]))
    tree.update(np.arange(2, 4), np.array([0, info.smallest_subnormal], dtype))
    assert tree[3] == tiny and len(tree) == 3 and tree.min == tree.max == tiny and tree.total == 3 * tiny
    state = tree.state_dict()
    state["priorities"] = np.array([1, 0, 0, 0, 0, 1], dtype) * info.smallest_subnormal
    tree.load_state_dict(state)
    assert tree.total == 2 * tiny
    for options in ({}, {"stratified": False}):
        indices, probabilities = tree.sample(4000, **options)
        assert (probabilities == 0.5).all() and set(indices.tolist()) == {0, 5}
        assert abs((indices == 0).mean() - 0.5) < 0.05


def test_weights_down_to_the_smallest_normal_number(kernels):
    tree = filled(kernels, np.array([2.34e-308, 1.0]), seed=1)
    indices, weights = tree.sample_weighted(9, 1.0, "tree")
    np.testing.assert_allclose(weights[indices == 1], 2.34e-308, rtol=1e-12, atol=0)


# ---- find -------------------------------------------------------------------------------------------------------


@fast
@given(capacity=capacities, dtype=dtypes, scale=scales, seed=seeds)
def test_find_against_the_oracle(kernels, oracle, capacity, dtype, scale, seed):
    """Every boundary and its neighbours, 0, the total and what lies just below it, and points in between."""
    rng = np.random.default_rng(seed)
    plain = oracle.Tree(capacity, dtype)
    plain.update(np.arange(capacity), draw_priorities(rng, capacity, scale, dtype))
    if not plain.priorities.any():
        plain.priorities[rng.integers(0, capacity)] = 1
    tree = filled(kernels, plain.priorities)
    total = tree.total
    ends = np.array([float(boundary) for boundary in plain.boundaries()])
    if len(ends) > 200:
        ends = rng.choice(ends, 200, replace=False)
    u = np.r_[0.0, total, np.nextafter(total, 0), ends, np.nextafter(ends, np.inf), np.nextafter(ends, -np.inf)]
    u = np.r_[u, rng.uniform(0, 1, 50) * total]
    u = np.r_[u[(u >= 0) & (u <= total)], 0.0]
    check_find(tree, plain, u, tree.find(u))
    single = [tree.find(float(value)) for value in u[:20]]
    np.testing.assert_array_equal(single, tree.find(u[:20]))


@fast
@given(capacity=capacities, seed=seeds, share=st.sampled_from([0.1, 0.5, 1.0]))
def test_find_is_exact_where_sums_are(kernels, capacity, seed, share):
    """Integer priorities and dyadic u leave nothing to round: the answer is the definition's."""
    rng = np.random.default_rng(seed)
    priorities = np.where(rng.random(capacity) < share, rng.integers(1, 100, capacity), 0).astype(np.float32)
    priorities[rng.integers(0, capacity)] = 7
    tree = filled(kernels, priorities)
    ends = np.cumsum(priorities.astype(np.float64))
    u = np.unique(np.r_[0.0, ends, ends - 1 / 64, ends + 1 / 64, ends / 2])
    u = u[(u >= 0) & (u < ends[-1])]
    np.testing.assert_array_equal(tree.find(u), np.searchsorted(ends, u, side="right"))
    assert tree.find(tree.total) == np.flatnonzero(priorities)[-1]


@pytest.mark.parametrize("capacity", [1, 2, 16, 17, 256, 257, 4097])
def test_one_nonzero_leaf_is_always_found(kernels, capacity):
    """flashbax #52, torchrl's CUDA tree at mass 0: never a leaf that is empty."""
    for position in {0, capacity // 3, capacity - 1}:
        for value in (1e-30, 0.1, 3.0, 1e30):
            tree = kernels.SumTree(capacity, seed=position)
            tree[position] = value
            total = tree.total
            u = np.array([0.0, total / 3, np.nextafter(total, 0), total, 5e-324])
            assert (tree.find(u) == position).all()
            for options in ({}, {"stratified": False}):
                indices, probabilities = tree.sample(50, **options)
                assert (indices == position).all() and (probabilities == 1).all()
            indices, probabilities = tree.sample(1, replacement=False)
            assert indices.tolist() == [position] and probabilities.tolist() == [1.0]


def test_find_steps_past_no_end_by_rounding(kernels):
    """Leaves chosen so that a node's sum and the sums inside it round apart; the zeros behind are never reached."""
    rng = np.random.default_rng(12)
    for trial in range(200):
        capacity = int(rng.choice([17, 40, 256, 300, 1000]))
        priorities = np.zeros(capacity)
        filled_up_to = int(rng.integers(1, capacity))
        priorities[:filled_up_to] = rng.choice([0.1, 1 / 3, 1e-17, 1e16, 1.0, 0.7], filled_up_to)
        priorities[rng.random(capacity) < 0.4] = 0
        priorities[int(rng.integers(0, filled_up_to))] = 0.1
        tree = filled(kernels, priorities)
        ends = np.cumsum(priorities)
        u = np.r_[0, tree.total, ends, np.nextafter(ends, 0), np.nextafter(ends, np.inf)]
        u = np.r_[u, tree.total * (1 - 2.0**-53 * np.arange(40))]
        u = np.clip(u, 0, tree.total)
        assert (priorities[tree.find(u)] > 0).all(), trial


def test_find_is_monotone(kernels):
    """A larger prefix sum never finds an earlier leaf (up to the rounding of the descent, absent for integers)."""
    priorities = np.random.default_rng(2).integers(0, 9, 3000).astype(np.float32)
    tree = filled(kernels, priorities)
    found = tree.find(np.linspace(0, tree.total, 20001))
    assert (np.diff(found) >= 0).all() and set(found.tolist()) == set(np.flatnonzero(priorities).tolist())


def test_find_on_an_empty_tree(kernels, oracle):
    tree = kernels.SumTree(20, seed=0)
    before = oracle.snapshot(tree)
    for u in (0.0, np.zeros(3), -0.0, 1.0):
        with pytest.raises(ValueError, match=r"^sum_tree\.find: "):
            tree.find(u)
    assert oracle.snapshot(tree) == before


# ---- sampling: the exact law of the draws -----------------------------------------------------------------------


def strata(oracle, tree, seed, counter, batch):
    r = oracle.uniforms(seed, counter, batch)
    return np.minimum((np.arange(batch) + r) * (tree.total / batch), tree.total)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(capacity=capacities, dtype=dtypes, batch=st.sampled_from([1, 2, 7, 8, 19, 33]), seed=st.integers(0, 2**64 - 1))
def test_draws_are_find_of_the_philox_uniforms(kernels, oracle, capacity, dtype, batch, seed):
    """Bit for bit: stratified u_i = (i + r_i) total / B, iid u_i = r_i total; the counter advances by B."""
    rng = np.random.default_rng(seed % 2**32)
    priorities = oracle.random_priorities(rng, capacity, dtype)
    priorities[rng.integers(0, capacity)] = 1
    tree = filled(kernels, priorities, seed=seed)
    total = tree.total
    expected = priorities.astype(np.float64) / total
    for call, (options, u) in enumerate(
        [
            ({}, strata(oracle, tree, seed, 0, batch)),
            ({"stratified": False}, oracle.uniforms(seed, batch, batch) * total),
            ({"stratified": True}, strata(oracle, tree, seed, 2 * batch, batch)),
        ]
    ):
        indices, probabilities = tree.sample(batch, **options)
        assert indices.dtype == np.int64 and probabilities.dtype == np.float64
        assert indices.shape == probabilities.shape == (batch,)
        np.testing.assert_array_equal(indices, tree.find(u))
        np.testing.assert_allclose(probabilities, expected[indices], rtol=1e-15, atol=0)
        assert tree.generator.state_dict() == {"seed": seed, "counter": batch * (call + 1)}
    tree.find(u)
    tree.update(np.array([0]), 1.0)
    assert tree.generator.counter == 3 * batch, "only sampling draws"


@settings(deadline=None, derandomize=True, max_examples=30)
@given(capacity=capacities, dtype=dtypes, seed=st.integers(0, 2**64 - 1), data=st.data())
def test_without_replacement_is_successive_sampling(kernels, oracle, capacity, dtype, seed, data):
    """Draw, set to zero, draw: bit for bit the same as doing that by hand; the tree is as before."""
    rng = np.random.default_rng(seed % 2**32)
    priorities = oracle.random_priorities(rng, capacity, dtype)
    priorities[rng.integers(0, capacity)] = 1
    tree, by_hand = filled(kernels, priorities, seed=seed), filled(kernels, priorities)
    batch = data.draw(st.integers(1, min(len(tree), 40)))
    before = oracle.snapshot(tree)
    indices, probabilities = tree.sample(batch, replacement=False)
    after = oracle.snapshot(tree)
    assert after[:4] == before[:4] and after[5:] == before[5:]
    assert tree.generator.state_dict() == {"seed": seed, "counter": batch}
    assert indices.shape == probabilities.shape == (batch,) and probabilities.dtype == np.float64
    assert len(set(indices.tolist())) == batch and (priorities[indices] > 0).all()
    expected = priorities[indices].astype(np.float64) / tree.total  # P(i) of the whole tree, not of what is left
    np.testing.assert_allclose(probabilities, expected, rtol=1e-15, atol=0)
    for i, r in enumerate(oracle.uniforms(seed, 0, batch)):
        drawn = by_hand.find(r * by_hand.total)
        assert drawn == indices[i]
        by_hand[drawn] = 0.0
    # The nodes too are as before.
    fresh = filled(kernels, priorities)
    u = rng.uniform(0, 1, 50) * fresh.total
    np.testing.assert_array_equal(tree.find(u), fresh.find(u))


@pytest.mark.parametrize("capacity", [1, 16, 17, 300])
def test_without_replacement_can_empty_the_tree(kernels, oracle, capacity):
    rng = np.random.default_rng(capacity)
    priorities = (10.0 ** rng.uniform(-30, 30, capacity)).astype(np.float32)  # one leaf dwarfs the rest
    priorities[rng.random(capacity) < 0.3] = 0
    priorities[capacity // 2] = 1e-30
    tree = filled(kernels, priorities)
    indices, _ = tree.sample(len(tree), replacement=False)
    np.testing.assert_array_equal(np.sort(indices), np.flatnonzero(priorities))
    np.testing.assert_array_equal(tree[np.arange(capacity)], priorities)
    before = oracle.snapshot(tree)
    with pytest.raises(ValueError, match=rf"^sum_tree\.sample: .*\b{len(tree)}\b.*{len(tree) + 1}$"):
        tree.sample(len(tree) + 1, replacement=False)
    assert oracle.snapshot(tree) == before


def test_draws_cross_the_32_bit_counter_border(kernels, oracle):
    tree = filled(kernels, np.arange(1, 200, dtype=np.float32), seed=5)
    for start in (2**32 - 3, 2**64 - 3):
        tree.generator.load_state_dict({"seed": 5, "counter": start})
        u = oracle.uniforms(5, start, 8) * tree.total
        np.testing.assert_array_equal(tree.sample(8, stratified=False)[0], tree.find(u))
        assert tree.generator.counter == (start + 8) % 2**64


def test_stratified_takes_one_from_each_slice(kernels):
    """Equal leaves, one slice per leaf: each is drawn exactly once. Unequal: the j-th index lies in the j-th slice."""
    tree = filled(kernels, np.ones(64, np.float32))
    for _ in range(20):
        np.testing.assert_array_equal(tree.sample(64)[0], np.arange(64))
        np.testing.assert_array_equal(tree.sample(16)[0] // 4, np.arange(16))
    priorities = np.random.default_rng(0).integers(0, 50, 500).astype(np.float32)
    tree = filled(kernels, priorities)
    ends = np.cumsum(priorities.astype(np.float64))
    for batch in (1, 3, 99, 989):
        edges = np.arange(batch + 1) * (tree.total / batch)
        indices, _ = tree.sample(batch)
        slack = tree.total * 1e-12
        assert (ends[indices] >= edges[:-1] - slack).all()
        assert (ends[indices] - priorities[indices] <= edges[1:] + slack).all()


def test_same_seed_same_draws(kernels):
    priorities = np.random.default_rng(1).random(1000).astype(np.float32)
    a, b, c = (filled(kernels, priorities, seed=seed) for seed in (7, 7, 8))
    for options in ({}, {"stratified": False}, {"replacement": False}):
        first, second, third = (tree.sample(64, **options)[0] for tree in (a, b, c))
        np.testing.assert_array_equal(first, second)
        assert (first != third).any()
    shared = filled(kernels, priorities, generator=Generator(7))
    np.testing.assert_array_equal(shared.sample(64)[0], filled(kernels, priorities, seed=7).sample(64)[0])


def test_results_are_the_callers_own(kernels):
    """A later call does not overwrite an earlier result, and writing into a result changes nothing."""
    tree = filled(kernels, np.arange(1, 50, dtype=np.float32))
    indices, probabilities = tree.sample(8)
    kept = indices.copy(), probabilities.copy()
    tree.sample(8)
    tree.sample_weighted(8, 0.5)
    np.testing.assert_array_equal(indices, kept[0])
    np.testing.assert_array_equal(probabilities, kept[1])
    leaves = tree[np.arange(49)]
    leaves[:] = -1
    indices[:] = -1
    state = tree.state_dict()
    state["priorities"][:] = 7
    np.testing.assert_array_equal(tree[np.arange(49)], np.arange(1, 50, dtype=np.float32))


@pytest.mark.parametrize("method", ["sample", "sample_weighted"])
def test_sampling_an_empty_tree(kernels, oracle, method):
    for tree in (kernels.SumTree(10, seed=0), filled(kernels, np.zeros(10, np.float32))):
        before = oracle.snapshot(tree)
        with pytest.raises(ValueError, match=r"total priority is 0: nothing to sample"):
            tree.sample(4) if method == "sample" else tree.sample_weighted(4, 0.4)
        assert oracle.snapshot(tree) == before
    with pytest.raises(ValueError, match="sum_tree.sample"):
        tree.sample(1, replacement=False)
    assert oracle.snapshot(tree) == before


# ---- sampling: statistics ---------------------------------------------------------------------------------------

LEAVES = np.array([5, 0, 1, 2, 0.5, 0, 0, 8, 3, 1, 1, 0.25, 0, 4, 6, 0, 2, 9, 0, 7, 0.5])


@pytest.mark.parametrize("options", [{}, {"stratified": False}], ids=["stratified", "iid"])
def test_sampler_chi_square(kernels, oracle, options):
    tree = filled(kernels, LEAVES.astype(np.float32), seed=2026)
    drawn = np.concatenate([tree.sample(1000, **options)[0] for _ in range(100)])
    counts = np.bincount(drawn, minlength=len(LEAVES))
    positive = LEAVES > 0
    assert not counts[~positive].any()
    expected = LEAVES[positive] / LEAVES.sum() * len(drawn)
    assert oracle.chi_square_tail(counts[positive], expected) > FALSE_ALARM


def test_stratified_chi_square_within_a_slice(kernels, oracle):
    """Draw j of B is distributed as the priorities cut to slice j (so the whole batch is unbiased)."""
    leaves = np.array([3, 0, 1, 2, 6, 4], np.float32)  # total 16, slices of 4
    tree = filled(kernels, leaves, seed=9)
    drawn = np.array([tree.sample(4)[0] for _ in range(4000)])
    slices = [{0: 3, 2: 1}, {3: 2, 4: 2}, {4: 4}, {5: 4}]
    for j, law in enumerate(slices):
        counts = np.bincount(drawn[:, j], minlength=6)
        assert counts[list(law)].sum() == 4000
        if len(law) > 1:
            expected = np.array(list(law.values())) / 4 * 4000
            assert oracle.chi_square_tail(counts[list(law)], expected) > FALSE_ALARM


def test_iid_draws_are_independent(kernels, oracle):
    """Joint law of two neighbours in a batch: the product."""
    leaves = np.array([1, 2, 0, 3, 4.0])
    tree = filled(kernels, leaves, seed=77)
    pairs = np.concatenate([tree.sample(1000, stratified=False)[0].reshape(-1, 2) for _ in range(40)])
    law = leaves / leaves.sum()
    joint = np.outer(law, law)
    counts = np.zeros((5, 5))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    assert oracle.chi_square_tail(counts[joint > 0], joint[joint > 0] * len(pairs)) > FALSE_ALARM


def test_without_replacement_chi_square(kernels, oracle):
    """All ordered pairs and all ordered full draws of a 4-leaf tree: P(i, j, ...) = p_i/S p_j/(S - p_i) ..."""
    leaves = np.array([1, 2, 3, 4.0])
    tree = filled(kernels, leaves, seed=13)
    draws = 6000
    drawn = np.array([tree.sample(4, replacement=False)[0] for _ in range(draws)])
    first = np.bincount(drawn[:, 0], minlength=4)
    assert oracle.chi_square_tail(first, leaves / 10 * draws) > FALSE_ALARM
    pairs, pair_law = np.zeros((4, 4)), np.zeros((4, 4))
    orders, order_law = {}, {}
    np.add.at(pairs, (drawn[:, 0], drawn[:, 1]), 1)
    for order in drawn.tolist():
        orders[tuple(order)] = orders.get(tuple(order), 0) + 1
    for i in range(4):
        for j in set(range(4)) - {i}:
            pair_law[i, j] = leaves[i] / 10 * leaves[j] / (10 - leaves[i])
            k, m = sorted(set(range(4)) - {i, j})
            for a, b in ((k, m), (m, k)):
                order_law[i, j, a, b] = pair_law[i, j] * leaves[a] / (leaves[a] + leaves[b])
    off = ~np.eye(4, dtype=bool)
    assert pair_law.sum() == pytest.approx(1) and sum(order_law.values()) == pytest.approx(1)
    assert oracle.chi_square_tail(pairs[off], pair_law[off] * draws) > FALSE_ALARM
    assert set(orders) <= set(order_law)
    counts = [orders.get(order, 0) for order in order_law]
    assert oracle.chi_square_tail(counts, np.array(list(order_law.values())) * draws) > FALSE_ALARM


# ---- probabilities and weights ----------------------------------------------------------------------------------


def test_probabilities(kernels):
    leaves = np.random.default_rng(3).random(97).astype(np.float32)
    tree = filled(kernels, leaves)
    indices, probabilities = tree.sample(97, replacement=False)  # each once
    wanted = leaves.astype(np.float64) / math.fsum(leaves.tolist())
    np.testing.assert_allclose(probabilities, wanted[indices], rtol=1e-15, atol=0)
    assert math.fsum(probabilities.tolist()) == pytest.approx(1, rel=1e-14)
    indices, probabilities = tree.sample(989)
    np.testing.assert_allclose(probabilities, wanted[indices], rtol=1e-15, atol=0)


def reference_weights(priorities, indices, beta, p_min):
    return np.array([(p_min / p) ** beta for p in priorities[indices].astype(np.float64).tolist()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", ["batch", "tree"])
@pytest.mark.parametrize("beta", [0, 0.0, 0.4, 1.0, 1, 2.5])
def test_sample_weighted(kernels, oracle, tolerance, dtype, normalize, beta):
    """w_i = (N P(i))^-beta over the largest of the batch or of the tree, which is (p_min / p_i)^beta."""
    rng = np.random.default_rng(6)
    leaves = oracle.random_priorities(rng, 700, dtype)
    leaves[350] = 1e-4  # the minimum, which a batch rarely holds
    tree, twin = filled(kernels, leaves, seed=4), filled(kernels, leaves, seed=4)
    for batch, options in ((1, {}), (19, {"stratified": False}), (989, {"stratified": True})):
        indices, weights = tree.sample_weighted(batch, beta, normalize, **options)
        assert indices.dtype == np.int64 and weights.dtype == dtype and indices.shape == weights.shape == (batch,)
        same, probabilities = twin.sample(batch, **options)
        np.testing.assert_array_equal(indices, same)  # the draws of sample, from the same counters
        assert tree.generator.state_dict() == twin.generator.state_dict()
        p_min = float(leaves[indices].min()) if normalize == "batch" else tree.min
        np.testing.assert_allclose(
            weights, reference_weights(leaves, indices, beta, p_min), rtol=tolerance(np.dtype(dtype))["rtol"], atol=0
        )
        stored = len(tree)
        raw = (stored * probabilities) ** -float(beta)
        largest = raw.max() if normalize == "batch" else (stored * tree.min / tree.total) ** -float(beta)
        np.testing.assert_allclose(weights, raw / largest, rtol=tolerance(np.dtype(dtype))["rtol"], atol=0)
        assert (weights > 0).all() and (weights <= 1).all()
        if normalize == "batch":
            assert weights.max() == 1, "exactly"
        if beta == 0:
            assert (weights == 1).all()


@pytest.mark.parametrize("normalize", ["batch", "tree"])
def test_weights_of_extreme_priorities(kernels, tolerance, normalize):
    """Finite and right where the answer is: 1e-30 against 1e30 is a weight of 1e-60, 0 in float32 and not NaN."""
    for dtype in DTYPES:
        leaves = np.array([1e30, 1e-30, 0, 1, 1e30], dtype)
        tree = filled(kernels, leaves, seed=1)
        for beta in (0.4, 1.0):
            indices, weights = tree.sample_weighted(200, beta, normalize)
            assert np.isfinite(weights).all() and (weights >= 0).all() and (weights <= 1).all()
            p_min = float(leaves[indices].min()) if normalize == "batch" else tree.min
            wanted = reference_weights(leaves, indices, beta, p_min)
            tiny = float(np.finfo(dtype).tiny)
            np.testing.assert_allclose(weights, wanted, rtol=tolerance(np.dtype(dtype))["rtol"], atol=tiny)
    tree = filled(kernels, np.array([5e-324, 2.0**960], np.float64), seed=1)
    indices, weights = tree.sample_weighted(9, 1.0, "tree")
    assert np.isfinite(weights).all()


def test_equal_priorities_have_weight_one(kernels):
    tree = filled(kernels, np.full(333, 0.1, np.float32))
    for normalize in ("batch", "tree"):
        assert (tree.sample_weighted(99, 0.6, normalize)[1] == 1).all()
    assert (tree.sample_weighted(9, 0.6, normalize="batch", stratified=False)[1] == 1).all()


# ---- state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_round_trip(kernels, oracle, dtype):
    rng = np.random.default_rng(10)
    tree = kernels.SumTree(777, dtype=dtype, seed=2**64 - 5)
    for _ in range(20):
        tree.update(rng.integers(0, 777, 99), (10.0 ** rng.uniform(-20, 20, 99)).astype(dtype))
        tree.sample(33)
    state = tree.state_dict()
    assert set(state) == {"capacity", "dtype", "priorities", "generator"}
    assert state["capacity"] == 777 and state["dtype"] == np.dtype(dtype).name
    assert type(state["priorities"]) is np.ndarray and state["priorities"].dtype == dtype
    assert state["generator"] == {"seed": 2**64 - 5, "counter": 20 * 33}
    copy = kernels.SumTree(777, dtype=dtype, seed=1)
    copy.update(np.arange(777), 3.0)
    copy.load_state_dict(state)
    assert oracle.snapshot(copy) == oracle.snapshot(tree)
    for options in ({}, {"stratified": False}, {"replacement": False}):
        for ours, theirs in zip(copy.sample(50, **options), tree.sample(50, **options), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    tree.update(np.arange(777), 1.0)
    assert not (state["priorities"] == 1).all(), "the state is a copy"


BAD_STATES = {
    "not a dict": lambda s: None,
    "list": lambda s: list(s.items()),
    "empty": lambda s: {},
    "wrong capacity": lambda s: s | {"capacity": 15},
    "capacity 16.0": lambda s: s | {"capacity": "16"},
    "wrong dtype": lambda s: s | {"dtype": "float64"},
    "other tree": lambda s: s | {"dtype": "float64", "priorities": s["priorities"].astype(np.float64)},
    "float64 array": lambda s: s | {"priorities": s["priorities"].astype(np.float64)},
    "int array": lambda s: s | {"priorities": s["priorities"].astype(np.int64)},
    "list of priorities": lambda s: s | {"priorities": s["priorities"].tolist()},
    "None for priorities": lambda s: s | {"priorities": None},
    "too short": lambda s: s | {"priorities": s["priorities"][:-1]},
    "too long": lambda s: s | {"priorities": np.r_[s["priorities"], s["priorities"]]},
    "rank 2": lambda s: s | {"priorities": s["priorities"].reshape(4, 4)},
    "nan": lambda s: s | {"priorities": np.where(np.arange(16) == 9, np.nan, s["priorities"]).astype(np.float32)},
    "inf": lambda s: s | {"priorities": np.where(np.arange(16) == 9, np.inf, s["priorities"]).astype(np.float32)},
    "negative": lambda s: s | {"priorities": np.where(np.arange(16) == 9, -1, s["priorities"]).astype(np.float32)},
    "no generator": lambda s: {k: v for k, v in s.items() if k != "generator"},
    "no priorities": lambda s: {k: v for k, v in s.items() if k != "priorities"},
    "generator None": lambda s: s | {"generator": None},
    "generator without seed": lambda s: s | {"generator": {"counter": 3}},
    "counter negative": lambda s: s | {"generator": {"seed": 1, "counter": -3}},
    "counter too large": lambda s: s | {"generator": {"seed": 1, "counter": 2**64}},
    "seed float": lambda s: s | {"generator": {"seed": 1.5, "counter": 3}},
    "new priorities, bad generator": lambda s: (
        s | {"priorities": np.ones(16, np.float32), "generator": {"seed": 1.5, "counter": 3}}
    ),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in BAD_STATES.items()])
def test_bad_state_changes_nothing(kernels, oracle, sixteen, change):
    tree = sixteen(kernels.SumTree)
    before, state = oracle.snapshot(tree), tree.state_dict()
    state["generator"] = {"seed": 99, "counter": 99}
    state["priorities"] = state["priorities"][::-1].copy()
    with pytest.raises((TypeError, ValueError, KeyError)):
        tree.load_state_dict(change(state))
    assert oracle.snapshot(tree) == before
    tree.load_state_dict(state)
    assert tree.generator.state_dict() == {"seed": 99, "counter": 99}


# ---- bad input --------------------------------------------------------------------------------------------------


def test_bad_call_changes_nothing(kernels, oracle, sixteen, bad_call):
    error, text, call = bad_call
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    with pytest.raises(error) as caught:
        call(tree)
    assert text in str(caught.value)
    assert oracle.snapshot(tree) == before, "all or nothing"
    tree.update(np.array([1]), 1.0)  # and it still works
    assert tree.sample(3)[0].shape == (3,)


def test_bad_construction(kernels, bad_construction):
    error, text, build = bad_construction
    with pytest.raises(error) as caught:
        build(kernels.SumTree)
    assert text in str(caught.value)


def test_odd_call_works_or_changes_nothing(kernels, oracle, sixteen, odd_call):
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    try:
        odd_call(tree)
    except (TypeError, ValueError, IndexError):
        assert oracle.snapshot(tree) == before
    leaves = tree[np.arange(16)].astype(np.float64)
    assert (leaves >= 0).all() and tree.total == math.fsum(leaves.tolist())
    for index in (3, 4):  # what an odd call may have written is what it said
        assert leaves[index] in (np.float32((index % 2 == 0) * (index // 2 + 1) / 8), 1.0, 2.0, 2.0**-126)


@pytest.mark.parametrize("length", [100_000, 3])
def test_late_error_in_a_long_batch_changes_nothing(kernels, oracle, length):
    """The bad element comes last, after everything else has been looked at."""
    tree = filled(kernels, np.ones(4096, np.float32))
    before = oracle.snapshot(tree)
    indices = np.random.default_rng(0).integers(0, 4096, length)
    priorities = np.full(length, 2, np.float32)
    priorities[-1] = np.nan
    with pytest.raises(ValueError, match=rf"priorities\[{length - 1}\] is nan"):
        tree.update(indices, priorities)
    assert oracle.snapshot(tree) == before
    priorities[-1], indices[-1] = 2, 4096
    with pytest.raises(IndexError, match=rf"indices\[{length - 1}\] is 4096, outside \[0, 4096\)"):
        tree.update(indices, priorities)
    assert oracle.snapshot(tree) == before


# ---- torch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_tree_equals_the_numpy_tree(kernels, torch, oracle, dtype):
    """Results are tensors, and the same bits."""
    leaves = oracle.random_priorities(np.random.default_rng(1), 500, dtype)
    ours = kernels.SumTree(500, dtype=getattr(torch, dtype), seed=6)
    ours.update(torch.arange(500), torch.from_numpy(leaves))
    plain = filled(kernels, leaves, seed=6)
    assert ours.total == plain.total
    index = torch.tensor([4, 4, 9])
    assert torch.equal(ours[index], torch.from_numpy(plain[index.numpy()]))
    u = torch.linspace(0, ours.total, 33, dtype=torch.float64)
    u[-1] = ours.total
    assert torch.equal(ours.find(u), torch.from_numpy(plain.find(u.numpy())))
    for options in ({}, {"stratified": False}, {"replacement": False}):
        for a, b in zip(ours.sample(40, **options), plain.sample(40, **options), strict=True):
            assert isinstance(a, torch.Tensor) and torch.equal(a, torch.from_numpy(b))
    for a, b in zip(ours.sample_weighted(40, 0.4), plain.sample_weighted(40, 0.4), strict=True):
        assert isinstance(a, torch.Tensor) and torch.equal(a, torch.from_numpy(b))
    assert isinstance(ours[3], float) and isinstance(ours.find(0.0), int)
    state = ours.state_dict()
    assert type(state["priorities"]) is np.ndarray and state["dtype"] == dtype
    plain.load_state_dict(state)
    assert oracle.snapshot(plain) == oracle.snapshot(ours)


def test_torch_inputs_of_a_numpy_tree(kernels, torch):
    """Tensors may be given to any tree, in any layout; they are not modified."""
    tree = kernels.SumTree(64, seed=0)
    wide = torch.arange(24, dtype=torch.float64).reshape(8, 3)
    indices = torch.arange(16)[::2]
    tree.update(indices, wide[:, 1])
    np.testing.assert_array_equal(tree[np.arange(0, 16, 2)], np.arange(8, dtype=np.float32) * 3 + 1)
    tree.update(indices.int(), wide[:, 2].float())
    np.testing.assert_array_equal(np.asarray(tree[indices]), np.arange(8, dtype=np.float32) * 3 + 2)
    tree[torch.tensor([63])] = torch.tensor([5.0])
    assert tree[63] == 5.0
    assert torch.equal(indices, torch.arange(16)[::2]) and torch.equal(wide.flatten(), torch.arange(24.0).double())
    np.testing.assert_array_equal(np.asarray(tree.find(torch.tensor([0.0, 2.0]))), tree.find(np.array([0.0, 2.0])))


def odd_tensors(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2)
    values = torch.tensor([1.0, 2.0])
    return {
        "fake": (fake, None),
        "meta": (torch.ones(2, device="meta"), None),
        "sparse": (values.to_sparse(), None),
        "quantized": (torch.quantize_per_tensor(values, 1.0, 0, torch.quint8), None),
        "bfloat16": (values.bfloat16(), None),
        "complex": (values.to(torch.complex64), None),
        "requires grad": (values.clone().requires_grad_(), values),
        "graph": (values.clone().requires_grad_() * 2, values * 2),
        "parameter": (torch.nn.Parameter(values), values),
        "negative bit": (torch._neg_view(-values), values),
        "conj imag": (torch.complex(values, -values).conj().imag, values),
        "expanded": (torch.tensor([3.0]).expand(2), torch.tensor([3.0, 3.0])),
        "0-d": (torch.tensor(1.0), None),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [
        "fake", "meta", "sparse", "quantized", "bfloat16", "complex", "requires grad", "graph", "parameter",
        "negative bit", "conj imag", "expanded", "0-d",
    ],
)  # fmt: skip
def test_odd_tensors(kernels, torch, oracle, sixteen, kind):
    """Right, or a clear error that leaves the tree as it was. Never a crash, never wrong numbers."""
    tensor, wanted = odd_tensors(torch)[kind]
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    try:
        tree.update(np.array([3, 5]), tensor)
    except (TypeError, ValueError) as error:
        assert "priorities" in str(error)
        assert oracle.snapshot(tree) == before
    else:
        wanted = torch.ones(2) if kind == "0-d" else wanted
        assert wanted is not None, f"a {kind} tensor was accepted"
        np.testing.assert_array_equal(tree[np.array([3, 5])], wanted.numpy())
    tree = sixteen(kernels.SumTree)
    try:
        found = tree.find(tensor)
    except (TypeError, ValueError) as error:
        assert "prefix_sums" in str(error) and oracle.snapshot(tree) == before
    else:
        expected = tree.find(1.0) if kind == "0-d" else tree.find(wanted.numpy())
        np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("kind", ["fake", "meta", "sparse", "bool", "uint8", "float", "rank 2", "0-d"])
def test_odd_index_tensors(kernels, torch, oracle, sixteen, kind):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2, dtype=torch.int64)
    tensor = {
        "fake": fake,
        "meta": torch.ones(2, dtype=torch.int64, device="meta"),
        "sparse": torch.tensor([1, 2]).to_sparse(),
        "bool": torch.tensor([True, False]),
        "uint8": torch.tensor([1, 2], dtype=torch.uint8),
        "float": torch.tensor([1.0, 2.0]),
        "rank 2": torch.ones(2, 2, dtype=torch.int64),
        "0-d": torch.tensor(3),
    }[kind]
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    for call in (lambda: tree.update(tensor, 1.0), lambda: tree[tensor]):
        try:
            call()
        except (TypeError, ValueError) as error:
            assert "indices" in str(error) and oracle.snapshot(tree) == before
        else:
            assert kind == "0-d" and tree[3] == 1.0


def test_cuda_tensor_into_a_cpu_tree(kernels, torch, oracle, sixteen):
    """torchrl #2205 crashed here."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    for call in (
        lambda: tree.update(torch.tensor([1], device="cuda"), 1.0),
        lambda: tree.update(torch.tensor([1]), torch.ones(1, device="cuda")),
        lambda: tree[torch.tensor([1], device="cuda")],
        lambda: tree.find(torch.zeros(1, device="cuda")),
    ):
        with pytest.raises(ValueError, match="device|cuda"):
            call()
    assert oracle.snapshot(tree) == before


def test_cuda_tree_without_cuda(kernels, torch):
    """A clear RuntimeError, not a tree on the host."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RuntimeError, match="sum_tree: device is cuda, but torch finds no such CUDA device"):
        kernels.SumTree(16, dtype=torch.float32, device="cuda", seed=0)


def test_no_memory_is_said(kernels, monkeypatch):
    def none(*args):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(kernels.SumTree, "_core_class", none)
    with pytest.raises(MemoryError, match=r"^sum_tree: no memory for a tree of 2147483647 float64 priorities$"):
        kernels.SumTree(2**31 - 1, dtype=np.float64)


def test_core_that_was_never_made(cpp):
    core = cpp.SumTree._core_class
    for name in ("total", "min", "max"):
        with pytest.raises(TypeError):
            getattr(core.__new__(core), name)
    with pytest.raises(TypeError):
        core.__new__(core).sample(3, True, True)
    for capacity in (-5, 0, 2**31):
        with pytest.raises(ValueError, match=rf"sum_tree: capacity must be in \[1, 2147483647\], got {capacity}"):
            core(capacity, "float32", np.zeros(2, np.uint64))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux says of the process's memory")
@pytest.mark.skipif("lib" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has memory of its own")
def test_memory_of_a_large_tree(cpp):
    """A new tree costs next to nothing before it is used; a load needs one copy of the priorities."""
    code = """
        import sys, resource, numpy as np
        from fastrl import SumTree
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
        def peak():
            return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 2**10
        n, before = 16_000_000, resident()  # 64 MB of priorities
        tree = SumTree(n, seed=0)
        new = resident() - before
        state = tree.state_dict()
        state["priorities"][:] = 1
        before = resident()
        tree.load_state_dict(state)
        assert tree.total == n and len(tree) == n
        print(new, peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "FASTRL_BACKEND": "cpp"},
    )
    assert run.returncode == 0, run.stderr
    new, load = map(float, run.stdout.split())
    assert new < 16, new  # of 92
    assert load < 92 + 64 + 24, load  # the tree's own pages, the copy, and a leaf of each node
