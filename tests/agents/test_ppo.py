"""PPO's update rule against computations by hand, one sample at a time, and short runs that must learn."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from fastrl.agents import PPO
from fastrl.agents.config import InputError
from fastrl.agents.ppo import KLPenalty

B, CLIP, C_V, C_H = 7, 0.2, 0.7, 0.03


def make_agent(env="CartPole-v1", **settings):
    settings = {"learning_rate_steps": 100_000, **settings}
    agent = PPO(env, hidden=(8, 8), value_coef=C_V, entropy_coef=C_H, clip_range=CLIP, seed=3, **settings)
    # Away from the nearly uniform policy of the start.
    agent.policy.vector += 0.3 * np.random.default_rng(5).standard_normal(len(agent.policy.vector)).astype(np.float32)
    return agent


def parameters_of(agent):
    """In float64, for autograd."""
    return {k: torch.from_numpy(v).double().requires_grad_() for k, v in agent.policy.state_dict().items()}


def make_batch(agent, rng):
    """A minibatch as `_loss` takes it, of a policy unlike the present one, so that some ratios are clipped."""
    discrete = agent.policy.discrete
    shape = agent.envs.observation_space.shape
    obs = torch.from_numpy(rng.normal(size=(B, *shape)).astype(np.float32))
    out = torch.from_numpy(agent.policy.output(obs.numpy()))
    old_out = out + torch.from_numpy(rng.normal(size=out.shape).astype(np.float32))
    if discrete:
        action = torch.from_numpy(rng.integers(2, size=B))
        old_log_prob = torch.distributions.Categorical(logits=old_out).log_prob(action)
    else:
        action = torch.from_numpy(rng.normal(size=out.shape).astype(np.float32))
        agent._old_log_std = np.full(out.shape[1], 0.3, np.float32)
        old_log_prob = torch.distributions.Normal(old_out, float(np.exp(0.3))).log_prob(action).sum(1)
    advantage, target, old_value = (torch.from_numpy(x) for x in rng.normal(size=(3, B)).astype(np.float32))
    return [obs, action, old_log_prob, advantage, target, old_value, old_out]


def mlp(parameters, name, x):
    """The network's output in float64, layer by layer."""
    numbers = sorted({int(key.split(".")[1]) for key in parameters if key.startswith(name)})
    for i in numbers:
        x = parameters[f"{name}.{i}.weight"] @ x + parameters[f"{name}.{i}.bias"]
        x = x if i == numbers[-1] else torch.tanh(x)
    return x


def loss_by_hand(agent, parameters, batch):
    """L in float64, one sample at a time, from the formulas."""
    c = agent.config
    obs, action, old_log_prob, advantage, target, old_value, old_out = batch
    a = advantage.double()
    if c.normalize_advantages:
        mean = sum(a) / B
        a = (a - mean) / (torch.sqrt(sum((x - mean) ** 2 for x in a) / B) + 1e-8)
    surrogate, value_error, entropy, kl = [], [], [], []
    for i in range(B):
        x = obs[i].double().flatten()
        out, v = mlp(parameters, "actor", x), mlp(parameters, "critic", x)[0]
        old = old_out[i].double()
        if agent.policy.discrete:
            p, q = torch.exp(out) / torch.exp(out).sum(), torch.exp(old) / torch.exp(old).sum()
            log_prob = torch.log(p[action[i]])
            entropy.append(-(p * torch.log(p)).sum())
            kl.append((q * torch.log(q / p)).sum())
        else:
            new = torch.distributions.Normal(out, parameters["log_std"].exp())
            log_prob = new.log_prob(action[i].double()).sum()
            entropy.append(new.entropy().sum())
            then = torch.distributions.Normal(old, torch.from_numpy(agent._old_log_std).double().exp())
            kl.append(torch.distributions.kl_divergence(then, new).sum())
        ratio = torch.exp(log_prob - old_log_prob[i].double())
        if c.objective == "clip":
            surrogate.append(min(ratio * a[i], min(max(ratio, 1 - CLIP), 1 + CLIP) * a[i]))
        else:
            surrogate.append(ratio * a[i] - agent.penalty.beta * kl[-1])
        error = (v - target[i]) ** 2
        if c.clip_value is not None:
            step = min(max(v - old_value[i], -c.clip_value), c.clip_value)
            error = max(error, (old_value[i] + step - target[i]) ** 2)
        value_error.append(error)
    return -sum(surrogate) / B + C_V * sum(value_error) / (2 * B) - C_H * sum(entropy) / B, sum(kl) / B


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_value": 0.3},
        {"normalize_advantages": False},
        {"objective": "penalty", "penalty_beta": 0.8},
        {"objective": "penalty", "clip_value": 0.1},
    ],
    ids=["clip", "clip_value", "raw_advantages", "penalty", "penalty_clip_value"],
)
def test_loss_and_gradient_against_hand_computation(env, settings, rng):
    agent = make_agent(env, **settings)
    batch = make_batch(agent, rng)
    parameters = parameters_of(agent)
    expected, kl = loss_by_hand(agent, parameters, batch)
    expected.backward()
    agent.policy.grad[:] = np.nan
    terms = agent._loss(*(x.numpy() for x in batch))
    np.testing.assert_allclose(terms["loss"], expected.item(), rtol=1e-5)
    for name, gradient in agent.policy.parameters(agent.policy.grad).items():
        np.testing.assert_allclose(gradient, parameters[name].grad.numpy(), rtol=1e-4, atol=1e-5)
    if agent.config.objective == "penalty":
        np.testing.assert_allclose(terms["kl"], kl.item(), rtol=1e-5)


