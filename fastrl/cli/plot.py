"""`fastrl plot`."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from fastrl.agents.config import InputError
from fastrl.cli.common import table
from fastrl.cli.options import parse


@dataclasses.dataclass
class Plot:
    """Learning curves: interquartile mean over the seeds, and its 95 % bootstrap interval as a band."""

    runs: tuple[Path, ...]
    """Run folders, evaluation logs (CSV), folders that hold several, or patterns of them."""
    out: Path | None = None
    """The picture (-o for short): .png, .pdf or .svg."""
    y: str | None = None
    """Column of the logs to draw (episode_return); return_mean is that of the evaluations during training."""
    csv: Path | None = None
    """Write the plotted numbers to this file, too."""
    title: str | None = None
    """Over all of the picture."""


def command(args: list[str]) -> int:
    options, _ = parse(Plot, args, "fastrl plot")
    missing = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'plots need {", ".join(missing)}; to install: pip install "fastrl-kernels[plot]"')
    if not options.runs:
        raise InputError("no run to plot; usage: fastrl plot RUN [RUN ...] -o curves.png")
    if options.out is None:
        raise InputError("-o FILE is missing, for instance -o curves.png")
    from fastrl import plot

    plot.check_outputs(options.out, options.csv)
    files = [path for path in (options.out, options.csv) if path is not None]
    there = [path for path in files if path.exists()]
    groups = plot.group_runs(plot.read_runs(options.runs, options.y))
    plot.draw(groups, options.out, options.title)
    if options.csv is not None:
        plot.write_table(groups, options.csv)
    rows = {}
    for group in groups:
        interval = "" if group.low is None or group.high is None else f" [{group.low[-1]:.4g}, {group.high[-1]:.4g}]"
        what = f"{group.iqm[-1]:.4g}{interval} at step {group.steps[-1]:,.0f}"
        rows[" ".join((group.environment, group.label)).strip()] = f"{what}, {_seeds(group.seeds)}"
    saved = [f"{path} (replaced)" if path in there else str(path) for path in files]
    table(", ".join(dict.fromkeys(group.column for group in groups)), {**rows, "saved in": "\n".join(saved)})
    return 0


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
