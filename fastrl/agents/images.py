"""Observations that are images: which network sees them, and which of them are stacks of frames."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import gymnasium as gym
from gymnasium import wrappers

from fastrl.agents.config import InputError, import_torch
from fastrl.agents.spaces import input_scale

LEAST = {"nature": 36, "impala": 8}  # pixels of a side
RECURRENT = ("lstm", "gru")
# Wrappers that pass observations on as they are.
PLAIN = (
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.TimeLimit,
    wrappers.TransformReward,
    wrappers.ClipReward,
)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(channels, height, width) of observations [H, W], [C, H, W] or [H, W, C]; None: they are no images.

    The channels are the smaller dimension of the first and the last, the last one if both are equal.
    """
    if len(shape) == 2:
        return 1, *shape
    if len(shape) != 3:
        return None
    return shape if shape[0] < shape[2] else (shape[2], *shape[:2])


def ready_made(agent: str, config: Any, given: Any, space: gym.Space[Any]) -> str | None:
    """The ready-made network, "nature" or "impala", for observations of `space`; None: an MLP, or the user's own.

    Warns of an MLP that sees images of bytes, or stacks of those.  Raises InputError for images that the one that was
    asked for cannot see.
    """
    shape, asked = space.shape or (), getattr(config, "network", "mlp")
    bytes_, image = input_scale(space) is not None, image_shape(shape)
    if given is not None:
        if asked not in ("auto", "mlp"):
            raise InputError(f"{agent}: network must be a module of your own or {asked}, not both")
        return None
    noisy = getattr(config, "noisy", False)
    if asked in LEAST:
        least = LEAST[asked]
        if image is None or min(image[1:]) < least:
            wanted = f"images [C, H, W], [H, W, C] or [H, W] of at least {least} x {least} pixels"
            raise InputError(f"{agent}: network {asked} needs observations that are {wanted}, got shape {shape}")
        if noisy:
            raise InputError(f"{agent}: noisy must be False with network {asked}: only MLPs have noisy layers")
        import_torch(f"{agent}: network {asked}")
        return str(asked)
    large = image is not None and len(shape) == 3 and min(image[1:]) >= LEAST["nature"]
    if asked == "auto" and bytes_ and large and not noisy:
        import_torch(f"{agent}: network nature (that of images; network mlp does not)")
        return "nature"
    if bytes_ and len(shape) in (2, 3, 4):
        warnings.warn(
            f"{agent}: observations of shape {shape} look like images, and an MLP sees them flattened, divided by 255; "
            + _instead(config, image),
            stacklevel=4,
        )
    return None


def _instead(config: Any, image: tuple[int, int, int] | None) -> str:
    """Which networks `config` could have for this image, in words."""
    if getattr(config, "network", None) in RECURRENT:
        return "networks with a memory have no convolutions"
    names = [name for name, least in LEAST.items() if image is not None and min(image[1:]) >= least]
    takes = ["a convolutional torch module", *(names if hasattr(config, "network") else [])]
    rainbow = getattr(config, "rainbow", False)  # which switches the others on
    off = [s for s in (("rainbow",) if rainbow else ("noisy", "dueling")) if getattr(config, s, False)]
    return (f"with {' and '.join(off)} off " if off else "") + f"network= takes {' or '.join(takes)}"


def stacked_frames(env: Any) -> int:
    """How many frames an observation of `env` is a stack of, along its first axis; 1: it is not known to be one.

    Stacks are those of Gymnasium's FrameStackObservation, if no wrapper outside it touches observations, and of
    ale-py's AtariVectorEnv.
    """
    ale = sys.modules.get("ale_py.vector_env")
    if ale is not None and isinstance(env, ale.AtariVectorEnv):
        frames = env.single_observation_space.shape  # [frames, H, W], of colours one axis more
        return int(frames[0]) if len(frames) == 3 else 1
    env = env.envs[0] if isinstance(env, gym.vector.SyncVectorEnv) else env
    while isinstance(env, PLAIN):
        env = env.env
    return int(env.stack_size) if isinstance(env, wrappers.FrameStackObservation) else 1
