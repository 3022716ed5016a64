"""The normal head on every backend: oracle, layouts, draws."""

import math
import threading

import numpy as np
import pytest
import scipy.stats

import fastrl
from fastrl.kernels import (
    Generator,
    normal,
    normal_log_prob_entropy,
    normal_sample,
    normal_sample_reference,
)

from .helpers import inputs, oracle_log_prob

DTYPES = [np.float32, np.float64]
# Around the 256 numbers that the C++ kernel works on together, and its 1024 rows that sum a gradient.
SIZES = [
    (1, 1),
    (4, 1),
    (5, 3),
    (64, 6),
    (43, 6),
    (99, 17),
    (256, 1),
    (1, 256),
    (3, 257),
    (2, 600),
    (1030, 3),
    (989, 2),
]


def layouts(x):
    yield "C", x
    yield "transposed", np.asfortranarray(x)
    yield "reversed", np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    yield "stepped", np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3]
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    yield "unaligned", unaligned
    readonly = x.copy()
    readonly.flags.writeable = False
    yield "read-only", readonly


@pytest.mark.parametrize("shared", [True, False], ids=["[A]", "[B, A]"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_log_prob_and_entropy(backend, tolerance, rng, size, dtype, shared):
    mean, log_std, action = inputs(rng, *size, dtype, shared)
    log_prob, entropy = normal_log_prob_entropy(mean, log_std, action)
    assert type(log_prob) is type(entropy) is np.ndarray
    assert log_prob.dtype == entropy.dtype == dtype and log_prob.shape == entropy.shape == (size[0],)
    np.testing.assert_allclose(log_prob, oracle_log_prob(mean, log_std, action), **tolerance(mean.dtype))
    expected = np.broadcast_to(scipy.stats.norm.entropy(0, np.exp(log_std.astype(np.float64))), mean.shape).sum(1)
    np.testing.assert_allclose(entropy, expected, **tolerance(mean.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_from_the_mean_and_extreme_scales(backend, tolerance, dtype):
    log_std = np.array([[-20.0], [-5.0], [0.0], [5.0], [20.0]], dtype)
    mean, action = np.zeros((5, 1), dtype), np.array([[1e-8], [3.0], [1e3], [-7.0], [1e9]], dtype)
    log_prob, entropy = normal_log_prob_entropy(mean, log_std, action)
    s, x = log_std[:, 0].astype(np.float64), action[:, 0].astype(np.float64)
    expected = [-((a * math.exp(-b)) ** 2) / 2 - b - math.log(2 * math.pi) / 2 for a, b in zip(x, s, strict=True)]
    np.testing.assert_allclose(log_prob, expected, **tolerance(mean.dtype))
    np.testing.assert_allclose(entropy, s + (1 + math.log(2 * math.pi)) / 2, **tolerance(mean.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(backend, rng, dtype):
    mean, log_std, action = inputs(rng, 50, 3, dtype, shared=False)
    clean = normal_log_prob_entropy(mean, log_std, action)
    others = np.arange(50) != 20
    for which in range(3):
        arrays = [mean.copy(), log_std.copy(), action.copy()]
        arrays[which][20, 1] = np.nan
        log_prob, entropy = normal_log_prob_entropy(*arrays)
        assert np.isnan(log_prob[20]) and np.isnan(entropy[20]) == (which == 1)
        np.testing.assert_array_equal(log_prob[others], clean[0][others])
        np.testing.assert_array_equal(entropy[others], clean[1][others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(backend, backend_name, tolerance, rng, dtype):
    def same(call, *args, expected, name):
        for ours, theirs in zip(call(*args), expected, strict=True):
            if backend_name == "reference":  # NumPy's exp rounds by the layout
                np.testing.assert_allclose(ours, theirs, **tolerance(theirs.dtype), err_msg=name)
            else:
                np.testing.assert_array_equal(ours, theirs, err_msg=name)

    def draw(mean, log_std):
        return normal_sample(mean, log_std, generator=Generator(1))

    def add_noise(mean, log_std, noise):
        return normal_sample(mean, log_std, noise=noise)

    mean, log_std, action = inputs(rng, 90, 5, dtype, shared=False)
    results = normal_log_prob_entropy(mean, log_std, action)
    drawn, given = draw(mean, log_std), add_noise(mean, log_std, action)
    views = [dict(layouts(x)) for x in (mean, log_std, action)]
    for name in views[0]:
        m, s, x = (view[name] for view in views)
        same(normal_log_prob_entropy, m, s, x, expected=results, name=name)
        same(draw, m, s, expected=drawn, name=name)
        same(add_noise, m, s, x, expected=given, name=name)
    row = np.repeat(log_std[0], 2)[::2]  # strided, and the same as a row for each b
    rows = np.broadcast_to(row, mean.shape)
    shared = normal_log_prob_entropy(mean, row, action)
    same(normal_log_prob_entropy, mean, rows, action, expected=shared, name="broadcast")


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)], ids=str)
def test_empty(backend, shape):
    x, generator = np.zeros(shape, np.float32), Generator(2)
    for log_std in (x, np.zeros(shape[1], np.float32)):
        action, log_prob = normal_sample(x, log_std, generator=generator)
        assert action.shape == shape and log_prob.shape == shape[:1]
        np.testing.assert_array_equal(log_prob, 0)
        for result in normal_log_prob_entropy(x, log_std, x):
            np.testing.assert_array_equal(result, np.zeros(shape[0]))
    assert generator.counter == 0


def oracle_normals(oracle, seed, counter, n):
    out = []
    for i in range((n + 3) // 4):
        block = (counter + i) % 2**64
        w = oracle.philox4x32((block & 0xFFFFFFFF, block >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
        for x, y in (w[:2], w[2:]):
            radius, angle = math.sqrt(-2 * math.log((x | 1) / 2**32)), 2 * math.pi * (y / 2**32)
            out += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(out[:n])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (90, 6), (2, 300)], ids=str)
def test_draws_are_box_muller_of_the_stream(backend, oracle, tolerance, rng, size, dtype):
    mean, log_std, _ = inputs(rng, *size, dtype, shared=size[0] % 2 == 0)
    seed, counter = 2**64 - 5, 2**64 - 2  # the counter wraps
    generator = Generator(seed)
    generator.load_state_dict({"seed": seed, "counter": counter})
    action, log_prob = normal_sample(mean, log_std, generator=generator)
    assert action.dtype == log_prob.dtype == dtype and log_prob.shape == (size[0],)
    assert generator.counter == (counter + (mean.size + 3) // 4) % 2**64
    eps = oracle_normals(oracle, seed, counter, mean.size).reshape(mean.shape)
    m, s = mean.astype(np.float64), np.broadcast_to(log_std, mean.shape).astype(np.float64)
    np.testing.assert_allclose(action, m + np.exp(s) * eps, **tolerance(mean.dtype))
    expected = (-(eps**2) / 2 - s - math.log(2 * math.pi) / 2).sum(1)
    np.testing.assert_allclose(log_prob, expected, **tolerance(mean.dtype))


def test_same_seed_as_the_reference(backend, tolerance, rng):
    for size in SIZES:
        for dtype in DTYPES:
            mean, log_std, _ = inputs(rng, *size, dtype, shared=True)
            ours, theirs = Generator(9), Generator(9)
            for _ in range(2):
                for a, b in zip(
                    normal_sample(mean, log_std, generator=ours),
                    normal_sample_reference(mean, log_std, generator=theirs),
                    strict=True,
                ):
                    np.testing.assert_allclose(a, b, **tolerance(mean.dtype))
            assert ours.state_dict() == theirs.state_dict()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_draws_are_standard_normal(backend, dtype):
    """100,000 draws: Kolmogorov-Smirnov and four moments; each would fail for one seed in a million."""
    n = 100_000
    zero = np.zeros((n, 1), dtype)
    x = normal_sample(zero, zero[0], generator=Generator(11))[0][:, 0].astype(np.float64)
    assert scipy.stats.kstest(x, "norm").pvalue > 1e-6
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4.9 * math.sqrt(variance / n), power
    assert abs((x[1:] * x[:-1]).mean()) < 4.9 / math.sqrt(n)  # neighbours do not depend on each other


def test_noise_replaces_the_draw(backend, tolerance):
    mean, log_std, noise = np.array([[1.0, 2.0]]), np.array([0.0, math.log(2.0)]), np.array([[0.5, -1.0]])
    generator = Generator(0)
    action, log_prob = normal_sample(mean, log_std, noise=noise, generator=generator)
    np.testing.assert_allclose(action, [[1.5, 0.0]], **tolerance(mean.dtype))
    np.testing.assert_allclose(log_prob, -0.625 - math.log(2) - math.log(2 * math.pi), **tolerance(mean.dtype))
    assert generator.counter == 0


def test_sampled_log_prob_is_that_of_the_action(backend, rng):
    mean, log_std, _ = inputs(rng, 60, 4, np.float64, shared=False)
    action, log_prob = normal_sample(mean, log_std, generator=Generator(8))
    np.testing.assert_allclose(log_prob, normal_log_prob_entropy(mean, log_std, action)[0], rtol=1e-9, atol=1e-9)


def test_default_generator(backend):
    x = np.zeros((9, 2), np.float32)
    fastrl.manual_seed(5)
    first = normal_sample(x, x)[0]
    assert (normal_sample(x, x)[0] != first).all()
    np.testing.assert_array_equal(normal_sample(x, x, generator=Generator(5))[0], first)


def test_threads_share_a_generator(backend):
    generator, zero = Generator(1), np.zeros((8, 3))
    drawn = []

    def work():
        for _ in range(25):
            drawn.append(normal_sample(zero, zero, generator=generator)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert generator.counter == 4 * 25 * 24 // 4
    expected = normal_sample(np.zeros((800, 3)), np.zeros(3), generator=Generator(1))[0]
    np.testing.assert_array_equal(np.sort(np.ravel(drawn)), np.sort(expected.ravel()))


def test_thread_count_changes_no_bit(backend, rng):
    mean, log_std, action = inputs(rng, 20_011, 5, np.float32, shared=True)
    ones = np.ones(len(mean), np.float32)
    before = fastrl.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            fastrl.set_num_threads(threads)
            drawn = normal_sample(mean, log_std, generator=Generator(2))
            kernels = normal.backend.cpu
            gradients = kernels.normal_log_prob_entropy_backward(mean, log_std, action, ones, None, True, True, True)
            pathwise = kernels.normal_sample_backward(log_std, action, mean, ones)
            results.append((*drawn, *normal_log_prob_entropy(mean, log_std, action), *gradients, pathwise))
    finally:
        fastrl.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)
