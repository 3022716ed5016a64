"""`.ci/gpu.sh` without a GPU: what it calls are stubs, and the numbers of its benchmarks are made up."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STEPS = ["build", "tests", "bench", "memcheck", "racecheck", "synccheck"]
SCRIPT = ROOT / ".ci" / "gpu.sh"

# A command notes how it was called, and ends as the variable of its step says.
STUB = r"""#!/usr/bin/env bash
case "$(basename "$0") $*" in
  nvidia-smi*) [ -z "${NO_GPU:-}" ] || exit 9; echo 9.0; exit ;;
  *find_spec*) echo "${LACKING:-}"; exit ;;
  *" pip "*) step=build ;;
  *devices*) step=import ;;
  *bench_cuda.py*) step=bench; echo '{}' >"${@: -1}" ;;
  compute-sanitizer*) step=$2 ;;
  *pytest*) step=tests ;;
esac
echo "$step $PWD $PYTHONPATH $*" >>"$CALLS"
echo "output of $step"
[ "$step" != "${SLOW:-}" ] || sleep 60
case " ${FAIL:-} " in *" $step "*) echo "error in $step"; exit 1 ;; esac
"""


@pytest.fixture
def run(tmp_path):
    """run(SECONDS, variables...): the script with stubs -> (status, output, folder of results, calls by name)."""
    if sys.platform != "linux" or not SCRIPT.exists():
        pytest.skip("the script is for Linux, and not in a wheel's tests")
    stubs, results, calls = tmp_path / "bin", tmp_path / "results", tmp_path / "calls"
    stubs.mkdir()
    calls.touch()
    for name in ("nvidia-smi", "nvcc", "compute-sanitizer", "python"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)

    def call(*seconds, **variables):
        env = {name: x for name, x in os.environ.items() if name not in ("CUDA_HOME", "PYTHONPATH")}
        env |= {
            "PATH": f"{stubs}:{env['PATH']}",
            "PYTHON": str(stubs / "python"),
            "CALLS": str(calls),
            "PYTHONPATH": "/given",
        }
        env |= variables
        command = ["bash", SCRIPT, results, *seconds]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        made = {line.split()[0]: line.split()[1:] for line in calls.read_text().splitlines()}
        return done.returncode, done.stdout + done.stderr, results, made

    return call


def steps_of(results):
    """step -> its result, as the summary tells."""
    lines = [line.split() for line in (results / "summary").read_text().splitlines()[1:]]
    return {name: " ".join(rest[2:]) for name, *rest in lines if name != "total"}


def test_all_steps_and_one_folder(run):
    status, output, results, calls = run()
    assert status == 0, output
    assert list(calls) == ["build", "import", *STEPS[1:]]
    assert steps_of(results) == dict.fromkeys(STEPS, "ok")
    assert {path.name for path in results.iterdir()} == {"summary", "bench.json", *(f"{step}.log" for step in STEPS)}
    assert "output of bench" in output and "failed first" not in output
    (work,) = {folder for folder, *_ in calls.values()}
    assert not Path(work).exists() and ROOT not in Path(work).parents, "what was built is gone"
    assert all(path == f"{work}/site:/given" for _, path, *_ in calls.values())
    assert "cmake.define.FASTRL_CUDA_ARCHITECTURES=90-real" in calls["build"]
    for path in (word for call in calls.values() for word in call if word.startswith(f"{ROOT}/tests")):
        assert Path(path).exists(), path
    status, output, *_ = run()
    assert status == 2 and "must be a new or an empty folder" in output


def test_the_first_failure_is_printed_first_and_the_rest_runs(run):
    status, output, results, calls = run(FAIL="tests racecheck")
    assert status == 1
    assert list(calls) == ["build", "import", *STEPS[1:]]
    wanted = dict.fromkeys(STEPS, "ok") | dict.fromkeys(["tests", "racecheck"], "FAILED (1)")
    assert steps_of(results) == wanted
    said = output[output.index("########") :]
    assert said.startswith("######## tests failed first") and "error in tests" in said
    assert said.index("error in tests") < said.index("######## failed after it: racecheck")
    assert "error in racecheck" not in output and "error in racecheck" in (results / "racecheck.log").read_text()


@pytest.mark.parametrize("broken", ["build", "import"])
def test_nothing_runs_on_what_was_not_built(run, broken):
    status, output, results, calls = run(FAIL=broken)
    assert status == 1 and "build failed first" in output and f"error in {broken}" in output
    assert list(calls)[-1] == broken and steps_of(results) == {"build": "FAILED (1)"}


def test_the_limit_of_all_steps(run):
    status, output, results, calls = run("8", SLOW="tests")
    assert status == 1 and "tests failed first" in output
    assert steps_of(results) == dict.fromkeys(STEPS, "FAILED (124)") | {"build": "ok"}
    assert list(calls)[-1] == "tests"
    assert (results / "bench.log").read_text() == "not run: the 8 seconds were over\n"


def test_what_is_missing(run):
    status, output, results, calls = run(NO_GPU="1", LACKING="scipy, a torch that sees the GPU")
    assert status == 2 and not calls
    assert not any(results.iterdir())
    first, second = output.splitlines()
    assert first == "missing: a GPU: nvidia-smi names no compute capability"
    assert second.endswith("python lacks scipy, a torch that sees the GPU")


def test_targets_of_the_benchmarks():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("bench_cuda", ROOT / "bench" / "bench_cuda.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)

    def found(factor):
        """Numbers better than the targets by a factor."""
        rows = {}
        for (row, unit), (ok, limit) in bench.TARGETS.items():
            rows.setdefault(row, {})[unit] = limit * factor if ok is bench.AT_LEAST else limit / factor
        return rows

    assert bench.missed(found(1.0)) == bench.missed(found(1.1)) == []
    missed = bench.missed(found(0.99))
    assert len(missed) == len(bench.TARGETS) and all("wanted" in line for line in missed)
    assert "tree 1000000, fastrl: captured us 15.2, wanted <= 15" in missed
    assert "gae 1024x16384: share of a copy 0.842, wanted >= 0.85" in missed
    assert "tree 1000000, fastrl: captured us not measured, wanted <= 15" in bench.missed({})
