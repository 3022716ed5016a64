"""The tanh-Gaussian head on every backend: high-precision oracle, bounds, saturation, draws, layouts, errors."""

import importlib
import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from fastrl import Generator, normal_sample, tanh_normal_log_prob, tanh_normal_mode, tanh_normal_sample
from fastrl.kernels import (
    tanh_normal,
    tanh_normal_log_prob_reference,
    tanh_normal_mode_reference,
    tanh_normal_sample_reference,
)

DTYPES = [np.float32, np.float64]
FORMS = ["stable", "epsilon"]
# Around the 512 numbers that the C++ kernel works on together, and its 1024 rows that sum a gradient.
SIZES = [(1, 1), (5, 3), (64, 6), (85, 6), (86, 6), (99, 17), (1, 512), (3, 513), (2, 1100), (1030, 3)]
LIMITS = (-math.inf, math.inf, 0.0)


def load_kernels(request):
    if request.param == "reference":
        return tanh_normal.reference
    if request.param == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
        return importlib.import_module("fastrl.kernels.tanh_normal._numba")
    request.getfixturevalue("cpp")  # skips, or fails where the extension is required
    return importlib.import_module("fastrl._C")


@pytest.fixture(params=["reference", "numba", "cpp"])
def backend(request, monkeypatch):
    """The kernels of one backend, which the public functions call."""
    kernels = load_kernels(request)
    monkeypatch.setattr(tanh_normal.backend, "cpu", kernels)
    return kernels


def inputs(rng, rows, columns, dtype, shared=False):
    mean, noise = rng.normal(size=(2, rows, columns)).astype(dtype)
    log_std = rng.uniform(-3, 1, columns if shared else (rows, columns)).astype(dtype)
    return mean, log_std, noise


def some_bounds(columns, dtype):
    low = np.resize(np.array([-1, -2, 0, -0.1], dtype), columns)
    return low, low + np.resize(np.array([2, 5, 1, 0.3], dtype), columns)


# ---- against high precision -------------------------------------------------------------------------------------


