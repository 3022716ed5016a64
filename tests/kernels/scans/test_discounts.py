"""n-step windows of any length at one cost, and discounts that underflow: what lies behind one reaches nothing."""

import math
import time

import numpy as np
import pytest

import fastrl


def windows(r, nv, ends, gamma, n):
    """The returns of windows of n steps by their definition; `ends`: episodes end here, terminated."""
    T = len(r)
    powers = np.array([gamma**k for k in range(T + 2)])
    powers[powers.astype(r.dtype) == 0] = 0
    returns, discounts, last = np.zeros(T), np.zeros(T), np.zeros(T, np.int64)
    for t in range(T):
        stop = min(t + n, T)
        end = next((k for k in range(t, stop) if ends[k]), stop - 1)
        m = end - t + 1
        terms = [powers[k] * float(r[t + k]) for k in range(m) if powers[k]]
        discounts[t] = 0 if ends[end] else powers[m]
        if discounts[t]:
            terms.append(discounts[t] * float(nv[end]))
        returns[t], last[t] = math.fsum(terms), end
    return returns, discounts, last


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gamma", [1.0, 0.999, 0.9, 0.5])
@pytest.mark.parametrize("n", [1, 5, 6, 7, 8, 31, 64, 100, 299, 300, 301, 10**6, 2**62])
def test_windows_of_any_length(kernels, dtype, gamma, n):
    rng = np.random.default_rng(n % 1000)
    T, N = 300, 3
    r, nv = rng.standard_normal((2, T, N)).astype(dtype)
    ends = np.zeros((T, N), bool)
    ends[::50, 1], ends[130, 2] = True, True
    nv[ends] = np.nan
    never = np.zeros((T, N), bool)
    kept = [x.tobytes() for x in (r, nv, ends)]
    got = kernels.scans.n_step_returns(r, nv, ends, never, gamma=gamma, n=n)
    assert [x.tobytes() for x in (r, nv, ends)] == kept
    rtol, atol = (1e-6, 2e-6) if dtype == np.float32 else (1e-12, 1e-12)
    for i in range(N):
        returns, discounts, last = windows(r[:, i], nv[:, i], ends[:, i], gamma, n)
        np.testing.assert_allclose(got[0][:, i], returns, rtol=rtol, atol=atol)
        np.testing.assert_allclose(got[1][:, i], discounts.astype(dtype), rtol=rtol)
        np.testing.assert_array_equal(got[2][:, i], last)
        alone = kernels.scans.n_step_returns(r[:, i], nv[:, i], ends[:, i], never[:, i], gamma=gamma, n=n)
        for x, y in zip(alone, got, strict=True):
            np.testing.assert_allclose(x, y[:, i], rtol=1e-6 if dtype == np.float32 else 1e-13, atol=rtol)


@pytest.mark.parametrize("layout", ["batch-major", "every second", "out"])
def test_long_windows_in_other_memory(kernels, layout):
    rng = np.random.default_rng(5)
    T, N, n = 90, 19, 25
    r, nv = rng.standard_normal((2, T, N))
    ends, mask, cut = rng.random((3, T, N)) < 0.02
    mask = ~mask
    r[~mask] = nv[~mask] = np.nan
    arrays = [r, nv, ends, np.zeros_like(ends), cut, mask]

    def call(r, nv, ends, never, cut, mask, out=None):
        return kernels.scans.n_step_returns(r, nv, ends, never, gamma=0.97, n=n, cut=cut, mask=mask, out=out)

    wanted = [call(*[np.ascontiguousarray(x[:, i]) for x in arrays]) for i in range(N)]
    if layout == "batch-major":
        got = call(*map(np.asfortranarray, arrays))
    elif layout == "every second":
        got = call(*[np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2] for x in arrays])
    else:
        out = tuple(np.full((2 * T, 2 * N), -5, d)[::2, ::-2] for d in (np.float64, np.float64, np.int64))
        got = call(*arrays, out=out)
        assert got is out
        assert all((x.base.base if x.base.base is not None else x.base)[1::2].max() == -5 for x in out)
    for i in range(N):
        for x, y in zip(got, wanted[i], strict=True):
            np.testing.assert_allclose(x[:, i], y, rtol=1e-13, atol=1e-13)


