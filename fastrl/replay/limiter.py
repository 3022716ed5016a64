"""Keeping actors and learners in step."""

from __future__ import annotations

import threading

from fastrl import _fork
from fastrl.replay.checks import check_float, check_int


class SampleToInsertRatio:
    """Makes threads that add and threads that sample wait for each other, so that neither runs ahead.

    With I transitions inserted and S sampled, E = samples_per_insert (I - min_size) - S is kept from -tolerance to
    tolerance once I >= min_size; nothing is sampled before.

    Args:
        samples_per_insert: > 0: how often each transition is to be drawn: B / (steps between batches of B).
        min_size: int >= 1: transitions to insert before the first is sampled.
        tolerance: how far E may go from 0, at least the batch and samples_per_insert times the transitions of an `add`,
            or the two wait for each other for ever.  None: 2 max(1, samples_per_insert) min_size.

    Safe from any number of threads; counts what it is told, so call it before `add` and `sample`:

    >>> import fastrl
    >>> limiter = fastrl.replay.SampleToInsertRatio(4.0, min_size=100, tolerance=500)
    >>> limiter.insert(100), limiter.sample(256), limiter.sample(256, timeout=0.0)
    (True, True, False)

    Source: Cassirer et al., "Reverb: A Framework For Experience Replay" (2021), arXiv:2102.04736, section 3.3.
    """

    def __init__(self, samples_per_insert: float, *, min_size: int, tolerance: float | None = None) -> None:
        self.samples_per_insert = check_float("samples_per_insert", samples_per_insert)
        self.min_size = check_int("min_size", min_size)
        least = max(1.0, self.samples_per_insert)
        self.tolerance = 2 * least * self.min_size if tolerance is None else check_float("tolerance", tolerance)
        if self.samples_per_insert == 0:
            raise ValueError("replay: samples_per_insert must be > 0, got 0")
        if self.tolerance < least:
            raise ValueError(f"replay: tolerance must be >= {least}, got {tolerance}")
        self.inserted = self.sampled = 0
        self._change = threading.Condition(threading.Lock())
        _fork.outer.add(self._change)

    def insert(self, n: int = 1, timeout: float | None = None) -> bool:
        """Wait until n transitions may be added, and count them; False, and nothing counted, after `timeout` seconds.

        Raises ValueError for an n that is more than `tolerance` allows at any time.
        """
        n = check_int("n", n)
        cost = n * self.samples_per_insert
        with self._change:
            if n > self.min_size and cost > 2 * self.tolerance:
                raise ValueError(f"replay: n must be <= {2 * self.tolerance / self.samples_per_insert}, got {n}")
            may = self._change.wait_for(
                lambda: self.inserted + n <= self.min_size or self._excess() + cost <= self.tolerance, timeout
            )
            if may:
                self.inserted += n
                self._change.notify_all()
            return may

    def sample(self, n: int = 1, timeout: float | None = None) -> bool:
        """Wait until n transitions may be sampled, and count them; False, and nothing counted, after `timeout` seconds.

        Raises ValueError for an n that is more than `tolerance` allows at any time.
        """
        n = check_int("n", n)
        with self._change:
            if n > 2 * self.tolerance:
                raise ValueError(f"replay: n must be <= {2 * self.tolerance}, got {n}")
            may = self._change.wait_for(
                lambda: self.inserted >= self.min_size and self._excess() - n >= -self.tolerance, timeout
            )
            if may:
                self.sampled += n
                self._change.notify_all()
            return may

    def _excess(self) -> float:
        return self.samples_per_insert * (self.inserted - self.min_size) - self.sampled
