"""Q-Prop: its gradient and its critic's updates against plain torch, the variance it saves, and exact resume."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.agents import QProp, trpo
from fastrl.agents.config import InputError
from fastrl.agents.parts import parts_state

SMALL = {"hidden": (8,), "critic_hidden": (16,), "num_envs": 2, "n_steps": 16, "value_epochs": 1, "minibatches": 1}


def double(network):
    return copy.deepcopy(network.to_torch()).double()


def batch_of(agent, size, rng):
    obs = rng.normal(size=(size, 3)).astype(np.float32)
    action, _ = agent.policy.act(obs, agent.generator)
    return obs, action, rng.normal(size=size).astype(np.float32)


def gradient(agent, batch, monkeypatch, signal=None):
    """What the agent hands to the natural gradient; the policy stays as it is."""
    found = []

    def take(fisher, g, **how):
        found.append(np.array(g))
        return step(fisher, g, **how)

    step, theta = trpo.natural_gradient_step, agent.theta.copy()
    with monkeypatch.context() as patch:
        patch.setattr(trpo, "natural_gradient_step", take)
        agent._improve_policy(*batch[:2], *(agent._signal(*batch) if signal is None else signal))
    agent.theta[...] = theta
    return found[0]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("control", ["conservative", "aggressive"])
def test_the_gradient_is_that_of_plain_torch(control, normalize, rng, monkeypatch):
    agent = QProp("Pendulum-v1", **SMALL, control=control, normalize_advantages=normalize).learn(64, progress=False)
    agent.q.vector *= 3
    batch = batch_of(agent, 200, rng)
    actor, q = double(agent.policy.actor), double(agent.q)[0]
    obs, action, advantage = (torch.from_numpy(x).double() for x in batch)
    log_std = torch.from_numpy(agent.policy.log_std).double().requires_grad_()
    mean = actor(obs)
    at = mean.detach().requires_grad_()
    (slope,) = torch.autograd.grad(q(torch.cat((obs, at), 1)).sum(), at)
    control_variate = (slope * (action - at.detach())).sum(1)
    sign = torch.sign(advantage * control_variate)
    eta = sign if control == "aggressive" else sign.clamp(min=0)
    assert 20 < (sign < 0).sum() < 180
    scale = 1 / advantage.std(correction=0) if normalize else 1
    signal = scale * (advantage - eta * control_variate)
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(1)
    objective = (log_prob * (signal - signal.mean())).mean() + scale * (eta[:, None] * slope * mean).sum(1).mean()
    wanted = torch.cat([x.flatten() for x in torch.autograd.grad(objective, [*actor.parameters(), log_std])])
    np.testing.assert_allclose(gradient(agent, batch, monkeypatch), wanted.numpy(), rtol=1e-3, atol=1e-5)


def test_the_critic_learns_as_in_plain_torch(monkeypatch):
    agent = QProp("Pendulum-v1", **SMALL, critic_updates=1, tau=0.05, batch_size=32).learn(64, progress=False)
    agent.q_optimizer = type(agent.q_optimizer)(agent.q.vector, agent.q.grad, lr=1e-3)
    q, target, actor, start = (
        double(agent.q)[0],
        double(agent.target_q)[0],
        double(agent.policy.actor),
        agent.q.vector + 0,
    )
    adam = torch.optim.Adam(q.parameters(), lr=1e-3)
    sample = agent.buffer.sample
    for _ in range(100):
        b = copy.deepcopy(sample(32))
        monkeypatch.setattr(agent.buffer, "sample", lambda n, b=b: b)
        agent._fit_critic()
        obs, action, reward, next_obs, discount = (
            torch.from_numpy(x).double() for x in (b.obs, b.action, b.reward, b.next_obs, b.discount)
        )
        with torch.no_grad():
            y = reward + discount * target(torch.cat((next_obs, actor(next_obs)), 1))[:, 0]
        adam.zero_grad()
        ((q(torch.cat((obs, action), 1))[:, 0] - y) ** 2).mean().backward()
        adam.step()
        with torch.no_grad():
            for p, p_target in zip(q.parameters(), target.parameters(), strict=True):
                p_target.lerp_(p, 0.05)
    for ours, theirs in ((agent.q, q), (agent.target_q, target)):
        wanted = np.concatenate([p.detach().numpy().ravel() for p in theirs.parameters()])
        assert np.linalg.norm(ours.vector - wanted) < 1e-3 * np.linalg.norm(wanted - start)


@pytest.mark.parametrize("control", ["conservative", "aggressive"])
def test_a_critic_that_is_right_lowers_the_variance_of_the_gradient(control, rng, monkeypatch):
    """Advantages that are linear in the action: the control variate is all of them."""
    agent = QProp("Pendulum-v1", **SMALL, control=control, normalize_advantages=False).learn(64, progress=False)
    weights = agent.q.parameters()
    for view in weights.values():
        view[...] = 0.0
    weights["0.0.weight"][0, 3], weights["0.0.bias"][0], weights["0.2.weight"][0, 0] = 1.0, 50.0, 2.0  # Q = 2 a + 100
    plain, controlled = [], []
    for _ in range(200):
        obs, action, noise = batch_of(agent, 50, rng)
        mean = agent.policy.output(obs)
        batch = obs, action, 2 * (action - mean)[:, 0] + 0.1 * noise
        plain.append(gradient(agent, batch, monkeypatch, (batch[2], None)))
        controlled.append(gradient(agent, batch, monkeypatch))
    plain, controlled = np.array(plain), np.array(controlled)
    assert controlled.var(0).sum() < 0.2 * plain.var(0).sum()
    spread = np.sqrt((plain.var(0) + controlled.var(0)) / 200)
    assert (abs(plain.mean(0) - controlled.mean(0)) < 5 * spread + 1e-4).all()


def test_the_buffer_holds_what_was_reached():
    envs = SyncVectorEnv(
        [lambda: gym.make("Pendulum-v1", max_episode_steps=5)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP
    )
    agent = QProp(envs, hidden=(8,), n_steps=16, minibatches=1, critic_updates=1, buffer_size=100)
    steps, step = [], agent.envs.step

    def watched(action):
        before = agent.envs.obs.copy()
        t = step(action)
        real = range(2) if t.mask is None else np.flatnonzero(t.mask)
        steps.extend((before[n], t.next_obs[n].copy(), bool(t.truncated[n])) for n in real)
        return t

    agent.envs.step = watched
    agent.learn(32, progress=False)
    kept = {tuple(b): (tuple(after), truncated) for b, after, truncated in steps}
    batch = agent.buffer.sample(64)
    assert len(agent.buffer) == len(kept) < 32 and batch.truncated.any()
    for obs, after, truncated, discount in zip(batch.obs, batch.next_obs, batch.truncated, batch.discount, strict=True):
        assert kept[tuple(obs)] == (tuple(after), truncated) and discount == np.float32(agent.config.gamma)


def test_resume_is_exact(tmp_path):
    settings = {
        **SMALL,
        "normalize_rewards": True,
        "normalize_obs": True,
        "buffer_size": 100,
        "learning_rate_steps": 320,
    }
    agent = QProp("Pendulum-v1", **settings).learn(160, progress=False)
    agent.save(tmp_path)
    agent.learn(320, progress=False)
    loaded = QProp.load(tmp_path).learn(320, progress=False)
    (states, arrays), (states_b, arrays_b) = parts_state(agent._parts()), parts_state(loaded._parts())
    assert states == states_b and all(np.array_equal(arrays[k], arrays_b[k]) for k in arrays)
    assert agent.metrics() == loaded.metrics() and agent.metrics()["critic_loss"] > 0
    assert np.array_equal(agent.buffer.sample(20).obs, loaded.buffer.sample(20).obs)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"control": "neutral"}, "control must be .*, got 'neutral'"),
        ({"critic_updates": 0}, "critic_updates must be .*, got 0"),
        ({"tau": 2.0}, "tau must be .*, got 2"),
        ({"buffer_size": 10}, "buffer_size must be >= batch_size, got 10 and 64"),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(InputError, match=text):
        QProp("Pendulum-v1", **settings)


def test_discrete_actions_are_refused():
    with pytest.raises(InputError, match="^QProp needs Box actions of floats; CartPole-v1 has action space Discrete"):
        QProp("CartPole-v1")