def test_the_batch_above_has_ratios_on_both_sides_of_the_clip(rng):
    """Otherwise the test above would not see the clipping."""
    agent = make_agent()
    obs, action, old_log_prob, advantage, *_ = make_batch(agent, rng)
    log_prob, _ = agent.policy.log_prob_entropy(agent.policy.output(obs.numpy()), action.numpy())
    ratio = (torch.from_numpy(log_prob) - old_log_prob).exp()
    a = advantage - advantage.mean()
    assert ((ratio > 1 + CLIP) & (a > 0)).any() and ((ratio < 1 - CLIP) & (a < 0)).any()
    assert ((ratio > 1 + CLIP) & (a < 0)).any() or ((ratio < 1 - CLIP) & (a > 0)).any()


def test_beta_is_halved_and_doubled_at_different_thresholds():
    penalty = KLPenalty(1.0, 0.03)
    for kl, beta in (
        (0.0199, 0.5),  # < 0.03 / 1.5
        (0.0201, 0.5),
        (0.03, 0.5),
        (0.0449, 0.5),
        (0.0451, 1.0),  # > 0.03 * 1.5
        (0.2, 2.0),
        (0.0, 1.0),
    ):
        penalty.adapt(kl)
        assert penalty.beta == beta
    for _ in range(2000):
        penalty.adapt(0.0)
    assert penalty.beta == 1e-6  # not 0, from which there is no way back
    for _ in range(2000):
        penalty.adapt(1.0)
    assert penalty.beta == 1e6


def test_beta_follows_the_kl_of_the_whole_update(monkeypatch):
    agent = make_agent(objective="penalty", num_envs=2, n_steps=16, epochs=3, learning_rate=1e-2)
    seen = []
    monkeypatch.setattr(agent.penalty, "adapt", seen.append)
    agent.rollout.collect(agent.generator)
    obs = agent.rollout.obs.reshape(-1, 4).copy()
    before = torch.distributions.Categorical(logits=torch.from_numpy(agent.policy.output(obs)).double())
    agent._update()
    after = torch.distributions.Categorical(logits=torch.from_numpy(agent.policy.output(obs)).double())
    assert seen == [pytest.approx(torch.distributions.kl_divergence(before, after).mean().item(), rel=1e-3, abs=1e-6)]
    assert seen[0] > 1e-4


