"""The speed benchmark of SAC, TD3 and DDPG runs for whoever has the agents extra, and its shares add up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_benchmark_runs_and_adds_up(tmp_path):
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import agents_sac as b; b.STARTS, b.WARM_UP = 8, 3; "
        "made = b.contenders; slow = ('torch.compile', 'SB3'); "  # of other people, and slow to start
        "b.contenders = lambda *a: {k: v for k, v in made(*a).items() if k not in slow}; "
        "records = [b.measure(algorithm, 'Pendulum-v1', 2, 6) for algorithm in b.AGENTS]; "
        "report = {'machine': __import__('_harness').machine(), 'repeats': 2, 'steps': 6, "
        "'note': '', 'records': records}; "
        "assert b.markdown(report).count('| td3 | Pendulum-v1 |') == 2; print(json.dumps(records))"
    )
    done = subprocess.run([sys.executable, "-c", code, BENCH], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for record in json.loads(done.stdout.splitlines()[-1]):
        assert set(record["steps_per_s"]) == {"fastrl", "eager", "eager, fused"}
        assert all(speed > 0 for speeds in record["steps_per_s"].values() for speed in speeds)
        assert record["fastest_other"] != "fastrl" and record["ratio"] > 0
        shares = record["profile"]
        assert all(share > 0 for part, share in shares.items() if part != "head" or record["algorithm"] == "sac")
        assert sum(shares.values()) == pytest.approx(100, abs=1)  # rounded shares
