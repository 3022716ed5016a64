"""What a user's program hears of a training run, and how it ends one: `Callback`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrl.agents.config import InputError

if TYPE_CHECKING:
    from fastrl.agents.envs import Transition
    from fastrl.agents.evaluation import Evaluation


class Callback:
    """Base of what ``learn(callback=...)`` takes: a subclass overrides the calls that it wants.

    `agent` is the one that learns, with its counters as they are: `steps`, `n_updates`, `envs.episodes`; its
    `run_folder` is where the checkpoint is written, if there is one.  A call that returns False ends the training, with
    a checkpoint as at the end: the agents with a replay buffer after the step, the others after the update.  What a
    call raises ends it too, and `learn` raises it.
    """

    def on_start(self, agent: Any) -> bool | None:
        """Before the first step of this `learn`; ``agent.config`` holds the hyperparameters."""

    def on_step(self, agent: Any, transition: Transition) -> bool | None:
        """After every step of the environments, all N of which step together: next_obs, reward, terminated, ..."""

    def on_episode(self, agent: Any, episode_return: float, length: int) -> bool | None:
        """After an episode's last step; the return is of the rewards of the environment itself."""

    def on_update(self, agent: Any) -> bool | None:
        """After a round of updates; those that learn from whole rollouts have theirs in ``agent.rollout``."""

    def on_log(self, agent: Any, scalars: dict[str, float]) -> bool | None:
        """With every row of progress.csv, for loggers: its columns.

        Every 1,000 steps, of FQI every iteration; also without a folder.
        """

    def on_evaluation(self, agent: Any, evaluation: Evaluation) -> bool | None:
        """After an evaluation, when the best agent so far is saved."""

    def on_end(self, agent: Any) -> None:
        """After the loop and the last checkpoint, also when an error or Ctrl-C ends it: close what on_start opened."""


class _Function(Callback):
    def __init__(self, function: Any) -> None:
        self.function = function

    def on_step(self, agent: Any, transition: Transition) -> bool | None:
        stop: bool | None = self.function(agent)
        return stop


class Callbacks:
    """All callbacks of a run.  `stopped`: has one of them returned False?"""

    def __init__(self, given: Any) -> None:
        """`given`: None, a `Callback`, a function of the agent, or several; raises InputError for all else."""
        several = isinstance(given, Iterable) and not isinstance(given, Callback) and not callable(given)
        callbacks = [_callback(one) for one in ([] if given is None else given if several else [given])]
        self._calls = {
            event: [getattr(one, event) for one in callbacks if getattr(type(one), event) is not call]
            for event, call in vars(Callback).items()
            if event.startswith("on_")
        }
        self.stopped = False

    def has(self, event: str) -> bool:
        """Does anybody want to hear of it?"""
        return bool(self._calls[event])

    def call(self, event: str, *args: Any) -> None:
        for call in self._calls[event]:
            answer = call(*args)
            if answer is not None and isinstance(answer, (bool, np.bool_)) and not answer:
                self.stopped = True


def _callback(given: Any) -> Callback:
    if isinstance(given, Callback):
        return given
    if callable(given) and not isinstance(given, type):
        return _Function(given)
    got = f"the class {given.__name__}, not an instance" if isinstance(given, type) else type(given).__name__
    wanted = "a fastrl.agents.Callback, a function of the agent or a list of them"
    raise InputError(f"callback must be {wanted}, got {got}")
