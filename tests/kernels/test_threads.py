"""Concurrent use: sampling while updating (also what runs under ThreadSanitizer), the GIL, fork."""

import os
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time

import numpy as np
import pytest

import fastrl
from fastrl.kernels import Generator

SECONDS = 0.7


def run_together(*workers):
    """Run the workers until the time is up or one fails; an exception in any of them fails the test."""
    stop, errors = threading.Event(), []

    def guarded(worker):
        try:
            while not stop.is_set():
                worker()
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    stop.wait(SECONDS)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("capacity", [16, 257, 50_000])
def test_sampling_while_updating(kernels, capacity):
    """torchrl #2212. Every odd leaf is always zero and leaf 0 never: no state of the tree can draw an odd leaf."""
    tree = kernels.SumTree(capacity, seed=1)
    tree.update(np.arange(0, capacity, 2), 1.0)
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(("sample", "weighted", "distinct", "find", "update"), 0)

    def valid(indices):
        assert ((indices >= 0) & (indices < capacity)).all()
        assert (indices % 2 == 0).all(), "drew a leaf that never had a priority"

    def sample():
        indices, probabilities = tree.sample(64)
        valid(indices)
        assert np.isfinite(probabilities).all() and (probabilities > 0).all() and (probabilities <= 1).all()
        indices, weights = tree.sample_weighted(33, 0.4, "tree")
        valid(indices)
        assert np.isfinite(weights).all() and (weights > 0).all() and (weights <= 1).all()
        counts["sample"] += 1

    def search():
        try:
            valid(tree.find(np.linspace(0, tree.total, 20)))
        except ValueError as error:  # the total fell between the two calls
            assert "must be in [0, total]" in str(error)
        assert 0.5 <= tree.min <= 1.5 and 0.5 <= tree.max <= 1.5 and 3 <= len(tree) <= capacity
        indices, probabilities = tree.sample(2, replacement=False)
        valid(indices)
        assert indices[0] != indices[1] and (probabilities > 0).all()
        counts["find"] += 1

    def update():
        indices = rng.integers(0, (capacity + 1) // 2, 100) * 2
        priorities = rng.random(100).astype(np.float32) + 0.5
        priorities[(rng.random(100) < 0.3) & (indices > 4)] = 0
        tree.update(indices, priorities)
        tree.update_from_td_errors(indices, priorities - 2, 0.0, 0.0, keep_zeros=True)
        counts["update"] += 1

    run_together(sample, search, update)
    assert counts["sample"] > 0 and counts["find"] > 0 and counts["update"] > 0
    # What is left is a tree like any other.
    fresh = kernels.SumTree(capacity, seed=1)
    fresh.update(np.arange(capacity), tree[np.arange(capacity)])
    assert (fresh.total, fresh.min, fresh.max, len(fresh)) == (tree.total, tree.min, tree.max, len(tree))


def test_two_updaters(kernels):
    """Each owns half of the leaves: no update is lost, and each batch is seen whole or not at all."""
    capacity = 4096
    tree = kernels.SumTree(capacity, seed=0)
    tree.update(np.arange(capacity), 1.0)
    low, high = np.arange(capacity // 2), np.arange(capacity // 2, capacity)
    values = [1.0, 1.0]

    def writer(side, leaves):
        def write():
            values[side] = values[side] % 100 + 1
            tree.update(leaves, values[side])

        return write

    def reader():
        leaves = tree[np.arange(capacity)]
        assert len(np.unique(leaves[low])) == 1 and len(np.unique(leaves[high])) == 1, "half of an update was seen"
        total = tree.total / (capacity // 2)
        assert total == int(total), "a total from the middle of an update"

    run_together(writer(0, low), writer(1, high), reader)
    leaves = tree[np.arange(capacity)]
    assert (leaves[low] == values[0]).all() and (leaves[high] == values[1]).all()
    assert tree.total == (capacity // 2) * sum(values)


def test_inputs_that_change_during_the_call(kernels):
    """A thread writes NaN and bad indices into the arrays of a running update: refused or not, never half taken."""
    n = 20_000
    tree = kernels.SumTree(n, seed=0)
    indices, priorities = np.arange(n), np.ones(n)
    stop = threading.Event()

    def spoil():
        while not stop.is_set():
            priorities[n - 1], indices[n // 2] = np.nan, -1
            priorities[n - 1], indices[n // 2] = 1.0, n // 2

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        end = time.monotonic() + 1.0
        refused = 0
        while time.monotonic() < end:
            try:
                tree.update(indices, priorities)
            except (ValueError, IndexError) as error:
                refused += 1
                assert f"[{n - 1}] is nan" in str(error) or f"[{n // 2}] is -1" in str(error)
            assert np.isfinite(tree.total) and tree.total in (0.0, float(n))
            try:
                tree.find(priorities[:1])
            except ValueError:
                pass  # the total is 0 as long as every update was refused
    finally:
        stop.set()
        thread.join()


def test_shared_generator_and_state(kernels):
    """Trees on a shared generator, with state_dict and clear in between."""
    generator = Generator(5)
    trees = [kernels.SumTree(300, generator=generator) for _ in range(2)]
    for tree in trees:
        tree.update(np.arange(300), 1.0)
    drawn = [0, 0]

    def draw(i):
        def work():
            try:
                trees[i].sample(10)
                drawn[i] += 10
            except ValueError as error:
                assert "total priority is 0" in str(error)

        return work

    def keep():
        state = trees[0].state_dict()
        assert state["priorities"].sum() in (0, 300), "a state from the middle of an update"
        trees[0].clear()
        trees[0].update(np.arange(300), 1.0)

    run_together(draw(0), draw(1), keep)
    assert generator.counter == sum(drawn)


def test_gather_rows_from_two_threads(loader):
    """Concurrent calls share the pool or run inline; both are right."""
    array = np.arange(400_000, dtype=np.float32).reshape(-1, 8)
    indices = np.random.default_rng(0).integers(0, len(array), 40_000)
    wanted = array[indices]
    before = fastrl.get_num_threads()
    fastrl.set_num_threads(2)

    def gather():
        assert np.array_equal(loader.gather_rows(array, indices), wanted)

    def resize():
        fastrl.set_num_threads(1)
        fastrl.set_num_threads(3)
        time.sleep(0.001)

    try:
        run_together(gather, gather, resize)
    finally:
        fastrl.set_num_threads(before)


# ---- the GIL ----------------------------------------------------------------------------------------------------


def progress_of_another_thread(call):
    """How often another Python thread ran while `call` did, when no thread is made to give the GIL up.

    With a switch interval of a quarter of an hour a thread loses the GIL only by releasing it. The counter releases it
    at every turn (sleep(0)); so while `call` runs it moves exactly if `call` itself lets go of the GIL.
    """
    turns, stop, ready = [0], threading.Event(), threading.Event()

    def count():
        while not stop.is_set():
            turns[0] += 1
            ready.set()
            time.sleep(0)

    before = sys.getswitchinterval()
    thread = threading.Thread(target=count, daemon=True)
    sys.setswitchinterval(900)
    try:
        thread.start()
        ready.wait()
        start = turns[0]
        call()
        return turns[0] - start
    finally:
        stop.set()
        sys.setswitchinterval(before)
        thread.join()


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python has no GIL")
@pytest.mark.parametrize(
    "op", ["sample", "iid", "distinct", "weighted", "find", "update", "td_errors", "get", "gather_rows"]
)
def test_gil_is_released(other, op):
    """While a kernel works, Python threads run; while pure C code that holds the GIL works, none does."""
    if op == "gather_rows" and other.gather_rows is None:
        pytest.skip(f"the {other.name} backend has no gather_rows")
    assert progress_of_another_thread(lambda: sum(range(3_000_000))) == 0, "the measure itself"
    n, capacity = 300_000, 100_000
    rng = np.random.default_rng(0)
    tree = other.SumTree(capacity, seed=0)
    tree.update(np.arange(capacity), 1.0)
    indices, priorities = rng.integers(0, capacity, n), rng.random(n).astype(np.float32)
    u = rng.uniform(0, tree.total, n)
    table = np.zeros((capacity, 64), np.float32)
    call = {
        "sample": lambda: tree.sample(n),
        "iid": lambda: tree.sample(n, stratified=False),
        "distinct": lambda: tree.sample(20_000, replacement=False),
        "weighted": lambda: tree.sample_weighted(n, 0.4),
        "find": lambda: tree.find(u),
        "update": lambda: tree.update(indices, priorities),
        "td_errors": lambda: tree.update_from_td_errors(indices, priorities, 0.6, 1e-6),
        "get": lambda: tree[indices],
        "gather_rows": lambda: other.gather_rows(table, indices),
    }[op]
    call()  # compiled and warmed up
    # On a busy machine the other thread may not get a core in the little time that one call takes: try again.
    give_up = time.monotonic() + 20
    while progress_of_another_thread(call) == 0:
        assert time.monotonic() < give_up, "no other Python thread ever ran during the call"


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="not a free-threaded Python")
def test_the_import_turns_the_gil_on():
    """The extension relies on it; Python warns of it, once."""
    code = """
        import sys, warnings
        import numpy
        assert not sys._is_gil_enabled()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            import fastrl
        assert sys._is_gil_enabled()
        found = [str(w.message) for w in seen if w.category is RuntimeWarning]
        assert len(found) == 1 and "fastrl._C" in found[0] and "GIL" in found[0], found
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr


# ---- fork -------------------------------------------------------------------------------------------------------

AFTER_FORK = """
    import os, sys, warnings
    import numpy as np
    import fastrl
    from fastrl.kernels import SumTree, gather_rows
    warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
    fastrl.set_num_threads(2)
    array = np.arange(4_000_000, dtype=np.float32).reshape(-1, 16)
    indices = np.random.default_rng(0).integers(0, len(array), 100_000)
    tree = SumTree(1000, seed=3)

    def use():
        assert np.array_equal(gather_rows(array, indices), array[indices])
        tree.update(np.arange(1000), np.arange(1000, dtype=np.float32))
        drawn = tree.sample(200_000)[0]
        assert (drawn > 0).all()
        return drawn

    def child():
        code = 1
        try:
            use()
            use()
            code = 0
        finally:
            os._exit(code)

    def wait(pid):
        import time
        for _ in range(1200):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return "hangs"

    use()  # the pool is there
    pid = os.fork()
    if pid == 0:
        second = os.fork() if "twice" in sys.argv else 0
        if second:
            os._exit(0 if wait(second) == 0 else 1)
        child()
    assert wait(pid) == 0, "the child"
    use()  # the parent goes on
    print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("times", ["once", "twice"])
def test_after_fork(times):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AFTER_FORK), times], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "fine"


def test_python_exits_with_a_pool():
    """Threads of the pool do not keep the process, or crash it at its end."""
    code = """
        import threading
        import numpy as np
        import fastrl
        fastrl.set_num_threads(4)
        array, indices = np.ones((100_000, 16)), np.zeros(100_000, np.int64)
        fastrl.gather_rows(array, indices)
        threading.Thread(target=lambda: [fastrl.gather_rows(array, indices) for _ in range(50)], daemon=True).start()
        print("fine")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "fine"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory by Linux's means")
@pytest.mark.skipif("lib" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer needs the memory")
def test_out_of_memory_in_another_thread_is_a_memory_error(cpp):
    """Not the end of the process: each thread's piece of the call needs 12 MB of its own, and there are none left."""
    code = """
import resource
import numpy as np
import fastrl

fastrl.set_num_threads(2)
logits, action = np.broadcast_to(np.float32(0), (64, 1_500_000)), np.zeros(64, np.int64)
fastrl.categorical_log_prob_entropy(logits[:, :100_000], action)  # long enough to start the other thread
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (10 << 20),) * 2)
for _ in range(3):
    try:
        fastrl.categorical_log_prob_entropy(logits, action)
    except MemoryError:
        print("MemoryError")
print(fastrl.categorical_log_prob_entropy(logits[:, :10], action)[0].shape)
"""
    env = {**os.environ, "FASTRL_BACKEND": "cpp"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["MemoryError"] * 3 + ["(64,)"], (run.stdout, run.stderr)
