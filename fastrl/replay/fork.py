"""After fork a child must not find a buffer's lock held by a thread that it does not have, nor half a transition."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_buffers: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.RLock()  # one fork at a time
_held: list[Any] = []


def hold(buffer: Any) -> None:
    """Take `buffer._lock` before each fork and give it back after, in parent and child."""
    _buffers.add(buffer)


def _before() -> None:
    _lock.acquire()
    for buffer in list(_buffers):
        buffer._lock.acquire()
        _held.append(buffer._lock)


def _after() -> None:
    while _held:
        _held.pop().release()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
