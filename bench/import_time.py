"""Seconds that `import fastrl.kernels` takes beyond NumPy's own import: the median of fresh processes.

python bench/import_time.py            writes bench/results/import_time.json
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

RUNS = 21
CODE = """
import time, sys, numpy
start = time.perf_counter()
import fastrl.kernels
seconds = time.perf_counter() - start
assert "torch" not in sys.modules and "numba" not in sys.modules
print(seconds)
"""


def main():
    command = [sys.executable, "-c", CODE]
    cwd = Path(__file__).parent  # not the source tree, which has no extension
    times = [float(subprocess.check_output(command, cwd=cwd)) for _ in range(RUNS + 1)][1:]  # the first warms the disk
    report = {"seconds_median": statistics.median(times), "seconds_max": max(times), "runs": RUNS}
    print(json.dumps(report))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "import_time.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
