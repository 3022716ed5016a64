"""Learning curves over seeds, from the logs of runs: what `fastrl plot` draws.

Runs that differ in nothing but their seed (and device) are one group: the environment's keyword arguments and wrappers
count, too.  Its curve is the interquartile mean over the
seeds, its band the 95 % percentile bootstrap interval of that mean; the bootstrap draws whole curves, within the group.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from matplotlib.figure import Figure  # not pyplot: no global state, and the file's name decides the backend
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean

from fastrl._files import atomic_write, beside
from fastrl.agents import CLASS_NAMES
from fastrl.agents.config import InputError, env_name, env_settings, in_parentheses, setting_parts
from fastrl.agents.hyperparameters import CONFIGS
from fastrl.agents.logs import EVALUATIONS, RUN, TABLE, cells, complete_rows, told

Floats = NDArray[np.float64]

FORMATS = (".png", ".pdf", ".svg")
DEFAULT_COLUMNS = ("episode_return", "greedy_return")
COLUMN_TITLES = {
    "episode_return": "return, last 100 training episodes",
    "greedy_return": "return of the greedy policy",
    "return_mean": "return of the greedy policy",
}
COLUMNS = ("environment", "group", "column", "seeds", "step", "iqm", "low", "high")
MIN_SEEDS = 3  # for an interval: two draws of two are no distribution
GRID = 200  # points of a curve whose runs were not logged at the same steps
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
LINES = ("-", "--", ":", "-.")  # for the groups after the seventh


@dataclass
class Run:
    """One log: column `column` over environment steps, and what it is a run of."""

    path: Path
    column: str
    steps: Floats  # [T], rising
    values: Floats  # [T], finite
    environment: str  # "" if the log does not tell
    algorithm: str | None  # None: no config.json beside the log, so its folder stands for what it is a run of
    config: dict[str, Any]
    folder: tuple[str, ...]
    kwargs: dict[str, Any]  # of the environment
    wrappers: list[str]
    unknown: list[str]  # what may differ between runs, and nobody can tell


class Group(NamedTuple):
    """A curve of the picture: arrays ``[T]`` over the steps that all of its runs have."""

    environment: str
    label: str
    column: str
    seeds: int
    steps: Floats
    iqm: Floats
    low: Floats | None  # None: fewer than MIN_SEEDS runs have no interval
    high: Floats | None


# ---- reading --------------------------------------------------------------------------------------------------------


def read_runs(paths: Sequence[Path], column: str | None = None) -> list[Run]:
    """The runs that `paths` stand for, each once: run folders, CSV logs, folders that hold such, or patterns of them.

    `column` is by default episode_return, or greedy_return of an evaluation's log; of a run folder it is one of
    progress.csv, or of evaluations.csv.  What cannot be drawn (a path
    without logs, a log without the column or a number in it) is left out, with a warning that names it.  Raises
    InputError if nothing is left.
    """
    errors: list[InputError] = []
    logs: dict[Path, None] = {}
    for path in paths:
        try:
            logs |= dict.fromkeys(log.resolve() for log in find_logs(path))
        except InputError as error:
            errors.append(error)
    runs = []
    for log in logs:
        try:
            runs.append(_read_run(log, column))
        except InputError as error:
            errors.append(error)
    if not runs:
        raise errors[0] if len(errors) == 1 else InputError(f"nothing to plot: {'; '.join(map(str, errors))}")
    for left_out in errors:
        warnings.warn(f"left out: {left_out}", stacklevel=2)
    return runs


def find_logs(path: Path) -> list[Path]:
    """The CSV logs that one path stands for."""
    if path.is_file():
        return [path]
    if (path / TABLE).is_file():
        return [path / TABLE]
    if path.is_dir():
        found = [log for log in sorted(path.rglob("*.csv")) if _header(_text(log))[:1] == ["step"]]
        found = [log for log in found if log.name != EVALUATIONS or not log.with_name(TABLE).is_file()]  # of one run
    elif glob.has_magic(str(path)):  # quoted, or of a shell that leaves patterns alone
        found = [log for match in sorted(glob.glob(str(path), recursive=True)) for log in find_logs(Path(match))]
    else:
        raise InputError(f"{path}: no such file or folder")
    if not found:
        raise InputError(f"{path}: no run here, neither progress.csv nor a CSV log with a column step")
    return found


def _read_run(log: Path, column: str | None) -> Run:
    text = _text(log)
    names = _header(text)
    if "step" not in names:
        raise InputError(f"{log} is not a log: it has no column step")
    column = column or next((name for name in DEFAULT_COLUMNS if name in names), DEFAULT_COLUMNS[0])
    judged = log.with_name(EVALUATIONS)
    if column not in names and log.name == TABLE and judged.is_file() and column in _header(_text(judged)):
        return _read_run(judged, column)
    if column not in names:
        raise InputError(f"{log} has no column {column!r}; it has {', '.join(names)[:500]}")
    values: dict[int, float] = {}
    for row in complete_rows(text):
        try:
            values[int(row["step"])] = float(row[column])
        except ValueError:
            raise InputError(f"{log}: {column} at step {row['step']} is no number, but {row[column][:40]!r}") from None
    points = np.array([point for point in sorted(values.items()) if np.isfinite(point[1])], np.float64).reshape(-1, 2)
    if not len(points):  # no episode has ended yet
        raise InputError(f"{log} holds no number in {column} yet")
    saved = _read_config(log.parent)
    is_run = log.name in (TABLE, EVALUATIONS)
    folder = (log.parent.parent if is_run else log.parent).parts
    if saved is not None:
        environment, algorithm = env_name(saved), str(saved.get("algorithm"))
        config = {**_defaults(algorithm), **saved["config"]}
        if saved.get("network"):  # of the user's own, in the place of the setting
            config["network"] = saved["network"] if isinstance(saved["network"], str) else "own"
    else:
        environment = next((part for part in reversed(folder) if re.search(r"-v\d+$", part)), "")
        algorithm, config = None, {}
    kwargs, wrappers = env_settings(saved or {})
    return Run(
        log,
        column,
        points[:, 0],
        points[:, 1],
        environment,
        algorithm,
        config,
        folder,
        kwargs,
        wrappers,
        _unknown(saved),
    )


def _read_config(run: Path) -> dict[str, Any] | None:
    """The checkpoint's config.json, without its weights being read, or the run.json of a run that has none yet.

    None: neither is there.
    """
    checkpoint = run / "checkpoint"
    old = beside(checkpoint, "old")  # a crash while a checkpoint was replaced
    for path in (checkpoint / "config.json", old / "config.json", run / RUN):
        if not path.is_file():
            continue
        try:
            saved = json.loads(_text(path))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        if isinstance(saved, dict) and isinstance(saved.get("config"), dict):
            more = told(run)  # which says more of what was given as an object
            return saved | {name: more[name] for name in ("given", "network") if more.get(name)}
        if path.name != RUN:  # which may be another program's
            raise InputError(f"{path} is not that of a checkpoint: it has no hyperparameters")
    return None


def _unknown(saved: Mapping[str, Any] | None) -> list[str]:
    """What a run was made with that nothing is known of, so that two with the same settings need not be seeds."""
    if saved is None:  # known by its folder alone
        return []
    given = saved.get("given")
    of_env = given.get("unknown") if isinstance(given, dict) else None
    found = [f"{what} of the environment" for what in of_env] if isinstance(of_env, list) else []
    found += [] if env_name(saved) else ["the environment"]
    found += ["the network"] if saved.get("network") is True else []
    return found + (["the dataset, a buffer,"] if saved["config"].get("dataset") == "(a buffer)" else [])


def _defaults(algorithm: str) -> dict[str, Any]:
    """As JSON has them.  A run saved before a hyperparameter existed is one with its default."""
    if algorithm not in CONFIGS:
        return {}
    defaults: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(CONFIGS[algorithm]())))
    return defaults


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _header(text: str) -> list[str]:
    return cells(next(iter(text.splitlines()), ""))


# ---- groups ---------------------------------------------------------------------------------------------------------


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The runs as groups, in the order of their first runs, and each group's mean and interval."""
    labels = _labels(runs)
    found: dict[tuple[str, str], list[Run]] = {}
    for run, label in zip(runs, labels, strict=True):
        found.setdefault((run.environment, label), []).append(run)
    return [_summarise(environment, label, members) for (environment, label), members in found.items()]


