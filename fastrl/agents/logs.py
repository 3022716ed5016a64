"""The logs of a run folder: progress.csv and TensorBoard events."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import socket
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from fastrl._files import atomic_write
from fastrl.agents.config import InputError

TABLE = "progress.csv"


class Logs:
    """Open the logs of a run that is at step `steps`; rows of later steps, which will be made again, are dropped.

    `seconds`: how long the run had taken at its last row.  Raises OSError if they cannot be written.
    """

    def __init__(self, folder: Path, names: Sequence[str], steps: int) -> None:
        self._folder, path = folder, folder / TABLE
        rows: list[dict[str, str]] = []
        if path.exists():
            rows = [row for row in complete_rows(path.read_text(errors="replace")) if int(row["step"]) <= steps]
        self.seconds = _seconds(rows)
        self.rows = len(rows)
        text = io.StringIO()
        table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\r\n")
        table.writeheader()
        table.writerows(rows)
        with atomic_write(path) as file:  # a process that dies here loses no row
            file.write(text.getvalue().encode())
        self._csv = path.open("a", newline="", buffering=1)
        self._table = csv.DictWriter(self._csv, names, extrasaction="ignore")
        try:
            self._events = _Events(folder, steps)
        except BaseException:
            self._csv.close()
            raise

    def write(self, row: dict[str, float]) -> None:
        """One row.  Raises InputError if a log cannot grow."""
        try:
            self._table.writerow(row)
            self._events.write(row)
        except OSError as error:
            raise InputError(f"cannot write the logs in {self._folder}: {error.strerror or error}") from error
        self.rows += 1

    def close(self) -> None:
        for log in (self._csv, self._events.file):
            with contextlib.suppress(OSError):  # of a full disk, which `write` has reported
                log.close()

    def remove(self) -> None:
        """Delete the closed logs of a run that came to nothing."""
        for path in (self._folder / TABLE, self._events.path):
            with contextlib.suppress(OSError):
                path.unlink()


class _Events:
    """TensorBoard's file.  PyTorch's writer has a thread, whose errors cannot be caught."""

    def __init__(self, folder: Path, steps: int) -> None:
        # Half a second of imports, so only where logs are wanted.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        self.path, self.file = _new_file(folder)
        self._records = RecordWriter(self.file)
        self._add(file_version="brain.Event:2")
        if steps:  # what earlier files have of later steps is not shown
            self._add(file_version="brain.Event:2", step=steps + 1)
            self._add(session_log=SessionLog(status=SessionLog.START), step=steps + 1)

    def write(self, row: dict[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self._add(summary=self._summary(value=values), step=int(row["step"]))

    def _add(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self.file.flush()


def _new_file(folder: Path) -> tuple[Path, BinaryIO]:
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    for number in count():
        with contextlib.suppress(FileExistsError):
            path = folder / f"{name}.{number}"
            return path, path.open("xb")
    raise AssertionError


def complete_rows(text: str) -> list[dict[str, str]]:
    """The rows of a CSV table, without those that a crash left half-written."""
    rows = csv.DictReader(text[: text.rfind("\n") + 1].replace("\0", "").splitlines())
    return [row for row in rows if None not in (*row, *row.values()) and row.get("step", "").isdecimal()]


def _seconds(rows: Sequence[dict[str, str]]) -> float:
    try:
        return float(rows[-1]["time_s"])
    except (IndexError, KeyError, ValueError):
        return 0.0
