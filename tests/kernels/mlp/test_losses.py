"""Losses, targets and FlatAdam against plain float64, on every backend."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.kernels import adam_step

from ..complex_step import exact, gradient, huber, log_softmax

LOG_2PI = math.log(2 * math.pi)
EACH = {"mse": lambda u: u * u, "huber": huber}
COMMON = {"max_examples": 20, "deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
ROWS, SEEDS = st.sampled_from([1, 2, 31, 256]), st.integers(0, 2**32)


class Draw:
    """float32 arrays."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape):
        return self.rng.standard_normal(shape, np.float32)

    def actions(self, rows, n, dtype=np.int64):
        return self.rng.integers(0, n, rows).astype(dtype)


def near(found, wanted):
    assert isinstance(found, float)
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@settings(**COMMON)
@given(ROWS, st.sampled_from([1, 2, 17]), st.booleans(), st.booleans(), st.sampled_from(["mse", "huber"]), SEEDS)
def test_q_learning(backend, close, rows, n, double, weighted, loss, seed):
    draw = Draw(seed)
    q, next_q, online = (2 * draw(rows, n) for _ in range(3))
    rewards, weights = draw(rows), abs(draw(rows))
    actions, discounts = draw.actions(rows, n, np.int32 if seed % 2 else np.int64), abs(draw(rows)).clip(0, 0.9)
    discounts[::3] = 0
    found = fastrl.q_learning_loss(
        q, actions, rewards, discounts, next_q, next_q_online=online if double else None,
        weights=weights if weighted else None, loss=loss,
    )  # fmt: skip
    x, index = exact(q), np.arange(rows)
    y = exact(rewards) + exact(discounts) * exact(next_q)[index, (online if double else next_q).argmax(1)]
    w = exact(weights) if weighted else 1.0
    each = lambda x: w * EACH[loss](x[index, actions] - y) / rows  # noqa: E731
    near(found.loss, each(x).sum())
    near(found.mean_q, x[index, actions].mean())
    close(found.d_q, gradient(each, x))
    close(found.td_errors, x[index, actions] - y)


def test_a_discount_of_0_stops_the_bootstrap(backend):
    q, zero, one = np.ones((3, 2), np.float32), np.zeros(3, np.float32), np.ones(3, np.float32)
    bad = np.array([[np.nan, 1], [np.inf, 0], [-np.inf, -np.inf]], np.float32)
    found = fastrl.q_learning_loss(q, np.array([0, 1, 0]), one, zero, bad)
    np.testing.assert_array_equal(found.td_errors, [0, 0, 0])
    np.testing.assert_array_equal(fastrl.min_q_targets(bad.T.copy(), one, zero, next_log_prob=bad[:, 0]), one)
    assert np.isnan(fastrl.q_learning_loss(q, np.array([0, 1, 0]), one, one, bad).td_errors[0])
    assert np.isnan(fastrl.min_q_targets(bad.T.copy(), one, one)[0])


@settings(**COMMON)
@given(ROWS, st.sampled_from([1, 2, 5]), st.booleans(), st.booleans(), st.sampled_from(["mse", "huber"]), SEEDS)
def test_critics(backend, close, rows, n, last, weighted, loss, seed):
    draw = Draw(seed)
    q, rewards, log_prob, weights = draw(n, rows), draw(rows), 3 * draw(rows), abs(draw(rows))
    discounts, shape = abs(draw(rows)), (n, rows, 1) if last else (n, rows)
    y = fastrl.min_q_targets(q.reshape(shape), rewards, discounts, next_log_prob=log_prob, temperature=0.25)
    value = exact(q).min(0) - 0.25 * exact(log_prob)
    close(y, exact(rewards) + exact(discounts) * value)
    plain = fastrl.min_q_targets(q.reshape(shape), rewards, discounts)
    close(plain, exact(rewards) + exact(discounts) * exact(q).min(0))

    found = fastrl.q_regression_loss(q.reshape(shape), y, weights=weights if weighted else None, loss=loss)
    x, w = exact(q).T, exact(weights) if weighted else np.ones(rows)
    each = lambda x: (w[:, None] * EACH[loss](x - exact(y)[:, None])).sum(1) / rows  # noqa: E731
    near(found.loss, each(x).sum())
    near(found.mean_q, x.mean())
    close(found.d_q, gradient(each, x).T.reshape(shape))
    close(found.td_errors, (x - exact(y)[:, None]).T)

    actor_loss, d_q = fastrl.min_q_loss(q.reshape(shape))
    near(actor_loss, -x.min(1).mean())
    close(d_q, gradient(lambda x: -x.min(1) / rows, x).T.reshape(shape))


