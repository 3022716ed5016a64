"""DDPG's update rule by hand, and its two kinds of noise."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.agents import DDPG, ddpg
from fastrl.agents.config import InputError
from fastrl.agents.noise import OrnsteinUhlenbeck

SMALL = {"hidden": (16, 12), "learning_starts": 40, "batch_size": 16, "buffer_size": 400, "seed": 1}


def layers(mlp, k=0):
    """(weight ``[in, out]``, bias) of each layer of network k in float64, with their gradients."""
    module = mlp.to_torch() if mlp.n is None else mlp.to_torch()[k]
    return [(layer.weight.detach().double().T, layer.bias.detach().double()) for layer in module[::2]]


def forward(parameters, x):
    """An MLP by its formula, in float64."""
    for weight, bias in parameters[:-1]:
        x = (x @ weight + bias).clamp(min=0)
    weight, bias = parameters[-1]
    return x @ weight + bias


@pytest.mark.parametrize("n_step", [1, 3])
def test_update_against_hand_computation(n_step, monkeypatch):
    agent = DDPG("Pendulum-v1", **SMALL, n_step=n_step, actor_learning_rate=1e-3).learn(60, progress=False)
    agent.target_actor.vector += 0.1
    agent.target_critics.vector -= 0.1
    batch, seen = agent.buffer.sample(16), {}
    batch = batch._replace(terminated=batch.terminated | (np.arange(16) % 3 == 0))
    batch = batch._replace(discount=batch.discount * ~batch.terminated)
    assert n_step == 1 or len(np.unique(batch.discount)) > 1
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    step = ddpg.q_regression_loss
    monkeypatch.setattr(ddpg, "q_regression_loss", lambda q, y, **kw: (seen.update(y=y), step(q, y, **kw))[1])

    obs, next_obs, action = (torch.from_numpy(x).double() for x in (batch.obs, batch.next_obs, batch.action))
    next_action = forward(layers(agent.target_actor), next_obs).tanh()
    next_q = forward(layers(agent.target_critics), torch.cat((next_obs, next_action), 1)).squeeze(1)
    y = torch.from_numpy(batch.reward).double() + torch.from_numpy(batch.discount).double() * next_q
    q = forward(layers(agent.critics), torch.cat((obs, action), 1)).squeeze(1)
    actor = [(w.clone().requires_grad_(), b.clone().requires_grad_()) for w, b in layers(agent.actor)]

    agent._update()
    np.testing.assert_allclose(seen["y"], y, rtol=1e-5, atol=1e-5)
    assert agent.metrics()["loss"] == pytest.approx(((q - y) ** 2).mean().item(), rel=1e-4)
    # The actor's gradient goes through the critic as it is after its own step.
    loss = -forward(layers(agent.critics), torch.cat((obs, forward(actor, obs).tanh()), 1)).mean()
    loss.backward()
    assert agent.metrics()["actor_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for (weight, bias), layer in zip(actor, agent.actor.to_torch()[::2], strict=True):
        torch.testing.assert_close(layer.weight.grad.double().T, weight.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.bias.grad.double(), bias.grad, rtol=1e-4, atol=1e-6)


def test_gaussian_noise_is_added_in_the_units_of_the_range_and_clipped():
    agent = DDPG("Pendulum-v1", **SMALL, noise_std=0.2)
    agent.steps = 40
    obs = np.zeros((20_000, 3), np.float32)
    noise = agent._act(obs, agent.rng) - agent._mode(obs)
    assert noise.dtype == np.float32 and abs(noise.std() - 0.2) < 0.005 and abs(noise.mean()) < 0.005
    agent.actor.parameters()["4.bias"][:] = 0.9  # the last bias: the mode is near 0.7
    acted = agent._act(obs, agent.rng)
    assert acted.max() == 1.0 and acted.min() > -1 and (acted == 1).mean() > 0.02


def test_ou_process_moments_correlation_and_reset():
    rng, ou = np.random.default_rng(0), OrnsteinUhlenbeck((4000, 2), 0.3, 0.15)
    for _ in range(60):
        before = ou.step(rng).copy()
    after = ou.step(rng)
    wanted = 0.3 / np.sqrt(0.15 * 1.85)
    assert ou.stationary_std == pytest.approx(wanted)
    assert abs(after.std() - wanted) < 0.02 and abs(after.mean()) < 0.03
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1] - 0.85) < 0.01
    np.testing.assert_allclose(np.std(after - 0.85 * before), 0.3, rtol=0.03)
    ou.reset(np.arange(4000) % 2 == 0)
    assert not ou.x[::2].any() and ou.x[1::2].all()


def test_ou_noise_begins_anew_each_episode_and_predictions_take_no_step():
    agent = DDPG("Pendulum-v1", **SMALL, noise="ou", num_envs=2).learn(398, progress=False)
    assert agent.ou.x.all() and "Ornstein-Uhlenbeck" in agent.describe()
    x = agent.ou.x.copy()
    agent.predict(agent.envs.obs, deterministic=False)
    np.testing.assert_array_equal(agent.ou.x, x)
    agent.learn(400, progress=False)  # the 200th step of both
    assert agent.envs.episodes == 2 and not agent.ou.x.any()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_ou_noise_begins_anew_where_a_load_begins_new_episodes(mode, tmp_path, recwarn):
    def env():
        return SyncVectorEnv([lambda: gym.make("Pendulum-v1")] * 2, autoreset_mode=mode)

    agent = DDPG(env(), **SMALL, noise="ou").learn(100, progress=False)
    agent.save(tmp_path / "a")
    loaded = DDPG.load(tmp_path / "a", env=env())
    new = any("new episodes begin" in str(w.message) for w in recwarn)
    assert new == (mode == AutoresetMode.NEXT_STEP)
    np.testing.assert_array_equal(loaded.ou.x, 0 * agent.ou.x if new else agent.ou.x)
    assert agent.ou.x.all()


def test_noise_that_float32_cannot_hold():
    with pytest.raises(InputError, match=r"^DDPGConfig: noise_std must be in \[0, 1e\+12\], got 1e\+300$"):
        DDPG("Pendulum-v1", noise_std=1e300)
    agent = DDPG("Pendulum-v1", **SMALL, noise="ou", noise_std=1e12, ou_theta=1e-12).learn(60, progress=False)
    assert np.isfinite(agent.ou.x).all() and np.isfinite(agent.predict(np.zeros(3), deterministic=False)).all()


@pytest.mark.slow
def test_learns_pendulum():
    agent = DDPG("Pendulum-v1", hidden=(64, 64), batch_size=128).learn(10_000, progress=False)
    assert agent.evaluate(10).mean() > -250
