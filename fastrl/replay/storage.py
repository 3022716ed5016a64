"""The file of a replay buffer: a JSON header and raw arrays, each behind a checksum, written as a whole or not at all.

Layout: magic (8 bytes) | length of the header (8, little-endian) | header (UTF-8 JSON) | checksum (4) | the bytes of
the arrays, one after another | checksum (4).  A checksum is the CRC-32 (zlib's, little-endian) of all before it but the
other checksum.  It tells files that were cut, damaged or mixed out of two, all but one in 2^32 of them.  It is no
signature: who changes a file on purpose can change its checksum, so what is read is checked besides.

Version 1 had SHA-256 (32 bytes each, the second one of all before it) and is read, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastrl._files import atomic_write

MAGIC = b"\x93fastrl\x02"  # the last byte is the version of the format; the first is not ASCII, so no text begins so
_CHUNK = 1 << 20


def write(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> None:
    """Write `header` (JSON types) and C-contiguous `arrays` to `path`, atomically."""
    text = json.dumps(header).encode()
    check = _Crc()
    with atomic_write(path) as file:
        start = MAGIC + len(text).to_bytes(8, "little") + text
        check.update(start)
        file.write(start + check.digest())
        with _Checking(check) as checking:
            for chunk in _chunks(arrays):
                checking.add(chunk)
                file.write(chunk)
        file.write(check.digest())


class _Crc:
    """CRC-32 as a hash of hashlib."""

    digest_size = 4

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Any) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "little")


class Reader:
    """A file of `write`, opened: `header` is there at once, `read_into` then reads the arrays.

    Raises ValueError for a file that `write` did not make, or that was cut or changed since.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        start = file.read(16)
        if start[:7] != MAGIC[:7]:
            raise ValueError("not a file of a fastrl replay buffer")
        version = start[7] if len(start) > 7 else None
        if version not in (1, 2):
            raise ValueError(f"of format version {version}, this fastrl reads up to {MAGIC[7]}")
        self._check: Any = hashlib.sha256() if version == 1 else _Crc()
        length = int.from_bytes(start[8:], "little")
        if len(start) < 16 or length > self._size - 16 - 2 * self._check.digest_size:
            raise ValueError("damaged: it is cut off, or its header is")
        text = file.read(length)
        self._check.update(start + text)
        digest = self._check.digest()
        if file.read(len(digest)) != digest:
            raise ValueError("damaged: the checksum of its header does not fit")
        if version == 1:  # not of a CRC, which forgets with its own bytes all that was before them
            self._check.update(digest)
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise ValueError("damaged: its header is no JSON object")
        self.header: dict[str, Any] = header
        self._deferred: list[tuple[int, NDArray[Any]]] = []

    def read_into(self, arrays: Sequence[NDArray[Any]], deferred: Collection[int] = ()) -> None:
        """Fill C-contiguous `arrays` with those that were given to `write`.

        Those at the positions `deferred` are checked only: `read_deferred` fills them.
        """
        end = self._file.tell()
        for i, array in enumerate(arrays):
            if i in deferred:
                self._deferred.append((end, array))
            end += array.nbytes
        end += self._check.digest_size
        if end != self._size:
            raise ValueError(f"damaged: it has {self._size} bytes instead of {end}")
        scratch = np.empty((2, _CHUNK if deferred else 0), np.uint8)  # one is read into while the other is checked
        chunks = ((i, chunk) for i, array in enumerate(arrays) for chunk in _chunks([array]))
        with _Checking(self._check) as checking:
            for k, (i, chunk) in enumerate(chunks):
                checking.add(self._read(scratch[k % 2, : len(chunk)] if i in deferred else chunk))
        if self._file.read(self._check.digest_size) != self._check.digest():
            raise ValueError("damaged: the checksum of its data does not fit")

    def read_deferred(self) -> None:
        """Fill what `read_into` has left, from the file that is still open."""
        for start, array in self._deferred:
            self._file.seek(start)
            for chunk in _chunks([array]):
                self._read(chunk)

    def _read(self, chunk: Any) -> Any:
        if self._file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
            raise ValueError("damaged: it was cut off while it was read")
        return chunk


class _Checking:
    """A thread that sums beside the reading or writing of a file, which takes as long; none of them holds the GIL.

    Where the system gives no thread, at its limit of processes or while Python ends, the caller sums.

    Not an executor's: `submit` needs a lock that concurrent.futures holds while another thread forks, and our own part
    of that fork (`fastrl._fork`) waits for the lock of the buffer that is being saved.
    """

    def __init__(self, check: Any) -> None:
        self._check = check
        self._work: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._done.put(None)
        self._thread: Thread | None = None

    def __enter__(self) -> _Checking:
        thread = Thread(target=self._run, daemon=True)
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()

    def add(self, chunk: Any) -> None:
        """Sum the chunk, which must not change until the next call of this or the end; waits for the one before."""
        if self._thread is None:
            self._check.update(chunk)
            return
        self._done.get()
        self._work.put(chunk)

    def _run(self) -> None:
        while (chunk := self._work.get()) is not None:
            self._check.update(chunk)
            self._done.put(None)


def _chunks(arrays: Sequence[NDArray[Any]]) -> Iterator[Any]:
    # Small pieces are summed while they are still in the cache.
    for array in arrays:
        data = array.reshape(-1).view(np.uint8)
        for i in range(0, data.size, _CHUNK):
            yield data[i : i + _CHUNK]
