"""The processes of a run as the learner sees them: what is under way, what has come, and who has died.

All waits are bounded.  An actor or shard that dies is replaced, and what was lost with it is counted.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrl.agents.hyperparameters.distributed import ApeXConfig
from fastrl.distributed.actor import Actor, Report
from fastrl.distributed.shard import Chunk, Held, Shard
from fastrl.replay import Batch

AHEAD = 2  # calls under way to each actor, so that none waits for the learner, and requests for batches


@dataclass
class Lost:
    """What faults have cost since the run began."""

    actors: int = 0
    shards: int = 0
    transitions: int = 0
    stale: int = 0
    """Priorities of transitions that had been overwritten, which is no fault."""


@dataclass
class _Member:
    """A process: an actor or a shard."""

    kind: str
    number: int
    handle: Any
    calls: int = 0
    """Under way."""
    held: Held = field(default_factory=lambda: Held(0, 0, 0.0))
    """Of a shard."""


class Drawn:
    """A batch, and from which shard it is."""

    def __init__(self, batch: Batch, shard: _Member) -> None:
        self.batch, self.shard = batch, shard


class Fleet:
    """Actors and shards on Ray.

    `env`, `network`: of the actors; `spaces`: of observations and actions, as the shards hold them.
    """

    def __init__(self, ray: Any, config: ApeXConfig, env: Any, network: Any, spaces: tuple[Any, Any]) -> None:
        self._ray, self.config, self._spaces = ray, config, spaces
        self._actor_class = ray.remote(num_cpus=1, max_restarts=0)(Actor)
        # The learner has one of the threads at a time: the others serve while it waits for a lock.
        self._shard_class = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=4)(Shard)
        self._made_of = ray.put((env, network))
        self._made = 0
        self.lost = Lost()
        self.drawn: deque[Drawn] = deque()
        self.refill = False
        """Have transitions been lost since this was last set to False?"""
        self._pending: dict[Any, tuple[str, _Member, Any]] = {}  # what is called, whom, and what for
        self._weights: Any = None
        self._rng = np.random.default_rng([config.seed, 3])
        self.actors = [self._new("actor", i) for i in range(config.actors)]
        self.shards = [self._new("shard", i) for i in range(config.shards)]
        self._requests = 0
        self._next_shard = 0
        self._errors: dict[int, list[tuple[Any, Any]]] = {}  # by shard, to be sent
        self._deaths = 0  # since the last sign of life
        self._last_sign = time.monotonic()

    def _new(self, kind: str, number: int) -> _Member:
        c, self._made = self.config, self._made + 1
        seed = int(np.random.SeedSequence([c.seed, 4, self._made]).generate_state(1, np.uint64)[0] >> 1)
        if kind == "shard":
            return _Member(kind, number, self._shard_class.remote(c, *self._spaces, seed))
        return _Member(kind, number, self._actor_class.remote(self._made_of, c, number, seed))

    @property
    def held(self) -> int:
        """Transitions that can be drawn."""
        return sum(shard.held.size for shard in self.shards)

    def broadcast(self, version: int, vector: Any) -> None:
        """Let the next chunks be played with these weights."""
        self._weights = self._ray.put((version, vector))

    def idle_actor(self) -> _Member | None:
        """The one with the fewest calls under way, unless all have enough."""
        actor = min(self.actors, key=lambda a: a.calls)
        return actor if actor.calls < AHEAD else None

    def collect(self, actor: _Member, steps: int) -> None:
        """Ask for a chunk."""
        report, chunk = actor.handle.collect.options(num_returns=2).remote(steps, self._weights)
        self._call("collect", actor, report, (chunk, steps))

    def request(self) -> None:
        """Ask for batches, of a shard in proportion to its total, until enough are under way."""
        c = self.config
        while self._requests < AHEAD and len(self.drawn) <= c.prefetch and self.held:
            totals = np.array([shard.held.total for shard in self.shards])
            shard = self.shards[self._rng.choice(len(totals), p=totals / totals.sum())]
            self._requests += 1
            self._call("sample", shard, shard.handle.sample.remote(c.batch_size, c.prefetch), None)

    def prioritize(self, drawn: Drawn, errors: Any) -> None:
        """Keep the TD errors of a batch for `flush`."""
        self._errors.setdefault(drawn.shard.number, []).append((drawn, errors))

    def flush(self) -> None:
        """Send the TD errors that are kept, in one message a shard."""
        for number, kept in self._errors.items():
            shard = self.shards[number]
            of_it = [(d.batch.indices, errors) for d, errors in kept if d.shard is shard]  # others died with theirs
            if of_it:
                indices, errors = (np.concatenate(x) for x in zip(*of_it, strict=True))
                self._call("update", shard, shard.handle.update.remote(indices, errors), None)
        self._errors.clear()

    def _call(self, what: str, member: _Member, ref: Any, about: Any) -> None:
        self._pending[ref] = what, member, about
        member.calls += 1

    def poll(self, timeout: float) -> list[Report]:
        """What has come meanwhile, waiting for the first for `timeout` seconds.

        Raises what a call raised (an error of the environment), and RuntimeError if nothing lives any more, or if what
        was raised cannot be sent to this process.
        """
        ray, reports = self._ray, []
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout) if self._pending else ([], [])
        if not self._pending:
            time.sleep(timeout)
        if ready:
            ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        elif time.monotonic() - self._last_sign > self.config.timeout:
            raise RuntimeError(
                f"no actor and no shard has answered for {self.config.timeout:g} s (timeout); has the cluster "
                f"{self.config.actors} free CPUs?"
            )
        for ref in ready:
            what, member, about = self._pending.pop(ref)
            member.calls -= 1
            self._requests -= what == "sample"
            try:
                value = ray.get(ref, timeout=60)
            except ray.exceptions.RayError as error:
                self._raised(what, member, about, error)
            else:
                self._deaths, self._last_sign = 0, time.monotonic()
                if what == "collect":
                    reports.append(value)
                    self._store(about[0], value.transitions)
                else:
                    self._answered(what, member, value)
        return reports

    def _answered(self, what: str, shard: _Member, value: Any) -> None:
        if what == "update":
            self.lost.stale += value
            return
        shard.held = value if what == "add" else value[0]
        if what == "sample" and shard is self.shards[shard.number]:
            size = self.config.batch_size
            for i in range(self.config.prefetch):
                self.drawn.append(Drawn(Batch(*(x[i * size : (i + 1) * size] for x in value[1])), shard))

    def _store(self, chunk: Chunk, transitions: int) -> None:
        """Pass a chunk on, without having it here, to the shards in turn."""
        shard = self.shards[self._next_shard % len(self.shards)]
        self._next_shard += 1
        self._call("add", shard, shard.handle.add.remote(chunk), (chunk, transitions))

    def _raised(self, what: str, member: _Member, about: Any, error: Any) -> None:
        """Go on without what a fault of the machines has cost; raise what the call itself raised."""
        faults = self._ray.exceptions
        cause = error.cause if isinstance(error, faults.RayTaskError) else error
        why = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if isinstance(error, faults.RayActorError):
            self._failed(what, member, about, why, gone=True)
        elif isinstance(cause, (faults.RayActorError, faults.ObjectLostError, faults.GetTimeoutError)):
            self._failed(what, member, about, why, gone=False)  # the store has lost what it was called with, or gave
        elif isinstance(cause, faults.RayError):  # one of the environment's, perhaps, that does not travel
            raise RuntimeError(f"{member.kind} {member.number}: {cause}") from None
        else:
            raise cause from None

    def close(self) -> None:
        """End all actors and shards, also where somebody still holds them."""
        for member in (*self.actors, *self.shards):
            self._ray.kill(member.handle)

    def _failed(self, what: str, member: _Member, about: Any, why: str, gone: bool) -> None:
        """Replace who died, and call again what can be."""
        group = self.actors if member.kind == "actor" else self.shards
        if gone and group[member.number] is member:
            self._deaths += 1
            if self._deaths > 10 * (len(self.actors) + len(self.shards)):
                raise RuntimeError(
                    f"{self._deaths} actors and shards have died one after another without an answer, the last: {why}"
                )
            group[member.number] = self._new(member.kind, member.number)
            if member.kind == "actor":
                self.lost.actors += 1
            else:
                self.lost.shards += 1
                self.lost.transitions += member.held.size
                self.refill = True
                self.drawn = deque(d for d in self.drawn if d.shard is not member)
            warnings.warn(f"{member.kind} {member.number} has died and was replaced: {why}", stacklevel=2)
        if what == "collect":
            self.collect(self.actors[member.number], about[1])
        elif what == "add" and gone:
            self._store(*about)
        elif what == "add":
            self.lost.transitions += about[1]
            self.refill = True
