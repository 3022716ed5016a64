"""The policy heads and n_step_gather of CUDA tensors against the CPU reference: the same draws, gradients, capture."""

import itertools

import numpy as np
import pytest
from cuda_graphs import captured

import fastrl
from fastrl import _backend
from fastrl.kernels.categorical import reference as categorical
from fastrl.kernels.n_step_gather import n_step_gather, n_step_gather_reference
from fastrl.kernels.n_step_gather._torch import fallback
from fastrl.kernels.normal import reference as normal

torch = pytest.importorskip("torch", reason="CUDA tensors need torch, which is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if _backend.cuda_backend()[0] != "cuda":
    pytest.skip(_backend.cuda_backend()[1], allow_module_level=True)

kernels = _backend._C_cuda
DEVICE = "cuda"
DTYPES = [np.float32, np.float64]
SEED, COUNTER = 2**40 + 7, 2**33 - 2


def put(x, strided=False):
    """`x` on the device, contiguous or every third item of a larger tensor; None as is."""
    if x is None:
        return None
    tensor = torch.from_numpy(x.copy()).to(DEVICE)
    if not strided:
        return tensor
    wide = torch.zeros([3 * s for s in x.shape], dtype=tensor.dtype, device=DEVICE)
    view = wide[tuple(slice(1, None, 3) for _ in x.shape)]
    view.copy_(tensor)
    return view


def same(found, wanted, close):
    """A result, or a tuple of them, within the tolerance."""
    if isinstance(wanted, tuple):
        for got, want in zip(found, wanted, strict=True):
            same(got, want, close)
    elif wanted is None:
        assert found is None
    else:
        assert found.device.type == torch.device(DEVICE).type and found.is_contiguous()
        found = found.cpu().numpy()
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, **close)


def states():
    """The same generator state for the device and for the reference."""
    return torch.tensor([SEED, COUNTER, 0], device=DEVICE), np.array([SEED, COUNTER], np.uint64)


# ---- categorical ------------------------------------------------------------------------------------------------


def some_logits(rng, rows, actions, dtype):
    logits = (3 * rng.normal(size=(rows, actions))).astype(dtype)
    logits[rng.random((rows, actions)) < 0.2] = -np.inf
    logits[:, 0] = 0.5
    return logits


def test_a_generator_says_that_it_was_shared():
    """What kernels that ran at the same time on one generator leave of their blocks' count, and what mends it."""
    logits = torch.zeros(512, 8, device=DEVICE)
    wanted = kernels.categorical_sample(logits, fastrl.Generator(5, DEVICE).state, None)[0]
    generator = fastrl.Generator(5, DEVICE)
    generator.state[2] = 3  # blocks of another call that are still to come
    with pytest.raises(RuntimeError, match="^Generator: kernels on two streams that did not wait for each other used"):
        generator.state_dict()
    for mend in (lambda: generator.manual_seed(5), lambda: generator.load_state_dict({"seed": 5, "counter": 0})):
        generator.state[2] = 3
        mend()
        assert torch.equal(kernels.categorical_sample(logits, generator.state, None)[0], wanted)
        assert generator.state_dict() == {"seed": 5, "counter": 512}


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "actions"), list(itertools.product([0, 1, 99, 989], [1, 2, 5, 18, 32, 33, 100])))
def test_categorical(tolerance, rows, actions, dtype, strided):
    rng, close = np.random.default_rng(rows + actions), tolerance(np.dtype(dtype))
    logits = some_logits(rng, rows, actions, dtype)
    z = put(logits, strided)
    state, wanted_state = states()
    action, log_prob = kernels.categorical_sample(z, state, None)
    wanted_action, wanted = categorical.categorical_sample(logits, wanted_state, None)
    np.testing.assert_array_equal(action.cpu().numpy(), wanted_action)
    same(log_prob, wanted, close)
    assert state.tolist() == [*wanted_state.tolist(), 0] == [SEED, COUNTER + rows, 0]
    uniform = rng.random(rows)
    action, log_prob = kernels.categorical_sample(z, None, put(uniform, strided))
    wanted_action, wanted = categorical.categorical_sample(logits, None, uniform)
    np.testing.assert_array_equal(action.cpu().numpy(), wanted_action)
    same(log_prob, wanted, close)
    for index_dtype in (np.int64, np.int32):
        given = rng.integers(0, actions, rows).astype(index_dtype)
        found = kernels.categorical_log_prob_entropy(z, put(given, strided))
        same(found, categorical.categorical_log_prob_entropy(logits, given), close)
    gl, gh = rng.normal(size=(2, rows)).astype(dtype)
    for g, h in ((gl, gh), (gl, None), (None, gh)):
        found = kernels.categorical_log_prob_entropy_backward(z, action, put(g, strided), put(h))
        wanted = categorical.categorical_log_prob_entropy_backward(logits, wanted_action, g, h)
        same(found, wanted, close)