def extreme_inputs(dtype, n=160, seed=3):
    """|u| up to 50 and log_std in [-20, 5], with mean and e^log_std eps of like size and either sign."""
    rng = np.random.default_rng(seed)
    log_std = rng.uniform(-20, 5, n).astype(dtype)
    noise = rng.normal(size=n)
    noise *= np.minimum(1.0, 45.0 / np.abs(np.exp(log_std.astype(np.float64)) * noise))
    mean = (rng.uniform(-50, 50, n) - np.exp(log_std.astype(np.float64)) * noise).clip(-50, 50).astype(dtype)
    mean[: n // 4] /= 16  # where the tanh is not flat
    return mean[:, None], log_std[:, None], noise.astype(dtype)[:, None]


def exact_sample(m, s, e, low, high, epsilon):
    """Action and log_prob of one number, by the definition."""
    u = m + mpmath.exp(s) * e
    scale, bias = (high - low) / 2, (high + low) / 2
    slope = scale / mpmath.cosh(u) ** 2
    log_prob = -(e**2) / 2 - s - mpmath.log(2 * mpmath.pi) / 2 - mpmath.log(slope + epsilon)
    return bias + scale * mpmath.tanh(u), log_prob


def exact_gradients(m, s, e, low, high, epsilon, ga, gl):
    def loss(m, s):
        action, log_prob = exact_sample(m, s, e, low, high, epsilon)
        return ga * action + gl * log_prob

    h = mpmath.mpf(10) ** -30
    return [
        (loss(m + h, s) - loss(m - h, s)) / (2 * h),
        (loss(m, s + h) - loss(m, s - h)) / (2 * h),
    ]


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.25, 3.0)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_against_high_precision(backend, tolerance, dtype, form, bounds):
    mean, log_std, noise = extreme_inputs(dtype)
    ga, gl = np.random.default_rng(1).normal(size=(2, len(mean))).astype(dtype)
    epsilon = 1e-6 if form == "epsilon" else 0.0
    kernels = backend
    action, log_prob, saved = kernels.tanh_normal_sample(
        mean, log_std, noise, None, *bounds, -math.inf, math.inf, epsilon, True
    )
    g_mean, g_log_std = kernels.tanh_normal_sample_backward(
        saved, log_std, ga[:, None], gl, *bounds, -math.inf, math.inf, epsilon, True, True
    )
    with mpmath.workdps(120):
        low, high = (mpmath.mpf(b) for b in bounds)
        numbers = [[mpmath.mpf(float(x)) for x in column.ravel()] for column in (mean, log_std, noise, ga, gl)]
        values, gradients = [], []
        for m, s, e, a, g in zip(*numbers, strict=True):
            values.append([float(x) for x in exact_sample(m, s, e, low, high, mpmath.mpf(epsilon))])
            gradients.append([float(x) for x in exact_gradients(m, s, e, low, high, mpmath.mpf(epsilon), a, g)])
    values, gradients = np.array(values), np.array(gradients)
    close = tolerance(mean.dtype)
    np.testing.assert_allclose(action[:, 0], values[:, 0], **close)
    np.testing.assert_allclose(log_prob, values[:, 1], **close)
    np.testing.assert_allclose(g_mean[:, 0], gradients[:, 0], **close)
    # Its terms, g_mean e^log_std eps and gl, may cancel: as exact as the larger is.
    scale = np.maximum(1, np.abs(gradients[:, 1] + gl))
    np.testing.assert_allclose(g_log_std[:, 0] / scale, gradients[:, 1] / scale, **close)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slope_never_rounds_to_zero_early(backend, dtype):
    """1 - tanh^2 u is 4 e^{-2 |u|}, to |u| = 43 in float32: tanh itself is 1 from |u| = 9 on."""
    u = np.array([[10.0], [-20.0], [30.0], [-43.0]], dtype)
    grad = backend.tanh_normal_mode_backward(u, np.ones_like(u), -1.0, 1.0)
    np.testing.assert_allclose(grad, 4 * np.exp(-2 * np.abs(u.astype(np.float64))), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob_against_high_precision(backend, tolerance, dtype):
    rng = np.random.default_rng(5)
    n = 120
    scale = 1 - 2.0 ** -rng.uniform(1, 22 if dtype == np.float32 else 50, n)
    action = (np.where(rng.random(n) < 0.5, -1, 1) * scale).astype(dtype)
    log_std = rng.uniform(-3, 5, n).astype(dtype)
    mean = rng.uniform(-5, 5, n).astype(dtype)
    gl = rng.normal(size=n).astype(dtype)
    m, s, a = mean[:, None], log_std[:, None], action[:, None]
    log_prob = backend.tanh_normal_log_prob(m, s, a, -1.0, 1.0, *LIMITS)
    found = backend.tanh_normal_log_prob_backward(m, s, a, gl, -1.0, 1.0, *LIMITS, True, True, True)
    with mpmath.workdps(60):

        def exact(m, s, a):
            z = (mpmath.atanh(a) - m) * mpmath.exp(-s)
            return -(z**2) / 2 - s - mpmath.log(2 * mpmath.pi) / 2 - mpmath.log((1 - a) * (1 + a))

        wanted = []
        for m, s, a, g in zip(*([mpmath.mpf(float(x)) for x in c] for c in (mean, log_std, action, gl)), strict=True):
            h = mpmath.mpf(10) ** -30
            wanted.append(
                [
                    exact(m, s, a),
                    g * (exact(m + h, s, a) - exact(m - h, s, a)) / (2 * h),
                    g * (exact(m, s + h, a) - exact(m, s - h, a)) / (2 * h),
                    g * (exact(m, s, a + h) - exact(m, s, a - h)) / (2 * h),
                ]
            )
        wanted = np.array(wanted, np.float64)
    for ours, theirs in zip((log_prob[:, None], *found), wanted.T, strict=True):
        size = np.maximum(1, np.abs(wanted[:, 3:]) if ours is found[2] else 1)  # of terms that cancel
        np.testing.assert_allclose(ours / size, theirs[:, None] / size, **tolerance(mean.dtype))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.25, 3.0), (0.0, 100.0), (-40.0, 0.0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob_of_extreme_arguments(backend, tolerance, dtype, bounds):
    """|mean| up to 50, log_std in [-20, 5], actions to the last number inside: as exact as the terms that cancel."""
    rng = np.random.default_rng(6)
    n = 80
    low, high = (np.float64(b) for b in bounds)
    near = 2.0 ** -rng.uniform(0, 22 if dtype == np.float32 else 50, n) * (high - low)
    action = np.where(rng.random(n) < 0.5, low + near, high - near).astype(dtype)
    action[:2] = np.nextafter(dtype(low), dtype(high)), np.nextafter(dtype(high), dtype(low))
    mean, log_std = rng.uniform(-50, 50, n).astype(dtype), rng.uniform(-20, 5, n).astype(dtype)
    arrays = [x[:, None] for x in (mean, log_std, action)]
    log_prob = backend.tanh_normal_log_prob(*arrays, *bounds, *LIMITS)
    grads = backend.tanh_normal_log_prob_backward(*arrays, np.ones(n, dtype), *bounds, *LIMITS, True, True, True)
    assert np.isfinite(log_prob).all() and all(np.isfinite(g).all() for g in grads)
    with mpmath.workdps(400):  # 1 - x of a subnormal distance
        low, high = (mpmath.mpf(b) for b in bounds)
        scale = (high - low) / 2
        for i in range(n):
            m, s, a = (mpmath.mpf(float(x[i])) for x in (mean, log_std, action))
            u, width, inverse = mpmath.log((a - low) / (high - a)) / 2, (a - low) * (high - a) / scale, mpmath.exp(-s)
            z, x = (u - m) * inverse, (a - low - scale) / scale
            exact_log_prob = -(z**2) / 2 - s - mpmath.log(2 * mpmath.pi) / 2 - mpmath.log(width)
            terms = (abs(u) + abs(m)) * inverse  # of z
            checked = [
                (log_prob[i], exact_log_prob, terms**2),
                (grads[0][i, 0], z * inverse, terms * inverse),
                (grads[1][i, 0], z**2 - 1, terms**2),
                (grads[2][i, 0], (2 * x - z * inverse) / width, (2 + terms * inverse) / width),
            ]
            largest = float(np.finfo(dtype).max)
            for found, exact, size in checked:
                exact = min(max(exact, -largest), largest)
                error = abs(mpmath.mpf(float(found)) - exact) / (1 + size)
                assert error <= tolerance(dtype().dtype)["rtol"], (i, found, float(exact))


# ---- agreement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["[A]", "[B, A]"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_the_reference(backend, tolerance, rng, size, dtype, shared):
    """Values, draws, gradients, with bounds a dimension and a clamped log_std, in both forms."""
    mean, log_std, noise = inputs(rng, *size, dtype, shared)
    ga, gl = rng.normal(size=size).astype(dtype), rng.normal(size=size[0]).astype(dtype)
    reference, close = tanh_normal.reference, tolerance(np.dtype(dtype))
    low, high = some_bounds(size[1], dtype)

    def same(ours, theirs, terms=False):
        """`terms`: of either sign, added or subtracted: as exact as the largest are large."""
        for a, b in zip(ours, theirs, strict=True):
            if b is None:
                assert a is None
                continue
            assert type(a) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape
            scale = max(1.0, float(np.abs(b).max(initial=0))) if terms else 1.0
            np.testing.assert_allclose(a / scale, b / scale, **close)

    for epsilon, limits in ((0.0, (-math.inf, math.inf)), (1e-6, (-1.0, 0.5))):
        options = (low, high, *limits, epsilon)
        ours = backend.tanh_normal_sample(mean, log_std, noise, None, *options, True)
        theirs = reference.tanh_normal_sample(mean, log_std, noise, None, *options, True)
        same(ours, theirs)
        states = [np.array([7, 2**64 - 2], np.uint64) for _ in range(2)]
        drawn = [
            kernels.tanh_normal_sample(mean, log_std, None, state, *options, False)
            for kernels, state in zip((backend, reference), states, strict=True)
        ]
        same(*drawn)
        np.testing.assert_array_equal(*states)
        assert int(states[0][1]) == (2**64 - 2 + (mean.size + 3) // 4) % 2**64
        for want in ((True, True), (False, True), (True, False)):
            for a, g in ((ga, gl), (None, gl), (ga, None)):
                arguments = (theirs[2], log_std, a, g, *options, *want)
                same(backend.tanh_normal_sample_backward(*arguments), reference.tanh_normal_sample_backward(*arguments))
        action = reference.tanh_normal_sample(mean / 4, log_std, noise / 4, None, *options, False)[0]
        arguments = (mean, log_std, action, *options)
        same((backend.tanh_normal_log_prob(*arguments),), (reference.tanh_normal_log_prob(*arguments),))
        for want in itertools.product([True, False], repeat=3):
            arguments = (mean, log_std, action, gl, *options, *want)
            found, wanted = (k.tanh_normal_log_prob_backward(*arguments) for k in (backend, reference))
            same(found, wanted, terms=True)
    same((backend.tanh_normal_mode(mean, low, high),), (reference.tanh_normal_mode(mean, low, high),))
    arguments = (mean, ga, low, high)
    same((backend.tanh_normal_mode_backward(*arguments),), (reference.tanh_normal_mode_backward(*arguments),))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(backend, tolerance, rng, dtype):
    mean, log_std, noise = inputs(rng, 90, 5, dtype)
    action = np.tanh(noise)
    low, high = some_bounds(5, dtype)
    wide = np.zeros((180, 15), dtype)

    def strided(x):
        view = wide.copy()[::2, ::3] if x.ndim == 2 else np.zeros(3 * len(x), x.dtype)[::3]
        view[...] = x
        return view

    def reverse(x):
        return np.ascontiguousarray(x[::-1])[::-1]

    def unaligned(x):
        view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
        view[...] = x
        return view

    for change in (strided, reverse, unaligned, np.asfortranarray):
        for call, arrays in (
            (lambda m, s, e, lo, hi: tanh_normal_sample(m, s, noise=e, low=lo, high=hi), (mean, log_std, noise)),
            (lambda m, s, e, lo, hi: (tanh_normal_log_prob(m, s, e / 2, low=-hi, high=hi),), (mean, log_std, action)),
            (lambda m, s, e, lo, hi: (tanh_normal_mode(m, low=lo, high=hi),), (mean, log_std, noise)),
        ):
            wanted = call(*arrays, low, high)
            found = call(*(change(x) for x in (*arrays, low, high)))
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a, b, **tolerance(b.dtype))


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)], ids=str)
def test_empty(backend, shape):
    x, generator = np.zeros(shape, np.float32), Generator(2)
    for log_std in (x, np.zeros(shape[1], np.float32)):
        action, log_prob = tanh_normal_sample(x, log_std, generator=generator)
        assert action.shape == shape and log_prob.shape == shape[:1]
        np.testing.assert_array_equal(log_prob, 0)
        np.testing.assert_array_equal(tanh_normal_log_prob(x, log_std, x), np.zeros(shape[0]))
        assert tanh_normal_mode(x).shape == shape
    assert generator.counter == 0


