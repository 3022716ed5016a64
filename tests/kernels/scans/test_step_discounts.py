"""`discounts` of each step in place of gamma, array `lam`, and values of T + 1 steps."""

from types import SimpleNamespace

import numpy as np
import pytest

import fastrl
from fastrl.kernels import scans

OPS = ["gae", "discounted_returns", "lambda_returns", "vtrace", "off_policy_returns"]
WITH_LAM = ["gae", "lambda_returns", "vtrace"]


@pytest.fixture
def public(kernels, monkeypatch):
    """The public functions on each backend."""
    served = SimpleNamespace(of=lambda first: kernels.scans.backend)
    monkeypatch.setattr(scans, "backend", served)
    monkeypatch.setattr(scans.discounts, "backend", served)


def problem(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    names = ("rewards", "values", "next_values", "log_rhos", "q_values", "next_state_values", "traces")
    p = {name: rng.standard_normal(shape).astype(dtype) for name in names}
    p["traces"] = np.abs(p["traces"])
    p |= {name: rng.random(shape) < 0.1 for name in ("terminated", "truncated")}
    p["mask"] = rng.random(shape) < 0.9
    return p


def call(op, p, **settings):
    names = {
        "gae": ("rewards", "values", "next_values", "terminated", "truncated"),
        "discounted_returns": ("rewards", "terminated", "truncated"),
        "lambda_returns": ("rewards", "next_values", "terminated", "truncated"),
        "vtrace": ("rewards", "values", "next_values", "terminated", "truncated", "log_rhos"),
        "off_policy_returns": ("rewards", "q_values", "next_state_values", "traces", "terminated", "truncated"),
    }[op]
    if op == "discounted_returns":
        settings = {"next_values": p["next_values"], **settings}
    if op in WITH_LAM:
        settings = {"lam": 0.8, **settings}
    found = getattr(fastrl, op)(*[p[name] for name in names], mask=p["mask"], **settings)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(33, 5), (40,), (7, 1), (1, 3), (0, 4), (4, 0)], ids=str)
def test_constant_discounts_are_gamma(public, op, dtype, shape):
    p = problem(shape, dtype)
    discounts = np.where(p["terminated"], 0, 0.9).astype(dtype)
    wanted = call(op, p, gamma=0.9)
    lams = {"lam": np.full(shape, 0.8, dtype)} if op in WITH_LAM else {}
    for found in (
        call(op, p, discounts=discounts),
        call(op, {**p, "terminated": None}, discounts=discounts, **lams),
        call(op, p, gamma=0.9, **lams),
    ):
        for x, y in zip(found, wanted, strict=True):
            assert x.dtype == dtype and x.shape == shape
            np.testing.assert_allclose(
                x, y, rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-5 if dtype == "float32" else 1e-12
            )


def gae_oracle(p, discounts, lam):
    T, N = discounts.shape
    advantages = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            total, weight = 0.0, 1.0
            for k in range(t, T):
                total += weight * (p["rewards"][k, n] + discounts[k, n] * p["next_values"][k, n] - p["values"][k, n])
                weight *= discounts[k, n] * lam[k, n]
                if p["truncated"][k, n] or weight == 0:
                    break
            advantages[t, n] = total
    return advantages


def test_discounts_and_lam_of_each_step(public):
    p = problem((23, 4), "float64", 1)
    rng = np.random.default_rng(2)
    discounts, lam = rng.random((2, 23, 4))
    discounts[rng.random((23, 4)) < 0.1] = 0
    p["mask"], p["terminated"] = np.ones((23, 4), bool), None
    p["next_values"][:-1] = p["values"][1:]  # or advantages + values are no lambda returns
    advantages, returns = call("gae", p, discounts=discounts, lam=lam)
    np.testing.assert_allclose(advantages, gae_oracle(p, discounts, lam), rtol=1e-12, atol=1e-12)
    (lambda_returns,) = call("lambda_returns", p, discounts=discounts, lam=lam)
    np.testing.assert_allclose(lambda_returns, returns, rtol=1e-12, atol=1e-12)
    # On-policy, V-trace is the lambda return, and so is the off-policy return with V for Q and lam for the trace.
    p["log_rhos"] = np.zeros((23, 4))
    vs, _ = call("vtrace", p, discounts=discounts, lam=lam)
    np.testing.assert_allclose(vs, returns, rtol=1e-12, atol=1e-12)
    p["next_state_values"] = p["next_values"]
    p["q_values"] = np.vstack([p["values"][:1], p["next_values"][:-1]])
    p["traces"] = np.vstack([lam[:1], lam[:-1]])
    (off_policy,) = call("off_policy_returns", p, discounts=discounts)
    np.testing.assert_allclose(off_policy, returns, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 40, 2**40])
