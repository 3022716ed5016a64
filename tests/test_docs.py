"""The Python examples of README and docs run as they stand, and so do the doctests of the docstrings."""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# Names that an example takes as given.
GIVEN = {
    "buffer_obs": np.zeros((1_000_000, 17), np.float32),
    "buffer_reward": np.zeros(1_000_000, np.float32),
    "preallocated": np.empty((256, 17), np.float32),
}


@pytest.mark.parametrize("name", ["README.md", "docs/kernels.md", "docs/replay.md", "docs/environments.md"])
def test_examples_run(name):
    pytest.importorskip("gymnasium")
    pytest.importorskip("torch")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    namespace = dict(GIVEN)
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize("which", ["agents", "bench", "speed", "scans", "tanh_normal", "fisher", "learning"])
def test_tables_are_those_of_the_kept_results(which, monkeypatch):
    pytest.importorskip("scipy")
    if not (ROOT / "bench" / "results").exists():
        pytest.skip("an sdist holds no results")
    monkeypatch.syspath_prepend(ROOT / "bench")
    table = getattr(importlib.import_module("readme_tables"), which)()
    assert len(table.splitlines()) > 3
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/benchmarks.md")]
    assert any(table in text for text in texts), "run `python bench/readme_tables.py` and paste"


@pytest.mark.parametrize(
    "name",
    [
        "fastrl.kernels.sum_tree",
        "fastrl.kernels.categorical",
        "fastrl.kernels.conjugate_gradient",
        "fastrl.kernels.curvature.fisher",
        "fastrl.kernels.curvature.hessian",
        "fastrl.kernels.normal",
        "fastrl.kernels.tanh_normal",
        "fastrl.replay.buffer",
    ],
)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_the_reference_of_hyperparameters_is_current(monkeypatch):
    pytest.importorskip("gymnasium")
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT / "docs")
    make = importlib.import_module("make_reference")
    text = make.PAGE.read_text(encoding="utf-8")
    assert text == make.page(), "run `python docs/make_reference.py`"
    assert "| `per_alpha` | `float` | `0.6` | Exponent of the priorities: 0 is uniform replay. |" in text
    assert "|  |" not in text  # a setting without a meaning
