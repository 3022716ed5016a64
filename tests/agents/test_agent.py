"""What all algorithms share: arguments, the number of environments, `predict`, weights that are not finite, resume."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from algorithms import DEEP
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import SyncVectorEnv

from fastrl.agents import (
    ALGORITHMS,
    DDPG,
    DQN,
    PPO,
    SAC,
    Agent,
    DQNConfig,
    InputError,
    OneStepActorCritic,
    SACConfig,
)
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.agents.parts import NETWORKS

ALL = pytest.mark.parametrize("cls", DEEP.values(), ids=DEEP)
OFF_POLICY = [name for name, cls in ALGORITHMS.items() if issubclass(cls, OffPolicyAgent)]


def env_id(cls):
    return "Pendulum-v1" if cls.continuous else "CartPole-v1"


def make(cls, env=None, **settings):
    own = {"learning_starts": 0, "batch_size": 4, "buffer_size": 2000} if cls.algorithm in OFF_POLICY else {}
    return cls(env or env_id(cls), hidden=(8,), **{**own, **settings})


# ---- arguments of the wrong type ---------------------------------------------------------------------------------


def test_errors_and_the_base_can_be_named():
    assert issubclass(InputError, ValueError) and all(issubclass(cls, Agent) for cls in ALGORITHMS.values())


@ALL
@pytest.mark.parametrize(
    ("config", "got"), [("CartPole-v1", "str"), ({"gamma": 0.9}, "dict"), (DQNConfig, "the class DQNConfig")]
)
def test_a_config_of_another_type(cls, config, got):
    name, wanted = cls.__name__, cls.config_class.__name__
    with pytest.raises(InputError, match=f"^{name}: config must be of type {wanted}, got {got}; the call is {name}"):
        cls(env_id(cls), config)


def test_the_call_of_stable_baselines3_is_put_right():
    text = r"got str; the call is PPO\(env, PPOConfig\(...\)\) or PPO\(env, seed=0, ...\)"
    with pytest.raises(InputError, match=f"{text}: the environment comes first, and no kind of policy is named$"):
        PPO("MlpPolicy", "CartPole-v1")
    for env in (gym.make("CartPole-v1"), gym.make_vec("CartPole-v1", num_envs=2)):
        with pytest.raises(InputError, match=r"got (TimeLimit|CartPoleVectorEnv); .*: the environment comes first"):
            PPO("MlpPolicy", env)
    with pytest.raises(InputError, match="got DQNConfig; the call is PPO.*, ...[)]$"):
        PPO("CartPole-v1", DQNConfig())


@ALL
@pytest.mark.parametrize(
    ("env", "got"),
    [(42, "int"), (None, "NoneType"), (CartPoleEnv, "the class CartPoleEnv"), (SACConfig(), "SACConfig")],
)
def test_an_environment_of_another_type(cls, env, got):
    text = f"^{cls.__name__}: env must be an environment id, a gymnasium.Env or a .*VectorEnv, got {got}$"
    with pytest.raises(InputError, match=text):
        cls(env)


# ---- the number of environments ----------------------------------------------------------------------------------


@ALL
def test_an_environment_object_is_one(cls):
    env, name = gym.make(env_id(cls)), cls.__name__
    text = f"^{name}: num_envs must be 1 like the given environment, or left out, got 5; only an id can be made"
    with pytest.raises(InputError, match=text):
        make(cls, env, num_envs=5)
    with pytest.raises(InputError, match=text):
        cls(env, cls.config_class(num_envs=5))
    assert make(cls, env).config.num_envs == make(cls, env, num_envs=1).config.num_envs == 1
    assert make(cls, num_envs=4).envs.num_envs == 4


@ALL
def test_a_vector_environment_has_its_own_number(cls):
    def vec():
        return SyncVectorEnv([lambda: gym.make(env_id(cls))] * 3)

    for number in (1, 2, 8):
        with pytest.raises(InputError, match=f"num_envs must be 3 like the given environment, .* got {number}"):
            make(cls, vec(), num_envs=number)
    assert make(cls, vec()).config.num_envs == make(cls, vec(), num_envs=3).config.num_envs == 3


@pytest.mark.parametrize("from_id", [True, False])
@pytest.mark.parametrize("cls", [PPO, OneStepActorCritic])  # the second one scales rewards
def test_a_checkpoint_of_several_loads_with_an_environment_of_its_own(tmp_path, cls, from_id):
    if from_id:
        agent = cls("CartPole-v1", num_envs=3, hidden=(8,))
    else:
        agent = cls(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3), hidden=(8,))
    agent.learn(30, progress=False).save(tmp_path / "a")
    with pytest.warns(UserWarning, match="new episodes begin"):
        loaded = cls.load(tmp_path / "a", env=gym.make("CartPole-v1"))
    assert loaded.config.num_envs == 1
    steps = loaded.steps
    assert loaded.learn(steps + 10, progress=False).steps >= steps + 10


def test_a_replay_buffer_wants_as_many_environments_as_were_saved(tmp_path):
    small = {"hidden": (8,), "learning_starts": 10, "batch_size": 8}
    DDPG("Pendulum-v1", num_envs=3, noise="ou", **small).learn(30, progress=False).save(tmp_path / "a")
    with pytest.raises(InputError, match=r"num_envs 3 \(here 1\)"):
        DDPG.load(tmp_path / "a", env=gym.make("Pendulum-v1"))


# ---- predict -----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@ALL
def test_predict_does_not_repeat_the_draws_of_training(cls, monkeypatch):
    agent = make(cls, num_envs=32)

    def step(action):
        raise Stop(action)

    monkeypatch.setattr(agent.envs, "step", step)
    with pytest.raises(Stop) as caught:
        agent._iterate()
    first = caught.value.args[0]
    again = [make(cls, num_envs=32) for _ in range(2)]
    drawn = [a.predict(agent.envs.obs, deterministic=False, memory=a.memory(32)) for a in again]
    np.testing.assert_array_equal(*drawn)  # the same seed
    assert drawn[0].shape == first.shape and (drawn[0] != first).mean() > 0.25


@ALL
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_of_an_observation_that_is_not_finite(cls, value, deterministic):
    agent = make(cls)
    obs = np.zeros((3, *agent.envs.observation_space.shape))
    agent.predict(obs, deterministic, memory=agent.memory(3))
    obs[1, -1] = value
    for wrong in (obs, obs[1]):
        with pytest.raises(InputError, match=f"^predict: obs must be finite, got {value}$"):
            agent.predict(wrong, deterministic)


# ---- weights that are not finite ---------------------------------------------------------------------------------


def weights_of(part):
    """All of a network's in one vector, to be changed in place."""
    return part.vector