@pytest.mark.parametrize("next_values", [True, False])
def test_n_step_returns(public, dtype, n, next_values):
    p = problem((33, 5), dtype, 9)
    after = p["next_values"] if next_values else None
    cut = np.random.default_rng(10).random((33, 5)) < 0.1
    settings = {"n": n, "cut": cut, "mask": p["mask"]}
    wanted = fastrl.n_step_returns(p["rewards"], after, p["terminated"], p["truncated"], gamma=0.9, **settings)
    discounts = np.where(p["terminated"], 0, 0.9).astype(dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for terminated in (p["terminated"], None):
        found = fastrl.n_step_returns(p["rewards"], after, terminated, p["truncated"], discounts=discounts, **settings)
        for x, y in zip(found, wanted, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 64])
def test_n_step_returns_of_varying_discounts(public, n):
    rng = np.random.default_rng(11)
    r, nv, discounts = rng.random((3, 20))
    discounts[[4, 11]] = 0
    r[12], nv[4], nv[11] = np.nan, np.nan, np.nan
    truncated = np.arange(20) == 16
    returns, factors, last = fastrl.n_step_returns(r, nv, None, truncated, discounts=discounts, n=n)
    for t in range(20):
        total, weight, k = 0.0, 1.0, t
        while True:
            total, weight = total + weight * r[k], weight * discounts[k]
            if k == 19 or k - t + 1 == n or truncated[k] or weight == 0:
                break
            k += 1
        total += weight * nv[k] if weight else 0
        np.testing.assert_allclose((returns[t], factors[t], last[t]), (total, weight, k), rtol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_nothing_passes_a_discount_of_0(public, op):
    p = problem((12, 2), "float64", 3)
    p["terminated"], p["truncated"], p["mask"] = None, None, np.ones((12, 2), bool)
    discounts = np.full((12, 2), 0.9)
    discounts[5] = 0
    wanted = call(op, p, discounts=discounts)
    for name in ("rewards", "values", "log_rhos", "q_values", "traces", "next_values", "next_state_values"):
        p[name] = p[name].copy()
        p[name][5 if name.startswith("next") else 6] = np.nan
    found = call(op, p, discounts=discounts)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x[:6], y[:6])


@pytest.mark.parametrize("op", OPS)
def test_torch_and_out(public, op):
    torch = pytest.importorskip("torch")
    p = problem((9, 3), "float32", 4)
    discounts = np.full((9, 3), 0.7, np.float32)
    wanted = call(op, p, discounts=discounts)
    tensors = {name: torch.from_numpy(x) for name, x in p.items()}
    found = call(op, tensors, discounts=torch.from_numpy(discounts))
    out = tuple(torch.full((9, 3), 7.0) for _ in wanted)
    given = call(op, tensors, discounts=torch.from_numpy(discounts), out=out if len(out) > 1 else out[0])
    for x, y, o, z in zip(found, wanted, out, given, strict=True):
        assert torch.equal(x, torch.from_numpy(y)) and torch.equal(o, x) and z is o


@pytest.mark.parametrize(
    "settings, error, text",
    [
        ({"gamma": 0.9, "discounts": np.ones((4, 2))}, ValueError, "gae: gamma must be None where discounts are given"),
        ({}, TypeError, "gae: gamma must be a float, got NoneType"),
        ({"discounts": np.ones((4, 3))}, ValueError, r"gae: discounts must have shape \(4, 2\) like rewards"),
        ({"discounts": np.ones((4, 2), np.float32)}, ValueError, "gae: discounts must have dtype float64 like rewards"),
        ({"discounts": np.full((4, 2), 1.5)}, ValueError, r"gae: discounts\[0, 0\] is 1.5, must be in \[0, 1\]"),
        ({"discounts": 0.9}, TypeError, "gae: discounts must be an array, got float"),
        ({"gamma": 0.9, "lam": np.full((4, 2), np.nan)}, ValueError, r"gae: lam\[0, 0\] is nan, must be in \[0, 1\]"),
        ({"gamma": 0.9, "lam": np.ones(4)}, ValueError, r"gae: lam must have shape \(4, 2\) like rewards"),
    ],
)
def test_errors(public, settings, error, text):
    p = problem((4, 2), "float64", 5)
    out = np.full((4, 2), 7.0), np.full((4, 2), 7.0)
    with pytest.raises(error, match=text):
        call("gae", p, out=out, **settings)
    assert all((x == 7).all() for x in out)


