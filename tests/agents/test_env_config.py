"""Environments with keyword arguments and wrappers: made, saved, brought back, and nothing imported unasked."""

import copy
import hashlib
import importlib.util
import json
import re
import sys

import gymnasium as gym
import numpy as np
import pytest

from fastrl.agents import DQN, PPO, EnvConfig, InputError
from fastrl.agents.config import shown_env
from fastrl.agents.env_config import parsed
from fastrl.agents.envs import make_env

MINE = """
import gymnasium as gym

class Halved(gym.RewardWrapper):
    def reward(self, reward):
        return reward / 2

def scaled(env, by=1.0):
    return gym.wrappers.TransformReward(env, lambda reward: by * reward)

def nothing(env):
    pass
"""
SMALL = {"hidden": (8,), "n_steps": 16, "num_envs": 2, "epochs": 1}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine_wrappers.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    yield
    sys.modules.pop("mine_wrappers", None)


def test_keyword_arguments_and_wrappers_reach_every_environment(mine):
    config = EnvConfig(
        "CartPole-v1", {"sutton_barto_reward": True}, ["TimeLimit(max_episode_steps=7)", "mine_wrappers:Halved"]
    )
    agent = PPO(config, **SMALL)
    assert agent.envs.num_envs == 2 and agent.envs.env_id == "CartPole-v1"
    for env in [*agent.envs.vec.envs, make_env(agent.envs.spec)]:
        assert type(env).__name__ == "Halved" and env.unwrapped._sutton_barto_reward
        assert isinstance(env.env, gym.wrappers.TimeLimit) and env.env._max_episode_steps == 7
    assert set(agent.learn(64).evaluate(3).tolist()) <= {0.0, -0.5}  # -1 at a fall, which 7 steps hardly see


def test_more_arguments_come_before_the_kept_ones():
    env = EnvConfig("CartPole-v1", {"render_mode": "human"}).make(render_mode="rgb_array")
    assert env.render_mode == "rgb_array"


def test_saved_and_loaded_without_a_word(tmp_path):
    config = EnvConfig("FrozenLake-v1", {"is_slippery": False}, ["TransformedOneHot"])
    with pytest.raises(InputError, match="gymnasium.wrappers has no TransformedOneHot"):
        config.make()
    config = EnvConfig("CartPole-v1", {"sutton_barto_reward": True}, ["TimeLimit(max_episode_steps=9)"])
    agent = DQN(config, hidden=(8,), learning_starts=10, batch_size=8).learn(
        100, folder=tmp_path / "run", progress=False
    )
    saved = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    assert saved["env_kwargs"] == {"sutton_barto_reward": True} and saved["wrappers"] == [
        "TimeLimit(max_episode_steps=9)"
    ]
    for env in (None, "CartPole-v1", config):
        again = DQN.load(tmp_path / "run", env)
        assert again.envs.spec == config and np.array_equal(again.envs.obs, agent.envs.obs)
    assert copy.deepcopy(agent).envs.spec == config
    # What is trained on is what an uninterrupted run has.
    straight = DQN(config, hidden=(8,), learning_starts=10, batch_size=8).learn(160, schedule_steps=160)
    parts = DQN(config, hidden=(8,), learning_starts=10, batch_size=8).learn(100, schedule_steps=160)
    parts.save(tmp_path / "parts")
    parts = DQN.load(tmp_path / "parts").learn(160)
    assert np.array_equal(straight.online.vector, parts.online.vector)
    other = DQN.load(tmp_path / "run", EnvConfig("CartPole-v1", wrappers=[]))
    assert other.envs.spec == EnvConfig("CartPole-v1", {"sutton_barto_reward": True}, ())


def test_a_checkpoint_does_not_choose_what_is_run(mine, tmp_path):
    wrappers = ["TimeLimit(max_episode_steps=9)", "mine_wrappers:scaled(by=0.25)"]
    PPO(EnvConfig("CartPole-v1", wrappers=wrappers), **SMALL).learn(32).save(tmp_path / "run")
    sys.modules.pop("mine_wrappers")
    for env in (None, "CartPole-v1", EnvConfig("CartPole-v1", {})):
        with pytest.raises(
            InputError, match=re.escape("has the wrapper mine_wrappers:scaled(by=0.25), which runs code")
        ):
            PPO.load(tmp_path / "run", env)
    assert "mine_wrappers" not in sys.modules
    agent = PPO.load(tmp_path / "run", EnvConfig("CartPole-v1", wrappers=wrappers))
    assert agent.envs.step(np.zeros(2)).reward.tolist() == [
        0.25,
        0.25,
    ]  # the return is its own
    assert agent.evaluate(1) <= 9
    # A wrapper that writes where its arguments say is none that a checkpoint may bring along.
    assert EnvConfig("CartPole-v1", wrappers=["RecordVideo(video_folder='/x')"]).imports() == [
        "RecordVideo(video_folder='/x')"
    ]
    assert EnvConfig("m:X-v0", wrappers=["FlattenObservation", "m:W"]).imports() == ["m:X-v0", "m:W"]


