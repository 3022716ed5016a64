"""`fastrl info`, which needs NumPy only."""

from __future__ import annotations

from typing import Any

from fastrl import _info
from fastrl.cli.errors import fail


def command(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        print("usage: fastrl info\n\nVersions, the backend of each kernel and why, threads, SIMD level, CUDA devices.")
        return 0
    if args:
        return fail(f"info takes no arguments, got {args[0]!r}; usage: fastrl info")
    info = _info.info()
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for name, value in _flat(info):
            print(f"{name}: {value}")
        return 0
    table = Table("", "", title="fastrl info", show_header=False)
    for name, value in _flat(info):
        table.add_row(name, value)
    Console().print(table, markup=False)
    return 0


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
