"""Ape-X DQN (Horgan et al. 2018, arXiv:1803.00933): actors, prioritized replay and learner as processes of their own.

The update is DQN's own: `fastrl.agents.dqn`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import numpy as np

from fastrl.agents.agent import Env
from fastrl.agents.arrays import on_device
from fastrl.agents.config import InputError
from fastrl.agents.dqn import DQN
from fastrl.agents.env_config import EnvConfig
from fastrl.agents.hyperparameters.distributed import ApeXConfig
from fastrl.agents.spaces import OnlySpaces
from fastrl.distributed.actor import epsilons
from fastrl.distributed.cluster import connected, import_ray
from fastrl.distributed.fleet import AHEAD, Drawn, Fleet
from fastrl.replay import Batch, SampleToInsertRatio

A = TypeVar("A", bound="ApeX")


class ApeX(DQN):
    """Ape-X DQN (Horgan et al. 2018, arXiv:1803.00933) on Ray: `actors` that play, `shards` of a prioritized replay
    buffer, and this process, which learns with the update of `DQN`.

    Environment i of N has epsilon_i = epsilon_start^(1 - i / (N - 1)) epsilon_end^(i / (N - 1)).  Actors send chunks
    with their own |TD error| as first priorities.  A batch is drawn from one shard, chosen in proportion to the sum of
    its priorities p, so that P(i) = p_i / sum of p over all shards; its weights are (N P(i))^-beta / max_j (N
    P(j))^-beta.

    `env`: an id or an `EnvConfig`, which the actors can make.  `network` as in `DQN`.  Checkpoints hold all but the
    replay buffer: what is loaded goes on after learning_starts new transitions.  What is learned depends on who is
    faster, so that no run repeats another.  Raises InputError for anything that cannot work.

    >>> agent = ApeX("CartPole-v1", actors=2, seed=0).learn(50_000)
    """

    algorithm = "apex"
    config: ApeXConfig
    config_class = ApeXConfig
    masks = False

    def __init__(self, env: Env, config: ApeXConfig | None = None, **overrides: Any) -> None:
        if not isinstance(env, (str, EnvConfig, OnlySpaces)):
            raise InputError(f"ApeX: env must be an id or an EnvConfig, which actors make, got {type(env).__name__}")
        super().__init__(env, config, **overrides)
        self._fleet: Fleet | None = None
        self._drawn: Drawn | None = None
        self._numbers = {"updates_per_s": 0.0, "sample_age": 0.0, "policy_lag": 0.0, "replay_ratio": 0.0}
        self._numbers |= {"lost_actors": 0, "lost_shards": 0, "lost_transitions": 0, "stale_priorities": 0}
        self._marked = self.steps, self.n_updates, 0.0

    @property
    def epsilon(self) -> float:
        """The mean over all environments; with `noisy` 0."""
        return 0.0 if self.config.noisy else float(epsilons(self.config).mean())

    def _replay(self, action_space: Any) -> Any:
        return None  # the shards have it

    def learn(self: A, *args: Any, **kwargs: Any) -> A:
        """As `Agent.learn`; without `address` Ray is started on this machine and stopped at the end.

        `on_step` of callbacks comes after every chunk, and has no transition.
        """
        import_ray("ApeX")
        with ExitStack() as self._running:
            try:
                return super().learn(*args, **kwargs)
            finally:
                fleet, self._fleet, self._drawn = self._fleet, None, None
                if fleet is not None:
                    with suppress(Exception):  # what ended the run says more than a cluster that is gone
                        fleet.close()

    def _begin(self, schedule_steps: int) -> None:
        super()._begin(schedule_steps)
        c, ray = self.config, import_ray("ApeX")
        self._running.enter_context(connected(ray, c.address, c.actors + 1))
        spaces = self.envs.observation_space, self.envs.action_space
        self._fleet = Fleet(ray, c, self._made_from, self._network, spaces)
        self._broadcast(self._fleet)
        self._limit(self._fleet)
        self._marked = self.steps, self.n_updates, time.perf_counter()

    def _limit(self, fleet: Fleet) -> None:
        """Begin to count what is played and what is drawn: batch_size updates / train_every draws of each transition.

        Until learning_starts transitions are held again nothing is drawn.
        """
        c, per = self.config, self.config.chunk * self.config.num_envs
        ratio = c.batch_size * c.updates / c.train_every
        self._wanted = max(1, min(c.learning_starts, c.buffer_size // 2))
        missing = max(1, self._wanted - fleet.held)
        tolerance = max(1.0, ratio) * per * AHEAD * c.actors + c.batch_size * c.prefetch
        self._limiter = SampleToInsertRatio(ratio, min_size=missing, tolerance=tolerance)

    def _broadcast(self, fleet: Fleet) -> None:
        vector = self.online.vector
        fleet.broadcast(self.n_updates, vector.copy() if self._cpu else vector.cpu().numpy())

    def _iterate(self) -> None:
        """Ask for chunks and batches as the limiter allows, update on what is here, and hear what has come."""
        c, fleet = self.config, self._fleet
        assert fleet is not None
        if fleet.refill:
            fleet.refill = False
            self._limit(fleet)
        while (actor := fleet.idle_actor()) and self._limiter.insert(c.chunk * c.num_envs, timeout=0.0):
            fleet.collect(actor, self.steps)
        if fleet.held >= self._wanted:
            fleet.request()
        busy = False
        for _ in range(c.prefetch):
            if not fleet.drawn or not self._limiter.sample(c.batch_size, timeout=0.0):
                break
            self._drawn, busy = fleet.drawn.popleft(), True
            self._update()
            if self.n_updates % c.broadcast_every == 0:
                self._broadcast(fleet)
        fleet.flush()
        for report in fleet.poll(0.0 if busy else 0.1):
            self.steps += report.transitions
            self._numbers["policy_lag"] = self.n_updates - report.version
            self.envs.ended = report.episodes
            self.envs.episodes += len(report.episodes)
            self.envs.recent.extend(report.episodes)
            if self.on_step is not None:
                self.on_step()

    def _sample(self) -> Batch:
        """The next batch, which nothing writes to: Ray's arrays are shared with other processes."""
        assert self._drawn is not None
        c, b, held = self.config, self._drawn.batch, self._drawn.shard.held
        self._numbers["sample_age"] = float(held.added - b.indices.mean()) * c.shards
        done = min(1.0, self.steps / (c.per_beta_steps or self.schedule_steps))
        beta = c.per_beta + (c.per_beta_end - c.per_beta) * done
        weights = (b.weights / b.weights.max()) ** np.float32(beta)
        b = b._replace(obs=self._inputs(b.obs), next_obs=self._inputs(b.next_obs), weights=weights)
        return b if self._cpu else Batch(*(on_device(x.copy(), self.device) for x in b))

    @property
    def _weighted(self) -> bool:
        return True

    def _prioritize(self, batch: Batch, errors: Any) -> None:
        assert self._fleet is not None and self._drawn is not None
        self._fleet.prioritize(self._drawn, errors if self._cpu else errors.cpu().numpy())

    def metrics(self) -> dict[str, float]:
        """DQN's, and the rates: updates a second, transitions since those of the last batch were played, updates since
        the weights of the last chunk, draws of each transition; and what was lost."""
        if self._fleet is not None:
            now, (_, updates, then) = time.perf_counter(), self._marked
            if now > then + 1.0:
                self._numbers["updates_per_s"] = round((self.n_updates - updates) / (now - then), 1)
                self._marked = self.steps, self.n_updates, now
            lost = self._fleet.lost
            self._numbers |= {"lost_actors": lost.actors, "lost_shards": lost.shards}
            self._numbers |= {"lost_transitions": lost.transitions, "stale_priorities": lost.stale}
        ratio = self.n_updates * self.config.batch_size / self.steps if self.steps else 0.0
        return {**super().metrics(), **self._numbers, "replay_ratio": round(ratio, 2)}