@pytest.mark.parametrize("wrappers", [5, "FlattenObservation", [3], ["a b"], {"x": 1}])
def test_a_crafted_config(wrappers, tmp_path):
    DQN("CartPole-v1", hidden=(8,)).save(tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text()) | {"wrappers": wrappers}
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    manifest["files"]["config.json"] = hashlib.sha256((tmp_path / "c" / "config.json").read_bytes()).hexdigest()
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="checkpoint .*config.json has no usable environment|runs code that"):
        DQN.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: EnvConfig(3), "id must be a str, got 3"),
        (lambda: EnvConfig("X", [1]), "kwargs must be a dict with str keys"),
        (lambda: EnvConfig("X", {1: 2}), "kwargs must be a dict with str keys"),
        (lambda: EnvConfig("X", {"a": object()}), "kwargs must hold JSON types"),
        (lambda: EnvConfig("X", wrappers="FlattenObservation"), "wrappers must be a list of str"),
        (lambda: EnvConfig("CartPole-v1", {"nonsense": 1}).make(), "cannot make environment 'CartPole-v1': .*nonsense"),
        (
            lambda: EnvConfig("FrozenLake-v1", {"map_name": "no"}).make(),
            "cannot make environment 'FrozenLake-v1': KeyError",
        ),
        (lambda: EnvConfig("CartPole-v1", None, ["no_such_mod:W"]).make(), "wrapper 'no_such_mod:W': No module named"),
        (lambda: EnvConfig("CartPole-v1", None, ["FlatenObservation"]).make(), "did you mean FlattenObservation?"),
        (
            lambda: EnvConfig("CartPole-v1", None, ["TimeLimit"]).make(),
            "'TimeLimit' does not fit CartPole-v1: TypeError",
        ),
        (
            lambda: EnvConfig("CartPole-v1", None, ["mine_wrappers:nothing"]).make(),
            "must give a gymnasium.Env, got None",
        ),
        (lambda: EnvConfig("a:b:C-v0").make(), r"its form is \[module:\]"),
        (lambda: EnvConfig("ALE/Pong-v5").make(), "it is of ale-py; to install: pip install ale-py"),
    ],
)
def test_errors(mine, config, message, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ale_py" else find(name, *a))
    with pytest.raises(InputError, match=message):
        config()


@pytest.mark.parametrize(
    "text", ["", "a b", "m:", ":W", "m:W(", "m:W(3)", "m:W(**{})", "m:W(x=y)", "m:W()()", "m:W(x=1", "m;W"]
)
def test_wrappers_that_are_none(text):
    with pytest.raises(InputError, match="wrapper must be module:Name"):
        parsed(text)


def test_atari_registers_itself(tmp_path, monkeypatch):
    """A module of that name stands for ale-py."""
    (tmp_path / "ale_py.py").write_text(
        "import gymnasium as gym\ngym.register('ALE/Pong-v5', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("gymnasium.registry", dict(gym.registry))
    monkeypatch.delitem(sys.modules, "ale_py", raising=False)
    try:
        assert make_env("ALE/Pong-v5").unwrapped.spec.id == "ALE/Pong-v5"
    finally:
        sys.modules.pop("ale_py", None)
        gym.envs.registration.registry.pop("ALE/Pong-v5", None)


def test_an_agent_says_what_its_environment_was_made_with():
    env = EnvConfig("CartPole-v1", {"sutton_barto_reward": True}, ["TimeLimit(max_episode_steps=9)"])
    text = "PPO on CartPole-v1 (sutton_barto_reward=true, TimeLimit(max_episode_steps=9))"
    assert PPO(env, **SMALL).describe() == text


def test_of_an_environment_that_was_given_a_checkpoint_tells_what_it_was_made_with(tmp_path):
    """For people, as `fastrl list` and `plot`: it is not made again."""
    env = gym.make("CartPole-v1", sutton_barto_reward=True, render_mode="rgb_array", max_episode_steps=30)
    env = gym.wrappers.TransformReward(gym.wrappers.FrameStackObservation(env, 2), abs)
    for name, made in {"plain": gym.make("CartPole-v1"), "other": env}.items():
        PPO(made, **{**SMALL, "num_envs": 1}).save(tmp_path / name)
    plain, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "other"))
    assert shown_env(plain) == "CartPole-v1" and "given" not in plain
    stack = "FrameStackObservation(stack_size=2, padding_type=reset)"
    assert other["given"]["env_kwargs"] == {"max_episode_steps": 30, "sutton_barto_reward": True}
    assert other["given"]["wrappers"] == [stack, "TransformReward(func=abs)"]
    assert shown_env(other).startswith("CartPole-v1 (max_episode_steps=30, sutton_barto_reward=true, FrameStack")
    assert "env_kwargs" not in other
    assert PPO.load(tmp_path / "other", env).steps == 0
