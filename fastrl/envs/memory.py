"""Environments whose observations do not tell all: what was seen earlier has to be remembered."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from numpy.typing import NDArray

Observation = NDArray[np.float32]


class TMaze(gym.Env[Observation, np.int64]):
    """A corridor and a junction at its end; the first observation alone says on which side the reward is.

    Observation: (cue, junction), float32 ``[2]``: the cue is -1 (left) or 1 (right) at the first step, each half of the
    time, and 0 later; junction is 1 at the end of the corridor and else 0.
    Actions: 0 goes on, 1 turns left, 2 turns right.  In the corridor turning does nothing, nor does going on at its
    end; turning there ends the episode, with the reward 1 on the cue's side and -1 on the other.  All else is worth 0.

    The best policy with a memory has the return 1, and every policy that acts by the last observation alone has at most
    0 in the mean, because at the junction all observations are the same.

    `length`: steps from the first observation to the junction, >= 1.  Registered as "fastrl/TMaze-v0", cut after 100
    steps.

    Source: after Bakker, "Reinforcement Learning with Long Short-Term Memory" (2001).
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, length: int = 8) -> None:
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 1:
            raise ValueError(f"TMaze: length must be an int >= 1, got {length!r}")
        self.length = int(length)
        self.observation_space = gym.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32))
        self.action_space = gym.spaces.Discrete(3)
        self._place = self._side = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._place, self._side = 0, 2 * int(self.np_random.integers(2)) - 1
        return np.array([self._side, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self._side:
            raise gym.error.ResetNeeded("TMaze: reset() must be called before step()")
        if not self.action_space.contains(action):
            raise ValueError(f"TMaze: action must be 0, 1 or 2, got {action!r}")
        reward = 0.0
        ended = bool(action) and self._place == self.length
        if ended:
            reward = 1.0 if 2 * int(action) - 3 == self._side else -1.0
            self._side = 0
        elif not action:
            self._place = min(self._place + 1, self.length)
        return np.array([0, self._place == self.length], np.float32), reward, ended, False, {}


class PositionCartPole(gym.ObservationWrapper[Observation, np.int64, Observation]):
    """Gymnasium's CartPole without velocities: the observation is (position, angle) of its four numbers.

    Registered as "fastrl/PositionCartPole-v1", with CartPole-v1's time limit; `kwargs` are those of ``CartPole-v1``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(CartPoleEnv(**kwargs))  # type: ignore[arg-type]
        space: Any = self.env.observation_space
        self.observation_space = gym.spaces.Box(space.low[::2], space.high[::2], dtype=np.float32)

    def observation(self, observation: Observation) -> Observation:
        return observation[::2].copy()
