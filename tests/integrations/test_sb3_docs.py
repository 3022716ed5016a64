"""The recipes of docs/from-your-library.md run as they stand."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")

TEXT = (Path(__file__).parents[2] / "docs" / "from-your-library.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("k", range(len(BLOCKS)))
def test_recipe(k, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS[k].splitlines()) <= 10
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of a fallback
        exec(compile(BLOCKS[k], "docs", "exec"), {})


def test_a_trained_policy_acts():
    example = Path(__file__).parents[2] / "examples" / "act_from_torch.py"
    out = subprocess.run([sys.executable, example, "--calls", "10"], capture_output=True, text=True, timeout=300)
    assert re.search(r"Stable-Baselines3: .* us by fastrl.MLP", out.stdout), out.stderr  # the actions are the same


def test_there_are_recipes():
    assert len(BLOCKS) >= 3 and BLOCKS[0].startswith("from fastrl.integrations.sb3 import SAC")
