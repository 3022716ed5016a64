"""Bad input: one clear error, the same on each backend, and nothing is changed."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from fastrl.envs import CartPoleVectorEnv, MountainCarVectorEnv, PendulumVectorEnv

ONES = np.ones(3, np.int64)


def unchanged(env, before):
    after = env.state_dict()
    return all(np.array_equal(before[key], after[key], equal_nan=True) for key in before if key != "generators") and (
        before["generators"] == after["generators"]
    )


@pytest.mark.parametrize(
    "actions, text",
    [
        (np.array([0, 2, 1]), "CartPole: actions must be in [0, 2), got 2 for environment 1"),
        (np.array([0, 1, -1]), "CartPole: actions must be in [0, 2), got -1 for environment 2"),
        (np.array([1, 2**62, 0]), "CartPole: actions must be in [0, 2), got 4611686018427387904 for environment 1"),
        ([0, 1, 5], "CartPole: actions must be in [0, 2), got 5 for environment 2"),
        (np.ones(2, np.int64), "CartPole: actions must have shape (3,), got (2,)"),
        (np.ones((3, 1), np.int64), "CartPole: actions must have shape (3,), got (3, 1)"),
        (np.int64(1), "CartPole: actions"),
        (np.ones(3), "CartPole: actions must have dtype int64 or int32, got float64"),
        (np.ones(3, np.bool_), "CartPole: actions must have dtype int64 or int32, got bool"),
        (np.array(["a", "b", "c"]), "CartPole: actions"),
        ([[0], [0, 1]], ""),
        (None, "CartPole: actions"),
    ],
)
def test_discrete_actions(actions, text, backend):
    env = CartPoleVectorEnv(3)
    env.reset(seed=0)
    before = env.state_dict()
    with pytest.raises((ValueError, TypeError)) as error:
        env.step(actions)
    assert str(error.value).startswith(text)
    assert unchanged(env, before)


@pytest.mark.parametrize(
    "actions, text",
    [
        (np.array([[0], [np.nan]], np.float32), "Pendulum: actions must be finite, got nan for environment 1"),
        (np.array([[-np.inf], [0]], np.float32), "Pendulum: actions must be finite, got -inf for environment 0"),
        (np.zeros(2, np.float32), "Pendulum: actions must have shape (2, 1), got (2,)"),
        (np.zeros((2, 2), np.float32), "Pendulum: actions must have shape (2, 1), got (2, 2)"),
        (np.zeros((2, 1)), "Pendulum: actions must have dtype float32, got float64"),
        ([[0.5], [0.5]], "Pendulum: actions must have dtype float32, got float64"),
    ],
)
def test_continuous_actions(actions, text, backend):
    env = PendulumVectorEnv(2)
    env.reset(seed=0)
    before = env.state_dict()
    with pytest.raises(ValueError) as error:
        env.step(actions)
    assert str(error.value) == text
    assert unchanged(env, before)


def test_other_dtypes_and_strides(same, backend):
    a, b, c = (CartPoleVectorEnv(3) for _ in range(3))
    for env in (a, b, c):
        env.reset(seed=0)
    actions = np.array([1, 9, 0, 9, 1, 9])[::2]
    expected = a.step(actions.copy())
    assert same(b.step(actions.astype(np.int32)[::1]), expected)
    assert same(c.step(actions), expected)
    pendulum = [PendulumVectorEnv(2) for _ in range(2)]
    for env in pendulum:
        env.reset(seed=0)
    wide = np.array([[0.5, 9], [3.0, 9]], np.float32)[:, :1]
    assert same(pendulum[0].step(wide), pendulum[1].step(wide.copy()))


def test_steps_that_need_a_reset(backend):
    env = CartPoleVectorEnv(3, max_episode_steps=2, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="CartPole: reset\\(\\) must be called before step\\(\\)"):
        env.step(ONES)
    with pytest.raises(ResetNeeded, match="the first reset must be of all"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    env.reset(seed=0)
    env.step(ONES)
    env.reset(options={"reset_mask": np.array([True, False, False])})
    env.step(ONES)
    before = env.state_dict()
    assert before["done"].tolist() == [False, True, True]
    for wrong in (ONES, 7 * ONES):
        with pytest.raises((ResetNeeded, ValueError)):
            env.step(wrong)
        assert unchanged(env, before)
    with pytest.raises(ResetNeeded, match="CartPole: the episode of environment 1 has ended: reset it first, by"):
        env.step(ONES)
    env.reset(options={"reset_mask": before["done"]})
    env.step(ONES)


def test_the_action_of_an_environment_that_resets_is_not_used(make, same, backend):
    ours, theirs = make("CartPole-v1", 2, max_episode_steps=1)
    ours.reset(seed=0), theirs.reset(seed=0)
    assert same(ours.step(np.array([0, 1])), theirs.step(np.array([0, 1])))
    assert same(ours.step(np.array([-5, 9])), theirs.step(np.array([-5, 9])))


@pytest.mark.parametrize(
    "kwargs, text",
    [
        ({"seed": -1}, "CartPole: seed must be an int >= 0 or a list of 3, each such or None, got -1"),
        ({"seed": [1, 2]}, "CartPole: seed must be an int >= 0 or a list of 3, each such or None, got [1, 2]"),
        ({"seed": 1.5}, "or a list of 3, each such or None, got 1.5"),
        ({"seed": True}, "or a list of 3, each such or None, got True"),
        ({"seed": "123"}, "or a list of 3, each such or None, got '123'"),
        ({"seed": [1, 2, "x"]}, "or a list of 3, each such or None, got [1, 2, 'x']"),
        ({"seed": [1, None, -2]}, "or a list of 3, each such or None, got [1, None, -2]"),
        ({"options": {"reset_mask": [True] * 3}}, "must be a bool array of shape (3,) with a True in it, got list"),
        ({"options": {"reset_mask": np.zeros(3, np.bool_)}}, "with a True in it, got none"),
        ({"options": {"reset_mask": ONES}}, "with a True in it, got int64 (3,)"),
        ({"options": 3}, "CartPole: options must be None or a dict, got int"),
        ({"options": {"low": 1, "high": 0}}, "Lower bound (1.0) must be lower than higher bound (0.0)"),
        ({"options": {"high": np.inf}}, "CartPole: options must give bounds within +-1000000"),
        ({"options": {"low": "a"}}, "could not be converted to a float"),
    ],
)
def test_resets(kwargs, text, backend):
    env = CartPoleVectorEnv(3)
    env.reset(seed=0)
    before = env.state_dict()
    with pytest.raises((ValueError, TypeError)) as error:
        env.reset(**kwargs)
    assert text in str(error.value)
    assert unchanged(env, before)


def test_seeds_of_numpy(same, backend):
    env = CartPoleVectorEnv(3)
    wanted = env.reset(seed=255)
    assert same(env.reset(seed=np.uint8(255)), wanted) and env.np_random_seed == (255, 256, 257)
    assert same(env.reset(seed=list(np.arange(255, 258))), wanted)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"state": np.zeros((2, 4))}, "['state'] must be float64 (3, 4), got float64 (2, 4)"),
        ({"state": np.zeros((3, 4), np.float32)}, "['state'] must be float64 (3, 4), got float32 (3, 4)"),
        ({"state": np.full((3, 4), np.nan)}, "['state'] must be within +-1000000, got"),
        ({"elapsed": np.array([0, 0, -1])}, "['elapsed'] must be >= 0"),
        ({"done": np.ones(3, np.bool_)}, "['done'] must be False in SAME_STEP mode"),
        ({"generators": []}, "['generators'] must be 3 states, got 0"),
        ({"generators": [{}] * 3}, "['generators'] must be states of NumPy's PCG64"),
        ({"generators": [np.random.MT19937(0).state] * 3}, "['generators'] must be states of NumPy's PCG64"),
        ({"more": 1}, "unlike: ['more']"),
    ],
)
def test_states(change, text, backend):
    env = CartPoleVectorEnv(3, autoreset_mode="SameStep")
    env.reset(seed=0)
    before = env.state_dict()
    with pytest.raises(ValueError) as error:
        env.load_state_dict({**before, **change})
    assert str(error.value).startswith("CartPole: state_dict") and text in str(error.value)
    assert unchanged(env, before)


def test_no_state(backend):
    env = CartPoleVectorEnv(3)
    with pytest.raises(TypeError, match="CartPole: state_dict must be a dict, got NoneType"):
        env.load_state_dict(None)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: CartPoleVectorEnv(0), ValueError, "CartPoleVectorEnv: num_envs must be in [1, 2147483648), got 0"),
        (lambda: CartPoleVectorEnv(1.0), TypeError, "CartPoleVectorEnv: num_envs must be an int, got float"),
        (lambda: CartPoleVectorEnv(1, 0), ValueError, "CartPoleVectorEnv: max_episode_steps must be in [1, "),
        (lambda: CartPoleVectorEnv(1, render_mode="human"), ValueError, "render_mode must be None or 'rgb_array'"),
        (
            lambda: CartPoleVectorEnv(1, autoreset_mode="x"),
            ValueError,
            "CartPoleVectorEnv: autoreset_mode must be one of NextStep, SameStep, Disabled, got 'x'",
        ),
        (lambda: PendulumVectorEnv(1, autoreset_mode=None), ValueError, "PendulumVectorEnv: autoreset_mode must be"),
        (lambda: PendulumVectorEnv(g=np.nan), ValueError, "PendulumVectorEnv: g must be within +-1000000, got nan"),
        (lambda: MountainCarVectorEnv(goal_velocity="fast"), TypeError, "goal_velocity must be a number, got str"),
        (lambda: gym.make_vec("fastrl/CartPole-v1", 2, g=1), TypeError, "unexpected keyword argument 'g'"),
    ],
)
def test_constructors(call, error, text):
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)


def test_states_far_out_neither_hang_nor_become_nan(make, backend):
    for env_id in ("Acrobot-v1", "CartPole-v1", "Pendulum-v1"):
        ours, _ = make(env_id, 2)
        ours.reset(seed=0)
        state = ours.state_dict()
        state["state"][:] = 1e6
        if backend == "reference" and env_id == "Acrobot-v1":
            state["state"][:] = 1e2  # Gymnasium's would subtract for ever
        ours.load_state_dict(state)
        action = np.zeros(ours.action_space.shape, ours.action_space.dtype)
        with np.errstate(all="ignore"):
            for _ in range(3):
                obs, reward, *_ = ours.step(action)
                assert np.isfinite(obs).all() and np.isfinite(reward).all()
