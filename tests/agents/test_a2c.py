"""A2C's targets and loss against computations by hand, the one-step actor-critic, and short runs that must learn."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from fastrl.agents import A2C, OneStepActorCritic

LENGTHS, GAMMA = (3, 5), 0.9
SHARED = {"shared_network": True, "gae_lambda": None, "max_grad_norm": 0.5, "num_envs": 8, "n_steps": 16}


def mlp(policy, name, x):
    """The output of the actor or critic with one hidden layer, in float64."""
    p = {key: view.astype(np.float64) for key, view in getattr(policy, name).parameters().items()}
    return p["2.weight"] @ np.tanh(p["0.weight"] @ x + p["0.bias"]) + p["2.bias"]


def collect(agent):
    """A rollout's real steps, each environment's in order of time: (n, episode, step in it, reward)."""
    r = agent.rollout
    r.collect(agent.generator)
    real = np.ones(r.reward.shape, bool) if r.mask is None else r.mask
    return [(n, *map(int, r.obs[t, n]), float(r.reward[t, n])) for n, t in zip(*np.nonzero(real.T), strict=True)]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("lam", [None, 0.6])
def test_targets_and_advantages(mode, lam, counters, monkeypatch):
    agent = A2C(counters(mode), hidden=(8,), gamma=GAMMA, n_steps=7, gae_lambda=lam, seed=1)
    for _ in range(3):
        steps = collect(agent)

        def v(episode, k):
            return mlp(agent.policy, "critic", np.array([episode, k], float))[0]

        expected = []
        for i, (n, episode, k, _) in enumerate(steps):
            # Forward from this step to the end of the episode or of the rollout.
            future = [s for s in steps[i:] if s[:2] == (n, episode)]
            deltas, g = [], 0.0
            for m, (_, _, j, reward) in enumerate(future):
                terminal = j + 1 == LENGTHS[n] and episode % 2 == 0
                after = 0.0 if terminal else v(episode, j + 1)
                deltas.append(reward + GAMMA * after - v(episode, j))
                g += GAMMA**m * reward + (GAMMA ** (m + 1) * after if m + 1 == len(future) else 0.0)
            a = g - v(episode, k) if lam is None else sum((GAMMA * lam) ** m * d for m, d in enumerate(deltas))
            expected.append((episode, k, a, a + v(episode, k)))
        seen, loss = [], agent._loss

        def record(*batch, seen=seen, loss=loss):
            seen.append(batch)
            return loss(*batch)

        monkeypatch.setattr(agent, "_loss", record)
        agent._update()
        monkeypatch.setattr(agent, "_loss", loss)
        ((obs, _, advantage, target),) = seen
        found = [(*o, a, g) for o, a, g in zip(obs.tolist(), advantage.tolist(), target.tolist(), strict=True)]
        np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-4, atol=1e-5)


def test_one_step_actor_critic_is_the_td_error(counters, monkeypatch):
    """A = r + gamma V(s') - V(s), without V(s') behind a terminal state."""
    settings = {"hidden": (8,), "gamma": GAMMA, "normalize_rewards": False, "seed": 1}
    agent = OneStepActorCritic(counters(AutoresetMode.DISABLED), **settings)
    assert agent.config.n_steps == 1
    loss, checked = agent._loss, []

    def check(obs, action, advantage, target):
        for n, (episode, k) in enumerate(obs.tolist()):
            v, after = (mlp(agent.policy, "critic", np.array([episode, j]))[0] for j in (k, k + 1))
            terminal = k + 1 == LENGTHS[n] and episode % 2 == 0
            expected = k + 1 + 0.125 * episode + (0.0 if terminal else GAMMA * after)
            np.testing.assert_allclose([target[n], advantage[n]], [expected, expected - v], rtol=1e-4, atol=1e-5)
            checked.append(terminal)
        return loss(obs, action, advantage, target)

    monkeypatch.setattr(agent, "_loss", check)
    agent.learn(60, progress=False)
    assert len(checked) == 60 and any(checked) and agent.n_updates == 30


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("normalize", [False, True])
def test_loss_and_gradient(env, normalize, rng):
    agent = A2C(env, hidden=(8,), value_coef=0.7, entropy_coef=0.03, normalize_advantages=normalize, seed=3)
    shape, b = agent.envs.observation_space.shape, 5
    obs = torch.from_numpy(rng.normal(size=(b, *shape)).astype(np.float32))
    discrete = agent.policy.discrete
    action = torch.from_numpy(rng.integers(2, size=b) if discrete else rng.normal(size=(b, 1)).astype(np.float32))
    advantage, target = (torch.from_numpy(x) for x in rng.normal(size=(2, b)).astype(np.float32))
    a = advantage.double()
    if normalize:
        a = (a - a.mean()) / torch.sqrt(((a - a.mean()) ** 2).mean())
    p = {k: torch.from_numpy(v).double().requires_grad_() for k, v in agent.policy.state_dict().items()}

    def net(name, x):
        return p[f"{name}.2.weight"] @ torch.tanh(p[f"{name}.0.weight"] @ x + p[f"{name}.0.bias"]) + p[f"{name}.2.bias"]

    expected = 0.0
    for i in range(b):
        x = obs[i].double()
        if discrete:
            dist = torch.distributions.Categorical(logits=net("actor", x))
        else:
            normal = torch.distributions.Normal(net("actor", x), p["log_std"].exp())
            dist = torch.distributions.Independent(normal, 1)
        expected = expected + (
            -a[i] * dist.log_prob(action[i]) + 0.7 * (net("critic", x)[0] - target[i]) ** 2 / 2 - 0.03 * dist.entropy()
        )
    (expected / b).backward()
    agent.policy.grad[:] = np.nan
    terms = agent._loss(*(x.numpy() for x in (obs, action, advantage, target)))
    np.testing.assert_allclose(terms["loss"], expected.item() / b, rtol=1e-5)
    for name, gradient in agent.policy.parameters(agent.policy.grad).items():
        np.testing.assert_allclose(gradient, p[name].grad.numpy(), rtol=1e-4, atol=1e-5)


def test_a_single_advantage_is_not_normalised_away():
    agent = OneStepActorCritic("CartPole-v1", num_envs=1, hidden=(8,), seed=3, normalize_advantages=True)
    agent.learn(1, progress=False)
    assert agent.metrics()["policy_loss"] > 0.1  # -A log pi, A about 1


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_optimizer_is_the_one_asked_for(optimizer):
    agent = A2C("CartPole-v1", optimizer=optimizer, learning_rate=1e-3, learning_rate_end=1e-3)
    before = agent.policy.vector.copy()
    agent.learn(80, progress=False)  # one update
    gradient = agent.policy.grad.astype(np.float64)
    # The first step: rmsprop divides by sqrt(0.01 g^2), adam by sqrt(g^2) (both plus eps).
    scale = 0.1 * np.abs(gradient) if optimizer == "rmsprop" else np.abs(gradient)
    step = (before - agent.policy.vector).astype(np.float64)
    np.testing.assert_allclose(step, 1e-3 * gradient / (scale + 1e-5), rtol=1e-3, atol=1e-6)


def test_a_rollout_of_nothing_but_resets_changes_nothing(counters):
    agent = A2C(counters(AutoresetMode.NEXT_STEP, (3, 3)), hidden=(4,), n_steps=1, learning_rate_steps=500, seed=0)
    agent.learn(6, progress=False)
    before = agent.policy.vector.copy()
    agent.learn(7, progress=False)
    assert agent.rollout.mask is not None and not agent.rollout.mask.any()
    assert np.array_equal(before, agent.policy.vector)
    agent.learn(9, progress=False)
    assert not np.array_equal(before, agent.policy.vector)


@pytest.mark.parametrize("settings", [{}, SHARED], ids=["plain", "shared"])
def test_learns_cartpole(settings):
    """One fast seed; `bench/learning.py` has the five of each."""
    agent = A2C("CartPole-v1", seed=0, learning_rate=3e-3, **settings).learn(20_000, progress=False)
    assert agent.evaluate(10).mean() >= 60  # the untrained policy: about 10
