"""The columns of a replay buffer in the files of a folder, mapped into memory.

``obs.npy``, ``reward.npy`` ... are the columns, and change with every `add`; ``added.npy`` counts the transitions of
each environment.  ``state`` has all else as it was at the last flush, and the observations where the next transitions
go: a file of `storage.py`, written as a whole or not at all.  A process that is killed leaves all of its writes to the
files, so what was flushed is whole but for the rows that newer transitions went to, which ``added.npy`` tells.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl import _files
from fastrl.replay import state as states
from fastrl.replay import storage
from fastrl.replay.store import saved_rows

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Array = NDArray[Any]
Spec = tuple[str, tuple[int, ...], Any]  # name, shape and dtype of a column


class Folder:
    """A folder of one buffer, made if it is not there or empty; it is this process's until `release`.

    Args:
        config: what an earlier buffer there must agree in.
        specs: the columns.

    Raises:
        ValueError: something else than such a buffer is there, or it is damaged.
        OSError: there is no folder to make it in, the disk is too small, or another process has it open
            (BlockingIOError).
        RuntimeError: a system without locks that end with the process.
    """

    def __init__(self, path: str | os.PathLike[str], config: dict[str, Any], specs: Sequence[Spec]) -> None:
        if fcntl is None:
            raise RuntimeError(
                "replay: storage needs Linux or macOS, whose locks keep other processes out of the folder"
            )
        self.path = Path(os.path.realpath(path))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"replay: storage must be a folder, but {self.path} is a file")
        if not self.path.parent.is_dir():
            text = f"replay: storage={str(path)!r} cannot be made, there is no folder"
            raise FileNotFoundError(errno.ENOENT, text, str(self.path.parent))
        specs = [*specs, ("added", (config["num_envs"],), np.int64)]
        if not self.path.is_dir() or not os.listdir(self.path):
            _make(self.path, specs)
        if not (self.path / "added.npy").is_file():
            raise ValueError(f"replay: {self.path} is neither empty nor the folder of a replay buffer")
        self.columns: list[Array] = []
        self.added: Any = None
        self._opened: Any = None
        self._lock: int | None = _locked(self.path)
        try:
            self.is_new = not self.has_state() and not _map(self.path, *specs[-1], mode="r").any()
            if not self.is_new:
                with self._open_state() as file:
                    states.check_config(storage.Reader(file).header, config)
            *self.columns, self.added = [_map(self.path, *spec) for spec in specs]
        except BaseException as error:
            self.release()
            if isinstance(error, (ValueError, EOFError)):
                raise ValueError(f"replay: {self.path} is {error}") from None
            raise

    def _open_state(self) -> Any:
        try:
            return open(_regular(self.path / "state"), "rb")
        except FileNotFoundError:
            raise ValueError("damaged: it has no state; a load into it may have been interrupted") from None

    def has_state(self) -> bool:
        """Whether it can be opened again: not between `enter` and the next flush."""
        return (self.path / "state").exists()

    def read(self, config: dict[str, Any], priorities: Array, most: int, frames: int, every: bool) -> Any:
        """The header and arrays as `states.read` gives them, without the rows that newer transitions have taken.

        Episodes go on if it was closed; else what follows the flush is lost, and the environments with the process.
        """
        columns, N = self.columns, len(self.added)
        cursors = np.zeros((N, *columns[0].shape[1:]), columns[0].dtype)
        with self._open_state() as file:
            stored = [priorities, cursors]
            header, arrays = states.read(
                storage.Reader(file), config, [priorities, *columns], N, most, frames, every, stored
            )
        closed, counts = header.get("closed"), np.array(header["added"])
        if type(closed) is not bool or (self.added < counts).any() or (self.added > 2**62).any():
            raise ValueError("damaged: added.npy does not fit its state")
        slots = len(priorities) // N - 1
        # The next transition may have been half written, and that takes the place of the oldest.
        lost = np.minimum(counts, self.added + (0 if closed else 1) - most)
        start = np.where(lost > counts - most, np.maximum(header["start"], lost), header["start"])
        held = states.held_rows(counts, start, slots, most)
        priorities[~held] = 0
        marks, extras = arrays[1 + len(columns) : 3 + len(columns)]
        arrays[2 + len(columns)] = extras = extras[held[marks]]
        marks &= held
        header.update(start=start.tolist(), extras=len(extras))
        if not closed:
            header["broken"] = [True] * N
        self._opened = header, stored, arrays[1 + len(columns) :], counts % slots * N + np.arange(N)
        return header, arrays

    def write(self, header: dict[str, Any], arrays: list[Array], cursor: Array, *, closed: bool) -> None:
        """Flush: `arrays` and `header` as `states.read` gives them."""
        rows = cursor * len(cursor) + np.arange(len(cursor))
        sides = arrays[1 + len(self.columns) :]
        self._write(header, [arrays[0], self.columns[0][rows]], sides, closed=closed)

    def _write(self, header: dict[str, Any], stored: list[Array], sides: list[Array], *, closed: bool) -> None:
        for column in (*self.columns, self.added):
            column.base.flush()
        rows = saved_rows(np.array(header["added"]), len(self.columns[0]) // len(self.added) - 1)
        stored = [stored[0][:rows], stored[1], *(a[:rows] if a.dtype == np.bool_ else a for a in sides)]
        storage.write(self.path / "state", {**header, "closed": closed}, stored)

    def enter(self, columns: list[Array], fill: Any) -> list[Array]:
        """What `read` gave goes on; others are copied into the files, which have no state then until they are flushed.

        `fill` first fills those of them that are the files' own.

        To be called before the counts change, which would forget what was overwritten.
        """
        if self._opened is not None:
            header, stored, sides, rows = self._opened
            self._opened = None
            self._write(header, stored, sides, closed=False)
            self.columns[0][rows] = stored[1]
            return self.columns
        os.unlink(self.path / "state")
        if fill is not None:
            fill()
        for own, new in zip(self.columns, columns, strict=True):
            if own is not new:
                own[...] = new
        return self.columns

    def release(self) -> None:
        """Unmap the files, and let other processes open them.  Of a forked child: the parent keeps it."""
        self.columns, self.added, self._opened = [], None, None
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.release()


class Closed:
    """In the place of what a buffer has no more."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        raise ValueError(f"replay: {self._why}")

    def __len__(self) -> int:
        raise ValueError(f"replay: {self._why}")


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a folder, or a file of `save`, holds, whether or not a process has it open; it stays as it is.

    Raises:
        ValueError: it is not that of a replay buffer, or damaged.
        OSError: it cannot be read.
    """
    folder = Path(path)
    is_folder = folder.is_dir()
    file = folder / "state" if is_folder else folder
    try:
        with open(_regular(file), "rb") as opened:
            header = storage.Reader(opened).header
            config = header.get("config")
            if not isinstance(config, dict) or header.get("layout") != states.LAYOUT:
                raise ValueError("damaged, or of an earlier version: its header is not that of a buffer")
            capacity, num_envs = config.get("capacity"), config.get("num_envs")
            if type(capacity) is not int or type(num_envs) is not int:
                raise ValueError(f"damaged: capacity is {capacity!r} and num_envs {num_envs!r}")
            if not 0 < num_envs < 2**31 or not 0 < capacity < 2**62:
                raise ValueError(f"damaged: capacity is {capacity} and num_envs {num_envs}")
            most = -(-capacity // num_envs)
            if not isinstance(header.get("added"), list) or len(header["added"]) != num_envs:  # before a list so long
                raise ValueError(f"damaged: it does not count the transitions of its {num_envs} environments")
            states.check_list("added", header.get("added"), int, [2**62 // num_envs] * num_envs)
            states.check_list("start", header.get("start"), int, header["added"])
            time = datetime.fromtimestamp(os.fstat(opened.fileno()).st_mtime).isoformat(" ", "seconds")
    except FileNotFoundError:
        if not is_folder:
            raise
        raise ValueError(f"{folder} is no folder of a replay buffer: it has no file {file.name!r}") from None
    except ValueError as error:
        raise ValueError(f"{folder} is {error}") from None
    added = np.array(header["added"], np.int64)
    first = np.maximum(header["start"], added - most)
    found = {
        "class": config.pop("class", None),
        **config,
        "added": int(added.sum()),
        "flushed" * is_folder or "saved": time,
    }
    if is_folder:
        now = _map(folder, "added", added.shape, np.int64, mode="r")
        first = np.minimum(added, np.maximum(first, now + (0 if header.get("closed") is True else 1) - most))
        found["added since"] = int((now - added).sum())
        found["open"] = "by a process" if _is_locked(folder) else "no"
    return {**found, "transitions": int((added - first).sum())}


def _make(path: Path, specs: Sequence[Spec]) -> None:
    """The files, under another name until all of them are there."""
    new = _files.beside(path, "new")
    with _files.locked(_files.beside(path, "lock")):
        if path.is_dir() and os.listdir(path):
            return  # made by another process meanwhile
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        try:
            new.mkdir()
            for name, shape, dtype in specs:
                column = np.lib.format.open_memmap(new / f"{name}.npy", "w+", np.dtype(dtype), shape)
                with open(new / f"{name}.npy", "r+b") as file:
                    # Now, since a write to a mapped page that the disk has no room for kills the process.
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
                del column
            os.replace(new, path)
        except BaseException as error:
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for _, shape, dtype in specs)
                text = f"replay: the columns take {size / 2**30:.3g} GiB, more than is free on the disk"
                raise OSError(errno.ENOSPC, text, str(path)) from None
            raise
    _files.fsync(path.parent)


def _regular(path: Path) -> Path:
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"damaged: {path.name} is not a file")
    return path


def _map(folder: Path, name: str, shape: tuple[int, ...], dtype: Any, mode: Any = "r+") -> Array:
    """ValueError for another file than was made; NumPy itself would fill one that was cut up with zeros."""
    path = _regular(folder / f"{name}.npy")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found = read(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ValueError(f"damaged: {path.name} is missing") from None
    except OSError:
        raise
    except Exception as error:  # whatever NumPy's parser of headers makes of this one
        raise ValueError(f"damaged: {path.name}: {' '.join(str(error).split())[:200]}") from None
    dtype = np.dtype(dtype)
    if found != (shape, False, dtype):
        raise ValueError(f"damaged: {path.name} has {found[0]} of {found[2]} instead of {shape} of {dtype}")
    wanted = offset + dtype.itemsize * int(np.prod(shape))
    if size != wanted:
        raise ValueError(f"damaged: {path.name} has {size} bytes instead of {wanted}")
    return np.asarray(np.memmap(path, dtype, mode, offset, shape))


def _locked(folder: Path) -> int:
    """A file that is locked as long as it is open, however its process ends."""
    fd = os.open(folder / "added.npy", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BlockingIOError(errno.EAGAIN, "replay: another buffer or process has it open", str(folder)) from None
    except OSError:  # a file system without locks
        pass
    return fd


def _is_locked(folder: Path) -> bool:
    if fcntl is None:
        return False
    fd = os.open(folder / "added.npy", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(fd)
    return False
