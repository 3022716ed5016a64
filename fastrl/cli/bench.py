"""`fastrl bench`."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from fastrl import bench
from fastrl.agents.config import InputError
from fastrl.cli.common import check_new, check_threads
from fastrl.cli.options import did_you_mean, parse


@dataclasses.dataclass
class Bench:
    """The kernels' speed on this machine, beside plain code and the libraries that are installed."""

    kernels: tuple[str, ...] = ()
    """Only these (all)."""
    quick: bool = False
    """One tiny size each: shows that it works, not how fast it is."""
    out: Path | None = None
    """Folder for bench.csv and bench.png (-o for short); must not exist or be empty."""
    threads: int = 1
    """CPU threads, for us and for the others."""


def command(args: list[str]) -> int:
    options, _ = parse(Bench, args, "fastrl bench")
    unknown = [name for name in options.kernels if name not in bench.KERNELS]
    if unknown:
        meant = did_you_mean(unknown[0], bench.KERNELS)
        did = f"did you mean {meant}? " if meant else ""
        raise InputError(f"unknown kernel {unknown[0]!r}; {did}known are {', '.join(bench.KERNELS)}")
    check_threads(options.threads)
    if importlib.util.find_spec("torch") is None:
        raise InputError('bench needs PyTorch; to install: pip install "fastrl-kernels[torch]"')
    if options.out is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise InputError('-o needs matplotlib; to install: pip install "fastrl-kernels[plot]"')
        check_new(options.out)
    warnings.showwarning = lambda *_, **__: None  # the others deprecate much, and reset filters
    bench.set_threads(options.threads)
    title = bench.machine()
    kernels = list(dict.fromkeys(options.kernels)) or list(bench.KERNELS)
    left_out: dict[str, str] = {}
    rows = list(bench.run(kernels, options.quick, lambda line: print(f"timing {line}", file=sys.stderr), left_out))
    _bench_table(title, rows)
    for contender, why in left_out.items():
        print(f"left out: {contender}: {why}")
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            bench.write_csv(rows, options.out / "bench.csv")
            bench.draw(rows, options.out / "bench.png", title)
        except OSError as error:
            raise InputError(f"cannot write to {options.out}: {error.strerror or error}") from None
        print(f"saved in {options.out}")
    return 0


def _bench_table(title: str, rows: Sequence[bench.Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    caption = "us: a call takes so many microseconds; x: how many times longer than fastrl"
    table = Table(title=Text(title), caption=Text(caption))
    table.add_column("kernel", no_wrap=True)
    table.add_column("size")
    table.add_column("contender", no_wrap=True)
    table.add_column("us", justify="right", no_wrap=True)
    table.add_column("x", justify="right", no_wrap=True)
    last = None
    for row in rows:
        new = (row.kernel, row.size) != last
        if new and last is not None:
            table.add_section()
        last = (row.kernel, row.size)
        first = (row.kernel, row.size) if new else ("", "")
        cells = (*first, row.contender, bench.microseconds(row.us), f"{row.ratio:.2f}")
        table.add_row(*map(Text, cells))
    Console().print(table)
