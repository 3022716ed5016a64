"""What the off-policy agents tell their buffer about where episodes begin."""

import warnings

import gymnasium as gym
import numpy as np
import pytest

from fastrl.agents import D4PG, DDPG, DQN, NAF, SAC, QTOpt


class Count(gym.Env):
    """The observation is (episode, step); episodes of 9 steps."""

    observation_space = gym.spaces.Box(0, np.inf, (2,), np.float32)

    def __init__(self, actions):
        self.action_space = actions
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        end = self.t == 9
        return np.array([self.episode, self.t], np.float32), 1.0, end and self.episode % 2 == 0, end, {}


ACTIONS = {DQN: gym.spaces.Discrete(2), SAC: gym.spaces.Box(-1, 1, (1,), np.float32)}


def check(buffer):
    """No return crosses from one episode into another, and none is shorter than it must be."""
    held = buffer.transitions()
    batch = buffer[held.indices]
    assert (batch.obs[:, 0] == batch.next_obs[:, 0]).all()
    last = dict(held.next_obs.tolist())  # that was reached
    wanted = [min(3, last[episode] - t) for episode, t in batch.obs.tolist()]
    assert batch.reward.tolist() == wanted


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("cls", ACTIONS)
def test_environments_reset_between_two_calls_of_learn(cls, prioritized):
    agent = cls(Count(ACTIONS[cls]), seed=0, n_step=3, gamma=1.0, prioritized=prioritized, learning_starts=1000)
    for steps in (14, 18, 40):
        agent.learn(steps, progress=False)
        check(agent.buffer)
        agent.envs.reset()


@pytest.mark.parametrize("cls", [DDPG, D4PG, NAF, QTOpt])
def test_exploration_begins_anew_with_an_environment_reset_between_two_calls_of_learn(cls):
    agent = cls(Count(ACTIONS[SAC]), seed=0, noise="ou", ou_theta=1e-6, learning_starts=0, updates=1, batch_size=1)
    agent.learn(4, progress=False)
    assert agent.ou.x.any()
    agent.ou.x[:] = 1e6  # and falls by a millionth a step, unless it begins at 0
    agent.envs.reset()
    agent.learn(5, progress=False)
    assert abs(agent.ou.x) < 1


def test_an_environment_that_cannot_be_brought_back(tmp_path):
    agent = DQN(Count(ACTIONS[DQN]), seed=0, n_step=3, gamma=1.0, learning_starts=1000)
    agent.learn(14, progress=False)
    agent.save(tmp_path / "ck")
    env = Count(ACTIONS[DQN])
    env.episode = 100  # it does not repeat itself
    with pytest.warns(UserWarning, match="new episodes begin"):
        other = DQN.load(tmp_path / "ck", env=env)
    other.learn(40, progress=False)
    check(other.buffer)


def test_an_agent_that_goes_on_cuts_nothing(tmp_path):
    agent = DQN("CartPole-v1", seed=0, n_step=3, learning_starts=1000).learn(50, progress=False)
    agent.save(tmp_path / "ck")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = DQN.load(tmp_path / "ck")
    for one in (agent, other):
        one.learn(100, progress=False)
    a, b = (one.buffer[one.buffer.transitions().indices] for one in (agent, other))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
