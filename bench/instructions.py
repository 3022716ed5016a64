"""Instructions of hot calls, counted by Valgrind: `python bench/instructions.py`.

They are the same in each run to about 0.1 %, whatever else the machine does, where times are not.  The processor level
is 3 (AVX2; Valgrind knows no AVX-512) and there is one thread.  A call that takes 5 % more than what
`results/instructions.json` holds is an error; `--keep` writes that file anew.  Counted are all instructions of the
process in a call, the interpreter's and NumPy's too, and those of the extension alone: the latter are compared wherever
the compiler is the same, the former also need the same Python and NumPy.

Needs valgrind with its headers, and a C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent / "results" / "instructions.json"
MOST = 1.05
CALLS = 20
CONTROL = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
"""


def hot_calls() -> dict[str, Any]:
    import numpy as np

    import fastrl

    rng = np.random.default_rng(0)
    T, N, B = 128, 16, 256
    rewards, values, next_values, log_rhos = rng.standard_normal((4, T, N), np.float32)
    no = rng.random((T, N)) < 0.02
    one, none = np.ones((1, 1), np.float32), np.zeros((1, 1), bool)
    tree = fastrl.SumTree(100_000, seed=0)
    tree.update(np.arange(100_000), rng.random(100_000, np.float32) + 0.1)
    indices, priorities = rng.integers(0, 100_000, B), rng.random(B, np.float32)
    columns = [rng.standard_normal((100_000, 8), np.float32) for _ in range(2)] + [rng.random(100_000, np.float32)]
    logits, mean = rng.standard_normal((2, B, 6), np.float32)
    log_std, generator = np.zeros(6, np.float32), fastrl.Generator(0)
    net = fastrl.MLP((8, 64, 64, 6), seed=0)
    adam = fastrl.FlatAdam(net.vector, net.grad)
    x, d_out = rng.standard_normal((B, 8), np.float32), rng.standard_normal((B, 6), np.float32)
    buffer = fastrl.PrioritizedReplay(10_000, ((8,), np.float32), ((), np.int64), seed=0)
    step = x[0], 1, 1.0, x[0], False, False

    def learn() -> None:
        net.forward_cached(x)
        net.backward(d_out)
        adam.step(lr=1e-4)

    for _ in range(1000):
        buffer.add(*step)
    ring = np.ones((1000, 8), np.float32), np.zeros((1000, 8), bool), np.zeros((1000, 8), bool)
    return {
        "gae [1, 1]": lambda: fastrl.gae(one, one, one, none, none, gamma=0.99, lam=0.95),
        "gae [128, 16]": lambda: fastrl.gae(rewards, values, next_values, no, no, gamma=0.99, lam=0.95),
        "vtrace [128, 16]": lambda: fastrl.vtrace(rewards, values, next_values, no, no, log_rhos, gamma=0.99),
        "SumTree.update 256 of 1e5": lambda: tree.update(indices, priorities),
        "SumTree.sample_weighted 256 of 1e5": lambda: tree.sample_weighted(B, 0.4),
        "gather_rows 256, 3 arrays": lambda: fastrl.gather_rows(columns, indices),
        "n_step_gather 256": lambda: fastrl.n_step_gather(*ring, indices % 8000, 0, 1000, gamma=0.99, n=3),
        "categorical_sample [256, 6]": lambda: fastrl.categorical_sample(logits, generator=generator),
        "tanh_normal_sample [256, 6]": lambda: fastrl.tanh_normal_sample(mean, log_std, generator=generator),
        "MLP update 8-64-64-6, 256": learn,
        "ReplayBuffer.add": lambda: buffer.add(*step),
        "PrioritizedReplay.sample 256": lambda: buffer.sample(B),
    }


def measured(control: str) -> None:
    """The child under Valgrind."""
    import numpy as np

    from fastrl import _C

    valgrind = ctypes.CDLL(control)
    calls = hot_calls()
    assert _C.simd_level() == "x86-64-v3 (AVX2)", f"the processor level is {_C.simd_level()}"
    gc.disable()
    for call in calls.values():
        call(), call()
    valgrind.start()
    for name, call in calls.items():
        call()
        valgrind.zero()
        for _ in range(CALLS):
            call()
        valgrind.dump(name.encode())
    print(json.dumps({"python": platform.python_version(), "numpy": np.__version__, "compiler": compiler(_C.__file__)}))


def compiler(library: str) -> str:
    """What it says of who made it."""
    found = re.search(rb"(GCC: \([^)]*\) [\w.]+|clang version [\w.]+)", Path(library).read_bytes())
    return found.group().decode() if found else "unknown"


def read(path: Path) -> tuple[str, int, int]:
    """Name, all instructions and those of the extension in a file of callgrind."""
    name, total, own, inside, is_call, objects = "", 0, 0, False, False, {}
    for line in path.read_text().splitlines():
        if line.startswith("desc: Trigger: Client Request: "):
            name = line.removeprefix("desc: Trigger: Client Request: ")
        elif line.startswith("ob="):
            number, _, text = line[3:].partition(" ")
            inside = "/fastrl/_C." in objects.setdefault(number, text)
        elif line.startswith("cob="):
            number, _, text = line[4:].partition(" ")
            objects.setdefault(number, text)
        elif line.startswith("calls="):
            is_call = True  # the next line has what was called
        elif line[:1] in "0123456789+-*" and line:
            if not is_call:
                cost = int(line.split()[1])
                total, own = total + cost, own + cost * inside
            is_call = False
    return name, total // CALLS, own // CALLS


def count() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, control = Path(folder) / "control.c", Path(folder) / "control.so"
        source.write_text(CONTROL)
        subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", control, source], check=True)
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        env = {**os.environ, "FASTRL_SIMD_LEVEL": "3", "FASTRL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        env |= {"FASTRL_BACKEND": "cpp", "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
        # -P: the installed fastrl, whatever the folder.
        command = [*valgrind, sys.executable, "-P", __file__, "--measured", str(control)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}")
        found = [read(path) for path in Path(folder).glob("out.*")]
    counts = {name: {"all": total, "extension": own} for name, total, own in sorted(found) if name}
    return {**json.loads(done.stdout), "instructions": counts}


def compare(now: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """What takes more than it did, and what cannot be compared."""
    if now["compiler"] != kept["compiler"]:
        return [
            f"kept are counts of {kept['compiler']}, here is {now['compiler']}: keep those of the last release first"
        ]
    same = all(now[key] == kept[key] for key in ("python", "numpy"))
    worse = []
    for name, counts in now["instructions"].items():
        before = kept["instructions"].get(name)
        if before is None:
            worse.append(f"{name} is not among those kept")
            continue
        for kind in ("all", "extension") if same else ("extension",):
            ratio = counts[kind] / max(before[kind], 1)
            print(f"{name:40} {kind:10} {before[kind]:>10,} -> {counts[kind]:>10,}  {ratio:6.3f}")
            if ratio > MOST:
                worse.append(
                    f"{name}: {kind} {before[kind]:,} -> {counts[kind]:,} instructions, {ratio:.3f} times as many"
                )
    return worse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.name}")
    parser.add_argument("--measured", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measured:
        return measured(options.measured)
    now = count()
    if options.keep:
        KEPT.write_text(json.dumps(now, indent=1) + "\n")
        print(KEPT.read_text())
        return
    worse = compare(now, json.loads(KEPT.read_text()))
    if worse:
        raise SystemExit("\n".join(worse))


if __name__ == "__main__":
    main()
