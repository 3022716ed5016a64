"""The Python examples of README and docs run as they stand, and so do the doctests of the docstrings."""

import doctest
import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/kernels.md", "docs/replay.md", "docs/environments.md", "docs/agents.md"]


def python_blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", PAGES)
def test_examples_run(name, tmp_path, monkeypatch):
    """Each by itself, and without a warning of ours; those of the page that says so, one after another."""
    pytest.importorskip("gymnasium")
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(name)
    assert blocks
    namespace = {}
    go_on = "The examples of this page go on from each other." in (ROOT / name).read_text(encoding="utf-8")
    assert go_on == (name == "docs/kernels.md")
    for block in blocks:
        if name == "docs/agents.md":  # a tenth of the steps
            block = re.sub(r"\b(\d+)0_000\b", r"\1_000", block)
        if "__main__" in block:  # it starts processes, which import it
            Path("example.py").write_text(block)
            subprocess.run([sys.executable, "-W", "error::UserWarning", "example.py"], check=True, timeout=300)
            continue
        namespace = namespace if go_on else {}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            exec(compile(block, name, "exec"), namespace)
    if name == "docs/agents.md":
        assert namespace["agent"].algorithm == "sac" and (tmp_path / "own" / "config.json").is_file()


def test_every_page_with_python_is_run():
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    with_code = {name for name in pages if python_blocks(name)} | {"README.md"}
    # Which tests/integrations/test_recipes.py and tests/distributed/test_runs.py run.
    assert with_code == {*PAGES, "docs/from-your-library.md", "docs/distributed.md"}


@pytest.mark.parametrize("which", ["agents", "bench", "speed", "scans", "tanh_normal", "fisher"])
def test_tables_are_those_of_the_kept_results(which, monkeypatch):
    if not (ROOT / "bench" / "results").exists():
        pytest.skip("an sdist holds no results")
    monkeypatch.syspath_prepend(ROOT / "bench")
    table = getattr(importlib.import_module("readme_tables"), which)()
    assert len(table.splitlines()) > 3
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/benchmarks.md")]
    assert any(table in text for text in texts), "run `python bench/readme_tables.py` and paste"


@pytest.mark.parametrize(
    "name",
    [
        "fastrl.kernels.sum_tree",
        "fastrl.kernels.categorical",
        "fastrl.kernels.conjugate_gradient",
        "fastrl.kernels.curvature.fisher",
        "fastrl.kernels.curvature.hessian",
        "fastrl.kernels.normal",
        "fastrl.kernels.tanh_normal",
        "fastrl.replay.buffer",
    ],
)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_the_reference_of_hyperparameters_is_current(monkeypatch):
    pytest.importorskip("gymnasium")
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT / "docs")
    make = importlib.import_module("make_reference")
    text = make.PAGE.read_text(encoding="utf-8")
    assert text == make.page(), "run `python docs/make_reference.py`"
    assert make.STUB.read_text(encoding="utf-8") == make.stub(), "run `python docs/make_reference.py`"
    assert "| `per_alpha` | `float` | `0.6` | Exponent of the priorities: 0 is uniform replay. |" in text
    assert "|  |" not in text  # a setting without a meaning
    told = [line.strip() for config in make.CONFIGS.values() for line in make.describe_settings(config).splitlines()]
    assert len(told) > 500 and not [line for line in told if "  " in line]  # the source's indentation


TAKE_MODULES = [
    "DQN", "REINFORCE", "OneStepActorCritic", "A2C", "A3C", "PPO", "TRPO", "QProp", "CEM", "NAF", "QTOpt", "DDPG",
    "D4PG", "TD3", "SAC", "SACDiscrete", "TQC",
]  # fmt: skip


def test_type_checkers_take_the_calls_that_work(tmp_path):
    """Of the stub alone: what it imports is not looked at, which would take a minute."""
    pytest.importorskip("mypy")
    pytest.importorskip("gymnasium")
    classes = list(importlib.import_module("fastrl.agents").CLASS_NAMES.values())
    good = [
        "DQN('CartPole-v1', DQNConfig(double=True), network=object(), hidden=[64, 64])",
        "DQN('CartPole-v1', network='nature')",
        "R2D2('CartPole-v1', network='gru')",
        "RecurrentPPO('CartPole-v1', network='gru')",
        "FQI('CartPole-v1', dataset=object())",
        "REINFORCE('CartPole-v1', baseline=False)",
        *(f"{name}('CartPole-v1', network={{'actor': object()}}, seed=0)" for name in TAKE_MODULES),
    ]
    bad = [f"{name}('CartPole-v1', network=object())" for name in classes if name not in TAKE_MODULES]
    assert len(bad) == len(classes) - len(TAKE_MODULES) > 0
    file = tmp_path / "calls.py"
    file.write_text("\n".join(["from fastrl.agents import *", *good, *bad]))
    stub = "fastrl/agents/__init__.pyi"
    how = ["--config-file=", "--follow-imports=skip", f"--cache-dir={tmp_path / 'cache'}"]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *how, stub, str(file)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = [int(line.split(":")[1]) for line in run.stdout.splitlines() if "error:" in line]
    assert lines == list(range(len(good) + 2, len(good) + len(bad) + 2)), run.stdout + run.stderr


def test_the_ledger_is_that_of_the_kept_logs(monkeypatch):
    pytest.importorskip("scipy")
    if not (ROOT / "bench" / "results").exists():
        pytest.skip("an sdist holds no results")
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.syspath_prepend(ROOT / "docs")
    make = importlib.import_module("make_results")
    text = make.PAGE.read_text(encoding="utf-8")
    assert text == make.page(), "run `python docs/make_results.py`"
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "`--" in line]
    logs = {path.parent for path in (ROOT / "bench" / "results" / "learning").glob("*/*/*/seed*.csv")}
    of_studies = {folder for folder in logs if folder.parts[-3] in make.learning.STUDIES}
    assert len(rows) == len({folder for folder in logs - of_studies if folder.name != "sb3"})
    assert all(f"| {folder.parts[-3]} | {folder.name} | " in text for folder in of_studies)
    assert "489 +- 16 at 500k (CleanRL)" in text


@pytest.mark.parametrize(("name", "data"), [("speed", "speeds"), ("learning", "curves")])
def test_the_pictures_are_of_the_kept_results(name, data, monkeypatch):
    if not (ROOT / "bench" / "results").exists():
        pytest.skip("an sdist holds no results")
    monkeypatch.syspath_prepend(ROOT / "bench")
    pictures = importlib.import_module("pictures")
    found = getattr(pictures, data)()
    assert len(found) >= 3
    for theme in pictures.COLOURS:
        text = (pictures.PICTURES / f"{name}-{theme}.svg").read_text(encoding="utf-8")
        assert f">{pictures.digest(found)}<" in text, "run `python bench/pictures.py`"
