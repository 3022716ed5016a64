"""Checkpoints: a folder of JSON and safetensors, no pickle, written as a whole or not at all.

- config.json: algorithm, environment, hyperparameters
- model.safetensors: networks, optimizer moments, arrays
- state.json: counters, generators, environments
- replay: the replay buffer's own file, when there is one
- manifest.json: SHA-256 of the others
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fastrl.agents.config import InputError

FORMAT = 2


@dataclass
class Checkpoint:
    folder: Path
    config: dict[str, Any]
    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    state: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    save_replay: Callable[[Path], None] | None = None,
) -> None:
    """Write the checkpoint `folder`; an earlier checkpoint there is replaced only when the new one is complete.

    Everything goes to `folder`.new first, is flushed to disk and then renamed; in between, the earlier one is kept as
    `folder`.old, where `load_checkpoint` finds it if the process dies before the last rename.
    Raises InputError when `folder` is something else than a checkpoint, or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    new, old = _beside(folder, ".new"), _beside(folder, ".old")
    if folder.exists() and not (folder / "manifest.json").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a checkpoint; it is left as it is")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        _write_json(new / "config.json", config)
        _write_json(new / "state.json", state)
        save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, new / "model.safetensors")
        if save_replay is not None:
            save_replay(new / "replay")
        files = {path.name: _sha256(path) for path in sorted(new.iterdir())}
        _write_json(new / "manifest.json", {"format": FORMAT, "files": files})
        mode = (new / "manifest.json").stat().st_mode
        for path in new.iterdir():
            if path.stat().st_mode != mode:  # safetensors makes its files 0600; who may read one may read all
                path.chmod(stat.S_IMODE(mode))
            _fsync(path)
        _fsync(new)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        _fsync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot write checkpoint {folder}: {reason}") from error


def load_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, or the one in a run folder's `checkpoint`.

    Raises InputError when there is none, or when a file is missing or is not what the manifest says.
    """
    given = Path(os.path.abspath(folder))
    tried = (given / "checkpoint", _beside(given / "checkpoint", ".old"), given, _beside(given, ".old"))
    path = next((p for p in tried if (p / "manifest.json").is_file()), None)
    if path is None:
        raise InputError(f"{given}: no checkpoint here")
    manifest = _read_json(path / "manifest.json")
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise InputError(f"checkpoint {path}: unknown format {manifest.get('format')!r}, this version reads {FORMAT}")
    for name, digest in manifest["files"].items():
        if not (path / name).is_file():
            raise InputError(f"checkpoint {path} is damaged: {name} is missing")
        if _sha256(path / name) != digest:
            raise InputError(f"checkpoint {path} is damaged: {name} has changed since it was written")
    try:
        tensors = load_file(path / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path} is damaged: model.safetensors: {error}") from error
    return Checkpoint(path, _read_json(path / "config.json"), _read_json(path / "state.json"), tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer.") -> dict[str, torch.Tensor]:
    """The optimizer's state by parameter number: ``{"optimizer.0.exp_avg": ...}``."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{i}.{name}": tensor for i, slots in state.items() for name, tensor in slots.items()}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], prefix: str = "optimizer."
) -> None:
    """Give back what `optimizer_tensors` took; the settings stay those the optimizer was made with."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            number, name = key[len(prefix) :].split(".")
            state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {path.parent} is damaged: {path.name}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"checkpoint {path.parent} is damaged: {path.name} holds no object")
    return value


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
