"""What a fork must not break.

A lock that another thread holds is copied locked, and what it guards half written: so the forking thread takes all
locks first, and both sides let go of them.  Random streams that nobody seeded would repeat the parent's numbers in the
child: they get new seeds.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


class _Living:
    """Weak references to objects; other threads may add and drop some meanwhile."""

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[Any]] = {}

    def add(self, item: Any) -> None:
        key = id(item)
        self._references[key] = weakref.ref(item, lambda _: self._references.pop(key, None))

    def discard(self, item: Any) -> None:
        self._references.pop(id(item), None)

    def all(self) -> list[Any]:
        found = [reference() for reference in list(self._references.values())]
        return [item for item in found if item is not None]


guarded = _Living()  # with acquire() -> bool and release(), as a threading.Lock has them
outer = _Living()  # likewise, but of objects that use guarded ones under it: taken first
unseeded = _Living()  # with reseed()
children = _Living()  # with after_fork(), for the child

_forking = threading.Lock()  # one thread at a time: two could take the others in different orders
_held: list[Any] = []


def _before() -> None:
    _forking.acquire()
    # The newest first: a tree holds its lock while it asks for that of the random streams, which is older.
    _held.extend(lock for lock in (*outer.all(), *reversed(guarded.all())) if lock.acquire())


def _after() -> None:
    while _held:
        _held.pop().release()
    _forking.release()


def _after_in_child() -> None:
    _after()
    for stream in unseeded.all():
        stream.reseed()
    for item in children.all():
        item.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