def steps_of(agent, n):
    """The real steps of environment n in a rollout, in order of time: (episode, step in it, reward)."""
    r = agent.rollout
    real = np.ones(len(r.reward), bool) if r.mask is None else r.mask[:, n]
    return [(*r.obs[t, n].tolist(), float(r.reward[t, n])) for t in np.flatnonzero(real)]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_advantages_and_minibatches(mode, counters, monkeypatch):
    """GAE by its definition, through truncation but not through termination; every real step once an epoch."""
    lengths, gamma, lam = (3, 5), 0.9, 0.7
    agent = PPO(counters(mode), hidden=(8,), gamma=gamma, gae_lambda=lam, n_steps=13, epochs=2, minibatches=4, seed=1)
    agent.rollout.collect(agent.generator)

    def v(obs):
        return mlp(parameters_of(agent), "critic", torch.tensor(obs, dtype=torch.float64)).item()

    expected = {}
    for n, length in enumerate(lengths):
        advantage = None  # of the next step in time, None where there is none to go on from
        for episode, k, reward in reversed(steps_of(agent, n)):
            end = k + 1 == length
            bootstrap = 0.0 if end and episode % 2 == 0 else v((episode, k + 1))
            delta = reward + gamma * bootstrap - v((episode, k))
            advantage = delta if end or advantage is None else delta + gamma * lam * advantage
            expected[n, episode, k] = advantage, advantage + v((episode, k))
    seen, loss = [], agent._loss

    def record(*batch):
        seen.append([torch.from_numpy(x.copy()) for x in batch])
        terms = loss(*batch)
        agent.policy.grad[:] = 0  # learn nothing: V stays as it is
        return terms

    monkeypatch.setattr(agent, "_loss", record)
    agent._update()
    assert len(seen) == 8 and {len(part[0]) for part in seen} <= {len(expected) // 4, len(expected) // 4 + 1}
    orders = []
    for epoch in (seen[:4], seen[4:]):
        obs, _, _, advantages, targets, values = (torch.cat(parts) for parts in zip(*epoch, strict=True))
        assert len(obs) == len(expected)
        left = [(n, *key) for n, *key in expected]
        for (episode, k), a, g, value in zip(obs.tolist(), advantages, targets, values, strict=True):
            match = min(  # the two environments can be in like-numbered episodes: take the one with this advantage
                (key for key in left if key[1:] == (episode, k)), key=lambda key: abs(expected[key][0] - a.item())
            )
            left.remove(match)
            np.testing.assert_allclose((a, g), expected[match], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(value, v((episode, k)), rtol=1e-4, atol=1e-5)
        assert not left
        orders.append(obs.tolist())
    assert orders[0] != orders[1]


def test_target_kl_ends_the_update_early():
    assert make_agent(num_envs=2, n_steps=16, epochs=6, learning_rate=3e-2, target_kl=0.01).learn(32, progress=False)
    few = make_agent(num_envs=2, n_steps=16, epochs=6, learning_rate=3e-2, target_kl=0.01).learn(32, progress=False)
    all_of_them = make_agent(num_envs=2, n_steps=16, epochs=6, learning_rate=3e-2).learn(32, progress=False)
    assert all_of_them.n_updates == 6 and 1 <= few.n_updates < 6
    assert few.metrics()["kl"] > 0.01


def test_entropy_and_clipped_gradients():
    agent = make_agent(num_envs=2, n_steps=8, epochs=1, max_grad_norm=1e-3)
    agent.learn(16, progress=False)
    assert np.linalg.norm(agent.policy.grad) == pytest.approx(1e-3, rel=1e-3)


def test_observations_are_normalised_as_when_they_were_acted_on():
    agent = PPO("CartPole-v1", hidden=(8,), num_envs=2, n_steps=16, epochs=1, normalize_obs=True, seed=1)
    moments, raw = agent.policy.moments, []
    for k in range(3):
        agent.rollout.collect(agent.generator)
        obs, action, log_prob = agent.rollout.batch()
        log_prob_now, _ = agent.policy.log_prob_entropy(agent.policy.output(obs), action)
        np.testing.assert_allclose(log_prob_now, log_prob, rtol=1e-4, atol=1e-5)
        raw.append(agent.rollout.obs.reshape(-1, 4).astype(np.float64))
        agent._update()
        assert moments.count == 32 * (k + 1)
        np.testing.assert_allclose(moments.mean, np.concatenate(raw).mean(0), rtol=1e-6, atol=1e-9)


def test_learning_rate_and_steps():
    agent = make_agent(
        num_envs=3, n_steps=4, epochs=1, learning_rate=1e-2, learning_rate_end=0.0, learning_rate_steps=24
    )
    agent.learn(10, progress=False)
    assert agent.steps == 12 and agent.optimizer.lr == pytest.approx(5e-3)
    agent.learn(13, progress=False)
    assert agent.steps == 24 and agent.optimizer.lr == 0.0


def test_too_many_minibatches_are_named():
    settings = {"num_envs": 2, "n_steps": 8, "epochs": 1}
    with pytest.raises(InputError, match="minibatches must be <= 8, for 2 steps in each, got 9"):
        PPO("CartPole-v1", minibatches=9, **settings)  # one advantage less its mean is 0
    with pytest.raises(InputError, match="minibatches must be <= 16, for 1 steps in each, got 17"):
        PPO("CartPole-v1", minibatches=17, normalize_advantages=False, **settings)
    PPO("CartPole-v1", minibatches=8, **settings).learn(16, progress=False)


@pytest.mark.parametrize("shared", [False, True])
def test_networks(shared):
    policy = PPO("CartPole-v1", hidden=(16, 8), shared_network=shared).policy
    n = sum(p.size for p in policy.parameters().values())
    body, heads = 4 * 16 + 16 + 16 * 8 + 8, 8 * 2 + 2 + 8 * 1 + 1
    assert n == (body if shared else 2 * body) + heads == len(policy.vector)


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_learns_cartpole(objective):
    """One fast seed; `bench/learning.py` has the five of each."""
    agent = PPO("CartPole-v1", objective=objective, seed=0).learn(12_000, progress=False)
    assert agent.evaluate(10).mean() >= 80  # the untrained policy: about 10


def test_learns_a_continuous_action(target_env):
    settings = {"n_steps": 64, "epochs": 10, "minibatches": 2, "gamma": 0.0, "log_std": -1.0, "learning_rate": 5e-3}
    agent = PPO(gym.vector.SyncVectorEnv([target_env] * 4), hidden=(32,), seed=0, **settings)
    before = agent.evaluate(50, env=target_env()).mean()
    after = agent.learn(6_000, progress=False).evaluate(50, env=target_env()).mean()
    assert before < -0.35 and after > -0.15  # the best is 0; without looking at the observation about -0.4
