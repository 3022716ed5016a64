"""The normal head on every backend: oracle, draws, strides, both shapes of log_std, gradients, errors."""

import importlib
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
    normal_log_prob_entropy_reference,
    normal_sample,
    normal_sample_reference,
)
from fastrl.kernels._core import arrays as _arrays

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


@pytest.fixture(params=["reference", "numba", "cpp"])
def backend(request, monkeypatch):
    """The public functions on one backend."""
    if request.param == "reference":
        kernels = normal.reference
    elif request.param == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
        kernels = importlib.import_module("fastrl.kernels.normal._numba")
    else:
        request.getfixturevalue("cpp")  # skips, or fails where the extension is required
        kernels = importlib.import_module("fastrl._C")
    monkeypatch.setattr(normal.backend, "cpu", kernels)
    return request.param


def inputs(rng, rows, columns, dtype, shared):
    mean = rng.normal(size=(rows, columns)).astype(dtype)
    log_std = rng.uniform(-3, 1, columns if shared else (rows, columns)).astype(dtype)
    action = (mean + np.exp(log_std) * rng.normal(size=(rows, columns))).astype(dtype)
    return mean, log_std, action


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


def oracle_log_prob(mean, log_std, action):
    mean, log_std, action = (x.astype(np.float64) for x in (mean, log_std, action))
    return scipy.stats.norm.logpdf(action, mean, np.exp(log_std)).sum(1)


# ---- log_prob and entropy ---------------------------------------------------------------------------------------


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
def test_layouts(backend, tolerance, rng, dtype):
    def same(call, *args, expected, name):
        for ours, theirs in zip(call(*args), expected, strict=True):
            if backend == "reference":  # NumPy's exp rounds by the layout
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


# ---- draws ------------------------------------------------------------------------------------------------------


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


# ---- torch ------------------------------------------------------------------------------------------------------


