"""Environments from the command line: keyword arguments, wrappers, modules in the current folder, what a run keeps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from commands import fails

from fastrl import cli
from fastrl.agents import DQN, EnvConfig
from fastrl.cli.environment import keyword_arguments

SMALL = [
    "--hidden",
    "8",
    "--learning-starts",
    "20",
    "--train-every",
    "10",
    "--batch-size",
    "8",
    "--max-episode-steps",
    "20",
]
TRAIN = ["train", "dqn", *SMALL, "--total-steps", "60"]

MINE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

gym.register("MinePole-v0", CartPoleEnv, max_episode_steps=30)

class Halved(gym.RewardWrapper):
    def reward(self, reward):
        return reward / 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with my_poles.py, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_poles.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("my_poles", None)
    gym.registry.pop("MinePole-v0", None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["a=1", "b=x", "c=True", "d=none", "e=[1, 2]", "f=-1.5"],
            {"a": 1, "b": "x", "c": True, "d": "none", "e": [1, 2], "f": -1.5},
        ),
        (['{"a": {"b": null}}', "a=2"], {"a": 2}),
        (["a=b=c", 'd="1"', "e="], {"a": "b=c", "d": "1", "e": ""}),
    ],
)
def test_keyword_arguments(words, expected):
    assert keyword_arguments(words) == expected


@pytest.mark.parametrize("word", ["a", "{", '{"a"}', "[1]", "=1", "a b=1"])
def test_keyword_arguments_that_are_none(word, capsys):
    fails(
        ["train", "dqn", "--env", "CartPole-v1", "--env-kwargs", word],
        "--env-kwargs must be key=value or a JSON",
        capsys,
    )


def test_a_run_keeps_its_environment(here, capsys):
    env = [
        "--env",
        "CartPole-v1",
        "--env-kwargs",
        "sutton_barto_reward=True",
        "--wrapper",
        "TimeLimit(max_episode_steps=5)",
    ]
    assert cli.main([*TRAIN, *env, "--out", "run"]) == 0
    config = json.loads(Path("run/checkpoint/config.json").read_text())
    assert config["env_kwargs"] == {"sutton_barto_reward": True}
    assert config["wrappers"] == ["TimeLimit(max_episode_steps=5)"]
    capsys.readouterr()
    assert cli.main(["eval", "run", "--episodes", "2"]) == 0  # 5 steps without a fall, which alone is a -1
    assert "0.0 +- 0.0" in capsys.readouterr().out
    assert cli.main(["eval", "run", "--episodes", "2", "--env-kwargs", "sutton_barto_reward=false"]) == 0
    assert "5.0 +- 0.0" in capsys.readouterr().out
    assert cli.main(["train", "--resume", "run", "--total-steps", "80", *env]) == 0
    resume = ["train", "--resume", "run", "--total-steps", "90"]
    capsys.readouterr()
    fails([*resume, "--env-kwargs", "sutton_barto_reward=false"], "--env-kwargs cannot be changed", capsys)
    fails([*resume, "--wrapper", "FlattenObservation"], "--wrapper cannot be changed", capsys)
    assert cli.main(resume) == 0
    assert DQN.load("run").envs.spec == EnvConfig("CartPole-v1", config["env_kwargs"], config["wrappers"])


def test_modules_of_the_current_folder(here, capsys):
    env = ["--env", "my_poles:MinePole-v0", "--wrapper", "my_poles:Halved"]
    assert cli.main([*TRAIN, *env, "--out", "run"]) == 0
    assert "at most" not in capsys.readouterr().out
    for argv in (["eval", "run"], ["train", "--resume", "run", "--total-steps", "90"]):
        fails(argv, "imports the module 'my_poles'.*--env my_poles:MinePole-v0", capsys)
        fails([*argv, *env[:2]], "has the wrapper my_poles:Halved.* --wrapper my_poles:Halved$", capsys)
    assert cli.main(["eval", "run", "--episodes", "1", *env]) == 0
    assert float(re.search(r"return +│ (\S+)", capsys.readouterr().out)[1]) <= 15
    assert cli.main(["train", "--resume", "run", "--total-steps", "90", *env]) == 0


def test_go_on_with_names_all_that_imports(here, monkeypatch, capsys):
    def interrupted(self, *_, **__):
        raise KeyboardInterrupt("checkpoint saved")

    monkeypatch.setattr(DQN, "learn", interrupted)
    env = ["--env", "my_poles:MinePole-v0", "--wrapper", "TimeLimit(max_episode_steps=5)", "my_poles:Halved"]
    assert cli.main([*TRAIN, *env, "--out", "run"]) == 130
    wrappers = "'TimeLimit(max_episode_steps=5)' my_poles:Halved"
    assert capsys.readouterr().err.endswith(f"--resume run --env my_poles:MinePole-v0 --wrapper {wrappers}\n")


def test_the_current_folder_hides_no_package(here):
    """The command as it is installed, whose path lacks the current folder: a numpy.py there is none."""
    Path("torch.py").write_text("raise RuntimeError('the wrong torch')")
    Path("random.py").write_text("raise RuntimeError('the wrong random')")
    code = "import sys; sys.path.remove(''); from fastrl.cli import main; sys.exit(main())"
    argv = [*TRAIN, "--env", "my_poles:MinePole-v0", "--out", "run"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.path.exists("run/checkpoint")


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["--env", "CartPol-v1"], "cannot make environment 'CartPol-v1': .* Did you mean: `CartPole`"),
        (["--env", "cartpole-v1"], "Did you mean: `CartPole`"),
        (["--env", "CartPole-v7"], "`v0`, `v1`"),
        (["--env", "CartPole-v1", "--env-kwargs", "nonsense=1"], "unexpected keyword argument 'nonsense'"),
        (
            ["--env", "CartPole-v1", "--wrapper", "a b"],
            r"wrapper must be module:Name or module:Name\(key=value\), got 'a b'",
        ),
        (["--env", "CartPole-v1", "--wrapper", "no_such:W"], "wrapper 'no_such:W': No module named 'no_such'"),
        (["--env", "CartPole-v1", "--wrapper", "FlatenObservation"], r"did you mean FlattenObservation\?"),
    ],
)
def test_errors(flags, pattern, here, capsys):
    fails([*TRAIN, *flags], pattern, capsys)
    assert [path.name for path in here.iterdir() if path.name != "__pycache__"] == ["my_poles.py"]
