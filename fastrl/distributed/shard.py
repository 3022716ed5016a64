"""What runs in the process of a shard of the replay buffer, which needs neither Ray nor PyTorch."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.hyperparameters.distributed import ApeXConfig
from fastrl.replay import Batch, PrioritizedReplay

Chunk = tuple[Any, ...]
"""obs, action, reward, next_obs, terminated, truncated, episode_start ``[n, ...]`` as `ReplayBuffer.extend` takes
them, and |TD error| ``[n]``: of every environment its steps one after another."""


@dataclass(frozen=True)
class Held:
    """What a shard holds."""

    added: int
    size: int
    total: float
    """Sum of the priorities."""


class Shard:
    """A part of the replay buffer, called from several threads at once; the kernels release the GIL."""

    def __init__(self, config: ApeXConfig, obs_space: Any, action_space: Any, seed: int) -> None:
        c = config
        # beta is the learner's, which raises the weights of beta = 1 to it.
        self._buffer = PrioritizedReplay(
            c.buffer_size // c.shards, obs_space, action_space, n_step=c.n_step, gamma=c.gamma, seed=seed,
            alpha=c.per_alpha, eps=c.per_eps, beta=1.0, beta_end=1.0,
        )  # fmt: skip
        self._adding = threading.Lock()

    def add(self, chunk: Chunk) -> Held:
        """Store a chunk with its priorities."""
        obs, action, reward, next_obs, terminated, truncated, begins, errors = chunk
        buffer = self._buffer
        with self._adding:
            buffer.extend(obs, action, reward, next_obs, terminated, truncated, episode_start=begins)
            buffer.update_priorities(np.arange(buffer._added - len(reward), buffer._added), errors)
        return self._held()

    def sample(self, batch_size: int, batches: int) -> tuple[Held, Batch]:
        """So many batches, one behind the other, of one stratified draw: each is stratified itself."""
        drawn = self._buffer.sample(batch_size * batches)
        order = np.arange(batch_size * batches).reshape(batch_size, batches).T.ravel()
        return self._held(), Batch(*(x[order] for x in drawn))

    def update(self, indices: NDArray[np.int64], errors: NDArray[np.float32]) -> int:
        """Give transitions the priorities of their TD errors; how many had been overwritten since."""
        return self._buffer.update_priorities(indices, errors)

    def _held(self) -> Held:
        buffer = self._buffer
        return Held(buffer._added, len(buffer), buffer._tree.total)
