"""The draws of the tanh-Gaussian head, and its errors."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from fastrl import Generator, normal_sample, tanh_normal_log_prob, tanh_normal_mode, tanh_normal_sample
from fastrl.kernels import (
    tanh_normal,
)

from .helpers import DTYPES, LIMITS, inputs


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
