"""The categorical head on every backend: exact oracle, masks, NaN, strides, draws, gradients, errors."""

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
    categorical_log_prob_entropy_reference,
    categorical_sample,
    categorical_sample_reference,
)
from fastrl.kernels._core import arrays as _arrays

INF, NAN = np.inf, np.nan
DTYPES = [np.float32, np.float64]
DEVICE = "cuda"  # of the compiled CUDA kernels
# Around the 16 rows and 64 actions that the C++ kernel works on together.
SIZES = [(1, 1), (4, 2), (15, 18), (16, 3), (17, 6), (99, 4), (989, 5), (3, 63), (2, 64), (33, 65), (5, 1000)]


@pytest.fixture(params=["reference", "numba", "cpp"])
def backend(request, monkeypatch):
    """The public functions on one backend."""
    if request.param == "reference":
        kernels = categorical.reference
    elif request.param == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
        kernels = importlib.import_module("fastrl.kernels.categorical._numba")
    else:
        request.getfixturevalue("cpp")  # skips, or fails where the extension is required
        kernels = importlib.import_module("fastrl._C")
    monkeypatch.setattr(categorical.backend, "cpu", kernels)
    return request.param


def random_logits(rng, rows, actions, dtype, masked=0.2):
    """Of a few sizes, some masked, every row with an action left."""
    z = (rng.normal(size=(rows, actions)) * 10.0 ** rng.uniform(-2, 2, (rows, 1))).astype(dtype)
    z[rng.random((rows, actions)) < masked] = -INF
    z[np.arange(rows), rng.integers(0, actions, rows)] = 0.5
    return z


def oracle_log_p(z):
    return scipy.special.log_softmax(z.astype(np.float64), axis=1)


def oracle_entropy(z):
    return scipy.stats.entropy(scipy.special.softmax(z.astype(np.float64), axis=1), axis=1)


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


# ---- log_prob and entropy ---------------------------------------------------------------------------------------


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


# ---- draws ------------------------------------------------------------------------------------------------------


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


# ---- torch ------------------------------------------------------------------------------------------------------


def test_tensors_give_what_arrays_give(backend, torch, rng):
    z = random_logits(rng, 40, 6, np.float32)
    for view in (torch.from_numpy(z), torch.from_numpy(z.T.copy()).T, torch.nn.Parameter(torch.from_numpy(z))):
        with torch.no_grad():
            action, log_prob = categorical_sample(view, generator=Generator(3))
            results = categorical_log_prob_entropy(view, action)
        expected, expected_log_prob = categorical_sample(z, generator=Generator(3))
        assert type(action) is type(log_prob) is torch.Tensor and not log_prob.requires_grad
        np.testing.assert_array_equal(action.numpy(), expected)
        np.testing.assert_array_equal(log_prob.numpy(), expected_log_prob)
        for ours, theirs in zip(results, categorical_log_prob_entropy(z, expected), strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_against_torch(backend, torch, tolerance, rng, size, dtype):
    z = torch.from_numpy(random_logits(rng, *size, dtype)).requires_grad_()
    exact = z.detach().double().clamp(min=-1e5).requires_grad_()  # torch's own entropy is NaN at -inf
    action = torch.from_numpy(np.where(z.detach().numpy() > -INF, 1, 0).argmax(1))
    weights = torch.from_numpy(rng.normal(size=(2, size[0])).astype(dtype))
    distribution = torch.distributions.Categorical(logits=exact, validate_args=False)
    for use in ((1, 0), (0, 1), (1, 1)):
        log_prob, entropy = categorical_log_prob_entropy(z, action)
        terms = (log_prob * weights[0], entropy * weights[1])
        (ours,) = torch.autograd.grad(sum(t.sum() for t, u in zip(terms, use, strict=True) if u), z)
        terms = (distribution.log_prob(action) * weights[0], distribution.entropy() * weights[1])
        (theirs,) = torch.autograd.grad(
            sum(t.sum() for t, u in zip(terms, use, strict=True) if u), exact, retain_graph=True
        )
        assert ours.dtype == z.dtype and ours.is_contiguous()
        np.testing.assert_allclose(ours, theirs, **tolerance(z.dtype))
        assert (ours[z == -INF] == 0).all()


def test_sample_gradient(backend, torch, tolerance, rng):
    z = torch.from_numpy(random_logits(rng, 33, 5, np.float64)).requires_grad_()
    action, log_prob = categorical_sample(z, generator=Generator(0))
    assert not action.requires_grad
    (ours,) = torch.autograd.grad(log_prob.sum(), z)
    log_prob, _ = categorical_log_prob_entropy(z, action)
    (theirs,) = torch.autograd.grad(log_prob.sum(), z)
    np.testing.assert_allclose(ours, theirs, **tolerance(ours.dtype))


def test_gradcheck(backend, torch, rng):
    z = torch.from_numpy(rng.normal(size=(7, 4))).requires_grad_()
    action = torch.from_numpy(rng.integers(0, 4, 7))
    assert torch.autograd.gradcheck(lambda x: categorical_log_prob_entropy(x, action), (z,))
    assert torch.autograd.gradcheck(lambda x: categorical_sample(x, generator=Generator(1))[1], (z,))
    assert torch.autograd.gradcheck(lambda x: categorical_log_prob_entropy(x.T, action[:4])[1], (z,))


def test_a_nan_row_has_a_nan_gradient_alone(backend, torch, rng):
    z = torch.from_numpy(rng.normal(size=(20, 3)))
    z[7, 1] = NAN
    z.requires_grad_()
    log_prob, entropy = categorical_log_prob_entropy(z, torch.zeros(20, dtype=torch.int64))
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), z)
    assert gradient[7].isnan().all()
    assert not gradient[torch.arange(20) != 7].isnan().any()


