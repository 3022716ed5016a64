"""`fastrl info`, which needs NumPy only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastrl import _info
from fastrl.cli.errors import fail
from fastrl.replay.mapped import describe

_USAGE = "usage: fastrl info [STORAGE]"


def command(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        print(
            f"{_USAGE}\n\nVersions, the backend of each kernel and why, threads, SIMD level, CUDA devices; or what the"
        )
        print("storage folder or the saved file of a replay buffer holds.")
        return 0
    if len(args) > 1 or (args and args[0].startswith("-")):
        return fail(f"info takes a folder or a file or nothing, got {' '.join(args)!r}; {_USAGE}")
    try:
        info = describe(args[0]) if args else _info.info()
    except FileNotFoundError:
        return fail(f"{args[0]}: no such file or folder; {_USAGE}")
    except OSError as error:
        return fail(f"{args[0]}: {error.strerror or error}")
    except ValueError as error:
        return fail(_of_runs(Path(args[0])) or str(error))
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for name, value in _flat(info):
            print(f"{name}: {value}")
        return 0
    table = Table("", "", title=" ".join(["fastrl info", *args]), show_header=False)
    for name, value in _flat(info):
        table.add_row(name, value)
    Console().print(table, markup=False)
    return 0


def _of_runs(folder: Path) -> str:
    """What to say of a folder of runs; empty: it is none."""
    from fastrl.cli import runs

    found = runs.near(folder)
    if not found:
        return ""
    number = "is a run" if folder in found else f"has {len(found)} {'run' if len(found) == 1 else 'runs'} in it"
    return f"{folder} {number}, which fastrl list {folder} shows; info is of the storage of a replay buffer"


def _flat(info: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested dictionaries as rows: ``("ops sum_tree cpu", "cpp (compiled extension)")``."""
    rows: list[tuple[str, str]] = []
    for key, value in info.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key} ")
        elif isinstance(value, tuple):
            rows.append((prefix + key, f"{value[0]} ({value[1]})"))
        else:
            rows.append(
                (prefix + key, (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value))
            )
    return rows
