"""`fastrl train --seeds N`: a run for each seed, side by side in processes; then a table over the seeds, and a plot."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.agents.config import InputError
from fastrl.cli import runs
from fastrl.cli.common import columns
from fastrl.cli.errors import fail, let_go_of_terminal, warn

START = """\
import sys
sys.path[:], sys.argv[0] = {path!r}, 'fastrl'
from fastrl.cli import main, seeds
seeds.end_with({parent})
sys.exit(main())
"""
PICTURE = "curves.png"
PR_SET_PDEATHSIG = 1


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(seeds: int, cores: int) -> int:
    """As many as there are cores, and so many more that none runs alone in the end: 5 seeds on 2 cores are 3 and 2."""
    rounds = max(1, seeds // cores)
    return -(-seeds // rounds)


def end_with(parent: int) -> None:
    """Let this process, started by `parent`, be sent SIGTERM when that dies, even of SIGKILL: Linux only."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before
        sys.exit(128 + signal.SIGTERM)


class One:
    """The run of one seed in `folder`: its process, ``fastrl *args``, whose output goes to a file beside it."""

    def __init__(self, folder: Path, args: list[str], threads: int, total_steps: int) -> None:
        self.seed, self.folder, self.log = folder.name[len("seed") :], folder, folder.with_suffix(".log")
        self.args, self.total_steps = args, total_steps
        self.env = {"FASTRL_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), **os.environ}
        self.process: subprocess.Popen[bytes] | None = None
        self.commands = 0  # that have trained here before
        self.judged = False  # is there a result from before?

    def start(self) -> None:
        self.commands = self._trained()
        self.judged = bool(runs.greedy_returns(runs.read(self.folder)))
        code = START.format(path=sys.path, parent=os.getpid())
        # In a session of its own: a Ctrl-C reaches us alone, and we end it in a way that saves.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *self.args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, start_new_session=True,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def code(self) -> int | None:
        """The exit code; None: it was never started."""
        return None if self.process is None else self.process.wait()

    def returns(self) -> list[float]:
        """Those at the end of this command; what a run had from earlier, if it failed now, is of another step."""
        return runs.greedy_returns(runs.read(self.folder)) if self.code == 0 else []

    def _trained(self) -> int:
        history = runs.read(self.folder).get("history")
        return len(history) if isinstance(history, list) else 0

    def outcome(self) -> str:
        if self.code is None:
            return "not begun"
        if self.code == 0:
            if self._trained() > self.commands or (not self.judged and self.returns()):
                return "done"
            steps, before = runs.last_step(self.folder), runs.read(self.folder).get("total_steps")
            more = isinstance(before, int) and before > self.total_steps
            return f"nothing was done: it has {steps:,} steps already" if more else "done before"
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        said = [line[len("fastrl: ") :] for line in lines if line.startswith("fastrl: ")]
        return said[-1] if said else f"exit code {self.code}, see {self.log}"


def train(folder: Path, args: list[str], seeds: Sequence[int], jobs: int | None, total_steps: int) -> int:
    """Run ``fastrl *args`` with each of the seeds, `jobs` at a time; returns the exit code."""
    each = [folder / f"seed{seed}" for seed in seeds]
    try:
        for run in each:  # an empty one is of a seed that has not begun
            run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return _train(folder, {run: [*args, *_new(run)] for run in each}, jobs, total_steps)


def resume(folder: Path, args: list[str], begin: list[str], jobs: int | None, total_steps: int) -> int:
    """Run ``fastrl *args --resume RUN`` with each of the runs of `folder`, and ``fastrl *begin`` with other seeds."""
    each = {run: [*args, "--resume", str(run)] for run in of(folder)}
    each |= {run: [*begin, *_new(run)] for run in waiting(folder)}
    return _train(folder, {run: each[run] for run in sorted(each, key=_seed)}, jobs, total_steps)


def _new(run: Path) -> list[str]:
    return ["--seed", str(_seed(run)), "--out", str(run)]


def _seed(run: Path) -> int:
    return int(run.name[len("seed") :])


def of(folder: Path) -> list[Path]:
    """The runs that `train` left in `folder`; none if it is something else."""
    return [run for run in _every(folder) if (run / "checkpoint").exists()]


def waiting(folder: Path) -> list[Path]:
    """The folders of the seeds that have not begun."""
    return [run for run in _every(folder) if not _begun(run)]


def _every(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("seed*") if re.fullmatch(r"seed\d+", path.name) and path.is_dir()]
    return sorted(found, key=_seed)


def _begun(run: Path) -> bool:
    return run.is_dir() and any(run.iterdir())


def _train(folder: Path, args: dict[Path, list[str]], jobs: int | None, total_steps: int) -> int:
    jobs = min(jobs or at_once(len(args), cores()), len(args))
    every = [One(run, argv, max(1, cores() // jobs), total_steps) for run, argv in args.items()]
    print(f"{len(every)} seeds, {jobs} at a time: {folder}", file=sys.stderr)
    stopped = 0
    with signals_raise():
        try:
            _run(every, jobs, total_steps)
        except KeyboardInterrupt:
            stopped = 130
        except SystemExit as stop:
            stopped = int(stop.code or 0)
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                _stop(every)
            _kill(every)
    if not any(_begun(one.folder) for one in every):
        return _nothing(folder, every, stopped)
    _report(folder, every)
    failed = [one.code for one in every if one.code]
    return stopped or (max(1, failed[0]) if failed else 0)


def _run(every: list[One], jobs: int, total_steps: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    steps = TextColumn("{task.completed:,.0f}/{task.total:,.0f}")
    shown = (TextColumn("seed {task.fields[seed]}"), BarColumn(), TaskProgressColumn(), steps)
    running: dict[One, Any] = {}
    waiting, done = list(every), 0
    with Progress(
        *shown, TimeRemainingColumn(), TextColumn("{task.fields[status]}"), console=console,
        disable=not console.is_terminal, refresh_per_second=2,
    ) as progress:  # fmt: skip
        while waiting or running:
            while waiting and len(running) < jobs:
                one = waiting.pop(0)
                one.start()
                running[one] = progress.add_task("", total=total_steps, seed=one.seed, status="")
            time.sleep(0.2)
            for one, task in list(running.items()):
                if console.is_terminal or not one.running:
                    points = runs.returns(one.folder)
                    status = f"return {points[-1][1]:.1f}" if points else ""
                    progress.update(task, completed=runs.last_step(one.folder), status=status)
                if not one.running:
                    del running[one]
                    done += 1
                    greedy = one.returns()
                    what = f"return {np.mean(greedy):.1f}" if greedy else one.outcome()
                    if _begun(one.folder):
                        line = f"seed {one.seed}: {what} ({done} of {len(every)})"
                        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM is SystemExit(143), so that the runs are saved; SIGINT KeyboardInterrupt, in the background, too.

    So is SIGHUP, of a terminal that was closed, SystemExit(129), unless it is ignored (nohup).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)  # the shell and the system send it, both
            let_go_of_terminal()
        raise SystemExit(128 + number)

    handlers: dict[int, Any] = {signal.SIGTERM: stop, signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        handlers[signal.SIGHUP] = stop
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(every: list[One]) -> None:
    """Let those that still run save and end."""
    running = [one.process for one in every if one.running and one.process is not None]
    if running:
        print(f"fastrl: {len(running)} runs are saved and ended; Ctrl-C again does not wait", file=sys.stderr)
    for process in running:
        process.terminate()
    for process in running:
        process.wait()


def _kill(every: list[One]) -> None:
    for one in every:
        if one.running and one.process is not None:
            one.process.kill()
            one.process.wait()


def _nothing(folder: Path, every: list[One], stopped: int) -> int:
    """Nothing came of any seed: say why, and leave no folder."""
    why = list(dict.fromkeys(one.outcome() for one in every if one.code is not None))
    codes = [one.code for one in every if one.code]
    for one in every:
        with contextlib.suppress(OSError):
            one.folder.rmdir()
        with contextlib.suppress(OSError):
            one.log.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return fail("; ".join(why) or "interrupted", stopped or (max(1, codes[0]) if codes else 1))


def _report(folder: Path, every: list[One]) -> None:
    rows, means, lengths = [], [], []
    for one in every:
        greedy = one.returns()
        steps = runs.last_step(one.folder)
        means += [float(np.mean(greedy))] if greedy else []
        lengths += [steps] if greedy else []
        rows.append([one.seed, f"{steps:,}", f"{means[-1]:.1f}" if greedy else "", one.outcome()])
    if means:
        mean, low, high = interquartile_mean(means)
        interval = f"IQM {mean:.1f}" + ("" if low is None else f", 95 % interval [{low:.1f}, {high:.1f}]")
        seeds = f"of {len(means)} seeds" if len(means) == len(every) else f"of {len(means)} of {len(every)} seeds"
        seeds += f" after {min(lengths):,} to {max(lengths):,} steps" if min(lengths) < max(lengths) else ""
        rows.append(["mean", "", f"{np.mean(means):.1f}", f"{seeds}; {interval}"])
    title = f"{folder}: returns of the greedy policies"
    columns(title, ["seed", "steps", "return", "outcome"], rows)
    picture = _draw(folder)
    print(f"saved in {folder}" + (f", curves in {picture}" if picture else ""))
    if any(one.code != 0 for one in every) and of(folder):
        print(f"to go on: fastrl train --resume {folder}", file=sys.stderr)


def interquartile_mean(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean without the lowest and the highest quarter, and from three values on its 95 % bootstrap interval."""
    x = np.asarray(values, np.float64)
    cut = len(x) // 4

    def middle(rows: Any) -> Any:
        return np.sort(rows, -1)[..., cut : len(x) - cut].mean(-1)

    if len(x) < 3:
        return float(middle(x)), None, None
    draws = middle(np.random.default_rng(0).choice(x, (10_000, len(x))))
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(middle(x)), float(low), float(high)


def _draw(folder: Path) -> Path | None:
    """The learning curve over the seeds, where the packages for it are and there is anything to draw."""
    if any(importlib.util.find_spec(name) is None for name in ("matplotlib", "scipy")):
        return None
    from fastrl import plot

    picture = folder / PICTURE
    try:
        plot.draw(plot.group_runs(plot.read_runs([folder])), picture)
    except InputError as error:
        warn(f"no plot: {error}")
        return None
    return picture
