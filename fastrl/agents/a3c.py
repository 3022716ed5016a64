"""Asynchronous advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, algorithm S3): processes that act and learn
each for itself, and write their updates into shared parameters without locks.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from fastrl.agents.a2c import A2C
from fastrl.agents.agent import Env
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.on_policy import A3CConfig
from fastrl.agents.workers import Shared, Workers


class A3C(A2C):
    """Asynchronous advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, algorithm S3).

    Each of `workers` processes, again and again: theta' <- theta; `n_steps` steps of its own environments with theta';
    the gradient g of A2C's loss in theta'; s <- 0.99 s + 0.01 g^2, theta <- theta - lr g / (sqrt(s) + eps), where theta
    and s are shared, and nobody waits for anybody.

    One of the workers is this process, whose episodes are those in the logs; with one there are no others, and a run
    repeats itself.  With several it does not, because who is first does not.  A worker that is killed, or hangs for
    `worker_timeout` seconds, is gone, a warning says so, and the others go on; an error of one ends the run.

    For discrete, MultiDiscrete, MultiBinary and continuous (Box) actions.  An MLP sees observations flattened, and
    discrete ones one-hot.

    `env`: an id, or with one worker also an environment or a Gymnasium vector environment in any autoreset mode.
    `config` and keyword overrides set the hyperparameters of `A3CConfig`.  Raises InputError for anything that cannot
    work.  `network`: as for `A2C`.

    >>> agent = A3C("CartPole-v1", seed=0, workers=2).learn(500_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "a3c"
    config_class = A3CConfig
    config: A3CConfig
    cpu_only = True

    def __init__(self, env: Env, config: A3CConfig | None = None, *, network: Any = None, **overrides: Any) -> None:
        super().__init__(env, config, network=network, **overrides)
        workers = self.config.workers
        if workers > 1 and not self.envs.made_from_id:
            raise InputError(f"A3C: workers must be 1 with an environment as an object, got {workers}: give its id")
        if workers > 1 and not hasattr(os, "fork"):
            raise InputError(f"A3C: workers must be 1 on this system, which cannot fork, got {workers}")
        self._shared: Shared | None = None
        self._workers: Workers | None = None
        self._index = 0

    def learn(self, total_steps: int, **how: Any) -> Any:
        """`Agent.learn`, and none of the other workers is left afterwards, whatever ended it."""
        try:
            return super().learn(total_steps, **how)
        finally:
            self._end_workers()

    def _start_workers(self) -> None:
        """From here on the optimizer works on shared memory, and other processes do so, too."""
        shared = Shared(len(self.policy.vector), self.config.workers)
        shared.vector[:], shared.square_avg[:] = self.policy.vector, self.optimizer.square_avg
        shared.steps[0], shared.updates[0] = self.steps, self.n_updates
        self._share(shared, 0)
        self._parent = os.getpid()
        self._workers = Workers(shared, self._work, timeout=self.config.worker_timeout)

    def _end_workers(self) -> None:
        if self._workers is not None:
            self._workers.end()
            self._catch_up()
            self.optimizer.vector, self.optimizer.square_avg = self.policy.vector, self.optimizer.square_avg.copy()
            self._shared = self._workers = None

    def _share(self, shared: Shared, index: int) -> None:
        self._shared, self._index = shared, index
        self.optimizer.vector, self.optimizer.square_avg = shared.vector, shared.square_avg

    def _work(self, index: int) -> None:
        """What worker `index` does, in its own process: an agent of its own on the shared memory."""
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)  # its others are not there after a fork, and it would wait for them
        shared, c = self._shared, self.config
        assert shared is not None
        # The steps: a run that goes on begins other episodes than it began with.
        seed = int(np.random.SeedSequence([c.seed, 3, index, self.steps]).generate_state(1)[0])
        agent = type(self)(self._made_from, replace(c, seed=seed, workers=1), network=self._network)
        agent.schedule_steps = self.schedule_steps
        agent._share(shared, index)
        with contextlib.closing(agent):
            while not shared.stopped and shared.steps.sum() < self.total_steps and os.getppid() == self._parent:
                agent._iterate()

    def _iterate(self) -> None:
        """theta' <- theta, a rollout, and A2C's update, whose step is one of theta."""
        if self.config.workers > 1 and self._workers is None:
            self._start_workers()
        if self._workers is not None:
            self._workers.watch()
        self._catch_up()
        steps, updates = self.steps, self.n_updates
        super()._iterate()
        if self._shared is not None:
            self._shared.steps[self._index] += self.steps - steps
            self._shared.updates[self._index] += self.n_updates - updates
            self._catch_up()

    def _catch_up(self) -> None:
        """Take over what all workers have done."""
        if self._shared is not None:
            self.policy.vector[:] = self._shared.vector
            self.steps, self.n_updates = int(self._shared.steps.sum()), int(self._shared.updates.sum())

    def _switches(self) -> list[str]:
        workers = self.config.workers
        return [*super()._switches(), *([f"{workers} workers"] if workers > 1 else [])]
