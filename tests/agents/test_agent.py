"""What all algorithms share: the number of environments, the draws of `predict`, weights that are not finite."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from fastrl.agents import ALGORITHMS, DDPG, DQN, PPO, SAC, OneStepActorCritic
from fastrl.agents.config import InputError
from fastrl.agents.networks import clip_norm

ALL = pytest.mark.parametrize("cls", ALGORITHMS.values(), ids=ALGORITHMS)
OFF_POLICY = ("dqn", "ddpg", "td3", "sac")


def env_id(cls):
    return "Pendulum-v1" if cls.continuous else "CartPole-v1"


def make(cls, env=None, **settings):
    own = {"learning_starts": 0, "batch_size": 4, "buffer_size": 400} if cls.algorithm in OFF_POLICY else {}
    return cls(env or env_id(cls), hidden=(8,), **{**own, **settings})


# ---- the number of environments ----------------------------------------------------------------------------------


@ALL
def test_an_environment_object_is_one(cls):
    env, name = gym.make(env_id(cls)), cls.__name__
    text = f"^{name}: num_envs must be 1 like the given environment, or left out, got 4; only an id can be made"
    with pytest.raises(InputError, match=text):
        make(cls, env, num_envs=4)
    with pytest.raises(InputError, match=text):
        cls(env, cls.config_class(num_envs=4))
    assert make(cls, env).config.num_envs == make(cls, env, num_envs=1).config.num_envs == 1
    assert make(cls, num_envs=4).envs.num_envs == 4


@ALL
def test_a_vector_environment_has_its_own_number(cls):
    def vec():
        return SyncVectorEnv([lambda: gym.make(env_id(cls))] * 3)

    for number in (1, 2, 8):
        with pytest.raises(InputError, match=f"num_envs must be 3 like the given environment, .* got {number}"):
            make(cls, vec(), num_envs=number)
    assert make(cls, vec()).config.num_envs == make(cls, vec(), num_envs=3).config.num_envs == 3


@pytest.mark.parametrize("from_id", [True, False])
@pytest.mark.parametrize("cls", [PPO, OneStepActorCritic])  # the second one scales rewards
def test_a_checkpoint_of_several_loads_with_an_environment_of_its_own(tmp_path, cls, from_id):
    if from_id:
        agent = cls("CartPole-v1", num_envs=3, hidden=(8,))
    else:
        agent = cls(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3), hidden=(8,))
    agent.learn(30, progress=False).save(tmp_path / "a")
    with pytest.warns(UserWarning, match="new episodes begin"):
        loaded = cls.load(tmp_path / "a", env=gym.make("CartPole-v1"))
    assert loaded.config.num_envs == 1
    steps = loaded.steps
    assert loaded.learn(steps + 10, progress=False).steps >= steps + 10


def test_a_replay_buffer_wants_as_many_environments_as_were_saved(tmp_path):
    small = {"hidden": (8,), "learning_starts": 10, "batch_size": 8}
    DDPG("Pendulum-v1", num_envs=3, noise="ou", **small).learn(30, progress=False).save(tmp_path / "a")
    with pytest.raises(InputError, match=r"num_envs 3 \(here 1\)"):
        DDPG.load(tmp_path / "a", env=gym.make("Pendulum-v1"))


# ---- predict -----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@ALL
def test_predict_does_not_repeat_the_draws_of_training(cls, monkeypatch):
    agent = make(cls, num_envs=32)

    def step(action):
        raise Stop(action)

    monkeypatch.setattr(agent.envs, "step", step)
    with pytest.raises(Stop) as caught:
        agent._iterate()
    first = caught.value.args[0]
    drawn = [make(cls, num_envs=32).predict(agent.envs.obs, deterministic=False) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)  # the same seed
    assert drawn[0].shape == first.shape and (drawn[0] != first).mean() > 0.25


# ---- weights that are not finite ---------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(cls, value, tmp_path):
    agent = make(cls).learn(40, folder=tmp_path, progress=False)
    steps, name = agent.steps, {"dqn": "target", "ddpg": "target_actor", "td3": "target_actor", "sac": "target_critics"}
    module = agent._parts()[name.get(cls.algorithm, "policy")]
    with torch.no_grad():
        next(module.parameters()).view(-1)[-1] = value
    for folder in ("new", "checkpoint"):
        with pytest.raises(
            InputError, match=f"^weights are not finite at step {steps}: training diverged; try a lower"
        ):
            agent.save(tmp_path / folder)
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.new").exists()
    assert cls.load(tmp_path).steps == steps


@ALL
@pytest.mark.parametrize("saving", [True, False])
def test_the_last_update_may_make_weights_infinite(cls, saving, tmp_path, monkeypatch):
    """Its loss is finite, being that of the weights before it."""
    agent = make(cls).learn(40, folder=tmp_path, progress=False)
    steps, iterate = agent.steps, agent._iterate

    def diverge():
        iterate()
        with torch.no_grad():
            next(module for module in agent._parts().values() if isinstance(module, torch.nn.Module)).apply(fill)

    def fill(module):
        for p in module.parameters():
            p.data.fill_(np.inf)

    monkeypatch.setattr(agent, "_iterate", diverge)
    with pytest.raises(InputError, match=r"^weights are not finite at step \d+: training diverged"):
        agent.learn(agent.steps + 1, folder=tmp_path if saving else None, progress=False)
    assert cls.load(tmp_path).steps == steps


def test_a_temperature_of_zero_is_saved(tmp_path):
    make(SAC, temperature=0.0).save(tmp_path / "a")
    assert SAC.load(tmp_path / "a").config.temperature == 0.0


# ---- gradient clipping -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [None, 1e-3, 1.0, 10.0])
def test_clipping_is_torchs_to_the_bit(max_norm):
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 100, 4611, 70_001):
        for scale in (0.0, 1e-20, 1e-4, 0.1, 3.0, 1e10, np.inf):
            p = torch.nn.Parameter(torch.zeros(n))
            p.grad = torch.randn(n, generator=generator) * scale
            ours = p.grad.clone()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(p, max_norm)
            clip_norm(ours, max_norm)
            assert torch.equal(ours.nan_to_num(7.0), p.grad.nan_to_num(7.0)), (n, scale)


@pytest.mark.parametrize("settings", [{}, {"double": True, "prioritized": True, "loss": "huber"}], ids=str)
def test_dqn_takes_the_steps_that_torchs_clipping_gives(settings, monkeypatch):
    def run():
        agent = DQN("CartPole-v1", hidden=(8,), learning_starts=50, max_grad_norm=0.1, **settings)
        return agent.learn(120, progress=False).online.state_dict()

    ours = run()

    def torchs(gradient, max_norm):
        p = torch.nn.Parameter(torch.zeros_like(gradient))
        p.grad = gradient
        torch.nn.utils.clip_grad_norm_(p, max_norm)

    monkeypatch.setattr("fastrl.agents.networks.clip_norm", torchs)
    theirs = run()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
