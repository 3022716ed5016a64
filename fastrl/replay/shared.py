"""Processes that write into the replay buffer of another one, through shared memory and without locks.

Each writer has a lane (see lanes.py): a ring of its newest steps.  The writer fills a slot and then publishes how many
steps it has committed; the buffer copies these to its own rows and publishes how many it has taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.replay import checks
from fastrl.replay.lanes import End, Lanes, Layout
from fastrl.replay.spaces import Space

Array = NDArray[Any]
_COMMITTED, _TAKEN = 1, 2
# What each argument of `add` may be besides an array, of one environment.
_INTS, _REALS, _FLAGS = (int, np.int64), (int, float, np.float32, np.float64), (bool, np.bool_)
_OPTIONAL = (bool, np.bool_, type(None))
_SCALARS: tuple[tuple[type, ...], ...] = ((), _INTS, _REALS, (), _FLAGS, _FLAGS, _OPTIONAL, _OPTIONAL)


def _layout(obs: Space, action: Space, num_envs: int, slots: int) -> Layout:
    """[slots, num_envs, ...] of what a step has."""
    stack = (obs.frames,) if obs.frames > 1 else ()
    flag: tuple[tuple[int, ...], Any] = ((), np.bool_)
    observation = ((*stack, *obs.shape), obs.dtype)
    kinds = observation, (action.shape, action.dtype), ((), np.float32), observation, flag, flag, flag, flag
    return Layout(2, [((slots, num_envs, *shape), dtype) for shape, dtype in kinds])


class ReplayWriter(End):
    """What a process adds to the buffer of another one with, made by `ReplayBuffer.writers` and given to the process.

    It has its own environments, and one process at a time uses it, in one thread.  If that process dies, what it had
    added is still taken in, and another one may go on with the same writer: its first transitions begin episodes.
    """

    def __init__(self, path: str, obs: Space, action: Space, num_envs: int, slots: int) -> None:
        super().__init__(path, _layout(obs, action, num_envs, slots))
        self._args = path, obs, action, num_envs, slots
        self.num_envs = num_envs
        self._broken: Any = True
        self._is_new: Any = True

    def __reduce__(self) -> Any:
        return ReplayWriter, self._args

    def add(
        self, obs: Any, action: Any, reward: Any, next_obs: Any, terminated: Any, truncated: Any, mask: Any = None,
        episode_start: Any = None,
    ) -> None:  # fmt: skip
        """`ReplayBuffer.add` for the environments of this writer; waits while the buffer has too much to take in.

        All or nothing, also if the process is killed meanwhile.  Of a `SequenceReplay` with states `action` is
        ``{"action": ..., "state": ...}``.

        Raises:
            As `ReplayBuffer.add`; BlockingIOError: another process, or another copy here, uses this writer;
            RuntimeError: the buffer is closed or gone, or its process has ended.
        """
        self._attach("replay.add")
        slots = self._args[4]
        arguments = obs, action, reward, next_obs, terminated, truncated, mask, episode_start
        items = self._ready(arguments) or self._converted(arguments)
        kept, start = items[6:]
        begins = self._broken if start is None else start | self._is_new
        ended = items[4] | items[5]
        if kept is not None:
            ended = ended | np.logical_not(kept)
        slot = self._committed % slots
        if self._committed - self._taken >= slots:
            self._wait("replay.add", self._has_room)
        for array, item in zip(self._arrays[:6], items, strict=False):
            array[slot] = item
        self._arrays[6][slot] = True if kept is None else kept
        self._arrays[7][slot] = begins
        self._committed += 1
        self._publish(self._counters[_COMMITTED], self._committed)
        # An environment that was left out has not begun yet.
        self._broken, self._is_new = ended, False if kept is None else self._is_new & np.logical_not(kept)

    def _ready(self, arguments: tuple[Any, ...]) -> list[Any] | None:
        """The usual arguments, which need no conversion, as they are; None for others."""
        _, space, action_space, n, _ = self._args
        items = list(arguments)
        if space.frames > 1:
            return None
        for i, own in ((0, space), (1, action_space), (3, space)):
            if not own.is_single:
                items[i] = own.pack(items[i], n)
        for item, array, scalars in zip(items, self._arrays, _SCALARS, strict=True):
            if type(item) is np.ndarray:
                if item.dtype != array.dtype and not (scalars is _REALS and item.dtype == np.float64):
                    return None
                if item.shape != array.shape[1:] and (n > 1 or item.shape != array.shape[2:]):
                    return None
            elif item is None:
                if scalars is not _OPTIONAL:
                    return None
            elif n > 1 or array.ndim > 2 or type(item) not in scalars or (scalars is _INTS and array.dtype != np.int64):
                return None
        with np.errstate(over="ignore"):
            items[2] = np.asarray(items[2], np.float32)
        return items if np.isfinite(items[2]).all() else None

    def _converted(self, arguments: tuple[Any, ...]) -> list[Any]:
        _, space, action_space, n, _ = self._args
        items = checks.check_items("replay.add", (), n, space, action_space, arguments)
        if space.frames > 1:
            for e in range(n):
                left_out = items[6] is not None and not items[6][0, e]
                if not left_out and items[0][0, e, 1:].tobytes() != items[3][0, e, :-1].tobytes():
                    raise ValueError(
                        f"replay.add: next_obs{checks.position(e, (), n)} must be obs shifted by one frame "
                        f"(next_obs[:-1] == obs[1:], frame_stack={space.frames})"
                    )
        return [item if item is None else item[0] for item in items]

    def _has_room(self) -> bool:
        self._taken = self._observe(self._counters[_TAKEN])
        return bool(self._committed - self._taken < self._args[4])

    def _begin(self) -> None:
        self._committed = self._observe(self._counters[_COMMITTED])
        self._taken = self._observe(self._counters[_TAKEN])
        self._broken, self._is_new = True, True


class WriterLanes(Lanes):
    """The buffer's end of its writers' lanes."""

    def __init__(self, obs: Space, action: Space, num_envs: int, writers: int, slots: int) -> None:
        self.num_envs = num_envs // writers
        super().__init__("replay.writers", "writers", _layout(obs, action, self.num_envs, slots), writers)
        self.begins = np.zeros(num_envs, np.bool_)  # the next step begins an episode, whatever its writer says
        self.writers = [ReplayWriter(path, obs, action, self.num_envs, slots) for path in self.paths]

    def receive(self, store: Any, write: Any) -> int:
        """Give what was committed to ``write(steps, first env, envs, items)``, for `store`; the number of steps.

        Steps that it raised on before one of them was in the store come again in the next call.
        """
        count = 0
        for number, (counters, arrays) in enumerate(self._lanes):
            slots, taken = len(arrays[0]), int(counters[_TAKEN][0])
            envs = slice(number * self.num_envs, (number + 1) * self.num_envs)
            # As much as there is now: what is added meanwhile is for the next call.
            committed = self._observe(counters[_COMMITTED])
            while taken < committed:
                slot = taken % slots
                steps = min(committed - taken, slots - slot)
                items = [array[slot : slot + steps] for array in arrays]
                left = np.zeros(self.num_envs, np.bool_)
                if self.begins[envs].any():
                    items[7], left = _begin(self.begins[envs], *items[6:])
                before, is_done = store.counts[envs].copy(), False
                try:
                    write(steps, envs.start, self.num_envs, items)
                    is_done = True
                finally:
                    if is_done or (store.counts[envs] != before).any():
                        self.begins[envs] = left if is_done else True  # steps in the middle may be lost
                        taken += steps
                        self._publish(counters[_TAKEN], taken)
                count += steps
        return count


def _begin(begins: Array, kept: Array, starts: Array) -> tuple[Array, Array]:
    """`starts` with the first step kept of each environment that `begins`, and which have none [envs]."""
    first, envs = kept.argmax(0), np.arange(len(begins))
    found = begins & kept[first, envs]
    starts = starts.copy()
    starts[first[found], envs[found]] = True
    return starts, begins & ~found