def test_tensors_give_what_arrays_give(backend, torch, rng):
    arrays = inputs(rng, 40, 3, np.float32, shared=True)
    tensors = [torch.from_numpy(x) for x in arrays]
    for ours, theirs in zip(normal_log_prob_entropy(*tensors), normal_log_prob_entropy(*arrays), strict=True):
        assert type(ours) is torch.Tensor
        np.testing.assert_array_equal(ours.numpy(), theirs)
    for ours, theirs in zip(
        normal_sample(*tensors[:2], generator=Generator(3)),
        normal_sample(*arrays[:2], generator=Generator(3)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("shared", [True, False], ids=["[A]", "[B, A]"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 6), (3, 257), (1030, 3)], ids=str)
def test_gradients_against_torch(backend, torch, rng, size, dtype, shared):
    arrays = [torch.from_numpy(x) for x in inputs(rng, *size, dtype, shared)]
    weights = torch.from_numpy(rng.normal(size=(2, size[0])))
    for use in ((1, 0), (0, 1), (1, 1)):
        results = []
        for kind in (arrays[0].dtype, torch.float64):
            mean, log_std, action = (x.detach().to(kind).requires_grad_() for x in arrays)
            if kind == torch.float64 and (dtype != "float64" or results):
                distribution = torch.distributions.Normal(mean, log_std.exp())
                terms = distribution.log_prob(action).sum(1), distribution.entropy().expand(mean.shape).sum(1)
            else:
                terms = normal_log_prob_entropy(mean, log_std, action)
            loss = sum((t * w.to(kind)).sum() for t, w, u in zip(terms, weights, use, strict=True) if u)
            results.append(torch.autograd.grad(loss, (mean, log_std, action), allow_unused=True))
        for ours, theirs in zip(*results, strict=True):
            theirs = torch.zeros_like(ours) if theirs is None else theirs
            # Both derive from sums of |terms| up to e^6 and over B rows: the scale of the rounding.
            scale = max(1.0, float(theirs.abs().max()))
            tolerance = 1e-5 if dtype == "float32" else 1e-12
            np.testing.assert_allclose(ours / scale, theirs / scale, rtol=tolerance, atol=tolerance)


def test_sample_gradients_against_rsample(backend, torch, tolerance, rng):
    for shared in (True, False):
        mean, log_std, noise = (torch.from_numpy(x) for x in inputs(rng, 33, 4, np.float64, shared))
        weights = torch.from_numpy(rng.normal(size=(33, 4))), torch.from_numpy(rng.normal(size=33))
        gradients = []
        for ours in (True, False):
            m, s = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
            if ours:
                action, log_prob = normal_sample(m, s, noise=noise)
            else:
                action = m + s.exp() * noise
                log_prob = (-0.5 * noise**2 - s - 0.5 * math.log(2 * math.pi)).sum(1)
            loss = (action * weights[0]).sum() + (log_prob * weights[1]).sum()
            gradients.append(torch.autograd.grad(loss, (m, s)))
        for ours, theirs in zip(*gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, **tolerance(ours.dtype))


def test_drawn_noise_is_kept_for_the_backward(backend, torch, tolerance):
    """d action / d log_std = action - mean, though mean = 1000 hides it in a difference."""
    mean, log_std = torch.full((50, 2), 1000.0), torch.zeros(2, requires_grad=True)
    action, _ = normal_sample(mean, log_std, generator=Generator(6))
    (ours,) = torch.autograd.grad(action.sum(), log_std)
    eps, _ = normal_sample(np.zeros((50, 2)), np.zeros(2), generator=Generator(6))
    np.testing.assert_allclose(ours, eps.sum(0), **tolerance(ours.dtype))


def test_gradcheck(backend, torch, rng):
    for shared in (True, False):
        mean, log_std, action = (torch.from_numpy(x).requires_grad_() for x in inputs(rng, 5, 3, np.float64, shared))
        noise = action.detach()
        assert torch.autograd.gradcheck(normal_log_prob_entropy, (mean, log_std, action))
        assert torch.autograd.gradcheck(lambda m, s, n=noise: normal_sample(m, s, noise=n), (mean, log_std))
        assert torch.autograd.gradcheck(lambda m, s: normal_sample(m, s, generator=Generator(4)), (mean, log_std))
        assert torch.autograd.gradcheck(lambda s, m=mean, x=action: normal_log_prob_entropy(m, s, x), (log_std,))


def test_only_the_wanted_gradients(backend, torch, rng):
    mean, log_std, action = (torch.from_numpy(x) for x in inputs(rng, 5, 3, np.float64, True))
    mean.requires_grad_()
    log_prob, _ = normal_log_prob_entropy(mean, log_std, action)
    log_prob.sum().backward()
    assert mean.grad is not None and log_std.grad is None and action.grad is None


def test_second_derivatives_raise(backend, torch, rng):
    for call in (
        lambda m, s, x: normal_log_prob_entropy(m, s, x),
        lambda m, s, x: normal_sample(m, s, noise=x.detach()),
    ):
        arrays = [torch.from_numpy(x).requires_grad_() for x in inputs(rng, 5, 3, np.float64, True)]
        _, log_std, _ = arrays
        (gradient,) = torch.autograd.grad(sum(t.sum() for t in call(*arrays)), log_std, create_graph=True)
        penalized = (log_std**2).sum() + (gradient**2).sum()
        for wanted in (gradient.sum(), penalized):
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(wanted, log_std, retain_graph=True)


def test_reference_on_torch_operations(torch, tolerance, rng, monkeypatch):
    """What serves a GPU without compiled kernels, here on the CPU: the same numbers and state."""
    generator = Generator(2**63 + 3)
    state = torch.from_numpy(generator.state.copy().view(np.int64))
    for shared in (True, False):
        arrays = inputs(rng, 33, 5, np.float64, shared)
        mean, log_std, action = (torch.from_numpy(x) for x in arrays)
        g = torch.from_numpy(rng.normal(size=33))
        reference = normal.reference
        calls = (
            (reference.normal_sample, (mean, log_std, None, state, True)),
            (reference.normal_sample, (mean, log_std, action, None, True)),
            (reference.normal_log_prob_entropy, (mean, log_std, action)),
            (reference.normal_log_prob_entropy_backward, (mean, log_std, action, g, None, True, True, True)),
            (lambda *args: [normal.reference.normal_sample_backward(*args)], (log_std, action, mean, g)),
        )
        for call, args in calls:
            plain = [x.numpy() if isinstance(x, torch.Tensor) and x is not state else x for x in args]
            theirs = call(*(generator.state if x is state else x for x in plain))
            monkeypatch.setattr(_arrays, "load_on_device", lambda obj, *_, **__: obj.detach())
            ours = call(*args)
            monkeypatch.undo()
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, **tolerance(mean.dtype))
    np.testing.assert_array_equal(state.numpy().view(np.uint64), generator.state)


# ---- errors -----------------------------------------------------------------------------------------------------