@ALL
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(cls, value, tmp_path):
    agent = make(cls).learn(40, folder=tmp_path, progress=False)
    steps, name = (
        agent.steps,
        {
            "dqn": "target",
            "r2d2": "target",
            "naf": "target",
            "qt_opt": "target",
            "ddpg": "target_actor",
            "d4pg": "target_actor",
            "td3": "target_actor",
            "sac": "target_critics",
            "tqc": "target_critics",
            "sac_discrete": "target_critics",
            "crossq": "critics",
        },
    )
    weights_of(agent._parts()[name.get(cls.algorithm, "actor")])[-1] = value
    for folder in ("new", "checkpoint"):
        with pytest.raises(
            InputError, match=f"^weights are not finite at step {steps}: training diverged; try a lower"
        ):
            agent.save(tmp_path / folder)
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.new").exists()
    assert cls.load(tmp_path).steps == steps


@ALL
@pytest.mark.parametrize("saving", [True, False])
def test_the_last_update_may_make_weights_infinite(cls, saving, tmp_path, monkeypatch):
    """Its loss is finite, being that of the weights before it."""
    agent = make(cls).learn(40, folder=tmp_path, progress=False)
    steps, iterate = agent.steps, agent._iterate

    def diverge():
        iterate()
        weights_of(next(part for part in agent._parts().values() if isinstance(part, NETWORKS)))[:] = np.inf

    monkeypatch.setattr(agent, "_iterate", diverge)
    with pytest.raises(InputError, match=r"^weights are not finite at step \d+: training diverged"):
        agent.learn(agent.steps + 1, folder=tmp_path if saving else None, progress=False)
    assert cls.load(tmp_path).steps == steps


