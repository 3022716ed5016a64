"""The logs of a run folder: progress.csv, evaluations.csv and TensorBoard events."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from fastrl._files import atomic_write
from fastrl.agents.config import InputError

TABLE = "progress.csv"
EVALUATIONS = "evaluations.csv"
RUN = "run.json"  # what a run is of, for people
EVALUATION_NAMES = (
    "step", "time_s", "episodes", "return_mean", "return_std", "return_min", "return_max", "length_mean", "cut"
)  # fmt: skip
TIMES = ("time_s", "steps_per_s")
EPISODES = ("episodes", "episode_return", "episode_length")


class Logs:
    """Open the logs of a run that is at step `steps`; rows of later steps, which will be made again, are dropped.

    `seconds`: how long the run had taken at its last row.  `evaluations`: the rows of evaluations.csv.
    `reached`: the step of the last row of progress.csv, also of a dropped one; 0 without rows.
    `hyperparameters` are shown by TensorBoard.  Raises OSError if the logs cannot be written.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], steps: int, hyperparameters: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = folder
        self._progress = _Table(folder / TABLE, names, steps)
        self._judged = _Table(folder / EVALUATIONS, EVALUATION_NAMES, steps) if self._has_evaluations() else None
        try:
            self._events = _Events(folder, steps, hyperparameters or {})
        except BaseException:
            self._progress.close()
            raise
        self.seconds = max(_seconds(table.rows) for table in (self._progress, self._judged) if table is not None)
        self.rows, self.reached = len(self._progress.rows), self._progress.reached
        self.evaluations = [] if self._judged is None else [_numbers(row) for row in self._judged.rows]

    def write(self, row: Mapping[str, float]) -> None:
        """A row of progress.csv.  Raises InputError if a log cannot grow."""
        tags = {n: "time/" + n if n in TIMES else "rollout/" + n if n in EPISODES else "train/" + n for n in row}
        with self._growing():
            self._progress.write(row)
            self._events.write(row, tags)
        self.rows += 1

    def write_evaluation(self, row: Mapping[str, float]) -> None:
        """A row of evaluations.csv, which is there from the first one on.  Raises InputError as above."""
        with self._growing():
            if self._judged is None:
                self._judged = _Table(self._folder / EVALUATIONS, EVALUATION_NAMES, 0)
            self._judged.write(row)
            self._events.write(row, {name: f"eval/{name}" for name in row if name != "time_s"})

    def close(self) -> None:
        for log in (self._progress, self._judged, self._events):
            if log is not None:
                with contextlib.suppress(OSError):  # of a full disk, which `write` has reported
                    log.close()

    def remove(self) -> None:
        """Delete the closed logs of a run that came to nothing."""
        for path in (*(self._folder / name for name in (TABLE, EVALUATIONS, RUN)), self._events.path):
            with contextlib.suppress(OSError):
                path.unlink()

    def _has_evaluations(self) -> bool:
        return (self._folder / EVALUATIONS).exists()

    @contextlib.contextmanager
    def _growing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot write the logs in {self._folder}: {error.strerror or error}") from error


