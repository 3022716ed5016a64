"""The categorical head on every backend: oracle, layouts, draws."""

import importlib
import threading
from decimal import Decimal, getcontext

import numpy as np
import pytest
import scipy.special
import scipy.stats

import fastrl
from fastrl.kernels import (
    Generator,
    categorical,
    categorical_log_prob_entropy,
    categorical_sample,
    categorical_sample_reference,
)

from .helpers import INF, NAN, SIZES, oracle_entropy, random_logits

DTYPES = [np.float32, np.float64]
DEVICE = "cuda"  # of the compiled CUDA kernels


def oracle_log_p(z):
    return scipy.special.log_softmax(z.astype(np.float64), axis=1)


def layouts(z):
    yield "C", z
    yield "transposed", np.asfortranarray(z)
    yield "reversed", np.ascontiguousarray(z[::-1, ::-1])[::-1, ::-1]
    yield "stepped", np.repeat(np.repeat(z, 2, 0), 3, 1)[::2, ::3]
    unaligned = np.zeros(z.nbytes + 1, np.uint8)[1:].view(z.dtype).reshape(z.shape)
    unaligned[...] = z
    yield "unaligned", unaligned
    readonly = z.copy()
    readonly.flags.writeable = False
    yield "read-only", readonly


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_log_prob_and_entropy(backend, tolerance, rng, size, dtype):
    z = random_logits(rng, *size, dtype)
    action = rng.integers(0, size[1], size[0])
    log_prob, entropy = categorical_log_prob_entropy(z, action)
    assert type(log_prob) is type(entropy) is np.ndarray
    assert log_prob.dtype == entropy.dtype == dtype and log_prob.shape == entropy.shape == (size[0],)
    np.testing.assert_allclose(log_prob, oracle_log_p(z)[np.arange(size[0]), action], **tolerance(z.dtype))
    np.testing.assert_allclose(entropy, oracle_entropy(z), **tolerance(z.dtype))
    again = categorical_log_prob_entropy(z, action.astype(np.int32))
    np.testing.assert_array_equal(again[0], log_prob)


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_decimal_arithmetic(backend, tolerance, dtype):
    """Oracle of 60 digits, where float64 formulas lose theirs: nearly certain actions, far apart logits, large ones."""
    getcontext().prec = 60
    rows = [[0.0, -20.0, -30.0], [0.0, -90.0, -745.0], [1e4, 1e4 - 1, 0.0], [-1e30, -1e30, -1e30], [1e-30, 0.0, -1e-30]]
    rows += [[3e38, -3e38, 0.0], [88.0, 0.0, -88.0], [0.0, -INF, -17.0], [-INF, -INF, 5.0]]
    z = np.array(rows, dtype)
    for a in range(3):
        log_prob, entropy = categorical_log_prob_entropy(z, np.full(len(z), a))
        for b, row in enumerate(z):
            exact = [Decimal(float(x)) if x > -INF else None for x in row]
            total = sum(x.exp() if x is not None and x < 1000 else Decimal(0) for x in shift(exact))
            log_p = [None if x is None else x - total.ln() for x in shift(exact)]
            expected = -INF if log_p[a] is None else float(log_p[a])
            with np.errstate(over="ignore"):
                expected = np.array(expected).astype(dtype)
            np.testing.assert_allclose(log_prob[b], expected, **tolerance(z.dtype))
            h = -sum(x.exp() * x for x in log_p if x is not None)
            np.testing.assert_allclose(entropy[b], float(h), **tolerance(z.dtype))


