"""Actors, and the shards of a replay buffer, as the learner sees them."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from fastrl.distributed.actor import Report
from fastrl.distributed.fleet import AHEAD, Fleet, Member
from fastrl.distributed.shard import Chunk


class Drawn:
    """A batch, and from which shard it is."""

    def __init__(self, batch: Any, shard: Member) -> None:
        self.batch, self.shard = batch, shard


class ReplayFleet(Fleet):
    """Actors and shards on Ray: chunks go from the ones to the others without passing through the learner.

    `made_of`, `steps`: as of `Fleet`; `shard`: its class, and the spaces of observations and actions as it holds them.
    """

    def __init__(
        self, ray: Any, config: Any, made_of: tuple[Any, Any, Any], shard: tuple[Any, Any, Any], steps: int = 0
    ) -> None:
        super().__init__(ray, config, made_of, steps)
        # The learner has one of the threads at a time: the others serve while it waits for a lock.
        self._shard_class = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=4)(shard[0])
        self._spaces = shard[1:]
        self.drawn: deque[Drawn] = deque()
        self.refill = False
        """Have transitions been lost since this was last set to False?"""
        self._rng = np.random.default_rng([config.seed, 3, steps])
        self._requests: set[Any] = set()
        self._next_shard = 0
        self._errors: dict[int, list[tuple[Any, Any]]] = {}  # by shard, to be sent
        self.shards = [self._new("shard", i) for i in range(config.shards)]

    def _start(self, kind: str, number: int, seed: int) -> Any:
        if kind == "shard":
            return self._shard_class.remote(self.config, *self._spaces, seed)
        return super()._start(kind, number, seed)

    def _members(self) -> list[Member]:
        return [*self.actors, *self.shards]

    def _group(self, member: Member) -> list[Member]:
        return self.shards if member.kind == "shard" else self.actors

    @property
    def held(self) -> int:
        """Transitions that can be drawn."""
        return sum(shard.held.size for shard in self.shards)

    @property
    def drawable(self) -> bool:
        """Does a shard hold what has a priority?  Not where no episode has outlasted the burn-in of R2D2."""
        return any(shard.held.total > 0 for shard in self.shards)

    def collect(self, actor: Member, steps: int) -> None:
        """Ask for a chunk."""
        report, chunk = actor.handle.collect.options(num_returns=2).remote(steps, self._weights)
        self._call("collect", actor, report, (chunk, steps))

    def request(self) -> None:
        """Ask for batches, of a shard in proportion to its total, until enough are under way."""
        c = self.config
        self._requests &= self._pending.keys()
        if not self.drawable:
            return
        totals = np.array([shard.held.total for shard in self.shards])
        while len(self._requests) < AHEAD and len(self.drawn) <= c.prefetch:
            shard = self.shards[self._rng.choice(len(totals), p=totals / totals.sum())]
            ref = shard.handle.sample.remote(c.batch_size, c.prefetch)
            self._requests.add(ref)
            self._call("sample", shard, ref, None)

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

    def _answered(self, what: str, member: Member, about: Any, value: Any) -> list[Report]:
        if what == "collect":
            self._store(about[0], value.transitions)
            return [value]
        if what == "update":
            self.lost.stale += value
            return []
        held = value if what == "add" else value[0]
        if held.added >= member.held.added:  # answers of several threads may come out of order
            member.held = held
        if what == "sample" and member is self.shards[member.number]:
            size = self.config.batch_size
            for i in range(self.config.prefetch):
                self.drawn.append(Drawn(type(value[1])(*(x[i * size : (i + 1) * size] for x in value[1])), member))
        return []

    def _store(self, chunk: Chunk, transitions: int) -> None:
        """Pass a chunk on, without having it here, to the shards in turn."""
        shard = self.shards[self._next_shard % len(self.shards)]
        self._next_shard += 1
        self._call("add", shard, shard.handle.add.remote(chunk), (chunk, transitions))

    def _died(self, member: Member) -> None:
        if member.kind == "actor":
            super()._died(member)
            return
        self.lost.shards += 1
        self.lost.transitions += member.held.size
        self.refill = True
        self.drawn = deque(d for d in self.drawn if d.shard is not member)

    def _call_again(self, what: str, member: Member, about: Any, gone: bool) -> None:
        if what == "collect":
            super()._call_again(what, member, about[1], gone)
        elif what == "add" and gone:
            self._store(*about)
        elif what == "add":
            self.lost.transitions += about[1]
            self.refill = True
