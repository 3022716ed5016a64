"""What every training loop needs besides its algorithm: progress, logs, checkpoints, a tidy Ctrl-C, evaluation."""

from __future__ import annotations

import csv
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fastrl.agents.config import InputError, check_int
from fastrl.agents.envs import Envs


class Agent(Protocol):
    """The part of an agent that the training loop's surroundings use."""

    envs: Envs
    steps: int  # environment steps taken since the agent was made, over all environments
    run_folder: Path | None  # of the run that the agent goes on with, if it has one

    def metrics(self) -> dict[str, float]:
        """Numbers to log now, always under the same names."""

    def save(self, folder: str | os.PathLike[str]) -> None: ...


class Training:
    """Context of one training loop: ``with Training(agent, ...) as run: while not run.done(): ...``.

    With a `folder` (new, empty or of this agent's own run, else an InputError), `progress.csv`, TensorBoard events and
    the checkpoint go there; the checkpoint is written every `save_every` steps, at the end, and on Ctrl-C (a first
    Ctrl-C ends the loop after the current step, and then raises KeyboardInterrupt; a second one does not wait).
    `progress`: a bar on a terminal, a line now and then elsewhere.
    """

    def __init__(
        self,
        agent: Agent,
        total_steps: int,
        folder: str | os.PathLike[str] | None,
        *,
        progress: bool = True,
        save_every: int | None = None,
        log_every: int = 1000,
    ) -> None:
        total_steps = check_int("total_steps", total_steps)
        save_every = None if save_every is None else check_int("save_every", save_every)
        if total_steps <= agent.steps:
            taken = f", and {agent.steps} are behind this agent" if agent.steps else ""
            raise InputError(f"total_steps must be > {agent.steps}: it counts from the start of training{taken}")
        if save_every is not None and save_every < 1:
            raise InputError(f"save_every must be >= 1, got {save_every}")
        self.agent, self.total_steps = agent, total_steps
        self.folder = Path(folder) if folder is not None else None
        self.interrupted = False
        self._start_steps = agent.steps
        self._log_every, self._save_every = log_every, save_every or total_steps
        self._next = min(self._after(log_every), self._after(self._save_every), total_steps)
        self._progress = progress
        self._console = Console(stderr=True)
        self._bar = _bar(self._console) if progress and self._console.is_terminal else None
        self._line_every = max(total_steps // 10, log_every) if progress and self._bar is None else 0

    def __enter__(self) -> Training:
        self._writers: list[Callable[[dict[str, float]], None]] = []
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if any(self.folder.iterdir()) and self.agent.run_folder != self.folder.resolve():
                    raise InputError(f"{self.folder} is not empty and not of this agent's run; nothing is overwritten")
                self._open_logs(self.folder)
                self.agent.run_folder = self.folder.resolve()
            except OSError as error:
                raise InputError(f"cannot write to {self.folder}: {error.strerror or error}") from error
        self._old_handler: Any = None
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGINT, self._interrupt)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total_steps, completed=self._start_steps, status="")
        if self.folder is not None and self._progress:
            self._console.print(f"logs and checkpoint: {self.folder}", highlight=False, markup=False, soft_wrap=True)
        self._start_time = self._last_time = time.perf_counter()
        self._last_steps = self._start_steps
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._old_handler is not None:
            signal.signal(signal.SIGINT, self._old_handler)
        if self.folder is not None:
            self._csv_file.close()
            self._tensorboard.close()
            if kind is None:
                self.agent.save(self.folder / "checkpoint")
        if kind is None and self.interrupted:
            raise KeyboardInterrupt(*([f"checkpoint saved in {self.folder}"] if self.folder is not None else []))

    def done(self) -> bool:
        """Call once a step: True when the loop must end.  Cheap unless something is due."""
        if self.agent.steps >= self._next:
            self._report()
        return self.interrupted or self.agent.steps >= self.total_steps

    def _after(self, every: int) -> int:
        return (self.agent.steps // every + 1) * every

    def _report(self) -> None:
        agent, now = self.agent, time.perf_counter()
        mean_return, mean_length = np.mean(agent.envs.recent or [(np.nan, np.nan)], axis=0).tolist()
        row = {
            "step": agent.steps,
            "time_s": round(now - self._start_time, 3),
            "steps_per_s": round((agent.steps - self._last_steps) / (now - self._last_time), 1),
            "episodes": agent.envs.episodes,
            "episode_return": mean_return,
            "episode_length": mean_length,
            **agent.metrics(),
        }
        for write in self._writers:
            write(row)
        check_loss(row["loss"], agent.steps)
        status = f"{row['steps_per_s']:,.0f} steps/s  return {row['episode_return']:.1f}  loss {row['loss']:.3g}"
        if self._bar is not None:
            self._bar.update(self._task, completed=agent.steps, status=status)
        elif self._line_every and agent.steps // self._line_every > self._last_steps // self._line_every:
            self._console.print(f"step {agent.steps}/{self.total_steps}  {status}", highlight=False, soft_wrap=True)
        crossed = agent.steps // self._save_every > self._last_steps // self._save_every
        if self.folder is not None and crossed and agent.steps < self.total_steps:
            self.agent.save(self.folder / "checkpoint")
        self._last_steps, self._last_time = agent.steps, now
        self._next = min(self._after(self._log_every), self._after(self._save_every), self.total_steps)

    def _open_logs(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of imports, so only where it is wanted

        path = folder / "progress.csv"
        rows: list[dict[str, str]] = []
        if path.exists():  # a resumed run: what was logged after the checkpoint happens again
            with path.open(newline="", errors="replace") as file:
                rows = [row for row in _complete_rows(file.read()) if int(row["step"]) <= self._start_steps]
        self._csv_file = path.open("w", newline="", buffering=1)
        names = ["step", "time_s", "steps_per_s", "episodes", "episode_return", "episode_length", *self.agent.metrics()]
        table = csv.DictWriter(self._csv_file, names, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
        self._tensorboard: Any = SummaryWriter(str(folder), purge_step=self._start_steps + 1)

        def write_tensorboard(row: dict[str, float]) -> None:
            for name, value in row.items():
                if name != "step":
                    self._tensorboard.add_scalar(name, value, row["step"])

        self._writers = [table.writerow, write_tensorboard]

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


def _complete_rows(text: str) -> list[dict[str, str]]:
    """The rows of a CSV table, without those that a crash left half-written."""
    rows = csv.DictReader(text[: text.rfind("\n") + 1].replace("\0", "").splitlines())
    return [row for row in rows if None not in (*row, *row.values()) and row.get("step", "").isdecimal()]


def _bar(console: Console) -> Progress:
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"))
    return Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[status]}"), console=console, refresh_per_second=2
    )


def check_loss(loss: float, step: int, weights: torch.Tensor | None = None) -> None:
    """Raise InputError for a loss that is NaN or infinite: training has diverged, and goes on no more.

    `weights`: those after the update, whose gradient can be infinite when its loss is not.
    """
    if math.isfinite(loss) and weights is not None and not math.isfinite(weights.sum().item()):
        loss = math.nan  # the next one would be
    if not math.isfinite(loss):
        raise InputError(f"loss is not finite at step {step}, but {loss}: training diverged; try a lower learning_rate")


def evaluate(
    policy: Callable[[NDArray[Any]], Any], env: gym.Env[Any, Any], episodes: int, seed: int
) -> NDArray[np.float64]:
    """Returns ``[episodes]`` of `policy` (observation -> action); episode i begins with ``env.reset(seed + i)``."""
    returns = np.zeros(episodes)
    for i in range(episodes):
        obs, _ = env.reset(seed=seed + i)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            returns[i] += float(reward)
            done = terminated or truncated
    return returns
