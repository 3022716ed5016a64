"""Small environments of which everything is known beforehand."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv


class Counter(gym.Env):
    """Observation = (number of the episode, step in it); odd episodes are truncated, even ones terminate.

    The reward of a step is its number in the episode (from 1), plus an eighth of the number of the episode.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length):
        self.length, self.episode = length, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        end, odd = self.t == self.length, self.episode % 2 == 1
        obs = np.array([self.episode, self.t], np.float32)
        return obs, self.t + 0.125 * self.episode, end and not odd, end and odd, {}


class Target(gym.Env):
    """One step an episode; the reward is minus the distance of the action ``[2, 2]`` from the observation."""

    observation_space = gym.spaces.Box(-1, 1, (2, 2), np.float64)
    action_space = gym.spaces.Box(np.float32(-0.5), np.float32([[0.5, 0.5], [0.5, 0.25]]), (2, 2), np.float32)
    actions: list = []  # noqa: RUF012 (shared on purpose: what the environment was sent)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-0.2, 0.2, (2, 2))
        return self.goal, {}

    def step(self, action):
        assert action.shape == (2, 2) and action.dtype == np.float32
        self.actions.append(action.copy())
        reward = -float(np.abs(action - self.goal).sum())
        self.goal = self.np_random.uniform(-0.2, 0.2, (2, 2))
        return self.goal, reward, False, True, {}


@pytest.fixture
def counters():
    """``counters(mode, lengths)``: a vector of `Counter`s in an autoreset mode."""
    return lambda mode, lengths=(3, 5): SyncVectorEnv([lambda n=n: Counter(n) for n in lengths], autoreset_mode=mode)


@pytest.fixture
def target_env():
    """The class `Target`; `actions` lists what the environments were sent."""
    Target.actions.clear()
    return Target
