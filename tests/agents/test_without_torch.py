"""Agents on the CPU and the command line where torch cannot be imported: the same bits, and clear words where it is
needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from short_runs import NEED_TORCH, train_all

import fastrl.agents
from fastrl.agents import ALGORITHMS

HELPERS = Path(__file__).parents[1] / "helpers"
NO_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
"""
COMMAND = f"{NO_TORCH}\nfrom fastrl.cli import main\nsys.exit(main(sys.argv[1:]))"


def without_torch(code, *args):
    env = {**os.environ, "PYTHONPATH": str(HELPERS)}
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_algorithm_trains_saves_loads_and_evaluates(tmp_path):
    """And is what it is beside torch, to the bit: the other process has imported it."""
    code = f"{NO_TORCH}\nimport json, short_runs\nprint(json.dumps(short_runs.train_all(sys.argv[1])))"
    returns = json.loads(without_torch(code, tmp_path / "without").stdout)
    assert "torch" in sys.modules and train_all(tmp_path / "with") == returns
    assert returns.keys() == ALGORITHMS.keys() - NEED_TORCH
    for name in returns:
        for file in ("model.safetensors", "state.json"):
            with_torch, without = ((tmp_path / way / name / file).read_bytes() for way in ("with", "without"))
            assert with_torch == without, (name, file)


def test_the_commands(tmp_path):
    run = tmp_path / "run"
    train = ("train", "ppo", "--env", "CartPole-v1", "--total-steps", 300, "--n-steps", 64, "--num-envs", 1)
    without_torch(COMMAND, *train, "--eval-every", 100, "--out", run)
    without_torch(COMMAND, "train", "--resume", run, "--total-steps", 600)
    assert "trained for" in without_torch(COMMAND, "eval", run, "--episodes", 2).stdout
    assert fastrl.agents.load(run).steps >= 600
    weights = safetensors.torch.load_file(run / "checkpoint" / "model.safetensors")
    assert weights["actor.0.weight"].shape == (64, 4)
    assert run.name in without_torch(COMMAND, "list", tmp_path).stdout


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("PPO('CartPole-v1', device='cuda')", "device 'cuda'"),
        ("PPO('CartPole-v1', network=lambda: None)", "network="),
        ("PPO('CartPole-v1').policy_to_torch()", "policy_to_torch"),
        ("R2D2('CartPole-v1')", "R2D2"),
    ],
)
def test_what_needs_torch_says_so(call, what):
    tried = f"try:\n    {call}\nexcept ValueError as error:\n    print(error)"
    code = f"{NO_TORCH}\nfrom fastrl.agents import PPO, R2D2\n{tried}"
    wanted = f'{what} needs PyTorch; to install: pip install "fastrl-kernels[torch]"'
    assert without_torch(code).stdout.strip() == wanted


def test_auto_is_the_cpu_without_torch():
    code = f"{NO_TORCH}\nfrom fastrl.agents import PPO\nprint(PPO('CartPole-v1', device='auto').device)"
    assert without_torch(code).stdout.strip() == "cpu"
