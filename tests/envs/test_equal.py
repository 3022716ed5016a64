"""The compiled environments do what Gymnasium's do, bit for bit."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

IDS = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
MODES = [mode.value for mode in AutoresetMode]


def run_both(ours, theirs, same, act, steps, obs):
    """How often environments terminated and were truncated."""
    ends = np.zeros(2, np.int64)
    for _ in range(steps):
        actions = act(obs)
        mine, gymnasium = ours.step(actions), theirs.step(actions.copy())
        assert same(mine, gymnasium)
        obs, _, terminated, truncated, _ = mine
        ends += [terminated.sum(), truncated.sum()]
        done = terminated | truncated
        if ours.metadata["autoreset_mode"] == AutoresetMode.DISABLED and done.any():
            mine = ours.reset(options={"reset_mask": done})
            assert same(mine, theirs.reset(options={"reset_mask": done}))
            obs = mine[0]
    return ends


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("steps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_steps(env_id, mode, steps, make, same, policy, backend):
    if backend == "reference":
        steps //= 5
    ours, theirs = make(env_id, 2, mode)
    assert ours.action_space == theirs.action_space and ours.observation_space == theirs.observation_space
    mine = ours.reset(seed=7)
    assert same(mine, theirs.reset(seed=7))
    terminated, truncated = run_both(ours, theirs, same, policy(ours, 0), steps, mine[0])
    if backend != "reference":
        assert (terminated > 0) == (env_id != "Pendulum-v1")
        assert truncated > 0 or env_id != "Pendulum-v1"


@pytest.mark.parametrize(
    "env_id, kwargs",
    [
        ("CartPole-v1", {"sutton_barto_reward": True}),
        ("CartPole-v1", {"max_episode_steps": 5}),
        ("Pendulum-v1", {"g": 9.81}),
        ("MountainCar-v0", {"goal_velocity": 0.03}),
        ("MountainCarContinuous-v0", {"goal_velocity": 0.07}),
        ("MountainCarContinuous-v0", {"max_episode_steps": -1}),
    ],
)
def test_the_arguments_of_the_environments(env_id, kwargs, make, same, policy, backend):
    ours, theirs = make(env_id, 3, **kwargs)
    mine = ours.reset(seed=1)
    assert same(mine, theirs.reset(seed=1))
    run_both(ours, theirs, same, policy(ours, 0), 300, mine[0])


@pytest.mark.parametrize("env_id", IDS)
def test_seeds_masks_and_options(env_id, make, same, policy, backend):
    options = {"x_init": 0.5, "y_init": 0.25} if env_id == "Pendulum-v1" else {"low": -0.2, "high": 0.3}
    ours, theirs = make(env_id, 3, "Disabled")
    assert same(ours.reset(seed=[4, 3, 8]), theirs.reset(seed=[4, 3, 8]))
    assert ours.np_random_seed == theirs.np_random_seed == (4, 3, 8)
    mask = np.array([True, False, True])
    for kwargs in (
        {},
        {"seed": 11},
        {"options": {**options, "reset_mask": mask}},
        {"seed": [None, 1, 2], "options": {"reset_mask": mask}},
        {"seed": 5, "options": options},
        {"options": {"unknown": 1}},
    ):
        theirs_kwargs = copy.deepcopy(kwargs)  # SyncVectorEnv takes the mask out of the caller's options
        mine = ours.reset(**kwargs)
        assert same(mine, theirs.reset(**theirs_kwargs)), kwargs
        assert same(ours.np_random_seed, theirs.np_random_seed)
        actions = policy(ours, 0)(mine[0])
        assert same(ours.step(actions), theirs.step(actions))
    assert [g.random() for g in ours.np_random] == [g.random() for g in theirs.np_random]


def test_an_unseeded_reset_draws_anew(make):
    ours, _ = make("CartPole-v1", 2)
    first, _ = ours.reset()
    assert len(set(ours.np_random_seed)) == 2
    other = gym.make_vec("fastrl/CartPole-v1", 2)
    assert (other.reset()[0] != first).all() and (ours.reset()[0] != first).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", IDS)
def test_a_state_is_gone_back_to(env_id, mode, make, same, policy, backend):
    ours, _ = make(env_id, 3, mode, max_episode_steps=20)
    act = policy(ours, 3)
    obs, _ = ours.reset(seed=2)
    for _ in range(25):
        if mode == "Disabled" and ours.state_dict()["done"].any():
            obs, _ = ours.reset()
        obs, *_ = ours.step(act(obs))
    saved = pickle.loads(pickle.dumps(ours.state_dict()))
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), gym.make_vec(ours.spec)]
    with pytest.raises(gym.error.ResetNeeded):
        copies[2].state_dict()
    assert same(copies[2].load_state_dict(saved), obs)
    if mode == "Disabled":
        results = [env.reset() for env in (ours, *copies)]
        assert all(same(result, results[0]) for result in results)
    for _ in range(60):
        actions = act(obs)
        if mode == "Disabled" and ours.state_dict()["done"].any():
            results = [env.reset() for env in (ours, *copies)]
        else:
            results = [env.step(actions) for env in (ours, *copies)]
        assert all(same(result, results[0]) for result in results)
        obs = results[0][0]


@pytest.mark.parametrize("env_id", IDS)
def test_pictures(env_id, make, policy, backend):
    pytest.importorskip("pygame")
    ours, theirs = make(env_id, 2, render_mode="rgb_array")
    assert ours.metadata["render_fps"] == theirs.metadata["render_fps"]
    obs, _ = ours.reset(seed=0)
    theirs.reset(seed=0)
    act = policy(ours, 0)
    for t in range(9):
        if t % 4 == 0:
            for mine, gymnasium in zip(ours.render(), theirs.render(), strict=True):
                assert mine.dtype == np.uint8 and np.array_equal(mine, gymnasium)
        actions = act(obs)
        obs, *_ = ours.step(actions)
        theirs.step(actions)
    ours.close()
    theirs.close()


def test_a_single_environment_is_gymnasiums():
    env = gym.make("fastrl.envs:fastrl/CartPole-v1")
    assert type(env.unwrapped) is type(gym.make("CartPole-v1").unwrapped)
    assert env.spec.max_episode_steps == 500 and env.spec.reward_threshold == 475.0
