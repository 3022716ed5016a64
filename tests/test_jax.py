"""`fastrl.jax`: the compiled scans inside JAX programs give what they give NumPy arrays, to the last bit."""

import importlib
import re
import sys

import numpy as np
import pytest

import fastrl
from fastrl import _backend

jax = pytest.importorskip("jax", reason="jax is not installed")
if _backend._C is None:
    pytest.skip("needs the compiled extension", allow_module_level=True)
if _backend.CPU_BACKEND != "cpp":
    pytest.skip("compares with the compiled scans", allow_module_level=True)

import jax.numpy as jnp  # noqa: E402

import fastrl.jax as fj  # noqa: E402
from fastrl.kernels.scans import reference  # noqa: E402

# Of newer and older JAX.
enable_x64 = (jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")).enable_x64
CALLS = {
    "gae": (("values", "next_values"), {"gamma": 0.99, "lam": 0.95}),
    "lambda_returns": (("next_values",), {"gamma": 0.9, "lam": 0.5}),
    "discounted_returns": ((), {"gamma": 0.97}),
    "n_step_returns": (("next_values",), {"gamma": 0.99, "n": 3}),
    "vtrace": (("values", "next_values"), {"gamma": 0.99, "lam": 0.9, "rho_clip": 2.0, "c_clip": np.inf}),
    "off_policy_returns": (("q_values", "next_state_values", "traces"), {"gamma": 0.99}),
}
SHAPES = [(128, 8), (63, 1), (17,), (0, 3), (4, 0)]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with enable_x64(request.param == "float64"):
        yield request.param


def problem(op, shape, dtype, seed=0):
    """The arrays and the parameters of a call."""
    rng = np.random.default_rng(seed)
    floats, parameters = CALLS[op]
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name in ("rewards", *floats)}
    if op == "vtrace":
        arrays["log_rhos"] = rng.standard_normal(shape).astype(dtype) - 0.5
    for name in ("terminated", "truncated"):
        arrays[name] = rng.random(shape) < 0.1
    return arrays, parameters


def same(found, wanted):
    found, wanted = (x if isinstance(x, (tuple, list)) else (x,) for x in (found, wanted))
    assert all(isinstance(x, jax.Array) for x in found)
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype or (x.dtype, y.dtype) == (np.int32, np.int64)
        np.testing.assert_array_equal(x, y)
    return True


@pytest.mark.parametrize("op", CALLS)
def test_the_same_as_for_numpy(op, dtype):
    for shape in SHAPES:
        arrays, parameters = problem(op, shape, dtype)
        rng = np.random.default_rng(1)
        more = [{}, {"truncated": None}, {"mask": rng.random(shape) < 0.8}]
        if op == "n_step_returns":
            more += [{"cut": rng.random(shape) < 0.2, "mask": rng.random(shape) < 0.8}, {"next_values": None}]
        if op == "discounted_returns":
            more += [{"next_values": rng.standard_normal(shape).astype(dtype)}]
        for extra in more:
            wanted = getattr(fastrl.kernels, op)(**{**arrays, **extra}, **parameters)
            assert same(getattr(fj, op)(**{**arrays, **extra}, **parameters), wanted)
            if shape != (63, 1):  # compiling takes long
                continue

            def call(given, extra=extra, parameters=parameters):
                return getattr(fj, op)(**given, **{k: v for k, v in extra.items() if v is None}, **parameters)

            given = {k: jnp.asarray(v) for k, v in {**arrays, **extra}.items() if v is not None}
            assert same(jax.jit(call)(given), wanted)


@pytest.mark.parametrize("op", CALLS)
def test_vmap(op, dtype="float32"):
    parts = [problem(op, (9, 4), dtype, seed) for seed in range(6)]
    parameters = parts[0][1]
    stacked = {name: np.stack([arrays[name] for arrays, _ in parts]) for name in parts[0][0]}

    def call(arrays):
        return getattr(fj, op)(**arrays, **parameters)

    each = [call(arrays) for arrays, _ in parts]
    wanted = jax.tree.map(lambda *x: np.stack(x), *each)
    assert same(jax.vmap(call)(stacked), wanted)
    nested = {name: x.reshape(2, 3, 9, 4) for name, x in stacked.items()}
    found = jax.jit(jax.vmap(jax.vmap(call)))(nested)
    assert same(jax.tree.map(lambda x: x.reshape(6, 9, 4), found), wanted)
    # Only the rewards are batched, and not along the first axis.
    others = {name: x for name, x in parts[0][0].items() if name != "rewards"}
    rewards = np.moveaxis(stacked["rewards"], 0, 1)
    found = jax.vmap(lambda r: call({"rewards": r, **others}), in_axes=1)(rewards)
    each = [call({"rewards": r, **others}) for r in stacked["rewards"]]
    assert same(found, jax.tree.map(lambda *x: np.stack(x), *each))


