"""What of a replay buffer outlives it: saved files, its storage folder, and copies."""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastrl import _fork
from fastrl.replay import checks, storage
from fastrl.replay import state as states
from fastrl.replay.mapped import Closed
from fastrl.replay.store import saved_rows

# Of an instance's attributes those that are made anew for a copy.
_DERIVED = {
    "_lock", "_tree", "_store", "_ring", "_torch", "_rows", "_priorities", "_folder", "_path", "_lanes", "_desk",
}  # fmt: skip


class Saved(ABC):
    """The part of `ReplayBuffer` that its state leaves and enters by."""

    capacity: int
    num_envs: int
    n_step: int
    gamma: float
    frame_stack: int
    device: Any
    _draws_rows: bool
    _most: int
    _added: int
    _new_priority: float
    _lock: Any
    _tree: Any
    _store: Any
    _ring: Any
    _torch: Any
    _folder: Any
    _path: Any
    _lanes: Any
    _desk: Any

    @abstractmethod
    def _make_storage(self) -> None: ...

    @abstractmethod
    def receive(self) -> int: ...

    @abstractmethod
    def _clear(self) -> None: ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that decides what the buffer will do to one file, checksummed and without pickle.

        Atomic: after a crash at any moment `path` is the old file or the new one (a file ``.NAME.*.fastrl-tmp`` may be
        left beside it, which the next save removes).  Other threads that add or sample wait meanwhile.

        Raises:
            OSError: the file cannot be written; an earlier one is left as it was.
        """
        self.receive()
        with self._lock:
            header, arrays = self._state()
            storage.write(path, header, arrays)

    def load(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Go on bit for bit where `save` was called, random draws included; `path` may be a file opened to be read.

        Whatever raises leaves the buffer as it was, but for a file that changes or fails while it is read, and Ctrl-C,
        after which it may be empty.  Transitions are read into their places, without a second copy.  With seed=None the
        default generator is set back as well.  The next step of every writer begins an episode.  Files of before
        `store_next_obs` are read too; their transitions get new numbers.

        Raises:
            ValueError: not a file of `save`; cut off or changed since; or of a buffer with another class, capacity,
                num_envs, spaces, n_step, gamma, frame_stack, store_next_obs, alpha or eps (`device` and beta may
                differ).
            OSError: the file cannot be read.
        """
        if isinstance(path, (str, os.PathLike)):
            if os.path.isdir(path):
                text = "replay.load: a file of `save` is needed; a folder is opened by storage="
                raise IsADirectoryError(errno.EISDIR, text, str(path))
            with open(path, "rb") as file:
                return self.load(file)
        where, own = f"replay.load: {path.name}", self._store.columns
        try:
            reader = storage.Reader(path)
            # The large ones are read to where they are once all is known to be good, so that there is no second copy.
            large = [] if reader.header.get("layout", 1) == 1 else [0, 1, *[6] * self._store.apart]
            columns = [x if i in large else np.zeros(x.shape, x.dtype) for i, x in enumerate(own)]
            header, arrays = states.read(
                reader,
                self._config(),
                [np.zeros(self._tree.capacity, np.float32), *columns],
                self.num_envs,
                self._most,
                self.frame_stack,
                self._draws_rows,
                deferred=[i + 1 for i in large],
            )

            def fill() -> None:
                reader.read_deferred()
                used = [saved_rows(np.array(x), self._store.slots) for x in (header["added"], self._store.counts)]
                for i in large:
                    own[i][used[0] : used[1]] = 0  # as in a buffer that never had more

            self._load_state(header, arrays, fill)
        except states.DAMAGES as error:
            raise ValueError(f"{where} is {states.damage(error)}") from None

    def _load_state(self, header: dict[str, Any], arrays: list[NDArray[Any]], fill: Any) -> None:
        with self._lock:
            self.receive()  # what writers have added until now is forgotten with the rest
            try:
                self._set_state(header, arrays, fill)
            except BaseException:
                if self._folder is not None and not self._folder.has_state():
                    with contextlib.suppress(OSError):
                        self._write_folder(closed=False)  # of an empty buffer: else nothing could open the folder again
                raise
            if self._lanes is not None:
                self._lanes.begins[:] = True
            if self._folder is not None:
                self.flush()

    def _open_folder(self) -> None:
        folder, store = self._folder, self._store
        if folder.is_new:
            self.flush()
            _fork.children.add(self)
            return
        try:
            priorities = np.zeros(store.rows, np.float32)
            found = folder.read(self._config(), priorities, self._most, self.frame_stack, self._draws_rows)
            self._set_state(*found)
            _fork.children.add(self)
        except BaseException as error:
            self._leave("the buffer could not be opened")
            if isinstance(error, states.DAMAGES):
                raise ValueError(f"replay: {self._path} is {states.damage(error)}") from None
            raise

    def flush(self) -> None:
        """Write what is not in the files of the `storage` folder yet.

        If the process is killed at any later moment, the folder has the transitions of now when it is next opened, but
        for those whose places newer ones have taken since and the oldest one of each environment that has its share.
        What is added then begins episodes.
        Should the machine itself go down while transitions are added, they may be damaged: for that there is `save`.

        Raises:
            ValueError: the buffer is in memory.
            OSError: it cannot be written; the last flush is left as it was.
        """
        self._flush(closed=False)

    def _flush(self, *, closed: bool) -> None:
        self.receive()
        with self._lock:
            self._write_folder(closed=closed)

    def _write_folder(self, *, closed: bool) -> None:
        header, arrays = self._state()  # first, as a closed buffer says so
        if self._folder is None:
            raise ValueError("replay.flush: the buffer is in memory, it has no storage folder")
        self._folder.write(header, arrays, self._store.cursor, closed=closed)

    def close(self) -> None:
        """`flush`, and let go of the `storage` folder: another buffer may open it, and this one can be used no more.

        Its writers and samplers raise RuntimeError from then on.  A buffer that opens the folder goes on in the middle
        of episodes: call its `new_episodes` if the environments were reset.
        """
        with self._lock:  # no thread adds in between, which would be lost
            self._flush(closed=True)
            if self._desk is not None:
                self._desk.close()
            if self._lanes is not None:
                self._lanes.close()
                if self.receive():  # what writers have added meanwhile
                    self._flush(closed=True)
            self._leave("the buffer is closed")

    def _leave(self, closed: str) -> None:
        self._folder.release()
        self._store = self._tree = self._ring = Closed(closed)

    def after_fork(self) -> None:
        """In a child process, which would write into the files of its parent's buffer."""
        self._leave("the buffer's folder belongs to the process that forked this one")

    def _config(self) -> dict[str, Any]:
        """What a saved state must agree in."""
        own = {"class": type(self).__name__, "capacity": self.capacity, "n_step": self.n_step, "gamma": self.gamma}
        return {**own, **self._store.config()}

    def _state(self) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """The header, and views of the arrays."""
        tree, store = self._tree.state_dict(), self._store
        arrays = store.arrays(tree["priorities"])
        header = {
            "config": self._config(),
            "layout": states.LAYOUT,
            "added": store.counts.tolist(),
            "start": store.start.tolist(),
            "broken": store.broken.tolist(),
            "steps": self._added,
            "extras": len(arrays[len(store.columns) + 2]),
            "new_priority": self._new_priority,
            "generator": tree["generator"],
        }
        if self.frame_stack > 1:
            header["heads"] = len(arrays[-1])
        return header, arrays

    def _set_state(self, header: dict[str, Any], arrays: list[NDArray[Any]], fill: Any = None) -> None:
        """Go on from what `states.read` gave; `fill` reads what it has deferred."""
        tree = {"capacity": self._tree.capacity, "dtype": "float32", "priorities": arrays[0]}
        with self._lock:
            try:
                self._tree.load_state_dict({**tree, "generator": header["generator"]})
            except (TypeError, ValueError) as error:
                raise ValueError(f"damaged: {error}") from None
            n = 1 + len(self._store.columns)
            columns = arrays[1:n]
            try:
                if self._folder is not None:
                    columns = self._folder.enter(columns, fill)
                elif fill is not None:
                    fill()
            except BaseException:
                self._clear()
                raise
            if self._desk is not None:
                self._desk.forget()
            self._store.set_arrays(header["added"], header["start"], header["broken"], columns + arrays[n:])
            self._ring = self._store.ring
            self._added = header["steps"]
            self._new_priority = header["new_priority"]

    def __getstate__(self) -> dict[str, Any]:
        self.receive()
        with self._lock:
            kept = {name: value for name, value in self.__dict__.items() if name not in _DERIVED}
            header, arrays = self._state()
            kept["_saved"] = header, [array.copy() for array in arrays]
            return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        header, arrays = kept["_saved"]
        self.__dict__.update((name, value) for name, value in kept.items() if name != "_saved")
        self._torch, _ = checks.load_torch(self.device)
        self._path = None  # a copy is in memory
        self._make_storage()
        columns, sides = arrays[: len(self._store.columns) + 1], arrays[len(self._store.columns) + 1 :]
        whole = [np.zeros((self._store.rows, *array.shape[1:]), array.dtype) for array in columns]
        for column, array in zip(whole, columns, strict=True):
            column[: len(array)] = array
        self._set_state(header, [*whole, *sides])