def test_a_temperature_of_zero_is_saved(tmp_path):
    make(SAC, temperature=0.0).save(tmp_path / "a")
    assert SAC.load(tmp_path / "a").config.temperature == 0.0


# ---- gradient clipping -------------------------------------------------------------------------------------------


# ---- exact resume of long runs -----------------------------------------------------------------------------------

LONG = {
    "td3": {},
    "ddpg": {"noise": "ou"},
    "sac": {},
    "naf": {"noise": "ou"},
    "dqn": {"prioritized": True, "n_step": 3},
    "ppo": {"normalize_obs": True, "normalize_rewards": True},
}


@pytest.mark.slow
def test_a_long_run_goes_on_in_a_new_process_bit_for_bit(tmp_path):
    def train(name, steps):
        # The ring of the replay buffer comes round before the save.
        replay = {"batch_size": 16, "buffer_size": 4000, "train_every": 8} if name in OFF_POLICY else {}
        env = "CartPole-v1" if ALGORITHMS[name].discrete else "Pendulum-v1"
        agent = ALGORITHMS[name](env, hidden=(16,), **replay, **LONG[name])
        agent.learn(steps, progress=False, schedule_steps=15_000)
        assert agent.buffer is None or agent.buffer._added > 2 * agent.buffer.capacity
        return agent

    for name in LONG:
        train(name, 10_050).save(tmp_path / name)  # in the middle of an episode
    code = (
        "import sys, fastrl.agents as f\n"
        "for name in sys.argv[2:]:\n"
        "    agent = f.ALGORITHMS[name].load(f'{sys.argv[1]}/{name}')\n"
        "    agent.learn(15_000, progress=False).save(f'{sys.argv[1]}/{name}_on')"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code, tmp_path, *LONG], check=True)
    for name in LONG:
        train(name, 15_000).save(tmp_path / f"{name}_straight")
        on, straight = tmp_path / f"{name}_on", tmp_path / f"{name}_straight"
        files = sorted(path.name for path in straight.iterdir())
        assert {"model.safetensors", "state.json"} < set(files) == {path.name for path in on.iterdir()}
        # Of each file its hash; beside them the manifest has the time and the command.
        manifests = [json.loads((folder / "manifest.json").read_text())["files"] for folder in (on, straight)]
        assert manifests[0] == manifests[1] and set(manifests[0]) == set(files) - {"manifest.json"}, name


class Emits(gym.Env):
    action_space = gym.spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, True, False, {}


@pytest.mark.parametrize("cls", [DQN, PPO])
def test_observations_without_a_number_are_refused(cls):
    with pytest.raises(InputError, match=rf"^{cls.__name__} needs at least one number to observe; .* Box\("):
        cls(Emits(gym.spaces.Box(-1, 1, (0,))), hidden=(8,))


def test_predict_refuses_bytes_that_are_none():
    image = gym.spaces.Box(0, 255, (2, 3), np.uint8)
    agent = PPO(Emits(gym.spaces.Box(0, 255, (6,), np.uint8)), hidden=(8,))
    raw = image.sample().ravel()
    assert agent.predict(raw) == agent.predict(raw.tolist()) == agent.predict(raw.astype(np.float32))
    assert agent.predict(torch.from_numpy(raw).float().requires_grad_()) == agent.predict(raw)
    for obs in (raw / 255, raw + 256.0, -1 - raw.astype(int), np.full((2, 6), np.nan)):
        with pytest.raises(InputError, match="^predict: obs must be whole numbers from 0 to 255 like its space, got "):
            agent.predict(obs)


@ALL
def test_no_observations_have_no_actions(cls):
    agent = cls("CartPole-v1" if cls.discrete else "Pendulum-v1", hidden=(8,))
    space = agent.envs.action_space
    actions = agent.predict(np.zeros((0, *agent.envs.observation_space.shape), np.float32), memory=agent.memory())
    assert actions.shape == (0, *space.shape) and actions.dtype == agent.envs.action_space.dtype
    if cls.discrete:
        lake = cls("FrozenLake-v1", hidden=(8,))
        assert lake.predict(np.zeros(0, np.int64), memory=lake.memory()).shape == (0,)
