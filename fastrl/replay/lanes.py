"""Files in shared memory, each between the process of a replay buffer and another one: counters and arrays.

Who fills an array then publishes a counter, and a counter has one process that writes it.  So one that dies leaves
nothing locked and at most a slot that nobody looks at.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl import _backend, _files, _fork

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Array = NDArray[Any]
_LINE = 64  # bytes of a cache line: each counter has one
_WAIT = 2e-4  # seconds between two looks at what another process publishes
# The files of attached lanes, and the process of each.  POSIX locks are a process's: they keep no second user of it
# out, and any descriptor of the file that it closes ends them.
_attached: dict[str, int] = {}
_attaching = threading.Lock()
_fork.guarded.add(_attaching)


class Layout:
    """The pid of the buffer's process and `counters` more numbers, then arrays of these shapes and dtypes."""

    def __init__(self, counters: int, kinds: Sequence[tuple[tuple[int, ...], Any]]) -> None:
        self._counters, self._kinds = _LINE * (1 + counters), list(kinds)
        self.nbytes = self._counters + sum(-(-self._size(*kind) // _LINE) * _LINE for kind in self._kinds)

    @staticmethod
    def _size(shape: tuple[int, ...], dtype: Any) -> int:
        return math.prod(shape) * int(np.dtype(dtype).itemsize)

    def map(self, fd: int) -> tuple[list[Array], list[Array]]:
        with open(fd, "r+b", closefd=False) as file:
            memory = np.asarray(np.memmap(file, np.uint8, "r+", 0, (self.nbytes,)))
        counters = [memory[i : i + 8].view(np.int64) for i in range(0, self._counters, _LINE)]
        arrays, at = [], self._counters
        for shape, dtype in self._kinds:
            size = self._size(shape, dtype)
            arrays.append(memory[at : at + size].view(dtype).reshape(shape))
            at += -(-size // _LINE) * _LINE
        return counters, arrays


class End:
    """What another process has of a lane, which one process at a time uses, in one thread."""

    _what = "writer"

    def __init__(self, path: str, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._pid = 0

    def _attach(self, where: str) -> None:
        """Map the lane into this process, unless it is; RuntimeError if the buffer is closed."""
        if self._pid != os.getpid():
            with _attaching:
                if _attached.get(self._path) == os.getpid():
                    text = f"{where}: another copy of this {self._what} is used here"
                    raise BlockingIOError(errno.EAGAIN, text, self._path)
                fd = self._locked(where)
                try:
                    self._counters, self._arrays = self._layout.map(fd)
                    self._publish, self._observe = compiled(f"{self._what}s")
                except BaseException:
                    os.close(fd)
                    raise
                _attached[self._path] = os.getpid()
                weakref.finalize(self, _detach, os.getpid(), self._path, fd)  # fd stays open until then: the lock
            self._begin()
            self._pid = os.getpid()
        if not self._counters[0][0]:
            raise RuntimeError(f"{where}: the buffer of this {self._what} is closed or gone")

    def _begin(self) -> None:
        """Go on with a lane that maybe another process has used."""

    def _locked(self, where: str) -> int:
        try:
            fd = os.open(self._path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except FileNotFoundError:
            raise RuntimeError(f"{where}: the buffer of this {self._what} is gone") from None
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: no child of it has the lock too
        except OSError:
            os.close(fd)
            text = f"{where}: another process uses this {self._what}"
            raise BlockingIOError(errno.EAGAIN, text, self._path) from None
        return fd

    def _wait(self, where: str, is_ready: Callable[[], bool]) -> None:
        looks = 0
        while not is_ready():
            self._attach(where)
            looks += 1
            if looks % 500 == 0 and not _is_alive(int(self._counters[0][0])):
                raise RuntimeError(f"{where}: the process of the buffer has ended")
            time.sleep(_WAIT)


def _detach(pid: int, path: str, fd: int) -> None:
    if pid == os.getpid():
        os.close(fd)
        _attached.pop(path, None)


class Lanes:
    """The buffer's end of `n` lanes, whose files are at `paths`; `method` and `what` of errors."""

    def __init__(self, method: str, what: str, layout: Layout, n: int) -> None:
        self._publish, self._observe = compiled(what)
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
        base = Path(folder) / "fastrl-replay"
        with _attaching:
            _files.remove_leftovers(base, _attached)  # of processes that were killed
        self.paths: list[str] = []
        self._lanes: list[Any] = []
        files: list[Any] = []
        self.close = weakref.finalize(self, _remove, os.getpid(), files, self._lanes)
        try:
            for _ in range(n):
                path, file = _files.temporary(base, 0o600)
                files.append((path, file))
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, layout.nbytes)  # a full one would kill who writes to it
                else:
                    os.truncate(file.fileno(), layout.nbytes)
                fd = os.open(path, os.O_RDWR)
                self._lanes.append(layout.map(fd))
                os.close(fd)
                self._lanes[-1][0][0][0] = os.getpid()
                self.paths.append(str(path))
        except (OSError, OverflowError) as error:  # of more bytes than the system counts
            self.close()
            number = error.errno if isinstance(error, OSError) else errno.EFBIG
            text = f"{method}: {n} lanes of {layout.nbytes} bytes in {folder}: {os.strerror(number or 0)}"
            raise OSError(number, text) from None
        _fork.children.add(self)

    def after_fork(self) -> None:
        """In a child, whose copy of the buffer serves nobody."""
        self._lanes.clear()


def compiled(what: str) -> Any:
    """The functions `publish` and `observe`."""
    if _backend._C is None:
        raise RuntimeError(f"replay: {what} need the compiled extension fastrl._C, which this install does not have")
    if fcntl is None:
        raise RuntimeError(f"replay: {what} need Linux or macOS")
    return _backend._C.publish, _backend._C.observe


def _remove(pid: int, files: list[Any], lanes: list[Any]) -> None:
    if pid != os.getpid():  # of a forked child
        return
    for counters, _ in lanes:
        counters[0][0] = 0  # so that nobody waits
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