def test_scan_donated_and_transposed_arrays(dtype):
    arrays, parameters = problem("gae", (16, 5), dtype)
    wanted = fastrl.gae(**arrays, **parameters)

    def body(carry, _):
        advantages, returns = fj.gae(**arrays, **parameters)
        return carry + 1, (advantages, returns)

    count, results = jax.lax.scan(body, 0, length=3)
    assert count == 3 and all(same(tuple(x[i] for x in results), wanted) for i in range(3))
    transposed = {name: jnp.asarray(np.ascontiguousarray(x.T)) for name, x in arrays.items()}
    assert same(fj.gae(**{name: x.T for name, x in transposed.items()}, **parameters), wanted)
    donating = jax.jit(lambda rewards, rest: fj.gae(rewards, **rest, **parameters), donate_argnums=0)
    rest = {name: jnp.asarray(x) for name, x in arrays.items() if name != "rewards"}
    assert same(donating(jnp.array(arrays["rewards"]), rest), wanted)


def test_flags_of_other_dtypes():
    arrays, parameters = problem("gae", (16, 5), "float32")
    wanted = fastrl.gae(**arrays, **parameters)
    for flag in (np.float32, np.int32, np.uint8):
        numbers = {name: x.astype(flag) if x.dtype == np.bool_ else x for name, x in arrays.items()}
        assert same(fj.gae(**numbers, **parameters), wanted)


def test_what_lies_beyond_an_end_reaches_nothing():
    arrays, parameters = problem("gae", (4, 1), "float32")
    arrays["terminated"][1], arrays["next_values"][1], arrays["rewards"][2] = True, np.nan, np.nan
    advantages, _ = fj.gae(**arrays, **parameters)
    assert np.isfinite(advantages[:2]).all() and np.isnan(advantages[2])
    zero = fj.gae(**arrays, **{**parameters, "lam": 1e-60})
    assert same(zero, fastrl.gae(**arrays, **{**parameters, "lam": 1e-60}))


def test_numbers_below_the_normal_ones(dtype):
    arrays, parameters = problem("gae", (16, 5), dtype)
    tiny = {name: x * np.finfo(dtype).smallest_normal / 8 if x.dtype == dtype else x for name, x in arrays.items()}
    assert same(fj.gae(**tiny, **parameters), fastrl.gae(**tiny, **parameters))


def test_no_gradient_flows_through_targets():
    arrays, parameters = problem("gae", (6, 2), "float32")

    def loss(values):
        advantages, returns = fj.gae(**{**arrays, "values": values}, **parameters)
        return ((returns - values) ** 2).sum() + advantages.sum()

    _, returns = fj.gae(**arrays, **parameters)
    found = jax.jit(jax.grad(loss))(arrays["values"])
    np.testing.assert_allclose(found, -2 * (np.asarray(returns) - arrays["values"]), rtol=1e-5)


def plain(a, b, y_T):
    def step(y, x):
        y = x[1] + x[0] * y
        return y, y

    return jax.lax.scan(step, y_T, (a, b), reverse=True)[1]


