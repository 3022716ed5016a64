"""Ctrl-C is answered in the middle of a long kernel call, and leaves no state half written."""

import signal
import threading
import time

import numpy as np
import pytest

import fastrl
from fastrl.kernels import Generator

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")


class Stop(Exception):
    pass


@pytest.fixture
def interrupted():
    """Runs a call until a signal whose handler raises; what the call took, and whether the signal ended it."""
    before = signal.getsignal(signal.SIGALRM)

    def stop(*_):
        raise Stop

    def run(call, after=0.1):
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, after)
        try:
            call()
        except Stop:
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False

    yield run
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = fastrl.get_num_threads()
    fastrl.set_num_threads(request.param)
    yield request.param
    fastrl.set_num_threads(before)


def test_the_call_is_left_and_not_only_followed_by_the_exception(cpp, threads, interrupted):
    """The rest of the rows is not gathered."""
    # Rows from all over a table beyond the caches, so that the call is long on every machine.
    table, indices = np.ones((400_000, 64)), np.random.default_rng(0).integers(0, 400_000, 3_000_000)
    out = np.zeros((3_000_000, 64))
    cpp.gather_rows(table, indices, out=out)  # memory is there
    out[:] = 0
    assert interrupted(lambda: cpp.gather_rows(table, indices, out=out), 0.01)
    assert 0 < np.count_nonzero(out[:, 0]) < len(out)
    small = np.arange(1000)
    assert np.array_equal(cpp.gather_rows(table, small), table[:1000])  # the pool goes on


def test_handler_that_does_not_raise(cpp, threads):
    """It runs in the middle, and the call ends as if nothing had been."""
    ran = []
    before = signal.signal(signal.SIGALRM, lambda *_: ran.append(cpp.gather_rows(np.arange(9.0), np.arange(3)).sum()))
    table, indices = np.arange(64_000.0).reshape(1000, 64), np.arange(2_000_000) % 1000
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        out = cpp.gather_rows(table, indices)
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ran and set(ran) == {3.0}
    assert np.array_equal(out[:1000], table) and np.array_equal(out[-1000:], table)


@pytest.mark.parametrize("op", ["sample", "iid", "weighted", "tree", "find", "update", "td", "distinct"])
def test_tree_is_as_it_was(cpp, oracle, threads, interrupted, op):
    n = 200_000
    tree = cpp.SumTree(n, seed=0)
    rng = np.random.default_rng(0)
    tree.update(np.arange(n), rng.random(n) + 0.5)
    many = 30_000_000
    indices = np.broadcast_to(np.int64(0), (many,)) if op == "find" else rng.integers(0, n, many, np.int32)
    u = np.broadcast_to(np.float32(1.0), (many,))
    call = {
        "sample": lambda: tree.sample(many),
        "iid": lambda: tree.sample(many, stratified=False),
        "weighted": lambda: tree.sample_weighted(many, 0.5),
        "tree": lambda: tree.sample_weighted(many, 0.5, "tree"),
        "find": lambda: tree.find(u),
        "update": lambda: tree.update(indices, 2.0),
        "td": lambda: tree.update_from_td_errors(indices, u, 0.5, 0.1),
        "distinct": lambda: tree.sample(n, replacement=False),
    }[op]
    state = oracle.snapshot(tree)
    whole = state[:4] + state[5:]  # the generator may have gone on
    for after in (0.02, 0.15):
        ended = interrupted(call, after)
        now = oracle.snapshot(tree)
        if ended and not (op in ("update", "td") and now[3] != state[3]):  # the signal may come when all is written
            assert now[:4] + now[5:] == whole
        if not ended or now[3] != state[3]:
            assert op not in ("update", "td") or len(set(tree[indices[:1000]].tolist())) == 1
            tree.load_state_dict({**tree.state_dict(), "priorities": np.frombuffer(state[3], np.float32)})
    assert len(tree.sample(100)[0]) == 100  # the lock is free


def test_handler_that_uses_the_tree_in_its_call(cpp):
    """An error, where it would wait for its own thread for ever; between calls it works."""
    tree = cpp.SumTree(1000, seed=0)
    tree.update(np.arange(1000), 1.0)
    said = []

    def handler(*_):
        try:
            said.append(tree.total)
        except RuntimeError as error:
            said.append(str(error))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.05)
        indices, _ = tree.sample(20_000_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert said and set(said) <= {1000.0, "sum_tree: a signal handler used the tree in the middle of a call of it"}
    assert tree.total == 1000 and len(indices) == 20_000_000


def test_heads_and_scans(threads, interrupted):
    logits = np.broadcast_to(np.float32(0), (4_000_000, 16))
    generator = Generator(1)
    interrupted(lambda: fastrl.categorical_sample(logits, generator=generator), 0.05)
    x, no = np.zeros((2000, 6000), np.float32), np.zeros((2000, 6000), bool)
    interrupted(lambda: fastrl.gae(x, x, x, no, no, gamma=0.9, lam=0.9), 0.05)
    actions, _ = fastrl.categorical_sample(logits[:4], generator=Generator(1))
    assert actions.shape == (4,)


def test_other_threads_do_not_answer(cpp):
    """Python runs handlers in the main thread alone: a call of another thread ends whatever comes."""
    table, indices = np.ones((1000, 64)), np.arange(2_000_000) % 1000
    done = []
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    thread = threading.Thread(target=lambda: done.append(cpp.gather_rows(table, indices).sum()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        thread.start()
        while thread.is_alive():
            time.sleep(0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert done == [2_000_000 * 64]
