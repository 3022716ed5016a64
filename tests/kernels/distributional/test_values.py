"""The projection in exact arithmetic, its corners, and the losses against plain float64, on every backend."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastrl

from ..complex_step import exact
from .helpers import Batch, c51, c51_actor, projected, quantiles

COMMON = {"max_examples": 20, "deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
ROWS, SEEDS = st.sampled_from([1, 2, 31, 256]), st.integers(0, 2**32)
NAN, INF = np.nan, np.inf


def floats(*x):
    return np.array(x, np.float32)


def near(found, wanted):
    assert isinstance(found, float)
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def masses(p, r, discount, v_min, v_max):
    """One row in fractions: each mass goes to the atoms on both sides of where it lands."""
    n = len(p)
    step = Fraction(v_max - v_min) / (n - 1)
    m = [Fraction(0)] * n
    for k, mass in enumerate(p):
        x = min(max(Fraction(float(r)) + Fraction(float(discount)) * (v_min + step * k), v_min), v_max)
        j = min(int((x - v_min) / step), n - 2)
        right = (x - v_min) / step - j
        m[j] += Fraction(float(mass)) * (1 - right)
        m[j + 1] += Fraction(float(mass)) * right
    return [float(x) for x in m]


@settings(**COMMON)
@given(st.sampled_from([2, 3, 51, 64, 101]), st.sampled_from([(-10, 10), (0, 1), (-1, 300)]), SEEDS)
def test_projection(backend, close, n, bounds, seed):
    rng, (low, high) = np.random.default_rng(seed), bounds
    probs = rng.dirichlet(np.full(n, 0.3), 7).astype(np.float32)
    rewards = rng.normal(0, high - low, 7).astype(np.float32)
    discounts = rng.uniform(0, 1.2, 7).astype(np.float32)
    found = fastrl.categorical_projection(probs, rewards, discounts, v_min=low, v_max=high)
    close(found, [masses(*row, low, high) for row in zip(probs, rewards, discounts, strict=True)])
    np.testing.assert_allclose(found.sum(1, dtype=np.float64), probs.sum(1, dtype=np.float64), rtol=0, atol=3e-7)
    numbers = exact(probs), exact(rewards), exact(discounts)
    np.testing.assert_allclose(found, projected(*numbers, low, high), rtol=1e-5, atol=1e-6)


def test_masses_that_land_on_atoms_stay_whole(backend):
    probs = floats([0.125, 0.5, 0.25, 0.125])
    project = lambda r, discount: fastrl.categorical_projection(  # noqa: E731
        probs, floats(r), floats(discount), v_min=-1, v_max=2
    )[0].tolist()
    assert project(0, 1) == [0.125, 0.5, 0.25, 0.125]
    assert project(1, 1) == [0, 0.125, 0.5, 0.375]
    assert project(-1, 1) == [0.625, 0.25, 0.125, 0]
    assert project(100, 1) == project(INF, 1) == [0, 0, 0, 1]
    assert project(-100, 1) == project(-INF, 1) == [1, 0, 0, 0]
    assert project(2, 0) == [0, 0, 0, 1]
    assert project(0.25, 0) == [0, 0.75, 0.25, 0]
    assert project(0, -1) == [0.375, 0.5, 0.125, 0]


def test_the_mean_stays_where_nothing_is_clipped(backend, rng):
    z = np.linspace(-10, 10, 51)
    probs = rng.dirichlet(np.ones(51), 100).astype(np.float32)
    rewards, discounts = rng.uniform(-1, 1, 100).astype(np.float32), rng.uniform(0, 0.9, 100).astype(np.float32)
    found = fastrl.categorical_projection(probs, rewards, discounts, v_min=-10, v_max=10)
    np.testing.assert_allclose(found @ z, rewards + discounts * (probs @ z), rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_in_its_row(backend):
    probs = np.full((6, 3), 1 / 3, np.float32)
    probs[3:5, 1] = NAN, INF
    rewards, discounts = floats(NAN, 0, 0, 0, 0, 0), floats(1, NAN, INF, 1, 1, 1)
    found = fastrl.categorical_projection(probs, rewards, discounts, v_min=0, v_max=1)
    assert np.isnan(found[:5]).all()
    np.testing.assert_allclose(found[5], 1 / 3, rtol=1e-6)
    # A discount of 0 does not look at what it would have bootstrapped from.
    ends = fastrl.categorical_projection(
        probs, floats(0, 0, 0, 0.5, 1, NAN), 0 * rewards[1:2].repeat(6), v_min=0, v_max=1
    )
    np.testing.assert_array_equal(ends, [[1, 0, 0]] * 3 + [[0, 1, 0], [0, 0, 1], [NAN] * 3])


@pytest.mark.parametrize("discount", [1, -3, 3e38])
def test_infinite_rewards_on_the_largest_support(backend, discount):
    probs = np.full((3, 51), 1 / 51, np.float32)
    found = fastrl.categorical_projection(
        probs, floats(INF, -INF, INF), floats(discount, discount, 0), v_min=-1e200, v_max=1e200
    )
    np.testing.assert_allclose(found[:, [0, 50]], [[0, 1], [1, 0], [0, 1]], rtol=1e-6)


@pytest.mark.parametrize("size", [1e6, 1e12, 1e20, 1e30])
def test_logits_of_any_size(backend, size):
    """Of a network that diverges, whose priorities are to show it."""
    b = Batch(0, 4, 2, 7)
    b.x[:] = 0
    right = fastrl.c51_loss(*b.arguments, v_min=-5, v_max=4)
    b.x[:] = size
    found = fastrl.c51_loss(*b.arguments, v_min=-5, v_max=4)
    np.testing.assert_allclose(found.td_errors, right.td_errors, rtol=1e-6)
    np.testing.assert_allclose(found.loss, right.loss, rtol=1e-6)


def test_no_rows(backend):
    none = np.zeros(0, np.float32)
    assert fastrl.categorical_projection(np.zeros((0, 3), np.float32), none, none, v_min=0, v_max=1).shape == (0, 3)
    assert fastrl.two_hot(none, 3, v_min=0, v_max=1).shape == (0, 3)


def test_two_hot(backend):
    found = fastrl.two_hot(floats(-7, 0, 0.25, 0.9, 7, NAN), 3, v_min=0, v_max=1)
    wanted = [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0.2, 0.8], [0, 0, 1], [NAN] * 3]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(fastrl.two_hot(floats(0.25), np.int64(3), v_min=0, v_max=1), [[0.5, 0.5, 0]])


def strided(x):
    """The same numbers, far apart in memory."""
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), NAN, x.dtype) if x.dtype == np.float32 else np.repeat(x, 2, -1)
    wide[..., ::2] = x
    return wide[..., ::2]


SHAPES = st.sampled_from([(1, 2), (2, 51), (3, 7), (6, 32)])


@settings(**COMMON)
@given(ROWS, SHAPES, st.booleans(), st.booleans(), SEEDS)
def test_c51(backend, close, rows, shape, double, weighted, seed):
    b = Batch(seed, rows, *shape)
    found = fastrl.c51_loss(
        *map(strided, b.arguments), next_logits_online=strided(b.online) if double else None,
        weights=strided(b.weights) if weighted else None, v_min=-5, v_max=4,
    )  # fmt: skip
    loss, kl, mean_q, d = c51(*b.exact(double, weighted), -5, 4)
    near(found.loss, loss)
    near(found.mean_q, mean_q)
    close(found.d_q, d)
    close(found.td_errors, kl)


@settings(**COMMON)
@given(ROWS, st.sampled_from([2, 7, 8, 51]), st.sampled_from([(-10, 10), (0, 1), (-1, 300)]), SEEDS)
def test_c51_actor(backend, close, rows, n, bounds, seed):
    low, high = bounds
    logits = 3 * np.random.default_rng(seed).standard_normal((rows, n), np.float32)
    found, d = fastrl.c51_actor_loss(strided(logits), v_min=low, v_max=high)
    loss, wanted = c51_actor(exact(logits), low, high)
    near(found / (high - low), loss / (high - low))
    close(d / (high - low), wanted / (high - low))


def test_c51_actor_of_certain_and_of_no_values(backend):
    logits = floats([0, -INF, -INF], [-INF, 5, 5], [0, NAN, 0])
    loss, d = fastrl.c51_actor_loss(logits, v_min=-1, v_max=3)
    assert np.isnan(loss) and np.isnan(d[2]).all()
    np.testing.assert_allclose(d[:2], [[0, 0, 0], [0, 1 / 6, -1 / 6]], rtol=1e-6)
    loss, d = fastrl.c51_actor_loss(logits[:2], v_min=-1, v_max=3)
    assert loss == pytest.approx(-(-1 + 2) / 2)


@settings(**COMMON)
@given(ROWS, SHAPES, st.sampled_from([None, 1, 8]), st.booleans(), st.booleans(), st.sampled_from([1.0, 0.1]), SEEDS)
def test_quantiles(backend, close, rows, shape, n_after, double, weighted, kappa, seed):
    b = Batch(seed, rows, *shape, n_after)
    taus = b.taus if weighted else None
    found = fastrl.quantile_huber_loss(
        *map(strided, b.arguments), next_quantiles_online=strided(b.online) if double else None,
        weights=b.weights if weighted else None, taus=taus, kappa=kappa,
    )  # fmt: skip
    midpoints = np.tile((np.arange(shape[1]) + 0.5) / shape[1], (rows, 1))
    loss, errors, mean_q, d = quantiles(*b.exact(double, weighted), midpoints if taus is None else exact(taus), kappa)
    near(found.loss, loss)
    near(found.mean_q, mean_q)
    close(found.d_q, d)
    close(found.td_errors, errors)


def test_a_perfect_prediction_has_no_divergence_and_no_gradient(backend):
    logits = np.tile(floats([0, 1, -INF, 2]), (2, 1)).reshape(2, 1, 4)
    found = fastrl.c51_loss(logits, np.zeros(2, int), floats(0, 0), floats(1, 1), logits, v_min=0, v_max=3)
    np.testing.assert_allclose(found.td_errors, 0, atol=1e-6)
    np.testing.assert_allclose(found.d_q, 0, atol=1e-7)
    assert (found.td_errors >= 0).all() and np.isfinite(found.loss)
    theta = np.zeros((2, 1, 5), np.float32)
    exact_ = fastrl.quantile_huber_loss(theta, np.zeros(2, int), floats(0, 0), floats(1, 1), theta)
    assert exact_.loss == 0 and not exact_.d_q.any() and not exact_.td_errors.any()


@pytest.mark.parametrize("name", ["rewards", "after", "x"])
@pytest.mark.parametrize("op", ["c51_loss", "quantile_huber_loss"])
def test_a_nan_stays_in_its_row(backend, op, name):
    b = Batch(0, 5, 2, 7)
    b.discounts[:] = 0.9
    support = {"v_min": -5, "v_max": 4} if op == "c51_loss" else {}
    right = getattr(fastrl, op)(*b.arguments, **support)
    getattr(b, name)[2] = NAN
    found = getattr(fastrl, op)(*b.arguments, **support)
    assert np.isnan(found.loss) and np.isnan(found.td_errors[2])
    assert np.isnan(found.d_q[2, b.actions[2]]).all()
    keep = [0, 1, 3, 4]
    np.testing.assert_array_equal(found.d_q[keep], right.d_q[keep])
    np.testing.assert_array_equal(found.td_errors[keep], right.td_errors[keep])


@pytest.mark.parametrize("op", ["c51_loss", "quantile_huber_loss"])
def test_a_discount_of_0_stops_the_bootstrap(backend, op):
    b = Batch(0, 4, 2, 7)
    b.discounts[:] = 0
    support = {"v_min": -5, "v_max": 4} if op == "c51_loss" else {}
    right = getattr(fastrl, op)(*b.arguments, **support)
    b.after[:] = floats(NAN, INF, -INF, 0)[:, None, None]
    found = getattr(fastrl, op)(*b.arguments, **support)
    for x, y in zip(found, right, strict=True):
        np.testing.assert_array_equal(x, y)


def test_of_equal_actions_the_first_is_next(backend):
    b = Batch(0, 3, 2, 5)
    b.discounts[:] = 1
    after = b.after.copy()
    b.online[:] = 0
    after[:, 1] = NAN  # never looked at
    for op, support in (("c51_loss", {"v_min": -5, "v_max": 4}), ("quantile_huber_loss", {})):
        online = {f"next_{'logits' if support else 'quantiles'}_online": b.online}
        found = getattr(fastrl, op)(*b.arguments[:4], after, **online, **support)
        assert np.isfinite(found.d_q).all()