@pytest.mark.parametrize("shape", [(7, 3), pytest.param((5,), marks=pytest.mark.slow)])
def test_the_gradients_of_reverse_affine_scan(shape):
    rng = np.random.default_rng(0)
    with enable_x64(True):
        a, b, w = (jnp.asarray(rng.standard_normal(shape)) for _ in range(3))
        y_T = jnp.asarray(rng.standard_normal(shape[1:]))
        np.testing.assert_allclose(fj.reverse_affine_scan(a, b, y_T), plain(a, b, y_T), rtol=1e-12)
        np.testing.assert_allclose(
            fj.reverse_affine_scan(a, b), fastrl.reverse_affine_scan(np.asarray(a), np.asarray(b)), rtol=0
        )

        def gradients(scan):
            loss = lambda *x: (w * jnp.sin(scan(*x))).sum()  # noqa: E731
            first = jax.grad(loss, (0, 1, 2))
            second = jax.grad(lambda *x: (first(*x)[0] ** 2).sum(), (0, 1, 2))
            return jax.jit(first)(a, b, y_T), second(a, b, y_T)

        for x, y in zip(*map(jax.tree.leaves, map(gradients, (fj.reverse_affine_scan, plain))), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
        batched = jax.vmap(jax.grad(lambda a: fj.reverse_affine_scan(a, b).sum()))(jnp.stack([a, 2 * a]))
        np.testing.assert_allclose(batched[1], jax.grad(lambda a: plain(a, b, 0 * y_T).sum())(2 * a), rtol=1e-9)


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"gamma": 1.5}, ValueError, "gae: gamma must be in [0, 1], got 1.5"),
        ({"lam": np.nan}, ValueError, "gae: lam must be in [0, 1], got nan"),
        ({"gamma": "a"}, TypeError, "gae: gamma must be a float, got str"),
        ({"gamma": True}, TypeError, "gae: gamma must be a float, got bool"),
        ({"values": np.zeros((6, 3), np.float32)}, ValueError, "gae: values must have shape (6, 2) like rewards"),
        ({"values": np.zeros((6, 2), np.float16)}, ValueError, "gae: values must have dtype float32 or float64, got"),
        ({"rewards": np.zeros((6, 2), np.int32)}, ValueError, "gae: rewards must have dtype float32 or float64, got"),
        ({"rewards": np.zeros((6, 2, 1), np.float32)}, ValueError, "gae: rewards must have shape [T] or [T, N], got"),
        ({"terminated": np.zeros(6, bool)}, ValueError, "gae: terminated must have shape (6, 2) like rewards"),
        ({"terminated": None}, TypeError, "gae: terminated must be an array, got NoneType"),
        ({"values": "x"}, TypeError, "gae: values must be an array, got str"),
    ],
)  # fmt: skip
def test_errors(change, error, text):
    arrays, parameters = problem("gae", (6, 2), "float32")
    with pytest.raises(error, match=re.escape(text)):
        fj.gae(**{**arrays, **parameters, **change})


def test_more_errors():
    arrays, parameters = problem("gae", (6, 2), "float32")
    with pytest.raises(TypeError, match="gae: gamma must be a Python number, fixed when tracing; got a tracer"):
        jax.jit(lambda gamma: fj.gae(**arrays, gamma=gamma, lam=0.9))(0.9)
    with enable_x64(True), pytest.raises(ValueError, match="values must have dtype float32 like rewards"):
        fj.gae(**{**arrays, "values": arrays["values"].astype(np.float64)}, **parameters)
    arrays, parameters = problem("n_step_returns", (6, 2), "float32")
    for n, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="n_step_returns: n must be"):
            fj.n_step_returns(**arrays, gamma=0.9, n=n)
    with pytest.raises(ValueError, match=r"reverse_affine_scan: y_T must have shape \(2,\) like b\[0\], got \(3,\)"):
        fj.reverse_affine_scan(jnp.ones((6, 2)), jnp.ones((6, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match="vtrace: rho_clip must be >= 0, got -1.0"):
        arrays, parameters = problem("vtrace", (6, 2), "float32")
        fj.vtrace(**arrays, **{**parameters, "rho_clip": -1})


def test_a_jax_without_ffi(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.ffi", None)
    monkeypatch.delattr(jax, "ffi", raising=False)
    monkeypatch.delitem(sys.modules, "fastrl.jax")
    with pytest.raises(
        ImportError, match=r"fastrl.jax needs JAX with jax.ffi, which came with 0.5 \(pip install jax\)"
    ):
        importlib.import_module("fastrl.jax")


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_tracer_where_an_array_is_wanted(backend):
    gae = fastrl.gae if backend == "cpp" else reference.gae
    arrays, parameters = problem("gae", (6, 2), "float32")
    more = {} if backend == "cpp" else {"mask": None, "out": None}
    text = (
        "gae: rewards could not be read through DLPack (DynamicJaxprTracer): inside jax.jit and the like use fastrl.jax"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        jax.jit(lambda rewards: gae(**{**arrays, "rewards": rewards}, **parameters, **more))(arrays["rewards"])
