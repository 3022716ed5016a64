"""What runs in the process of a shard of the replay buffer, which needs neither Ray nor PyTorch."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.replay import PrioritizedReplay, SequenceReplay

Chunk = tuple[Any, ...]
"""`COLUMNS` ``[n, ...]`` as `ReplayBuffer.extend` takes them, and |TD error| ``[n]``: of every environment its steps
one after another.  Only sequences have a state, and the error is that of the one that begins there, or -1."""
COLUMNS = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "episode_start", "state")


@dataclass(frozen=True)
class Held:
    """What a shard holds."""

    added: int
    size: int
    total: float
    """Sum of the priorities."""


class Shard:
    """A part of the replay buffer, called from several threads at once; the kernels release the GIL."""

    def __init__(self, config: Any, obs_space: Any, action_space: Any, seed: int) -> None:
        self._buffer = self._make(config, config.buffer_size // config.shards, obs_space, action_space, seed)
        self._adding = threading.Lock()

    def _make(self, c: Any, capacity: int, obs_space: Any, action_space: Any, seed: int) -> PrioritizedReplay:
        # beta is the learner's, which raises the weights of beta = 1 to it.
        return PrioritizedReplay(
            capacity, obs_space, action_space, n_step=c.n_step, gamma=c.gamma, seed=seed,
            alpha=c.per_alpha, eps=c.per_eps, beta=1.0, beta_end=1.0,
        )  # fmt: skip

    def add(self, chunk: Chunk) -> Held:
        """Store a chunk with its priorities."""
        *columns, errors = chunk
        buffer = self._buffer
        with self._adding:
            buffer.extend(**dict(zip(COLUMNS, columns, strict=False)))
            self.update(np.arange(buffer._added - len(errors), buffer._added), errors)
        return self._held()

    def sample(self, batch_size: int, batches: int) -> tuple[Held, Any]:
        """So many batches, one behind the other, of one stratified draw: each is stratified itself."""
        drawn = self._buffer.sample(batch_size * batches)
        order = np.arange(batch_size * batches).reshape(batch_size, batches).T.ravel()
        return self._held(), type(drawn)(*(x[order] for x in drawn))

    def update(self, indices: NDArray[np.int64], errors: NDArray[np.float32]) -> int:
        """Give transitions the priorities of their TD errors; how many had been overwritten since."""
        return self._buffer.update_priorities(indices, errors)

    def _held(self) -> Held:
        buffer = self._buffer
        return Held(buffer._added, min(buffer._added, buffer.capacity), buffer._tree.total)


class SequenceShard(Shard):
    """A part of a replay buffer of sequences."""

    def _make(self, c: Any, capacity: int, obs_space: Any, action_space: Any, seed: int) -> SequenceReplay:
        return sequences(
            c, capacity, obs_space, action_space, seed=seed, alpha=c.per_alpha, eps=c.per_eps, beta=1.0, beta_end=1.0
        )

    def update(self, indices: NDArray[np.int64], errors: NDArray[np.float32]) -> int:
        begins = errors >= 0
        return self._buffer.update_priorities(indices[begins], errors[begins, None])


def sequences(c: Any, capacity: int, obs_space: Any, action_space: Any, **options: Any) -> SequenceReplay:
    """A buffer of R2D2's sequences, of steps one after another."""
    state = ((c.memory_size * (2 if c.network == "lstm" else 1),), np.float32)
    return SequenceReplay(
        capacity, obs_space, action_space, length=c.length, burn_in=c.burn_in, state_space=state, eta=c.eta,
        gamma=c.gamma, **options,
    )  # fmt: skip