def test_a_long_window_is_exact_after_large_rewards(kernels):
    """No sum is taken apart again: what has left the window leaves no rounding behind."""
    r = np.full(400, 1e-8)
    r[350:] = 1e12
    zero, never = np.zeros(400), np.zeros(400, bool)
    for gamma in (1.0, 0.9):
        got = kernels.scans.n_step_returns(r, zero, never, never, gamma=gamma, n=100)[0]
        wanted = math.fsum(gamma**k * 1e-8 for k in range(100))
        np.testing.assert_allclose(got[:251], wanted, rtol=1e-13)


def test_a_long_window_does_not_take_longer():
    """4 * 10^8 rewards in all windows: minutes, if each were summed by itself."""
    T, n = 40_000, 20_000
    r, never = np.ones(T), np.zeros(T, bool)
    begun = time.process_time()
    returns, _, last = fastrl.n_step_returns(r, None, never, never, gamma=1.0, n=n)
    np.testing.assert_array_equal(returns, np.minimum(np.arange(T, 0, -1), n))
    np.testing.assert_array_equal(last, np.minimum(np.arange(T) + n, T) - 1)
    assert time.process_time() >= begun  # how long it took is what bench/ says


# ---- 0 times x is 0 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [np.inf, -np.inf, np.nan])
def test_nothing_behind_a_discount_that_underflows_reaches_the_return(kernels, x):
    no = np.zeros(2, bool)
    got = kernels.scans.n_step_returns(np.ones(2), np.array([0, x]), no, no, gamma=1e-200, n=2)
    assert got[0][0] == 1.0 and got[1][0] == 0.0 and got[2][0] == 1
    # float32: 0.8^500 is 0 there.
    T = 700
    r, nv, no = np.ones((T, 2), np.float32), np.zeros((T, 2), np.float32), np.zeros((T, 2), bool)
    r[600, 0], nv[600, 0] = x, x
    for n in (500, 5000):
        returns, discounts, last = kernels.scans.n_step_returns(r, nv, no, no, gamma=0.8, n=n)
        np.testing.assert_array_equal(discounts[0], 0)
        np.testing.assert_allclose(returns[:100], 5.0, rtol=1e-6)
        assert not np.isfinite(returns[599, 0])
        np.testing.assert_array_equal(last[:, 1], np.minimum(np.arange(T) + n, T) - 1)


@pytest.mark.parametrize("x", [np.inf, np.nan])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_gamma_0_is_the_reward_alone(kernels, x, n):
    r, nv, no = np.ones((50, 3)), np.full((50, 3), x), np.zeros((50, 3), bool)
    r[10] = x
    returns, discounts, last = kernels.scans.n_step_returns(r, nv, no, no, gamma=0.0, n=n)
    np.testing.assert_array_equal(returns, r)
    np.testing.assert_array_equal(discounts, 0)
    np.testing.assert_array_equal(last[:, 0], np.minimum(np.arange(50) + n, 50) - 1)


