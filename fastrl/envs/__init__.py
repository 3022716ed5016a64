"""Compiled environments, registered with Gymnasium when this module is imported (extra ``agents``).

``gymnasium.make_vec("fastrl/CartPole-v1", num_envs=8)`` and so on for "fastrl/Pendulum-v1", "fastrl/Acrobot-v1",
"fastrl/MountainCar-v0" and "fastrl/MountainCarContinuous-v0"; "fastrl.envs:fastrl/CartPole-v1" imports this module too.
``gymnasium.make`` of such an id gives Gymnasium's own single environment, which does the same.

And two single environments, for agents with a memory: "fastrl/TMaze-v0" (`TMaze`), and "fastrl/PositionCartPole-v1"
(`PositionCartPole`), CartPole without velocities.
"""

from __future__ import annotations

import dataclasses

import gymnasium as gym

from fastrl.envs.classic_control import (
    AcrobotVectorEnv,
    CartPoleVectorEnv,
    ClassicControlVectorEnv,
    MountainCarContinuousVectorEnv,
    MountainCarVectorEnv,
    PendulumVectorEnv,
)
from fastrl.envs.memory import PositionCartPole, TMaze
from fastrl.envs.reference import GYMNASIUM

__all__ = [
    "AcrobotVectorEnv",
    "CartPoleVectorEnv",
    "ClassicControlVectorEnv",
    "MountainCarContinuousVectorEnv",
    "MountainCarVectorEnv",
    "PendulumVectorEnv",
    "PositionCartPole",
    "TMaze",
]

for _cls in (
    AcrobotVectorEnv,
    CartPoleVectorEnv,
    MountainCarContinuousVectorEnv,
    MountainCarVectorEnv,
    PendulumVectorEnv,
):
    _spec = gym.spec(GYMNASIUM[_cls.name][0])
    _id = f"fastrl/{_spec.id}"
    gym.registry[_id] = dataclasses.replace(_spec, id=_id, vector_entry_point=f"fastrl.envs:{_cls.__name__}")

gym.register("fastrl/TMaze-v0", entry_point="fastrl.envs:TMaze", max_episode_steps=100)
gym.register("fastrl/PositionCartPole-v1", entry_point="fastrl.envs:PositionCartPole", max_episode_steps=500)