def _labels(runs: Sequence[Run]) -> list[str]:
    """The algorithm, its switches, and the hyperparameters in which it differs from others in the environment.

    So do the environment's keyword arguments and wrappers in which it differs, from runs of all algorithms there.
    Without a config.json: the folders' names, less the environment's and what they have in common.
    """
    names = {run.folder: tuple(n for n in run.folder if n != run.environment) for run in runs if run.algorithm is None}
    common = len(list(takewhile(lambda at: len(set(at)) == 1, zip(*names.values(), strict=False))))
    labels = []
    for run in runs:
        if run.algorithm is None:
            labels.append(" ".join(names[run.folder][common:] or names[run.folder][-1:]))
            continue
        there = [r for r in runs if r.environment == run.environment and r.algorithm is not None]
        alike = [r.config for r in there if r.algorithm == run.algorithm]
        defaults = _defaults(run.algorithm)
        parts = []
        for name, value in run.config.items():
            if name in ("seed", "device"):
                continue
            differs = any(name not in config or config[name] != value for config in alike)
            if isinstance(value, bool):
                if value != defaults.get(name, False):  # as `fastrl eval` names the agent
                    parts.append(name if value else f"no {name}")
            elif differs:
                parts.append(f"{name}={_short(value)}")
        parts += _environment_parts(run, there)
        labels.append(in_parentheses(CLASS_NAMES.get(run.algorithm, run.algorithm), parts))
    return labels


