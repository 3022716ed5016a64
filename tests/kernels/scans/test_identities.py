"""What the scans must satisfy among themselves; NaN and infinity stay where they belong."""

from types import SimpleNamespace

import numpy as np
import pytest

from .problems import BOOTSTRAPS, CLIPS, FLAGGED, FLOATS, OPS, as_tuple, call, fit, oracle, problem, same_bits


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


def test_vtrace_advantages_that_weight_the_trace_with_lam(kernels, tolerance, shape, dtype):
    """With equal clips c vs - V is min(c, rho) (r + gamma [(1 - lam) V' + lam vs'] - V), vs' of the next step."""
    d = consistent(*shape, dtype=dtype)
    x, flags = (d.rewards, d.values, d.next_values), (d.terminated, d.truncated)
    log_rhos = (0.5 * d.rng.standard_normal(d.rewards.shape)).astype(dtype)
    vs, _ = kernels.scans.vtrace(*x, *flags, log_rhos, gamma=0.97, lam=0.9)
    r, v, nv, vs = (a.astype(np.float64) for a in (*x, vs))
    goes_on = ~(d.terminated | d.truncated)
    goes_on[-1] = False
    after = np.where(goes_on, np.concatenate([vs[1:], vs[:1]]), nv)
    target = r + 0.97 * ~d.terminated * (0.1 * nv + 0.9 * after)
    close(vs - v, np.minimum(1, np.exp(log_rhos.astype(np.float64))) * (target - v), tolerance, dtype)


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("N", [1, 3, 29])
def test_vtrace_of_extreme_ratios(kernels, tolerance, dtype, N):
    """A ratio beyond float64 is clipped like any other; one of 0 cuts the trace."""
    T = 40
    d = consistent(T, N, seed=3)
    log_rhos = np.random.default_rng(1).choice([-np.inf, -1e4, -709.5, -700.0, 0.0, 80.0, 709.5, 1e4, np.inf], (T, N))
    kwargs = {"gamma": 0.9, "lam": 0.95, **dict.fromkeys(CLIPS, 1.5)}
    arrays = {"rewards": d.rewards, "values": d.values, "next_values": d.next_values, "log_rhos": log_rhos}
    arrays = {name: x.astype(dtype) for name, x in arrays.items()}
    arrays |= {"terminated": d.terminated, "truncated": d.truncated}
    for x, y in zip(kernels.scans.vtrace(**arrays, **kwargs), oracle("vtrace", T, N, arrays | kwargs), strict=True):
        np.testing.assert_allclose(x, y, **tolerance(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vtrace_takes_ratios_as_they_are(kernels, tolerance, dtype):
    """T = 1, V = V' = 0, r = 1: the target is the ratio, over the whole range of the dtype; e^0 = 1 is exact."""
    widest = {"float32": 88.0, "float64": 700.0}[dtype]
    log_rhos = np.concatenate(([0.0], np.linspace(-widest, widest, 1001)))[None].astype(dtype)
    one, none = np.ones_like(log_rhos), np.zeros(log_rhos.shape, bool)
    for result in kernels.scans.vtrace(
        one, 0 * one, 0 * one, none, none, log_rhos, gamma=0.9, **dict.fromkeys(CLIPS, np.inf)
    ):
        np.testing.assert_allclose(result, np.exp(log_rhos.astype(np.float64)), rtol=tolerance(dtype)["rtol"])
        assert result[0, 0] == 1


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
