"""The actors of a run as the learner sees them: what is under way, what has come, and who has died.

All waits are bounded.  Who dies, or does not answer for `timeout` seconds, is replaced, and what was lost is counted.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrl.distributed.actor import Actor
from fastrl.distributed.shard import Held

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
class Member:
    """A process: an actor or a shard."""

    kind: str
    number: int
    handle: Any
    calls: int = 0
    """Under way."""
    waited: float = 0.0
    """Since when an answer is waited for."""
    held: Held = field(default_factory=lambda: Held(0, 0, 0.0))
    """Of a shard."""


class Fleet:
    """Actors on Ray.

    `made_of`: the class of their player, environment and network; `steps`: those that were done before, so that a run
    that goes on plays other episodes than it began with.
    """

    def __init__(self, ray: Any, config: Any, made_of: tuple[Any, Any, Any], steps: int = 0) -> None:
        self._ray, self.config, self._steps = ray, config, steps
        self._actor_class = ray.remote(num_cpus=1, max_restarts=0)(Actor)
        self._made_of = ray.put(made_of)
        self._made = 0
        self.lost = Lost()
        self._pending: dict[Any, tuple[str, Member, Any]] = {}  # what is called, whom, and what for
        self._weights: Any = None
        self._deaths = 0  # since the last sign of life
        self._last_sign = time.monotonic()
        self.actors = [self._new("actor", i) for i in range(config.actors)]

    def _new(self, kind: str, number: int) -> Member:
        c, self._made = self.config, self._made + 1
        seed = int(np.random.SeedSequence([c.seed, 4, self._made, self._steps]).generate_state(1, np.uint64)[0] >> 1)
        return Member(kind, number, self._start(kind, number, seed))

    def _start(self, kind: str, number: int, seed: int) -> Any:
        return self._actor_class.remote(self._made_of, self.config, number, seed)

    def _members(self) -> list[Member]:
        return self.actors

    def _group(self, member: Member) -> list[Member]:
        return self.actors

    def broadcast(self, version: int, vector: Any) -> None:
        """Let the next chunks be played with these weights."""
        self._weights = self._ray.put((version, vector))

    @property
    def calls(self) -> int:
        """How many are under way."""
        return len(self._pending)

    def idle_actor(self) -> Member | None:
        """The one with the fewest calls under way, unless all have enough."""
        actor = min(self.actors, key=lambda a: a.calls)
        return actor if actor.calls < AHEAD else None

    def collect(self, actor: Member, steps: int) -> None:
        """Ask for a chunk."""
        self._call("collect", actor, actor.handle.collect.remote(steps, self._weights), steps)

    def _call(self, what: str, member: Member, ref: Any, about: Any) -> None:
        if not self._pending:  # nobody has been asked since the last sign, however long the learner took
            self._last_sign = time.monotonic()
        self._pending[ref] = what, member, about
        if not member.calls:
            member.waited = time.monotonic()
        member.calls += 1

    def poll(self, timeout: float) -> list[Any]:
        """What actors have answered meanwhile, waiting for the first for `timeout` seconds.

        Raises what a call raised (an error of the environment), and RuntimeError if nothing lives any more, or if what
        was raised cannot be sent to this process.
        """
        ray, answers = self._ray, []
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
            member.waited = time.monotonic()
            try:
                value = ray.get(ref, timeout=60)
            except ray.exceptions.RayError as error:
                self._raised(what, member, about, error)
            else:
                self._deaths, self._last_sign = 0, time.monotonic()
                answers += self._answered(what, member, about, value)
        self._end_who_hangs()
        return answers

    def _answered(self, what: str, member: Member, about: Any, value: Any) -> list[Any]:
        """Take an answer in; what of it is for the learner."""
        return [value]

    def _end_who_hangs(self) -> None:
        """Kill members that owe an answer for too long; their calls then fail like those of any that has died."""
        now, limit = time.monotonic(), self.config.timeout
        for member in self._members():
            if member.calls and now - member.waited > limit:
                warnings.warn(
                    f"{member.kind} {member.number} has not answered for {limit:g} s (timeout) and is ended",
                    stacklevel=2,
                )
                member.waited = now
                self._ray.kill(member.handle)

    def _raised(self, what: str, member: Member, about: Any, error: Any) -> None:
        """Go on without what a fault of the machines has cost; raise what the call itself raised."""
        faults = self._ray.exceptions
        cause = error.cause if isinstance(error, faults.RayTaskError) else error
        why = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        # Of a process that Ray has killed for its memory there is no RayActorError.
        if isinstance(error, (faults.RayActorError, faults.OutOfMemoryError, faults.WorkerCrashedError)):
            self._failed(what, member, about, why, gone=True)
        elif isinstance(cause, (faults.RayActorError, faults.ObjectLostError, faults.GetTimeoutError)):
            self._failed(what, member, about, why, gone=False)  # the store has lost what it was called with, or gave
        elif isinstance(cause, faults.RayError):  # one of the environment's, perhaps, that does not travel
            raise RuntimeError(f"{member.kind} {member.number}: {cause}") from None
        else:
            raise cause from None

    def _failed(self, what: str, member: Member, about: Any, why: str, gone: bool) -> None:
        """Replace who died, and call again what can be."""
        group = self._group(member)
        if gone and group[member.number] is member:
            self._deaths += 1
            if self._deaths > 10 * len(self._members()):
                raise RuntimeError(
                    f"{self._deaths} actors and shards have died one after another without an answer, the last: {why}"
                )
            group[member.number] = self._new(member.kind, member.number)
            self._died(member)
            warnings.warn(f"{member.kind} {member.number} has died and was replaced: {why}", stacklevel=2)
        self._call_again(what, member, about, gone)

    def _died(self, member: Member) -> None:
        self.lost.actors += 1

    def _call_again(self, what: str, member: Member, about: Any, gone: bool) -> None:
        self.collect(self.actors[member.number], about)

    def close(self) -> None:
        """End all, also where somebody still holds them."""
        for member in self._members():
            self._ray.kill(member.handle)
