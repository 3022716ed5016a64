"""Processes that draw from the replay buffer of another one, through shared memory and without locks.

Each sampler has a lane (see lanes.py) with two rings: batches, which the buffer fills and the sampler empties, and
priorities, which go the other way.  The tree is only touched by the buffer's process, so that there is nothing in it
that a dying sampler could leave half done.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastrl.replay import checks
from fastrl.replay.batch import to_device
from fastrl.replay.lanes import End, Lanes, Layout

_DRAWN, _TAKEN, _SENT, _APPLIED, _FORGOTTEN = 1, 2, 3, 4, 5  # the last: batches of what the buffer no longer has
_MORE = 4  # updates that may wait for each batch that does
_UPDATE = 4  # arrays of an update: how many indices, how many batches had been taken, the indices, the errors


def _leaves(value: Any) -> Iterator[Any]:
    """The arrays in a batch, in its order."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for part in value:
            yield from _leaves(part)
    elif value is not None:
        yield np.asarray(value)  # of a tensor in pinned memory too


def _like(template: Any, leaves: Iterator[Any]) -> Any:
    """`template` with other arrays."""
    if isinstance(template, dict):
        return {key: _like(part, leaves) for key, part in template.items()}
    if isinstance(template, tuple):
        parts = [_like(part, leaves) for part in template]
        return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
    return None if template is None else next(leaves)


def _layout(template: Any, batch_size: int, ahead: int) -> Layout:
    kinds = [((ahead, batch_size, *leaf.shape[1:]), leaf.dtype) for leaf in _leaves(template)]
    sent = ahead * _MORE
    number = (sent,), np.int64
    updates = [number, number, ((sent, batch_size), np.int64), ((sent, batch_size), np.float64)]
    return Layout(_FORGOTTEN, [*kinds, *updates])


class ReplaySampler(End):
    """What a process samples from the buffer of another one with, made by `ReplayBuffer.samplers` and given to it.

    One process at a time uses it, in one thread.  If that process dies, another one may go on with the same sampler.
    """

    _what = "sampler"

    def __init__(self, path: str, template: Any, batch_size: int, ahead: int, device: str | None, mixed: Any) -> None:
        super().__init__(path, _layout(template, batch_size, ahead))
        self._args = path, template, batch_size, ahead, device, mixed
        self._template, self._ahead, self._device, self._mixed = template, ahead, device, mixed
        self.batch_size = batch_size
        self._highest = -1  # index in any batch

    def __reduce__(self) -> Any:
        return ReplaySampler, self._args

    def sample(self) -> Any:
        """A batch as `ReplayBuffer.sample` gives it, drawn at most `ahead` batches ago; its arrays are the caller's.

        Waits while the buffer has fewer than `min_size` transitions, or is not serving.

        Raises:
            BlockingIOError: another process, or another copy here, uses this sampler.
            RuntimeError: the buffer is closed or gone, or its process has ended.
        """
        self._attach("replay.sample")
        if not self._is_drawn():
            self._wait("replay.sample", self._is_drawn)
        slot = self._taken % self._ahead
        batch = _like(self._template, iter([array[slot].copy() for array in self._arrays[:-_UPDATE]]))
        self._taken += 1
        self._publish(self._counters[_TAKEN], self._taken)
        self._highest = max(self._highest, int(batch.indices.max()))
        return batch if self._device is None else to_device(batch, *checks.load_torch(self._device))

    def update_priorities(self, indices: Any, td_errors: Any, mask: Any = None) -> None:
        """`update_priorities` of the buffer, which applies it when it next serves; waits while it has too many.

        All or nothing for each `batch_size` of them, also if the process is killed meanwhile.  Those of transitions
        overwritten until then are left out, and after a `load` of the buffer all until this sampler has a batch drawn
        since: the same numbers are other transitions there.

        Args: as there; `mask` of a `SequenceReplay` alone.

        Raises:
            TypeError: the buffer has no priorities.
            ValueError: as there.
            IndexError: an index that no batch of this sampler had.
            And as `sample`.
        """
        where = "replay.update_priorities"
        if self._mixed is None:
            raise TypeError(f"{where}: the buffer of this sampler has no priorities")
        numbers, errors = self._mixed(indices, td_errors, *(() if mask is None else (mask,)))
        bad = ~np.isfinite(errors)
        if bad.any():
            raise ValueError(f"{where}: td_errors[{int(bad.argmax())}] is {errors[bad][0]}, must be finite")
        self._attach(where)
        bad = (numbers < 0) | (numbers > self._highest)
        if bad.any():
            raise IndexError(f"{where}: indices[{int(bad.argmax())}] is {numbers[bad][0]}, which no batch here had")
        counts, taken, rows, values = self._arrays[-_UPDATE:]
        for start in range(0, len(numbers), self.batch_size):
            if not self._has_room():
                self._wait(where, self._has_room)
            slot, part = self._sent % len(counts), slice(start, start + self.batch_size)
            counts[slot] = n = len(numbers[part])
            taken[slot] = self._taken
            rows[slot, :n], values[slot, :n] = numbers[part], errors[part]
            self._sent += 1
            self._publish(self._counters[_SENT], self._sent)

    def _is_drawn(self) -> bool:
        return bool(self._observe(self._counters[_DRAWN]) > self._taken)

    def _has_room(self) -> bool:
        return bool(self._sent - self._observe(self._counters[_APPLIED]) < self._ahead * _MORE)

    def _begin(self) -> None:
        self._taken = self._observe(self._counters[_TAKEN])
        self._sent = self._observe(self._counters[_SENT])
        self._highest = -1


