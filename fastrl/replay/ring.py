"""Where the transitions of a replay buffer are: `ReplayRing` is the reference of the compiled ``fastrl._C.ReplayRing``.

One ring of slots per environment, side by side.  Transition k of environment e is in slot k mod slots, which is row
slot * num_envs + e, and its next observation one slot on, which is also where the next transition starts if it starts
from that observation.  If it starts from another one (a new episode, or the same state seen through another
normalisation), the observation that was reached moves into an extra.  So the slot of the cursor holds the newest next
observation and no transition: a ring has one slot more than transitions.  The rows of one slot more at the end repeat
those of slot 0, so that the next observation is num_envs rows on everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl import _backend

Array = NDArray[Any]
_WINDOW = 256  # continuing transitions after which it is asked whether most observations differ


def ring_class() -> Any:
    """The ring of this backend."""
    return _backend._C.ReplayRing if _backend.CPU_BACKEND == "cpp" else ReplayRing


class ReplayRing:
    """The columns are the caller's arrays, [(slots + 1) * num_envs, ...], or [num_envs] from `added` on.

    Args:
        next_obs: None, or a column of its own: then nothing is compared and there are no extras.
        cut: True where a transition is not the continuation of the one in the slot before.
        added: int64, transitions ever; start: int64, how many of them `clear` forgot; cursor: int64, added mod slots.
        broken: bool, the next transition is not a continuation unless it says so itself.
    """

    def __init__(
        self, obs: Array, next_obs: Array | None, action: Array, reward: Array, terminated: Array, truncated: Array,
        cut: Array, added: Array, start: Array, cursor: Array, broken: Array,
    ) -> None:  # fmt: skip
        self._obs, self._next_obs, self._cut = obs, next_obs, cut
        self._columns = action, reward, terminated, truncated
        self._added, self._start, self._cursor, self._broken = added, start, cursor, broken
        self._num_envs, self._slots = len(added), len(obs) // len(added) - 1
        self._extras: dict[int, Array] = {}
        self._continuing = self._differing = 0
        self._reported = False

    def try_add(self, *_: Any) -> int | None:
        """`write` of one step of arguments that need no conversion; None, and no change, for others: here for all."""
        return None

    def write(
        self, steps: int, obs: Array, action: Array, reward: Array, next_obs: Array, terminated: Array,
        truncated: Array, mask: Array | None, episode_start: Array | None, priority: float, rows: Array,
        priorities: Array,
    ) -> int:  # fmt: skip
        """Store ``[steps, num_envs]`` transitions, of arrays that the caller has converted and checked.

        rows, priorities [2 * steps * num_envs] get what the sum tree is to be updated with: for each transition its own
        row, then the row that now has none.  Returns the number n of transitions, or ~n when it is time to say that
        most observations differ from those reached before.
        """
        N, count = self._num_envs, 0
        for t, e in np.ndindex(steps, N):
            if mask is not None and not mask[t, e]:
                self._broken[e] = True  # what comes next does not continue what is stored
                continue
            slot = int(self._cursor[e])
            after = (slot + 1) % self._slots
            row, row_after = slot * N + e, after * N + e
            starts = bool(self._broken[e] if episode_start is None else episode_start[t, e])
            if self._next_obs is not None:
                self._obs[row], self._next_obs[row] = obs[t, e], next_obs[t, e]
            else:
                follows = self._added[e] > self._start[e]
                # Compared as bytes, so that NaN equals itself.
                same = bool(follows) and self._obs[row].tobytes() == obs[t, e].tobytes()
                if not same:
                    if follows:
                        self._extras[(slot - 1) % self._slots * N + e] = np.array(self._obs[row])
                    self._obs[row] = obs[t, e]
                self._obs[row + N] = next_obs[t, e]
                if after == 0:
                    self._obs[e] = next_obs[t, e]
                self._extras.pop(row_after, None)
                if follows and not starts and episode_start is None:
                    self._continuing += 1
                    self._differing += not same
            for column, item in zip(self._columns, (action, reward, terminated, truncated), strict=True):
                column[row] = item[t, e]
            self._cut[row] = starts
            self._broken[e] = terminated[t, e] or truncated[t, e]
            self._cursor[e] = after
            self._added[e] += 1
            rows[2 * count : 2 * count + 2] = row, row_after
            priorities[2 * count : 2 * count + 2] = priority, 0.0
            count += 1
        if self._continuing < _WINDOW or self._reported:
            return count
        self._reported = 2 * self._differing > self._continuing
        self._continuing = self._differing = 0
        return ~count if self._reported else count

    def finish(self, rows: Array, last: Array, next_obs: Any) -> NDArray[np.int64]:
        """The numbers k * num_envs + e of `rows` [B]; `next_obs` [B, ...] of the rows `last` gets what is an extra."""
        slot, env = np.divmod(rows, self._num_envs)
        age = (self._cursor[env] - 1 - slot) % self._slots  # from the newest
        for b, row in enumerate(last.tolist()):
            if row in self._extras:
                np.asarray(next_obs)[b] = self._extras[row]
        numbers: NDArray[np.int64] = (self._added[env] - 1 - age) * self._num_envs + env
        return numbers

    def locate(self, numbers: Array) -> tuple[NDArray[np.int64], int]:
        """The row of each number [B], of a transition that is not held any more one that never holds any.

        And how many of these there are, or ~b if number b has never been given.
        """
        k, env = np.divmod(numbers.astype(np.int64), self._num_envs)
        unknown = (numbers < 0) | (k >= self._added[env])
        if unknown.any():
            return k, ~int(unknown.argmax())
        held = (k >= self._start[env]) & (k > self._added[env] - self._slots)
        return np.where(held, k % self._slots, self._slots) * self._num_envs + env, int((~held).sum())

    def extras(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The rows whose next observation is an extra, ascending, and these as bytes [E, bytes]."""
        rows = sorted(self._extras)
        data = np.empty((len(rows), self._obs[0].nbytes), np.uint8)
        for i, row in enumerate(rows):
            data[i] = np.frombuffer(self._extras[row].tobytes(), np.uint8)
        return np.array(rows, np.int64), data

    def set_extras(self, rows: Array, data: NDArray[np.uint8]) -> None:
        """Add what `extras` gave."""
        for row, item in zip(rows.tolist(), data, strict=True):
            self._extras[row] = np.frombuffer(item.tobytes(), self._obs.dtype).reshape(self._obs.shape[1:])
