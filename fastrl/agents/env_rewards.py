"""Returns are of what the environment itself pays, beneath the wrappers that change rewards for learning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorRewardWrapper, VectorWrapper
from gymnasium.wrappers import NormalizeReward, OrderEnforcing, PassiveEnvChecker
from gymnasium.wrappers.vector import NormalizeReward as NormalizeRewards
from numpy.typing import NDArray

CHANGE = (gym.RewardWrapper, NormalizeReward, VectorRewardWrapper, NormalizeRewards)
MADE = (OrderEnforcing, PassiveEnvChecker)  # gymnasium.make's; what is inside is the environment's own


class Meter:
    """Stands in for the `step` of `env`, a single or a vector environment, and adds up the rewards that it gives.

    An attribute of the environment itself, not one more wrapper: those outside may look at their `env`.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.replaced, self.paid = env, vars(env).get("step"), None

    def __call__(self, actions: Any) -> Any:
        result = type(self.env).step(self.env, actions) if self.replaced is None else self.replaced(actions)
        paid = copy.copy(result[1])  # wrappers of vectors write into the array
        self.paid = paid if self.paid is None else self.paid + paid
        return result

    def take(self, reward: Any) -> Any:
        """What was paid since the last call; `reward` if that was nothing, or is of another shape."""
        paid, self.paid = self.paid, None
        return paid if paid is not None and np.shape(paid) == np.shape(reward) else reward


def reward_wrappers(env: Any) -> list[Any]:
    """The wrappers around an environment that are known to change rewards, the outermost first.

    Gymnasium's NormalizeReward, and every RewardWrapper: TransformReward, ClipReward, the user's own; not those inside
    of what `gymnasium.make` made, which are the environment's own.
    """
    found = []
    while isinstance(env, (gym.Wrapper, VectorWrapper)) and not isinstance(env, MADE):
        if isinstance(env, CHANGE):
            found.append(env)
        env = env.env
    return found


def meter_of(env: Any) -> Meter | None:
    """The meter beneath the innermost of the `reward_wrappers`, where it stays; None: there are none."""
    wrappers = reward_wrappers(env)
    if not wrappers:
        return None
    inner = wrappers[-1].env
    if not isinstance(vars(inner).get("step"), Meter):
        inner.step = Meter(inner)
    meter: Meter = inner.step
    return meter


class VectorMeters:
    """What the environments of a vector environment that steps itself paid, each ``[N]``.

    Of each beneath its own wrappers, where it is in this process and has some, else beneath the vector's.
    """

    def __init__(self, vec: Any, singles: Sequence[Any]) -> None:
        self.each = [meter_of(env) for env in singles]
        self.whole = None if self.each and None not in self.each else meter_of(vec)

    def take(self, reward: NDArray[np.float64]) -> Any:
        paid = reward if self.whole is None else self.whole.take(reward)
        if not any(self.each):
            return paid
        pairs = zip(self.each, paid, strict=True)
        return np.array([r if meter is None else meter.take(r) for meter, r in pairs], np.float64)