def _environment_parts(run: Run, there: Sequence[Run]) -> list[str]:
    """What its environment was made with that those of the runs `there` were not all made with."""
    kwargs = {k: v for k, v in run.kwargs.items() if any(k not in r.kwargs or r.kwargs[k] != v for r in there)}
    alike = takewhile(lambda at: len(set(at)) == 1, zip(*(r.wrappers for r in there), strict=False))
    return setting_parts(kwargs, run.wrappers[len(list(alike)) :])


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def interquartile_mean(x: Floats, axis: int = -1) -> Any:
    """The mean without the lowest and the highest quarter (rounded down: below four values, the mean)."""
    return trim_mean(x, 0.25, axis=axis)


def _in_common(runs: list[Run], what: str) -> list[Run]:
    """The runs without those that keep the rest from having steps in common."""
    while (late := max(runs, key=lambda run: run.steps[0])).steps[0] > (
        early := min(runs, key=lambda run: run.steps[-1])
    ).steps[-1]:
        # Of the two that exclude each other, the one that fewer others overlap with.
        overlaps = {id(r): sum(r.steps[0] <= o.steps[-1] and o.steps[0] <= r.steps[-1] for o in runs) for r in runs}
        odd, other = (late, early) if overlaps[id(late)] <= overlaps[id(early)] else (early, late)
        warnings.warn(
            f"left out: {odd.path}, steps {odd.steps[0]:.0f} to {odd.steps[-1]:.0f}: no step in common with "
            f"{other.path}, steps {other.steps[0]:.0f} to {other.steps[-1]:.0f} ({what})",
            stacklevel=2,
        )
        runs = [run for run in runs if run is not odd]
    return runs


def _summarise(environment: str, label: str, runs: list[Run]) -> Group:
    what = f"{label} on {environment}" if environment else label
    runs = _in_common(runs, what)
    start, ends = max(run.steps[0] for run in runs), [run.steps[-1] for run in runs]
    if max(ends) > 1.02 * min(ends):
        warnings.warn(
            f"{what}: the runs end at steps {min(ends):.0f} to {max(ends):.0f}; drawn to the first, that of "
            f"{runs[int(np.argmin(ends))].path}",
            stacklevel=2,
        )
    seeds = [str(run.config["seed"]) for run in runs if "seed" in run.config]
    if len(set(seeds)) < len(seeds):
        warnings.warn(
            f"{what}: some of the {len(runs)} runs have the same seed; the interval is too narrow", stacklevel=2
        )
    unknown = ", ".join(dict.fromkeys(name for run in runs for name in run.unknown))
    if unknown and len(runs) > 1:
        warnings.warn(
            f"{what}: the {len(runs)} runs may be of different tasks: what {unknown} was made with is not known",
            stacklevel=2,
        )
    steps = runs[0].steps
    if not all(np.array_equal(run.steps, steps) for run in runs):
        steps = np.unique(np.linspace(start, min(ends), GRID).round())
    y = np.stack([np.interp(steps, run.steps, run.values) for run in runs])  # [seeds, T]
    iqm, low, high = interquartile_mean(y, 0), None, None
    if len(runs) >= MIN_SEEDS:
        # axis=0: a draw takes the same runs at every step.
        options: Any = {"axis": 0, "n_resamples": 2000, "batch": 200, "method": "percentile", "rng": 0}
        low, high = bootstrap((y,), interquartile_mean, **options).confidence_interval
    return Group(environment, label, runs[0].column, len(runs), steps, iqm, low, high)


