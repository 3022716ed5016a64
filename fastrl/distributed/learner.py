"""What the agents on Ray share: the cluster, their actors and the rates; and those with a replay buffer their loop."""

from __future__ import annotations

import time
from abc import abstractmethod
from contextlib import ExitStack, suppress
from typing import Any, ClassVar, TypeVar

import numpy as np

from fastrl.agents.agent import Agent, C, Env
from fastrl.agents.arrays import on_device, to_numpy
from fastrl.agents.config import InputError
from fastrl.agents.env_config import EnvConfig
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.agents.spaces import OnlySpaces
from fastrl.distributed.actor import Explorer, Report
from fastrl.distributed.cluster import connected, import_ray
from fastrl.distributed.fleet import AHEAD, Fleet
from fastrl.distributed.replay import Drawn, ReplayFleet
from fastrl.distributed.shard import Shard
from fastrl.replay import Batch, SampleToInsertRatio

A = TypeVar("A", bound="Learner[Any]")


class Learner(Agent[C]):
    """Base of the agents on Ray: actors play in processes of their own, this one learns."""

    player_class: ClassVar[Any]  # a `Player`, which the actors make

    def __init__(self, env: Env, config: C | None = None, **overrides: Any) -> None:
        this = type(self).__name__
        if not isinstance(env, (str, EnvConfig, OnlySpaces)):
            raise InputError(f"{this}: env must be an id or an EnvConfig, which actors make, got {type(env).__name__}")
        super().__init__(env, config, **overrides)
        self._fleet: Any = None
        self._numbers: dict[str, float] = {"updates_per_s": 0.0, "policy_lag": 0.0, "lost_actors": 0}
        self._marked = self.n_updates, 0.0

    def learn(self: A, *args: Any, **kwargs: Any) -> A:
        """As `Agent.learn`; without `address` Ray is started on this machine and stopped at the end.

        `on_step` of callbacks comes after every chunk, and has no transition.
        """
        import_ray(type(self).__name__)
        with ExitStack() as self._running:
            try:
                return super().learn(*args, **kwargs)
            finally:
                fleet, self._fleet = self._fleet, None
                if fleet is not None:
                    with suppress(Exception):  # what ended the run says more than a cluster that is gone
                        fleet.close()

    def _begin(self, schedule_steps: int) -> None:
        super()._begin(schedule_steps)
        c: Any = self.config
        ray = import_ray(type(self).__name__)
        self._running.enter_context(connected(ray, c.address, c.actors + 1))
        self._fleet = self._make_fleet(ray, (self.player_class, self._made_from, self._network))
        self._broadcast()
        self._marked = self.n_updates, time.perf_counter()

    def _make_fleet(self, ray: Any, made_of: tuple[Any, Any, Any]) -> Fleet:
        return Fleet(ray, self.config, made_of, self.steps)

    @abstractmethod
    def _sent(self) -> list[Any]:
        """The vectors of weights, one after another, that `player_class` takes."""

    def _broadcast(self) -> None:
        self._fleet.broadcast(self.n_updates, np.concatenate([to_numpy(vector) for vector in self._sent()]))

    def _updated(self) -> None:
        """After an update: send the weights if that is due."""
        c: Any = self.config
        if self.n_updates % c.broadcast_every == 0:
            self._broadcast()

    def _hear(self, report: Report) -> None:
        """Count what an actor has played."""
        self.steps += report.transitions
        self._numbers["policy_lag"] = self.n_updates - report.version
        self.envs.ended = report.episodes
        self.envs.episodes += len(report.episodes)
        self.envs.recent.extend(report.episodes)
        if self.on_step is not None:
            self.on_step()

    def metrics(self) -> dict[str, float]:
        """Those of the algorithm, and the rates: updates a second, updates since the weights of the last chunk; and
        what was lost."""
        if self._fleet is not None:
            now, (updates, then) = time.perf_counter(), self._marked
            if now > then + 1.0:
                self._numbers["updates_per_s"] = round((self.n_updates - updates) / (now - then), 1)
                self._marked = self.n_updates, now
            self._numbers["lost_actors"] = self._fleet.lost.actors
        return {**super().metrics(), **self._numbers}


