"""The speed benchmark of PPO runs for whoever has the agents extra, and its shares add up."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_ppo_benchmark_runs_and_adds_up(tmp_path):
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import agents_ppo as b; r = b.measure(1, 512); "
        "report = {'machine': __import__('_harness').machine(), 'repeats': 1, 'steps': 512, 'note': '', 'record': r}; "
        "assert 'times as fast' in b.markdown(report); print(json.dumps(r))"
    )
    done = subprocess.run([sys.executable, "-c", code, BENCH], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert all(speed > 0 for speeds in record["steps_per_s"].values() for speed in speeds)
    for shares in record["profile"].values():
        assert all(share > 0 for share in shares.values())
        assert abs(sum(shares.values()) - 100) < 1  # rounded shares
