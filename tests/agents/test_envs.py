"""Vector environments in the three autoreset modes: what is a transition, and what comes back after a load."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.agents import DQN, PPO
from fastrl.agents.config import InputError
from fastrl.agents.envs import Envs, make_env

LENGTHS = (3, 5)


class Counter(gym.Env):
    """Observation = (episode number, step in it); ends after `length` steps, odd episodes by truncation."""

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
        return np.array([self.episode, self.t], np.float32), 1.0, end and not odd, end and odd, {}


def make_vec(mode, **kwargs):
    return SyncVectorEnv([lambda n=n: Counter(n) for n in LENGTHS], autoreset_mode=mode, **kwargs)


@pytest.mark.parametrize("copy", [True, False], ids=["copies", "shared"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_transitions_are_the_same_in_every_autoreset_mode(mode, copy):
    envs, transitions = Envs(make_vec(mode, copy=copy), 2, seed=0), [[], []]
    for _ in range(40):
        obs, action = envs.obs, np.zeros(2, np.int64)
        t = envs.step(action)
        for i in range(2):
            if t.mask is None or t.mask[i]:
                transitions[i].append((obs[i].tolist(), t.next_obs[i].tolist(), t.terminated[i], t.truncated[i]))
    for i, length in enumerate(LENGTHS):
        first = transitions[i][0][0][0]
        for k, (obs, next_obs, terminated, truncated) in enumerate(transitions[i]):
            episode, step = first + k // length, k % length
            assert obs == [episode, step] and next_obs == [episode, step + 1]  # never the reset's observation
            assert terminated == (step + 1 == length and episode % 2 == 0)
            assert truncated == (step + 1 == length and episode % 2 == 1)
    assert set(envs.recent) == {(3.0, 3), (5.0, 5)}
    assert envs.episodes == sum(t[2] or t[3] for i in range(2) for t in transitions[i])


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_dqn_never_stores_a_reset(mode):
    agent = DQN(make_vec(mode), hidden=(4,), learning_starts=30, train_every=10, updates=1, batch_size=4)
    agent.learn(160, progress=False)
    ends = sum(80 // (n + 1) for n in LENGTHS) if mode == AutoresetMode.NEXT_STEP else 0  # dummy steps
    assert len(agent.buffer) == 160 - ends
    batch = agent.buffer.sample(500)
    assert (batch.obs[:, 0] == batch.next_obs[:, 0]).all()  # a reset would change the episode number
    assert (batch.obs[:, 1] + 1 == batch.next_obs[:, 1]).all()


def drive(envs, actions):
    return [(envs.step(a).next_obs.tobytes(), envs.obs.tobytes()) for a in actions]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_state_comes_back(env_id):
    rng = np.random.default_rng(0)
    envs = Envs(env_id, 3, seed=4)
    sample = (
        (lambda n: rng.uniform(-2, 2, (n, 3, 1)).astype(np.float32))
        if env_id == "Pendulum-v1"
        else (lambda n: rng.integers(2, size=(n, 3)))
    )
    drive(envs, sample(333))
    state, obs = envs.state_dict(), envs.obs
    later = sample(333)
    expected = drive(envs, later)
    other = Envs(env_id, 3, seed=77)
    assert other.load_state_dict(state, obs)
    assert drive(other, later) == expected
    assert other.recent == envs.recent and other.episodes == envs.episodes


def test_environment_that_does_not_repeat_itself_begins_anew():
    class Noisy(Counter):
        def step(self, action):
            obs, *rest = super().step(action)
            return obs + np.float32(np.random.default_rng().random()), *rest

    envs = Envs(Noisy(9), 1, seed=0)
    drive(envs, np.zeros((4, 1), np.int64))
    other = Envs(Noisy(9), 1, seed=0)
    assert not other.load_state_dict(envs.state_dict(), envs.obs)
    assert other.obs[0, 1] == 0  # a new episode


@pytest.mark.parametrize("steps", [5, 6, 50])
def test_a_very_long_episode_begins_anew(steps, monkeypatch, tmp_path):
    monkeypatch.setattr("fastrl.agents.env_loop.KEPT_ACTIONS", 5)
    agent = DQN("Acrobot-v1", hidden=(4,), num_envs=2).learn(2 * steps, progress=False)  # its episodes are longer
    assert [len(kept) for kept in agent.envs.vec._actions] == [min(steps, 6)] * 2
    agent.save(tmp_path / "a")
    if steps == 5:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert DQN.load(tmp_path / "a").envs.obs.tobytes() == agent.envs.obs.tobytes()
        return
    assert agent.envs.state_dict()["actions"] == []
    with pytest.warns(UserWarning, match="new episodes begin"):
        loaded = DQN.load(tmp_path / "a")
    assert not loaded.envs._lengths.any()
    assert loaded.learn(2 * steps + 4, progress=False).steps == 2 * steps + 4


def test_an_end_of_the_episode_makes_it_restorable_again(monkeypatch):
    monkeypatch.setattr("fastrl.agents.env_loop.KEPT_ACTIONS", 5)
    envs = Envs(Counter(9), 1, seed=0)
    kept = [envs.state_dict()["restorable"] for _ in range(12) if drive(envs, np.zeros((1, 1), np.int64))]
    assert kept == [True] * 5 + [False] * 3 + [True] * 4


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_reset_begins_new_episodes_everywhere(mode):
    envs = Envs(make_vec(mode), 2, seed=0)
    for steps in (4, 5, 6):  # one of them is where an episode has just ended
        for _ in range(steps):
            envs.step(np.zeros(2, np.int64))
        before, ended = envs.obs[:, 0].copy(), envs.episodes
        envs.reset()
        assert (envs.obs[:, 1] == 0).all() and (envs.obs[:, 0] > before).any() and envs.episodes == ended
        t = envs.step(np.zeros(2, np.int64))
        assert t.mask is None and (t.next_obs[:, 1] == 1).all()
    assert {length for _, length in envs.recent} <= set(LENGTHS)  # what was abandoned is not counted


def test_state_comes_back_after_a_reset():
    envs = Envs("CartPole-v1", 2, seed=4)
    drive(envs, np.zeros((5, 2), np.int64))
    envs.reset()
    drive(envs, np.zeros((3, 2), np.int64))
    state, obs, later = envs.state_dict(), envs.obs, np.ones((30, 2), np.int64)
    expected = drive(envs, later)
    other = Envs("CartPole-v1", 2, seed=77)
    assert other.load_state_dict(state, obs)
    assert drive(other, later) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_what_is_not_finite_is_named(value, mode):
    class Broken(Counter):
        def step(self, action):
            obs, *rest = super().step(action)
            if self.t == 5:  # the episode's last observation
                obs[1] = value
            return obs, *rest

    vec = SyncVectorEnv([lambda: Counter(3), lambda: Broken(5)], autoreset_mode=mode)
    envs = Envs(vec, 2, seed=0)
    with pytest.raises(InputError, match=f"the observation of Counter must be finite, got {value}"):
        drive(envs, np.zeros((5, 2), np.int64))


def test_large_numbers_are_finite():
    class Huge(Counter):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return np.full_like(obs, 3e38), 3e38, *rest

    envs = Envs(SyncVectorEnv([lambda: Huge(5)] * 3, autoreset_mode=AutoresetMode.DISABLED), 3, seed=0)
    assert (envs.step(np.zeros(3, np.int64)).reward == 3e38).all()  # the sums overflow float32


def test_a_number_of_environments_that_is_numpys(tmp_path):
    vec = make_vec(AutoresetMode.NEXT_STEP)
    vec.num_envs = np.int64(2)
    agent = DQN(vec, hidden=(4,)).learn(4, progress=False)
    assert type(agent.config.num_envs) is type(agent.steps) is int
    agent.save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["config"]["num_envs"] == 2


@pytest.mark.parametrize("kind", ["sync", "async", "vector_entry_point"])
def test_one_of_a_vector_can_be_made_again(kind):
    vec = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode=kind)
    try:
        envs = Envs(vec, 2, seed=0)
        assert envs.env_id == "CartPole-v1" and make_env(envs.spec).spec.max_episode_steps == 500
    finally:
        vec.close()


@pytest.mark.parametrize("kind", ["sync", "async", "vector_entry_point"])
def test_one_of_a_vector_has_its_limit_of_steps(kind):
    vec = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode=kind, max_episode_steps=30)
    try:
        assert make_env(Envs(vec, 2, seed=0).spec).spec.max_episode_steps == 30
    finally:
        vec.close()


def test_how_to_make_one_again_is_not_known_behind_wrappers_of_vectors():
    """One without them would be evaluated in their place."""
    vec = gym.make_vec("CartPole-v1", num_envs=2)
    assert Envs(gym.wrappers.vector.RecordEpisodeStatistics(vec), 2, seed=0).spec.id == "CartPole-v1"
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(
        gym.wrappers.vector.TransformObservation(vec, lambda obs: 10 * obs)
    )
    agent = PPO(wrapped, n_steps=8)
    with pytest.raises(InputError, match="^evaluate: give it `env`, because .* wrappers of vectors"):
        agent.evaluate(1)
    with pytest.raises(InputError, match="^eval_env is missing: .* wrappers of vectors"):
        agent.learn(100, progress=False, eval_every=10)
