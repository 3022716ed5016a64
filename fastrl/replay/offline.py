"""Datasets of others as replay buffers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.replay.buffer import ReplayBuffer


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