def test_expanded_and_strided_upstream_gradients(backend, torch, tolerance, rng):
    z = torch.from_numpy(rng.normal(size=(9, 3))).requires_grad_()
    action = torch.zeros(9, dtype=torch.int64)
    log_prob, entropy = categorical_log_prob_entropy(z, action)
    (one,) = torch.autograd.grad(log_prob.mean() + entropy.mean(), z, retain_graph=True)  # stride 0
    strided = torch.full((18,), 1 / 9, dtype=torch.float64)[::2]
    (two,) = torch.autograd.grad((log_prob, entropy), z, (strided, strided))
    np.testing.assert_allclose(one, two, **tolerance(one.dtype))


def test_second_derivatives_raise(backend, torch, rng):
    for call in (
        lambda z: categorical_log_prob_entropy(z, torch.zeros(5, dtype=torch.int64)),
        lambda z: categorical_sample(z)[1:],
    ):
        z = torch.from_numpy(rng.normal(size=(5, 3))).requires_grad_()
        (gradient,) = torch.autograd.grad(sum(x.sum() for x in call(z)), z, create_graph=True)
        penalized = (z**2).sum() + (gradient**2).sum()
        for wanted in (gradient.sum(), penalized):
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(wanted, z, retain_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            penalized.backward()


def test_reference_on_torch_operations(torch, tolerance, rng, monkeypatch):
    """What serves a GPU without compiled kernels, here on the CPU: the same actions, results and state."""
    monkeypatch.setattr(_arrays, "load_on_device", lambda obj, *_, **__: obj.detach())
    z = torch.from_numpy(random_logits(rng, 33, 5, np.float32))
    generator = Generator(2**63 + 3)
    state = torch.from_numpy(generator.state.copy().view(np.int64))
    action, log_prob = categorical.reference.categorical_sample(z, state, None)
    monkeypatch.undo()
    expected = categorical_sample_reference(z.numpy(), generator=generator)
    np.testing.assert_array_equal(action, expected[0])
    np.testing.assert_allclose(log_prob, expected[1], **tolerance(z.dtype))
    np.testing.assert_array_equal(state.numpy().view(np.uint64), generator.state)
    g = torch.from_numpy(rng.normal(size=33).astype(np.float32))
    for name, args in (("", ()), ("_backward", (g, g)), ("_backward", (None, g))):
        op = getattr(categorical.reference, f"categorical_log_prob_entropy{name}")
        theirs = op(z.numpy(), action.numpy(), *(x if x is None else x.numpy() for x in args))
        monkeypatch.setattr(_arrays, "load_on_device", lambda obj, *_, **__: obj.detach())
        ours = op(z, action, *args)
        monkeypatch.undo()
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, **tolerance(z.dtype))


# ---- errors -----------------------------------------------------------------------------------------------------


