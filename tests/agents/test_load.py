"""`fastrl.agents.load`: an agent of a checkpoint without its environment, whatever the algorithm."""

import copy
import json
import operator
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from algorithms import DEEP

import fastrl.agents
from fastrl.agents import DQN, PPO, SAC, InputError, RecurrentPPO
from fastrl.agents.checkpoint import load_checkpoint, save_checkpoint

SETTINGS = {
    "dqn": {"learning_starts": 50, "hidden": (8,), "buffer_size": 1000},
    "ppo": {"num_envs": 4, "n_steps": 8, "minibatches": 16, "hidden": (8,)},
}
SETTINGS["r2d2"] = {"learning_starts": 100, "hidden": (8,), "length": 8}
SETTINGS["ppo"] |= {"normalize_obs": True, "normalize_rewards": True}
CHOSEN = """
import gymnasium as gym

gym.register("Chosen-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=50)
"""


@pytest.fixture
def no_environments(monkeypatch):
    def none(*args, **kwargs):
        raise AssertionError("an environment was made")

    return lambda: monkeypatch.setattr(gym, "make", none)


@pytest.mark.parametrize("cls", DEEP.values(), ids=operator.attrgetter("algorithm"))
def test_it_predicts_what_the_agent_did(cls, tmp_path, no_environments):
    env = "CartPole-v1" if cls.discrete else "Pendulum-v1"
    agent = cls(env, seed=2, **SETTINGS.get(cls.algorithm, {"hidden": (8,)}))
    agent.learn(300, folder=tmp_path, progress=False)
    obs = np.random.default_rng(0).normal(size=(20, *agent.envs.observation_space.shape)).astype(np.float32)
    no_environments()
    loaded = fastrl.agents.load(tmp_path)
    assert type(loaded) is cls and loaded.steps == agent.steps and loaded.config == agent.config
    actions = agent.predict(obs, memory=agent.memory(20))
    assert (loaded.predict(obs, memory=loaded.memory(20)) == actions).all() and loaded.describe() == agent.describe()
    assert (copy.deepcopy(loaded).predict(obs, memory=loaded.memory(20)) == actions).all()
    policy = loaded.policy_to_torch()
    state = () if agent.memory() is None else (policy.start(20),)
    found = policy(torch.from_numpy(obs), *state)
    np.testing.assert_allclose(found[0] if state else found, actions, rtol=1e-4, atol=1e-5)


def test_what_needs_an_environment_says_so(tmp_path):
    DQN("CartPole-v1", **SETTINGS["dqn"]).learn(100, folder=tmp_path / "run", progress=False)
    agent = fastrl.agents.load(tmp_path / "run")
    for call in (lambda: agent.learn(200), lambda: agent.save(tmp_path / "x")):
        with pytest.raises(InputError, match=r"the agent was loaded without its environment; DQN.load\(folder\) gives"):
            call()
    with pytest.raises(InputError, match="^evaluate: give it `env`"):
        agent.evaluate()
    assert agent.evaluate(2, env=gym.make("CartPole-v1")).shape == (2,)
    goes_on = fastrl.agents.load(tmp_path / "run", env="CartPole-v1").learn(200, progress=False)
    other = DQN.load(tmp_path / "run").learn(200, progress=False)
    assert goes_on.online.vector.tobytes() == other.online.vector.tobytes()


def test_no_module_is_imported_and_no_package_needed(tmp_path, monkeypatch):
    (tmp_path / "chosen.py").write_text(CHOSEN)
    monkeypatch.syspath_prepend(tmp_path)
    PPO("chosen:Chosen-v0", **SETTINGS["ppo"]).learn(64, folder=tmp_path / "run", progress=False)
    del sys.modules["chosen"], gym.registry["Chosen-v0"]
    (tmp_path / "chosen.py").unlink()
    agent = fastrl.agents.load(tmp_path / "run")
    assert agent.predict(np.zeros(4, np.float32)) in (0, 1) and "chosen" not in sys.modules
    assert agent.envs.env_id == "chosen:Chosen-v0"


def test_own_networks_and_environments_without_an_id(tmp_path):
    make = lambda: torch.nn.Linear(4, 2)  # noqa: E731
    agent = DQN(gym.make("CartPole-v1").unwrapped, network=make, learning_starts=10)
    agent.learn(50, progress=False).save(tmp_path / "a")
    with pytest.raises(InputError, match="give `network` again"):
        fastrl.agents.load(tmp_path / "a")
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert (fastrl.agents.load(tmp_path / "a", network=make).predict(obs) == agent.predict(obs)).all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"observation_space": None}, "config.json has no usable spaces: TypeError"),
        ({"action_space": {"type": "Odd"}}, "config.json has no usable spaces: ValueError: no space of type 'Odd'"),
        ({"action_space": {"type": "Discrete", "n": -1, "start": 0}}, "config.json has no usable spaces: "),
        (
            {"observation_space": {"type": "Box", "shape": [4], "dtype": "float32", "low": "x", "high": 1}},
            "no usable spaces",
        ),
        ({"action_space": {"type": "Discrete", "n": 3, "start": 0}}, "does not fit its config.json"),
        ({"algorithm": "odd"}, "unknown algorithm 'odd'"),
    ],
)
def test_crafted_ones_are_an_input_error(changes, text, tmp_path):
    DQN("CartPole-v1", **SETTINGS["dqn"]).learn(10, progress=False).save(tmp_path / "a")
    with load_checkpoint(tmp_path / "a") as found:
        save_checkpoint(tmp_path / "b", {**found.config, **changes}, found.state, found.tensors)
    with pytest.raises(InputError, match=text):
        fastrl.agents.load(tmp_path / "b")


def test_one_of_an_earlier_version(tmp_path):
    DQN("CartPole-v1", **SETTINGS["dqn"]).learn(10, progress=False).save(tmp_path / "a")
    with load_checkpoint(tmp_path / "a") as found:
        config = {name: value for name, value in found.config.items() if not name.endswith("_space")}
        save_checkpoint(tmp_path / "b", json.loads(json.dumps(config)), found.state, found.tensors)
    with pytest.raises(InputError, match="did not keep the spaces; give `env`"):
        fastrl.agents.load(tmp_path / "b")


def test_an_environment_with_other_spaces_is_refused(tmp_path):
    for name, cls in (("ppo", PPO), ("sac", SAC)):
        cls("Pendulum-v1", hidden=(8,)).save(tmp_path / name)
        rescaled = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1))
        for load in (cls.load, fastrl.agents.load):
            text = r": env: action_space must be Box\(-2.0, 2.0, \(1,\), float32\) like the agent's, got Box\(-1.0, 1.0"
            with pytest.raises(InputError, match=text):
                load(tmp_path / name, env=rescaled)
    wide = gym.make("Pendulum-v1")
    wide.observation_space = gym.spaces.Box(-9, 9, (3,))  # bounds that no policy depends on
    assert PPO.load(tmp_path / "ppo", env=wide).learn(16, progress=False).steps


def test_a_memory_is_of_one_episode_or_more():
    agent = RecurrentPPO("CartPole-v1", hidden=(8,), memory_size=8)
    for n, text in ((0, ">= 1, got 0"), (-1, ">= 1, got -1"), (2.5, "an int, got 2.5")):
        with pytest.raises(InputError, match=f"^memory: n must be {text}$"):
            agent.memory(n)
