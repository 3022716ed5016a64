"""An interpreter that ends while daemon threads are inside kernels ends cleanly. Needs NumPy alone."""

import subprocess
import sys
import sysconfig
import textwrap

import pytest

from fastrl import _backend

LOOPS = {
    "gae": "lambda: fastrl.gae(x, x, x, flags, flags, gamma=0.9, lam=0.9)",
    "scan of tuples": "lambda: fastrl.n_step_returns(x, x, flags, flags, gamma=0.9, n=3)",
    "tree sample": "lambda: tree.sample(2000)",
    "tree update": "lambda: tree.update(np.arange(1000), priorities)",
    "tree numbers": "lambda: (tree.total, tree.min, tree.max, len(tree), tree[3])",
    "categorical": "lambda: fastrl.categorical_sample(logits, generator=generator)",
    "normal": "lambda: fastrl.normal_sample(logits, logits, generator=generator)",
    "replay": "lambda: replay.sample(64)",
    "gather_rows": "lambda: fastrl.gather_rows(table, indices)",
    "large gather_rows": "lambda: fastrl.gather_rows(large, many)",
    "adam": "lambda: fastrl.adam_step([x], [x + 0], [x + 0], [x + 0], [np.array(1.0)], lr=0.0)",
    "cg": "lambda: fastrl.conjugate_gradient(lambda v: v, x[0])",
}

CODE = """
    import sys, threading, time
    import numpy as np
    import fastrl
    x = np.random.rand(300, 50)
    flags, priorities = np.zeros(x.shape, bool), np.ones(1000, np.float32)
    tree, generator = fastrl.SumTree(1000, seed=0), fastrl.Generator(0)
    tree.update(np.arange(1000), priorities)
    logits, table, indices = np.zeros((256, 8), np.float32), np.zeros((1000, 16)), np.arange(1000)
    large, many = np.zeros((100_000, 16)), np.arange(100_000)
    replay = fastrl.ReplayBuffer(1000, ((4,), np.float32), ((2,), np.float32), seed=0)
    for i in range(500):
        o = np.full((1, 4), i, np.float32)
        replay.add(o, np.zeros((1, 2), np.float32), np.zeros(1), o + 1, np.zeros(1, bool), np.zeros(1, bool))
    call = {call}
    call()
    def loop():
        while True:
            call()
    for _ in range({threads}):
        threading.Thread(target=loop, daemon=True).start()
    time.sleep(0.2)
"""


# Without it NumPy and Numba do the work, whose own threads may not survive the end of Python 3.13.
@pytest.mark.skipif(_backend.CPU_BACKEND != "cpp", reason="the compiled extension does not serve here")
# The main thread then waits for the lock of a Python object, which a thread seems to have ended with.
@pytest.mark.skipif(sysconfig.get_config_var("Py_GIL_DISABLED"), reason="hangs at times on a free-threaded Python")
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", LOOPS)
def test_exit_beside_a_daemon_thread(name, threads):
    code = textwrap.dedent(CODE).format(call=LOOPS[name], threads=threads)
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, (run.returncode, run.stderr)


SUBINTERPRETER = """
    import sys
    kind = sys.argv[1]
    if sys.version_info >= (3, 13):
        import _interpreters as interpreters
        made = interpreters.create(kind)
    else:
        import _xxsubinterpreters as interpreters
        made = interpreters.create(isolated=kind == "isolated")
    calls = '''
    import fastrl
    import numpy as np
    x, flags = np.ones((3, 2)), np.zeros((3, 2), bool)
    returns = fastrl.discounted_returns(x, flags, flags, gamma=0.5)
    assert returns[:, 0].tolist() == [1.75, 1.5, 1.0], returns
    assert fastrl.gather_rows(x, np.array([0, 2])).shape == (2, 2)
    tree = fastrl.SumTree(4, seed=0)
    tree.update(np.array([1]), np.array([2.0]))
    assert tree.total == 2 and tree.sample(5)[0].tolist() == [1] * 5
    print("worked", flush=True)
    '''
    import textwrap
    try:
        failed = interpreters.run_string(made, textwrap.dedent(calls))
        if failed:
            print(failed.formatted)
    except Exception as error:
        print(error)
    interpreters.destroy(made)
"""


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_a_subinterpreter(kind):
    """The import is an ImportError, or kernels work; nothing crashes or waits for ever."""
    code = [sys.executable, "-c", textwrap.dedent(SUBINTERPRETER), kind]
    run = subprocess.run(code, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, (run.returncode, run.stdout, run.stderr)
    if sys.version_info < (3, 12):
        assert "fastrl cannot be imported in a sub-interpreter" in run.stdout, (run.stdout, run.stderr)
    else:
        assert run.stdout.strip() == "worked" or "ImportError" in run.stdout, (run.stdout, run.stderr)
