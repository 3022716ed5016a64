"""A few inputs of every fuzz target, the same each time; the long stage makes new ones for minutes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
if os.name == "nt":
    pytest.skip("needs the locks of Linux and macOS", allow_module_level=True)

import fuzz


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_some_inputs(name, tmp_path):
    target, rng = fuzz.TARGETS[name](tmp_path), np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for _ in range(500 if name == "capsules" else 30):
            target(fuzz.Draw(rng.bytes(64)))


@pytest.mark.long
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_two_minutes(name, tmp_path, report):
    command = [sys.executable, str(Path(fuzz.__file__)), name, "--seconds", "120"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report(done.stdout.strip().splitlines()[-1])
