"""What add and sample are given wrongly: an error that names it, and the buffer as it was."""

import numpy as np
import pytest
from replay_worlds import ACTION, BOTH, GOOD, OBS, fill

from fastrl.replay import ReplayBuffer

# ---- bad input ------------------------------------------------------------------------------------------------------

BAD = [
    ("obs", np.zeros((2, 4)), ValueError, r"obs must have shape \(2, 3\), got \(2, 4\)"),
    ("obs", np.zeros(3), ValueError, "obs must have shape"),
    ("obs", np.zeros((3, 3)), ValueError, "obs must have shape"),
    ("obs", np.zeros((2, 3), complex), ValueError, "obs must have dtype float32, got complex128"),
    ("obs", None, TypeError, "obs must be numbers"),
    ("obs", "abc", TypeError, "obs must be numbers"),
    ("obs", [[1, 2, 3], [1, 2]], ValueError, "obs setting an array element"),
    ("obs", {"a": 1}, TypeError, "obs must be numbers"),
    ("next_obs", np.zeros((2, 3, 1)), ValueError, "next_obs must have shape"),
    ("action", np.array([0.0, 1.0]), ValueError, "action must have dtype int64, got float64"),
    ("action", np.array([[0], [1]]), ValueError, r"action must have shape \(2,\), got \(2, 1\)"),
    ("action", np.array([0, 2**63], np.uint64), ValueError, "action must fit in dtype int64"),
    ("reward", np.array([0.0, np.nan]), ValueError, r"reward\[1\] must be finite in float32, got nan"),
    ("reward", np.array([-np.inf, 0.0]), ValueError, r"reward\[0\] must be finite in float32, got -inf"),
    ("reward", 1.0, ValueError, "reward must have shape"),
    ("terminated", np.array([0.0, 1.0]), ValueError, "terminated must have dtype bool, got float64"),
    ("terminated", np.array([0, 2]), ValueError, "terminated must fit in dtype bool"),
    ("truncated", np.array([False]), ValueError, "truncated must have shape"),
    ("mask", np.array([True, True, True]), ValueError, "mask must have shape"),
    ("mask", np.array([0.5, 1]), ValueError, "mask must have dtype bool"),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_bad_items_leave_the_buffer_as_it_was(cls, state, name, value, error, message):
    buffer = fill(cls(10, OBS, ACTION, 2, seed=0), 9)
    before = state(buffer)
    with pytest.raises(error, match=f"replay.add: {message}"):
        buffer.add(**{**GOOD, name: value})
    assert state(buffer) == before
    buffer.add(**GOOD)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("obs", np.zeros(4), ValueError),
        ("obs", np.zeros((2, 3)), ValueError),
        ("action", [0, 1], ValueError),
        ("action", 1.5, ValueError),
        ("reward", np.nan, ValueError),
        ("reward", None, TypeError),
        ("terminated", "no", TypeError),
        ("truncated", 2, ValueError),
    ],
)
def test_bad_items_of_one_environment(state, name, value, error):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, seed=0), 9)
    before = state(buffer)
    good = {
        "obs": np.zeros(3),
        "action": 0,
        "reward": 0,
        "next_obs": np.ones(3),
        "terminated": False,
        "truncated": False,
    }
    with pytest.raises(error, match=f"replay.add: {name}"):
        buffer.add(**{**good, name: value})
    assert state(buffer) == before


def test_a_reward_beyond_float32(state):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, seed=0), 9)
    before = state(buffer)
    with pytest.raises(ValueError, match=r"reward must be finite in float32, got 1e\+39"):
        buffer.add(np.zeros(3), 0, 1e39, np.zeros(3), False, False)
    assert state(buffer) == before


def test_a_masked_dummy_may_be_nonsense():
    buffer = ReplayBuffer(10, OBS, ACTION, 2, seed=0)
    buffer.add(**{**GOOD, "reward": np.array([np.nan, 1.0]), "mask": np.array([False, True])})
    assert len(buffer) == 1
    one = ReplayBuffer(10, OBS, ACTION, seed=0)
    for mask in (False, np.array([False]), np.bool_(False)):
        one.add(np.zeros(3), 0, np.nan, np.zeros(3), False, False, mask)
    assert len(one) == 0


@BOTH
def test_sampling_nothing(cls, state):
    buffer = cls(10, OBS, ACTION, seed=0)
    before = state(buffer)
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="the buffer is empty"):
        buffer.sample(4)
    assert state(buffer) == before


@BOTH
def test_bad_batch_sizes(cls, state):
    buffer = fill(cls(10, OBS, ACTION, seed=0), 9)
    before = state(buffer)
    for value, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)):
        with pytest.raises(error, match="batch_size"):
            buffer.sample(value)
    assert state(buffer) == before
    assert len(buffer.sample(np.int64(3)).reward) == 3
