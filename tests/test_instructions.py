"""What bench/instructions.py calls slower, and what it cannot compare."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("instructions", BENCH / "instructions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "python", "factor", "worse"),
    [
        ("all", "3", 1.06, True),
        ("extension", "3", 1.06, True),
        ("all", "3", 1.04, False),
        ("all", "4", 1.06, False),  # another interpreter
        ("extension", "4", 1.06, True),
    ],
)
def test_a_rise_of_5_percent(bench, kind, python, factor, worse):
    kept = {"python": "3", "numpy": "2", "compiler": "c", "instructions": {"op": {"all": 1000, "extension": 500}}}
    now = copy.deepcopy({**kept, "python": python})
    now["instructions"]["op"][kind] = int(now["instructions"]["op"][kind] * factor)
    assert bool(bench.compare(now, kept)) == worse


def test_what_cannot_be_compared_is_said(bench):
    kept = json.loads((BENCH / "results" / "instructions.json").read_text())
    assert set(kept["instructions"]) == set(bench.hot_calls())
    assert bench.compare(kept, kept) == []
    assert "kept are counts of" in bench.compare({**kept, "compiler": "another"}, kept)[0]
    less = {**kept, "instructions": {}}
    assert len(bench.compare(kept, less)) == len(kept["instructions"])


def test_callgrinds_files_are_read(bench, tmp_path):
    text = """desc: Trigger: Client Request: an op
ob=(1) /usr/lib/libc.so
fn=(1)
0 100
cob=(2) /site-packages/fastrl/_C.so
cfn=(2)
calls=3 7
+5 4000
ob=(2)
fn=(2)
-3 60
* 20
totals: 180
"""
    (tmp_path / "out.1").write_text(text)
    assert bench.read(tmp_path / "out.1") == ("an op", 180 // bench.CALLS, 80 // bench.CALLS)
