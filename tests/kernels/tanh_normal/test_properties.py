"""What the tanh-Gaussian head must satisfy: densities, bounds, saturation, other libraries' faults."""

import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from fastrl import Generator, tanh_normal_log_prob, tanh_normal_mode, tanh_normal_sample

from .helpers import DTYPES, FORMS, LIMITS, inputs


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 0.5), (-1000.0, 2000.0)], ids=str)
@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.5, -1.0), (-0.5, 0.5), (0.2, -3.0)])
def test_density_integrates_to_one(backend, bounds, mean, log_std):
    low, high = bounds
    x = np.tanh(np.linspace(-14, 14, 20001)) * (high - low) / 2 + (high + low) / 2
    x = np.unique(x[(x > low) & (x < high)])
    n = len(x)
    log_prob = tanh_normal_log_prob(np.full((n, 1), mean), np.full(1, log_std), x[:, None], low=low, high=high)
    assert scipy.integrate.trapezoid(np.exp(log_prob), x) == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob_of_a_sample_is_its_own(backend, rng, dtype, form):
    mean, _, noise = inputs(rng, 200, 3, dtype)
    log_std = rng.uniform(-1, 0, (200, 3)).astype(dtype)
    options = {"low": -2.0, "high": 2.0, "correction": form}
    action, log_prob = tanh_normal_sample(mean / 2, log_std, noise=noise.clip(-2, 2), **options)
    again = tanh_normal_log_prob(mean / 2, log_std, action, **options)
    # The rounding of the action moves u by eps / (1 - t^2).
    close = 2e-3 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(again, log_prob, rtol=close, atol=close)


def test_bounds_shift_the_log_prob_by_their_log_scale(backend, rng, tolerance):
    mean, log_std, noise = inputs(rng, 50, 3, np.float64)
    low, high = np.array([-1.0, 0.0, -5.0]), np.array([1.0, 0.5, 7.0])
    unit, log_prob = tanh_normal_sample(mean, log_std, noise=noise)
    action, shifted = tanh_normal_sample(mean, log_std, noise=noise, low=low, high=high)
    np.testing.assert_allclose(action, (high + low) / 2 + (high - low) / 2 * unit, **tolerance("float64"))
    np.testing.assert_allclose(shifted, log_prob - np.log((high - low) / 2).sum(), **tolerance("float64"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (-0.1, 0.2), (1e6, 1e6 + 1)], ids=str)
