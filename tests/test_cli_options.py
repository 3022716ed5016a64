"""Options: every form of value that is taken, errors of one sentence that name them, and help without PyTorch."""

import dataclasses
import re
import subprocess
import sys
from typing import Literal

import pytest
from commands import fails

from fastrl import cli
from fastrl.agents import ALGORITHMS
from fastrl.agents.hyperparameters import CONFIGS
from fastrl.agents.loading import algorithm_class
from fastrl.cli import algorithms
from fastrl.cli.options import parse
from fastrl.cli.train import Train

TRAIN = ["train", "dqn", "--env", "CartPole-v1"]


@dataclasses.dataclass
class Options:
    """A command's."""

    steps: int | None = 7
    """How many."""
    rate: float = 1e-3
    kind: Literal["a", "b"] = "a"
    hidden: tuple[int, ...] = (64, 64)
    names: tuple[str, ...] = ()
    fast: bool = False


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--steps", "1e5"], {"steps": 100_000}),
        (["--steps=1_000"], {"steps": 1000}),
        (["--steps", str(2**62 + 1)], {"steps": 2**62 + 1}),
        (["--steps", "none"], {"steps": None}),
        (["--steps", "-3"], {"steps": -3}),
        (["--rate", "-1e-3"], {"rate": -1e-3}),
        (["--rate", "5"], {"rate": 5.0}),
        (["--kind", "B"], {"kind": "b"}),
        (["--hidden", "8", "16", "--fast"], {"hidden": (8, 16), "fast": True}),
        (["--hidden", "8,16"], {"hidden": (8, 16)}),
        (["--hidden=[8, 16]"], {"hidden": (8, 16)}),
        (["--hidden", "(8,", "16)", "--steps", "2"], {"hidden": (8, 16), "steps": 2}),
        (["--names", "x", "y", "--names", "z"], {"names": ("x", "y", "z")}),
        (["--fast"], {"fast": True}),
        (["--fast", "True"], {"fast": True}),
        (["--fast=false"], {"fast": False}),
        (["--no-fast"], {"fast": False}),
        ([], {}),
    ],
    ids=" ".join,
)
def test_values(args, expected):
    options, given = parse(Options, args, "fastrl x")
    assert dataclasses.asdict(options) == {**dataclasses.asdict(Options()), **expected} and given == {}


