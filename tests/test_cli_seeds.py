"""Several seeds in one command, the list of runs, and what a run folder says of itself."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import fails

import fastrl
from fastrl import cli
from fastrl.agents import DQN
from fastrl.agents.hyperparameters import CONFIGS
from fastrl.cli import seeds
from fastrl.cli.options import without
from fastrl.cli.seeds import at_once, interquartile_mean

SMALL = [
    "--hidden",
    "8",
    "--learning-starts",
    "50",
    "--train-every",
    "10",
    "--batch-size",
    "8",
    "--max-episode-steps",
    "50",
]
TRAIN = ["train", "dqn", "--env", "CartPole-v1", *SMALL]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def test_seeds_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--seed", "7", "--seeds", "2", "--jobs", "2", "--eval-every", "600", "--total-steps", "1000"]
    assert cli.main([*TRAIN, *argv]) == 0
    out, err = capsys.readouterr()
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"CartPole-v1-dqn-seeds7-8-\d{8}-\d{6}", folder.name)
    assert sum(err.count(f"seed {seed}: return ") for seed in (7, 8)) == 2 and "(2 of 2)" in err
    means = []
    for seed in (7, 8):
        told = json.loads((folder / f"seed{seed}" / "run.json").read_text())
        assert (told["seed"], told["config"]["seed"], told["result"]["steps"]) == (seed, seed, 1000)
        assert told["history"][0]["command"].endswith(
            f"--total-steps 1000 --seed {seed} --out runs/{folder.name}/seed{seed}"
        )
        means.append(np.mean(told["result"]["greedy_returns"]))
        assert re.search(rf"│ {seed} +│ 1,000 │ +{means[-1]:.1f} │ done", out)
    assert re.search(rf"│ mean +│ +│ +{np.mean(means):.1f} │ of 2 seeds; IQM {np.mean(means):.1f} │", out)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    # Going on with both, and a seed by itself, which gives the same.
    assert cli.main(["train", "--resume", str(folder), "--total-steps", "1200", "--max-episode-steps", "5"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"│ 8 +│ 1,200 │ +5.0 │ done", out) and "to go on" not in err
    for total, what in (([], "done before"), (["--total-steps", "50"], "nothing was done: it has 1,200 steps already")):
        assert cli.main(["train", "--resume", str(folder), *total]) == 0
        out = capsys.readouterr().out
        assert len(re.findall(rf"│ [78] +│ 1,200 │ +5.0 │ {what} +│", out)) == 2 and "of 2 seeds; IQM 5.0" in out
    for seed in (7, 8):
        evaluations = (folder / f"seed{seed}" / "evaluations.csv").read_text().splitlines()[1:]
        assert [row.split(",")[0] for row in evaluations] == ["600", "1200"]
    fails(["train", "dqn", "--resume", folder, "--out", "x"], "--out takes one run; seeds go on where they are", capsys)
    assert cli.main([*TRAIN, "--seed", "8", "--total-steps", "1000", "--out", "alone"]) == 0
    assert cli.main(["train", "--resume", "alone", "--total-steps", "1200"]) == 0
    assert np.array_equal(DQN.load("alone").online.vector, DQN.load(folder / "seed8").online.vector)
    capsys.readouterr()
    assert cli.main(["list", "runs", "alone"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"│ dqn +│ CartPole-v1 │ +[78] │ 1,200 │ +[\d.]+ │ +[\d.]+ │ +[\d.]+ │", out)) == 3
    assert cli.main(["train", "--resume", str(folder / "seed8"), "--total-steps", "1300"]) == 0
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert " of 2 seeds after 1,200 to 1,300 steps; IQM " in capsys.readouterr().out


def test_resume_begins_the_seeds_that_had_not_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start = seeds.One.start

    def interrupted(self):
        if self.seed == "1":
            raise KeyboardInterrupt
        start(self)

    env = [
        "--env",
        "CartPole-v1",
        "--env-kwargs",
        "sutton_barto_reward=true",
        "--wrapper",
        "TimeLimit(max_episode_steps=9)",
    ]
    run = ["train", "dqn", *env, *SMALL, "--total-steps", "600", "--eval-every", "300", "--stop-at", "1e3"]
    with monkeypatch.context() as patched:
        patched.setattr(seeds.One, "start", interrupted)
        assert cli.main([*run, "--seeds", "2", "--jobs", "1", "-oall"]) == 130
    out, err = capsys.readouterr()
    assert re.search(r"│ 1 +│ +0 │ +│ not begun", out) and err.endswith("to go on: fastrl train --resume all\n")
    fails(["train", "--resume", "all", "--gamma", "0.5"], "--gamma cannot be changed", capsys)
    fails(["train", "--resume", "all", "--env", "Acrobot-v1"], "--env cannot be changed", capsys)
    assert os.listdir("all/seed1") == []
    assert cli.main(["train", "--resume", "all"]) == 0
    assert cli.main([*run, "--seed", "1", "--out", "alone"]) == 0
    assert np.array_equal(DQN.load("alone").online.vector, DQN.load("all/seed1").online.vector)
    told, alone = (json.loads(Path(folder, "run.json").read_text()) for folder in ("all/seed1", "alone"))
    assert {**told, "history": 0} == {**alone, "history": 0}


@pytest.mark.slow
def test_a_seed_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("odd_pole.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Odd(CartPoleEnv):\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        self.odd = getattr(self, 'odd', False) or seed == 1\n"
        "        self.steps = getattr(self, 'steps', 0)\n"
        "        return super().reset(seed=seed, options=options)\n"
        "    def step(self, action):\n"
        "        self.steps += 1\n"
        "        if self.odd and self.steps > 300: raise KeyError('broken')\n"
        "        return super().step(action)\n"
        "gym.register('Odd-v0', Odd, max_episode_steps=100)\n"
    )
    argv = ["train", "dqn", "--env", "odd_pole:Odd-v0", *SMALL, "--seeds", "2", "--total-steps", "600", "-oout"]
    assert cli.main(argv) == 1
    out, err = capsys.readouterr()
    assert re.search(r"│ 0 +│ +600 │ +[\d.]+ │ done", out)
    assert "KeyError: 'broken'" in " ".join(out.split()) and err.endswith("to go on: fastrl train --resume out\n")
    assert re.search(r"│ mean +│ +│ +[\d.]+ │ of 1 of 2 seeds; IQM [\d.]+ +│", out)
    assert DQN.load("out/seed1", "odd_pole:Odd-v0").steps == 300


def test_input_that_no_seed_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "dqn", "--env", "CartPol-v1", "--seeds", "2", "--jobs", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].startswith("fastrl: cannot make environment 'CartPol-v1'")
    assert os.listdir("runs") == []
    for flags, pattern in (
        (["--seeds", "0"], "--seeds must be >= 1, got 0"),
        (["--seeds", "2", "--jobs", "0"], "--jobs must be >= 1, got 0"),
        (["--jobs", "2"], "--jobs is of --seeds, which is missing"),
        (["--seeds", "2", "--resume", "x"], "--resume goes on with the seeds that there are; --seeds begins new ones"),
        (["--seeds", "2", "--gamma", "2"], "--gamma must be in"),
    ):
        fails([*TRAIN, *flags], pattern, capsys)
    assert os.listdir("runs") == []


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(number, code, tmp_path):
    argv = [*TRAIN, "--seeds", "3", "--jobs", "2", "--total-steps", "10000000", "--out", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrl", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    tables = [tmp_path / "runs" / f"seed{seed}" / "progress.csv" for seed in (0, 1)]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not all(t.exists() and t.read_text().count("\n") > 1 for t in tables):
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in err
    assert out.count("terminated at step") == 2 and out.count("not begun") == 1
    assert err.endswith(f"to go on: fastrl train --resume {tmp_path / 'runs'}\n")
    assert all(DQN.load(tmp_path / "runs" / f"seed{seed}").steps >= 1000 for seed in (0, 1))


def test_how_many_at_once():
    cases = {(1, 8): 1, (2, 2): 2, (3, 2): 3, (4, 2): 2, (5, 2): 3, (7, 4): 7, (8, 4): 4, (9, 1): 1, (100, 8): 9}
    assert {case: at_once(*case) for case in cases} == cases


def test_interquartile_mean():
    assert interquartile_mean([1.0]) == (1.0, None, None) and interquartile_mean([1.0, 3.0]) == (2.0, None, None)
    mean, low, high = interquartile_mean([0.0, 10.0, 11.0, 12.0, 1000.0])
    assert mean == 11.0 and 0 <= low < 11 < high <= 1000
    assert interquartile_mean([5.0] * 8) == (5.0, 5.0, 5.0)
    # Against scipy's, which `fastrl plot` has.
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(0).normal(size=20)
    mean, low, high = interquartile_mean(x)
    ours = stats.bootstrap((x,), lambda v, axis: stats.trim_mean(v, 0.25, axis), method="percentile", rng=1)
    assert mean == pytest.approx(stats.trim_mean(x, 0.25))
    assert np.allclose((low, high), ours.confidence_interval, atol=0.03)


def test_without():
    args = ["--seeds", "3", "--gamma=0.5", "--out=x", "-oy", "-o", "z", "--seed=2", "--env", "E"]
    assert without(args, ("--seeds", "--seed", "--out", "-o")) == ["--gamma=0.5", "--env", "E"]


def test_list(run_folder, tmp_path, monkeypatch, capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +[\d,]+  \w", out, re.MULTILINE) for name in CONFIGS)
    monkeypatch.chdir(tmp_path)
    fails(["list", "nowhere"], "nowhere: no such folder", capsys)
    Path("empty").mkdir()
    assert cli.main(["list", "empty"]) == 0
    assert capsys.readouterr().out == "no runs in empty\n"
    # A run that is no more than its table, one whose files are damaged, and one without an episode's end.
    for name, text in {
        "bare": "step,episode_return\n1000,2.5\n2000,nan\n3000,1.5\n40",
        "damaged": "\0\0not a table",
        "young": "step,episode_return\n1000,nan\n",
    }.items():
        Path(name).mkdir()
        Path(name, "progress.csv").write_text(text)
        Path(name, "run.json").write_text('{"config": 3, "result": [], "total_steps": "x", "algorithm": null}')
    Path("damaged/run.json").write_text("[" * 10_000)
    Path("other").mkdir()
    Path("other/progress.csv").write_text("step,episode_return\n1000,2.5\n")
    told = {"env": "FrozenLake-v1", "env_kwargs": {"is_slippery": False, "map_name": "8x8"}, "wrappers": ["Wrap"]}
    Path("other/run.json").write_text(json.dumps({"algorithm": "dqn", **told}))
    assert cli.main(["list", ".", str(run_folder)]) == 0
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert rows[0] == ["bare", "", "", "", "3,000", "1.5", "2.5", ""]
    assert rows[1][:5] == ["damaged", "", "", "", "0"] and rows[3] == ["young", "", "", "", "1,000", "", "", ""]
    assert rows[2][:3] == ["other", "dqn", "FrozenLake-v1 (is_slippery=false, map_name=8x8, Wrap)"]
    assert rows[4][1:5] == ["dqn", "CartPole-v1", "3", "1,500"] and float(rows[4][6]) >= float(rows[4][5]) > 0


def test_a_run_explains_itself_from_its_first_step(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"

    def fail(self):
        raise KeyError(json.loads((run / "run.json").read_text())["total_steps"])

    monkeypatch.setattr(DQN, "_iterate", fail)
    argv = [*TRAIN, "--total-steps", "123", "--out", str(run)]
    assert cli.main(argv) == 1 and "KeyError: 123" in capsys.readouterr().err
    assert not run.exists()  # nothing came of it
    run.mkdir()
    assert cli.main(argv) == 1 and list(run.iterdir()) == []


def test_a_run_folder_explains_itself(run_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(run_folder, tmp_path / "run")
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "1600"]) == 0
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    saved = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    assert told["config"] == saved["config"] and (told["algorithm"], told["env"], told["seed"]) == (
        "dqn",
        "CartPole-v1",
        3,
    )
    assert told["env_kwargs"] == {} and told["wrappers"] == [] and told["total_steps"] == 1600
    assert len(told["history"]) == 2 and all(h["fastrl"] == fastrl.__version__ and h["date"] for h in told["history"])
    assert told["result"]["steps"] == 1600 and len(told["result"]["greedy_returns"]) == 20
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "run.json").read_bytes() == before
