"""Processes that write into the replay buffer of another one, through shared memory and without locks.

Each writer has a lane: a ring of its newest steps, in a file that it and the buffer's process map.  The writer fills a
slot and then publishes how many steps it has committed; the buffer copies these to its own rows and publishes how many
it has taken.  A number has one process that writes it, so one that dies leaves nothing locked and at most a slot that
nobody looks at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl import _backend, _files, _fork
from fastrl.replay import checks
from fastrl.replay.spaces import Space

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Array = NDArray[Any]
_COUNTERS = 64 * 3  # bytes: committed, taken, the pid of the buffer's process; each in a cache line
_WAIT = 2e-4  # seconds between two looks at a full lane
# The files of attached lanes, and the process of each.  POSIX locks are a process's: they keep no second writer of it
# out, and any descriptor of the file that it closes ends them.
_attached: dict[str, int] = {}
_attaching = threading.Lock()
_fork.guarded.add(_attaching)
# What each argument of `add` may be besides an array, of one environment.
_INTS, _REALS, _FLAGS = (int, np.int64), (int, float, np.float32, np.float64), (bool, np.bool_)
_OPTIONAL = (bool, np.bool_, type(None))
_SCALARS: tuple[tuple[type, ...], ...] = ((), _INTS, _REALS, (), _FLAGS, _FLAGS, _OPTIONAL, _OPTIONAL)


class _Lane:
    """The arrays in a file: counters, and [slots, num_envs, ...] of what a step has."""

    def __init__(self, obs: Space, action: Space, num_envs: int, slots: int) -> None:
        stack = (obs.frames,) if obs.frames > 1 else ()
        flag: tuple[tuple[int, ...], Any] = ((), np.bool_)
        observation = ((*stack, *obs.shape), obs.dtype)
        self._kinds = (
            observation, (action.shape, action.dtype), ((), np.float32), observation, flag, flag, flag, flag,
        )  # fmt: skip
        self._lead = (slots, num_envs)
        self.nbytes = _COUNTERS + sum(self._size(*kind) for kind in self._kinds)

    def _size(self, shape: tuple[int, ...], dtype: Any) -> int:
        size: int = int(np.prod((*self._lead, *shape))) * np.dtype(dtype).itemsize
        return -(-size // 64) * 64

    def map(self, fd: int) -> tuple[list[Array], list[Array]]:
        with open(fd, "r+b", closefd=False) as file:
            memory = np.asarray(np.memmap(file, np.uint8, "r+", 0, (self.nbytes,)))
        counters = [memory[i : i + 8].view(np.int64) for i in range(0, _COUNTERS, 64)]
        arrays, at = [], _COUNTERS
        for shape, dtype in self._kinds:
            size = int(np.prod((*self._lead, *shape))) * np.dtype(dtype).itemsize
            arrays.append(memory[at : at + size].view(dtype).reshape(*self._lead, *shape))
            at += self._size(shape, dtype)
        return counters, arrays


class ReplayWriter:
    """What a process adds to the buffer of another one with, made by `ReplayBuffer.writers` and given to the process.

    It has its own environments, and one process at a time uses it, in one thread.  If that process dies, what it had
    added is still taken in, and another one may go on with the same writer: its first transitions begin episodes.
    """

    def __init__(self, path: str, obs: Space, action: Space, num_envs: int, slots: int) -> None:
        self._args = path, obs, action, num_envs, slots
        self.num_envs = num_envs
        self._pid = 0
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
        if self._pid != os.getpid():
            self._attach()
        self._check_open()
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
            self._wait(slots)
        for array, item in zip(self._arrays[:6], items, strict=False):
            array[slot] = item
        self._arrays[6][slot] = True if kept is None else kept
        self._arrays[7][slot] = begins
        self._committed += 1
        self._publish(self._counters[0], self._committed)
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

    def _wait(self, slots: int) -> None:
        looks = 0
        while True:
            self._taken = self._observe(self._counters[1])
            if self._committed - self._taken < slots:
                return
            self._check_open()
            looks += 1
            if looks % 500 == 0 and not _is_alive(int(self._counters[2][0])):
                raise RuntimeError("replay.add: the process of the buffer has ended")
            time.sleep(_WAIT)

    def _check_open(self) -> None:
        if not self._counters[2][0]:
            raise RuntimeError("replay.add: the buffer of this writer is closed or gone")

    def _attach(self) -> None:
        path, obs, action, num_envs, slots = self._args
        with _attaching:
            if _attached.get(path) == os.getpid():
                raise BlockingIOError(errno.EAGAIN, "replay.add: another copy of this writer is used here", path)
            fd = _locked(path)
            try:
                self._counters, self._arrays = _Lane(obs, action, num_envs, slots).map(fd)
                self._publish, self._observe = _compiled()
            except BaseException:
                os.close(fd)
                raise
            _attached[path] = os.getpid()
            weakref.finalize(self, _detach, os.getpid(), path, fd)  # fd stays open until then, and with it the lock
        self._committed = self._observe(self._counters[0])
        self._taken = self._observe(self._counters[1])
        self._broken, self._is_new = True, True
        self._pid = os.getpid()


def _locked(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        raise RuntimeError("replay.add: the buffer of this writer is gone") from None
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: no child of it has the lock too
    except OSError:
        os.close(fd)
        raise BlockingIOError(errno.EAGAIN, "replay.add: another process uses this writer", path) from None
    return fd


def _detach(pid: int, path: str, fd: int) -> None:
    if pid == os.getpid():
        os.close(fd)
        _attached.pop(path, None)


class Lanes:
    """The buffer's end of its writers' lanes."""

    def __init__(self, obs: Space, action: Space, num_envs: int, writers: int, slots: int) -> None:
        self._publish, self._observe = _compiled()
        self.num_envs = num_envs // writers
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
        base = Path(folder) / "fastrl-replay"
        with _attaching:
            _files.remove_leftovers(base, _attached)  # of processes that were killed
        lane = _Lane(obs, action, self.num_envs, slots)
        self.writers: list[ReplayWriter] = []
        self._lanes: list[Any] = []
        self.begins = np.zeros(num_envs, np.bool_)  # the next step begins an episode, whatever its writer says
        files: list[Any] = []
        self.close = weakref.finalize(self, _remove, os.getpid(), files, self._lanes)
        try:
            for _ in range(writers):
                path, file = _files.temporary(base, 0o600)
                files.append((path, file))
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, lane.nbytes)  # a full one would kill who writes to it
                else:
                    os.truncate(file.fileno(), lane.nbytes)
                fd = os.open(path, os.O_RDWR)
                self._lanes.append(lane.map(fd))
                os.close(fd)
                self._lanes[-1][0][2][0] = os.getpid()
                self.writers.append(ReplayWriter(str(path), obs, action, self.num_envs, slots))
        except OSError as error:
            self.close()
            text = f"replay.writers: {writers} lanes of {lane.nbytes} bytes in {folder}: {error.strerror}"
            raise OSError(error.errno, text) from None

    def receive(self, store: Any, write: Any) -> int:
        """Give what was committed to ``write(steps, first env, envs, items)``, for `store`; the number of steps.

        Steps that it raised on before one of them was in the store come again in the next call.
        """
        count = 0
        for number, (counters, arrays) in enumerate(self._lanes):
            slots, taken = len(arrays[0]), int(counters[1][0])
            envs = slice(number * self.num_envs, (number + 1) * self.num_envs)
            # As much as there is now: what is added meanwhile is for the next call.
            committed = self._observe(counters[0])
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
                        self._publish(counters[1], taken)
                count += steps
        return count

    def after_fork(self) -> None:
        """In a child, whose copy of the buffer receives nothing."""
        self._lanes.clear()


def _begin(begins: Array, kept: Array, starts: Array) -> tuple[Array, Array]:
    """`starts` with the first step kept of each environment that `begins`, and which have none [envs]."""
    first, envs = kept.argmax(0), np.arange(len(begins))
    found = begins & kept[first, envs]
    starts = starts.copy()
    starts[first[found], envs[found]] = True
    return starts, begins & ~found


def _compiled() -> Any:
    if _backend._C is None:
        raise RuntimeError("replay: writers need the compiled extension fastrl._C, which this install does not have")
    if fcntl is None:
        raise RuntimeError("replay: writers need Linux or macOS")
    return _backend._C.publish, _backend._C.observe


def _remove(pid: int, files: list[Any], lanes: list[Any]) -> None:
    if pid != os.getpid():  # of a forked child
        return
    for counters, _ in lanes:
        counters[2][0] = 0  # so that no writer waits
    for path, file in files:
        file.close()
        path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError):  # a system without /proc
        # The state comes behind the name, which may have any character.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    return True
