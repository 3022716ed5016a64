"""`ClassicControl` is the reference of the compiled ``fastrl._C.ClassicControl``: Gymnasium's own environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Gymnasium's ids, and the argument of their classes that is a parameter of the equations.
GYMNASIUM = {
    "CartPole": ("CartPole-v1", "sutton_barto_reward"),
    "Pendulum": ("Pendulum-v1", "g"),
    "Acrobot": ("Acrobot-v1", None),
    "MountainCar": ("MountainCar-v0", "goal_velocity"),
    "MountainCarContinuous": ("MountainCarContinuous-v0", "goal_velocity"),
}


def gymnasium_env(name: str, parameter: float, render_mode: str | None = None) -> Any:
    """Gymnasium's own environment, without wrappers."""
    env_id, argument = GYMNASIUM[name]
    kwargs: dict[str, Any] = {} if argument is None else {argument: parameter}
    return gym.make(env_id, disable_env_checker=True, render_mode=render_mode, **kwargs).unwrapped


def put_state(env: Any, state: Array, fresh: bool) -> None:
    """Give Gymnasium's environment a state in the precision in which it would have it; `fresh`: of a reset."""
    name = type(env).__name__
    narrow = fresh if name == "AcrobotEnv" else not fresh and name == "Continuous_MountainCarEnv"
    env.state = state.astype(np.float32 if narrow else np.float64)


class ClassicControl:
    """N environments in the caller's arrays, one after another in one of Gymnasium's.

    Args:
        name: a key of `GYMNASIUM`.
        state, elapsed, done, fresh, last_action: float64 ``[N, S]``, then int64, bool, bool and float32 ``[N]``: the
            states; the steps of the episodes; whether they have ended; whether the state is that of a reset; the last
            action, for drawings, NaN after a reset.
        max_steps: of an episode.
        mode: the value of an AutoresetMode.
        low, high: the bounds of new states, float64; what the state has beyond them begins with 0.
        sin, cos: NumPy's, for the compiled one.
    """

    def __init__(
        self, name: str, state: Array, elapsed: Array, done: Array, fresh: Array, last_action: Array,
        max_steps: int, mode: str, parameter: float, low: Array, high: Array, sin: Any, cos: Any,
    ) -> None:  # fmt: skip
        self._name, self._env = name, gymnasium_env(name, parameter)
        self._state, self._elapsed, self._done, self._fresh, self._last = state, elapsed, done, fresh, last_action
        self._max_steps, self._mode, self._low, self._high = max_steps, mode, low, high
        self._generators: list[np.random.Generator] = []

    def set_generators(self, bit_generators: Sequence[Any]) -> None:
        self._generators = [np.random.Generator(b) for b in bit_generators]

    def reset(self, which: Array | None, low: Array, high: Array) -> Array:
        self._check_generators()
        for i in range(len(self._state)) if which is None else np.flatnonzero(which).tolist():
            self._begin(i, low, high)
        return self.observe()

    def observe(self) -> Array:
        return np.array([self._observe(i) for i in range(len(self._state))])

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, Array | None]:
        self._check_generators()
        actions, n = self._checked(actions), len(self._state)
        obs = np.empty((n, *self._env.observation_space.shape), np.float32)
        final, reward = obs.copy(), np.zeros(n)
        terminated, truncated = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        for i in range(n):
            if self._done[i]:  # with NextStep only
                self._begin(i, self._low, self._high)
            else:
                self._elapsed[i] += 1
                reward[i], terminated[i] = self._step(i, actions[i])
                truncated[i] = self._elapsed[i] >= self._max_steps
                self._done[i] = terminated[i] or truncated[i]
                if self._done[i] and self._mode == "SameStep":
                    final[i] = self._observe(i)
                    self._begin(i, self._low, self._high)
            obs[i] = self._observe(i)
        ends = self._mode == "SameStep" and (terminated | truncated).any()
        return obs, reward, terminated, truncated, final if ends else None

    def _step(self, i: int, action: Any) -> tuple[float, bool]:
        put_state(self._env, self._state[i], self._fresh[i])
        self._env.steps_beyond_terminated = None  # CartPole's
        _, reward, terminated, _, _ = self._env.step(action)
        self._state[i], self._fresh[i] = self._env.state, False
        if np.ndim(action):
            self._last[i] = action[0]
        return reward, terminated

    def _begin(self, i: int, low: Array, high: Array) -> None:
        self._state[i] = 0.0
        self._state[i, : len(low)] = self._generators[i].uniform(low, high)
        self._elapsed[i], self._done[i], self._fresh[i], self._last[i] = 0, False, True, np.nan

    def _observe(self, i: int) -> Array:
        put_state(self._env, self._state[i], self._fresh[i])
        if self._name == "Pendulum":
            obs = self._env._get_obs()
        elif self._name == "Acrobot":
            obs = self._env._get_ob()
        else:
            obs = self._env.state
        return np.asarray(obs, np.float32)

    def _check_generators(self) -> None:
        if not self._generators:
            raise RuntimeError("reset() must be called before step()")

    def _checked(self, given: Any) -> Array:
        n, where, space = len(self._state), f"{self._name}: actions", self._env.action_space
        discrete = isinstance(space, gym.spaces.Discrete)
        allowed = ("int64", "int32") if discrete else ("float32",)
        actions: Array = np.array(given)
        if actions.dtype.name not in allowed:
            raise ValueError(f"{where} must have dtype {' or '.join(allowed)}, got {actions.dtype}")
        shape = (n,) if discrete else (n, 1)
        if actions.shape != shape:
            raise ValueError(f"{where} must have shape {shape}, got {actions.shape}")
        for i, action in enumerate(actions):
            if self._done[i]:
                if self._mode == "NextStep":
                    continue  # its action is not used
                hint = 'reset it first, by reset(options={"reset_mask": mask})'
                raise RuntimeError(f"the episode of environment {i} has ended: {hint}")
            if isinstance(space, gym.spaces.Discrete) and not 0 <= action < space.n:
                raise ValueError(f"{where} must be in [0, {space.n}), got {action} for environment {i}")
            if not discrete and not np.isfinite(action[0]):
                raise ValueError(f"{where} must be finite, got {action[0]} for environment {i}")
        return actions
