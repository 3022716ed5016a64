"""An interpreter that ends while daemon threads are inside kernels ends cleanly. Needs NumPy alone."""

import subprocess
import sys
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
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", LOOPS)
def test_exit_beside_a_daemon_thread(name, threads):
    code = textwrap.dedent(CODE).format(call=LOOPS[name], threads=threads)
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, (run.returncode, run.stderr)


SUBINTERPRETER = """
    import sys
    if sys.version_info >= (3, 13):
        import _interpreters as interpreters
        made = interpreters.create("legacy")
    else:
        import _xxsubinterpreters as interpreters
        made = interpreters.create(isolated=False)
    try:
        failed = interpreters.run_string(made, "import fastrl")
        print(failed.formatted if failed else "imported")
    except Exception as error:
        print(error)
"""


def test_import_in_a_subinterpreter():
    """It works or is an ImportError; it does not wait for ever."""
    code = textwrap.dedent(SUBINTERPRETER)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if sys.version_info < (3, 12):
        assert "fastrl cannot be imported in a sub-interpreter" in run.stdout, (run.stdout, run.stderr)
    else:
        assert run.stdout.strip() == "imported" or "ImportError" in run.stdout, (run.stdout, run.stderr)
