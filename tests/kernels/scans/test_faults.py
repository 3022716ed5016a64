"""Mistakes about episode ends that other libraries have made, each by name, against numbers worked out by hand."""

import numpy as np
import pytest

F, T = False, True
GAMMA = 0.5


def column(*x):
    return np.array(x, np.float64)


def flags(*x):
    return np.array(x, bool)


NONE = flags(F, F, F, F, F, F)
REWARDS = column(1, 2, 4, 8, 16, 32)
NEXT = column(100, 200, 300, 400, 500, 600)


@pytest.fixture(params=[1, 2, 5, 17], ids=lambda n: f"N={n}")
def repeat(request):
    """The same rollout in N environments side by side: narrow and wide arrays take different ways."""

    def make(x, N=request.param):
        return x.copy() if N == 1 else np.repeat(x[:, None], N, 1)

    return make


def equal(got, wanted, repeat):
    np.testing.assert_allclose(got, repeat(column(*wanted)), rtol=1e-15)


# ---- 1. n-step returns and the ends of episodes ------------------------------------------------------------------


def test_n_step_does_not_cross_an_episode_end(kernels, repeat):
    """The end is inside the window, not at its last step."""
    terminated = flags(F, T, F, F, F, F)
    returns, discounts, last = kernels.scans.n_step_returns(
        *map(repeat, (REWARDS, NEXT, terminated, NONE)), gamma=GAMMA, n=4
    )
    equal(returns, [1 + 1, 2, 4 + 4 + 4 + 4 + 600 / 16, 8 + 8 + 8 + 600 / 8, 16 + 16 + 600 / 4, 32 + 600 / 2], repeat)
    equal(discounts, [0, 0, 1 / 16, 1 / 8, 1 / 4, 1 / 2], repeat)
    np.testing.assert_array_equal(last, repeat(np.array([1, 1, 5, 5, 5, 5])))


def test_n_step_keeps_the_tail_of_every_episode(kernels, repeat):
    """The last n - 1 steps of an episode start returns too, shorter ones, terminated or truncated."""
    terminated, truncated = flags(F, F, T, F, F, F), flags(F, F, F, F, F, T)
    returns, discounts, last = kernels.scans.n_step_returns(
        *map(repeat, (REWARDS, NEXT, terminated, truncated)), gamma=GAMMA, n=3
    )
    equal(returns, [1 + 1 + 1, 2 + 2, 4, 8 + 8 + 8 + 600 / 8, 16 + 16 + 600 / 4, 32 + 600 / 2], repeat)
    equal(discounts, [0, 0, 0, 1 / 8, 1 / 4, 1 / 2], repeat)
    np.testing.assert_array_equal(last, repeat(np.array([2, 2, 2, 5, 5, 5])))


def test_n_step_stops_at_every_kind_of_end(kernels, repeat):
    """Two ends inside one window: the first counts."""
    terminated, truncated = flags(F, F, T, F, F, F), flags(F, T, F, F, F, F)
    returns, _, last = kernels.scans.n_step_returns(
        *map(repeat, (REWARDS, NEXT, terminated, truncated)), gamma=GAMMA, n=6
    )
    equal(returns[:3], [1 + 1 + 200 / 4, 2 + 200 / 2, 4], repeat)
    np.testing.assert_array_equal(last[:3], repeat(np.array([1, 1, 2])))


def test_n_step_cut_is_before_the_step_that_has_it(kernels, repeat):
    """The reward of the step with cut_t is not taken, its state is bootstrapped from; cut_t does not end step t."""
    cut = flags(T, F, F, T, F, F)
    returns, discounts, last = kernels.scans.n_step_returns(
        *map(repeat, (REWARDS, NEXT, NONE, NONE)), gamma=GAMMA, n=10, cut=repeat(cut)
    )
    equal(returns[:4], [1 + 1 + 1 + 300 / 8, 2 + 2 + 300 / 4, 4 + 300 / 2, 8 + 8 + 8 + 600 / 8], repeat)
    equal(discounts[:4], [1 / 8, 1 / 4, 1 / 2, 1 / 8], repeat)
    np.testing.assert_array_equal(last, repeat(np.array([2, 2, 2, 5, 5, 5])))