def told(folder: Path) -> dict[str, Any]:
    """What stands in run.json; {}: nothing that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads((folder / RUN).read_text())
        return values if isinstance(values, dict) else {}
    return {}


def tell(folder: Path, values: Mapping[str, Any]) -> None:
    """Write run.json.  Raises OSError."""
    with atomic_write(folder / RUN) as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())


class _Table:
    """A CSV table that grows: its `rows` up to step `steps` as they were, and what is written from now on."""

    def __init__(self, path: Path, names: Sequence[str], steps: int) -> None:
        self.rows: list[dict[str, str]] = []
        self.reached = 0
        if path.exists():
            found = complete_rows(path.read_text(errors="replace"))
            self.rows = [row for row in found if int(row["step"]) <= steps]
            self.reached = max((int(row["step"]) for row in found), default=0)
            if path.name == EVALUATIONS:  # a resumed run reads all of its numbers
                self.rows = [row for row in self.rows if _numbers(row)]
        text = io.StringIO()
        table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\r\n")
        table.writeheader()
        table.writerows(self.rows)
        with atomic_write(path) as file:  # a process that dies here loses no row
            file.write(text.getvalue().encode())
        self._file = path.open("a", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, names, extrasaction="ignore")

    def write(self, row: Mapping[str, float]) -> None:
        self._writer.writerow(row)

    def close(self) -> None:
        self._file.close()


class _Events:
    """TensorBoard's file.  PyTorch's writer has a thread, whose errors cannot be caught."""

    def __init__(self, folder: Path, steps: int, hyperparameters: Mapping[str, Any]) -> None:
        # Half a second of imports, so only where logs are wanted.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        self.path, self._file = _new_file(folder)
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        for summary in _hyperparameters(hyperparameters, folder.name):
            self._add(summary=summary)
        if steps:  # what earlier files have of later steps is not shown
            self._add(file_version="brain.Event:2", step=steps + 1)
            self._add(session_log=SessionLog(status=SessionLog.START), step=steps + 1)

    def write(self, row: Mapping[str, float], tags: Mapping[str, str]) -> None:
        values = [self._summary.Value(tag=tags[n], simple_value=x) for n, x in row.items() if n != "step" and n in tags]
        self._add(summary=self._summary(value=values), step=int(row["step"]))

    def close(self) -> None:
        self._file.close()

    def _add(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()


def _hyperparameters(values: Mapping[str, Any], group: str) -> Iterator[Any]:
    """The summaries of TensorBoard's HPARAMS tab: of its columns, and of this run.

    As its own `hparams` module makes them, which would take another fifth of a second to import.
    """
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time(), group_name=group)
    infos = []
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        kind = "bool" if isinstance(value, bool) else "number" if number else "string"
        setattr(start.hparams[name], f"{kind}_value", value if kind != "string" else str(value))
        data_type = {
            "bool": api_pb2.DATA_TYPE_BOOL,
            "number": api_pb2.DATA_TYPE_FLOAT64,
            "string": api_pb2.DATA_TYPE_STRING,
        }
        infos.append(api_pb2.HParamInfo(name=name, type=data_type[kind]))
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in ("rollout/episode_return", "eval/return_mean")
    ]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=time.time())
    one = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    nothing = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=one, float_val=[0.0])
    for tag, content in (("experiment", experiment), ("session_start_info", start)):
        fields: dict[str, Any] = {tag: content}
        data = plugin_data_pb2.HParamsPluginData(**fields).SerializeToString()
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="hparams", content=data)
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
        value = summary_pb2.Summary.Value(tag=f"_hparams_/{tag}", metadata=metadata, tensor=nothing)
        yield summary_pb2.Summary(value=[value])


def _new_file(folder: Path) -> tuple[Path, BinaryIO]:
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    for number in count():
        with contextlib.suppress(FileExistsError):
            path = folder / f"{name}.{number}"
            return path, path.open("xb")
    raise AssertionError


def complete_rows(text: str) -> list[dict[str, str]]:
    """The rows of a CSV table, without those that a crash left half-written; none if its header is.

    A line with a NUL is one: a page that a crash lost reads as NULs, and the end of a row and the beginning of another
    may have been in it.
    """
    lines = text[: text.rfind("\n") + 1].splitlines()
    names, *rows = [[] if "\0" in line else cells(line) for line in lines if line] or [[]]
    whole = [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]
    return [row for row in whole if row.get("step", "").isdecimal() and len(row["step"]) < 20]


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    """Those of a row of evaluations.csv; {} where one is missing or damaged."""
    try:
        return {name: float(row[name]) for name in EVALUATION_NAMES}
    except (KeyError, ValueError):
        return {}


def cells(line: str) -> list[str]:
    """What stands in one line: a quote that does not end takes no other line with it."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a field longer than csv takes
        return []


def _seconds(rows: Sequence[dict[str, str]]) -> float:
    try:
        return float(rows[-1]["time_s"])
    except (IndexError, KeyError, ValueError):
        return 0.0
