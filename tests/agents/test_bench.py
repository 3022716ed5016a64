"""The benchmarks of whole agents run for whoever has the agents extra, and their tables add up."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from algorithms import DEEP

BENCH = Path(__file__).parents[2] / "bench"


def test_whole_agents_benchmark_runs_and_adds_up(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import whole_agents as b; "
        "b.TASKS['dqn'] = b.Task('CartPole-v1', 8, 16, 510, 40, int(sys.argv.pop(1))); b.main()"
    )
    python = sys.executable
    options = ["--tasks", "dqn", "--no-save", "--python", f"fastrl={python}", "--python", f"baseline={python}"]
    done = {}
    for updates in (40, 41):
        command = [python, "-c", code, BENCH, str(updates), *options, "--rounds", "1"]
        done[updates] = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done[41].returncode and "40 updates in the timed steps, not 41" in done[41].stderr
    assert done[40].returncode == 0, done[40].stderr
    results = json.loads(done[40].stdout.splitlines()[0])["results"]
    (ours,), (other,) = (results[name]["steps_per_s"] for name in ("fastrl", "baseline"))
    assert ours > 0 and results["fastrl"]["ratio"] == 1 and results["fastrl"]["peak_mb"] > 0
    assert results["baseline"]["ratio"] == pytest.approx(ours / other, abs=0.01)
    assert "| dqn: CartPole-v1, 8-8, batch 16 |" in done[40].stdout


@pytest.mark.parametrize("after", [[1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [2.0, 3.0, float("nan")]])
def test_whole_agents_benchmark_counts_no_agent_that_did_not_learn(after, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import whole_agents as b, numpy as np; "
        "seen = {'UPDATES': 3, 'report': lambda speed: print('counted')}; exec(b.CHECK, seen); "
        "check = lambda after: seen['checked'](1.0, np.array([1.0, 2.0, 3.0]), np.array(after)); "
        "check([2.0, 3.0, 3.0]); check(eval(sys.argv[2], {'nan': np.nan}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, BENCH, repr(after)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "counted\n" and "% changed, finite: " in done.stderr


def test_dqn_family_benchmark_runs_and_compares_networks(tmp_path):
    pytest.importorskip("stable_baselines3")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import dqn_family as b; "
        "b.TASKS = {n: t._replace(warm=102, steps=2, updates=2 * (n == 'images')) for n, t in b.TASKS.items()}; "
        "change = sys.argv.pop(1); "
        "b.CODE['torch'] = b.SB3.replace('.argmax()', '.argmin()') if change else b.SB3; b.main()"
    )
    done = {}
    for change, tasks in (("", ["images", "acting"]), ("other actions", ["acting"])):
        command = [sys.executable, "-c", code, BENCH, change, "--tasks", *tasks, "--rounds", "1", "--no-save"]
        done[change] = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done[""].returncode == 0, done[""].stderr
    images, acting = (json.loads(line)["results"] for line in done[""].stdout.splitlines()[:2])
    assert set(images) == {"fastrl", "sb3"} and set(acting) == {"fastrl", "sb3", "torch"}
    assert all(r["steps_per_s"][0] > 0 for r in (*images.values(), *acting.values()))
    assert "acting: not the same parameters or actions" in done["other actions"].stderr


def test_kept_returns_beside_sb3_are_those_of_its_table(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    module = importlib.import_module("integrations_sb3")
    if not module.LOGS.exists():
        pytest.skip("an sdist holds no results")
    table = module.LOGS.with_suffix(".md").read_text()
    for name, task in module.RETURNS.items():
        runs = {of: [r for r in module._logs() if (r["task"], r["library"]) == (name, of)] for of in module.FIRST_SEED}
        seeds = [r["seed"] for each in runs.values() for r in each]
        assert len(set(seeds)) == len(seeds) and min(map(len, runs.values())) >= 10
        for measure, text in module.MEASURES.items():
            (row,) = re.findall(rf"\| {name} {task.env}, {task.steps:,} steps \| {text} \| (.*) \|", table)
            for cell, each in zip(row.split(" | "), runs.values(), strict=False):  # then p
                mean = sum(r[measure] for r in each) / len(each)
                assert float(cell.split()[0]) == pytest.approx(mean, abs=0.051) and cell.endswith(f"({len(each)})")


@pytest.fixture
def learning(monkeypatch, tmp_path):
    """bench/learning.py with one small task an algorithm, and its results in tmp_path."""
    monkeypatch.syspath_prepend(BENCH)
    module = importlib.import_module("learning")
    small = {
        "dqn": {"hidden": (8,), "learning_starts": 100, "train_every": 50},
        "ppo": {"hidden": (8,), "num_envs": 4, "n_steps": 16, "epochs": 1},
    }
    tasks = {name: {"small": {"CartPole-v1": module.Task(300, 5, small[name])}} for name in small}
    monkeypatch.setattr(module, "TASKS", tasks)
    monkeypatch.setattr(module, "VARIANTS", ("small",))
    monkeypatch.setattr(module, "ENVS", ("CartPole-v1",))
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module.Task, "evaluate_every", lambda self, algorithm: 150)
    monkeypatch.setattr(module, "EPISODES", 2)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FASTRL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # as main sets them; undone after the test
    return module


def test_learning_benchmark_keeps_a_log_a_run(learning, tmp_path):
    for algorithm, ends in (("dqn", ["150", "300"]), ("ppo", ["192", "320"])):  # ppo ends with an update of 64 steps
        path = learning.log_path(algorithm, "CartPole-v1", "small", 1)
        learning.run(path, algorithm, "CartPole-v1", 1, learning.TASKS[algorithm]["small"]["CartPole-v1"])
        assert path == tmp_path / algorithm / "CartPole-v1" / "small" / "seed1.csv"
        header, *rows = (line.split(",") for line in path.read_text().splitlines())
        assert tuple(header) == learning.COLUMNS and [row[0] for row in rows] == ends
        assert [file.name for file in path.parent.iterdir()] == ["seed1.csv"]
    assert learning.table().count("CartPole-v1") == 2


def test_learning_benchmark_runs_what_is_missing(learning, tmp_path, monkeypatch, capsys):
    path = learning.log_path("dqn", "CartPole-v1", "small", 0)
    path.parent.mkdir(parents=True)
    path.write_text("step,greedy_return\n300,9.5\n")
    (broken,) = learning.TASKS["ppo"]["small"].values()
    learning.TASKS["ppo"]["broken"] = {"CartPole-v1": broken._replace(overrides={"gamma": 2.0})}
    monkeypatch.setattr(learning, "VARIANTS", ("small", "broken"))
    assert learning.main(["--algorithm", "ppo", "--seeds", "1"]) == 1  # one failed, and the other was run
    out, err = capsys.readouterr()
    assert err == "ppo CartPole-v1 broken seed 0 FAILED: InputError: PPOConfig: gamma must be in [0, 1], got 2.0\n"
    assert re.search(r"^ppo CartPole-v1 small seed 0: \d+\.\d after \d+ s$", out, re.MULTILINE)
    assert path.read_text() == "step,greedy_return\n300,9.5\n"
    assert learning.main(["--algorithm", "ppo", "--variant", "small", "--seeds", "1"]) == 0  # nothing is left to run
    assert "after" not in capsys.readouterr().out


def test_learning_table(learning):
    for seed, last in {10: 400, 0: 4, 1: 0, 2: 4, 9: 4}.items():  # all that there are, in the order of the seeds
        path = learning.log_path("dqn", "CartPole-v1", "small", seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"step,greedy_return\n150,500\n300,{last}\n")
    row = learning.table().splitlines()[-1]
    assert re.fullmatch(r"\| CartPole-v1 \| dqn \| small \| 4\.0 \[.*\] \| 4 0 4 4 400 \| MISSED 5 \| 300 \|", row)
    path.write_text("step,greedy_return\n150,500\n")
    with pytest.raises(SystemExit, match="dqn CartPole-v1 small: a log ends before step 300"):
        learning.table()


def test_learning_table_compares_with_stable_baselines3(learning, monkeypatch):
    task = learning.Task(300, None, {})
    variants = {name: {"CartPole-v1": task} for name in ("ours", learning.SB3)}
    monkeypatch.setattr(learning, "TASKS", {"ppo": variants})
    for variant, returns in (("ours", [7, 6, 5]), (learning.SB3, [8.25])):
        for seed, last in enumerate(returns):
            path = learning.log_path("ppo", "CartPole-v1", variant, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"step,greedy_return\n300,{last}\n")
    ours, peer = learning.table().splitlines()[-2:]
    # One order of four in which sb3 is best, and one in which it is worst.
    assert ours.endswith("| MISSED 8.2, p = 0.50 | 300 |") and peer.endswith("| 8 |  | 300 |")


def test_learning_benchmark_trains_stable_baselines3_with_our_settings(learning, tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    rates = {"learning_rate": 5e-4, "actor_learning_rate": 5e-4}
    task = learning.Task(
        300, None, {"hidden": (8, 9), "batch_size": 7, "learning_starts": 100, "train_every": 3, **rates}
    )
    for algorithm in ("sac", "td3"):
        model = learning.StableBaselines3(algorithm, "Pendulum-v1", 0, task.overrides).model
        assert isinstance(model, {"sac": sb3.SAC, "td3": sb3.TD3}[algorithm])
        found = (model.batch_size, model.learning_starts, model.train_freq.frequency, model.learning_rate)
        assert found == (7, 100, 3, 5e-4)
        shapes = [tuple(p.shape) for p in model.critic.q_networks[0].parameters()]
        assert shapes == [(8, 4), (8,), (9, 8), (9,), (1, 9), (1,)]
    path = learning.log_path("td3", "Pendulum-v1", learning.SB3, 0)
    learning.run(path, "td3", "Pendulum-v1", 0, task)
    steps, returns = zip(*(line.split(",")[:2] for line in path.read_text().splitlines()[1:]), strict=True)
    assert steps == ("150", "300") and all(-3300 < float(r) < 0 for r in returns)


def test_learning_tasks_name_what_exists(monkeypatch):
    """A wrong name or value in the table would show only hours into a matrix."""
    from fastrl.agents import ALGORITHMS
    from fastrl.agents.config import make_config

    monkeypatch.syspath_prepend(BENCH)
    module = importlib.import_module("learning")
    assert set(module.TASKS) == {*DEEP, "fqi"}
    assert not set(module.TASKS) & set(module.STUDIES)
    for algorithm, variants in {**module.TASKS, **module.STUDIES}.items():
        for variant, envs in variants.items():
            for env, task in envs.items():
                assert algorithm not in module.STUDIES or task.beside in variants
                make_config(
                    ALGORITHMS[module.CLASSES.get(algorithm, algorithm)].config_class,
                    task.overrides,
                    f"{algorithm} {variant} {env}",
                )
                assert task.steps % task.evaluate_every(algorithm) == 0
