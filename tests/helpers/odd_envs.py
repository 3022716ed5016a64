"""Small environments that the agents' tests share."""

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv


def register(name, *args, **kwargs):
    gym.registry.pop(name, None)
    gym.register(name, *args, **kwargs)


class Steps(gym.Env):
    """The observation counts the steps since the reset; a limit after 7."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, False, self.t >= 7, {}


class Stands(gym.Env):
    """Observations around 100; no episode ends by itself."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(100, 1, 1).astype(np.float32), {}

    def step(self, action):
        return self.np_random.normal(100, 1, 1).astype(np.float32), 1.0, False, False, {}


class Sees(gym.ObservationWrapper):
    """Remembers in `seen` the numbers that come through it."""

    def __init__(self, env):
        super().__init__(env)
        self.seen = []

    def observation(self, obs):
        self.seen.append(float(obs[0]))
        return obs


class Bright(gym.Env):
    """Single frames ``[36, 36]``: the half that is bright says which action is right; episodes of 6 steps."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, shape=(36, 36), dtype=np.uint8, high=255):
        self.observation_space = gym.spaces.Box(0, high, shape, dtype)

    def _frame(self):
        self.side = int(self.np_random.integers(2))
        frame = self.np_random.integers(0, 60, self.observation_space.shape).astype(self.observation_space.dtype)
        half = (slice(None),) * (frame.ndim - 1) + (slice(0, 4) if self.side else slice(4, None),)
        frame[half] += 150
        return frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {}

    def step(self, action):
        reward, self.t = float(action == self.side), self.t + 1
        return self._frame(), reward, self.t == 6, False, {}


class Sim(VectorEnv):
    """Three `Steps` that begin anew in the same step."""

    num_envs = 3
    single_observation_space = Steps.observation_space
    single_action_space = Steps.action_space
    observation_space = gym.vector.utils.batch_space(single_observation_space, 3)
    action_space = gym.vector.utils.batch_space(single_action_space, 3)

    def __init__(self, key="final_obs", flags=np.bool_, out=np.array, mode=AutoresetMode.SAME_STEP, hide=False):
        self.key, self.flags, self.out, self.hide, self.closed_times = key, flags, out, hide, 0
        self.metadata = {} if mode is None else {"autoreset_mode": mode}

    def reset(self, *, seed=None, options=None):
        self.t = np.zeros((3, 1), np.float32)
        return self.out(self.t), {}

    def step(self, actions):
        self.t += 1
        done = self.t[:, 0] >= 7
        info = {self.key: self.out(self.t), "_" + self.key: done} if done.any() and not self.hide else {}
        self.t[done] = 0
        flags = np.zeros(3, self.flags), done.astype(self.flags)
        return (*(self.out(x) for x in (self.t, np.ones(3), *flags)), info)

    def close_extras(self, **kwargs):
        self.closed_times += 1
