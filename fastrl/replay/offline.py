"""Stored transitions as replay buffers: saved ones, and datasets of others."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from fastrl.replay.buffer import ReplayBuffer
from fastrl.replay.mapped import describe
from fastrl.replay.prioritized import PrioritizedReplay

SAVED: dict[str, type[ReplayBuffer]] = {"ReplayBuffer": ReplayBuffer, "PrioritizedReplay": PrioritizedReplay}


def from_saved(path: str | os.PathLike[str], **options: Any) -> ReplayBuffer:
    """The buffer that a file of `save` or a folder of ``storage=`` holds, with the settings that are stored with it.

    A folder is opened as ``storage=`` opens it, and is this process's until `close`; a file is read into memory.  Of a
    checkpoint it is the file ``replay``.

    Args:
        options: what is not stored, and the default unless it is given: `beta`, `beta_end`, `beta_steps` and
            `normalize` of a `PrioritizedReplay`; `device`; `seed` (where None, the default generator is set back, as by
            `load`); of a file `storage`.

    Raises:
        TypeError: an option that is stored, or unknown.
        ValueError: not that of a `ReplayBuffer` or `PrioritizedReplay`, or damaged; or its observations or actions are
            a Tuple, or a Dict of more than arrays by name, whose spaces are not stored.
        OSError: it cannot be read, or another process has the folder open (BlockingIOError).
    """
    held = describe(path)
    cls = SAVED.get(held["class"])
    if cls is None:
        raise ValueError(f"replay.from_saved: {path} must be of {' or '.join(SAVED)}, got {held['class']}")
    settings = {k: v for k, v in held.items() if k in ("num_envs", "n_step", "gamma", "frame_stack", "store_next_obs")}
    settings |= {k: held[k] for k in ("alpha", "eps") if k in held}
    is_folder = os.path.isdir(path)
    if is_folder:
        settings["storage"] = path
    stored = sorted(options.keys() & {"capacity", "obs_space", "action_space", *settings})
    if stored:
        raise TypeError(f"replay.from_saved: {stored[0]} is that of {path}, and must be left out")
    frames = settings.get("frame_stack", 1)
    try:
        obs = _spaces(held["obs_shape"], held["obs_dtype"], frames)
        action = _spaces(held["action_shape"], held["action_dtype"], 1)
    except (AttributeError, KeyError, TypeError, ValueError):
        spaces = [(held[f"{name}_shape"], held[f"{name}_dtype"]) for name in ("obs", "action")]
        wanted = "observations and actions that are arrays or dicts of them"
        raise ValueError(f"replay.from_saved: {path} must have {wanted}, got {spaces}") from None
    buffer = cls(held["capacity"], obs, action, **settings, **options)
    if not is_folder:
        buffer.load(path)
    return buffer


def _spaces(shape: Any, dtype: Any, frames: int) -> Any:
    """The space of a stored shape and dtype, or of these by path; ValueError for another than a dict of arrays."""
    if isinstance(dtype, str):
        return _space(shape, dtype, frames)
    names = [re.fullmatch(r"\['(\w+)'\]", path, re.ASCII) for path in dtype]
    if not names:
        raise ValueError("no arrays")
    return {name[1]: _space(shape[name[0]], dtype[name[0]], frames) for name in names}  # type: ignore[index]


def _space(shape: Any, dtype: Any, frames: int) -> tuple[tuple[int, ...], Any]:
    if not isinstance(dtype, str) or not all(type(n) is int for n in shape):
        raise ValueError("no shape and dtype")
    return (*([frames] if frames > 1 else []), *shape), np.dtype(dtype)  # stored is the shape of one frame


def from_minari(dataset: Any, cls: type[ReplayBuffer] = ReplayBuffer, **options: Any) -> Any:
    """A buffer that holds every transition of a Minari dataset, episode by episode.

    Args:
        dataset: a `minari.MinariDataset`, or the id of one on this machine (nothing is downloaded).
        cls, options: of the buffer; `capacity` is the dataset's number of steps unless it is given.

    Raises:
        RuntimeError: an id given, but Minari is missing.
        FileNotFoundError: no such dataset on this machine.
        TypeError: a space that cannot be stored.
        ValueError: a dataset without a step, or an episode that has not one observation more than steps.
    """
    if isinstance(dataset, str):
        try:
            import minari
        except ImportError as error:
            raise RuntimeError(
                'replay.from_minari: an id needs Minari: pip install "fastrl-kernels[minari]"'
            ) from error
        dataset = minari.load_dataset(dataset)
    steps = int(dataset.total_steps)
    if steps < 1:
        raise ValueError("replay.from_minari: dataset must have a step, got none")
    buffer = cls(options.pop("capacity", steps), dataset.observation_space, dataset.action_space, **options)
    for episode in dataset.iterate_episodes():
        count = len(episode.rewards)
        for length in _lengths(episode.observations):
            if length != count + 1:
                raise ValueError(
                    f"replay.from_minari: episode {episode.id} must have {count + 1} observations of {count} steps, "
                    f"got {length}"
                )
        buffer.extend(
            _cut(episode.observations, slice(0, -1)), episode.actions, episode.rewards,
            _cut(episode.observations, slice(1, None)), episode.terminations, episode.truncations,
            episode_start=np.arange(count) == 0,
        )  # fmt: skip
    return buffer


def _lengths(value: Any) -> list[int]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else None
    return [len(value)] if parts is None else [n for part in parts for n in _lengths(part)]


def _cut(value: Any, steps: slice) -> Any:
    if isinstance(value, dict):
        return {key: _cut(part, steps) for key, part in value.items()}
    return tuple(_cut(part, steps) for part in value) if isinstance(value, tuple) else value[steps]
