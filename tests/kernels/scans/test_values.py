"""The scans on every backend against their definitions in plain lists; layouts and threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.kernels import scans as public

from .problems import FLOATS, OPS, as_tuple, call, dtypes_of, fit, laid_out, oracle, problem, same_bits, to_torch

LAYOUTS = (
    "C", "batch-major", "every second row", "every second column", "inner", "reversed rows", "reversed columns",
    "unaligned", "field of records", "read-only", "same rows", "same columns", "all the same",
)  # fmt: skip
TORCH_LAYOUTS = (
    "C", "batch-major", "every second row", "every second column", "inner", "same rows", "same columns", "all the same",
)  # fmt: skip
OUT_LAYOUTS = ("C", "batch-major", "every second row", "every second column", "inner", "reversed rows", "unaligned")
TORCH_OUT_LAYOUTS = OUT_LAYOUTS[:5]


def check(result, p, dtype, tolerance):
    result = as_tuple(result)
    assert len(result) == len(p.wanted)
    for got, wanted, name in zip(result, p.wanted, dtypes_of(p.op, dtype), strict=True):
        got = np.asarray(got)
        assert got.dtype == name and got.shape == p.shape
        if name == "int64":
            np.testing.assert_array_equal(got, wanted)
        else:
            np.testing.assert_allclose(got, wanted, **tolerance(name))


SIZES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100)
SHAPES = [(T, N) for T in SIZES for N in SIZES if T * N <= 1100]


@pytest.mark.parametrize("op", OPS)
@settings(deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.sampled_from(SHAPES),
    one_dim=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 10**6),
    out=st.sampled_from(OUT_LAYOUTS),
)
def test_against_the_definition(kernels, tolerance, op, shape, one_dim, dtype, seed, out):
    T, N = shape
    p = problem(op, T, 1 if one_dim else N, one_dim, dtype, seed, LAYOUTS)
    before = {name: x.tobytes() for name, x in p.kwargs.items() if isinstance(x, np.ndarray)}
    result = call(kernels, op, p.kwargs)
    check(result, p, dtype, tolerance)
    assert all(type(x) is np.ndarray and x.flags.writeable for x in as_tuple(result))
    check_out(kernels, p, dtype, result, out, lambda x: x)
    assert all(p.kwargs[name].tobytes() == x for name, x in before.items()), "an input was written to"


def check_out(kernels, p, dtype, result, layout, convert):
    """out= gives the bits of the result, in any layout, and nothing beside it is touched."""
    outs, bases, shape2 = [], [], p.shape if len(p.shape) == 2 else (*p.shape, 1)
    for name in dtypes_of(p.op, dtype):
        out = laid_out(np.full(shape2, -7 if name == "int64" else np.nan, name), layout)
        bases.append(out if out.base is None else out.base)
        outs.append(out if len(p.shape) == 2 else out[:, 0])
    beside = [base.copy() for base in bases]
    converted = tuple(convert(out) for out in outs)
    target = converted if len(outs) > 1 else converted[0]
    assert call(kernels, p.op, p.kwargs, out=target) is target
    same_bits(tuple(outs), result)
    for out, base, old in zip(outs, bases, beside, strict=True):
        out[...] = -7 if out.dtype == np.int64 else np.nan
        assert base.tobytes() == old.tobytes()


@pytest.mark.parametrize("op", OPS)
@settings(deadline=None, derandomize=True, max_examples=6)
@given(
    shape=st.sampled_from(SHAPES),
    one_dim=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 10**6),
    out=st.sampled_from(TORCH_OUT_LAYOUTS),
)
def test_torch_against_the_definition(kernels, tolerance, torch, op, shape, one_dim, dtype, seed, out):
    T, N = shape
    p = problem(op, T, 1 if one_dim else N, one_dim, dtype, seed, TORCH_LAYOUTS)
    tensors = SimpleNamespace(op=op, kwargs=to_torch(torch, p.kwargs), wanted=p.wanted, shape=p.shape)
    result = call(kernels, op, tensors.kwargs)
    assert all(type(x) is torch.Tensor and not x.requires_grad for x in as_tuple(result))
    check(result, p, dtype, tolerance)
    same_bits(result, call(kernels, op, p.kwargs))
    check_out(kernels, tensors, dtype, result, out, torch.from_numpy)


def cast(p, dtype):
    """The problem in another dtype: its numbers are those of float32 anyway."""
    kwargs = {
        name: x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
        for name, x in p.kwargs.items()
    }
    return SimpleNamespace(op=p.op, kwargs=kwargs, wanted=p.wanted, shape=p.shape)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1030, 1), (2050, 3), (5, 300), (3, 4100), (257, 33), (128, 8)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_long_and_wide(kernels, tolerance, op, shape, masked):
    """Both ways through a scan, serial in time and blocked along it, beyond one block of either."""
    for dtype in ("float64", "float32"):
        T, N = fit(kernels, shape[0]), shape[1]
        p = cast(problem(op, T, N, dtype="float64", done=0.05, mask=masked, n=7), dtype)
        result = call(kernels, op, p.kwargs)
        check(result, p, dtype, tolerance)
        if kernels.name != "reference":
            check_out(kernels, p, dtype, result, "every second column" if masked else "C", lambda x: x)


@pytest.mark.parametrize("op", OPS)
def test_one_long_episode(kernels, tolerance, op):
    """No end in 1030 steps, and no discount but that of a."""
    for dtype in ("float32", "float64"):
        T = fit(kernels, 1030)
        n = T * 2 // 3
        p = cast(problem(op, T, 1, True, "float64", done=0.0, gamma=1.0, lam=1.0, n=n, mask=False), dtype)
        check(call(kernels, op, p.kwargs), p, dtype, tolerance)


@pytest.mark.parametrize("op", OPS)
def test_every_length(kernels, tolerance, op):
    """T = 0 .. 40 and around the powers of 2, for one environment and for a few."""
    lengths = [*range(41), *[2**k + d for k in range(6, 13) for d in (-1, 0, 1)]]
    for T in lengths:
        if fit(kernels, T) < T:
            continue
        N = 1 if T > 70 else 1 + T % 3
        p = problem(op, T, N, dtype="float32" if T % 2 else "float64", seed=T, done=0.1)
        check(call(kernels, op, p.kwargs), p, "float32" if T % 2 else "float64", tolerance)


@pytest.mark.parametrize("op", OPS)
def test_every_width(kernels, tolerance, op):
    for N in [*range(35), 63, 64, 65, 127, 128, 129, 511, 512, 513]:
        dtype = "float64" if N % 2 else "float32"
        p = problem(op, 4, N, dtype=dtype, seed=N)
        check(call(kernels, op, p.kwargs), p, dtype, tolerance)


@pytest.mark.parametrize("op", OPS)
def test_the_public_functions(kernels, op):
    """They are the backend that was chosen, with the same bits."""
    assert getattr(fastrl, op) is getattr(fastrl.kernels, op) is getattr(public, op)
    p = problem(op, 17, 3, seed=5)
    result = getattr(public, op)(**p.kwargs)
    if kernels.name == fastrl._backend.CPU_BACKEND:
        same_bits(result, call(kernels, op, p.kwargs))
    assert type(result) is (tuple if len(dtypes_of(op, "float32")) > 1 else np.ndarray)


def test_scipy_agrees(kernels, tolerance):
    """20,000 steps of one environment: a filter of SciPy's, run backwards."""
    from scipy.signal import lfilter

    T = 2_000 if kernels.name == "reference" else 20_000
    rewards, none = np.random.default_rng(0).standard_normal(T), np.zeros(T, bool)
    wanted = lfilter([1.0], [1.0, -0.999], rewards[::-1])[::-1]
    got = kernels.scans.discounted_returns(rewards, none, none, gamma=0.999)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-11)
    y = kernels.scans.reverse_affine_scan(np.full(T, 0.999), rewards, 0.0)
    np.testing.assert_allclose(y, wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("shape", [(65, 17), (1030, 2), (4, 300)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_batch_major_equals_time_major_bit_for_bit(kernels, op, shape):
    """So does every other layout."""
    for dtype in ("float64", "float32"):
        p = problem(op, fit(kernels, shape[0]), shape[1], dtype=dtype, seed=3, done=0.05)
        wanted = call(kernels, op, p.kwargs)
        for layout in LAYOUTS[1 : 2 if kernels.name == "reference" else 10]:
            kwargs = {
                name: laid_out(x, layout) if isinstance(x, np.ndarray) and x.ndim == 2 else x
                for name, x in p.kwargs.items()
            }
            same_bits(call(kernels, op, kwargs), wanted)


@pytest.mark.parametrize("op", OPS)
def test_one_dimension_equals_one_column(kernels, op):
    for T in (0, 1, 33, fit(kernels, 1030)):
        p = problem(op, T, 1, seed=4, done=0.05)
        flat = {name: x.reshape(x.shape[:-1]) if isinstance(x, np.ndarray) else x for name, x in p.kwargs.items()}
        result = call(kernels, op, flat)
        assert all(x.shape == (T,) for x in as_tuple(result))
        same_bits(result, call(kernels, op, p.kwargs))


def test_values_of_one_array_of_T_plus_1(kernels, tolerance):
    """values[:-1] and values[1:] are views of the same memory."""
    rng = np.random.default_rng(0)
    for T, N in ((20, 3), (1030, 1), (3, 300)):
        values, rewards = rng.standard_normal((T + 1, N)), rng.standard_normal((T, N))
        terminated, none = rng.random((T, N)) < 0.1, np.zeros((T, N), bool)
        kwargs = {"terminated": terminated, "truncated": none, "gamma": 0.9, "lam": 0.8}
        got = kernels.scans.gae(rewards, values[:-1], values[1:], **kwargs)
        wanted = oracle("gae", T, N, {"rewards": rewards, "values": values[:-1], "next_values": values[1:], **kwargs})
        for x, y in zip(got, wanted, strict=True):
            np.testing.assert_allclose(x, y, **tolerance("float64"))
        same_bits(got, kernels.scans.gae(rewards, values[:-1].copy(), values[1:].copy(), **kwargs))


def big(op, T, N):
    """Inputs of a call that leaves the calling thread."""
    rng = np.random.default_rng(0)

    def floats():
        return rng.standard_normal((T, N), np.float32)

    kwargs = {name: floats() for name in FLOATS[op]}
    if op == "reverse_affine_scan":
        return {"a": np.tanh(kwargs["a"]), "b": kwargs["b"], "y_T": kwargs["b"][0] * 2}
    if op == "off_policy_returns":
        kwargs["traces"] = np.tanh(kwargs["traces"])
    kwargs |= {"terminated": rng.random((T, N)) < 0.02, "truncated": rng.random((T, N)) < 0.02, "gamma": 0.99}
    kwargs["mask"] = rng.random((T, N)) < 0.98
    if op in ("gae", "lambda_returns"):
        kwargs["lam"] = 0.95
    if op == "n_step_returns":
        kwargs["n"] = 5
    return kwargs


@pytest.fixture
def threads():
    before = fastrl.get_num_threads()
    yield fastrl.set_num_threads
    fastrl.set_num_threads(before)


@pytest.mark.parametrize("op", OPS)
def test_thread_count_changes_nothing(other, reference, tolerance, threads, op):
    for T, N in ((100, 5001), (100_003, 1), (20_001, 7)):
        kwargs = big(op, T, N)
        threads(1)
        wanted = call(other, op, kwargs)
        if N > 1000:
            for x, y in zip(as_tuple(wanted), as_tuple(call(reference, op, kwargs)), strict=True):
                np.testing.assert_allclose(x, y, **tolerance("float32"))
        for n in (2, 3, 16):
            threads(n)
            same_bits(call(other, op, kwargs), wanted)


@pytest.mark.parametrize("op", OPS)
def test_two_threads_at_once(kernels, op):
    cases = [problem(op, T, N, seed=seed, done=0.05) for seed in range(3) for T, N in ((128, 8), (1030, 1), (4, 300))]
    if kernels.name == "reference":  # which holds the GIL
        cases = cases[:1] + cases[3:4]
    wanted = [call(kernels, op, p.kwargs) for p in cases]

    def work(offset):
        for i in range(2 * len(cases)):
            k = (i + offset) % len(cases)
            same_bits(call(kernels, op, cases[k].kwargs), wanted[k])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (0, len(cases) // 2)))


def test_the_gil_is_released(other):
    """Another thread runs for most of the time that a call takes."""
    kwargs = big("vtrace", 500, 6000)
    call(other, "vtrace", kwargs)
    state = {}

    def work():
        state["start"] = time.perf_counter()
        call(other, "vtrace", kwargs)
        state["end"] = time.perf_counter()

    shares = []
    for _ in range(10):
        state.clear()
        thread = threading.Thread(target=work)
        stamps = []
        thread.start()
        while thread.is_alive():
            stamps.append(time.perf_counter())
            time.sleep(0)
        thread.join()
        inside = [state["start"], *[s for s in stamps if state["start"] < s < state["end"]], state["end"]]
        shares.append(max(np.diff(inside)) / (state["end"] - state["start"]))  # the longest time without a turn
        if shares[-1] < 0.3:
            return
    raise AssertionError(f"the calling thread kept the GIL for {min(shares):.0%} of the call")
