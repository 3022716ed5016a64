"""The benchmark of whole agents runs for whoever has the agents extra."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_agents_benchmark_runs_and_adds_up(tmp_path):
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import agents; "
        "records = [agents.measure(10, 1, 100)]; report = {'machine': agents.compare.machine(), 'repeats': 1, "
        "'steps': 100, 'note': '', 'records': records}; agents.markdown(report); print(json.dumps(records[0]))"
    )
    done = subprocess.run([sys.executable, "-c", code, BENCH], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert all(speed > 0 for speeds in record["steps_per_s"].values() for speed in speeds)
    assert record["ratio"] > 0 and all(share > 0 for share in record["profile"].values())
    assert abs(sum(record["profile"].values()) - 100) < 1  # rounded shares