def bad_calls(torch=None):
    z, a = np.zeros((5, 4), np.float32), np.zeros(5, np.int64)

    def both(*args):
        return categorical_log_prob_entropy(*args)

    def sample(*args, **kwargs):
        return categorical_sample(*args, **kwargs)

    where = "categorical_log_prob_entropy: "
    calls = {
        "too large": (both, (z, np.array([0, 3, 4, 9, 0])), IndexError, where + "action[2] is 4, outside [0, 4)"),
        "negative": (both, (z, np.array([0, -1, 4, 9, 0])), IndexError, where + "action[1] is -1, outside [0, 4)"),
        "int32 too large": (both, (z, np.full(5, 4, np.int32)), IndexError, where + "action[0] is 4, outside"),
        "list": (both, ([[0.0]], a), TypeError, where + "logits must be an array, got list"),
        "None": (both, (None, a), TypeError, where + "logits must be an array, got NoneType"),
        "action list": (both, (z, [0] * 5), TypeError, where + "action must be an array, got list"),
        "int": (both, (z.astype(int), a), ValueError, where + "logits must have dtype float32 or float64, got int64"),
        "float action": (
            both,
            (z, a.astype(np.float32)),
            ValueError,
            where + "action must have dtype int64 or int32, got float32",
        ),
        "bool action": (both, (z, a > 0), ValueError, where + "action must have dtype int64 or int32, got bool"),
        "vector": (both, (z[0], a), ValueError, where + "logits must have shape [B, K] with K >= 1, got (4,)"),
        "cube": (both, (z[None], a), ValueError, where + "logits must have shape [B, K] with K >= 1, got (1, 5, 4)"),
        "no actions": (
            both,
            (z[:, :0], a),
            ValueError,
            where + "logits must have shape [B, K] with K >= 1, got (5, 0)",
        ),
        "action short": (both, (z, a[1:]), ValueError, where + "action must have shape (5,), got (4,)"),
        "action matrix": (both, (z, a[:, None]), ValueError, where + "action must have shape (5,), got (5, 1)"),
        "sample list": (sample, ([[0.0]],), TypeError, "categorical_sample: logits must be an array, got list"),
        "sample vector": (sample, (z[0],), ValueError, "categorical_sample: logits must have shape [B, K] with K >= 1"),
        "sample int": (sample, (z.astype(int),), ValueError, "categorical_sample: logits must have dtype float32"),
    }
    if torch is not None:
        tz, ta = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
        calls |= {
            "mixed": (
                both,
                (tz, a),
                TypeError,
                where + "action must be a torch.Tensor like logits, got a numpy.ndarray",
            ),
            "mixed 2": (
                both,
                (z, ta),
                TypeError,
                where + "action must be a numpy.ndarray like logits, got a torch.Tensor",
            ),
            "meta": (both, (tz.to("meta"), ta), ValueError, where + "logits"),
            "sparse": (both, (tz.to_sparse(), ta), ValueError, where + "logits has no data"),
            "negative bit": (
                both,
                (torch._neg_view(tz), ta),
                ValueError,
                where + "logits must not be a lazily negated",
            ),
            "out of range with grad": (
                both,
                (tz.clone().requires_grad_(), ta + 4),
                IndexError,
                where + "action[0] is 4, outside [0, 4)",
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
    for module in ("reference", "fastrl.kernels.categorical._numba", "fastrl._C"):
        if module != "reference" and importlib.util.find_spec(module) is None:
            continue
        kernels = categorical.reference if module == "reference" else importlib.import_module(module)
        monkeypatch.setattr(categorical.backend, "cpu", kernels)
        outcomes[module] = {n: oracle.outcome(call, *args) for n, (call, args, *_) in bad_calls(torch).items()}
    for module, found in outcomes.items():
        assert found == outcomes["reference"], module


@pytest.mark.parametrize("generator", [0, np.random.default_rng(0), "seed"], ids=["int", "numpy", "str"])
def test_bad_generator(backend, generator):
    with pytest.raises(TypeError, match="categorical_sample: generator must be a fastrl.Generator, got"):
        categorical_sample(np.zeros((2, 2)), generator=generator)


def test_an_error_draws_nothing(backend):
    generator = Generator(0)
    for bad in (np.zeros(3), np.zeros((2, 0)), np.zeros((2, 2), int), [[0.0]]):
        with pytest.raises((TypeError, ValueError)):
            categorical_sample(bad, generator=generator)
    assert generator.counter == 0


def test_the_reference_is_public(rng, tolerance):
    z = random_logits(rng, 5, 3, np.float64)
    action, _ = categorical_sample_reference(z, generator=Generator(0))
    np.testing.assert_array_equal(action, categorical_sample(z, generator=Generator(0))[0])
    _, entropy = categorical_log_prob_entropy_reference(z, action)
    np.testing.assert_allclose(entropy, oracle_entropy(z), **tolerance(z.dtype))