def shift(row):
    largest = max(x for x in row if x is not None)
    return [None if x is None else x - largest for x in row]


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(backend, tolerance, dtype):
    z = np.array([[1, -INF, 2, -INF], [-INF, -INF, -INF, 7]], dtype)
    log_prob, entropy = categorical_log_prob_entropy(z, np.array([1, 3]))
    assert log_prob[0] == -INF and log_prob[1] == 0 and entropy[1] == 0
    alone = categorical_log_prob_entropy(z[:1, ::2], np.array([0]))[1]
    np.testing.assert_allclose(entropy[:1], alone, **tolerance(z.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [[NAN, 0, 0], [0, INF, 0], [-INF, -INF, -INF], [INF, INF, NAN]], ids=str)
def test_a_row_without_a_distribution_is_nan_alone(backend, rng, dtype, poison):
    z = rng.normal(size=(37, 3)).astype(dtype)
    action = rng.integers(0, 3, 37)
    clean = categorical_log_prob_entropy(z, action)
    bad = z.copy()
    bad[11] = poison
    others = np.arange(37) != 11
    for ours, expected in zip(categorical_log_prob_entropy(bad, action), clean, strict=True):
        assert np.isnan(ours[11])
        np.testing.assert_array_equal(ours[others], expected[others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(backend, rng, dtype):
    z = random_logits(rng, 37, 5, dtype)
    action = np.repeat(rng.integers(0, 5, 37), 2)[::2]
    expected = categorical_log_prob_entropy(z, action.copy())
    drawn = categorical_sample(z, generator=Generator(1))
    for name, view in layouts(z):
        np.testing.assert_array_equal(view, z)
        for ours, theirs in zip(categorical_log_prob_entropy(view, action), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        for ours, theirs in zip(categorical_sample(view, generator=Generator(1)), drawn, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_a_row_depends_on_no_other(backend, rng):
    z = random_logits(rng, 50, 7, np.float32)
    action = rng.integers(0, 7, 50)
    whole = categorical_log_prob_entropy(z, action)
    for rows in (slice(0, 1), slice(3, 20), slice(49, 50)):
        for ours, theirs in zip(categorical_log_prob_entropy(z[rows], action[rows]), whole, strict=True):
            np.testing.assert_array_equal(ours, theirs[rows])


def test_empty(backend):
    z = np.zeros((0, 3), np.float32)
    generator = Generator(5)
    log_prob, entropy = categorical_log_prob_entropy(z, np.zeros(0, np.int64))
    action, drawn = categorical_sample(z, generator=generator)
    assert log_prob.shape == entropy.shape == action.shape == drawn.shape == (0,)
    assert action.dtype == np.int64 and drawn.dtype == np.float32 and generator.counter == 0


def test_one_action_is_certain(backend):
    action, log_prob = categorical_sample(np.array([[3.0], [-7.0]]), generator=Generator(0))
    np.testing.assert_array_equal(action, 0)
    np.testing.assert_array_equal(log_prob, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_draws_are_the_inverse_of_the_distribution(backend, oracle, tolerance, rng, size, dtype):
    rows, actions = size
    z = random_logits(rng, rows, actions, dtype)
    generator = Generator(2**63 + 1)
    generator.load_state_dict({"seed": 2**63 + 1, "counter": 2**64 - 3})  # the counter wraps
    action, log_prob = categorical_sample(z, generator=generator)
    assert action.dtype == np.int64 and log_prob.dtype == dtype
    assert generator.counter == (2**64 - 3 + rows) % 2**64
    u = oracle.uniforms(2**63 + 1, 2**64 - 3, rows)
    log_p = oracle_log_p(z)
    prefix = np.cumsum(np.exp(log_p), axis=1)
    chosen = np.arange(rows), action
    assert (prefix[chosen] >= u * (1 - 1e-12)).all() and (prefix[chosen] - np.exp(log_p[chosen]) <= u + 1e-12).all()
    np.testing.assert_allclose(log_prob, log_p[chosen], **tolerance(z.dtype))


def test_same_seed_same_actions_as_the_reference(backend, rng):
    for size in SIZES:
        for dtype in DTYPES:
            z = random_logits(rng, *size, dtype)
            ours, theirs = Generator(9), Generator(9)
            for _ in range(3):
                action, _ = categorical_sample(z, generator=ours)
                np.testing.assert_array_equal(action, categorical_sample_reference(z, generator=theirs)[0])
            assert ours.state_dict() == theirs.state_dict()


@pytest.mark.parametrize("dtype", DTYPES)
def test_chi_square(backend, oracle, dtype):
    """60,000 draws; a right sampler would fail for one seed in a million."""
    z = np.array([0.3, -INF, -1.0, 2.0, 0.0, -3.0, -INF], dtype)
    action, _ = categorical_sample(np.broadcast_to(z, (60_000, 7)), generator=Generator(3))
    counts = np.bincount(action, minlength=7)
    assert counts[1] == counts[6] == 0
    possible = z > -INF
    p = scipy.special.softmax(z[possible].astype(np.float64))
    assert oracle.chi_square_tail(counts[possible], p * 60_000) > 1e-6


@pytest.mark.parametrize("name", ["reference", "numba", "cpp", "cuda kernels", "torch on cuda"])
def test_no_uniform_draws_an_impossible_action(request, name):
    """At u = 0, the largest u below 1, and u = 1 as rounding could give it; and the same one everywhere."""
    if name == "cpp":
        request.getfixturevalue("cpp")
    if name == "numba":
        pytest.importorskip("numba")
    if "cuda" in name and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("needs a CUDA device")
    if name == "cuda kernels" and fastrl._backend.cuda_backend()[0] != "cuda":
        pytest.skip(fastrl._backend.cuda_backend()[1])
    modules = {"numba": "fastrl.kernels.categorical._numba", "cpp": "fastrl._C", "cuda kernels": "fastrl._C_cuda"}
    kernels = importlib.import_module(modules[name]) if name in modules else categorical.reference

    def sample(z, u):
        if "cuda" not in name:
            return kernels.categorical_sample(z, None, u)
        torch = pytest.importorskip("torch")
        found = kernels.categorical_sample(torch.from_numpy(z).to(DEVICE), None, torch.from_numpy(u).to(DEVICE))
        return [x.cpu().numpy() for x in found]

    rows = [[-INF, 0.0, -INF], [-INF, 0.3, 0.1], [0.1, 0.3, -INF], [0.0, -800.0, -INF], [-800.0, 0.0, -800.0]]
    rows += [[0.1, 0.2, 0.3], [0.0, -40.0, -INF]]
    for dtype in DTYPES:
        z = np.array(rows, dtype)
        for u in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53, 1.0):
            action, log_prob = sample(z, np.full(len(z), u))
            assert (log_prob > -700).all() and (z[np.arange(len(z)), action] > -700).all(), (u, action)
    # Weights whose sums round otherwise in another order, the last action masked.
    rng = np.random.default_rng(0)
    for actions in (4, 7, 33):
        z = rng.standard_normal((300, actions)) * 3
        z[rng.random(z.shape) < 0.4] = z[:, -1] = -INF
        z[:, 0] = 0.5
        for u in (np.full(300, 1 - 2.0**-53), rng.random(300)):
            action, _ = sample(z, u)
            assert np.isfinite(z[np.arange(300), action]).all()
            np.testing.assert_array_equal(action, categorical.reference.categorical_sample(z, None, u)[0])


def test_running_sums_of_tensors_are_those_of_numpy(torch):
    """As the reference adds on a GPU, where torch's cumsum is a tree."""
    e = np.random.default_rng(0).random((50, 33))
    np.testing.assert_array_equal(
        categorical.reference._running_sums(torch.from_numpy(e)), categorical.reference._running_sums(e)
    )


@pytest.mark.parametrize("row", [0, 15, 16, 36])
@pytest.mark.parametrize("poison", [[NAN, 0, 0], [0, INF, 0], [-INF, -INF, -INF]], ids=str)
def test_no_action_to_draw(backend, row, poison):
    z = np.zeros((40, 3), np.float32)
    z[row] = z[38] = poison
    generator = Generator(4)
    generator.load_state_dict({"seed": 4, "counter": 17})
    message = rf"categorical_sample: logits\[{row}\] has NaN, \+inf or only -inf: there is no action to draw"
    with pytest.raises(ValueError, match=message):
        categorical_sample(z, generator=generator)
    assert generator.state_dict() == {"seed": 4, "counter": 17}


def test_default_generator_and_manual_seed(backend):
    z = np.zeros((100, 5), np.float32)
    fastrl.manual_seed(7)
    first = categorical_sample(z)[0]
    assert (categorical_sample(z)[0] != first).any()
    fastrl.manual_seed(7)
    np.testing.assert_array_equal(categorical_sample(z)[0], first)
    np.testing.assert_array_equal(categorical_sample(z, generator=Generator(7))[0], first)


def test_threads_share_a_generator(backend, oracle):
    """No block is taken twice, and none is left out."""
    generator = Generator(1)
    z = np.zeros((16, 1024), np.float32)
    drawn = []

    def work():
        for _ in range(25):
            drawn.append(categorical_sample(z, generator=generator)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert generator.counter == 4 * 25 * 16
    expected = (oracle.uniforms(1, 0, 4 * 25 * 16) * 1024).astype(np.int64)
    np.testing.assert_array_equal(np.sort(np.concatenate(drawn)), np.sort(expected))


def test_thread_count_changes_no_bit(backend, rng):
    z = random_logits(rng, 20_011, 9, np.float32)
    action, ones = rng.integers(0, 9, len(z)), np.ones(len(z), np.float32)
    before = fastrl.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            fastrl.set_num_threads(threads)
            drawn = categorical_sample(z, generator=Generator(2))
            gradient = categorical.backend.cpu.categorical_log_prob_entropy_backward(z, action, ones, None)
            results.append((*drawn, *categorical_log_prob_entropy(z, action), gradient))
    finally:
        fastrl.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)