def test_no_termination_without_discounts(public):
    p = problem((4, 2), "float64", 6)
    with pytest.raises(TypeError, match="gae: terminated must be an array, got NoneType"):
        call("gae", {**p, "terminated": None}, gamma=0.9)


def test_lambda_returns_need_next_values(public):
    p = {**problem((4, 2), "float64", 6), "next_values": None}
    for settings in ({"discounts": np.ones((4, 2)), "lam": 0.9}, {"gamma": 0.9, "lam": np.ones((4, 2))}):
        with pytest.raises(TypeError, match="lambda_returns: next_values must be an array, got NoneType"):
            call("lambda_returns", p, **settings)


@pytest.mark.parametrize("op", ["gae", "vtrace"])
def test_values_of_one_step_more(public, op):
    p = problem((6, 2), "float64", 7)
    values = np.random.default_rng(8).standard_normal((7, 2))
    wanted = call(op, {**p, "values": values[:-1], "next_values": values[1:]}, gamma=0.9)
    found = call(op, {**p, "values": values, "next_values": None}, gamma=0.9)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(TypeError, match=f"{op}: next_values must be an array, got NoneType"):
        call(op, {**p, "next_values": None}, gamma=0.9)


@pytest.mark.slow
def test_under_compile():
    """They end the graph."""
    torch = pytest.importorskip("torch")
    rewards, discounts = torch.rand(4, 2), torch.rand(4, 2)

    def returns(x, y):
        return fastrl.discounted_returns(x, None, None, discounts=y)

    assert torch.equal(torch.compile(returns, backend="eager")(rewards, discounts), returns(rewards, discounts))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("array_lam", [False, True])
def test_vtraces_advantages_with_lam(public, dtype, array_lam):
    """min(pg_rho_clip, rho_t) (r_t + gamma (V'_t + lam e_{t+1}) - V_t), by e of the targets of plain loops."""
    shape, clips = (23, 4), {"rho_clip": 1.3, "c_clip": 0.8, "pg_rho_clip": 0.9}
    p = problem(shape, dtype, 3)
    lam = np.random.default_rng(1).random(shape).astype(dtype) if array_lam else 0.7
    each = np.broadcast_to(lam, shape).astype(np.float64)
    rho = np.exp(p["log_rhos"].astype(np.float64))
    e, wanted = np.zeros((shape[0] + 1, shape[1])), np.zeros(shape)
    for n in range(shape[1]):
        for t in reversed(range(shape[0])):
            if not p["mask"][t, n]:
                continue
            value = float(p["values"][t, n])
            follows = 0.0 if p["terminated"][t, n] else 0.9 * float(p["next_values"][t, n])
            ends = p["terminated"][t, n] or p["truncated"][t, n] or t + 1 == shape[0] or not p["mask"][t + 1, n]
            after = 0.0 if ends else 0.9 * each[t, n] * e[t + 1, n]
            delta = float(p["rewards"][t, n]) + follows - value
            e[t, n] = min(1.3, rho[t, n]) * delta + min(0.8, rho[t, n]) * after
            wanted[t, n] = min(0.9, rho[t, n]) * (delta + after)
    vs, advantages = call("vtrace", p, gamma=0.9, lam=lam, pg_lam=True, **clips)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(vs, np.where(p["mask"], p["values"] + e[:-1], 0), **close)
    np.testing.assert_allclose(advantages, wanted, **close)
    assert advantages.dtype == dtype
    turned = {name: np.ascontiguousarray(x.T) for name, x in p.items()}
    again = call("vtrace", turned, gamma=0.9, lam=lam.T if array_lam else lam, pg_lam=True, layout="NT", **clips)[1]
    np.testing.assert_array_equal(again, advantages.T)


def test_vtraces_advantages_on_policy_are_gaes(public):
    p = problem((17, 3), "float64", 4)
    p["log_rhos"][:] = 0
    found = call("vtrace", p, gamma=0.95, lam=0.6, pg_lam=True)[1]
    np.testing.assert_allclose(found, call("gae", p, gamma=0.95, lam=0.6)[0], rtol=1e-12, atol=1e-12)
    one = [call("vtrace", p, gamma=0.95, lam=1.0, pg_lam=how)[1] for how in (False, True)]
    np.testing.assert_allclose(*one, rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match="vtrace: pg_lam must be a bool, got ndarray"):
        call("vtrace", p, gamma=0.95, pg_lam=p["rewards"])
