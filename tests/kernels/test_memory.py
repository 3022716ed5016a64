"""Calls, and calls that fail, leave no memory behind."""

import gc
import os
import sys

import numpy as np
import pytest
from kernel_calls import Shared, shared, steps

import fastrl
from fastrl import _backend

pytestmark = [
    pytest.mark.skipif(_backend.CPU_BACKEND != "cpp", reason="the compiled extension does not serve here"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux says of the process's memory"),
    pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has memory of its own"),
]


def failing():
    x, flags, tree = np.zeros((3, 4), np.float32), np.zeros((3, 4), bool), fastrl.SumTree(10, seed=0)
    net, empty = fastrl.MLP((4, 8, 2), seed=0), fastrl.ReplayBuffer(5, ((2,), np.float32), ((), np.int64), seed=0)
    calls = [
        lambda: fastrl.gae(x, x[:2], x, flags, flags, gamma=0.9, lam=0.9),
        lambda: fastrl.gae(x, x, x, flags, "no", gamma=0.9, lam=0.9),
        lambda: fastrl.n_step_returns(x, x, flags, flags, gamma=0.9, n=0),
        lambda: fastrl.vtrace(x, x, x, flags, flags, x.astype(np.float64), gamma=0.9),
        lambda: fastrl.gather_rows(x, np.array([0, 7])),
        lambda: fastrl.gather_rows([x, object()], np.array([0])),
        lambda: fastrl.gather_rows(x, np.array([0, 1]), out=x[:, :2]),
        lambda: tree.update(np.array([0, 10]), np.ones(2)),
        lambda: tree.update(np.array([0, 1]), np.array([1.0, np.nan])),
        lambda: tree.sample(4),  # the total is 0
        lambda: tree.find(np.array([np.nan])),
        lambda: tree.load_state_dict({}),
        lambda: fastrl.SumTree(-1),
        lambda: fastrl.categorical_log_prob_entropy(x, np.array([0, 1, 9])),
        lambda: fastrl.normal_sample(x, x[:, :2]),
        lambda: fastrl.adam_step([x], [x], [x], [x], [np.array(1)], lr="x"),
        lambda: net.forward(x[:, :3]),
        lambda: net.backward(x),
        lambda: empty.sample(3),
        lambda: empty.add(x, 0, 0.0, x, False, False),
    ]

    def fails(call):
        with pytest.raises((TypeError, ValueError, IndexError, KeyError, RuntimeError)):
            call()

    return [lambda call=call: fails(call) for call in calls]


def growth(calls, rounds):
    """KiB of resident memory."""

    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024

    before = resident()
    for _ in range(rounds):
        for call in calls:
            call()
    return resident() - before


def check(rounds):
    replay, errors = Shared(), failing()
    calls = [*steps(0), *shared(), replay.add, replay.draw, *errors]
    growth(calls, 50)  # what is made once
    found = []
    for _ in range(4):  # a leak grows every time, what else a process does does not
        found.append(growth(calls, rounds))
        if found[-1] < 100:
            return f"{len(calls)} calls, {len(errors)} of them errors: {found[-1]} KiB"
    raise AssertionError(found)


def test_no_memory_is_left_behind():
    check(200)


@pytest.mark.long
def test_no_memory_is_left_behind_by_10_000_rounds(report):
    report(f"10,000 rounds of {check(10_000)}")
