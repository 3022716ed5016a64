"""`fastrl bench`: its table, its files, its checks of answers, and wrong input as one line."""

import csv
import importlib
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from fastrl import bench, cli


def test_every_kernel_is_timed_beside_its_reference(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    libraries = ("tianshou", "torchrl", "stable_baselines3", "jax", "cpprb", "numba", "scipy")

    def nothing_but_torch(name):
        if name.startswith(libraries):
            raise ImportError(f"No module named {name!r}")
        return importlib.import_module(name)

    monkeypatch.setattr(bench.timing, "importlib", SimpleNamespace(import_module=nothing_but_torch))
    out = tmp_path / "results"
    assert cli.main(["bench", "--quick", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"bench.csv", "bench.png"}
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG") and str(out) in text.replace("\n", "")
    with (out / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == bench.COLUMNS
    for name in bench.KERNELS:
        own = [row for row in rows if row["kernel"] == name]
        assert own[0]["contender"] == "fastrl" and float(own[0]["ratio"]) == 1
        assert own[1]["contender"].startswith("reference: ")
        assert name in text
        for row in own:
            assert 0 < float(row["us_25"]) <= float(row["us"]) <= float(row["us_75"])
    assert re.search(r"left out: tianshou: No module named 'tianshou", text)
    assert "backend" in text and "thread" in text


def test_only_the_named_kernels_and_nothing_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--quick", "--kernels", "gather_rows", "n_step_gather"]) == 0
    out, err = capsys.readouterr()
    assert "gather_rows" in out and "n_step_gather" in out and "sum_tree" not in out
    assert "timing gather_rows rows=1000 batch=32" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--kernels", "gea"], "unknown kernel 'gea'; did you mean gae\\? known are gae, sum_tree"),
        (["--threads", "0"], r"--threads must be in \[1, 1024\], got 0"),
        (["--sizes", "3"], "sizes"),
        (["-o", "{full}"], "is not an empty folder; nothing is overwritten"),
    ],
)
def test_wrong_input_is_one_line(arguments, pattern, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "kept").write_text("")
    assert cli.main(["bench", *(a.format(full=tmp_path) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fastrl: ") and err.count("\n") == 1 and re.search(pattern, err), err


def rows_of(monkeypatch, contenders, check):
    problem = bench.Problem(contenders, check)
    monkeypatch.setitem(bench.KERNELS, "gae", bench.Kernel(lambda n: problem, [{"n": 1}, {"n": 2}], {"n": 3}))
    left_out = {}
    return list(bench.run(["gae"], True, lambda line: None, left_out)), left_out


def test_a_wrong_answer_is_never_timed(monkeypatch):
    def check(found):
        np.testing.assert_array_equal(found, [1, 2])

    wrong = {"fastrl": lambda: lambda: [1, 2], "reference: it": lambda: lambda: [1, 3]}
    rows, left_out = rows_of(monkeypatch, wrong, check)
    assert [row.contender for row in rows] == ["fastrl"]
    assert left_out["reference: it (gae)"].startswith("its answer is another: Arrays are not equal")
    with pytest.raises(AssertionError):
        rows_of(monkeypatch, {"fastrl": lambda: lambda: [0, 2]}, check)


def test_ratios_are_of_times(monkeypatch):
    def sleeper(seconds):
        return lambda: lambda: time.sleep(seconds)

    contenders = {
        "fastrl": sleeper(0.002),
        "reference: slow": sleeper(0.02),
        "missing": lambda: bench.timing.library("no.such"),
    }
    rows, left_out = rows_of(monkeypatch, contenders, lambda found: None)
    assert [(row.kernel, row.size, row.contender) for row in rows] == [
        ("gae", "n=3", "fastrl"),
        ("gae", "n=3", "reference: slow"),
    ]
    assert rows[0].ratio == 1 and 3 < rows[1].ratio < 15 and rows[1].us > 20_000
    assert left_out == {"missing": "No module named 'no'"}


@pytest.mark.parametrize("name", bench.KERNELS)
def test_the_checks_find_wrong_answers(name):
    """The answer of fastrl is right, and what is a little off is not."""
    kernel = bench.KERNELS[name]
    problem = kernel.problem(**kernel.quick)
    found = problem.contenders["fastrl"]()()
    problem.check(found)
    with pytest.raises(AssertionError):
        problem.check([x + 1 for x in found])


def test_the_module_needs_numpy_alone():
    code = "import sys, fastrl.bench; print([m for m in ('torch', 'numba', 'rich', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