def bad_calls(torch=None):
    x, s = np.zeros((5, 3), np.float32), np.zeros(3, np.float32)

    def given(*args):
        return normal_log_prob_entropy(*args)

    def sample(*args, noise=None):
        return normal_sample(*args, noise=noise, generator=Generator(0))

    def with_noise(*args):
        return sample(*args[:-1], noise=args[-1])

    where, draw = "normal_log_prob_entropy: ", "normal_sample: "
    calls = {
        "list": (given, ([[0.0]], s, x), TypeError, where + "mean must be an array, got list"),
        "std list": (given, (x, [0.0] * 3, x), TypeError, where + "log_std must be an array, got list"),
        "action None": (given, (x, s, None), TypeError, where + "action must be an array, got NoneType"),
        "std float": (given, (x, 0.0, x), TypeError, where + "log_std must be an array, got float"),
        "int": (given, (x.astype(int), s, x), ValueError, where + "mean must have dtype float32 or float64, got int64"),
        "std dtype": (
            given,
            (x, s.astype(np.float64), x),
            ValueError,
            where + "log_std must have dtype float32 like mean, got float64",
        ),
        "action dtype": (
            given,
            (x, s, x.astype(np.float64)),
            ValueError,
            where + "action must have dtype float32 like mean, got float64",
        ),
        "vector": (given, (x[0], s, x), ValueError, where + "mean must have shape [B, A], got (3,)"),
        "std short": (
            given,
            (x, s[1:], x),
            ValueError,
            where + "log_std must have shape (3,) or (5, 3) like mean, got (2,)",
        ),
        "std rows": (
            given,
            (x, x[1:], x),
            ValueError,
            where + "log_std must have shape (3,) or (5, 3) like mean, got (4, 3)",
        ),
        "std one": (given, (x, s[:1], x), ValueError, where + "log_std must have shape (3,) or (5, 3)"),
        "action shape": (
            given,
            (x, s, x[:, 1:]),
            ValueError,
            where + "action must have shape (5, 3) like mean, got (5, 2)",
        ),
        "action rank": (given, (x, s, s), ValueError, where + "action must have shape (5, 3) like mean, got (3,)"),
        "sample list": (sample, ([[0.0]], s), TypeError, draw + "mean must be an array, got list"),
        "sample cube": (sample, (x[None], s), ValueError, draw + "mean must have shape [B, A], got (1, 5, 3)"),
        "sample std": (
            sample,
            (x, s[1:]),
            ValueError,
            draw + "log_std must have shape (3,) or (5, 3) like mean, got (2,)",
        ),
        "noise list": (with_noise, (x, s, [0.0]), TypeError, draw + "noise must be an array, got list"),
        "noise shape": (
            with_noise,
            (x, s, x[1:]),
            ValueError,
            draw + "noise must have shape (5, 3) like mean, got (4, 3)",
        ),
        "noise dtype": (
            with_noise,
            (x, s, x.astype(np.float64)),
            ValueError,
            draw + "noise must have dtype float32 like mean, got float64",
        ),
    }
    if torch is not None:
        tx, ts = torch.zeros(5, 3), torch.zeros(3)
        calls |= {
            "mixed": (
                given,
                (tx, s, tx),
                TypeError,
                where + "log_std must be a torch.Tensor like mean, got a numpy.ndarray",
            ),
            "mixed 2": (
                given,
                (x, s, tx),
                TypeError,
                where + "action must be a numpy.ndarray like mean, got a torch.Tensor",
            ),
            "meta": (given, (tx, ts, tx.to("meta")), ValueError, where + "action"),
            "negative bit": (given, (tx, torch._neg_view(ts), tx), ValueError, where + "log_std must not be a lazily"),
            "noise with grad": (
                with_noise,
                (tx, ts, tx.clone().requires_grad_()),
                ValueError,
                draw + "noise must not require a gradient",
            ),
        }
    return calls


@pytest.mark.parametrize("name", bad_calls())
def test_errors(backend, name):
    call, args, error, text = bad_calls()[name]
    with pytest.raises(error) as raised:
        call(*args)
    assert text in str(raised.value)


def test_errors_with_tensors(backend, torch):
    for name, (call, args, error, text) in bad_calls(torch).items():
        with pytest.raises(error) as raised:
            call(*args)
        assert text in str(raised.value), name


def test_same_error_texts(torch, oracle, monkeypatch):
    """Whole texts, of the reference and of the installed backends."""
    outcomes = {}
    for module in ("reference", "fastrl.kernels.normal._numba", "fastrl._C"):
        if module != "reference" and importlib.util.find_spec(module) is None:
            continue
        kernels = normal.reference if module == "reference" else importlib.import_module(module)
        monkeypatch.setattr(normal.backend, "cpu", kernels)
        outcomes[module] = {n: oracle.outcome(call, *args) for n, (call, args, *_) in bad_calls(torch).items()}
    for module, found in outcomes.items():
        assert found == outcomes["reference"], module


def test_an_error_draws_nothing(backend):
    generator, x = Generator(0), np.zeros((2, 3))
    for mean, log_std in ((x[0], x), (x, x[0, 1:]), (x.astype(int), x), (x, [0.0])):
        with pytest.raises((TypeError, ValueError)):
            normal_sample(mean, log_std, generator=generator)
    with pytest.raises(TypeError, match="normal_sample: generator must be a fastrl.Generator, got int"):
        normal_sample(x, x, generator=3)
    assert generator.counter == 0


def test_the_reference_is_public(rng):
    mean, log_std, action = inputs(rng, 5, 3, np.float64, True)
    log_prob, _ = normal_log_prob_entropy_reference(mean, log_std, action)
    np.testing.assert_allclose(log_prob, oracle_log_prob(mean, log_std, action), rtol=1e-12)
