"""Environments at odds with Gymnasium's API: one line that names the environment and what was wanted."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from odd_envs import Sim, Steps, register

from fastrl.agents import DQN, PPO
from fastrl.agents.config import InputError

BOTH = [DQN, PPO]
SMALL = {DQN: {"hidden": (4,), "learning_starts": 100}, PPO: {"hidden": (4,), "n_steps": 32}}


class Base(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    obs, reward = np.zeros(2, np.float32), 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.obs, {}

    def step(self, action):
        return self.obs, self.reward, self.np_random.random() < 0.1, False, {}


class RewardOfShape1(Base):
    reward = np.array([1.0])


class NoReward(Base):
    reward = None


class ObsOfShape12(Base):
    obs = np.zeros((1, 2), np.float32)


class BareFloatForBox1(Base):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    obs = 0.5


class HalvesForUint8(Base):
    observation_space = gym.spaces.Box(0, 255, (2,), np.uint8)
    obs = np.full(2, 0.5)


class Ragged(Base):
    obs = ([1.0], [1.0, 2.0])


class FourValues(Base):
    def step(self, action):
        return (*super().step(action)[:3], {})


class ResetWithoutInfo(Base):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.obs


class ResetWithoutSeed(Base):
    def reset(self):
        return self.obs, {}


class NoSpace(Base):
    action_space = None


BROKEN = {
    RewardOfShape1: r"the reward of RewardOfShape1 must be a number, got an array of shape \(1,\)",
    NoReward: r"NoReward: step\(\) must return \(obs, reward, terminated, truncated, info\): .*NoneType",
    ObsOfShape12: r"the observation of ObsOfShape12 must have shape \(2,\), got \(1, 2\)",
    BareFloatForBox1: r"the observation of BareFloatForBox1 must have shape \(1,\), got \(\)",
    HalvesForUint8: "the observation of HalvesForUint8 must be uint8 like its space, got float64",
    Ragged: "the observation of Ragged must be an array: ",
    FourValues: r"FourValues: step\(\) must return .*info\): not enough values to unpack \(expected 5, got 4\)",
    ResetWithoutInfo: r"ResetWithoutInfo: reset\(\) must take seed= and return \(obs, info\), got ndarray",
    ResetWithoutSeed: r"ResetWithoutSeed: reset\(\) must take seed= .*: .*'seed'",
    NoSpace: "NoSpace: action_space must be a gymnasium.Space, got None",
}


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("env", list(BROKEN), ids=lambda env: env.__name__)
def test_environments_that_break_the_api(env, cls):
    with pytest.raises(InputError, match="^" + BROKEN[env]) as error:
        cls(env(), **SMALL[cls]).learn(100, progress=False)
    assert "\n" not in str(error.value)
    assert env is NoSpace or env is Ragged or "gymnasium.utils.env_checker.check_env" in str(error.value)


@pytest.mark.parametrize("env", [FourValues, ResetWithoutInfo, ResetWithoutSeed], ids=lambda env: env.__name__)
def test_environments_that_break_the_api_in_gymnasiums_wrappers(env):
    register(f"fastrl-test/{env.__name__}-v0", env, max_episode_steps=50)
    with warnings.catch_warnings(), pytest.raises(InputError, match=f"^fastrl-test/{env.__name__}-v0: ") as error:
        warnings.simplefilter("ignore")
        DQN(f"fastrl-test/{env.__name__}-v0", num_envs=2, **SMALL[DQN]).learn(100, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["observation", "reward", "terminated flag"])
def test_vector_environments_of_other_shapes(what):
    class Odd(Sim):
        def step(self, actions):
            obs, reward, terminated, *rest = super().step(actions)
            odd = {"observation": obs, "reward": reward, "terminated flag": terminated}[what][..., None]
            values = {"observation": obs, "reward": reward, "terminated flag": terminated, what: odd}
            return *values.values(), *rest

    with pytest.raises(InputError, match=f"the {what} of Odd must have shape .*, got "):
        DQN(Odd(), **SMALL[DQN]).learn(100, progress=False)


@pytest.mark.parametrize("vector", [None, SyncVectorEnv, AsyncVectorEnv])
def test_an_error_of_the_environments_own_is_left_alone(vector):
    class Fails(Steps):
        def step(self, action):
            return torch.zeros(2) @ torch.zeros(3)

    env = Fails() if vector is None else vector([Fails])
    with pytest.raises(RuntimeError, match="inconsistent tensor size") as error:
        DQN(env, **SMALL[DQN]).learn(100, progress=False)
    assert not isinstance(error.value, InputError)
    env.close()


def test_a_vector_environment_that_breaks_the_api():
    class Four(Sim):
        def step(self, actions):
            return super().step(actions)[:4]

    class Bare(Sim):
        def reset(self, *, seed=None, options=None):
            return super().reset()[0]

    with pytest.raises(InputError, match=r"^Four: step\(\) must return .*: not enough values to unpack"):
        DQN(Four(), **SMALL[DQN]).learn(100, progress=False)
    with pytest.raises(InputError, match=r"^Bare: reset\(\) must take seed= and return \(obs, info\), got ndarray"):
        DQN(Bare(), **SMALL[DQN])
