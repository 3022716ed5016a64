"""CEM: a generation by hand, what is counted as its return, and what stays when an episode fails."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.agents import CEM
from fastrl.agents.config import InputError

SMALL = {"hidden": (4,), "population": 7, "elites": 3, "seed": 2}


def test_a_generation_by_hand(monkeypatch):
    agent = CEM("CartPole-v1", **SMALL, std=0.5, extra_std=0.2, learning_rate=0.75, learning_rate_end=0.75)
    mean, variance, rng = agent.weights.astype(np.float64), 0.25, np.random.default_rng(2)
    agent.schedule_steps, goal, played = 100, np.linspace(-1, 1, len(mean)), []

    def play():
        played.append(agent.weights.copy())
        agent.steps += 10
        return -float(abs(agent.weights - goal).sum())

    monkeypatch.setattr(agent, "_play_episodes", play)
    for extra in (0.2 * (1 - 70 / 100), 0.0):
        population = mean + np.sqrt(variance) * rng.standard_normal((7, len(mean)), np.float32)
        agent._iterate()
        np.testing.assert_allclose(played[-7:], population, rtol=1e-6, atol=1e-6)
        elites = np.array(sorted(played[-7:], key=lambda w: abs(w - goal).sum())[:3], np.float64)
        mean = mean + 0.75 * (elites.mean(0) - mean)
        variance = variance + 0.75 * (elites.var(0) - variance) + extra**2
        np.testing.assert_allclose(agent.weights, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.exp(2 * agent.log_std), variance, rtol=1e-6)
        mean = agent.weights.astype(np.float64)
    log = agent.metrics()
    assert agent.n_updates == 2 and log["best_return"] >= log["elite_return"] > -log["loss"]


class Count(gym.Env):
    """A reward of t in step t of an episode of `length` steps."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (1,))

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), float(self.t), self.t == self.length, False, {}


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_every_reward_of_its_episodes_counts_and_no_other(mode):
    if mode is None:
        agent = CEM(Count(4), **SMALL, episodes=3)
        assert agent._play_episodes() == 10 and agent.steps == 12
        return
    envs = SyncVectorEnv([lambda: Count(4), lambda: Count(2)], autoreset_mode=mode)
    agent = CEM(envs, **SMALL, episodes=3)
    for _ in range(2):  # the one that waits has begun another episode
        assert agent._play_episodes() == (10 + 3) / 2


def test_an_episode_that_fails_leaves_the_policy_as_it_was(monkeypatch):
    agent = CEM("Pendulum-v1", **SMALL)
    before, calls = agent.weights.copy(), iter([1.0, 2.0])
    monkeypatch.setattr(agent, "_play_episodes", lambda: next(calls))
    with pytest.raises(StopIteration):
        agent._iterate()
    np.testing.assert_array_equal(agent.weights, before)
    assert agent.n_updates == 0 and (agent.log_std == np.log(0.5)).all()


def test_it_goes_on_exactly(tmp_path):
    agent = CEM("CartPole-v1", **SMALL).learn(300, schedule_steps=900, progress=False)
    agent.save(tmp_path / "a")
    loaded = CEM.load(tmp_path / "a")
    for other in (agent, loaded):
        other.learn(900, schedule_steps=900, progress=False)
    np.testing.assert_array_equal(agent.weights, loaded.weights)
    np.testing.assert_array_equal(agent.log_std, loaded.log_std)
    assert agent.steps == loaded.steps and agent.metrics() == loaded.metrics()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"elites": 8}, "CEMConfig: elites must be at most population, got 8 and 7"),
        ({"std": 0.0}, r"CEMConfig: std must be in \[1e-12, 1e\+06\], got 0.0"),
        ({"learning_rate": 1.5}, r"CEMConfig: learning_rate must be in \[1e-12, 1\], got 1.5"),
        ({"extra_std": float("nan")}, r"CEMConfig: extra_std must be in \[0, 1e\+06\], got nan"),
    ],
)
def test_settings_that_cannot_work(settings, text):
    with pytest.raises(InputError, match=f"^{text}$"):
        CEM("CartPole-v1", **{**SMALL, **settings})


@pytest.mark.slow
def test_learns_cartpole():
    assert CEM("CartPole-v1").learn(40_000, schedule_steps=100_000, progress=False).evaluate(10).mean() > 400