# ---- 2. truncation ----------------------------------------------------------------------------------------------


def test_truncation_bootstraps_from_the_final_observation(kernels, repeat):
    """next_values of the truncated step, not the value of its own state nor of the reset one; and the chain ends."""
    truncated = flags(F, F, T, F, F, F)
    values = column(-1, -2, -3, -4, -5, -6)
    x = [repeat(y) for y in (REWARDS, values, NEXT, NONE, truncated)]
    advantages, returns = kernels.scans.gae(*x, gamma=GAMMA, lam=1.0)
    a2 = 4 + 150 + 3
    a1 = 2 + 100 + 2 + a2 / 2
    a0 = 1 + 50 + 1 + a1 / 2
    equal(advantages[:3], [a0, a1, a2], repeat)
    equal(returns[:3], [a0 - 1, a1 - 2, a2 - 3], repeat)
    got = kernels.scans.discounted_returns(x[0], x[3], x[4], gamma=GAMMA, next_values=x[2])
    equal(got[:3], [1 + 1 + 1 + 300 / 8, 2 + 2 + 300 / 4, 4 + 300 / 2], repeat)
    got = kernels.scans.lambda_returns(x[0], x[2], x[3], x[4], gamma=GAMMA, lam=1.0)
    equal(got[:3], [1 + 1 + 1 + 300 / 8, 2 + 2 + 300 / 4, 4 + 300 / 2], repeat)


def test_truncation_is_not_ignored_nor_taken_for_termination(kernels, repeat):
    one, never = repeat(column(*[1] * 6)), repeat(NONE)
    at_2 = repeat(flags(F, F, T, F, F, F))
    ways = [
        kernels.scans.discounted_returns(one, terminated, truncated, gamma=GAMMA, next_values=8 * one)
        for terminated, truncated in ((never, never), (at_2, never), (never, at_2), (at_2, at_2))
    ]
    equal(ways[0], [63 / 32 + 8 / 64, 31 / 16 + 8 / 32, 15 / 8 + 8 / 16, 7 / 4 + 1, 3 / 2 + 2, 1 + 4], repeat)
    equal(ways[1][:3], [1.75, 1.5, 1], repeat)
    equal(ways[2][:3], [1.75 + 1, 1.5 + 2, 1 + 4], repeat)
    np.testing.assert_array_equal(ways[3], ways[1])  # both set counts as terminated


def test_vtrace_does_not_leak_the_next_episode_at_truncation(kernels, repeat):
    truncated = flags(F, F, T, F, F, F)
    values, zero = column(10, 20, 30, 40, 50, 60), column(*[0] * 6)
    x = [repeat(y) for y in (REWARDS, values, NEXT, NONE, truncated, zero)]
    vs, pg = kernels.scans.vtrace(*x, gamma=GAMMA)
    e2 = 4 + 150 - 30
    e1 = 2 + 100 - 20 + e2 / 2
    equal(vs[1:3], [20 + e1, 30 + e2], repeat)
    equal(pg[1:3], [2 + (200 + e2) / 2 - 20, e2], repeat)
    # What comes after may be anything.
    for y in x[:3]:
        y[3:] = 1e9
    again = kernels.scans.vtrace(*x, gamma=GAMMA)
    np.testing.assert_array_equal(again[0][:3], vs[:3])
    np.testing.assert_array_equal(again[1][:3], pg[:3])


def test_off_policy_returns_stop_at_truncation(kernels, repeat):
    truncated = flags(F, F, T, F, F, F)
    q, traces = column(10, 20, 30, 40, 50, 60), column(9, 0.5, 0.25, 9, 9, 9)
    x = [repeat(y) for y in (REWARDS, q, NEXT, traces, NONE, truncated)]
    got = kernels.scans.off_policy_returns(*x, gamma=GAMMA)
    y2 = 4 + 300 / 2
    y1 = 2 + (200 + 0.25 * (y2 - 30)) / 2
    equal(got[:3], [1 + (100 + 0.5 * (y1 - 20)) / 2, y1, y2], repeat)


