"""What goes wrong, as one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import Any


class Failure(Exception):
    """The environment raised: one line, and exit code 1."""


def no_memory(error: BaseException) -> bool:
    """Is it torch's way of saying so?"""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def one_line(error: BaseException) -> str:
    """The error and where it was raised: most likely in the user's environment."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    text = re.sub(r"\x1b\[\d*m", "", str(message)).removeprefix("WARN: ")  # Gymnasium's are yellow
    print(f"fastrl: warning: {' '.join(text.split())}", file=sys.stderr)


def fail(message: str, code: int = 2) -> int:
    with contextlib.suppress(OSError):  # of a terminal that was closed
        print(f"fastrl: {message}", file=sys.stderr)
    return code


def let_go_of_terminal() -> None:
    """What is written to a terminal that was closed goes nowhere from now on, instead of raising OSError."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
