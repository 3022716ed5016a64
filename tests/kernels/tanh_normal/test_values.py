"""The tanh-Gaussian head on every backend: high-precision oracle, agreement, layouts."""

import itertools
import math

import mpmath
import numpy as np
import pytest

from fastrl import Generator, tanh_normal_log_prob, tanh_normal_mode, tanh_normal_sample
from fastrl.kernels import (
    tanh_normal,
    tanh_normal_log_prob_reference,
    tanh_normal_mode_reference,
    tanh_normal_sample_reference,
)

from .helpers import DTYPES, FORMS, LIMITS, inputs

# Around the 512 numbers that the C++ kernel works on together, and its 1024 rows that sum a gradient.
SIZES = [(1, 1), (5, 3), (64, 6), (85, 6), (86, 6), (99, 17), (1, 512), (3, 513), (2, 1100), (1030, 3)]


def some_bounds(columns, dtype):
    low = np.resize(np.array([-1, -2, 0, -0.1], dtype), columns)
    return low, low + np.resize(np.array([2, 5, 1, 0.3], dtype), columns)


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