def test_categorical_without_a_distribution():
    """Rows without one, and actions outside, are NaN, without waiting for the device; no other row is."""
    logits = torch.zeros(5, 3, device=DEVICE)
    logits[1, 0], logits[2], logits[3, 1] = torch.nan, -torch.inf, torch.inf
    state, _ = states()
    action, log_prob = kernels.categorical_sample(logits, state, None)
    assert action[1:4].tolist() == [-1, -1, -1] and (action[[0, 4]] >= 0).all()
    assert log_prob.isnan().tolist() == [False, True, True, True, False]
    given = torch.tensor([0, 0, 0, 0, 3], device=DEVICE)
    log_prob, entropy = kernels.categorical_log_prob_entropy(logits, given)
    assert log_prob.isnan().tolist() == [False, True, True, True, True]
    assert entropy.isnan().tolist() == [False, True, True, True, False]
    grad = kernels.categorical_log_prob_entropy_backward(logits, given, torch.ones(5, device=DEVICE), None)
    assert grad.isnan().all(1).tolist() == [False, True, True, True, True] and not grad[0].isnan().any()


# ---- normal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["log_std [A]", "log_std [B, A]"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), list(itertools.product([0, 1, 31, 99], [0, 1, 3, 17, 40])))
def test_normal(tolerance, rows, columns, dtype, shared):
    rng, close = np.random.default_rng(rows + columns), tolerance(np.dtype(dtype))
    mean, action, noise, grad = (rng.normal(size=(rows, columns)).astype(dtype) for _ in range(4))
    log_std = rng.normal(size=(columns,) if shared else (rows, columns)).astype(dtype)
    gl, gh = rng.normal(size=(2, rows)).astype(dtype)
    for strided in (False, True):
        m, x, eps, g, s = (put(a, strided) for a in (mean, action, noise, grad, log_std))
        found = kernels.normal_log_prob_entropy(m, s, x)
        same(found, normal.normal_log_prob_entropy(mean, log_std, action), close)
        state, wanted_state = states()
        found = kernels.normal_sample(m, s, None, state, True)
        same(found, normal.normal_sample(mean, log_std, None, wanted_state, True), close)
        assert state.tolist() == [*wanted_state.tolist(), 0] == [SEED, COUNTER + (rows * columns + 3) // 4, 0]
        found = kernels.normal_sample(m, s, eps, None, False)
        same(found, normal.normal_sample(mean, log_std, noise, None, False), close)
        for p, q in ((gl, gh), (gl, None), (None, gh)):
            for want in ((True, True, True), (False, True, False), (True, False, False)):
                found = kernels.normal_log_prob_entropy_backward(m, s, x, put(p, strided), put(q), *want)
                wanted = normal.normal_log_prob_entropy_backward(mean, log_std, action, p, q, *want)
                # Terms of either sign: the sum over the rows is as exact as they are large.
                scale = max(1.0, *(float(np.abs(w).max(initial=0)) for w in wanted if w is not None))
                same(found, wanted, {**close, "atol": close["atol"] * scale})
            for upstream, given in ((g, grad), (None, None)):
                found = kernels.normal_sample_backward(s, eps, upstream, put(p, strided))
                same(found, normal.normal_sample_backward(log_std, noise, given, p), close)


# ---- 16 bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Numbers of 16 bits in and out: right to the rounding of the result, whatever serves them."""
    close = {"rtol": 1.01 * torch.finfo(dtype).eps / 2, "atol": 1e-6}  # float32 beside a tie may round either way
    rng = np.random.default_rng(0)

    def halves(*shape):
        x = torch.from_numpy(rng.normal(size=shape)).to(dtype)
        return x.to(DEVICE), x.double().numpy()

    def check(found, wanted):
        for got, want in zip(found, wanted, strict=True):
            if got is not None and want is not None:
                assert got.dtype == (dtype if got.is_floating_point() else torch.int64)
                np.testing.assert_allclose(got.cpu().double().numpy(), want, **close)

    u = rng.random(40)
    (z, z64), (m, m64), (x, x64), (s, s64), (gl, gl64) = (
        halves(*shape) for shape in ((40, 5), (40, 3), (40, 3), (3,), (40,))
    )
    given = rng.integers(0, 5, 40)
    a, e = put(given), torch.zeros(20, 2, dtype=torch.bool, device=DEVICE)
    (r, r64), (v, v64), none = halves(20, 2), halves(20, 2), np.zeros((20, 2), bool)
    gather, np_gather = fallback.n_step_gather, n_step_gather_reference
    for backend, ours in ((kernels, kernels.n_step_gather), (categorical, gather)):
        heads = kernels if backend is kernels else normal
        check(backend.categorical_sample(z, None, put(u)), categorical.categorical_sample(z64, None, u))
        check(backend.categorical_log_prob_entropy(z, a), categorical.categorical_log_prob_entropy(z64, given))
        check(
            [backend.categorical_log_prob_entropy_backward(z, a, gl, None)],
            [categorical.categorical_log_prob_entropy_backward(z64, given, gl64, None)],
        )
        check(heads.normal_sample(m, s, x, None, False), normal.normal_sample(m64, s64, x64, None, False))
        check(heads.normal_log_prob_entropy(m, s, x), normal.normal_log_prob_entropy(m64, s64, x64))
        check(
            heads.normal_log_prob_entropy_backward(m, s, x, gl, gl, True, True, True),
            normal.normal_log_prob_entropy_backward(m64, s64, x64, gl64, gl64, True, True, True),
        )
        found = ours(r, e, e, torch.arange(40, device=DEVICE), 0, 20, 0.97, 3, v, None, None)
        check(found, np_gather(r64, none, none, np.arange(40), 0, 20, gamma=0.97, n=3, next_values=v64))


# ---- autograd, capture ------------------------------------------------------------------------------------------


def test_autograd_through_the_public_functions(tolerance):
    """What torch makes of the same expressions."""
    close = tolerance(np.dtype(np.float64))
    logits = torch.randn(64, 5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    action = torch.randint(0, 5, (64,), device=DEVICE)
    log_prob, entropy = fastrl.categorical_log_prob_entropy(logits, action)
    found = torch.autograd.grad((log_prob * 2 + entropy).sum(), logits)[0]
    theirs = torch.distributions.Categorical(logits=logits)
    wanted = torch.autograd.grad((theirs.log_prob(action) * 2 + theirs.entropy()).sum(), logits)[0]
    torch.testing.assert_close(found, wanted, **close)
    mean, x = (torch.randn(64, 3, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(2))
    log_std = torch.randn(3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    log_prob, entropy = fastrl.normal_log_prob_entropy(mean, log_std, x)
    found = torch.autograd.grad((log_prob * 2 + entropy).sum(), (mean, log_std, x))
    theirs = torch.distributions.Normal(mean, log_std.exp())
    wanted = torch.autograd.grad((theirs.log_prob(x) * 2 + theirs.entropy()).sum(), (mean, log_std, x))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-9)


def test_a_captured_policy_step_draws_anew():
    """Replay k gives what the k-th eager call gives: the counters live, and advance, in device memory."""
    logits, mean = torch.randn(64, 5, device=DEVICE), torch.randn(64, 3, device=DEVICE)
    log_std, ones = torch.zeros(3, device=DEVICE), torch.ones(64, device=DEVICE)
    one, other = (fastrl.Generator(3, "cuda") for _ in range(2))

    def step(generator):
        action, log_prob = fastrl.categorical_sample(logits, generator=generator)
        x, density = fastrl.normal_sample(mean, log_std, generator=generator)
        return (
            action, log_prob, x, density,
            *fastrl.categorical_log_prob_entropy(logits, action),
            *fastrl.normal_log_prob_entropy(mean, log_std, x),
            kernels.categorical_log_prob_entropy_backward(logits, action, ones, ones),
            *kernels.normal_log_prob_entropy_backward(mean, log_std, x, ones, ones, True, True, True),
            kernels.normal_sample_backward(log_std, x, mean, ones),
        )  # fmt: skip

    graph, results = captured(lambda: step(one))
    one.manual_seed(3)
    seen = set()
    for _ in range(4):
        graph.replay()
        for got, want in zip(results, step(other), strict=True):
            assert torch.equal(got, want)
        seen.add(tuple(results[0].tolist()))
    assert len(seen) == 4
    assert one.state_dict() == other.state_dict() == {"seed": 3, "counter": 4 * (64 + 64 * 3 // 4)}


def test_nothing_waits_for_the_device():
    """torch's own detector of synchronising calls stays silent."""
    logits, mean = torch.randn(64, 5, device=DEVICE), torch.randn(64, 3, device=DEVICE)
    log_std, ring = torch.zeros(3, device=DEVICE), torch.zeros(20, 2, device=DEVICE)
    flags, indices = torch.zeros(20, 2, dtype=torch.bool, device=DEVICE), torch.arange(40, device=DEVICE)
    generator = fastrl.Generator(0, "cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        action, _ = fastrl.categorical_sample(logits, generator=generator)
        fastrl.categorical_log_prob_entropy(logits, action)
        x, _ = fastrl.normal_sample(mean, log_std, generator=generator)
        fastrl.normal_log_prob_entropy(mean, log_std, x)
        n_step_gather(ring, flags, flags, indices, 3, 20, gamma=0.9, n=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- n_step_gather ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7,), (50, 4)], ids=str)
def test_n_step_gather(tolerance, shape, dtype):
    rng, close = np.random.default_rng(0), tolerance(np.dtype(dtype))
    slots, envs = shape[0], shape[1] if len(shape) == 2 else 1
    rewards, values = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    terminated, truncated, cut = (rng.random(shape) < p for p in (0.05, 0.05, 0.1))
    size = max(slots - 2, 1)
    cursor = rng.integers(0, slots, envs)
    flat = np.arange(slots * envs)
    filled = flat[(cursor[flat % envs] - flat // envs - 1) % slots < size]
    for n, index_dtype, with_values, with_cut in itertools.product(
        [1, 3, 100], [np.int64, np.int32], [True, False], [True, False]
    ):
        indices = rng.choice(filled, 99).astype(index_dtype)
        options = {"gamma": 0.97, "n": n}
        wanted = n_step_gather_reference(
            rewards, terminated, truncated, indices, cursor, size,
            next_values=values if with_values else None, cut=cut if with_cut else None, **options,
        )  # fmt: skip
        outs = tuple(put(np.zeros(99, w.dtype), strided=True) for w in wanted)
        for strided, out in ((False, None), (True, outs)):
            r, v, e, t, c, i = (put(x, strided) for x in (rewards, values, terminated, truncated, cut, indices))
            found = kernels.n_step_gather(
                r, e, t, i, put(cursor), size, options["gamma"], n, v if with_values else None,
                c if with_cut else None, out,
            )  # fmt: skip
            assert out is None or found is out
            same(tuple(x.contiguous() for x in found), wanted, close)


@pytest.mark.parametrize("dtype", DTYPES)
def test_n_step_gather_captured_in_a_graph(dtype):
    """Replayed with other contents of the ring, cursors and indices: the results are those of eager calls."""
    rng = np.random.default_rng(0)

    def inputs():
        rewards, values = (rng.normal(size=(50, 4)).astype(dtype) for _ in range(2))
        flags = [rng.random((50, 4)) < p for p in (0.05, 0.05, 0.1)]
        size = rng.integers(40, 51, 4)
        return [rewards, values, *flags, rng.integers(0, 200, 99), rng.integers(0, 50, 4), size]

    def work():
        r, v, e, t, c, i, cursor, size = held
        out = kernels.n_step_gather(r, e, t, i, cursor, size, 0.97, 3, v, c, outs)
        return (*kernels.n_step_gather(r, e, t, i, 7, 50, 0.97, 5, v, None, None), *out)

    held = [put(x) for x in inputs()]
    outs = tuple(put(np.zeros(99, kind)) for kind in (dtype, dtype, np.int64))
    graph, results = captured(work)
    for _ in range(3):
        for x, new in zip(held, inputs(), strict=True):
            x.copy_(torch.from_numpy(new))
        graph.replay()
        found = [x.clone() for x in results]
        assert (found[2] >= 0).all() and not (found[0] == 0).all()
        for got, want in zip(found, work(), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_n_step_gather_of_what_is_not_there():
    """An index out of range or of an empty slot gives NaN and last -1; so does a cursor out of range."""
    rewards, flags = torch.ones(10, 2, device=DEVICE), torch.zeros(10, 2, dtype=torch.bool, device=DEVICE)
    indices = torch.tensor([-1, 20, 2 * 9, 0, 2**40], device=DEVICE)
    returns, discounts, last = kernels.n_step_gather(rewards, flags, flags, indices, 3, 3, 0.5, 2, None, None, None)
    assert last.tolist() == [-1, -1, -1, 2, -1]
    assert returns.isnan().tolist() == discounts.isnan().tolist() == [True, True, True, False, True]
    cursors = torch.tensor([10, 3], device=DEVICE)
    last = kernels.n_step_gather(
        rewards, flags, flags, torch.tensor([0, 1], device=DEVICE), cursors, 3, 0.5, 2, None, None, None
    )[2]
    assert last.tolist() == [-1, 3]
    with pytest.raises(ValueError, match=r"n_step_gather: cursor must be in \[0, 9\], got 10"):
        kernels.n_step_gather(rewards, flags, flags, indices, 10, 3, 0.5, 2, None, None, None)
