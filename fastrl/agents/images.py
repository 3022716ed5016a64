"""Observations that are images: which network sees them, and which of them are stacks of frames."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from numpy.typing import NDArray

from fastrl.agents.arrays import concatenate
from fastrl.agents.config import InputError, import_torch
from fastrl.agents.spaces import Flattened, Part, input_scale

LEAST = {"nature": 36, "impala": 8}  # pixels of a side
RECURRENT = ("lstm", "gru")
NO_NETWORKS = ("CrossQ", "FQI")  # agents that take none of the user's own
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


class ReadyMade(NamedTuple):
    """A ready-made convolutional network for observations of `shape`."""

    kind: str  # nature or impala
    shape: tuple[int, ...]
    images: tuple[Part, ...] | None = None  # in flattened observations; None: the observations are images


class Packed:
    """Flattened observations ``[B, n]`` as a replay buffer keeps them: images of bytes as bytes, all else as it is.

    >>> packed.unpack(packed.pack(obs))  # obs, bit for bit
    """

    def __init__(self, images: Sequence[Part], n: int) -> None:
        self._pieces: list[tuple[str, int, int]] = []  # of the vector, one after another: columns of the dict's arrays
        sizes = {"images": 0, "others": 0}
        edges = [0, *(edge for part in images for edge in (part.start, part.stop)), n]
        for i, size in enumerate(np.diff(edges).tolist()):
            name = "images" if i % 2 else "others"
            if size:
                self._pieces.append((name, sizes[name], sizes[name] + size))
                sizes[name] += size
        dtypes = {"images": np.uint8, "others": np.float32}
        self.space = {name: ((size,), dtypes[name]) for name, size in sizes.items() if size}

    def pack(self, obs: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        each: dict[str, list[NDArray[Any]]] = {name: [] for name in self.space}
        start = 0
        for name, begin, end in self._pieces:
            stop = start + end - begin
            each[name].append(obs[:, start:stop])
            start = stop
        kept: dict[str, NDArray[Any]] = {name: np.concatenate(parts, 1) for name, parts in each.items()}
        kept["images"] = np.rint(kept["images"] * np.float32(255)).astype(np.uint8)
        return kept

    def unpack(self, kept: Mapping[str, Any]) -> Any:
        pieces: list[Any] = []
        for name, begin, end in self._pieces:
            x = kept[name][:, begin:end]
            if name == "images":  # scaled as `Flattened` does it
                x = (x.astype(np.float32) if isinstance(x, np.ndarray) else x.float()) * np.float32(1 / 255)
            pieces.append(x)
        return concatenate(pieces, 1)


def packed(made: ReadyMade | None) -> Packed | None:
    """How a replay buffer keeps what `made` sees; None: as it is."""
    images = [part for part in (made and made.images) or () if input_scale(part.space) is not None]
    return Packed(images, made.shape[0]) if made is not None and images else None


def unpacked(obs: Any, flat: Flattened) -> Any:
    """What some agent's `Packed` kept of observations that `flat` flattens, as they were; anything else as it is.

    Which of their parts were images depends on its network, but fewer numbers mean fewer images.
    """
    if not isinstance(obs, Mapping) or not set(obs) <= {"images", "others"}:
        return obs
    got = {name: (np.shape(x)[1:], getattr(x, "dtype", None)) for name, x in obs.items()}
    bytes_ = [part for part in flat.parts if input_scale(part.space) is not None]
    for axes, least in (((3,), LEAST["nature"]), *(((2, 3), least) for least in LEAST.values())):
        images = [part for part in bytes_ if len(part.space.shape or ()) in axes and _side(part.space) >= least]
        if images and (kept := Packed(images, flat.size)).space == got:
            return kept.unpack(obs)
    return obs


def ready_made(
    agent: str, config: Any, given: Any, space: gym.Space[Any], flat: Flattened | None = None
) -> ReadyMade | None:
    """The ready-made network for observations of `space`; None: an MLP, or the user's own.

    `flat`: how they are flattened, if they are; the images among their parts are then what it sees as images.
    Warns of images of bytes, or stacks of those, that are seen flattened.  Raises InputError for images that the one
    that was asked for cannot see.
    """
    parts = [Part("", space, 0, 0)] if flat is None else flat.parts
    made = _chosen(agent, config, given, space, flat, parts)
    if given is None:
        _warn_of_flattened(agent, config, parts, made)
    return made


def _chosen(
    agent: str, config: Any, given: Any, space: gym.Space[Any], flat: Flattened | None, parts: Sequence[Part]
) -> ReadyMade | None:
    shape, asked = space.shape or (), getattr(config, "network", "mlp")
    if given is not None:
        if asked not in ("auto", "mlp"):
            raise InputError(f"{agent}: network must be a module of your own or {asked}, not both")
        return None
    noisy = getattr(config, "noisy", False)

    def made(kind: str, images: list[Part]) -> ReadyMade:
        return ReadyMade(kind, shape, None if flat is None else tuple(images))

    if asked in LEAST:
        least = LEAST[asked]
        images = [part for part in parts if _side(part.space) >= least]
        if not images:
            wanted = f"images [C, H, W], [H, W, C] or [H, W] of at least {least} x {least} pixels"
            if flat is None:
                raise InputError(f"{agent}: network {asked} needs observations that are {wanted}, got shape {shape}")
            got = ", ".join(f"{part.name} of shape {part.space.shape}" for part in parts)
            raise InputError(f"{agent}: network {asked} needs observations with {wanted} among their parts, got {got}")
        if noisy:
            raise InputError(f"{agent}: noisy must be False with network {asked}: only MLPs have noisy layers")
        import_torch(f"{agent}: network {asked}")
        return made(asked, images)
    large = [part for part in parts if _is_image(part.space, (3,)) and _side(part.space) >= LEAST["nature"]]
    if asked == "auto" and large and not noisy:
        import_torch(f"{agent}: network nature (that of images; network mlp does not)")
        return made("nature", large)
    return None


def _warn_of_flattened(agent: str, config: Any, parts: Sequence[Part], made: ReadyMade | None) -> None:
    """Warn of observations, or `parts` of those, that look like images, but that no convolution sees."""
    seen = {part.name for part in parts if made and (made.images is None or part in made.images)}
    left = [part for part in parts if _is_image(part.space, (2, 3, 4)) and part.name not in seen]
    if left:
        flat = bool(left[0].name)
        what = ", ".join(f"{part.name} of shape {part.space.shape}".strip() for part in left)
        network = "an MLP" if made is None else f"the hidden layer of network {made.kind}"
        warnings.warn(
            f"{agent}: observations {what} look like images, and {network} sees them flattened, divided by 255; "
            f"{_instead(agent, config, [part.space for part in left], flat)}",
            stacklevel=5,
        )


def _is_image(space: gym.Space[Any], dimensions: tuple[int, ...]) -> bool:
    """Are these bytes 0..255 in so many dimensions?"""
    shape = space.shape or ()
    return input_scale(space) is not None and len(shape) in dimensions and 0 not in shape


def _side(space: gym.Space[Any]) -> int:
    """Pixels of an image's shorter side; 0: the space is not one of images."""
    image = image_shape(space.shape or ()) if isinstance(space, gym.spaces.Box) else None
    return 0 if image is None or not image[0] else min(image[1:])


def _instead(agent: str, config: Any, spaces: Sequence[gym.Space[Any]], flat: bool) -> str:
    """Which networks `config` could have for these images, in words; `flat`: they are parts of a vector."""
    if agent in NO_NETWORKS:
        return f"{agent} has no convolutions"
    if getattr(config, "network", None) in RECURRENT:
        return "networks with a memory have no convolutions"
    names = [name for name, least in LEAST.items() if any(_side(space) >= least for space in spaces)]
    own = "a torch module for the whole vector" if flat else "a convolutional torch module"
    return f"{_off(config)}network= takes {' or '.join([own, *(names if hasattr(config, 'network') else [])])}"


def _off(config: Any) -> str:
    """Which switches have to be off for other networks, in words."""
    rainbow = getattr(config, "rainbow", False)  # which switches the others on
    off = [s for s in (("rainbow",) if rainbow else ("noisy", "dueling")) if getattr(config, s, False)]
    return f"with {' and '.join(off)} off " if off else ""


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
