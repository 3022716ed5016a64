"""What all tests share: seeds, the tolerance table, and the care that they see the installed fastrl."""

import importlib
import importlib.util
import os
import signal
import sys
import threading
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The one table of tolerances, by dtype of the result. It is not loosened to make a test pass.
TOL = {
    "float32": {"rtol": 1e-5, "atol": 1e-6},
    "float64": {"rtol": 1e-12, "atol": 1e-12},
}

# Small networks on several threads spend their time waiting for each other, most of all on a busy machine (10 times
# slower). Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The jobs that a shell starts with & ignore Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first example pays for compilation, and shared machines are noisy.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def shadowed_install():
    """What is wrong when the source tree, which has no extension, hides an installed fastrl that has one; else None."""
    spec = importlib.util.find_spec("fastrl")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != ROOT / "fastrl":
        return None
    try:
        importlib.import_module("fastrl._C")  # an editable install finds it
        return None
    except (ImportError, RuntimeError):
        pass
    try:
        files = metadata.distribution("fastrl-kernels").files or []
    except metadata.PackageNotFoundError:
        return None
    if not any(file.name.startswith("_C.") and file.suffix in (".so", ".pyd") for file in files):
        return None
    return (
        f"fastrl is imported from {ROOT}, which has no compiled fastrl._C, instead of from where it is installed: "
        "run `pytest` and not `python -m pytest`, or make an editable install (CONTRIBUTING.md)"
    )


def pytest_addoption(parser):
    parser.addoption(
        "--backends",
        help="of tests that have a CPU backend as a parameter those of these alone: cpp,numba,reference or none",
    )


def pytest_collection_modifyitems(config, items):
    if (asked := config.getoption("--backends")) is None:
        return
    wanted = set() if asked == "none" else set(asked.split(","))
    backends = {"cpp", "numba", "reference"}
    if not wanted <= backends:
        raise pytest.UsageError(f"--backends must be none or of {', '.join(sorted(backends))}, got {asked}")
    others = backends - wanted

    def left_out(item):
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return any(isinstance(value, str) and value in others for value in parameters)

    out = {item for item in items if left_out(item)}
    config.hook.pytest_deselected(items=list(out))
    items[:] = [item for item in items if item not in out]


def pytest_configure(config):
    problem = shadowed_install()
    if problem:
        raise pytest.UsageError(problem)


@pytest.fixture(scope="session", autouse=True)
def empty_working_folder(tmp_path_factory):
    """Away from the source tree: a `python -c` of a test imports the installed package, and no run writes into it."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def tolerance():
    """The tolerance of a dtype: ``numpy.testing.assert_allclose(x, y, **tolerance(x.dtype))``."""
    return lambda dtype: TOL[str(dtype).removeprefix("torch.")]


@pytest.fixture
def rng():
    return np.random.default_rng(20160225)


@pytest.fixture
def report(request):
    """Says in the long stage's report, a file, what a test has done."""

    def say(text):
        if "FASTRL_REPORT" in os.environ:
            with open(os.environ["FASTRL_REPORT"], "a") as file:
                file.write(f"{request.node.name}: {text}\n")

    return say


@pytest.fixture(autouse=True)
def seeds():
    """Every test starts from the same global seeds, and with no number of threads chosen, alone or in any order."""
    np.random.seed(0)  # noqa: NPY002 (Gymnasium and others still draw from it)
    if "fastrl" in sys.modules:
        sys.modules["fastrl"].manual_seed(0)
        sys.modules["fastrl"].set_num_threads(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A trained agent's folder; nobody writes to it."""
    from commands import SMALL

    from fastrl import cli

    out = tmp_path_factory.mktemp("cli") / "run"
    argv = ["train", "dqn", "--env", "CartPole-v1", "--total-steps", "1500", "--seed", "3", "--prioritized", *SMALL]
    assert cli.main([*argv, "--out", str(out)]) == 0
    return out
