"""Processes that train one set of parameters together without locks (Recht et al. 2011, Hogwild!, arXiv:1106.5730)."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.config import InputError

LOOK_EVERY = 0.2  # seconds
PATIENCE = 5.0  # seconds for the workers to end by themselves


class Shared:
    """Memory of this process and of those that it forks; it goes with the last of them, however that ends.

    vector, square_avg: the parameters and the optimizer's statistics, float32 ``[P]``.
    steps, updates: of each worker, int64 ``[workers]``, which nobody else writes.
    """

    def __init__(self, size: int, workers: int) -> None:
        memory = mmap.mmap(-1, 8 * size + 16 * workers + 8)
        floats: NDArray[np.float32] = np.frombuffer(memory, np.float32, 2 * size)
        self.vector, self.square_avg = floats[:size], floats[size:]
        numbers: NDArray[np.int64] = np.frombuffer(memory, np.int64, 2 * workers + 1, 8 * size)
        self.steps, self.updates, self._stop = numbers[:workers], numbers[workers:-1], numbers[-1:]

    @property
    def stopped(self) -> bool:
        return bool(self._stop[0])

    def stop(self) -> None:
        self._stop[0] = 1


class _Worker(NamedTuple):
    number: int
    process: ForkProcess
    pipe: Connection


class Workers:
    """Processes 1 .. n - 1, beside this one, which is 0; `watch` says what became of them.

    `work(index)`: what each does until `shared.stopped`; it is forked, so it sees what this process has.
    """

    def __init__(self, shared: Shared, work: Callable[[int], None], *, timeout: float) -> None:
        self.shared, self._timeout = shared, timeout
        self._workers = [_start(index, work) for index in range(1, len(shared.steps))]
        now = time.monotonic()
        self._seen = [(steps, now) for steps in shared.steps.tolist()]
        self._next_look = now

    def watch(self) -> None:
        """Now and then: warn of workers that are dead or hang, and go on without them; raise what one has raised."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY
        for worker in list(self._workers):
            _raise_error(worker)
            steps, since = self._seen[worker.number]
            if self.shared.steps[worker.number] != steps:
                self._seen[worker.number] = int(self.shared.steps[worker.number]), now
            elif not worker.process.is_alive():
                _raise_error(worker)  # sent since
                self._go_on_without(worker, f"has died ({_cause(worker.process.exitcode)})")
            elif now - since > self._timeout:
                worker.process.kill()
                self._go_on_without(worker, f"has taken no step for {self._timeout:g} s and is ended (worker_timeout)")

    def _go_on_without(self, worker: _Worker, what: str) -> None:
        self._workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        left, all_ = len(self._workers) + 1, len(self.shared.steps)
        warnings.warn(f"worker {worker.number} {what}; training goes on with {left} of {all_}", stacklevel=4)

    def end(self) -> None:
        """End all of them, those that hang by force; none is left afterwards."""
        self.shared.stop()
        until = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers.clear()


def _start(index: int, work: Callable[[int], None]) -> _Worker:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(index, work, theirs), daemon=True)
    with warnings.catch_warnings():  # of Python 3.12, that there are threads: the progress bar's and the logs'
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    return _Worker(index, process, ours)


def _run(index: int, work: Callable[[int], None], pipe: Connection) -> None:
    """In the new process."""
    for name in ("SIGINT", "SIGHUP"):  # they go to all; the first process ends the others
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # the first process has said it
    try:
        work(index)
    except Exception as error:
        text = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            pipe.send((isinstance(error, InputError), text, type(error).__name__))
        os._exit(1)


def _raise_error(worker: _Worker) -> None:
    if not worker.pipe.poll():
        return
    with contextlib.suppress(EOFError):
        ours, text, kind = worker.pipe.recv()
        raise InputError(f"worker {worker.number}: {text if ours else f'{kind}: {text}'}")


def _cause(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
