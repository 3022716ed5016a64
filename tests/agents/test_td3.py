"""TD3's target, its delays and its noise by hand."""

import copy

import numpy as np
import pytest
import torch

from fastrl.agents import DDPG, TD3, ddpg, td3
from fastrl.agents.config import InputError

SMALL = {"hidden": (16, 12), "learning_starts": 40, "batch_size": 16, "buffer_size": 400, "seed": 1}


def forward(mlp, k, x):
    """Network k of `mlp` (the only one: None) by torch, in float64."""
    module = copy.deepcopy(mlp.to_torch()).double()
    with torch.no_grad():
        return (module if k is None else module[k])(x)


def test_target_against_hand_computation(monkeypatch):
    """min of the TARGET critics at the TARGET actor's action, noise clipped before it is added, the action after."""
    agent = TD3("Pendulum-v1", **SMALL, target_noise=0.6, target_noise_clip=0.5).learn(60, progress=False)
    agent.target_actor.vector += 0.15
    agent.target_critics.vector *= 1.2
    batch, seen = agent.buffer.sample(16), {}
    batch = batch._replace(terminated=np.arange(16) % 3 == 0, truncated=np.arange(16) % 2 == 0)
    batch = batch._replace(discount=np.float32(0.99) * ~batch.terminated)
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    loss = td3.q_regression_loss
    monkeypatch.setattr(td3, "q_regression_loss", lambda q, y, **kw: (seen.update(y=y), loss(q, y, **kw))[1])
    forward_cached = agent.critics.forward_cached
    monkeypatch.setattr(
        agent.critics, "forward_cached", lambda x, **kw: (seen.setdefault("x", x), forward_cached(x, **kw))[1]
    )

    state = agent.rng.bit_generator.state
    eps = agent.rng.standard_normal((16, 1), np.float32)
    agent.rng.bit_generator.state = state
    noise = torch.from_numpy(np.clip(0.6 * eps, -0.5, 0.5)).double()
    assert (noise.abs() == 0.5).any() and (noise.abs() < 0.5).any()
    next_obs = torch.from_numpy(batch.next_obs).double()
    unclipped = forward(agent.target_actor, None, next_obs).tanh() + noise
    next_action = unclipped.clamp(-1, 1)
    assert (next_action != unclipped).any()
    q = [forward(agent.target_critics, k, torch.cat((next_obs, next_action), 1)).squeeze(1) for k in range(2)]
    y = torch.from_numpy(batch.reward).double()
    for i in range(16):
        if not batch.terminated[i]:  # truncation alone is bootstrapped
            y[i] += 0.99 * min(q[0][i], q[1][i])
    assert (q[0] < q[1]).any() or (q[0] > q[1]).any()

    agent._update()
    assert seen["x"] == (batch.obs, batch.action)
    np.testing.assert_allclose(seen["y"], y, rtol=1e-5, atol=1e-5)


def test_actor_and_targets_wait_for_policy_delay():
    agent = TD3("Pendulum-v1", **SMALL, policy_delay=3).learn(41, progress=False)
    assert agent.n_updates == 1
    for n in range(2, 8):
        before = [m.vector.copy() for m in (agent.critics, agent.actor, agent.target_critics, agent.target_actor)]
        agent._update()
        now = [m.vector for m in (agent.critics, agent.actor, agent.target_critics, agent.target_actor)]
        moved = [not np.array_equal(a, b) for a, b in zip(before, now, strict=True)]
        assert moved == [True] + [n % 3 == 0] * 3
    tau = agent.config.tau
    expected = before[3] + tau * (agent.actor.vector - before[3])
    assert (
        n % 3 == 1 and np.array_equal(agent.target_actor.vector, before[3]) and not np.array_equal(expected, before[3])
    )


def test_actor_climbs_the_first_critic(monkeypatch):
    agent = TD3("Pendulum-v1", **SMALL, policy_delay=1, learning_rate=1e-12).learn(60, progress=False)
    batch = agent.buffer.sample(16)
    obs = torch.from_numpy(batch.obs)
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)

    def value(k):
        action = torch.from_numpy(agent.actor.forward(obs.numpy())).tanh()
        return forward(agent.critics, k, torch.cat((obs, action), 1).double()).mean().item()

    before = value(0)
    for _ in range(20):
        agent._update()
    assert agent.metrics()["actor_loss"] == pytest.approx(-value(0), abs=0.05) and value(0) > before


@pytest.mark.parametrize("cls", [TD3, DDPG])
def test_loss_adjusted_priorities(cls, monkeypatch):
    agent = cls("Pendulum-v1", **SMALL, lap=True, lap_alpha=0.5)
    agent.learn(41, progress=False)
    batch = agent.buffer.sample(16)
    reward = np.linspace(-3, 3, 16, dtype=np.float32)  # so that some errors are above 1, and some not
    batch = batch._replace(indices=np.arange(16), reward=reward)
    np.testing.assert_array_equal(batch.weights, 1)
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    module, seen = {TD3: td3, DDPG: ddpg}[cls], {}
    loss = module.q_regression_loss

    def spy(q, y, **options):
        seen.update(error=abs(q.reshape(-1, 16) - y).max(0), options=options)
        return loss(q, y, **options)

    monkeypatch.setattr(module, "q_regression_loss", spy)
    agent._update()
    assert seen["options"] == {"weights": None, "loss": "huber"}
    error = seen["error"]
    assert (error < 0.9).any() and (error > 1.1).any()
    np.testing.assert_allclose(agent.buffer._tree[np.arange(16)], np.sqrt(np.maximum(error, 1)), rtol=1e-6)
    assert (agent.buffer._tree[np.arange(16)][error < 1] == 1).all()


@pytest.mark.parametrize("cls", [TD3, DDPG])
def test_loss_adjusted_priorities_are_no_other_priorities(cls):
    with pytest.raises(InputError, match=rf"{cls.__name__}Config: lap and prioritized are two kinds of priorities"):
        cls("Pendulum-v1", lap=True, prioritized=True)
    with pytest.raises(InputError, match=rf"{cls.__name__}Config: lap_alpha must be finite and >= 0, got -1"):
        cls("Pendulum-v1", lap=True, lap_alpha=-1)


def test_exploration_noise():
    agent = TD3("Pendulum-v1", **SMALL, exploration_noise=0.3)
    agent.steps = 40
    obs = np.zeros((20_000, 3), np.float32)
    noise = agent._act(obs, agent.rng) - agent._mode(obs)
    assert abs(noise.std() - 0.3) < 0.01 and abs(agent._act(obs, agent.rng)).max() <= 1
    silent = TD3("Pendulum-v1", **SMALL, exploration_noise=0.0)
    np.testing.assert_array_equal(silent.predict(obs[:3], deterministic=False), silent.predict(obs[:3]))


@pytest.mark.slow
def test_learns_pendulum():
    agent = TD3("Pendulum-v1", hidden=(64, 64), batch_size=128).learn(10_000, progress=False)
    assert agent.evaluate(10).mean() > -250
