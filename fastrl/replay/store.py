"""The transitions of a replay buffer: columns, the ring that fills them, and batches gathered from them.

`ring.py` says where a transition is.  Nothing here knows of priorities, random draws or locks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.kernels.gather_rows import gather_rows
from fastrl.kernels.n_step_gather import n_step_gather
from fastrl.replay.batch import Batch
from fastrl.replay.ring import ring_class
from fastrl.replay.spaces import Space

Array = NDArray[Any]
Rows = NDArray[np.int64]


class Store:
    """Rings of the newest transitions of `num_envs` environments; `set_columns` first.

    Args:
        obs, action: spaces; `obs.frames` > 1 for stacks of frames.
        most: transitions held of each environment.
        store_next_obs: in a column of its own.
        gamma: of n-step returns and discounts.
        unread: how many of the last arrays of an action are only kept, in `unread`, and None in a batch.
        pinned: None, or torch: batches are tensors in pinned memory.
    """

    def __init__(
        self, obs: Space, action: Space, num_envs: int, most: int, *, store_next_obs: bool, gamma: float,
        unread: int, pinned: Any,
    ) -> None:  # fmt: skip
        self.obs, self.action = obs, action
        self.num_envs, self.most = num_envs, most
        self.slots = most + obs.frames  # see ring.py
        self.rows = num_envs * (self.slots + 1)
        self.apart, self._pinned = store_next_obs, pinned
        self._gamma, self._discounts = gamma, np.array((gamma, 0), np.float32)
        self._is_plain = obs.is_single and action.is_single and obs.frames == 1
        self._unread: list[Any] = [None] * unread
        self._split = len(obs.leaves), len(obs.leaves) + len(action.leaves) - unread
        self.counts, self.start, self.cursor = (np.zeros(num_envs, np.int64) for _ in range(3))
        self.broken = np.ones(num_envs, np.bool_)

    def specs(self) -> list[tuple[str, tuple[int, ...], Any]]:
        """Name, shape and dtype of each column: see ring.py."""
        wanted: list[tuple[str, tuple[int, ...], Any]] = [
            ("obs", self.obs.shape, self.obs.dtype),
            ("action", self.action.shape, self.action.dtype),
            ("reward", (), np.float32),
            ("terminated", (), np.bool_),
            ("truncated", (), np.bool_),
            ("cut", (), np.bool_),
        ]
        if self.apart:
            wanted.append(("next_obs", self.obs.shape, self.obs.dtype))
        if self.obs.frames > 1:
            wanted.append(("depth", (), np.uint8))
        return [(name, (self.rows, *shape), dtype) for name, shape, dtype in wanted]

    def new_columns(self) -> list[Array]:
        """Of `specs`, for `set_columns`."""
        return [np.zeros(shape, dtype) for _, shape, dtype in self.specs()]

    def set_columns(self, columns: list[Array]) -> None:
        """Use these, with a ring that has no extras."""
        self.columns = columns
        obs, action, reward, terminated, truncated, cut = columns[:6]
        apart = columns[6] if self.apart else None
        depth = columns[6] if self.obs.frames > 1 else None
        next_obs = obs[self.num_envs :] if apart is None else apart
        self._obs, self._next_obs, self._action = map(
            Space.views, (self.obs, self.obs, self.action), (obs, next_obs, action)
        )
        n = len(self._action) - len(self._unread)
        self._action, self.unread = self._action[:n], self._action[n:]
        # What one call gathers by the first rows of a batch, and by the last.
        self._whole = [*self._obs, *self._action, *self._next_obs, terminated, truncated, reward]
        self._first, self._last = [*self._obs, *self._action], [*self._next_obs, terminated, truncated]
        # [slots, num_envs], without the slot at the end.
        self._rings = [c[: -self.num_envs].reshape(-1, self.num_envs) for c in (reward, terminated, truncated, cut)]
        per_env = self.counts, self.start, self.cursor, self.broken
        leaves = [(leaf.offset, leaf.nbytes) for leaf in self.obs.leaves]
        self.ring = ring_class()(obs, apart, *columns[1:6], *per_env, depth, self.obs.frames, leaves)

    def held(self) -> Rows:
        """The rows of all transitions held, in the order of their numbers."""
        first = np.maximum(self.start, self.counts - self.most)
        numbers = [np.arange(a, b) * self.num_envs + e for e, (a, b) in enumerate(zip(first, self.counts, strict=True))]
        rows, _ = self.ring.locate(np.sort(np.concatenate(numbers)))
        return rows  # type: ignore[no-any-return]

    def returns(self, rows: Rows, n_step: int) -> tuple[Array, Array, Rows]:
        """n-step returns and discounts, and the rows of the last of these steps."""
        reward, terminated, truncated, cut = self._rings
        return n_step_gather(
            reward, terminated, truncated, rows, self.cursor, self.slots, gamma=self._gamma, n=n_step, cut=cut
        )

    def read(self, rows: Rows, n_step: int, weights: Any) -> Batch:
        """The batch of these rows, in host memory."""
        reward: Any = None
        discount: Any = None
        last = rows
        if n_step == 1 and self._is_plain:  # the usual call, in the fewest steps
            obs, action, next_obs, terminated, truncated, reward = self._gather(self._whole, rows)
            discount = self._discounts.take(np.asarray(terminated).view(np.int8))
            indices = self.ring.finish(rows, rows, [next_obs])
            return Batch(obs, action, reward, next_obs, terminated, truncated, indices, weights, discount)
        if n_step > 1:
            reward, discount, last = self.returns(rows, n_step)
            if self._is_plain:
                obs, action = self._gather(self._first, rows)
                next_obs, terminated, truncated = self._gather(self._last, last)
                indices = self.ring.finish(rows, last, [next_obs])
                return Batch(obs, action, reward, next_obs, terminated, truncated, indices, weights, discount)
        if self.obs.frames > 1:
            obs, next_obs = (
                [self._empty((len(rows), self.obs.frames, *leaf.shape), leaf.dtype) for leaf in self.obs.leaves]
                for _ in range(2)
            )
            indices = self.ring.stacks(rows, last, obs, next_obs)
            *action, one_step = self._gather([*self._action, self.columns[2]], rows)
            terminated, truncated = self._gather(self._last[-2:], last)
        else:
            if reward is None:
                *found, terminated, truncated, one_step = self._gather(self._whole, rows)
            else:
                found = self._gather(self._first, rows)
                *reached, terminated, truncated = self._gather(self._last, last)
                found += reached
            i, j = self._split
            obs, action, next_obs = found[:i], found[i:j], found[j:]
            indices = self.ring.finish(rows, last, next_obs)
        if reward is None:
            reward, discount = one_step, self._discounts.take(np.asarray(terminated).view(np.int8))
        joined = self.obs.join(obs), self.action.join([*action, *self._unread]), reward, self.obs.join(next_obs)
        return Batch(*joined, terminated, truncated, indices, weights, discount)

    def can_read_windows(self, n_step: int) -> bool:
        """Whether `read_windows` gives what `read` of each step would."""
        return n_step == 1 and self.obs.frames == 1 and self._pinned is None

    def read_windows(self, rows: Rows, steps: int, weights: Any) -> tuple[Batch, Array]:
        """Windows of at most `steps` from each of `rows` on, with zeros behind their ends, and where there is a step.

        Arrays are [B, steps, ...]; the batch's indices are those of `rows`.
        """
        found = [np.empty((len(rows), steps, *x.shape[1:]), x.dtype) for x in self._whole]
        i, j = self._split
        indices, mask, discount = self.ring.windows(rows, steps, self._gamma, self._whole, found, found[j:-3])
        terminated, truncated, reward = found[-3:]
        obs, next_obs = self.obs.join(found[:i]), self.obs.join(found[j:-3])
        action = self.action.join([*found[i:j], *self._unread])
        return Batch(obs, action, reward, next_obs, terminated, truncated, indices, weights, discount), mask

    def _gather(self, sources: list[Array], rows: Rows) -> list[Any]:
        if self._pinned is None:
            return gather_rows(sources, rows)  # type: ignore[no-any-return]
        out = [self._empty((len(rows), *source.shape[1:]), source.dtype) for source in sources]
        return gather_rows(sources, rows, out=out)  # type: ignore[no-any-return]

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        if self._pinned is None:
            return np.empty(shape, dtype)
        # torch does not hand out a pinned block again before the copies from it are done.
        torch = self._pinned
        return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)

    def config(self) -> dict[str, Any]:
        """What a saved state must agree in."""
        obs_shape, obs_dtype = self.obs.config()
        action_shape, action_dtype = self.action.config()
        return {
            "num_envs": self.num_envs,
            "store_next_obs": self.apart,
            "frame_stack": self.obs.frames,
            "obs_shape": obs_shape,
            "obs_dtype": obs_dtype,
            "action_shape": action_shape,
            "action_dtype": action_dtype,
        }

    def arrays(self, priorities: Array) -> list[Array]:
        """What is saved: priorities, the columns, which rows have an extra, extras; with stacks the same of heads."""
        rows = saved_rows(self.counts, self.slots)
        sides = [self.ring.extras()] + ([self.ring.heads()] if self.obs.frames > 1 else [])
        found = [column[:rows] for column in (priorities, *self.columns)]
        for where, data in sides:
            flags = np.zeros(rows, np.bool_)
            flags[where] = True
            found += [flags, data]
        return found

    def set_arrays(self, added: list[int], start: list[int], broken: list[bool], arrays: list[Array]) -> None:
        """Go on from what `arrays` gave, without the priorities; the columns have all rows and become the store's."""
        columns, sides = arrays[: len(self.columns)], arrays[len(self.columns) :]
        self.counts[:], self.start[:], self.broken[:] = added, start, broken
        self.cursor[:] = self.counts % self.slots
        self.set_columns(columns)
        self.ring.set_extras(np.flatnonzero(sides[0]), sides[1])
        if self.obs.frames > 1:
            self.ring.set_heads(np.flatnonzero(sides[2]), sides[3])


def saved_rows(added: Array, slots: int) -> int:
    """The rows in use: up to the next observation of the newest transition in any ring, or all."""
    return min(int(added.max()) + 1, slots + 1) * len(added)
