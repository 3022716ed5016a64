"""What a run folder says of itself: run.json, for people and for `fastrl list`; no agent is loaded from it.

algorithm, env, env_kwargs, wrappers, given (of an environment object), network (of the user's own), seed, config (all
hyperparameters), total_steps, all of which `Training` writes; options: what `--resume` goes on with; history: of the
command that began the run, and of each that resumed it, versions, command line and date; result: of the last that came
to its end the environment steps and the greedy policy's returns.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl.agents.callbacks import Callback
from fastrl.agents.config import InputError
from fastrl.agents.logs import EVALUATIONS, RUN, TABLE, complete_rows, tell

if TYPE_CHECKING:
    from fastrl.agents import Agent


class Told(Callback):
    """Adds to run.json, which says what the run is of, the command that begins it or goes on with it."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder, self.options = folder, options

    def on_start(self, agent: Agent[Any]) -> None:
        from fastrl.agents.checkpoint import made_by

        values = read(self.folder)
        history = values.get("history")
        history = [*(history if isinstance(history, list) else []), made_by()]
        write(self.folder, values | {"options": self.options, "history": history})


def remove_if_nothing_came(folder: Path, made: bool) -> None:
    """Of a run that came to neither a checkpoint nor a row of a log nothing stays, if it was `made` for it."""
    with contextlib.suppress(OSError):
        if not (folder / "checkpoint").exists() and not (folder / TABLE).exists():
            (folder / RUN).unlink()
            if made:
                folder.rmdir()


def end(folder: Path, steps: int, greedy_returns: Sequence[float]) -> None:
    """Add the result to run.json."""
    write(folder, read(folder) | {"result": {"steps": steps, "greedy_returns": list(greedy_returns)}})


def write(folder: Path, values: dict[str, Any]) -> None:
    """Raises InputError."""
    try:
        tell(folder, values)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error


def read(folder: Path) -> dict[str, Any]:
    """What is known of a run without loading it: its run.json, else its checkpoint's config.json, else nothing."""
    for path in (folder / RUN, folder / "checkpoint" / "config.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            values = json.loads(path.read_text())
            if isinstance(values, dict):
                return values
    return {}


def config_of(path: Path) -> dict[str, Any]:
    """The config.json of a run or checkpoint; raises InputError, which says what else there is."""
    from fastrl.agents.checkpoint import load_config

    if not path.exists() and not path.is_symlink():
        raise InputError(f"{path}: no such folder")
    try:
        return load_config(path)
    except InputError as error:
        found = [] if (path / "checkpoint").exists() else near(path)
        if not found:
            raise
        if path in found:
            raise InputError(f"{error}: the run has not come to its first (--save-every)") from None
        number = f"{len(found)} {'run' if len(found) == 1 else 'runs'}"
        raise InputError(f"{path} is no run, but has {number} in it, such as {found[0]}") from None


def near(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, or the runs in it, as --seeds leaves them; a whole disk is not searched."""
    return [log.parent for pattern in ("", "*/", "*/*/") for log in sorted(folder.glob(pattern + TABLE))]


def find(paths: Sequence[Path]) -> list[Path]:
    """The run folders among and below `paths`, each once; raises InputError for a path that is not there."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder" if not path.exists() else f"{path} is no folder")
        logs = [log for log in sorted(path.rglob(TABLE)) if log.is_file()]
        found |= dict.fromkeys(log.parent for log in logs)
    return list(found)


def returns(folder: Path) -> list[tuple[int, float]]:
    """The rows of progress.csv in which there is a return: (step, mean of the last 100 episodes)."""
    return _points(folder / TABLE, "episode_return")


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """The rows of evaluations.csv: (step, mean return)."""
    return _points(folder / EVALUATIONS, "return_mean")


def last_step(folder: Path) -> int:
    """The step of the last row of progress.csv; 0: there is none."""
    rows = _rows(folder / TABLE)
    return int(rows[-1]["step"]) if rows else 0


def _points(table: Path, name: str) -> list[tuple[int, float]]:
    """(step, number in the column) where there is a finite one."""
    points = []
    for row in _rows(table):
        with contextlib.suppress(KeyError, ValueError):
            points.append((int(row["step"]), float(row[name])))
    return [(step, value) for step, value in points if math.isfinite(value)]


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        return complete_rows(table.read_text(errors="replace"))
    except OSError:
        return []


def greedy_returns(values: dict[str, Any]) -> list[float]:
    """Those of the result in a run.json; none where there is no result."""
    result = values.get("result")
    found = result.get("greedy_returns") if isinstance(result, dict) else None
    return [float(x) for x in found if isinstance(x, (int, float))] if isinstance(found, list) else []
