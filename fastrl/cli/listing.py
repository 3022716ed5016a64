"""`fastrl list`: the algorithms, or the runs in folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.agents.config import shown_env
from fastrl.cli import runs
from fastrl.cli.algorithms import print_algorithms
from fastrl.cli.common import columns
from fastrl.cli.options import parse


@dataclasses.dataclass
class List:
    """The runs in folders and below them, and how far they came; without a folder, the algorithms."""

    folders: tuple[Path, ...]
    """Folders of runs, such as runs/."""


def command(args: list[str]) -> int:
    options, _ = parse(List, args, "fastrl list")
    if not options.folders:
        print_algorithms()
        return 0
    found = runs.find(options.folders)
    if not found:
        print(f"no runs in {', '.join(map(str, options.folders))}")
        return 0
    columns(
        "return: mean of the last 100 training episodes; greedy: of the policy at the end",
        ["run", "algorithm", "environment", "seed", "steps", "last return", "best return", "greedy"],
        [_row(folder) for folder in found],
    )
    return 0


def _row(folder: Path) -> list[str]:
    values, points = runs.read(folder), runs.returns(folder)
    config, step, total = values.get("config"), runs.last_step(folder), values.get("total_steps")
    seed = config.get("seed", "") if isinstance(config, dict) else ""
    steps = f"{step:,} of {total:,}" if isinstance(total, int) and total > step else f"{step:,}"
    greedy = runs.greedy_returns(values)
    last, best = (f"{points[-1][1]:.1f}", f"{max(value for _, value in points):.1f}") if points else ("", "")
    told: list[Any] = [folder, values.get("algorithm") or "", shown_env(values), seed, steps, last, best]
    return [*map(str, told), f"{np.mean(greedy):.1f}" if greedy else ""]