def test_of_equal_critics_the_first_gets_the_gradient(backend):
    _, d_q = fastrl.min_q_loss(np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(d_q, [[-0.25] * 4, [0] * 4])


@settings(**COMMON)
@given(ROWS, st.sampled_from([None, 0.1, 0.5]), st.booleans(), SEEDS)
def test_values(backend, close, rows, clip_range, last, seed):
    draw = Draw(seed)
    values, returns, old = draw(rows), draw(rows), draw(rows)
    shape = (rows, 1) if last else (rows,)
    given_old = None if clip_range is None else old
    found, d = fastrl.value_loss(values.reshape(shape), returns, old_values=given_old, clip_range=clip_range, coef=0.7)
    v, g, o = exact(values)[:, None], exact(returns), exact(old)

    def each(v):
        error = (v[:, 0] - g) ** 2
        if clip_range is not None:
            other = (o + np.clip(v[:, 0] - o, -clip_range, clip_range) - g) ** 2
            error = np.where(error.real >= other.real, error, other)
        return 0.7 * 0.5 * error / rows

    near(found, each(v).sum())
    close(d, gradient(each, v).reshape(shape))


def objective(log_prob, old, advantages, clip_range, kl, kl_coef, normalize):
    """L_policy and the KL of each row, as PPO's paper has them."""
    a = (advantages - advantages.mean()) / (advantages.std() + 1e-8) if normalize else advantages
    ratio = np.exp(log_prob - old)
    gain = ratio * a
    if clip_range is not None:
        gain = np.minimum(gain, np.clip(ratio, 1 - clip_range, 1 + clip_range) * a)
    row_kl = ratio - 1 - (log_prob - old) if kl is None else kl
    return (0 if kl is None else kl_coef * row_kl) - gain, row_kl


def categorical(logits, actions):
    """log pi of the actions, and entropy."""
    log_p = log_softmax(logits)
    return log_p[np.arange(len(logits)), actions], -(np.exp(log_p) * log_p).sum(1)


def normal(mean, log_std, actions):
    """The same."""
    z = (actions - mean) / np.exp(log_std)
    return (-0.5 * z * z - log_std - 0.5 * LOG_2PI).sum(1), (log_std + 0.5 * (1 + LOG_2PI) + 0 * mean).sum(1)


PPO = (ROWS, st.sampled_from([1, 2, 6]), st.sampled_from([None, 0.2]), st.booleans(), st.booleans(), SEEDS)


@settings(**COMMON)
@given(*PPO)
def test_ppo_categorical(backend, close, rows, n, clip_range, penalty, normalize, seed):
    draw = Draw(seed)
    logits, before, advantages = draw(rows, n), draw(rows, n), draw(rows)
    actions, old = draw.actions(rows, n), -abs(draw(rows))
    found = fastrl.ppo_categorical_loss(
        logits, actions, old, advantages, clip_range=clip_range, old_logits=before if penalty else None,
        kl_coef=1.5, entropy_coef=0.3, normalize_advantages=normalize,
    )  # fmt: skip
    old_p = log_softmax(exact(before))

    def each(z):
        kl = (np.exp(old_p) * (old_p - log_softmax(z))).sum(1) if penalty else None
        log_prob, entropy = categorical(z, actions)
        policy, kl = objective(log_prob, exact(old), exact(advantages), clip_range, kl, 1.5, normalize)
        return policy - 0.3 * entropy, policy, entropy, kl

    z = exact(logits)
    for got, wanted in zip(found[:4], each(z), strict=True):
        near(got, wanted.mean())
    close(found.d_out, gradient(lambda z: each(z)[0] / rows, z))
    assert found.d_log_std is None


def test_masked_actions_get_no_gradient(backend):
    logits = np.array([[0.5, -np.inf, 1.0], [-np.inf, 0.0, -np.inf]], np.float32)
    old, advantages = np.full(2, -0.7, np.float32), np.array([1, -2], np.float32)
    found = fastrl.ppo_categorical_loss(
        logits, np.array([2, 1]), old, advantages, clip_range=0.2, old_logits=logits, kl_coef=1.0, entropy_coef=0.1
    )
    assert np.isfinite(found.d_out).all() and np.isfinite(found.loss)
    np.testing.assert_array_equal(found.d_out[np.isinf(logits)], 0)
    assert found.kl == 0


@settings(**COMMON)
@given(*PPO)
def test_ppo_normal(backend, close, rows, n, clip_range, penalty, normalize, seed):
    draw = Draw(seed)
    mean, log_std, before, before_std = draw(rows, n), 0.3 * draw(n), draw(rows, n), 0.3 * draw(n)
    actions, advantages = mean + draw(rows, n), draw(rows)
    old = (normal(*map(exact, (mean, log_std, actions)))[0] + 0.3 * draw(rows)).astype(np.float32)
    found = fastrl.ppo_normal_loss(
        mean, log_std, actions, old, advantages, clip_range=clip_range, kl_coef=0.5, entropy_coef=0.3,
        old_mean=before if penalty else None, old_log_std=before_std if penalty else None,
        normalize_advantages=normalize,
    )  # fmt: skip

    def each(m, s):
        m0, s0 = exact(before), exact(before_std)
        kl = (s - s0 + (np.exp(2 * s0) + (m0 - m) ** 2) / (2 * np.exp(2 * s)) - 0.5).sum(1) if penalty else None
        log_prob, entropy = normal(m, s, exact(actions))
        policy, kl = objective(log_prob, exact(old), exact(advantages), clip_range, kl, 0.5, normalize)
        return policy - 0.3 * entropy, policy, entropy, kl

    m, s = exact(mean), np.tile(exact(log_std), (rows, 1))
    for got, wanted in zip(found[:4], each(m, s), strict=True):
        near(got, wanted.mean())
    close(found.d_out, gradient(lambda m: each(m, s)[0] / rows, m))
    close(found.d_log_std, gradient(lambda s: each(m, s)[0] / rows, s).sum(0))


@settings(**COMMON)
@given(ROWS, st.sampled_from([1, 2, 6]), st.sampled_from([None, 0.2]), st.booleans(), SEEDS)
def test_without_old_log_probs_they_are_those_of_now(backend, close, rows, n, clip_range, normalize, seed):
    """rho is 1 whatever log pi is (far out it has no digits left), and the gradient that of -mean A log pi."""
    draw = Draw(seed)
    out, log_std, advantages, actions = draw(rows, n), 0.3 * draw(n), draw(rows), draw.actions(rows, n)
    moved = out + 100 * draw(rows, n)
    how = {"clip_range": clip_range, "entropy_coef": 0.3, "normalize_advantages": normalize}
    z, s = exact(out), np.tile(exact(log_std), (rows, 1))

    def each(log_prob, entropy):
        policy, kl = objective(log_prob, log_prob.real, exact(advantages), clip_range, None, 0, normalize)
        return policy - 0.3 * entropy, policy, entropy, kl

    for found, of, leaves in (
        (fastrl.ppo_categorical_loss(out, actions, None, advantages, **how), lambda z: categorical(z, actions), [z]),
        (
            fastrl.ppo_normal_loss(out, log_std, moved, None, advantages, **how),
            lambda m, s: normal(m, s, exact(moved)), [z, s],
        ),
    ):  # fmt: skip
        for got, wanted in zip(found[:4], each(*of(*leaves)), strict=True):
            near(got, wanted.mean())
        assert found.kl == 0
        for k, got in enumerate(found[4 : 4 + len(leaves)]):
            d = gradient(lambda x, k=k, of=of, at=leaves: each(*of(*at[:k], x, *at[k + 1 :]))[0] / rows, leaves[k])
            close(got, d.sum(0) if k else d)


@pytest.mark.parametrize("size", [1, 17, 5000])
def test_flat_adam(backend, close, rng, size):
    p, g, target, average = (rng.standard_normal(size, np.float32) for _ in range(4))
    grad = g.copy()
    wanted = [x.copy() for x in (p, np.zeros(size, np.float32), np.zeros(size, np.float32))]
    follow = [exact(x) for x in (target, average)]
    step = np.zeros((), np.float32)
    optimizer = fastrl.FlatAdam(p, grad, lr=0.01, weight_decay=0.1)
    for k in range(3):
        grad[:] = g
        most = 0.5 if k else 1e6
        norm = optimizer.step(max_grad_norm=most, target=target, tau=0.3, average=average, average_weight=0.6)
        assert norm == pytest.approx(np.linalg.norm(g.astype(np.float64)), rel=1e-6)
        scaled = g * np.float32(min(1, most / (norm + 1e-6)))
        np.testing.assert_array_equal(grad, scaled)
        adam_step([wanted[0]], [scaled], [wanted[1]], [wanted[2]], [step], lr=0.01, weight_decay=0.1)
        for x, weight in zip(follow, (0.3, 0.6), strict=True):
            x += weight * (p - x)
    close(p, wanted[0])
    close(optimizer.exp_avg, wanted[1])
    close(optimizer.exp_avg_sq, wanted[2])
    close(target, follow[0])
    close(average, follow[1])
    if backend.flat_adam.__module__ == "fastrl._C":
        np.testing.assert_array_equal(p, wanted[0])  # the arithmetic is adam_step's


def test_a_tau_of_1_copies_and_states_resume(backend, rng):
    p, g, target = (rng.standard_normal(40, np.float32) for _ in range(3))
    target[0] = np.nan
    first = fastrl.FlatAdam(p, g)
    assert math.isnan(first.step(target=target, lr=0.1))
    np.testing.assert_array_equal(target, p)
    q, second = p.copy(), fastrl.FlatAdam(p.copy(), g)
    second.vector = q
    second.load_state_dict(first.state_dict())
    first.step(), second.step()
    np.testing.assert_array_equal(p, q)
    assert first.steps == second.steps == 2


def test_torch_gets_torch(backend, torch):
    q = torch.ones(3, 2)
    found = fastrl.q_learning_loss(q, torch.tensor([0, 1, 0]), torch.ones(3), torch.ones(3), q)
    assert isinstance(found.d_q, torch.Tensor) and isinstance(found.td_errors, torch.Tensor)
    net = fastrl.MLP((2, 3, 1), seed=0)
    assert isinstance(net.forward(q), torch.Tensor)


def test_the_torch_backend_agrees(torch):
    """What serves CUDA tensors, on CPU tensors."""
    from fastrl.kernels.mlp import _torch, reference

    draw = Draw(0)
    n, q, old = 30, draw(30, 4), -abs(draw(30))
    a, r, d, w = draw.actions(n, 4), draw(n), abs(draw(n)), abs(draw(n))
    calls = {
        "q_learning_loss": (q, a, r, d, draw(n, 4), draw(n, 4), w, True),
        "min_q_targets": (draw(2, n, 1), r, d, draw(n), 0.5),
        "q_regression_loss": (draw(2, n, 1), r, w, False),
        "min_q_loss": (draw(2, n, 1),),
        "value_loss": (draw(n, 1), r, draw(n), 0.2, 0.5),
        "ppo_categorical_loss": (q, a, old, r, draw(n, 4), 0.2, 0.5, 0.1, True),
        "ppo_normal_loss": (q, draw(4), draw(n, 4), old, r, draw(n, 4), draw(4), 0.2, 0.5, 0.1, True),
    }
    for op, arguments in calls.items():
        wanted = getattr(reference, op)(*arguments)
        tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments]
        found = getattr(_torch, op)(*tensors)
        for x, y in zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]:
            np.testing.assert_allclose(x.numpy(), y, rtol=1e-5, atol=1e-5, err_msg=op)


@settings(**COMMON)
@given(ROWS, st.sampled_from([1, 3]), SEEDS)
def test_the_tanh_normal_pullback_is_autograds(torch, close, rows, n, seed):
    draw = Draw(seed)
    out, noise = 2 * draw(rows, 2 * n), draw(rows, n)
    d_action, d_log_prob = draw(rows, n), draw(rows)
    limits = {"log_std_min": -1.0, "log_std_max": 1.0}
    action, log_prob, pullback = fastrl.tanh_normal_sample_pullback(out[:, :n], out[:, n:], noise=noise, **limits)
    x = torch.from_numpy(out).requires_grad_()
    drawn = fastrl.tanh_normal_sample(x[:, :n], x[:, n:], noise=torch.from_numpy(noise), **limits)
    torch.autograd.backward(drawn, (torch.from_numpy(d_action), torch.from_numpy(d_log_prob)))
    close(action, drawn[0].detach().numpy())
    close(log_prob, drawn[1].detach().numpy())
    close(np.concatenate(pullback(d_action, d_log_prob), 1), x.grad.numpy())