class ReplayLearner(Learner[C], OffPolicyAgent[C]):
    """Base of the agents on Ray with shards of a prioritized replay buffer."""

    player_class: ClassVar[type[Explorer]]
    shard_class: ClassVar[type[Shard]] = Shard
    masks = False

    def __init__(self, env: Env, config: C | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        self._drawn: Drawn | None = None
        self._numbers |= {"sample_age": 0.0, "replay_ratio": 0.0}
        self._numbers |= {"lost_shards": 0, "lost_transitions": 0, "stale_priorities": 0}

    def _replay(self, action_space: Any) -> Any:
        self._spaces = self.envs.observation_space, action_space
        return None  # the shards have it

    def _make_fleet(self, ray: Any, made_of: tuple[Any, Any, Any]) -> Fleet:
        fleet = ReplayFleet(ray, self.config, made_of, (self.shard_class, *self._spaces), self.steps)
        self._limit(fleet)
        return fleet

    def _sent(self) -> list[Any]:
        return [getattr(self, name).vector for name in self.player_class.networks]

    def _limit(self, fleet: ReplayFleet) -> None:
        """Begin to count what is played and what is drawn: batch_size updates / train_every draws of each transition.

        Until learning_starts transitions are held again nothing is drawn.
        """
        c: Any = self.config
        per = c.chunk * c.num_envs
        ratio = c.batch_size * c.updates / c.train_every
        self._wanted = max(1, min(c.learning_starts, c.buffer_size // 2))
        missing = max(1, self._wanted - fleet.held)
        tolerance = max(1.0, ratio) * per * AHEAD * c.actors + c.batch_size * c.prefetch
        self._limiter = SampleToInsertRatio(ratio, min_size=missing, tolerance=tolerance)

    def _iterate(self) -> None:
        """Ask for chunks and batches as the limiter allows, update on what is here, and hear what has come."""
        c: Any = self.config
        fleet: ReplayFleet = self._fleet
        if fleet.refill:
            fleet.refill = False
            self._limit(fleet)
        stuck = not (fleet.drawable or fleet.calls)  # who has nothing to draw must not wait for the draws
        while (actor := fleet.idle_actor()) and (self._limiter.insert(c.chunk * c.num_envs, timeout=0.0) or stuck):
            fleet.collect(actor, self.steps)
        if fleet.held >= self._wanted:
            fleet.request()
        busy = False
        for _ in range(c.prefetch):
            if not fleet.drawn or not self._limiter.sample(c.batch_size, timeout=0.0):
                break
            self._drawn, busy = fleet.drawn.popleft(), True
            self._update()
            self._updated()
        self._drawn = None
        fleet.flush()
        for report in fleet.poll(0.0 if busy else 0.1):
            self._hear(report)

    def _sample(self) -> Any:
        """The next batch, which nothing writes to: Ray's arrays are shared with other processes."""
        assert self._drawn is not None
        c: Any = self.config
        b, held = self._drawn.batch, self._drawn.shard.held
        self._numbers["sample_age"] = float(held.added - b.indices.mean()) * c.shards
        done = min(1.0, self.steps / (c.per_beta_steps or self.schedule_steps))
        beta = c.per_beta + (c.per_beta_end - c.per_beta) * done
        weights = (b.weights / b.weights.max()) ** np.float32(beta)
        b = self._as_inputs(b._replace(weights=weights))
        return b if self._cpu else Batch(*(on_device(x.copy(), self.device) for x in b))

    def _as_inputs(self, b: Any) -> Any:
        """The batch with observations as the networks take them."""
        return b._replace(obs=self._inputs(b.obs), next_obs=self._inputs(b.next_obs))

    @property
    def _weighted(self) -> bool:
        return True

    def _prioritize(self, batch: Batch, errors: Any) -> None:
        assert self._drawn is not None
        self._fleet.prioritize(self._drawn, to_numpy(errors))

    def metrics(self) -> dict[str, float]:
        """Those of the algorithm, and the rates: updates a second, transitions since those of the last batch were
        played, updates since the weights of the last chunk, draws of each transition; and what was lost."""
        if self._fleet is not None:
            lost = self._fleet.lost
            self._numbers |= {"lost_shards": lost.shards, "lost_transitions": lost.transitions}
            self._numbers["stale_priorities"] = lost.stale
        c: Any = self.config
        ratio = self.n_updates * c.batch_size / self.steps if self.steps else 0.0
        return {**super().metrics(), "replay_ratio": round(ratio, 2)}
