"""What every training loop needs besides its algorithm: progress, logs, checkpoints, callbacks, a tidy Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fastrl._files import locked
from fastrl.agents.callbacks import Callbacks
from fastrl.agents.config import InputError, check_int, shown_env, warn
from fastrl.agents.envs import Envs
from fastrl.agents.evaluation import Evaluation, Evaluator
from fastrl.agents.images import ReadyMade
from fastrl.agents.logs import Logs, tell, told
from fastrl.agents.saved import described

BEST = "best"  # in a run folder, the checkpoint of the best evaluation
# Of the metrics of distributed agents those that are shown while training.
RATES = {"updates_per_s": "updates/s", "replay_ratio": "replay ratio", "sample_age": "age", "policy_lag": "policy lag"}
# They end a run as a first Ctrl-C does; SIGHUP is that of a closed terminal, and Windows has none.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
LOCK = ".fastrl-lock"  # in a run folder, of the process that trains there


class Diverged(InputError):
    """Training has diverged: what there is now is not worth saving."""


class _Abandoned(Exception):
    """An evaluation, because of a signal."""


class Agent(Protocol):
    """The part of an agent that the training loop's surroundings use."""

    envs: Envs
    config: Any  # a dataclass of hyperparameters
    steps: int  # environment steps taken since the agent was made, over all environments
    n_updates: int
    counts: ClassVar[str]  # what its steps are
    log_every: ClassVar[int]
    on_step: Callable[[], None] | None  # called after every step of the environments
    run_folder: Path | None  # of the run that the agent goes on with, if it has one
    _ready_made: ReadyMade | None  # the convolutional network that sees images

    def metrics(self) -> dict[str, float]:
        """Numbers to log now, always under the same names."""

    def predict(self, obs: Any) -> Any: ...

    def memory(self) -> Any: ...

    def save(self, folder: str | os.PathLike[str], *, replay: bool = True) -> None: ...


