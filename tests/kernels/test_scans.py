"""The scans on every backend against sums written out from their definitions, one environment at a time.

Where a value must not be read, the inputs hold a NaN: bootstraps of terminated steps, and everything in masked steps.
"""

import functools
import math
import subprocess
import sys
import textwrap
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

# ---- the oracle -------------------------------------------------------------------------------------------------
# Everything is a list of Python numbers, over the steps of one environment.


def stretches(term, trunc, valid):
    """[first, last] of every run of real steps that is of one episode."""
    first = None
    for t in range(len(term)):
        if not valid[t]:
            first = None
            continue
        first = t if first is None else first
        if term[t] or trunc[t] or t + 1 == len(term) or not valid[t + 1]:
            yield first, t
            first = None


def bootstrap(gamma, terminated, next_value):
    return 0.0 if terminated or gamma == 0 else gamma * next_value


def oracle_affine(a, b, y_T):
    """y_t = sum_k a_t ... a_{k-1} b_k + a_t ... a_{T-1} y_T."""
    y = []
    for t in range(len(a)):
        product, terms = 1.0, []
        for k in range(t, len(a)):
            terms.append(product * b[k])
            product *= a[k]
            if a[k] == 0:
                break
        else:
            terms.append(product * y_T)
        y.append(math.fsum(terms))
    return (y,)