@pytest.mark.parametrize("N", [1, 2, 9, 40])
@pytest.mark.parametrize("x", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    "dtype, gamma, lam",
    [(dtype, *x) for dtype in (np.float32, np.float64) for x in ((0.0, 1.0), (0.0, 0.0), (0.9, 0.0))]
    + [(np.float32, 1e-60, 0.5), (np.float32, 1e-30, 1e-30), (np.float64, 1e-200, 1e-200)],
)
def test_what_a_discount_of_0_is_multiplied_by_does_not_matter(kernels, dtype, gamma, lam, x, N):
    """gamma, lam or their product is 0, if only in the dtype of the arrays: step 5 reaches no step before it."""
    T = 12
    one, no = np.ones((T, N), dtype), np.zeros((T, N), bool)
    bad = one.copy()
    bad[5] = x
    with_trace = {"gamma": gamma, "lam": lam}
    rounded = float(dtype(gamma)) if float(dtype(gamma)) == 0 else gamma
    delta = 1.0 + rounded - 1.0
    advantages, returns = kernels.scans.gae(bad, one, one, no, no, **with_trace)
    np.testing.assert_allclose(advantages[:5], delta, atol=1e-7)
    np.testing.assert_allclose(returns[:5], 1 + delta, atol=1e-7)
    got = kernels.scans.lambda_returns(bad, one, no, no, **with_trace)
    np.testing.assert_allclose(got[:5], 1 + rounded, atol=1e-7)
    vs, pg = kernels.scans.vtrace(bad, one, one, no, no, 0 * one, **with_trace)
    np.testing.assert_allclose(vs[:5], 1 + delta, atol=1e-7)
    np.testing.assert_allclose(pg[:4], delta * (1 + rounded), atol=1e-7)
    if rounded == 0:
        for got in (
            kernels.scans.gae(one, one, bad, no, no, **with_trace)[0] + 1,
            kernels.scans.lambda_returns(one, bad, no, no, **with_trace),
            kernels.scans.discounted_returns(bad, no, no, gamma=gamma, next_values=bad)[:5],
            kernels.scans.n_step_returns(one, bad, no, no, gamma=gamma, n=3)[0],
            kernels.scans.off_policy_returns(one, one, bad, one, no, no, gamma=gamma),
            kernels.scans.off_policy_returns(bad, bad, bad, bad, no, no, gamma=gamma)[:5],
            kernels.scans.vtrace(one, one, bad, no, no, 0 * one, **with_trace)[0],
        ):
            np.testing.assert_allclose(got, 1, atol=1e-7)


@pytest.mark.parametrize("N", [1, 2, 9, 40])
@pytest.mark.parametrize("name", ["rewards", "next_values"])
@pytest.mark.parametrize("x", [np.inf, -np.inf, np.nan])
def test_a_ratio_of_0_takes_nothing_in(kernels, N, name, x):
    """rho = exp(-inf): vs = V and no advantage, whatever the delta; and the steps before it take nothing in."""
    T = 12
    rng = np.random.default_rng(0)
    r, v, nv, log_rhos = (rng.standard_normal((T, N)) for _ in range(4))
    no = np.zeros((T, N), bool)
    log_rhos[5] = -np.inf
    wanted = kernels.scans.vtrace(r, v, nv, no, no, log_rhos, gamma=0.9)
    (r if name == "rewards" else nv)[5] = x
    got = kernels.scans.vtrace(r, v, nv, no, no, log_rhos, gamma=0.9)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got[0][5], v[5])
    np.testing.assert_array_equal(got[1][5], 0)
    clipped = kernels.scans.vtrace(r, v, nv, no, no, 0 * v, gamma=0.9, rho_clip=0.0, c_clip=0.0, pg_rho_clip=0.0)
    np.testing.assert_array_equal(clipped[0], v)
    np.testing.assert_array_equal(clipped[1], 0)


@pytest.mark.parametrize("x", [np.inf, np.nan])
def test_n_step_gather_agrees(x):
    from fastrl.kernels.n_step_gather import n_step_gather_reference

    T = 700
    r, nv, no = np.ones((T, 1), np.float32), np.full((T, 1), x, np.float32), np.zeros((T, 1), bool)
    r[600] = x
    index = np.array([0, 3, 90])
    for gather in (fastrl.n_step_gather, n_step_gather_reference):
        returns, discounts, last = gather(
            r, no, None, index, 0, T, gamma=np.array(0.8), n=np.int64(550), next_values=nv
        )
        np.testing.assert_allclose(returns, 5, rtol=1e-6)
        np.testing.assert_array_equal(discounts, 0)
        np.testing.assert_array_equal(last, index + 549)
