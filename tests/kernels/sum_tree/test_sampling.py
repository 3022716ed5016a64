"""The draws of SumTree on every backend: their exact law, statistics, probabilities and weights."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.kernels import Generator

from .helpers import DTYPES, capacities, dtypes, filled

FALSE_ALARM = 1e-6


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
