"""Checkpoints: a folder of JSON and safetensors, no pickle, written as a whole or not at all.

- config.json: algorithm, environment, hyperparameters
- model.safetensors: networks, optimizer moments, arrays
- state.json: counters, generators, environments
- replay: the replay buffer's own file, when there is one
- manifest.json: SHA-256 of the others; which versions and command wrote them, and when

A folder that is written is never changed, only replaced, so whoever has it open has one whole state.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import gymnasium
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

import fastrl
from fastrl._files import beside, fsync, locked
from fastrl.agents.config import InputError

FORMAT = 3
FILES = ("config.json", "model.safetensors", "state.json")  # and, of agents that have one, REPLAY
REPLAY = "replay"
T = TypeVar("T")
_DIR_FD = os.open in os.supports_dir_fd  # not on Windows


@dataclass
class Checkpoint:
    """One whole checkpoint.  `replay`: the replay buffer's open file, if there is one; ``with`` closes it."""

    folder: Path
    config: dict[str, Any]
    state: dict[str, Any]
    tensors: dict[str, NDArray[Any]]
    replay: BinaryIO | None = None
    made_by: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.replay is not None:
            self.replay.close()

    def versions(self) -> str:
        """`` (written with ...; here ...)``: the versions that differ from those of now; empty if none does."""
        now = _versions()
        other = {name: old for name, old in self.made_by.items() if name in now and old != now[name]}
        if not other:
            return ""
        old, new = (", ".join(f"{name} {versions[name]}" for name in other) for versions in (other, now))
        return f" (written with {old}; here {new})"


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    state: dict[str, Any],
    tensors: dict[str, NDArray[Any]],
    save_replay: Callable[[Path], None] | None = None,
) -> None:
    """Write the checkpoint `folder`; an earlier checkpoint there is replaced only when the new one is complete.

    Everything goes to a hidden folder beside it first, is flushed to disk and then renamed; in between, the earlier one
    has another hidden name, under which `load_checkpoint` finds it if the process dies before the last rename.  Saves
    to one folder at the same time wait for each other.  A `folder` that is a symbolic link stays one.
    Raises InputError when `folder` is something else than a checkpoint, or cannot be written.
    """
    folder = Path(os.path.realpath(_path(folder)))
    try:
        if folder.exists() and not (folder / "manifest.json").is_file() and (folder.is_file() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not a checkpoint; it is left as it is")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(beside(folder, "lock")):
            _replace(folder, config, state, tensors, save_replay)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot write checkpoint {folder}: {reason}") from error


def _replace(
    folder: Path,
    config: dict[str, Any],
    state: dict[str, Any],
    tensors: dict[str, NDArray[Any]],
    save_replay: Callable[[Path], None] | None,
) -> None:
    new, old = beside(folder, "new"), beside(folder, "old")
    shutil.rmtree(new, ignore_errors=True)  # what a process that died left behind
    try:
        new.mkdir()
        _write_json(new / "config.json", config)
        _write_json(new / "state.json", state)
        # Of arrays that are not contiguous safetensors 0.8 writes other numbers.
        save_file({name: np.asarray(x, order="C") for name, x in tensors.items()}, new / "model.safetensors")
        if save_replay is not None:
            save_replay(new / REPLAY)
        files = {}
        for path in sorted(new.iterdir()):
            with path.open("rb") as file:
                files[path.name] = _sha256(file)
        _write_json(new / "manifest.json", {"format": FORMAT, "files": files, "made_by": made_by()})
        # safetensors makes its files 0600; who may read one may read all, and those who could before.
        earlier = folder / "manifest.json"
        mode = stat.S_IMODE((earlier if earlier.is_file() else new / "manifest.json").stat().st_mode)
        for path in new.iterdir():
            if stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)
            fsync(path)
        if folder.exists():
            new.chmod(stat.S_IMODE(folder.stat().st_mode))
        fsync(new)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        fsync(folder.parent)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, or the one in a run folder's `checkpoint`: one whole state, also while another is written.

    Every file is opened once, in a folder that stays open, and what was hashed is what is used.
    Raises InputError when there is none, or when a file is missing or is not what the manifest says.
    """
    return _read(folder, _checkpoint)


def load_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The config.json of a checkpoint or run folder, without the rest being read.  Raises InputError as above."""
    return _read(
        folder, lambda opened: _object(opened.path, "config.json", opened.checked("config.json", opened.manifest()))
    )


def _checkpoint(opened: _Folder) -> Checkpoint:
    manifest = opened.manifest()
    data = {name: opened.checked(name, manifest) for name in FILES}
    try:
        tensors = safetensors.numpy.load(data["model.safetensors"])
    except (SafetensorError, ValueError, KeyError, OverflowError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"checkpoint {opened.path} is damaged: model.safetensors: {what}") from error
    config, state = (_object(opened.path, name, data[name]) for name in ("config.json", "state.json"))
    author = manifest.get("made_by")
    author = {str(k): str(v) for k, v in author.items()} if isinstance(author, dict) else {}
    replay = opened.checked_file(REPLAY, manifest) if REPLAY in manifest["files"] else None
    return Checkpoint(opened.path, config, state, tensors, replay, author)


