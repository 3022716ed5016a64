"""Agents on the ids "fastrl/...": they learn what they learn on Gymnasium's own environments, bit for bit."""

import gymnasium as gym
import numpy as np
import pytest

from fastrl.agents import DQN, PPO, SAC, EnvConfig
from fastrl.agents.config import InputError
from fastrl.cli import main

SMALL = {
    PPO: {"hidden": (8,), "n_steps": 32, "num_envs": 3},
    DQN: {"hidden": (8,), "learning_starts": 50, "num_envs": 2},
    SAC: {"hidden": (8,), "learning_starts": 50, "batch_size": 16},
}
CASES = [(PPO, "CartPole-v1"), (DQN, "MountainCar-v0"), (PPO, "Acrobot-v1"), (SAC, "Pendulum-v1")]


def networks(agent):
    return np.concatenate([getattr(agent, name).vector for name in agent._trained or ["policy"]])


@pytest.mark.parametrize("cls, env_id", CASES)
def test_the_same_is_learned(cls, env_id):
    plain = cls(env_id, seed=3, **SMALL[cls]).learn(400, progress=False)
    fast = cls(f"fastrl/{env_id}", seed=3, **SMALL[cls]).learn(400, progress=False)
    assert np.array_equal(plain.envs.obs, fast.envs.obs) and list(plain.envs.recent) == list(fast.envs.recent)
    assert np.array_equal(networks(plain), networks(fast))
    assert np.array_equal(plain.evaluate(2), fast.evaluate(2))


@pytest.mark.parametrize("cls, env_id", CASES[::3])
def test_a_run_goes_on_exactly(cls, env_id, tmp_path):
    whole = cls(f"fastrl/{env_id}", seed=1, **SMALL[cls]).learn(480, schedule_steps=480, progress=False)
    cls(f"fastrl/{env_id}", seed=1, **SMALL[cls]).learn(96, schedule_steps=480, progress=False).save(tmp_path / "half")
    again = cls.load(tmp_path / "half")
    assert again.envs.num_envs == whole.envs.num_envs
    again.learn(480, progress=False)
    assert np.array_equal(networks(whole), networks(again)) and np.array_equal(whole.envs.obs, again.envs.obs)
    assert again.envs.episodes == whole.envs.episodes


def test_a_run_goes_on_in_an_environment_object_with_new_episodes(tmp_path):
    agent = PPO("fastrl/CartPole-v1", num_envs=1, hidden=(8,), n_steps=32).learn(64, progress=False)
    agent.save(tmp_path)
    with pytest.warns(UserWarning, match="new episodes begin"):
        other = PPO.load(tmp_path, env=gym.make("fastrl/CartPole-v1"))
    assert np.array_equal(networks(agent), networks(other)) and other.learn(128, progress=False).steps == 128


def test_arguments_and_wrappers():
    agent = PPO(EnvConfig("fastrl/CartPole-v1", {"sutton_barto_reward": True}), seed=0, **SMALL[PPO])
    agent.learn(300, progress=False)
    assert {r for r, _ in agent.envs.recent} == {-1.0}
    with pytest.raises(InputError, match="cannot make environment 'fastrl/CartPole-v1': .*'g'"):
        PPO(EnvConfig("fastrl/CartPole-v1", {"g": 1}))
    with pytest.raises(InputError, match="no compiled environment for 'fastrl/Nothing-v0'; there are: Acrobot"):
        PPO("fastrl/Nothing-v0")
    wrapped = PPO(EnvConfig("fastrl/CartPole-v1", wrappers=["TimeLimit(max_episode_steps=3)"]), **SMALL[PPO])
    assert {n for _, n in wrapped.learn(96, progress=False).envs.recent} == {3}


def test_a_vector_of_ours_is_a_vector_environment():
    for mode in gym.vector.AutoresetMode:
        vec = gym.make_vec("fastrl.envs:fastrl/CartPole-v1", 3, autoreset_mode=mode)
        agent = PPO(vec, seed=0, hidden=(8,), n_steps=32).learn(300, progress=False)
        assert agent.envs.episodes > 3 and agent.envs.env_id == "fastrl/CartPole-v1"
        assert len(agent.evaluate(1)) == 1


def test_the_command(tmp_path, capsys):
    flags = ["--n-steps", "32", "--hidden", "8"]
    for name, more in (("plain", []), ("fast", ["--fast-env"])):
        arguments = ["train", "ppo", "--env", "CartPole-v1", "--total-steps", "512", "-o", str(tmp_path / name)]
        assert main([*arguments, *flags, *more]) == 0
    plain, fast = (PPO.load(tmp_path / name) for name in ("plain", "fast"))
    assert fast.envs.env_id == "fastrl/CartPole-v1" and np.array_equal(networks(plain), networks(fast))
    assert main(["train", "--resume", str(tmp_path / "fast"), "--total-steps", "640"]) == 0
    assert main(["eval", str(tmp_path / "fast"), "--episodes", "1"]) == 0
    capsys.readouterr()
    for wrong, text in (
        (
            ["--env", "LunarLander-v3", "--fast-env"],
            "--fast-env: there is no compiled environment for 'L",
        ),
        (
            ["--env", "CartPole-v1", "--fast-env", "--wrapper", "FlattenObservation"],
            "--fast-env takes neither --wrapper nor",
        ),
    ):
        assert main(["train", "ppo", *wrong]) != 0
        assert text in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "plain"), "--fast-env"]) != 0
    assert "--fast-env cannot be changed" in capsys.readouterr().err
