"""What the commands share: errors, checks, tables."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrl.agents.config import InputError
from fastrl.cli.errors import Failure, no_memory, one_line

if TYPE_CHECKING:
    from fastrl.agents import Agent


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """What an evaluation raises as a `Failure`."""
    try:
        yield
    except (BrokenPipeError, InputError, MemoryError):
        raise
    except Exception as error:
        if no_memory(error):
            raise
        raise Failure(f"{one_line(error)} in an evaluation") from error


@contextlib.contextmanager
def closing(agent: Agent[Any]) -> Iterator[None]:
    """Close the environments in the end: simulators and windows may outlive the command else."""
    try:
        yield
    finally:
        close = getattr(agent, "close", None) or agent.envs.vec.close
        close()


@contextlib.contextmanager
def device_option() -> Iterator[None]:
    """What an agent says of its device, as of the option."""
    try:
        yield
    except InputError as error:
        found = re.fullmatch(r"(?:\w+: )?(device .*)", str(error), re.DOTALL)
        if found is None:
            raise
        raise InputError(f"--{found[1]}") from None


def check_threads(threads: int) -> None:
    if not 1 <= threads <= 1024:
        raise InputError(f"--threads must be in [1, 1024], got {threads}")


def check_new(out: Path) -> None:
    try:
        used = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except NotADirectoryError:  # the attempt to make the folder says that better
        return
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    if used:
        go_on = f"; to go on with that run: --resume {out}" if (out / "checkpoint").exists() else ""
        raise InputError(f"--out {out} exists and is not an empty folder; nothing is overwritten{go_on}")


def mean(returns: Any) -> str:
    return f"{np.mean(returns):.1f} +- {np.std(returns):.1f}" if len(returns) else "none"


def table(title: str, rows: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title), show_header=False)
    for name, value in rows.items():
        shown.add_row(name, Text(value, overflow="fold"))
    _print(shown)


def columns(title: str, names: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title))
    for number, name in enumerate(names):
        numbers = all(row[number][:1] in "-0123456789" for row in rows)  # and what is empty
        shown.add_column(name, justify="right" if numbers else "left", overflow="fold", no_wrap=number > 0)
    for row in rows:
        shown.add_row(*map(Text, row))
    _print(shown)


def _print(shown: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width
        console.width = 10_000
    console.print(shown)
