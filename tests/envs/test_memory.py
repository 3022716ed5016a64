"""The environments that have to be remembered."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from fastrl.agents import DQN
from fastrl.agents.compiled_envs import compiled_id
from fastrl.agents.config import InputError
from fastrl.envs import PositionCartPole, TMaze


def test_the_t_maze():
    env, cues = TMaze(3), set()
    check_env(env, skip_render_check=True)
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        cue = float(obs[0])
        cues.add(cue)
        assert obs.dtype == np.float32 and obs[1] == 0
        seen = [env.step(action) for action in (0, 1, 0, 2, 0, 0)]
        assert [step[0].tolist() for step in seen] == [[0, 0]] * 4 + [[0, 1]] * 2
        assert [step[1:4] for step in seen] == [(0.0, False, False)] * 6
        turn = seed % 2
        wanted = 1.0 if cue == 2 * turn - 1 else -1.0
        assert env.step(1 + turn)[1:4] == (wanted, True, False)
        with pytest.raises(gym.error.ResetNeeded):
            env.step(0)
    assert cues == {-1.0, 1.0}


def test_the_t_maze_refuses():
    for length in (0, 1.5, True, "3"):
        with pytest.raises(ValueError, match=r"^TMaze: length must be an int >= 1, got "):
            TMaze(length)
    env = TMaze()
    env.reset(seed=0)
    for action in (3, -1, 0.0, None):
        with pytest.raises(ValueError, match=r"^TMaze: action must be 0, 1 or 2, got "):
            env.step(action)


def test_cartpole_without_velocities():
    env, whole = gym.make("fastrl/PositionCartPole-v1"), gym.make("CartPole-v1")
    check_env(PositionCartPole(), skip_render_check=True)
    (obs, _), (wanted, _) = env.reset(seed=3), whole.reset(seed=3)
    assert np.array_equal(obs, wanted[[0, 2]]) and env.observation_space.contains(obs)
    rng, ended = np.random.default_rng(0), False
    while not ended:
        action = int(rng.integers(2))
        (obs, *rest), (wanted, *others) = env.step(action), whole.step(action)
        assert np.array_equal(obs, wanted[[0, 2]]) and rest == others
        ended = rest[1]
    assert env.spec.max_episode_steps == 500 and obs.flags.c_contiguous


def test_agents_step_them_one_by_one():
    for name in ("fastrl/TMaze-v0", "fastrl.envs:fastrl/PositionCartPole-v1"):
        agent = DQN(name, num_envs=2, seed=0)
        assert [e.unwrapped.np_random is not None for e in agent.envs._loop.envs] == [True, True]
    with pytest.raises(InputError, match=r"no compiled environment for 'fastrl/TMaze-v0'; there are: [^T/]*$"):
        compiled_id("fastrl/TMaze-v0")
