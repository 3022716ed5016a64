"""Where the transitions of a replay buffer are: `ReplayRing` is the reference of the compiled ``fastrl._C.ReplayRing``.

One ring of slots per environment, side by side.  Transition k of environment e is in slot k mod slots, which is row
slot * num_envs + e, and its next observation one slot on, which is also where the next transition starts if it starts
from that observation.  If it starts from another one (a new episode, or the same state seen through another
normalisation), the observation that was reached moves into an extra.  So the slot of the cursor holds the newest next
observation and no transition: a ring has one slot more than transitions.  The rows of one slot more at the end repeat
those of slot 0, so that the next observation is num_envs rows on everywhere.

Where an observation is a stack of k frames, a row has its newest frame alone and `depth` says how many of the k - 1
before it are in the rows before.  Those that are older repeat the oldest of these, as Gymnasium's stacks do after a
reset, or are the `head` of its row: so a batch has the stacks that were given, whatever they were.  A transition is
held only while all of its frames are, which takes k - 1 more slots.
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
        depth: uint8, or None without stacks.
        frames: k, or 1.
        leaves: offset and bytes of each array that a stored frame (a row of `obs`) consists of.
    """

    def __init__(
        self, obs: Array, next_obs: Array | None, action: Array, reward: Array, terminated: Array, truncated: Array,
        cut: Array, added: Array, start: Array, cursor: Array, broken: Array, depth: Array | None, frames: int,
        leaves: list[tuple[int, int]],
    ) -> None:  # fmt: skip
        self._obs, self._next_obs, self._cut = obs, next_obs, cut
        self._columns = action, reward, terminated, truncated
        self._added, self._start, self._cursor, self._broken = added, start, cursor, broken
        self._num_envs, self._slots = len(added), len(obs) // len(added) - 1
        self._depth, self._frames, self._leaves = depth, frames, leaves
        self._extras: dict[int, Array] = {}
        self._heads: dict[int, Array] = {}
        self._continuing = self._differing = 0
        self._reported = False

    def try_add(self, *_: Any) -> int | None:
        """`write` of one step of arguments that need no conversion; None, and no change, for others: here for all."""
        return None

    def write(
        self, steps: int, first: int, envs: int, obs: Array, action: Array, reward: Array, next_obs: Array,
        terminated: Array, truncated: Array, mask: Array | None, episode_start: Array | None, priority: float,
        rows: Array, priorities: Array,
    ) -> int:  # fmt: skip
        """Store ``[steps, envs]`` transitions, of arrays that the caller has converted and checked.

        They are of the environments from `first` on.
        obs and next_obs have an axis of `frames` behind these two where that is more than 1.  rows, priorities
        [2 * steps * num_envs] get what the sum tree is to be updated with: for each transition its own row, then the
        row whose transition is held no more.  Returns the number n of transitions, or ~n when it is time to say that
        most observations differ from those reached before.
        """
        N, count = self._num_envs, 0
        for t, i in np.ndindex(steps, envs):
            e = first + i
            if mask is not None and not mask[t, i]:
                self._broken[e] = True  # what comes next does not continue what is stored
                continue
            slot = int(self._cursor[e])
            after = (slot + 1) % self._slots
            row, row_after, row_gone = slot * N + e, after * N + e, (after + self._frames - 1) % self._slots * N + e
            frame, reached = (obs[t, i], next_obs[t, i]) if self._frames == 1 else (obs[t, i, -1], next_obs[t, i, -1])
            starts = bool(self._broken[e] if episode_start is None else episode_start[t, i])
            if self._next_obs is not None:
                self._obs[row], self._next_obs[row] = frame, reached
            else:
                follows = self._added[e] > self._start[e]
                # Compared as bytes, so that NaN equals itself.
                same = bool(follows) and self._obs[row].tobytes() == frame.tobytes()
                if not same:
                    if follows:
                        self._extras[(slot - 1) % self._slots * N + e] = np.array(self._obs[row])
                    self._obs[row] = frame
                self._obs[row + N] = reached
                if after == 0:
                    self._obs[e] = reached
                self._extras.pop(row_gone, None)
                if self._depth is not None:
                    self._heads.pop(row_after, None)
                    self._stack(row, obs[t, i], bool(follows))
                if follows and not starts and episode_start is None:
                    self._continuing += 1
                    self._differing += not same
            for column, item in zip(self._columns, (action, reward, terminated, truncated), strict=True):
                column[row] = item[t, i]
            self._cut[row] = starts
            self._broken[e] = terminated[t, i] or truncated[t, i]
            self._cursor[e] = after
            self._added[e] += 1
            rows[2 * count : 2 * count + 2] = row, row_gone
            priorities[2 * count : 2 * count + 2] = priority, 0.0
            count += 1
        if self._continuing < _WINDOW or self._reported:
            return count
        self._reported = 2 * self._differing > self._continuing
        self._continuing = self._differing = 0
        return ~count if self._reported else count

    def _back(self, row: Any, steps: Any) -> Any:
        """The row so many slots before."""
        return (row - steps * self._num_envs) % (self._slots * self._num_envs)

    def _stack(self, row: int, stack: Array, follows: bool) -> None:
        """Say which of the frames of `stack` before its newest, which is stored, are in the rows before."""
        assert self._depth is not None
        older, before = self._frames - 1, self._back(row, 1)
        if follows and all(stack[older - a].tobytes() == self._older(before, a - 1) for a in range(1, older + 1)):
            self._depth[row] = min(self._depth[before] + 1, older)
            return
        self._depth[row] = 0
        if any(frame.tobytes() != stack[-1].tobytes() for frame in stack[:-1]):
            self._heads[row] = np.array(stack[:-1])

    def _older(self, row: int, age: int) -> bytes:
        """The frame `age` steps before that of the row."""
        assert self._depth is not None
        depth = int(self._depth[row])
        first = self._back(row, min(age, depth))
        head = self._heads.get(first) if age > depth else None
        return bytes(self._obs[first].tobytes() if head is None else head[depth - age].tobytes())

    def unshifted(self, steps: int, obs: Array, next_obs: Array, mask: Array | None) -> int:
        """The first of the items [steps, num_envs] whose next_obs is not its obs shifted by one frame, or -1."""
        for i, (t, e) in enumerate(np.ndindex(steps, self._num_envs)):
            if (mask is None or mask[t, e]) and obs[t, e, 1:].tobytes() != next_obs[t, e, :-1].tobytes():
                return i
        return -1

    def _stack_rows(self, rows: Array, next: bool) -> NDArray[np.int64]:
        """[B, frames]: the rows of the frames of each observation, or of the one that was reached."""
        assert self._depth is not None
        age = np.arange(self._frames - 1, -1, -1)
        found = self._back(rows[:, None], np.minimum(age, self._depth[rows][:, None]))
        if next:
            found = np.concatenate((found[:, 1:], rows[:, None] + self._num_envs), axis=1)
        return np.asarray(found, np.int64)

    def finish(self, rows: Array, last: Array, next_obs: list[Any]) -> NDArray[np.int64]:
        """The numbers k * num_envs + e of `rows` [B].

        The [B, ...] arrays of each leaf in next_obs, of the rows `last`, get what no row has: extras.
        """
        for b, row in enumerate(last.tolist()):
            if row in self._extras:
                self._put(next_obs, b, self._frames - 1, self._extras[row])
        return self._numbers(rows)

    def stacks(self, rows: Array, last: Array, obs: list[Any], next_obs: list[Any]) -> NDArray[np.int64]:
        """The numbers of `rows` [B].

        The [B, frames, ...] arrays of each leaf in obs get the stacks of `rows`, those in next_obs the ones that `last`
        reached.
        """
        frames = self._obs.reshape(len(self._obs), -1).view(np.uint8)
        for targets, found in ((obs, self._stack_rows(rows, False)), (next_obs, self._stack_rows(last, True))):
            for target, (offset, length) in zip(targets, self._leaves, strict=True):
                out = np.asarray(target)
                out[...] = frames[found, offset : offset + length].view(out.dtype).reshape(out.shape)
        if self._heads:
            for b in range(len(rows)):
                self._put_head(obs, b, int(rows[b]), 0)
                self._put_head(next_obs, b, int(last[b]), 1)
        return self.finish(rows, last, next_obs)

    def _numbers(self, rows: Array) -> NDArray[np.int64]:
        slot, env = np.divmod(rows, self._num_envs)
        age = (self._cursor[env] - 1 - slot) % self._slots  # from the newest
        numbers: NDArray[np.int64] = (self._added[env] - 1 - age) * self._num_envs + env
        return numbers

    def windows(
        self, rows: Array, steps: int, gamma: float, sources: list[Array], outs: list[Array], next_obs: list[Array]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32]]:
        """Windows of at most `steps` transitions from each of `rows` [B] on: to the episode's end, a cut or the newest.

        Returns the number of the first one [B], where there is a step [B, steps], and gamma (1 - terminated) there.  Of
        each of `sources`, arrays of all rows, the windows go to the array of `outs` [B, steps, ...], with zeros behind
        them; next_obs are those of `outs` that get extras, one of each leaf.  Not for stacks.
        """
        mask, discount = np.zeros((len(rows), steps), np.bool_), np.zeros((len(rows), steps), np.float32)
        items = [x.reshape(-1, *x.shape[2:]) for x in next_obs]
        for b, first in enumerate(rows.tolist()):
            window = self._window(first, steps)
            n = len(window)
            mask[b, :n] = True
            discount[b, :n] = np.where(self._columns[2][window], 0, gamma)
            for source, out in zip(sources, outs, strict=True):
                out[b, :n], out[b, n:] = source[window], 0
            for t, row in enumerate(window):
                if row in self._extras:
                    self._put(items, b * steps + t, 0, self._extras[row])
        return self._numbers(rows), mask, discount

    def _window(self, row: int, steps: int) -> list[int]:
        _, _, terminated, truncated = self._columns
        end, found = self._cursor[row % self._num_envs], [row]
        while len(found) < steps and not (terminated[row] or truncated[row]):
            row = self._back(row, -1)
            if row // self._num_envs == end or self._cut[row]:
                break
            found.append(row)
        return found

    def _put_head(self, targets: list[Any], b: int, row: int, shift: int) -> None:
        assert self._depth is not None
        depth = int(self._depth[row])
        head = self._heads.get(self._back(row, depth)) if depth < self._frames - 1 else None
        if head is not None:
            for age in range(depth + 1, self._frames - shift):
                self._put(targets, b, self._frames - 1 - shift - age, head[depth - age])

    def _put(self, targets: list[Any], b: int, frame: int, value: Array) -> None:
        """Write one stored frame into item b of the arrays of each leaf."""
        data = np.frombuffer(value.tobytes(), np.uint8)
        for target, (offset, length) in zip(targets, self._leaves, strict=True):
            item = np.asarray(target).reshape(len(target), -1)[b].view(np.uint8)
            item[frame * length : (frame + 1) * length] = data[offset : offset + length]

    def locate(self, numbers: Array) -> tuple[NDArray[np.int64], int]:
        """The row of each number [B], of a transition that is not held any more one that never holds any.

        And how many of these there are, or ~b if number b has never been given.
        """
        k, env = np.divmod(numbers.astype(np.int64), self._num_envs)
        unknown = (numbers < 0) | (k >= self._added[env])
        if unknown.any():
            return k, ~int(unknown.argmax())
        held = (k >= self._start[env]) & (self._added[env] - k <= self._slots - self._frames)
        return np.where(held, k % self._slots, self._slots) * self._num_envs + env, int((~held).sum())

    def extras(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The rows whose next observation is an extra, ascending, and these as bytes [E, bytes]."""
        return _to_bytes(self._extras, self._obs[0].nbytes)

    def set_extras(self, rows: Array, data: NDArray[np.uint8]) -> None:
        """Add what `extras` gave."""
        for row, item in zip(rows.tolist(), data, strict=True):
            self._extras[row] = np.frombuffer(item.tobytes(), self._obs.dtype).reshape(self._obs.shape[1:])

    def heads(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The rows with a head, ascending, and these as bytes [H, bytes]."""
        return _to_bytes(self._heads, (self._frames - 1) * self._obs[0].nbytes)

    def set_heads(self, rows: Array, data: NDArray[np.uint8]) -> None:
        """Add what `heads` gave."""
        for row, item in zip(rows.tolist(), data, strict=True):
            self._heads[row] = np.frombuffer(item.tobytes(), self._obs.dtype).reshape(-1, *self._obs.shape[1:])


def _to_bytes(kept: dict[int, Array], length: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    rows = sorted(kept)
    data = np.empty((len(rows), length), np.uint8)
    for i, row in enumerate(rows):
        data[i] = np.frombuffer(kept[row].tobytes(), np.uint8)
    return np.array(rows, np.int64), data