# ---- writing --------------------------------------------------------------------------------------------------------


def check_outputs(picture: Path, table: Path | None) -> None:
    """Raise InputError for a picture of an unknown format, one file for both, and something else at `table`."""
    if picture.suffix.lower() not in FORMATS:
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise InputError(f"the picture's name must end in {known}, got {str(picture)!r}")
    if table is not None and table.resolve() == picture.resolve():
        raise InputError(f"the picture and the table of numbers must be two files, got {str(picture)!r} for both")
    if table is not None and table.exists() and (not table.is_file() or _header(_text(table)) != list(COLUMNS)):
        raise InputError(f"{table} exists and is not a table of plotted numbers; it is not overwritten")


def draw(groups: Sequence[Group], out: Path, title: str | None = None) -> None:
    """Write the picture, a panel an environment, in the format of out's suffix."""
    environments = list(dict.fromkeys(group.environment for group in groups))
    labels = list(dict.fromkeys(group.label for group in groups))
    columns = min(len(environments), 2 if len(environments) == 4 else 3)
    rows = -(-len(environments) // columns)
    panels = [[group for group in groups if group.environment == environment] for environment in environments]
    wide = 2 if max(len(label) for label in labels) < 24 else 1  # columns of the legends
    lines = -(-max(map(len, panels)) // wide)
    height = 4.0 + 0.24 * lines
    figure = Figure(figsize=((6.4 if columns == 1 else 5.0) * columns, height * rows), layout="constrained")
    for i, (environment, here) in enumerate(zip(environments, panels, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        for group in here:
            number = labels.index(group.label)  # the same look in every panel
            colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
            marker = "o" if len(group.steps) < 3 else None
            name = f"{group.label}, {group.seeds} {'seed' if group.seeds == 1 else 'seeds'}"
            axes.plot(group.steps, group.iqm, line, color=colour, marker=marker, lw=1.8, label=name, zorder=3)
            if group.low is not None and group.high is not None:
                axes.fill_between(
                    group.steps, group.low, group.high, color=colour, alpha=0.18 if len(here) < 4 else 0.1, lw=0
                )
        shown = {group.column for group in here}
        column = shown.pop() if len(shown) == 1 else "return"
        axes.set_ylabel(COLUMN_TITLES.get(column, column.replace("_", " ")), parse_math=False)
        axes.set_xlabel("environment steps")
        axes.set_title(environment, parse_math=False)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(color="0.9", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        # Below the panel, where it hides no curve.
        below = axes.transAxes + ScaledTranslation(0, -36 / 72, figure.dpi_scale_trans)
        place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
        legend = axes.legend(**place, ncol=min(wide, len(here)), frameon=False, fontsize="small")
        for text in legend.get_texts():  # a "$" in a name is no formula
            text.set_parse_math(False)
    if title:
        figure.suptitle(title, parse_math=False)
    if any(group.seeds > 1 for group in groups):
        figure.supxlabel(
            "Lines: interquartile mean over the seeds (below 4: mean). Bands (from 3 seeds): 95 % bootstrap interval.",
            fontsize="x-small",
            color="0.4",
        )
    _write(out, lambda file: figure.savefig(file, format=out.suffix[1:].lower(), dpi=150))


def write_table(groups: Sequence[Group], out: Path) -> None:
    """Write the plotted numbers as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for g in groups:
        for t, step in enumerate(g.steps):
            interval = ("", "") if g.low is None or g.high is None else (f"{g.low[t]:.6g}", f"{g.high[t]:.6g}")
            writer.writerow((g.environment, g.label, g.column, g.seeds, f"{step:.0f}", f"{g.iqm[t]:.6g}", *interval))
    _write(out, lambda file: file.write(text.getvalue().encode()))


def _write(out: Path, write: Callable[[BinaryIO], object]) -> None:
    """The file as a whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            write(file)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None