class Training:
    """Context of one training loop: ``with Training(agent, ...) as run: while not run.done(): ...``.

    With a `folder` (new, empty or of this agent's own run, else an InputError), `progress.csv`, TensorBoard events and
    the checkpoint go there, and nobody else trains there meanwhile.  The checkpoint is written every `save_every`
    steps, at the end, when the environment raises, and on Ctrl-C (a first Ctrl-C ends the loop after the current step,
    and then raises KeyboardInterrupt; a second one does not wait).  SIGTERM and SIGHUP are like it, but raise
    SystemExit(143) and (129); they are left alone where the program handles or ignores them (nohup), and without a
    folder.  If nothing was learned, a folder that was new is gone again.
    `progress`: a bar on a terminal, a line now and then elsewhere.
    With an `evaluator`, the agent is evaluated when it is due, the results go to `evaluations.csv` and TensorBoard, and
    the best agent so far, without its replay buffer, to the folder's `best`.
    """

    def __init__(
        self,
        agent: Agent,
        total_steps: int,
        folder: str | os.PathLike[str] | None,
        *,
        progress: bool = True,
        save_every: int | None = None,
        log_every: int | None = None,
        callbacks: Callbacks | None = None,
        evaluator: Evaluator | None = None,
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
        self.interrupted: int | None = None  # by this signal
        self._start_steps = agent.steps
        self._callbacks, self._evaluator = callbacks or Callbacks(None), evaluator
        self._hears_updates, self._updates = self._callbacks.has("on_update"), agent.n_updates
        if evaluator is not None and evaluator.stop_at is not None and evaluator.every > total_steps:
            raise InputError(
                f"stop_at is looked at in evaluations: eval_every must be <= total_steps, got {evaluator.every} and "
                f"{total_steps}"
            )
        self._log_every, self._save_every = log_every or agent.log_every, save_every or total_steps
        self._next_row = min(self._after(self._log_every), self._after(self._save_every), total_steps)
        self._next_save = self._after(self._save_every)
        self._next_evaluation: float = math.inf if evaluator is None else self._after(evaluator.every)
        self._progress = progress
        self._console = _Console(stderr=True)
        self._bar = _bar(self._console) if progress and self._console.is_terminal else None
        self._line_every = max(total_steps // 10, self._log_every) if progress and self._bar is None else 0

    def __enter__(self) -> Training:
        self._logs: Logs | None = None
        self._lock = contextlib.ExitStack()
        self._started = False
        self._handlers: dict[int, Any] = {}
        self._new = self._made = False  # was the run folder empty, and is it ours?
        if self.folder is not None:
            try:
                self._claim(self.folder)
            except OSError as error:
                self._leave()
                raise InputError(f"cannot write to {self.folder}: {error.strerror or error}") from error
            except BaseException:
                self._leave()
                raise
        if self._evaluator is not None:
            self._open(self._evaluator)
        if threading.current_thread() is threading.main_thread():
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            for number in ENDING:
                if self.folder is not None and signal.getsignal(number) == signal.SIG_DFL:
                    self._handlers[number] = signal.signal(number, self._interrupt)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total_steps, completed=self._start_steps, status="")
        if self.folder is not None and self._progress:
            self._print(f"logs and checkpoint: {self.folder}{self._goes_on()}")
        flat = self.agent.envs.flattened
        if flat is not None and self._progress:
            self._print(f"observations {flat.raw} are flattened to {flat.size} numbers, Discrete ones one-hot")
            made = self.agent._ready_made
            if made is not None and made.images is not None:
                seen = ", ".join(part.name for part in made.images)
                self._print(f"network {made.kind} sees {seen} as images, and the other numbers beside them")
        if (wrapper := self.agent.envs.changes_rewards) and self._progress:
            self._print(f"returns are of the environment's own rewards, beneath {wrapper}")
        if self._callbacks.has("on_step") or self._callbacks.has("on_episode"):
            self.agent.on_step = self._stepped
        self._start_time = self._last_time = time.perf_counter()
        self._last_steps = self._start_steps
        return self

    def _goes_on(self) -> str:
        """From where, if not from the beginning, and what a process that was killed has not saved."""
        if not self._start_steps or self._logs is None:
            return ""
        lost = self._logs.reached - self._start_steps
        what = f"; at least {lost:,} later ones were not saved, and are made again" if lost > 0 else ""
        return f"; goes on after {self._start_steps:,} {self.agent.counts}{what}"

    def _open(self, evaluator: Evaluator) -> None:
        try:
            evaluator.open()
        except BaseException:
            self._leave()
            raise
        if self._logs is not None and self._logs.evaluations:  # of the run that goes on
            evaluator.best = max(row["return_mean"] for row in self._logs.evaluations)
            # One that a Ctrl-C kept from happening is made up for.
            last = int(self._logs.evaluations[-1]["step"])
            self._next_evaluation = (last // evaluator.every + 1) * evaluator.every

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.agent.on_step = None
        if self._bar is not None:
            self._bar.stop()
        try:
            if self.folder is not None and (kind is None or issubclass(kind, Exception)) and kind is not Diverged:
                self._save_at_the_end(error)
        finally:
            try:
                if self._started:
                    self._callbacks.call("on_end", self.agent)
            finally:
                for number, handler in self._handlers.items():
                    signal.signal(number, handler)
                self._leave()
        if kind is None and self.interrupted is not None and self.interrupted in ENDING:
            raise SystemExit(128 + self.interrupted)
        if kind is None and self.interrupted is not None:
            raise KeyboardInterrupt(*([f"checkpoint saved in {self.folder}"] if self.folder is not None else []))

    def _save_at_the_end(self, error: BaseException | None) -> None:
        assert self.folder is not None
        if error is None:
            self.agent.save(self.folder / "checkpoint")
        elif self.agent.steps > self._start_steps:
            with contextlib.suppress(Exception):  # what went wrong first is what the user needs to know
                self.agent.save(self.folder / "checkpoint")

    def _claim(self, folder: Path) -> None:
        """Make the run folder this process's, or raise InputError."""
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.enter_context(locked(folder / LOCK, wait=False))
        except BlockingIOError:
            raise InputError(f"{folder} is in use: another process trains there") from None
        self._new, self._made = all(path.name == LOCK for path in folder.iterdir()), made
        if not self._new and self.agent.run_folder != folder.resolve():
            raise InputError(f"{folder} is not empty and not of this agent's run; nothing is overwritten")
        now, before = described(self.agent), told(folder)
        _check_task(folder, before, now)
        names = ["step", "time_s", "steps_per_s", "episodes", "episode_return", "episode_length", *self.agent.metrics()]
        self._logs = Logs(folder, names, self._start_steps, asdict(self.agent.config))
        before.pop("result", None)  # of another step
        tell(folder, before | now | {"total_steps": self.total_steps})
        self.agent.run_folder = folder.resolve()

    def _leave(self) -> None:
        """Close the logs and let go of the folder; if nothing came of a new run, nothing of it stays."""
        if self._logs is not None:
            self._logs.close()
        if self._evaluator is not None:
            self._evaluator.close()
        empty = self._new and self.folder is not None and not (self.folder / "checkpoint").exists()
        if self._logs is not None and empty and not self._logs.rows:
            self._logs.remove()
        self._lock.close()
        if self.folder is not None and empty and self._made:
            with contextlib.suppress(OSError):  # there is something in it
                self.folder.rmdir()

    def begin(self) -> None:
        """Call when the loop begins."""
        self._started = True
        self._callbacks.call("on_start", self.agent)
        self._next = 0 if self._next_evaluation <= self.agent.steps else self._soonest()

    def done(self) -> bool:
        """Call once a turn: True when the loop must end.  Cheap unless something is due."""
        if self._hears_updates and self.agent.n_updates != self._updates:
            self._updates = self.agent.n_updates
            self._callbacks.call("on_update", self.agent)
        if self.agent.steps >= self._next:
            self._what_is_due()
        ended = self.interrupted is not None or self._callbacks.stopped
        return ended or self.agent.steps >= self.total_steps

    def _after(self, every: int) -> int:
        return (self.agent.steps // every + 1) * every

    def _soonest(self) -> float:
        return min(self._next_row, self._next_evaluation)

    def _what_is_due(self) -> None:
        steps = self.agent.steps
        if steps >= self._next_row:
            self._report()
        if self._evaluator is not None and steps >= self._next_evaluation:
            self._evaluate(self._evaluator)
        if steps >= self._next_save:
            if self.folder is not None and steps < self.total_steps:
                self.agent.save(self.folder / "checkpoint")
            self._next_save = self._after(self._save_every)
        self._next_row = min(self._after(self._log_every), self._next_save, self.total_steps)
        self._next = self._soonest()

    def _stepped(self) -> None:
        agent = self.agent
        self._callbacks.call("on_step", agent, agent.envs.last)
        for episode_return, length in agent.envs.ended:
            self._callbacks.call("on_episode", agent, episode_return, length)

    def _seconds(self, now: float) -> float:
        """How long the run has taken, with what it had taken before it was resumed."""
        return round(now - self._start_time + (self._logs.seconds if self._logs is not None else 0.0), 3)

    def _report(self) -> None:
        agent, now = self.agent, time.perf_counter()
        mean_return, mean_length = np.mean(agent.envs.recent or [(np.nan, np.nan)], axis=0).tolist()
        row = {
            "step": agent.steps,
            "time_s": self._seconds(now),
            "steps_per_s": round((agent.steps - self._last_steps) / (now - self._last_time), 1),
            "episodes": agent.envs.episodes,
            "episode_return": mean_return,
            "episode_length": mean_length,
            **agent.metrics(),
        }
        if self._logs is not None:
            self._logs.write(row)
        self._callbacks.call("on_log", agent, row)
        check_loss(row["loss"], agent.steps)
        status = f"{row['steps_per_s']:,.0f} steps/s"
        status += f"  return {mean_return:.1f}" if math.isfinite(mean_return) else ""  # none before an episode ends
        status += f"  loss {row['loss']:.3g}" if agent.n_updates else ""
        status += "".join(f"  {unit} {row[name]:,.0f}" for name, unit in RATES.items() if name in row)
        if self._bar is not None:
            self._bar.update(self._task, completed=agent.steps, status=status)
        elif self._line_every and agent.steps // self._line_every > self._last_steps // self._line_every:
            self._print(f"step {agent.steps}/{self.total_steps}  {status}")
        self._last_steps, self._last_time = agent.steps, now

    def _evaluate(self, evaluator: Evaluator) -> None:
        began = time.perf_counter()
        try:
            agent = self.agent
            evaluation = evaluator(agent.predict, agent.steps, self._abandon_if_interrupted, agent.memory)
        except _Abandoned:
            return
        self._next_evaluation = self._after(evaluator.every)
        now = time.perf_counter()
        self._last_time += now - began  # which is not the training's
        if self._logs is not None:
            self._logs.write_evaluation({"time_s": self._seconds(now), **evaluation.row()})
        self._say(evaluation)
        if evaluation.best and self.folder is not None:
            self.agent.save(self.folder / BEST, replay=False)
        self._callbacks.call("on_evaluation", self.agent, evaluation)
        if evaluator.stop_at is not None and evaluation.mean >= evaluator.stop_at:
            self._callbacks.stopped = True
            if self._progress:
                self._print(f"the return has reached {evaluator.stop_at:g} (stop_at): training ends")

    def _abandon_if_interrupted(self, episode: int, step: int) -> None:
        if self.interrupted is not None:
            raise _Abandoned

    def _say(self, evaluation: Evaluation) -> None:
        cut = f", {evaluation.cut} episodes cut" if evaluation.cut else ""
        if self._progress:
            of = f"return {evaluation.mean:.1f} +- {evaluation.returns.std():.1f}"
            self._print(f"evaluated at step {evaluation.step}: {of}{cut}{' (best)' if evaluation.best else ''}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        hangup = number == getattr(signal, "SIGHUP", None)
        self._console.quiet |= hangup  # there is no terminal any more, and writing to it is an error
        if self.interrupted is None:
            self.interrupted = number
        elif hangup:  # which the shell and the system send, both
            pass
        elif number == signal.SIGTERM:
            raise SystemExit(128 + number)
        else:
            raise KeyboardInterrupt


class _Console(Console):
    """One that raises when nobody reads its output any more, so that training is saved, and does not exit."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _bar(console: Console) -> Progress:
    steps = TextColumn("{task.completed:,.0f}/{task.total:,.0f}")
    columns = (SpinnerColumn(), BarColumn(), TaskProgressColumn(), steps)
    return Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[status]}"), console=console, refresh_per_second=2
    )


def _check_task(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError if a run would go on in another environment: its log and its curve would be of two tasks.

    Of environments that were given as objects not all is known that makes them alike, so that is a warning.
    """
    was, new = shown_env(before), shown_env(now)
    if not before.get("algorithm") or was == new:
        return
    what = f"{folder} is of a run in {was or 'an environment without a name'}, and the agent is in {new} now"
    if "given" not in before and "given" not in now:
        raise InputError(f"{what}; to learn there, give a new folder")
    warn(f"{what}: its log is of both")


def check_loss(loss: float, step: int, weights: Any = None) -> None:
    """Raise InputError for a loss that is NaN or infinite: training has diverged, and goes on no more.

    `weights`: those after the update, whose gradient can be infinite when its loss is not.
    """
    if math.isfinite(loss) and weights is not None and not math.isfinite(weights.sum().item()):
        loss = math.nan  # the next one would be
    if not math.isfinite(loss):
        raise Diverged(f"loss is not finite at step {step}, but {loss}: training diverged; try a lower learning_rate")