def test_actions_stay_inside(backend, dtype, bounds):
    mean = np.linspace(-60, 60, 997).astype(dtype)[:, None]
    low, high = (dtype(b) for b in bounds)
    for action in (
        tanh_normal_sample(mean, np.zeros(1, dtype), generator=Generator(0), low=low, high=high)[0],
        tanh_normal_mode(mean, low=low, high=high),
    ):
        assert (action >= low).all() and (action <= high).all()
    assert action[0] == low and action[-1] == high


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_row(backend, rng, dtype, value):
    mean, log_std, noise = inputs(rng, 50, 3, dtype)
    given = np.tanh(noise)
    clean = (*tanh_normal_sample(mean, log_std, noise=noise), tanh_normal_log_prob(mean, log_std, given))
    others = np.arange(50) != 20
    for which in range(3):
        arrays = [x.copy() for x in (mean, log_std, noise)]
        arrays[which][20, 1] = value
        action, log_prob = tanh_normal_sample(*arrays[:2], noise=arrays[2])
        assert np.isnan(log_prob[20]) and np.isnan(action[20]).tolist() == [False, True, False]
        arrays[2] = given.copy()
        if which == 2:
            arrays[2][20, 1] = value
        of_given = tanh_normal_log_prob(*arrays)
        assert np.isnan(of_given[20])
        for found, wanted in zip((action, log_prob, of_given), clean, strict=True):
            np.testing.assert_array_equal(found[others], wanted[others])
        if which == 0:
            mode = tanh_normal_mode(arrays[0])
            assert np.isnan(mode[20]).tolist() == [False, True, False] and not np.isnan(mode[others]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row_of_the_gradients(backend, rng, dtype, value):
    mean, log_std, noise = inputs(rng, 50, 3, dtype)
    ga, gl = rng.normal(size=(50, 3)).astype(dtype), rng.normal(size=50).astype(dtype)

    def gradients(mean, log_std, last):
        saved = backend.tanh_normal_sample(mean, log_std, last, None, -1.0, 1.0, *LIMITS, True)[2]
        given = np.where(np.isfinite(last), np.tanh(last), last)
        return (
            *backend.tanh_normal_sample_backward(saved, log_std, ga, gl, -1.0, 1.0, *LIMITS, True, True),
            *backend.tanh_normal_log_prob_backward(
                mean, log_std, given, gl, -1.0, 1.0, *LIMITS, True, True, True
            ),
        )  # fmt: skip

    clean = gradients(mean, log_std, noise)
    others = np.ones((50, 3), bool)
    others[20] = False
    for which in range(3):
        arrays = [x.copy() for x in (mean, log_std, noise)]
        arrays[which][20, 1] = value
        for k, (found, wanted) in enumerate(zip(gradients(*arrays), clean, strict=True)):
            assert np.isnan(found[20, 1]), (which, k)
            np.testing.assert_array_equal(found[others], wanted[others])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_of_sigma_is_not_multiplied_by_zero(backend, dtype, form):
    """e^log_std eps is infinite, or 0 times infinity; the gradient of a saturated action is 0."""
    s = 89.0 if dtype == np.float32 else 720.0
    limits = (-math.inf, math.inf, 1e-6 if form == "epsilon" else 0.0)
    mean, log_std = np.array([[0.5], [-3.0], [0.25]], dtype), np.full((3, 1), s, dtype)
    noise = np.array([[1.0], [-2.5], [0.0]], dtype)
    action, log_prob, saved = backend.tanh_normal_sample(mean, log_std, noise, None, -1.0, 1.0, *limits, True)
    np.testing.assert_allclose(action[:, 0], [1.0, -1.0, math.tanh(0.25)], rtol=1e-6)
    slope = 1 - math.tanh(0.25) ** 2
    assert log_prob[2] == pytest.approx(-s - 0.5 * math.log(2 * math.pi) - math.log(slope + limits[2]), rel=1e-6)
    if form == "stable":
        assert (log_prob[:2] > 1e38).all()
    else:
        exact = -0.5 * noise[:2, 0] ** 2 - s - 0.5 * math.log(2 * math.pi) - math.log(1e-6)
        np.testing.assert_allclose(log_prob[:2], exact, rtol=1e-6)
    zeros, ones = np.zeros(3, dtype), np.ones((3, 1), dtype)
    g_mean, g_log_std = backend.tanh_normal_sample_backward(saved, log_std, ones, zeros, -1.0, 1.0, *limits, True, True)
    np.testing.assert_array_equal(g_log_std, 0.0)
    np.testing.assert_allclose(g_mean[:, 0], [0.0, 0.0, slope], rtol=1e-6)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_huge_mean_meets_a_huger_noise(backend, dtype, sign):
    """u = mean + e^log_std eps is added up before anything is bounded."""
    largest = float(np.finfo(dtype).max)
    mean, noise = np.array([[-sign * largest]], dtype), np.array([[20.0 * sign]], dtype)
    log_std = np.array([[math.floor(math.log(largest))]], dtype)
    limits = (-math.inf, math.inf, 1e-6)
    action, log_prob, saved = backend.tanh_normal_sample(mean, log_std, noise, None, -1.0, 1.0, *limits, True)
    assert action.item() == sign and saved.ravel().tolist() == [sign * largest, sign * largest]
    assert log_prob.item() == pytest.approx(-200 - log_std.item() - 0.5 * math.log(2 * math.pi) - math.log(1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamped_log_std(backend, tolerance, rng, dtype):
    """Values are those of the clamped one; the gradient is 0 outside, and passes at the bounds themselves."""
    mean, _, noise = inputs(rng, 6, 1, dtype)
    log_std = np.array([[-9], [-5], [-1], [2], [2.5], [99]], dtype)
    limits = (-5.0, 2.0, 0.0)
    ours = backend.tanh_normal_sample(mean, log_std, noise, None, -1.0, 1.0, *limits, True)
    theirs = backend.tanh_normal_sample(mean, log_std.clip(-5, 2), noise, None, -1.0, 1.0, *LIMITS, True)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    gl = np.ones(6, dtype)
    zero = [True, False, False, False, True, True]
    _, grad = backend.tanh_normal_sample_backward(ours[2], log_std, None, gl, -1.0, 1.0, *limits, True, True)
    assert (grad[:, 0] == 0).tolist() == zero
    _, grad, _ = backend.tanh_normal_log_prob_backward(mean, log_std, ours[0], gl, -1.0, 1.0, *limits, True, True, True)
    assert (grad[:, 0] == 0).tolist() == zero


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_nan_at_saturation_as_in_ray_14878(backend, dtype):
    """log(1 - tanh(u)^2) of a rounded tanh is log 0: infinite log-probabilities, then NaN weights."""
    mean = np.array([[-1e4, 20.0, 1e4, -88.0, 44.0, 300.0]], dtype).T
    action, log_prob, saved = backend.tanh_normal_sample(
        mean, np.zeros(1, dtype), np.zeros_like(mean), None, -1.0, 1.0, *LIMITS, True
    )
    assert np.isfinite(action).all()
    exact = 2 * np.abs(mean[:, 0].astype(np.float64)) - 2 * math.log(2) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(log_prob, exact, rtol=1e-6)
    ones = np.ones(6, dtype)
    g_mean, g_log_std = backend.tanh_normal_sample_backward(
        saved, np.zeros(1, dtype), ones[:, None], ones, -1.0, 1.0, *LIMITS, True, True
    )
    np.testing.assert_allclose(g_mean[:, 0], 2 * np.sign(mean[:, 0]), rtol=1e-6)
    assert np.isfinite(g_log_std).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_nan_of_an_action_at_the_bound_as_in_tianshou_44(backend, dtype):
    """atanh(1) is infinite: such an action is taken at the last number inside, with finite gradients."""
    inside = np.nextafter(dtype(1), dtype(0))
    action = np.array([[1], [inside], [1.5], [-1], [-7]], dtype)
    mean, log_std, gl = np.zeros((5, 1), dtype), np.zeros(1, dtype), np.ones(5, dtype)
    log_prob = backend.tanh_normal_log_prob(mean, log_std, action, -1.0, 1.0, *LIMITS)
    assert np.isfinite(log_prob).all() and (log_prob == log_prob[1]).all()
    u = 0.5 * (math.log1p(float(inside)) - math.log1p(-float(inside)))
    exact = -(u**2) / 2 - math.log(2 * math.pi) / 2 - math.log1p(-float(inside)) - math.log1p(float(inside))
    np.testing.assert_allclose(log_prob, exact, rtol=1e-6)
    g_mean, g_log_std, g_action = backend.tanh_normal_log_prob_backward(
        mean, log_std, action, gl, -1.0, 1.0, *LIMITS, True, True, True
    )
    np.testing.assert_allclose(g_mean[:, 0], u * np.array([1, 1, 1, -1, -1]), rtol=1e-6)
    assert np.isfinite(g_log_std).all() and np.isfinite(g_action).all()


def test_gradient_at_the_bound_is_that_of_the_clamped_action(backend):
    """A clamp inside atanh (the usual repair) gives log_std and mean the gradient of a much nearer action."""
    action, mean, log_std = np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1)
    inside = np.full((1, 1), np.nextafter(1.0, 0.0))
    at, near = (
        backend.tanh_normal_log_prob_backward(mean, log_std, a, np.ones(1), -1.0, 1.0, *LIMITS, True, True, True)
        for a in (action, inside)
    )
    for a, b in zip(at, near, strict=True):
        np.testing.assert_array_equal(a, b)
    assert at[0].item() == pytest.approx(math.atanh(inside.item()), rel=1e-12)  # 18.7, not the 8.3 of 1 - 1e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bound_of_zero_has_finite_gradients(backend, dtype):
    """The last number inside 0 is subnormal, and over a large scale it is not even that."""
    action = np.array([[0.0], [1.0], [np.nextafter(dtype(0), dtype(1))]], dtype)
    mean, log_std, gl = np.zeros((3, 1), dtype), np.zeros(1, dtype), np.ones(3, dtype)
    for far in (1.0, 2.8, 4.0, 100.0, float(np.finfo(dtype).max)):
        for low, high, a in ((0.0, far, action), (-far, 0.0, -action)):
            log_prob = backend.tanh_normal_log_prob(mean, log_std, a, low, high, *LIMITS)
            with mpmath.workdps(800):
                distance = mpmath.mpf(float(action[2, 0]))
                u = mpmath.log(distance / (mpmath.mpf(far) - distance)) / 2
                width = 2 * distance * (1 - distance / mpmath.mpf(far))
                exact = float(-(u**2) / 2 - mpmath.log(2 * mpmath.pi) / 2 - mpmath.log(width))
                g_log_std = float(u**2 - 1)
            np.testing.assert_allclose(log_prob[[0, 2]], exact, rtol=1e-12 if dtype == np.float64 else 1e-6)
            grads = backend.tanh_normal_log_prob_backward(mean, log_std, a, gl, low, high, *LIMITS, True, False, True)
            shared = backend.tanh_normal_log_prob_backward(
                mean[:1], log_std, a[:1], gl[:1], low, high, *LIMITS, False, True, False
            )[1]
            np.testing.assert_allclose(grads[0][[0, 2], 0], float(u) if low == 0 else -float(u), rtol=1e-6)
            np.testing.assert_allclose(shared, g_log_std, rtol=1e-6)
            assert all(np.isfinite(g).all() for g in (grads[0], grads[2]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("low", [1.0, -3.0, 0.0])
def test_a_single_number_between_the_bounds(backend, dtype, low):
    """Every given action counts as it; without one, the bounds are refused."""
    low = dtype(low)
    inside = np.nextafter(low, dtype(9))
    high = np.nextafter(inside, dtype(9))
    action, mean, log_std = np.array([[low], [inside], [high]]), np.zeros((3, 1), dtype), np.zeros(1, dtype)
    log_prob = tanh_normal_log_prob(mean, log_std, action, low=float(low), high=float(high))
    log_scale = math.log((float(high) - float(low)) / 2)
    np.testing.assert_allclose(log_prob, 3 * [-0.5 * math.log(2 * math.pi) - log_scale], rtol=1e-6)
    assert np.isin(tanh_normal_sample(mean, log_std, low=float(low), high=float(high))[0], action).all()
    text = f"got {float(low)!r} and {float(inside)!r} in dimension 0"
    for call in (tanh_normal_sample, tanh_normal_log_prob, tanh_normal_mode):
        arguments = (mean, log_std, action)[: {"sample": 2, "log_prob": 3, "mode": 1}[call.__name__[12:]]]
        with pytest.raises(ValueError) as caught:
            call(*arguments, low=float(low), high=float(inside))
        assert (
            str(caught.value) == f"{call.__name__}: low and high must have a number of their dtype between them, {text}"
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_std", [-720.0, -1500.0, -1e30, -1e-3 * float(np.finfo(np.float32).max)])
def test_sigma_too_small_for_a_number(backend, dtype, log_std):
    """1 / sigma exceeds float64: the density of all but the mean itself is 0, and no gradient is NaN."""
    action = np.array([[0.0], [0.5], [-0.5], [0.5]], dtype)
    mean, s, gl = np.zeros((4, 1), dtype), np.full((4, 1), log_std, dtype), np.array([1, 2, 1, 0], dtype)
    peak = -float(s[0, 0]) - 0.5 * math.log(2 * math.pi)
    for shared in (s, s[0]):
        log_prob = backend.tanh_normal_log_prob(mean, shared, action, -1.0, 1.0, *LIMITS)
        np.testing.assert_allclose(log_prob, [peak, -math.inf, -math.inf, -math.inf], rtol=1e-6)
    g_mean, g_log_std, g_action = (
        g[:, 0]
        for g in backend.tanh_normal_log_prob_backward(mean, s, action, gl, -1.0, 1.0, *LIMITS, True, True, True)
    )
    largest = np.finfo(dtype).max
    np.testing.assert_array_equal(g_mean, [0, largest, -largest, 0])
    np.testing.assert_array_equal(g_log_std, [-1, largest, largest, 0])
    np.testing.assert_array_equal(g_action, [0, -largest, largest, 0])
    mean[2] = np.nan
    grads = backend.tanh_normal_log_prob_backward(mean, s, action, gl, -1.0, 1.0, *LIMITS, True, True, True)
    assert [np.isnan(g[:, 0]).tolist() for g in grads] == 3 * [[False, False, True, False]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_log_std_as_in_spinningup_314(backend, dtype):
    """A log_std driven to its floor and a saturated mean gave NaN losses: values stay those of the formula."""
    mean, log_std = np.array([[12.0], [-30.0]], dtype), np.full(1, -20, dtype)
    noise = np.array([[1.0], [-2.0]], dtype)
    _, log_prob = tanh_normal_sample(mean, log_std, noise=noise)
    exact = [-(e**2) / 2 + 20 - 0.5 * math.log(2 * math.pi) + 2 * m - 2 * math.log(2) for e, m in ((1, 12), (2, 30))]
    np.testing.assert_allclose(log_prob, exact, rtol=1e-6)


def test_the_action_scale_term_is_there(backend):
    """spinningup and RLlib leave out - log scale: with bounds of +-2 that is log 2 a dimension."""
    mean, log_std, noise = np.zeros((1, 3)), np.zeros(3), np.full((1, 3), 0.3)
    wide = tanh_normal_sample(mean, log_std, noise=noise, low=-2.0, high=2.0)[1]
    unit = tanh_normal_sample(mean, log_std, noise=noise)[1]
    np.testing.assert_allclose(unit - wide, 3 * math.log(2), rtol=1e-12)


def test_the_epsilon_form_saturates_and_the_stable_one_does_not(backend, rng):
    """As the usual code in float64: equal at |u| = 1, off by 1 % of the density at 5, and flat from 8 on."""
    u = np.array([[1.0], [5.0], [8.0], [20.0]])
    zero = np.zeros_like(u)
    stable = tanh_normal_sample(u, zero, noise=zero)[1]
    usual = tanh_normal_sample(u, zero, noise=zero, correction="epsilon")[1]
    exact = -0.5 * math.log(2 * math.pi) - np.log(1 / np.cosh(u[:, 0]) ** 2 + 1e-6)
    np.testing.assert_allclose(usual, exact, rtol=1e-12)
    assert abs(usual[0] - stable[0]) < 1e-5
    assert stable[3] - usual[3] > 20 and usual[3] == pytest.approx(-0.5 * math.log(2 * math.pi) + math.log(1e6))