def test_the_bootstrap_is_counted_once(kernels, repeat):
    """At a truncated step and at the end of the arrays: gamma V', not on top of a y_{t+1} that holds it."""
    zero = repeat(column(*[0] * 6))
    for truncated in (NONE, flags(F, F, F, F, F, T)):
        advantages, returns = kernels.scans.gae(
            zero, zero, repeat(column(0, 0, 0, 0, 0, 64)), repeat(NONE), repeat(truncated), gamma=GAMMA, lam=1.0
        )
        for got in (advantages, returns):
            equal(got, [1, 2, 4, 8, 16, 32], repeat)


# ---- 3. the dummy steps of NEXT_STEP autoreset --------------------------------------------------------------------


def test_autoreset_dummy_steps_are_as_if_they_were_not_there(kernels, repeat):
    """Steps 2 and 4 follow an end: every op gives what it gives of the rollout without them."""
    rng = np.random.default_rng(0)
    terminated, truncated = flags(F, T, F, F, F, F, F), flags(F, F, F, T, F, F, F)
    mask = flags(T, T, F, T, F, T, T)
    r, v, nv, rho, c = (rng.standard_normal(7) for _ in range(5))
    common = {"gamma": 0.9}
    calls = {
        "gae": ((r, v, nv, terminated, truncated), {"lam": 0.8}),
        "discounted_returns": ((r, terminated, truncated), {}),
        "lambda_returns": ((r, nv, terminated, truncated), {"lam": 0.8}),
        "n_step_returns": ((r, nv, terminated, truncated), {"n": 3}),
        "vtrace": ((r, v, nv, terminated, truncated, rho), {"lam": 0.8}),
        "off_policy_returns": ((r, v, nv, c, terminated, truncated), {}),
    }
    real = np.nonzero(mask)[0]
    for op, (arrays, parameters) in calls.items():
        wanted = getattr(kernels.scans, op)(*[repeat(x[mask]) for x in arrays], **parameters, **common)
        for dummy in (0.0, 1e6, np.nan):
            filled = [np.where(mask, x, dummy) if x.dtype == np.float64 else x for x in arrays]
            got = getattr(kernels.scans, op)(*map(repeat, filled), **parameters, **common, mask=repeat(mask))
            got, single = (got, wanted) if isinstance(got, tuple) else ((got,), (wanted,))
            for i, (x, y) in enumerate(zip(got, single, strict=True)):
                if i == 2:  # `last` counts the dummy steps
                    np.testing.assert_array_equal(x[mask], real[y])
                    continue
                np.testing.assert_allclose(x[mask], y, rtol=1e-14)
                assert (x[~mask] == 0).all()


def test_a_masked_step_cuts_even_without_an_end(kernels, repeat):
    """What is left of a sequence after padding: the step before bootstraps from its own next value."""
    mask = flags(T, T, F, T, T, F)
    got = kernels.scans.discounted_returns(
        *map(repeat, (REWARDS, NONE, NONE)), gamma=GAMMA, next_values=repeat(NEXT), mask=repeat(mask)
    )
    equal(got, [1 + 1 + 200 / 4, 2 + 200 / 2, 0, 8 + 8 + 500 / 4, 16 + 500 / 2, 0], repeat)


# ---- 4. the last step, and lengths and widths that no vector divides ----------------------------------------------


def test_the_last_advantage_is_not_0(kernels, repeat):
    values = column(10, 20, 30, 40, 50, 60)
    advantages, returns = kernels.scans.gae(*map(repeat, (REWARDS, values, NEXT, NONE, NONE)), gamma=GAMMA, lam=0.5)
    equal(advantages[5:], [32 + 300 - 60], repeat)
    equal(returns[5:], [32 + 300], repeat)
    equal(advantages[4:5], [16 + 250 - 50 + 272 / 4], repeat)


