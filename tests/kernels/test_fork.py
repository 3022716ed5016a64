"""fork beside threads: the child finds every lock free and whole states, and draws numbers of its own. NumPy alone."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

COMMON = """
    import os, signal, sys, threading, time, warnings
    import numpy as np
    import fastrl
    warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads

    def in_child(f):
        # What f returns in a forked child, or how that ended.
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, repr(f()).encode())
            finally:
                os._exit(0)
        os.close(writing)
        end = time.monotonic() + 20
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return "hangs"
            time.sleep(0.001)
        with os.fdopen(reading, "rb") as pipe:
            return eval(pipe.read() or b"None")
"""

BACKENDS = ["reference", "numba", "cpp"]


def run(code, backend="", *arguments):
    if backend == "numba" and importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    if backend == "cpp" and importlib.util.find_spec("fastrl._C") is None:
        pytest.skip("the C++ extension is not built")
    env = {**os.environ, "FASTRL_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMMON) + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("background", ["update", "sample", "distinct", "load", "clear"])
def test_tree_in_a_child(backend, background):
    code = """
        n = 100_000 if os.environ["FASTRL_BACKEND"] == "cpp" else 2000
        tree, indices = fastrl.SumTree(n, seed=0), np.arange(n)
        values = [np.full(n, 1.0), np.full(n, 2.0)]
        tree.update(indices, values[0])
        state = tree.state_dict()
        work = {
            "update": lambda: [tree.update(indices, v) for v in values],
            "sample": lambda: tree.sample(n),
            "distinct": lambda: tree.sample(50, replacement=False),
            "load": lambda: tree.load_state_dict(state),
            "clear": lambda: (tree.clear(), tree.update(indices, 1.0)),
        }[sys.argv[1]]
        work()
        def loop():
            while True:
                work()
        threading.Thread(target=loop, daemon=True).start()
        def child():
            total, leaves = tree.total, tree[indices]
            tree.update(indices[:10], 3.0)
            return total == leaves.sum() and total in (0, n, 2 * n) and len(tree.sample(100)[0]) == 100
        for _ in range(20):
            time.sleep(0.003)
            print(in_child(child))
        print(tree[indices].shape == (n,))
        os._exit(0) if sys.stdout.flush() else os._exit(0)
    """
    assert run(code, backend, background) == ["True"] * 21


def test_locks_are_taken_as_calls_take_them():
    """Those of owners first, then the newest: two orders would be a deadlock."""
    code = """
        from fastrl import _fork
        taken = []
        class Lock:
            def __init__(self, name): self.name = name
            def acquire(self): taken.append(self.name); return True
            def release(self): taken.append("-" + self.name)
        older, newer, owner = Lock("older"), Lock("newer"), Lock("owner")
        _fork.guarded.add(older), _fork.guarded.add(newer), _fork.outer.add(owner)
        in_child(lambda: None)
        print(*taken)
    """
    assert run(code) == ["owner", "newer", "older", "-older", "-newer", "-owner"]


@pytest.mark.skipif(importlib.util.find_spec("fastrl._C") is None, reason="the C++ extension is not built")
def test_fork_while_the_pool_is_made():
    """The first large calls of a process, in several threads, with forks in between."""
    code = """
        fastrl.set_num_threads(2)
        array, indices = np.zeros((100_000, 16)), np.arange(100_000)
        def first():
            fastrl.gather_rows(array, indices)
        threads = [threading.Thread(target=first) for _ in range(4)]
        for thread in threads:
            thread.start()
            print(in_child(lambda: fastrl.gather_rows(array, indices).shape))
        for thread in threads:
            thread.join()
    """
    for _ in range(5):
        assert "hangs" not in run(code)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unseeded_streams_differ_in_children(backend):
    """Those with a seed, or a state that was loaded, go on as in the parent."""
    code = """
        def draws(generator):
            return generator.seed, generator.counter
        unseeded = fastrl.Generator()
        seeded, loaded = fastrl.Generator(5), fastrl.Generator()
        loaded.load_state_dict({"seed": 7, "counter": 9})
        later = fastrl.Generator()
        later.manual_seed(8)
        trees = [fastrl.SumTree(4), fastrl.SumTree(4, seed=3)]
        for tree in trees:
            tree.update(np.arange(4), 1.0)
        def child():
            tree = trees[0]
            return [draws(g) for g in (unseeded, trees[0].generator, seeded, loaded, later, trees[1].generator)] + [
                tree.sample(50, stratified=False)[0].tolist()
            ]
        before = child.__call__()
        found = [in_child(child) for _ in range(3)]
        print(len({f[0] for f in found} | {before[0]}) == 4)
        print(len({f[1] for f in found} | {before[1]}) == 4)
        print(all(f[2:6] == before[2:6] for f in found))
        print(len({tuple(f[6]) for f in found}) == 3)
        fastrl.manual_seed(11)
        found = [in_child(child) for _ in range(2)]
        print(found[0][6] == found[1][6])
    """
    assert run(code, backend) == ["True"] * 5