def test_underscores_are_hyphens():
    options, given = parse(Train, ["--total_steps", "1e3", "--learning_rate=1e-3"], "fastrl train", CONFIGS["dqn"])
    assert options.total_steps == 1000 and given == {"learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*TRAIN, "--learing-rate", "0.1"], "unknown option --learing-rate; did you mean --learning-rate?"),
        ([*TRAIN, "--lr", "0.1"], "unknown option --lr; did you mean --learning-rate?"),
        ([*TRAIN, "--timesteps=5"], "unknown option --timesteps; did you mean --total-steps?"),
        ([*TRAIN, "--priori"], "unknown option --priori; did you mean --prioritized?"),
        ([*TRAIN, "--qqqq", "1"], "unknown option --qqqq; fastrl train dqn --help lists the options"),
        (["train", "dqn", "CartPole-v1"], "unexpected argument 'CartPole-v1'; did you mean --env CartPole-v1?"),
        *(
            ([*TRAIN, *words], "--prioritized must be true or false, got 'maybe'; it is --prioritized or --no-prior")
            for words in (["--prioritized=maybe"], ["--prioritized", "maybe"])
        ),
        (["train", "dqn", "--double", "Some-v1"], "unexpected argument 'Some-v1'; did you mean --env Some-v1?"),
        ([*TRAIN, "--total-steps", "1.5"], "--total-steps must be an integer or none, got '1.5'"),
        ([*TRAIN, "--total-steps", "inf"], "--total-steps must be an integer or none, got 'inf'"),
        ([*TRAIN, "--gamma", "big"], "--gamma must be a number, got 'big'"),
        ([*TRAIN, "--max-grad-norm", "big"], "--max-grad-norm must be a number or none, got 'big'"),
        ([*TRAIN, "--hidden", "64", "x"], "--hidden must be an integer, got 'x'"),
        ([*TRAIN, "--hidden"], "--hidden needs a value"),
        ([*TRAIN, "--env"], "--env needs a value"),
        ([*TRAIN, "--buffer-size", "10"], "--buffer-size must be >= --batch-size, got 10 and 64"),
        (
            ["train", "apex", "--env", "CartPole-v1", "--buffer-size", "1000", "--batch-size", "600", "--shards", "2"],
            "--buffer-size must be >= 1200, got 1000: each of 2 shards holds a batch and a chunk",
        ),
        (
            ["train", "impala", "--env", "CartPole-v1", "--normalize-obs"],
            "--normalize-obs must be False, got True: actors' statistics would differ",
        ),
        (
            ["train", "a3c", "--env", "CartPole-v1", "--normalize-obs"],
            "--normalize-obs must be False, got True: workers' statistics would differ",
        ),
        ([*TRAIN, "--rainbow", "--no-noisy"], "--noisy must be True with --rainbow, got False"),
        (
            [*TRAIN, "--stop-at", "9", "--eval-every", "30", "--total-steps", "20"],
            "--eval-every 30 is more than --total-steps 20: there is no evaluation in training, of which --stop-at",
        ),
        ([*TRAIN, "--stop-at", "nan"], "--stop-at must be finite, got nan"),
        ([*TRAIN, "--gamma", "2"], "--gamma must be in [0, 1], got 2.0"),
        (["train", "qdn"], "unknown algorithm 'qdn'; did you mean dqn? known are dqn, "),
        (["train", "pppo"], "unknown algorithm 'pppo'; did you mean ppo? "),
        (["trian", "dqn"], "unknown command 'trian'; did you mean train? known are train, "),
        (["bench", "--kernels", "gea"], "unknown kernel 'gea'; did you mean gae? known are "),
        (["eval", "x", "--episode", "3"], "unknown option --episode; did you mean --episodes?"),
        (["eval", "x", "y"], "unexpected argument 'y'; "),
    ],
    ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else "",
)
def test_errors(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fails(argv, f"^fastrl: {re.escape(message)}", capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("algorithm", "flags", "said"),
    [
        ("dqn", ["--per-alpha", "0.6"], "--per-alpha has no effect without --prioritized"),
        ("dqn", ["--v-min=-5", "--distributional", "qr"], "--v-min has no effect without --distributional c51"),
        ("dqn", ["--atoms", "5"], "--atoms has no effect without --distributional c51 or qr"),
        ("dqn", ["--rainbow", "--loss", "huber"], "--loss has no effect with --distributional c51"),
        ("dqn", ["--noisy", "--epsilon-end", "0.1"], "--epsilon-end has no effect with --noisy"),
        ("td3", ["--lap-alpha", "1"], "--lap-alpha has no effect without --lap"),
        ("ppo", ["--penalty-kl", "0.1"], "--penalty-kl has no effect without --objective penalty"),
        ("sac_discrete", ["--target-entropy", "0.1"], "--target-entropy has no effect without --temperature none"),
        ("dqn", ["--eval-episodes", "3"], "--eval-episodes has no effect without --eval-every or --stop-at"),
        (
            "dqn",
            ["--eval-every", "99"],
            "--eval-every 99 is more than --total-steps 20: there is no evaluation in training",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_without_effect_are_named(algorithm, flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    env = "Pendulum-v1" if algorithm == "td3" else "CartPole-v1"
    argv = ["train", algorithm, "--env", env, "--hidden", "8", "8", "--total-steps", "20", "--max-episode-steps", "5"]
    argv += ["--learning-starts", "10"] if algorithm != "ppo" else ["--n-steps", "2"]
    assert cli.main([*argv, *flags]) == 0
    assert re.findall("fastrl: warning: (.*effect.*|.*--eval-every.*)", capsys.readouterr().err) == [said]


def test_values_of_a_file_without_effect_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dqn.json").write_text('{"hidden": [8, 8], "per_beta": 0.9, "per_eps": 1e-6, "learning_starts": 10}')
    argv = ["train", "dqn", "--env", "CartPole-v1", "--total-steps", "20", "--config", "dqn.json"]
    assert cli.main([*argv, "--out", "run"]) == 0
    said = re.findall("fastrl: warning: (.*effect.*)", capsys.readouterr().err)
    assert said == ["--config dqn.json: per_beta has no effect without --prioritized"]
    assert cli.main([*argv, "--prioritized", "--per-alpha", "0.5"]) == 0
    assert "effect" not in capsys.readouterr().err
    assert cli.main([*argv[:-1], "run/checkpoint/config.json", "--per-beta", "0.8"]) == 0  # every setting is in it
    assert re.findall("fastrl: warning: (.*effect.*)", capsys.readouterr().err) == [
        "--per-beta has no effect without --prioritized"
    ]


def test_options_without_effect_in_this_environment_are_named(tmp_path, monkeypatch, capsys):
    """What `auto` stands for is known when the environment is."""
    monkeypatch.chdir(tmp_path)
    argv = ["train", "fqi", "--total-steps", "1", "--transitions", "50", "--max-episode-steps", "5"]
    networks = ["--hidden", "8", "--epochs", "1", "--learning-rate", "0.5", "--batch-size", "7"]
    assert cli.main([*argv, "--env", "FrozenLake-v1", *networks]) == 0
    said = re.findall("fastrl: warning: (.*effect.*)", capsys.readouterr().err)
    assert said == [f"{name} has no effect with --regressor table" for name in networks[::2]]
    assert cli.main([*argv, "--env", "CartPole-v1", *networks, "--out", "run"]) == 0
    assert "effect" not in capsys.readouterr().err
    assert cli.main([*argv[:4], "--env", "CartPole-v1", "--dataset", "run/checkpoint/replay", "--num-envs", "4"]) == 0
    assert re.findall("fastrl: warning: (.*)", capsys.readouterr().err) == ["--num-envs has no effect with --dataset"]
    (tmp_path / "seen.py").write_text(
        "import gymnasium as gym, numpy as np\n"
        "class Seen(gym.Env):\n"
        "    observation_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)\n"
        "    action_space = gym.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return np.zeros((36, 36, 3), np.uint8), {}\n"
        "    def step(self, action):\n"
        "        return np.zeros((36, 36, 3), np.uint8), 0.0, True, False, {}\n"
        "gym.register('Seen-v0', Seen)\n"
    )
    argv = ["train", "ppo", "--env", "seen:Seen-v0", "--n-steps", "2", "--num-envs", "1", "--minibatches", "1"]
    assert (
        cli.main([*argv, "--total-steps", "2", "--max-episode-steps", "5", "--hidden", "8", "--activation", "relu"])
        == 0
    )
    said = re.findall("fastrl: warning: (.*effect.*)", capsys.readouterr().err)
    assert said == [f"{name} has no effect with --network nature" for name in ("--hidden", "--activation")]


def test_videos_that_there_will_not_be(run_folder, capsys):
    assert cli.main(["eval", str(run_folder), "--episodes", "1", "--video-episodes", "2"]) == 0
    assert capsys.readouterr().err == "fastrl: warning: --video-episodes has no effect without --video\n"


def test_algorithms_in_any_spelling():
    for word in ("PPO", "Actor-Critic", "actor_critic"):
        assert algorithms.algorithm_name(word) == word.lower().replace("-", "_")


def test_the_tables_of_the_algorithms_agree():
    classes = {name: algorithm_class(name) for name in CONFIGS}
    assert list(algorithms.ALGORITHMS) == list(CONFIGS) and ALGORITHMS.items() <= classes.items()
    assert all(CONFIGS[name] is cls.config_class and cls.algorithm == name for name, cls in classes.items())


@pytest.mark.parametrize(
    "argv", [["--help"], ["train", "--help"], ["train", "dqn", "--help"], ["eval", "-h"]], ids=" ".join
)
def test_help_imports_neither_torch_nor_gymnasium(argv):
    code = (
        "import sys\nfrom fastrl.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('LOADED', *({'torch', 'gymnasium', 'tensorboard', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED" and "usage: " in done.stdout


def test_plots_need_no_torch():
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    code = "import sys, fastrl.plot; print({'torch', 'gymnasium'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_help_of_every_algorithm(capsys):
    for name, config in CONFIGS.items():
        try:
            cli.main(["train", name, "--help"])
        except SystemExit as stop:
            assert stop.code == 0
        text = capsys.readouterr().out
        assert all("--" + field.name.replace("_", "-") in text for field in dataclasses.fields(config))
        if hasattr(config, "gamma"):
            assert "Discount. (default: 0.9" in " ".join(text.split())
