"""What the commands share: parsing, errors, tables."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastrl.agents import ALGORITHMS
from fastrl.agents.agent import Agent
from fastrl.agents.config import InputError
from fastrl.cli.errors import Failure, no_memory, one_line


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


def algorithms() -> dict[str, type[Agent[Any]]]:
    return cast("dict[str, type[Agent[Any]]]", ALGORITHMS)


def algorithm_of(name: Any, where: str = "") -> type[Agent[Any]]:
    known = algorithms()
    if name not in known:
        raise InputError(f"{where}unknown algorithm {name!r}; known are {', '.join(known)}")
    return known[name]


def parse(cls: Any, args: list[str], prog: str, default: Any) -> Any:
    """tyro's parse, with its boxed error message as a one-line InputError."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            markers = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
            extra = {} if default is None else {"default": default}
            return tyro.cli(cls, prog=prog, args=args, config=markers, **extra)
    except SystemExit as error:
        if not error.code:  # --help
            raise
        raise InputError(_without_box(stderr.getvalue())) from None


def _without_box(text: str) -> str:
    """The text of a box that rules divide into sections, in one line and without the box's title."""
    sections: list[list[str]] = [[]]
    for line in text.splitlines()[1:]:
        inside = line.strip(" │|")
        if inside.strip("─╭╮╰╯+-"):
            sections[-1].append(inside)
        else:
            sections.append([])
    return ". ".join(" ".join(section).rstrip(".") for section in sections if section)


def long_out(args: list[str]) -> list[str]:
    """-o FILE, -oFILE and -o=FILE as --out FILE."""
    return [re.sub(r"^-o=?(?=[^=])", "--out=", "--out" if arg == "-o" else arg) for arg in args]


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
        raise InputError(f"--out {out} exists and is not an empty folder; nothing is overwritten")


def mean(returns: Any) -> str:
    return f"{np.mean(returns):.1f} +- {np.std(returns):.1f}" if len(returns) else "none"


def table(title: str, rows: dict[str, str]) -> None:
    shown = Table(title=Text(title), show_header=False)
    for name, value in rows.items():
        shown.add_row(name, Text(value, overflow="fold"))
    Console().print(shown)
