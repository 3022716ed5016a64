"""Files written as a whole or not at all, and locks that end with the process that holds them.

What is written beside a file under a hidden name of ours ends in ``.fastrl-tmp``, ``-lock``, ``-new`` or ``-old``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and a file in use cannot be deleted
    fcntl = None  # type: ignore[assignment]

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, and is gone again if the block raises.

    It is written next to `path`, flushed to the disk and renamed, so that `path` is always the old file or the new one,
    also when the process is killed or the power fails.  What such a death leaves there, the next write removes.  A
    symbolic link stays, and the file that it names is written; the mode of an earlier file is kept.

    Raises OSError for what cannot be written, and for a `path` that is something else than a regular file.
    """
    path = Path(os.path.realpath(path))
    mode = _mode(path)
    remove_leftovers(path)
    new, file = temporary(path, mode)
    try:
        with file:
            yield file
            file.flush()
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            if os.name == "nt":  # an open file cannot be renamed; elsewhere it stays locked until it has its name
                file.close()
            os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    fsync(path.parent)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, which is gone again afterwards; its folder has to exist.

    Raises BlockingIOError if somebody else holds it and `wait` is False.  The system lets go of it when the process
    ends, however it ends.  Where a file system knows no locks, nothing is locked.
    """
    if fcntl is None:
        yield
        return
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            raise
        except OSError:  # a file system without locks
            break
        if _is(path, fd):
            break
        os.close(fd)  # who held it has removed it meanwhile: that lock is nobody's
    try:
        yield
    finally:
        if _is(path, fd):
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(fd)


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _mode(path: Path) -> int | None:
    """The permissions of the file that is to be replaced; None: there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return stat.S_IMODE(status.st_mode)


def temporary(path: Path, mode: int | None) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked as long as it is open: so the others see that its writer lives."""
    while True:
        new = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.fastrl-tmp")
        fd = os.open(new, _NEW_FILE, 0o666 if mode is None else mode & 0o666 | 0o200)
        with contextlib.suppress(OSError):  # of a file system without locks
            if fcntl is not None and _taken(fd):
                os.close(fd)
                continue  # another write took it for a leftover before it was locked
        return new, open(fd, "wb")


def remove_leftovers(path: Path, spared: Collection[str] = ()) -> None:
    """Remove the temporary files of `path` whose writers are dead; not even opened are those of the paths `spared`."""
    ours = re.compile(rf"\.{re.escape(path.name[:50])}\.[0-9a-f]{{16}}\.fastrl-tmp")
    try:
        names = [name for name in os.listdir(path.parent) if ours.fullmatch(name)]
        names = [name for name in names if str(path.with_name(name)) not in spared]
    except OSError:  # a folder that cannot be listed can still be written to
        return
    for name in names:
        with contextlib.suppress(OSError):
            if fcntl is None:
                os.unlink(path.with_name(name))  # fails for one that is open
                continue
            fd = os.open(path.with_name(name), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode) and not _taken(fd):
                    os.unlink(path.with_name(name))
            finally:
                os.close(fd)


def _taken(fd: int) -> bool:
    """Try to lock the file: True if somebody else has, or if it is no longer there."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return os.fstat(fd).st_nlink == 0


def _is(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False


def beside(folder: Path, suffix: str) -> Path:
    """A hidden name of ours, which no user has for something of his own."""
    return folder.parent / f".{folder.name}.fastrl-{suffix}"