def oracle_gae(r, v, nv, term, trunc, valid, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_{t+k}."""
    advantages, returns = [0.0] * len(r), [0.0] * len(r)
    for first, last in stretches(term, trunc, valid):
        deltas = [math.fsum((r[t], bootstrap(gamma, term[t], nv[t]), -v[t])) for t in range(first, last + 1)]
        weights = [(gamma * lam) ** k for k in range(len(deltas))]
        for i, t in enumerate(range(first, last + 1)):
            advantages[t] = math.fsum(w * d for w, d in zip(weights, deltas[i:], strict=False))
            returns[t] = advantages[t] + v[t]
    return advantages, returns


def n_step(r, nv, term, t, last, gamma):
    """sum_k gamma^k r_{t+k} + gamma^m V' for the steps t .. last."""
    terms = [r[t]] + [gamma**k * r[t + k] for k in range(1, last - t + 1) if gamma]
    return math.fsum([*terms, bootstrap(gamma ** (last - t + 1), term[last], nv[last])])


def oracle_discounted(r, nv, term, trunc, valid, gamma):
    returns = [0.0] * len(r)
    for first, last in stretches(term, trunc, valid):
        for t in range(first, last + 1):
            returns[t] = n_step(r, nv, term, t, last, gamma)
    return (returns,)


def oracle_lambda(r, nv, term, trunc, valid, gamma, lam):
    """G_t = (1 - lam) sum_{j<L} lam^{j-1} G_t^(j) + lam^{L-1} G_t^(L), of the j-step returns up to the end."""
    returns = [0.0] * len(r)
    powers = [gamma**k for k in range(len(r) + 1)]
    for first, last in stretches(term, trunc, valid):
        for t in range(first, last + 1):
            rewards, terms = 0.0, []
            for k in range(last - t + 1):
                rewards += powers[k] * r[t + k] if k == 0 or gamma else 0.0
                weight = lam**k if t + k == last else (1 - lam) * lam**k
                if weight:
                    terms += [weight * rewards, weight * bootstrap(powers[k + 1], term[t + k], nv[t + k])]
            returns[t] = math.fsum(terms)
    return (returns,)


def oracle_n_step(r, nv, term, trunc, cut, valid, gamma, n):
    returns, discounts, lasts = [0.0] * len(r), [0.0] * len(r), list(range(len(r)))
    for first, last in stretches(term, trunc, valid):
        for t in range(first, last + 1):
            end = t
            while end < last and end - t + 1 < n and not cut[end + 1]:
                end += 1
            returns[t] = n_step(r, nv, term, t, end, gamma)
            discounts[t] = 0.0 if term[end] else gamma ** (end - t + 1)
            lasts[t] = end
    return returns, discounts, lasts


def exp(x):
    return math.exp(x) if x < 700 else math.inf


def oracle_vtrace(r, v, nv, log_rhos, term, trunc, valid, gamma, lam, rho_clip, c_clip, pg_rho_clip):
    """Espeholt et al. (2018), eq. 1: vs_s = V_s + sum_t gamma^{t-s} (c_s ... c_{t-1}) delta_t V."""
    vs, advantages = [0.0] * len(r), [0.0] * len(r)
    rhos = [exp(x) for x in log_rhos]
    errors = [math.fsum((r[t], bootstrap(gamma, term[t], nv[t]), -v[t])) if valid[t] else 0.0 for t in range(len(r))]
    for first, last in stretches(term, trunc, valid):
        for s in range(first, last + 1):
            product, terms = 1.0, [v[s]]
            for t in range(s, last + 1):
                terms.append(product * min(rho_clip, rhos[t]) * errors[t])
                product *= gamma * lam * min(c_clip, rhos[t])
                if product == 0:
                    break
            vs[s] = math.fsum(terms)
        for s in range(first, last + 1):
            target = [r[s], bootstrap(gamma, term[s], nv[s])]
            if s < last:
                target += [gamma * vs[s + 1], -gamma * v[s + 1]]
            advantages[s] = min(pg_rho_clip, rhos[s]) * math.fsum([*target, -v[s]])
    return vs, advantages


def oracle_off_policy(r, q, nv, traces, term, trunc, valid, gamma):
    """Munos et al. (2016), eq. 3: y_s = Q_s + sum_t gamma^{t-s} (c_{s+1} ... c_t) (r_t + gamma V'_t - Q_t)."""
    returns = [0.0] * len(r)
    errors = [math.fsum((r[t], bootstrap(gamma, term[t], nv[t]), -q[t])) if valid[t] else 0.0 for t in range(len(r))]
    for first, last in stretches(term, trunc, valid):
        for s in range(first, last + 1):
            product, terms = 1.0, [q[s]]
            for t in range(s, last + 1):
                product *= gamma * traces[t] if t > s else 1.0
                if product == 0:
                    break
                terms.append(product * errors[t])
            returns[s] = math.fsum(terms)
    return (returns,)


# ---- problems ---------------------------------------------------------------------------------------------------

FLOATS = {
    "reverse_affine_scan": ("a", "b"),
    "gae": ("rewards", "values", "next_values"),
    "discounted_returns": ("rewards", "next_values"),
    "lambda_returns": ("rewards", "next_values"),
    "n_step_returns": ("rewards", "next_values"),
    "vtrace": ("rewards", "values", "next_values", "log_rhos"),
    "off_policy_returns": ("rewards", "q_values", "next_state_values", "traces"),
}
OPS = tuple(FLOATS)
FLAGGED = OPS[1:]
BOOTSTRAPS = ("next_values", "next_state_values")

LAYOUTS = (
    "C", "batch-major", "every second row", "every second column", "inner", "reversed rows", "reversed columns",
    "unaligned", "field of records", "read-only", "same rows", "same columns", "all the same",
)  # fmt: skip
TORCH_LAYOUTS = (
    "C", "batch-major", "every second row", "every second column", "inner", "same rows", "same columns", "all the same",
)  # fmt: skip
OUT_LAYOUTS = ("C", "batch-major", "every second row", "every second column", "inner", "reversed rows", "unaligned")
TORCH_OUT_LAYOUTS = OUT_LAYOUTS[:5]


def laid_out(x, layout):
    """The values of x [T, N] in a memory layout; what lies between them is poison.  The last three repeat the first."""
    T, N = x.shape
    poison = 255 if x.dtype == np.uint8 else True if x.dtype == bool else np.nan if x.dtype.kind == "f" else -7
    if layout.startswith(("same", "all")):
        strides = (0 if layout != "same columns" else x.itemsize, 0 if layout != "same rows" else x.itemsize)
        seed = (x[:1] if layout != "same columns" else x[:, :1]).copy()
        return np.lib.stride_tricks.as_strided(seed, x.shape, strides)
    if layout == "batch-major":
        return np.ascontiguousarray(x.T).T
    if layout == "unaligned":
        view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    elif layout == "field of records":
        view = np.zeros(x.shape, [("pad", "i1"), ("x", x.dtype)])["x"]
    else:
        shape, index = {
            "C": ((T, N), ...),
            "read-only": ((T, N), ...),
            "every second row": ((2 * T + 1, N), slice(1, 2 * T + 1, 2)),
            "every second column": ((T, 2 * N), (slice(None), slice(0, 2 * N, 2))),
            "inner": ((T + 2, N + 3), (slice(1, T + 1), slice(2, N + 2))),
            "reversed rows": ((T, N), slice(None, None, -1)),
            "reversed columns": ((T, N), (slice(None), slice(None, None, -1))),
        }[layout]
        view = np.full(shape, poison, x.dtype)[index]
    view[...] = x
    view.flags.writeable = layout != "read-only"
    return view


@functools.cache
def problem(op, T, N, one_dim=False, dtype="float32", seed=0, layouts=("C",), **fixed):
    """Inputs of an op, and what must come of them.  `fixed` replaces what else is drawn: done, gamma, lam, n, mask."""
    rng = np.random.default_rng([seed, T, N, OPS.index(op)])
    done = fixed.get("done", float(rng.choice([0.0, 0.03, 0.1, 0.4, 1.0] if T <= 150 else [0.03, 0.1])))
    chosen = iter(rng.choice(layouts, 12))

    def place(x):
        view = laid_out(x, next(chosen))
        return view[:, 0] if one_dim else view

    def floats(low=None, high=None, scale=1.0):
        x = rng.standard_normal((T, N)) * scale if low is None else rng.uniform(low, high, (T, N))
        return x.astype(np.float32).astype(dtype)  # the same numbers in both dtypes

    def flags(p):
        return (rng.random((T, N)) < p).astype(rng.choice(["bool", "uint8"]))

    kwargs = {}
    if op == "reverse_affine_scan":
        a = floats(-1.1, 1.1)
        a[rng.random((T, N)) < done] = 0
        kwargs = {"a": place(a), "b": place(floats())}
        kind = rng.integers(3)
        kwargs["y_T"] = [None, 0.75, kwargs["b"][0] * 2 if T else None][kind]
    else:
        for name in FLOATS[op]:
            kwargs[name] = {"log_rhos": lambda: floats(scale=0.5), "traces": lambda: floats(0, 1.2)}.get(name, floats)()
        kwargs["terminated"], kwargs["truncated"] = flags(done / 2), flags(done * 2 / 3)  # both set now and then
        masked = fixed.get("mask", bool(rng.integers(2)))
        if masked:
            kwargs["mask"] = flags(0.85)
        if op == "n_step_returns" and rng.integers(2):
            kwargs["cut"] = flags(0.15)
        kwargs = {name: place(x) for name, x in kwargs.items()}
        # Poison what must not be read, where a layout does not show one number in several places.
        for name in FLOATS[op]:
            x = kwargs[name]
            if 0 in x.strides or not x.flags.writeable:
                continue
            if name in BOOTSTRAPS:
                x[kwargs["terminated"] != 0] = np.nan
            if masked:
                x[kwargs["mask"] == 0] = rng.choice([np.nan, np.inf])
        kwargs["gamma"] = fixed.get("gamma", float(rng.choice([0.0, 0.5, 0.99, 1.0])))
        if op in ("gae", "lambda_returns", "vtrace"):
            kwargs["lam"] = fixed.get("lam", float(rng.choice([0.0, 0.3, 0.95, 1.0])))
        if op == "n_step_returns":
            kwargs["n"] = fixed.get("n", int(rng.choice([1, 2, 3, 5, 10, max(T - 1, 1), max(T, 1), T + 1, 10**30])))
        if op == "vtrace":
            kwargs |= {name: float(rng.choice([0.5, 1.0, 2.0, np.inf])) for name in CLIPS}
        if op in ("discounted_returns", "n_step_returns") and rng.random() < 0.2:
            del kwargs["next_values"]
            if op == "n_step_returns":
                kwargs["next_values"] = None
    wanted = oracle(op, T, N, kwargs)
    assert all(np.isfinite(x).all() for x in wanted)
    shape = (T,) if one_dim else (T, N)
    return SimpleNamespace(op=op, kwargs=kwargs, wanted=tuple(x.reshape(shape) for x in wanted), shape=shape)


CLIPS = ("rho_clip", "c_clip", "pg_rho_clip")


def oracle(op, T, N, kwargs):
    def column(name, i, default):
        x = kwargs.get(name)
        return [default] * T if x is None else np.asarray(x).reshape(T, N)[:, i].tolist()

    columns = []
    for i in range(N):
        term, trunc = column("terminated", i, 0), column("truncated", i, 0)
        valid, x = column("mask", i, 1), [column(name, i, 0.0) for name in FLOATS[op]]
        gamma, lam = kwargs.get("gamma"), kwargs.get("lam")
        if op == "reverse_affine_scan":
            y_T = kwargs["y_T"]
            y_T = 0.0 if y_T is None else y_T if isinstance(y_T, float) else y_T.reshape(N)[i].item()
            columns.append(oracle_affine(*x, y_T))
        elif op == "gae":
            columns.append(oracle_gae(*x, term, trunc, valid, gamma, lam))
        elif op == "discounted_returns":
            columns.append(oracle_discounted(*x, term, trunc, valid, gamma))
        elif op == "lambda_returns":
            columns.append(oracle_lambda(*x, term, trunc, valid, gamma, lam))
        elif op == "n_step_returns":
            columns.append(oracle_n_step(*x, term, trunc, column("cut", i, 0), valid, gamma, kwargs["n"]))
        elif op == "vtrace":
            columns.append(oracle_vtrace(*x, term, trunc, valid, gamma, lam, *[kwargs[name] for name in CLIPS]))
        else:
            columns.append(oracle_off_policy(*x, term, trunc, valid, gamma))
    outputs = {"gae": 2, "n_step_returns": 3, "vtrace": 2}.get(op, 1)
    return [np.array([c[k] for c in columns], np.float64).reshape(N, T).T for k in range(outputs)]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def dtypes_of(op, dtype):
    return {"gae": (dtype,) * 2, "n_step_returns": (dtype, dtype, "int64"), "vtrace": (dtype,) * 2}.get(op, (dtype,))


def to_torch(torch, kwargs):
    return {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in kwargs.items()}


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


def fit(kernels, T):
    """A length for this backend: the reference, which is slow, is one loop whatever the length."""
    return min(T, 130) if kernels.name == "reference" else T


def call(kernels, op, kwargs, **more):
    return getattr(kernels.scans, op)(**kwargs, **more)


def same_bits(x, y):
    x, y = as_tuple(x), as_tuple(y)
    assert len(x) == len(y)
    for a, b in zip(x, y, strict=True):
        a, b = np.ascontiguousarray(np.asarray(a)), np.ascontiguousarray(np.asarray(b))
        assert a.dtype == b.dtype and a.size == b.size
        assert a.tobytes() == b.tobytes()


# ---- against the oracle -----------------------------------------------------------------------------------------

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


# ---- layouts, threads -------------------------------------------------------------------------------------------


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


# ---- identities -------------------------------------------------------------------------------------------------


def consistent(T, N, seed=0, dtype=np.float64, done=0.08, mask=False):
    """A rollout in which V' is the V of the next step wherever the episode goes on, as a value function gives it."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((T + 1, N)).astype(dtype)
    terminated, truncated = rng.random((T, N)) < done, rng.random((T, N)) < done
    valid = rng.random((T, N)) < 0.9 if mask else np.ones((T, N), bool)
    next_values = np.where(terminated | truncated, rng.standard_normal((T, N)), values[1:]).astype(dtype)
    return SimpleNamespace(
        rewards=rng.standard_normal((T, N)).astype(dtype), values=values[:-1], next_values=next_values,
        terminated=terminated, truncated=truncated, mask=valid, rng=rng,
    )  # fmt: skip


@pytest.fixture(params=[(40, 7), (1030, 1), (3, 300)], ids=str)
def shape(request, kernels):
    return fit(kernels, request.param[0]), request.param[1]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


def close(x, y, tolerance, dtype):
    np.testing.assert_allclose(x, y, **tolerance(dtype))


def test_lambda_returns_are_advantages_plus_values(kernels, tolerance, shape, dtype):
    d = consistent(*shape, dtype=dtype, mask=True)
    kwargs = {"gamma": 0.97, "lam": 0.9, "mask": d.mask}
    advantages, returns = kernels.scans.gae(d.rewards, d.values, d.next_values, d.terminated, d.truncated, **kwargs)
    got = kernels.scans.lambda_returns(d.rewards, d.next_values, d.terminated, d.truncated, **kwargs)
    close(got, returns, tolerance, dtype)
    close(got, np.where(d.mask, advantages + d.values, 0), tolerance, dtype)


def test_gae_with_lam_1_telescopes(kernels, tolerance, shape, dtype):
    d = consistent(*shape, dtype=dtype)
    flags = (d.terminated, d.truncated)
    advantages, returns = kernels.scans.gae(d.rewards, d.values, d.next_values, *flags, gamma=0.97, lam=1)
    got = kernels.scans.discounted_returns(d.rewards, *flags, gamma=0.97, next_values=d.next_values)
    close(advantages, got - d.values, tolerance, dtype)
    close(returns, got, tolerance, dtype)


def test_n_step_of_the_whole_length_is_the_discounted_return(kernels, tolerance, shape, dtype):
    d = consistent(*shape, dtype=dtype, mask=True)
    flags, T = (d.terminated, d.truncated), shape[0]
    for n in (T, T + 1, 2**40):
        for values in (d.next_values, None):
            got, _, _ = kernels.scans.n_step_returns(d.rewards, values, *flags, gamma=0.97, n=n, mask=d.mask)
            wanted = kernels.scans.discounted_returns(d.rewards, *flags, gamma=0.97, next_values=values, mask=d.mask)
            close(got, wanted, tolerance, dtype)


def test_one_step(kernels, tolerance, shape, dtype):
    """n = 1, lam = 0 and c = 0 are all the one-step target."""
    d = consistent(*shape, dtype=dtype)
    flags, x = (d.terminated, d.truncated), (d.rewards, d.next_values)
    wanted = d.rewards.astype(np.float64) + np.where(d.terminated, 0, 0.97 * d.next_values.astype(np.float64))
    n_step_return, discounts, last = kernels.scans.n_step_returns(*x, *flags, gamma=0.97, n=1)
    close(n_step_return, wanted, tolerance, dtype)
    close(discounts, np.where(d.terminated, 0, 0.97), tolerance, dtype)
    np.testing.assert_array_equal(last, np.broadcast_to(np.arange(shape[0])[:, None], shape))
    close(kernels.scans.lambda_returns(*x, *flags, gamma=0.97, lam=0), wanted, tolerance, dtype)
    close(kernels.scans.gae(d.rewards, d.values, d.next_values, *flags, gamma=0.97, lam=0)[1], wanted, tolerance, dtype)
    # Retrace with c = 0: not even a NaN of Q reaches it.
    q, none = np.full_like(d.rewards, np.nan), np.zeros_like(d.rewards)
    got = kernels.scans.off_policy_returns(d.rewards, q, d.next_values, none, *flags, gamma=0.97)
    close(got, wanted, tolerance, dtype)


def test_vtrace_on_policy_is_the_n_step_return(kernels, tolerance, shape, dtype):
    d = consistent(*shape, dtype=dtype)
    flags, T = (d.terminated, d.truncated), shape[0]
    vs, pg = kernels.scans.vtrace(
        d.rewards, d.values, d.next_values, *flags, np.zeros_like(d.rewards), gamma=0.97, lam=1
    )
    wanted, _, _ = kernels.scans.n_step_returns(d.rewards, d.next_values, *flags, gamma=0.97, n=T)
    close(vs, wanted, tolerance, dtype)
    close(pg, wanted - d.values, tolerance, dtype)


def test_vtrace_on_policy_is_gae(kernels, tolerance, shape, dtype):
    d = consistent(*shape, dtype=dtype, mask=True)
    x, flags = (d.rewards, d.values, d.next_values), (d.terminated, d.truncated)
    vs, _ = kernels.scans.vtrace(*x, *flags, np.zeros_like(d.rewards), gamma=0.97, lam=0.9, mask=d.mask)
    _, returns = kernels.scans.gae(*x, *flags, gamma=0.97, lam=0.9, mask=d.mask)
    close(vs, returns, tolerance, dtype)


def test_off_policy_returns_with_constant_traces_are_lambda_returns(kernels, tolerance, shape, dtype):
    """Q on policy (Q_t = V_t) and c = lam."""
    d = consistent(*shape, dtype=dtype, mask=True)
    flags, kwargs = (d.terminated, d.truncated), {"gamma": 0.97, "mask": d.mask}
    traces = np.full(shape, 0.75, dtype)
    got = kernels.scans.off_policy_returns(d.rewards, d.values, d.next_values, traces, *flags, **kwargs)
    wanted = kernels.scans.lambda_returns(d.rewards, d.next_values, *flags, lam=0.75, **kwargs)
    close(got, wanted, tolerance, dtype)


def test_every_op_is_the_affine_scan(kernels, tolerance, shape, dtype):
    d = consistent(*shape, dtype=dtype)
    done = d.terminated | d.truncated
    done[-1] = True
    delta = d.rewards.astype(np.float64) + np.where(d.terminated, 0, 0.97 * d.next_values.astype(np.float64)) - d.values
    y = kernels.scans.reverse_affine_scan(0.97 * 0.9 * ~done, delta)
    advantages, _ = kernels.scans.gae(
        d.rewards, d.values, d.next_values, d.terminated, d.truncated, gamma=0.97, lam=0.9
    )
    close(advantages, y, tolerance, dtype)


@pytest.mark.parametrize("half", [1, 13, 39])
@pytest.mark.parametrize("op", OPS)
def test_two_halves_make_the_whole(kernels, tolerance, op, half):
    """The first half bootstraps from what the second half says of its first step."""
    d = consistent(40, 7, seed=9)
    rng, T = d.rng, 40
    log_rhos, traces = rng.standard_normal((T, 7)) / 2, rng.random((T, 7))
    x = {"rewards": d.rewards, "values": d.values, "q_values": d.values, "next_values": d.next_values,
         "next_state_values": d.next_values, "log_rhos": log_rhos, "traces": traces}  # fmt: skip
    kwargs = {name: x[name] for name in FLOATS[op] if name in x}
    kwargs |= {"terminated": d.terminated, "truncated": d.truncated} if op in FLAGGED else {"a": traces, "b": d.rewards}

    def run(arrays):
        parameters = {
            "reverse_affine_scan": {}, "n_step_returns": {"n": 4}, "vtrace": {"lam": 1.0},
            "gae": {"lam": 0.9}, "lambda_returns": {"lam": 0.9},
        }.get(op, {})  # fmt: skip
        return as_tuple(call(kernels, op, arrays, **parameters, **({"gamma": 0.97} if op in FLAGGED else {})))

    whole = run(kwargs)
    second = run({name: array[half:] for name, array in kwargs.items()})
    first = {name: array[:half] for name, array in kwargs.items()}
    middle = {
        "gae": lambda: d.next_values[half - 1] + 0.9 * second[0][0],
        "discounted_returns": lambda: second[0][0],
        "lambda_returns": lambda: 0.1 * d.next_values[half - 1] + 0.9 * second[0][0],
        "n_step_returns": lambda: d.next_values[half - 1],
        "vtrace": lambda: second[0][0],  # for lam = 1 and rho_clip = c_clip
        "off_policy_returns": lambda: d.next_values[half - 1] + traces[half] * (second[0][0] - d.values[half]),
    }
    if op == "reverse_affine_scan":
        first["y_T"] = second[0][0]
    else:
        name = "next_state_values" if op == "off_policy_returns" else "next_values"
        goes_on = ~(d.terminated | d.truncated)[half - 1]
        first[name] = first[name].copy()
        first[name][-1] = np.where(goes_on, middle[op](), first[name][-1])
    first = run(first)
    # The n-step returns of the last n - 1 steps of the first half are shorter than in the whole.
    upto = max(half - 3, 0) if op == "n_step_returns" else half
    for i, (x, y, z) in enumerate(zip(whole, first, second, strict=True)):
        close(x[:upto], y[:upto], tolerance, "float64")
        close(x[half:], z + (half if i == 2 else 0), tolerance, "float64")


# ---- NaN and infinity -------------------------------------------------------------------------------------------


def no_ends(op, T, N):
    rng = np.random.default_rng(0)
    kwargs = {name: rng.standard_normal((T, N)).astype(np.float32) for name in FLOATS[op]}
    kwargs |= {"terminated": np.zeros((T, N), bool), "truncated": np.zeros((T, N), bool), "gamma": 0.9}
    if op == "n_step_returns":
        return kwargs | {"n": 4}
    return kwargs | ({"lam": 0.9} if op in ("gae", "lambda_returns", "vtrace") else {})


def poisoned_after(kwargs, op, t, poison):
    """Everything after step t, and the bootstrap of t, is poison."""
    kwargs = dict(kwargs)
    for name in FLOATS[op]:
        x = kwargs[name].copy()
        x[t + 1 :] = poison
        if name in BOOTSTRAPS:
            x[t] = poison
        kwargs[name] = x
    return kwargs


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", FLAGGED)
def test_nothing_passes_a_terminal_step(kernels, op, poison):
    long = fit(kernels, 1030)
    for (T, N), t in (((20, 5), 11), ((long, 1), long // 2), ((long, 1), long - 2), ((long, 1), 0), ((4, 300), 1)):
        kwargs = no_ends(op, T, N)
        kwargs["terminated"][t] = True
        wanted = as_tuple(call(kernels, op, kwargs))
        got = as_tuple(call(kernels, op, poisoned_after(kwargs, op, t, poison)))
        assert all(np.isfinite(x[: t + 1]).all() for x in got)
        same_bits(tuple(x[: t + 1] for x in got), tuple(x[: t + 1] for x in wanted))


@pytest.mark.parametrize("op", FLAGGED)
def test_nothing_passes_a_truncated_step_but_its_bootstrap(kernels, op):
    long = fit(kernels, 1030)
    for (T, N), t in (((20, 5), 11), ((long, 1), long // 2), ((4, 300), 1)):
        kwargs = no_ends(op, T, N)
        kwargs["truncated"][t] = True
        bootstrap_name = "next_state_values" if op == "off_policy_returns" else "next_values"
        wanted = as_tuple(call(kernels, op, kwargs))
        poisoned = poisoned_after(kwargs, op, t, np.nan)
        poisoned[bootstrap_name][t] = kwargs[bootstrap_name][t]
        got = as_tuple(call(kernels, op, poisoned))
        same_bits(tuple(x[: t + 1] for x in got), tuple(x[: t + 1] for x in wanted))
        assert np.isfinite(got[0][: t + 1]).all()


def test_a_zero_coefficient_cuts_the_affine_scan(kernels):
    rng = np.random.default_rng(0)
    for (T, N), t in (((20, 5), 11), ((1030, 1), 500), ((1030, 1), 1029), ((4, 300), 1)):
        a, b = rng.random((T, N)), rng.standard_normal((T, N))
        a[t] = 0
        wanted = kernels.scans.reverse_affine_scan(a, b)
        a[t + 1 :], b[t + 1 :] = np.nan, np.inf
        got = kernels.scans.reverse_affine_scan(a, b, np.nan)
        same_bits(got[: t + 1], wanted[: t + 1])
    # Without a zero it passes, also through a product that underflows.
    assert np.isnan(kernels.scans.reverse_affine_scan(np.full(40, 1e-60), np.zeros(40), np.nan)).all()
    assert np.isnan(kernels.scans.reverse_affine_scan(np.ones(3), np.zeros(3), np.nan)).all()


@pytest.mark.parametrize("op", OPS)
def test_environments_do_not_mix(kernels, op):
    """NaN in every input of one environment reaches no other: bit for bit what they are without it."""
    for T, N, sick in ((20, 5, 2), (20, 17, 16), (fit(kernels, 1030), 3, 1), (4, 300, 7), (128, 8, 0)):
        kwargs = dict(problem(op, T, N, seed=6, done=0.05, mask=False).kwargs)
        wanted = as_tuple(call(kernels, op, kwargs))
        ill = dict(kwargs)
        for name in FLOATS[op]:
            if ill.get(name) is not None:
                ill[name] = ill[name].copy()
                ill[name][:, sick] = np.nan
        got = as_tuple(call(kernels, op, ill))
        assert np.isnan(got[0][:, sick]).any()
        healthy = [i for i in range(N) if i != sick]
        same_bits(tuple(x[:, healthy] for x in got), tuple(x[:, healthy] for x in wanted))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("op", FLAGGED)
def test_masked_steps_reach_nothing(kernels, op, poison):
    for T, N in ((20, 5), (fit(kernels, 1030), 1), (4, 300)):
        kwargs = dict(problem(op, T, N, seed=7, done=0.05, mask=True).kwargs)
        masked = kwargs["mask"] == 0
        for name in FLOATS[op]:
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name].copy()
                kwargs[name][masked] = 1.0
        wanted = as_tuple(call(kernels, op, kwargs))
        for name in FLOATS[op]:
            if kwargs.get(name) is not None:
                kwargs[name][masked] = poison
        for name in ("terminated", "truncated"):  # their flags say nothing either
            kwargs[name] = kwargs[name].copy()
            kwargs[name][masked] = kwargs[name][masked] == 0
        got = as_tuple(call(kernels, op, kwargs))
        same_bits(got, wanted)
        assert all((x[masked] == 0).all() for x in got[:2])
        if op == "n_step_returns":
            np.testing.assert_array_equal(got[2][masked], np.nonzero(masked)[0])


def test_what_a_discount_of_0_hides(kernels):
    """gamma = 0 leaves the rewards; lam = 0 and lam = 1 hide the terms that they weigh by 0."""
    rng = np.random.default_rng(0)
    for T, N in ((6, 3), (1030, 1), (4, 300)):
        r, nan = rng.standard_normal((T, N)), np.full((T, N), np.nan)
        none = np.zeros((T, N), bool)
        flags = (none, none)
        np.testing.assert_array_equal(kernels.scans.discounted_returns(r, *flags, gamma=0, next_values=nan), r)
        np.testing.assert_array_equal(kernels.scans.lambda_returns(r, nan, *flags, gamma=0, lam=0.5), r)
        np.testing.assert_array_equal(kernels.scans.n_step_returns(r, nan, *flags, gamma=0, n=3)[0], r)
        np.testing.assert_array_equal(kernels.scans.off_policy_returns(r, nan, nan, nan, *flags, gamma=0), r)
        np.testing.assert_array_equal(kernels.scans.gae(r, 0 * r, nan, *flags, gamma=0, lam=1)[0], r)
        np.testing.assert_array_equal(kernels.scans.vtrace(r, 0 * r, nan, *flags, 0 * r, gamma=0)[0], r)
        hidden = nan.copy()
        hidden[-1] = 2.0  # with lam = 1 only the last one counts
        assert np.isfinite(kernels.scans.lambda_returns(r, hidden, *flags, gamma=0.9, lam=1)).all()
        assert np.isfinite(kernels.scans.discounted_returns(r, *flags, gamma=0.9, next_values=hidden)).all()


def test_vtrace_of_extreme_ratios(kernels, tolerance):
    """A ratio beyond float64 is clipped like any other; one of 0 cuts the trace."""
    T, N = 40, 3
    d = consistent(T, N, seed=3)
    log_rhos = np.random.default_rng(1).choice([-np.inf, -1e4, -700.0, 0.0, 80.0, 700.0, 1e4, np.inf], (T, N))
    kwargs = {"gamma": 0.9, "lam": 0.95, **dict.fromkeys(CLIPS, 1.5)}
    arrays = {"rewards": d.rewards, "values": d.values, "next_values": d.next_values, "log_rhos": log_rhos,
              "terminated": d.terminated, "truncated": d.truncated}  # fmt: skip
    for x, y in zip(kernels.scans.vtrace(**arrays, **kwargs), oracle("vtrace", T, N, arrays | kwargs), strict=True):
        np.testing.assert_allclose(x, y, **tolerance("float64"))


def test_vtrace_hides_an_unclipped_infinite_ratio_of_a_terminal_step(kernels):
    """c_clip = inf and a terminal step, or lam = 0: the trace is not taken."""
    for T in (6, 1030):
        one = np.ones(T)
        log_rhos, terminated, none = np.zeros(T), np.zeros(T, bool), np.zeros(T, bool)
        log_rhos[3], terminated[3] = 1e4, True
        vs, _ = kernels.scans.vtrace(one, one, one, terminated, none, log_rhos, gamma=0.9, c_clip=np.inf)
        assert np.isfinite(vs).all()
        vs, _ = kernels.scans.vtrace(one, one, one, none, none, log_rhos, gamma=0.9, lam=0.0, c_clip=np.inf)
        assert np.isfinite(vs).all()


def test_a_nan_ratio_is_not_clipped_away(kernels):
    one, none = np.ones(5), np.zeros(5, bool)
    log_rhos = np.array([0, 0, np.nan, 0, 0])
    for result in kernels.scans.vtrace(one, one, one, none, none, log_rhos, gamma=0.9):
        np.testing.assert_array_equal(np.isnan(result), [True, True, True, False, False])


def test_large_coefficients(kernels):
    """Products of coefficients overflow where no result does: y is 0 from the middle on."""
    for T in (20, 1030, 5000):
        a, b = np.full(T, 1e100), np.zeros(T)
        np.testing.assert_array_equal(kernels.scans.reverse_affine_scan(a, b), b)
        a[0], b[0] = -1e100, 5.0
        np.testing.assert_array_equal(kernels.scans.reverse_affine_scan(a, b), b)


def test_float32_sums_in_float64(kernels):
    """2^24 and then 1,000 times 1: float32 sums would stay at 2^24."""
    rewards, none = np.ones(1001, np.float32), np.zeros(1001, bool)
    rewards[-1] = 2.0**24
    got = kernels.scans.discounted_returns(rewards, none, none, gamma=1.0)
    np.testing.assert_array_equal(got, (2.0**24 + np.arange(1000, -1, -1)).astype(np.float32))


@pytest.mark.parametrize("shape", [(5000,), (5000, 1), (5000, 19)], ids=str)
@pytest.mark.parametrize(("gamma", "lam"), [(0.999, 1.0), (0.999, 0.95), (0.9999, 0.999), (1.0, 1.0)])
def test_float32_errors_do_not_add_up_over_a_long_horizon(kernels, reference, shape, gamma, lam):
    """Values far above what a step adds: an error of one sign in each delta would be 1,000 times as large in a sum."""
    none = np.zeros(shape, bool)
    for noise in (0, 1):
        values = (1000 + noise * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
        arrays = np.full(shape, 0.1, np.float32), values, np.roll(values, -1, axis=0)
        wide = [x.astype(np.float64) for x in arrays]
        advantages, returns = kernels.scans.gae(*arrays, none, none, gamma=gamma, lam=lam)
        wanted, wanted_returns = reference.scans.gae(*wide, none, none, gamma=gamma, lam=lam)
        np.testing.assert_allclose(advantages, wanted, rtol=1e-5, atol=2e-4)  # 3 roundings of values
        np.testing.assert_allclose(returns, wanted_returns, rtol=1e-5)
        found = kernels.scans.lambda_returns(arrays[0], arrays[2], none, none, gamma=gamma, lam=lam)
        np.testing.assert_allclose(found, wanted_returns, rtol=1e-5)


def test_overflow_to_float32_is_infinite(kernels):
    rewards, none = np.full(4, 3e38, np.float32), np.zeros(4, bool)
    got = kernels.scans.discounted_returns(rewards, none, none, gamma=1.0)
    np.testing.assert_array_equal(got, np.array([np.inf, np.inf, np.inf, 3e38], np.float32))


# ---- gradients of reverse_affine_scan, torch --------------------------------------------------------------------


def weights(torch, *shape):
    return torch.from_numpy(np.random.default_rng(sum(shape) + 1).uniform(-1.0, 1.0, shape)).requires_grad_()


@pytest.mark.parametrize("dims", [(1,), (5,), (4, 3), (70, 1)], ids=str)
@pytest.mark.parametrize("last", ["none", "number", "array"])
def test_gradients(torch, dims, last):
    a, b = weights(torch, *dims), weights(torch, *dims)
    if last == "array":
        y_T = weights(torch, *dims[1:], 1)[..., 0].detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(public.reverse_affine_scan, (a, b, y_T))
    else:
        y_T = None if last == "none" else 0.5
        assert torch.autograd.gradcheck(lambda a, b: public.reverse_affine_scan(a, b, y_T), (a, b))


@pytest.mark.parametrize("dims", [(0, 3), (3, 0)], ids=str)
def test_gradients_of_empty_arrays(torch, dims):  # which gradcheck does not take
    a, b, y_T = weights(torch, *dims), weights(torch, *dims), weights(torch, *dims[1:])
    public.reverse_affine_scan(a, b, y_T).sum().backward()
    assert a.grad.shape == b.grad.shape == dims
    assert y_T.grad.tolist() == [0.0] * dims[1]


@pytest.mark.parametrize("wants", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_of_one_input(torch, wants):
    dims = ((5, 2), (5, 2), (2,))
    a, b, y_T = (weights(torch, *d).detach().requires_grad_(w) for d, w in zip(dims, wants, strict=True))
    assert torch.autograd.gradcheck(public.reverse_affine_scan, (a, b, y_T))
    public.reverse_affine_scan(a, b, y_T).sum().backward()
    assert [x.grad is not None for x in (a, b, y_T)] == list(wants)


def test_gradients_of_views_and_long_arrays(torch):
    a, b = weights(torch, 3, 8), weights(torch, 8, 6)
    assert torch.autograd.gradcheck(lambda a, b: public.reverse_affine_scan(a.T, b[:, ::2]), (a, b))
    for dims in ((1030, 1), (3, 300)):
        a, b, g = (weights(torch, *dims).detach() for _ in range(3))
        y_T = torch.zeros(dims[1:], dtype=torch.float64)
        ours = [x.clone().requires_grad_() for x in (a, b, y_T)]
        public.reverse_affine_scan(*ours).backward(g)
        theirs = [x.clone().requires_grad_() for x in (a, b, y_T)]
        y, rows = theirs[2], []
        for t in reversed(range(dims[0])):
            y = theirs[1][t] + theirs[0][t] * y
            rows.append(y)
        torch.stack(rows[::-1]).backward(g)
        for x, z in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x.grad, z.grad, rtol=1e-12, atol=1e-12)


def test_gradients_in_float32(torch):
    a, b = (weights(torch, 6, 2).detach().float().requires_grad_() for _ in range(2))
    public.reverse_affine_scan(a, b).sum().backward()
    assert a.grad.dtype == b.grad.dtype == torch.float32


def test_nan_behind_a_cut_has_no_gradient(torch):
    a, b = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64), torch.tensor([1.0, 2.0, np.nan], dtype=torch.float64)
    a.requires_grad_(), b.requires_grad_()
    y = public.reverse_affine_scan(a, b)
    y[:2].sum().backward()
    assert y[:2].tolist() == [2.0, 2.0]
    assert a.grad[0] == 2.0 and b.grad[:2].tolist() == [1.0, 1.5] and b.grad[2] == 0.0


def test_double_backward_raises(torch):
    a, b = weights(torch, 4), weights(torch, 4)
    (grad,) = torch.autograd.grad(public.reverse_affine_scan(a, b).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_the_end_where_a_gradient_is_wanted(torch):
    a, b = weights(torch, 4), weights(torch, 4)
    for y_T, kind in ((np.ones(()), "a torch.Tensor like a, got a numpy.ndarray"), ([1.0], "an array, got list")):
        for x in (a, a.detach()):
            with pytest.raises(TypeError) as caught:
                public.reverse_affine_scan(x, b.detach(), y_T)
            assert str(caught.value) == f"reverse_affine_scan: y_T must be {kind}"


def test_out_and_gradients(torch):
    a, b = weights(torch, 4), weights(torch, 4)
    out = torch.full((4,), torch.nan, dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError), match="out"):
        public.reverse_affine_scan(a, b, out=out)
    assert out.isnan().all()
    with torch.no_grad():
        assert public.reverse_affine_scan(a, b, out=out) is out
        assert torch.equal(out, public.reverse_affine_scan(a, b))


@pytest.mark.parametrize("op", OPS)
def test_out_tells_autograd(torch, op):
    """A backward pass that kept what `out` held raises, as with torch's own operations in place."""
    p = problem(op, 6, 2, seed=1)
    out = tuple(torch.ones(6, 2, dtype=getattr(torch, name)) for name in dtypes_of(op, "float32"))
    w = torch.ones(6, 2, requires_grad=True)
    loss = (w * out[0]).sum()
    getattr(public, op)(**to_torch(torch, p.kwargs), out=out if len(out) > 1 else out[0])
    assert all(x._version == 1 for x in out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():  # whose tensors have no version
        frozen = tuple(torch.ones_like(x) for x in out)
        getattr(public, op)(**to_torch(torch, p.kwargs), out=frozen if len(out) > 1 else frozen[0])
    same_bits(frozen, out)


@pytest.mark.parametrize("op", FLAGGED)
def test_no_gradient_flows_through_the_others(torch, op):
    kwargs = to_torch(torch, problem(op, 6, 2, seed=1).kwargs)
    wanted = getattr(public, op)(**kwargs)
    for name in FLOATS[op]:
        if kwargs.get(name) is not None:
            kwargs[name] = kwargs[name].clone().requires_grad_()
    got = getattr(public, op)(**kwargs)
    assert not any(x.requires_grad for x in as_tuple(got))
    same_bits(got, wanted)


# ---- other kinds of arrays --------------------------------------------------------------------------------------


class Producer:
    """Nothing but the DLPack protocol."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class NamespaceProducer(Producer):
    """A library of the array API standard: results come back through its from_dlpack."""

    @classmethod
    def from_dlpack(cls, array):
        return cls(np.from_dlpack(array))

    def __array_namespace__(self):
        return type(self)


@pytest.mark.parametrize("op", OPS)
def test_dlpack_producers(kernels, op):
    p = problem(op, 9, 4, seed=8)
    wanted = as_tuple(call(kernels, op, p.kwargs))
    for kind in (Producer, NamespaceProducer):
        kwargs = {name: kind(x) if isinstance(x, np.ndarray) else x for name, x in p.kwargs.items()}
        got = as_tuple(call(kernels, op, kwargs))
        assert all(type(x) is (NamespaceProducer if kind is NamespaceProducer else np.ndarray) for x in got)
        same_bits(tuple(getattr(x, "array", x) for x in got), wanted)
        targets = [np.full_like(x, -7) for x in wanted]
        out = tuple(kind(x) for x in targets)
        out = out if len(out) > 1 else out[0]
        assert call(kernels, op, kwargs, out=out) is out
        same_bits(tuple(targets), wanted)


def test_jax_arrays(kernels):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    p = problem("gae", 9, 4, seed=8)
    kwargs = {name: jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x for name, x in p.kwargs.items()}
    got = call(kernels, "gae", kwargs)
    assert all(isinstance(x, jax.Array) for x in got)
    same_bits(got, call(kernels, "gae", p.kwargs))
    out = jax.numpy.zeros((2, 9, 4))
    with pytest.raises(ValueError, match=r"gae: out\[0\] must be writable"):
        call(kernels, "gae", kwargs, out=(out[0], out[1]))
    assert not np.asarray(out).any()


@pytest.mark.parametrize("op", OPS)
def test_no_reference_is_kept_or_lost(kernels, op):
    """Also on the error paths."""
    p = problem(op, 9, 4, seed=8)
    arrays = [x for x in p.kwargs.values() if isinstance(x, np.ndarray)]
    out = tuple(np.empty(p.shape, name) for name in dtypes_of(op, "float32"))
    out = out if len(out) > 1 else out[0]
    arrays += as_tuple(out)
    bad = dict(p.kwargs)
    bad[FLOATS[op][1]] = np.zeros(3, np.float32)

    def calls():
        call(kernels, op, p.kwargs)
        call(kernels, op, p.kwargs, out=out)
        with pytest.raises(ValueError):
            call(kernels, op, bad)
        with pytest.raises((TypeError, ValueError)):
            call(kernels, op, p.kwargs, out=[None])

    calls()
    before = [sys.getrefcount(x) for x in arrays]
    for _ in range(20):
        calls()
    assert [sys.getrefcount(x) for x in arrays] == before


NUMPY_ONLY = """
    import sys
    import numpy as np
    from fastrl.kernels import gae, reverse_affine_scan
    x, none = np.ones(5), np.zeros(5, bool)
    gae(x, x, x, none, none, gamma=0.9, lam=0.9)
    reverse_affine_scan(x, x, 1.0)
    try:
        gae([1.0], x, x, none, none, gamma=0.9, lam=0.9)
    except TypeError:
        pass
    assert "torch" not in sys.modules
    print("fine")
"""


def test_numpy_calls_do_not_import_torch():
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NUMPY_ONLY)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "fine"