def test_no_path_disagrees_with_another(kernels):
    """Every horizon against the tail of a longer one, every width against the columns of a wider one."""
    rng = np.random.default_rng(0)
    r, v, nv = (rng.standard_normal((67, 40)) for _ in range(3))
    terminated, truncated = rng.random((67, 40)) < 0.1, rng.random((67, 40)) < 0.1
    arrays = (r, v, nv, terminated, truncated)
    whole = kernels.scans.gae(*arrays, gamma=0.99, lam=0.95)
    for start in range(67):
        for x, y in zip(kernels.scans.gae(*[a[start:] for a in arrays], gamma=0.99, lam=0.95), whole, strict=True):
            np.testing.assert_allclose(x, y[start:], rtol=1e-12, atol=1e-12)
    for N in range(41):
        for x, y in zip(kernels.scans.gae(*[a[:, :N] for a in arrays], gamma=0.99, lam=0.95), whole, strict=True):
            np.testing.assert_allclose(x, y[:, :N], rtol=1e-12, atol=1e-12)


# ---- 11. truncated weights, results of contiguous() thrown away ----------------------------------------------------


def test_small_weights_are_not_dropped(kernels):
    """A reward 200 steps away weighs 0.8^200 = 4e-20: the only one there is, it is all of the result."""
    for N in (1, 5):
        zero, none = np.zeros((201, N)), np.zeros((201, N), bool)
        rewards = zero.copy()
        rewards[200] = 1e20
        wanted = 1e20 * 0.8 ** np.arange(200.0, -1, -1)[:, None] * np.ones(N)
        assert wanted[0, 0] > 4
        advantages, _ = kernels.scans.gae(rewards, zero, zero, none, none, gamma=1.0, lam=0.8)
        np.testing.assert_allclose(advantages, wanted, rtol=1e-12)
        got = kernels.scans.lambda_returns(rewards, zero, none, none, gamma=0.8, lam=1.0)
        np.testing.assert_allclose(got, wanted, rtol=1e-12)
        returns, _, _ = kernels.scans.n_step_returns(rewards, None, none, none, gamma=0.8, n=500)
        np.testing.assert_allclose(returns, wanted, rtol=1e-12)


def test_arrays_that_are_not_contiguous_are_read_as_they_are(kernels, torch):
    """Torch tensors, transposed and sliced, in and out."""
    rng = np.random.default_rng(0)
    r, v, nv = (torch.from_numpy(rng.standard_normal((9, 6))) for _ in range(3))
    terminated, truncated = (torch.from_numpy(rng.random((9, 6)) < 0.2) for _ in range(2))
    wanted = kernels.scans.gae(r, v, nv, terminated, truncated, gamma=0.9, lam=0.8)
    wide = torch.stack([r, r + 1], 2)[..., 0]
    turned = v.T.contiguous().T
    out = tuple(torch.full((6, 18), torch.nan, dtype=torch.float64).T[::2] for _ in range(2))
    assert not any(x.is_contiguous() for x in (wide, turned, *out))
    got = kernels.scans.gae(wide, turned, nv, terminated.T.contiguous().T, truncated, gamma=0.9, lam=0.8, out=out)
    assert got is out
    for x, y in zip(out, wanted, strict=True):
        assert torch.equal(x, y)


# ---- a list that says it has more items than it has ---------------------------------------------------------------


class Lying(list):
    def __init__(self, items, said):
        super().__init__(items)
        self.said = said

    def __len__(self):
        return self.said


@pytest.mark.parametrize("op", ["gae", "vtrace", "n_step_returns"])
def test_out_that_is_shorter_than_it_says(op):
    from fastrl.kernels import scans

    x, no = np.ones(3), np.zeros(3, bool)
    call = {
        "gae": lambda out: scans.gae(x, x, x, no, no, gamma=0.9, lam=0.9, out=out),
        "vtrace": lambda out: scans.vtrace(x, x, x, no, no, x, gamma=0.9, out=out),
        "n_step_returns": lambda out: scans.n_step_returns(x, x, no, no, gamma=0.9, n=2, out=out),
    }[op]
    count = 3 if op == "n_step_returns" else 2
    with pytest.raises((IndexError, ValueError)):
        call(Lying([np.zeros(3)], count))