class SamplerLanes(Lanes):
    """The buffer's end of its samplers' lanes."""

    def __init__(
        self, template: Any, n: int, batch_size: int, ahead: int, min_size: int, device: str | None, mixed: Any
    ) -> None:
        super().__init__("replay.samplers", "samplers", _layout(template, batch_size, ahead), n)
        self._batch_size, self._ahead, self._min_size = batch_size, ahead, min_size
        template = _like(template, _leaves(template))
        self.samplers = [ReplaySampler(path, template, batch_size, ahead, device, mixed) for path in self.paths]

    def serve(self, buffer: Any, draw: Any, update: Any) -> int:
        """Give ``update(indices, errors)`` what samplers have sent, then fill free slots with ``draw(batch_size)``.

        How many of both there were.
        """
        count = sum(self._apply(lane, update) for lane in self._lanes)
        if len(buffer) >= self._min_size:
            count += sum(self._fill(lane, draw) for lane in self._lanes)
        return count

    def forget(self) -> None:
        """From now on the numbers of transitions are those of others: updates of earlier batches are left out."""
        for counters, _ in self._lanes:
            counters[_FORGOTTEN][0] = counters[_DRAWN][0]

    def _apply(self, lane: tuple[list[Any], list[Any]], update: Any) -> int:
        counters, arrays = lane
        counts, taken, rows, values = arrays[-_UPDATE:]
        first, sent = int(counters[_APPLIED][0]), self._observe(counters[_SENT])
        for number in range(first, sent):
            slot = number % len(counts)
            n = int(counts[slot])
            try:
                if taken[slot] > counters[_FORGOTTEN][0]:
                    update(rows[slot, :n], values[slot, :n])
            except IndexError as error:
                warnings.warn(f"{error}: what a sampler sent is left out", RuntimeWarning, stacklevel=4)
            finally:
                self._publish(counters[_APPLIED], number + 1)
        return int(sent - first)

    def _fill(self, lane: tuple[list[Any], list[Any]], draw: Any) -> int:
        counters, arrays = lane
        first, end = int(counters[_DRAWN][0]), self._observe(counters[_TAKEN]) + self._ahead
        for number in range(first, end):
            for array, leaf in zip(arrays[:-_UPDATE], _leaves(draw(self._batch_size)), strict=True):
                array[number % self._ahead] = leaf
            self._publish(counters[_DRAWN], number + 1)
        return int(end - first)
