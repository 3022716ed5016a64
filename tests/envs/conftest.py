"""The backends of the environments, and the vector environment of Gymnasium that they equal."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import fastrl.envs  # noqa: F401 (registers the ids)
from fastrl import _backend


@pytest.fixture(params=["cpp", "numba", "reference"])
def backend(request, monkeypatch):
    if request.param == "cpp" and _backend._C is None:
        pytest.skip("needs the compiled extension")
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(_backend, "CPU_BACKEND", request.param)
    return request.param


@pytest.fixture
def make():
    """``make(id, n, mode, **kwargs)``: ours and Gymnasium's."""

    def both(env_id, n, mode="NextStep", **kwargs):
        ours = gym.make_vec(f"fastrl/{env_id}", n, autoreset_mode=mode, **kwargs)
        return ours, SyncVectorEnv([lambda: gym.make(env_id, **kwargs)] * n, autoreset_mode=mode)

    return both


@pytest.fixture
def same():
    """``same(mine, theirs)``: are two results of reset() or step() the same to the bit, infos too?"""
    return lambda mine, theirs: _bits(mine) == _bits(theirs)


def _bits(x):
    if isinstance(x, (tuple, list)):
        return [_bits(item) for item in x]
    if isinstance(x, dict):
        return {key: _bits(value) for key, value in x.items()}
    if isinstance(x, np.ndarray) and x.dtype != object:
        return x.dtype, x.shape, x.tobytes()
    return [_bits(row) for row in x] if isinstance(x, np.ndarray) else x


@pytest.fixture
def policy():
    """``policy(vec, seed)``: actions after the observations that reach goals, and leave the bounds."""
    return Policy


class Policy:
    def __init__(self, vec, seed):
        self.space, self.rng, self.t = vec.single_action_space, np.random.default_rng(seed), 0
        self.column = {4: 2, 6: 5}.get(vec.single_observation_space.shape[0], 1)

    def __call__(self, obs):
        """Bang-bang after the velocity that counts, and at random every third phase."""
        self.t += 1
        n = len(obs)
        along = obs[:, self.column] > 0
        if isinstance(self.space, gym.spaces.Discrete):
            random = self.rng.integers(0, self.space.n, n)
            return random if self.t // 50 % 3 == 0 else np.where(along, self.space.n - 1, 0)
        bound = self.space.high[0]
        random = self.rng.normal(0, bound, (n, 1)).astype(np.float32)
        bang = np.where(along, bound, -bound).astype(np.float32)[:, None]
        return random if self.t // 50 % 3 == 0 else bang * np.float32(0.5 + self.t % 3 * 0.5)
