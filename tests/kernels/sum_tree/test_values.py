"""SumTree on every backend: updates and searches against exact sums, extreme priorities."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .helpers import DTYPES, capacities, dtypes, filled

LARGE = [65535, 65536, 65537, 1_000_003]
fast = settings(deadline=None, derandomize=True, max_examples=40)
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


def check_find(tree, oracle_tree, prefix_sums, indices):
    """Never a zero leaf; the right leaf, or one whose boundary is within the stated rounding distance of u."""
    priorities = oracle_tree.priorities
    boundaries, slack = oracle_tree.boundaries(), oracle_tree.find_slack()
    assert indices.dtype == np.int64 and indices.shape == np.shape(prefix_sums)
    for u, index in zip(prefix_sums.tolist(), indices.tolist(), strict=True):
        assert 0 <= index < len(priorities)
        assert priorities[index] > 0, f"find({u!r}) returned leaf {index}, whose priority is 0"
        assert boundaries[index] - slack <= Fraction(u) <= boundaries[index + 1] + slack


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alpha_1_keeps_every_bit(kernels, dtype):
    errors = np.random.default_rng(0).random(1000).astype(dtype) * 3
    tree = kernels.SumTree(1000, dtype=np.dtype(dtype))
    tree.update_from_td_errors(np.arange(1000), errors, 1.0, 0.0)
    np.testing.assert_array_equal(tree[np.arange(1000)], errors)


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
