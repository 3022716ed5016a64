"""What `fastrl bench` shows and writes: a table's cells, a CSV file, a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from fastrl.bench.timing import OURS, Row

COLUMNS = ("kernel", "size", "contender", "us", "us_25", "us_75", "ratio")


def microseconds(us: float) -> str:
    return f"{us:.3g}" if us < 1000 else f"{us:,.0f}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([*row[:3], *(f"{x:.6g}" for x in row[3:])] for row in rows)


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """A panel for each kernel and size: how many times longer than fastrl each contender takes."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.kernel, row.size), []).append(row)
    heights = [len(panel) + 1.5 for panel in panels.values()]
    figure = Figure(figsize=(8, 0.28 * sum(heights) + 1), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, ((kernel, size), panel) in zip(axes, panels.items(), strict=True):
        panel = sorted(panel, key=lambda row: row.ratio, reverse=True)
        ratios = [row.ratio for row in panel]
        bars = ax.barh(
            [row.contender for row in panel],
            ratios,
            color=["#0072B2" if row.contender == OURS else "0.7" for row in panel],
        )
        ax.bar_label(bars, [f" {microseconds(row.us)} us, {row.ratio:.2f}x" for row in panel], fontsize="x-small")
        ax.set_xscale("log")
        ax.axvline(1, color="0.4", linewidth=0.8)
        ax.tick_params(labelsize="x-small")
        ax.set_title(f"{kernel} {size}", fontsize="small", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    most = max(row.ratio for row in rows)
    axes[-1].set_xlim(0.3, 4 * max(most, 1.0))
    axes[-1].set_xlabel("time / time of fastrl", fontsize="small")
    figure.suptitle(title, fontsize="x-small")
    figure.savefig(path, dpi=150)
