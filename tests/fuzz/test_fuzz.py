"""The corpus and a few inputs of every fuzz target, the same each time; the long stage makes new ones for minutes."""

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


@pytest.fixture(params=fuzz.TARGETS)
def target(request, tmp_path):
    with np.errstate(all="ignore"):
        yield fuzz.TARGETS[request.param](tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_the_corpus(target, request):
    inputs = fuzz.kept(request.node.callspec.params["target"])
    assert len(inputs) > 10 and any(draw.edit for draw in inputs) and any(draw.data for draw in inputs)
    for draw in inputs:
        target(draw)


@pytest.mark.filterwarnings("ignore")
def test_some_inputs(target):
    rng = np.random.default_rng(0)
    for _ in range(5000 if isinstance(target, fuzz.TARGETS["capsules"]) else 30):
        target(fuzz.Draw(rng.bytes(64)))


@pytest.mark.long
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_two_minutes(name, tmp_path, report):
    command = [sys.executable, str(Path(fuzz.__file__)), name, "--seconds", "120"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report(done.stdout.strip().splitlines()[-1])