def test_public_references_are_the_reference(rng):
    mean, log_std, noise = inputs(rng, 9, 3, np.float64)
    action, log_prob = tanh_normal_sample_reference(mean, log_std, noise=noise)
    np.testing.assert_array_equal(action, tanh_normal.reference.tanh_normal_sample(
        mean, log_std, noise, None, -1.0, 1.0, *LIMITS, False)[0])  # fmt: skip
    np.testing.assert_allclose(log_prob, tanh_normal_log_prob_reference(mean, log_std, action), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(tanh_normal_mode_reference(mean), np.tanh(mean))


# ---- what it must satisfy ---------------------------------------------------------------------------------------


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


# ---- faults of others -------------------------------------------------------------------------------------------


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


# ---- draws ------------------------------------------------------------------------------------------------------


def drawn_noise(kernels, n, dtype, seed):
    zero = np.zeros((n // 8, 8), dtype)
    state = np.array([seed, 0], np.uint64)
    kept = kernels.tanh_normal_sample(zero, zero[0], None, state, -1.0, 1.0, *LIMITS, True)[2]
    return kept[1].ravel()  # e^0 eps


def check_standard_normal(x):
    """Each check would fail for one seed in a million."""
    n, x = len(x), x.astype(np.float64)
    assert scipy.stats.kstest(x, "norm").pvalue > 1e-6
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)):
        assert abs((x**power).mean() - moment) < 4.9 * math.sqrt(variance / n), power
    for lag in (1, 2, 3, 4, 8):  # the numbers of a pair, of a block, and of neighbouring blocks
        assert abs((x[lag:] * x[:-lag]).mean()) < 4.9 / math.sqrt(n), lag
        assert abs((x[lag:] ** 2 * x[:-lag] ** 2).mean() - 1) < 4.9 * math.sqrt(8 / n), lag
    for edge in (3.0, 4.0, 4.5, 5.0, 5.5):
        for tail in (x > edge, x < -edge):
            expected = n * scipy.stats.norm.sf(edge)
            count = int(tail.sum())
            assert scipy.stats.poisson.sf(count - 1, expected) > 1e-6, edge
            assert scipy.stats.poisson.cdf(count, expected) > 1e-6, edge
    assert np.abs(x).max() < 6.67


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_draws_are_standard_normal(backend, dtype):
    check_standard_normal(drawn_noise(backend, 1_000_000, dtype, 11))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_million_draws_are_standard_normal(backend, dtype):
    check_standard_normal(drawn_noise(backend, 10_000_000, dtype, 12))


def test_draws_equal_the_float64_formula_within_float32(backend, tolerance):
    """Every number of 400,000, so that the tails and the neighbourhood of 0 are there."""
    ours = drawn_noise(backend, 400_000, np.float32, 5)
    theirs = drawn_noise(tanh_normal.reference, 400_000, np.float64, 5)
    np.testing.assert_allclose(ours, theirs, **tolerance("float32"))


def test_the_noise_is_that_of_normal_sample(backend, tolerance):
    zero = np.zeros((30, 3))
    noise = normal_sample(zero, zero, generator=Generator(4))[0]
    drawn = tanh_normal_sample(zero, zero, generator=Generator(4))
    for a, b in zip(drawn, tanh_normal_sample(zero, zero, noise=noise), strict=True):
        np.testing.assert_allclose(a, b, **tolerance("float64"))


def test_threads_change_no_bit(backend, rng):
    import fastrl

    mean, log_std, _ = inputs(rng, 30_001, 5, np.float32, shared=True)
    before, results = fastrl.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            fastrl.set_num_threads(threads)
            state = np.array([3, 9], np.uint64)
            action, log_prob, saved = backend.tanh_normal_sample(mean, log_std, None, state, -1.0, 1.0, *LIMITS, True)
            grads = backend.tanh_normal_sample_backward(saved, log_std, mean, log_prob, -1.0, 1.0, *LIMITS, True, True)
            results.append([x.tobytes() for x in (action, log_prob, saved, *grads)])
    finally:
        fastrl.set_num_threads(before)
    assert results[0] == results[1] == results[2]


# ---- errors -----------------------------------------------------------------------------------------------------

f32 = np.zeros((4, 3), np.float32)
BAD = {
    "mean list": lambda: tanh_normal_sample([[0.0]], f32),
    "mean ints": lambda: tanh_normal_sample(f32.astype(int), f32),
    "mean rank": lambda: tanh_normal_sample(f32[0], f32[0]),
    "log_std shape": lambda: tanh_normal_sample(f32, f32[:, :2]),
    "log_std rows": lambda: tanh_normal_sample(f32, f32[:3]),
    "log_std dtype": lambda: tanh_normal_sample(f32, f32.astype(np.float64)),
    "log_std number": lambda: tanh_normal_sample(f32, 0.0),
    "noise shape": lambda: tanh_normal_sample(f32, f32, noise=f32[:2]),
    "noise dtype": lambda: tanh_normal_sample(f32, f32, noise=f32.astype(np.float64)),
    "generator": lambda: tanh_normal_sample(f32, f32, generator=3),
    "low str": lambda: tanh_normal_sample(f32, f32, low="-1"),
    "low bool": lambda: tanh_normal_sample(f32, f32, low=True),
    "low None": lambda: tanh_normal_mode(f32, low=None),
    "low list": lambda: tanh_normal_log_prob(f32, f32, f32, low=[-1.0] * 2),
    "high list": lambda: tanh_normal_sample(f32, f32, high=["1.0"] * 3),
    "high ragged": lambda: tanh_normal_sample(f32, f32, high=[1.0, [1.0, 2.0], 1.0]),
    "high bools": lambda: tanh_normal_sample(f32, f32, high=np.ones(3, bool)),
    "high masked": lambda: tanh_normal_sample(f32, f32, high=np.ma.masked_array([1.0, 2.0, 3.0], [0, 0, 1])),
    "low shape": lambda: tanh_normal_sample(f32, f32, low=f32[0, :2]),
    "low 0-d": lambda: tanh_normal_sample(f32, f32, low=np.array(1.0, np.float32)),
    "low rank": lambda: tanh_normal_sample(f32, f32, low=f32 - 1),
    "low dtype": lambda: tanh_normal_sample(f32, f32, low=-np.ones(3, complex)),
    "low above high": lambda: tanh_normal_sample(f32, f32, low=2.0),
    "low equals high": lambda: tanh_normal_mode(f32, low=1, high=1),
    "low inf": lambda: tanh_normal_sample(f32, f32, low=-np.inf),
    "low beyond float32": lambda: tanh_normal_sample(f32, f32, low=-1e300),
    "low nan": lambda: tanh_normal_log_prob(f32, f32, f32, low=math.nan),
    "high nan in a dimension": lambda: tanh_normal_mode(f32, high=np.array([1, 1, np.nan], np.float32)),
    "bounds equal in float32": lambda: tanh_normal_mode(f32, low=1.0, high=1.0 + 1e-12),
    "neighbours": lambda: tanh_normal_sample(f32, f32, low=1.0, high=1.0 + 2**-23),
    "neighbours of a log_prob": lambda: tanh_normal_log_prob(f32, f32, f32, low=0.0, high=2.0**-149),
    "neighbours in a dimension": lambda: tanh_normal_mode(
        f32, high=np.array([1, np.nextafter(np.float32(-1), 0), 1], "f4")
    ),
    "log_std_min str": lambda: tanh_normal_sample(f32, f32, log_std_min="a"),
    "log_std_max nan": lambda: tanh_normal_sample(f32, f32, log_std_max=math.nan),
    "log_std limits": lambda: tanh_normal_log_prob(f32, f32, f32, log_std_min=2.0, log_std_max=-5),
    "correction": lambda: tanh_normal_sample(f32, f32, correction="exact"),
    "correction type": lambda: tanh_normal_sample(f32, f32, correction=1),
    "epsilon": lambda: tanh_normal_sample(f32, f32, correction="epsilon", epsilon=0.0),
    "epsilon type": lambda: tanh_normal_log_prob(f32, f32, f32, correction="epsilon", epsilon=None),
    "action shape": lambda: tanh_normal_log_prob(f32, f32, f32[:2]),
    "action dtype": lambda: tanh_normal_log_prob(f32, f32, f32.astype(np.float64)),
    "action missing": lambda: tanh_normal_log_prob(f32, f32, None),
}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in BAD.items()])
def test_same_error_on_every_backend(backend, oracle, monkeypatch, call):
    from fastrl.kernels.random import default_generator

    before = default_generator("cpu").state_dict()
    ours = oracle.outcome(call)
    assert default_generator("cpu").state_dict() == before and not f32.any()  # nothing drawn, nothing written
    monkeypatch.setattr(tanh_normal.backend, "cpu", tanh_normal.reference)
    assert ours == oracle.outcome(call)
    assert ours[0] == "raised" and ours[1] in (TypeError, ValueError)
    assert ours[2].startswith(("tanh_normal_sample: ", "tanh_normal_log_prob: ", "tanh_normal_mode: "))


BAD_BACKWARD = {
    "saved shape": (np.zeros((4, 3), np.float32), f32, f32, f32[:, 0]),
    "saved dtype": (np.zeros((2, 4, 3)), f32, f32, f32[:, 0]),
    "log_std shape": (np.zeros((2, 4, 3), np.float32), f32[:2], f32, f32[:, 0]),
    "grad_action shape": (np.zeros((2, 4, 3), np.float32), f32, f32[:2], f32[:, 0]),
    "grad_log_prob shape": (np.zeros((2, 4, 3), np.float32), f32, f32, f32[0]),
    "grad_log_prob kind": (np.zeros((2, 4, 3), np.float32), f32, f32, [0.0]),
}


@pytest.mark.parametrize("name", BAD_BACKWARD)
def test_same_error_of_a_gradient(backend, oracle, name):
    ours, theirs = (
        oracle.outcome(lambda k=k: k.tanh_normal_sample_backward(*BAD_BACKWARD[name], -1.0, 1.0, *LIMITS, True, True))
        for k in (backend, tanh_normal.reference)
    )
    assert ours == theirs and ours[0] == "raised"
