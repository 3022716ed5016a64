"""Runs of other tasks or networks are no seeds of one curve: what is told of environments and modules of the user's."""

import functools
import json
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import ClipReward, TransformReward
from gymnasium.wrappers import vector as of_vectors
from torch import nn

from fastrl import cli, plot
from fastrl.agents import PPO, EnvConfig, InputError
from fastrl.agents.env_config import told_of

TINY = {"n_steps": 8, "minibatches": 1, "epochs": 1, "hidden": (4,)}


class Chain(gym.Env):
    """Three steps to the right end an episode; `table` has the rewards."""

    observation_space, action_space = gym.spaces.Box(0, 9, (1,)), gym.spaces.Discrete(2)

    def __init__(self, table=None, render_mode=None):
        self.table = table

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t == 3, False, {}


class Maze(Chain):
    def __init__(self):
        super().__init__()


class Scaled(gym.ObservationWrapper):
    def __init__(self, env, scale):
        super().__init__(env)
        self.scale = scale

    def observation(self, obs):
        return obs / self.scale


def run(folder, env, seed=0, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spaces and seeds
        PPO(env, **({"seed": seed} | TINY), **how).learn(64, folder=folder, progress=False)


def groups(folder):
    return [(g.environment.rpartition(".")[2], g.label, g.seeds) for g in plot.group_runs(plot.read_runs([folder]))]


def test_environments_without_an_id(tmp_path, recwarn, capsys):
    for i, make in enumerate([Maze, Maze, Chain, lambda: ClipReward(Maze(), -1, 1)]):
        run(tmp_path / str(i), make(), i)
    run(tmp_path / "4", SyncVectorEnv([Maze]), 4)
    run(tmp_path / "5", of_vectors.ClipReward(SyncVectorEnv([Maze]), -1, 1), 5)
    run(tmp_path / "6", of_vectors.ClipReward(SyncVectorEnv([lambda: gym.make("CartPole-v1")]), 0, 1), 6)
    recwarn.clear()
    found = groups(tmp_path)
    assert [(name, seeds) for name, _, seeds in found] == [
        ("Maze", 3),
        ("Chain", 1),
        ("Maze", 1),
        ("Maze", 1),
        ("CartPole-v1", 1),
    ]
    assert [label for name, label, _ in found if name == "Maze"][:2] == [
        "PPO",
        "PPO (ClipReward(min_reward=-1, max_reward=1))",
    ]
    assert not recwarn.list
    assert cli.main(["list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count(f" {__name__}.Maze ") == 5 and f" {__name__}.Chain " in out


def test_vectors_in_other_processes(tmp_path):
    """Their environments are not here: what makes them is known, and where it takes arguments there is a warning."""
    names = []
    for make in (Maze, lambda: Maze(), lambda: Chain(), functools.partial(Chain, 3)):
        told = told_of(vec := AsyncVectorEnv([make]))
        vec.close()
        names.append(told["name"].rpartition(".")[2])
        assert bool(told["unknown"]) == (make is not Maze)
    assert len(set(names)) == 4 and names[0] == "Maze"


def test_what_json_does_not_hold(tmp_path, recwarn):
    gym.register("PlotChain-v0", Chain)
    try:
        for i, table in enumerate([np.arange(3), np.arange(3), np.array([0, 1, 5])]):
            run(tmp_path / "tables" / str(i), gym.make("PlotChain-v0", table=table), i)
        for i, how in enumerate([lambda r: r, lambda r: r, lambda r: -r]):
            run(tmp_path / "rewards" / str(i), TransformReward(Maze(), how), i)
        factor = 3
        for i, env in enumerate([Scaled(Maze(), 1.0), Scaled(Maze(), 100.0)]):
            run(tmp_path / "scaled" / str(i), env, i)
        run(tmp_path / "factors" / "0", TransformReward(Maze(), lambda r: r * factor), 0)
        run(tmp_path / "factors" / "1", TransformReward(Maze(), lambda r: r * factor), 1)
        run(tmp_path / "objects" / "0", gym.make("PlotChain-v0", table=object()), 0)
        run(tmp_path / "objects" / "1", gym.make("PlotChain-v0", table=object()), 1)
    finally:
        del gym.registry["PlotChain-v0"]
    recwarn.clear()
    assert [seeds for _, _, seeds in groups(tmp_path / "tables")] == [2, 1]
    assert [seeds for _, _, seeds in groups(tmp_path / "rewards")] == [2, 1]
    assert not recwarn.list
    for name, what in (("scaled", "Scaled"), ("factors", "TransformReward"), ("objects", "table")):
        with pytest.warns(
            UserWarning, match=f"the 2 runs may be of different tasks: what {what} of the env.* not known"
        ):
            assert [seeds for _, _, seeds in groups(tmp_path / name)] == [2]


def test_batches_without_a_name(tmp_path):
    """`FQI(dataset=buffer)`: two buffers have no names."""
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "progress.csv").write_text("step,episode_return\n1,2\n")
        saved = {"algorithm": "fqi", "env": "CartPole-v1", "config": {"seed": i, "dataset": "(a buffer)"}}
        (tmp_path / str(i) / "run.json").write_text(json.dumps(saved))
    with pytest.warns(UserWarning, match="may be of different tasks: what the dataset, a buffer, was made with is not"):
        assert [seeds for _, _, seeds in groups(tmp_path)] == [2]


def test_digests_are_the_same_in_every_process():
    code = (
        "import numpy as np, torch; from fastrl.agents.env_config import _told\n"
        "print(_told({'a': np.arange(4), 'f': lambda r: -r, 's': (1, np.float32(2))}))"
    )
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(said) == 1 and "True)" in said.pop()


def net(width, activation=nn.Tanh):
    return nn.Sequential(nn.Linear(1, width), activation(), nn.Linear(width, 3))


def test_own_networks(tmp_path, recwarn):
    made = [None, net(4), net(4), net(64), net(4, nn.ReLU), lambda: net(64)]
    for i, network in enumerate(made):
        run(tmp_path / str(i), Maze(), i, network=network)
    recwarn.clear()
    found = groups(tmp_path)
    assert [seeds for _, _, seeds in found] == [1, 2, 2, 1] and not recwarn.list
    assert found[0][1] == "PPO (network=auto)"
    assert found[1][1].startswith("PPO (network=Sequential of 23 parameters (")
    assert found[2][1].startswith("PPO (network=Sequential of 323 parameters (")
    for i in (1, 3):  # as an earlier version left them
        (tmp_path / str(i) / "run.json").unlink()
    with pytest.warns(UserWarning, match="may be of different tasks: what the environment, the network was made with"):
        plot.group_runs(plot.read_runs([tmp_path / "1", tmp_path / "3"]))


def test_a_run_does_not_go_on_in_another_task(tmp_path):
    run(tmp_path / "run", "CartPole-v1")
    rows = (tmp_path / "run" / "progress.csv").read_bytes()
    agent = PPO.load(tmp_path / "run", env=EnvConfig("CartPole-v1", {"max_episode_steps": 15}))
    with pytest.raises(
        InputError, match=r"a run in CartPole-v1, and the agent is in CartPole-v1 \(max_episode_steps=15\)"
    ):
        agent.learn(128, folder=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "progress.csv").read_bytes() == rows
    agent.learn(128, folder=tmp_path / "other", progress=False)
    told = json.loads((tmp_path / "other" / "run.json").read_text())
    assert (told["env_kwargs"], told["total_steps"]) == ({"max_episode_steps": 15}, 128)
    with pytest.warns(UserWarning, match="is in CartPole-v1 .*its log is of both"):
        other = PPO.load(tmp_path / "run", env=TransformReward(gym.make("CartPole-v1"), abs))
        other.learn(128, folder=tmp_path / "run", progress=False)


def test_the_same_task_goes_on_without_a_word(tmp_path):
    torch.manual_seed(0)
    for env in ("CartPole-v1", None, gym.make("CartPole-v1")):
        agent = PPO("CartPole-v1", seed=0, **TINY) if env == "CartPole-v1" else PPO.load(tmp_path / "run", env=env)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*its log is of both")
            agent.learn(agent.steps + 64, folder=tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["total_steps"] == agent.steps
