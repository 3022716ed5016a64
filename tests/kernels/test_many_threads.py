"""Many threads in many kernels: every result is the one that was computed alone, bit for bit."""

import sys
import threading
import time

import numpy as np
import pytest
from kernel_calls import Shared, shared, steps

import fastrl


def parts(found):
    return [np.asarray(x) for x in (found if isinstance(found, tuple) else (found,)) if x is not None]


def many_threads(threads, seconds):
    """Calls and values compared."""
    replay, common = Shared(), shared()
    work = [[(call, [x.copy() for x in parts(call())]) for call in steps(i) + common] for i in range(threads)]
    stop, errors, calls, values = time.monotonic() + seconds, [], [0] * threads, [0] * threads

    def run(i):
        try:
            while time.monotonic() < stop and not errors:
                for call, wanted in work[i]:
                    found = parts(call())
                    assert len(found) == len(wanted)
                    for x, y in zip(found, wanted, strict=True):
                        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), (i, x, y)
                        values[i] += x.size
                replay.add()
                values[i] += replay.draw()
                calls[i] += len(work[i]) + 3
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    before, interval = fastrl.get_num_threads(), sys.getswitchinterval()
    fastrl.set_num_threads(2)
    sys.setswitchinterval(1e-4)
    try:
        for thread in started:
            thread.start()
        for thread in started:
            thread.join(seconds + 300)
    finally:
        fastrl.set_num_threads(before)
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in started), "a thread hangs"
    if errors:
        raise errors[0]
    assert all(calls)
    return sum(calls), sum(values)


def test_threads_compute_what_one_does():
    many_threads(4, 0.5)


@pytest.mark.long
@pytest.mark.parametrize("threads", [4, 64])
def test_threads_for_a_minute(threads, report):
    calls, values = many_threads(threads, 60)
    report(f"{calls} calls of {threads} threads, {values} values, each the one computed alone")