class _Folder:
    """A checkpoint's folder, open: its files stay those of one checkpoint while another takes its name."""

    def __init__(self, path: Path, instead_of: Path | None = None) -> None:
        """Raises OSError if it is no folder, or has no manifest.json."""
        self.path, self._instead_of = path, instead_of
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY) if _DIR_FD else None
        try:
            self._stat = os.stat(path if self._fd is None else self._fd)
            self._manifest = self._bytes("manifest.json")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def replaced(self) -> bool:
        """Has another folder this name by now, or none, or is what this one was opened instead of there again?"""
        if self._instead_of is not None and (self._instead_of / "manifest.json").is_file():
            return True
        try:
            return not os.path.samestat(os.stat(self.path), self._stat)
        except OSError:
            return True

    def manifest(self) -> dict[str, Any]:
        manifest = _object(self.path, "manifest.json", self._manifest)
        files = manifest.get("files")
        if manifest.get("format") != FORMAT or not isinstance(files, dict):
            found, author = repr(manifest.get("format"))[:20], manifest.get("made_by")
            version = author.get("fastrl") if isinstance(author, dict) else None
            by = f", written by fastrl {str(version)[:20]}" if version else ""
            here = f"this version, {fastrl.__version__}, reads {FORMAT}"
            raise InputError(f"checkpoint {self.path}: unknown format {found}{by}; {here}")
        if set(files) - {REPLAY} != set(FILES):  # an unnamed file would not be checked
            raise InputError(f"checkpoint {self.path} is damaged: manifest.json must name {', '.join(FILES)}")
        return manifest

    def checked(self, name: str, manifest: dict[str, Any]) -> bytes:
        """The bytes of a file, which are what the manifest says."""
        with self.checked_file(name, manifest) as file:
            return file.read()

    def checked_file(self, name: str, manifest: dict[str, Any]) -> BinaryIO:
        """The file, open at its start; raises InputError if it is not what the manifest says."""
        try:
            file = self._open(name)
        except OSError as error:
            what = "missing" if error.errno == errno.ENOENT else error.strerror
            raise InputError(f"checkpoint {self.path} is damaged: {name} is {what}") from error
        try:
            if _sha256(file) != manifest["files"][name]:
                raise InputError(f"checkpoint {self.path} is damaged: {name} has changed since it was written")
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _bytes(self, name: str) -> bytes:
        with self._open(name) as file:
            return file.read()

    def _open(self, name: str) -> BinaryIO:
        # Nobody may write to a pipe: to open it must not wait.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = open(  # noqa: SIM115 (the caller closes it)
            self.path / name,
            "rb",
            opener=lambda path, _: os.open(path, flags) if self._fd is None else os.open(name, flags, dir_fd=self._fd),
        )
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.EINVAL, "not a regular file", name)
        return file


def _read(folder: str | os.PathLike[str], read: Callable[[_Folder], T]) -> T:
    """What `read` makes of the checkpoint; again, if that was replaced and deleted meanwhile."""
    given = _path(folder)
    for _ in range(1000):
        opened = _find(given)
        try:
            return read(opened)
        except InputError:
            if not opened.replaced():
                raise
        finally:
            opened.close()
    raise InputError(f"{given}: the checkpoint is replaced faster than it can be read")


def _find(given: Path) -> _Folder:
    for _ in range(3):  # between two looks, a save may have given the checkpoint its name
        for path in (given / "checkpoint", given):
            earlier = beside(Path(os.path.realpath(path)), "old")
            for candidate, instead_of in ((path, None), (earlier, path)):
                try:
                    return _Folder(candidate, instead_of)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EISDIR):
                        raise InputError(f"{given}: {error.strerror}") from error
    raise InputError(f"{given}: no checkpoint here")


def _path(folder: str | os.PathLike[str]) -> Path:
    text = os.path.abspath(folder)
    if "\0" in text:
        raise InputError(f"a folder's name must have no null character, got {os.fspath(folder)!r}")
    return Path(text)


def made_by() -> dict[str, str]:
    """Which versions and command are at work, and when."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**_versions(), "command": shlex.join(sys.argv), "date": now}


def _versions() -> dict[str, str]:
    torch = sys.modules.get("torch")  # which has no part in anything if it is not loaded
    return {
        "fastrl": fastrl.__version__,
        **({} if torch is None else {"torch": torch.__version__}),
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "python": platform.python_version(),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value) + "\n")


def _object(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except RecursionError:
        raise InputError(f"checkpoint {folder} is damaged: {name}: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"checkpoint {folder} is damaged: {name}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"checkpoint {folder} is damaged: {name} holds no object")
    return value


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
