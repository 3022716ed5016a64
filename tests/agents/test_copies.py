"""Copies of agents and policies are what save and load give, by deepcopy, pickle, cloudpickle, joblib and spawn."""

import copy
import importlib.util
import multiprocessing
import pickle
import threading
import warnings

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from algorithms import DEEP
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.agents import A2C, ALGORITHMS, DDPG, DQN, PPO, SAC, TD3, TRPO, InputError
from fastrl.agents.policies import ActorCritic
from fastrl.kernels import MLP

OFF = {"hidden": (8,), "learning_starts": 20, "batch_size": 8, "buffer_size": 90, "num_envs": 2, "prioritized": True}
SEQUENCES = {name: value for name, value in OFF.items() if name != "prioritized"}
ON = {"hidden": (8,), "num_envs": 2}
NORMALIZED = {"normalize_obs": True, "normalize_rewards": True}
CASES = {
    "dqn": {**OFF, "dueling": True, "n_step": 2},
    "r2d2": {**SEQUENCES, "burn_in": 2, "length": 6, "n_step": 2, "memory_size": 6},
    "reinforce": {**ON, "episodes": 1},
    "actor_critic": ON,
    "a2c": {**ON, **NORMALIZED, "shared_network": True, "optimizer": "rmsprop"},
    "a3c": {**ON, "n_steps": 8, "normalize_rewards": True},
    "ppo": {**ON, **NORMALIZED, "n_steps": 8, "objective": "penalty"},
    "recurrent_ppo": {**ON, **NORMALIZED, "n_steps": 8, "epochs": 2, "memory_size": 6, "network": "gru"},
    "trpo": {**ON, **NORMALIZED, "n_steps": 16, "value_epochs": 2},
    "q_prop": {**ON, **NORMALIZED, "n_steps": 16, "value_epochs": 2, "critic_updates": 4, "buffer_size": 90},
    "cem": {**ON, "population": 4, "elites": 2},
    "naf": {**OFF, "noise": "ou", "n_step": 2},
    "qt_opt": {**OFF, "lag": 3, "cem_samples": 8},
    "ddpg": {**OFF, "noise": "ou"},
    "d4pg": {**OFF, "n_atoms": 11},
    "td3": {**OFF, "n_step": 2},
    "sac": {**OFF, "learning_rate_end": 0.0},
    "sac_discrete": OFF,
    "tqc": {**OFF, "n_critics": 2, "n_quantiles": 3, "drop_per_critic": 1},
    "crossq": {**OFF, "norm_warmup": 5},
}
assert CASES.keys() == DEEP.keys()


def make(name, env=None, **more):
    cls = ALGORITHMS[name]
    return cls(env or ("CartPole-v1" if cls.discrete and name != "ppo" else "Pendulum-v1"), **{**CASES[name], **more})


def everything(agent):
    """All that decides what the agent does next, as comparable values."""
    state, tensors = agent._state()
    arrays = {name: tensor.tobytes() for name, tensor in tensors.items()}
    if agent.buffer is not None:
        arrays |= {f"buffer {i}": column.tobytes() for i, column in enumerate(agent.buffer._store.columns)}
        arrays["priorities"] = agent.buffer._tree.state_dict()["priorities"].tobytes()
        state = {**state, "beta": agent.buffer.beta}
    return copy.deepcopy(state), arrays, agent.metrics(), agent.config


def joblib_copy(agent):
    import io

    import joblib

    file = io.BytesIO()
    joblib.dump(agent, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda agent: pickle.loads(pickle.dumps(agent)),
    "cloudpickle": lambda agent: cloudpickle.loads(cloudpickle.dumps(agent)),
    "joblib": joblib_copy,
}
if importlib.util.find_spec("joblib") is None:
    del WAYS["joblib"]


@pytest.mark.parametrize("name", DEEP)
def test_a_copy_is_what_save_and_load_give(name, tmp_path):
    agent = make(name).learn(100, schedule_steps=200, progress=False)
    agent.save(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copies = [type(agent).load(tmp_path / "a"), *(way(agent) for way in WAYS.values())]
    at_copy = everything(agent)
    assert all(type(c) is type(agent) and everything(c) == at_copy for c in copies)
    assert all(c.run_folder is None for c in copies[1:])
    obs = agent.envs.obs.copy()
    acted = agent.predict(obs, memory=agent.memory(2))

    agent.learn(200, progress=False)
    after = everything(agent)
    assert all(everything(c) == at_copy for c in copies)  # training moves the one and not the others
    assert all((c.predict(obs, memory=c.memory(2)) == acted).all() for c in copies)
    for c in copies:
        updates, before = c.n_updates, everything(c)[1]
        assert everything(c.learn(200, progress=False)) == after
        assert c.n_updates > updates and everything(c)[1] != before
    with torch.no_grad():  # nor do they hold each other's weights
        for part in agent._parts().values():
            if isinstance(part, torch.nn.Module):
                for p in part.parameters():
                    p.zero_()
    assert everything(copies[1]) == after


@pytest.mark.parametrize("name", ["ppo", "trpo"])
def test_agents_travel_to_spawned_processes(name):
    agent = make(name).learn(100, schedule_steps=200, progress=False)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(agent.learn, (200,), {"progress": False})  # the method takes the agent along
    assert everything(there) == everything(agent.learn(200, progress=False))


class Walk(gym.Env):
    """An environment without an id; what it does depends on np_random and the actions alone."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.normal()
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.t, self.x = self.t + 1, self.x + 0.1 * (2 * action - 1)
        return np.array([self.x], np.float32), -abs(self.x), False, self.t == 30, {}


@pytest.mark.parametrize("cls", [PPO, A2C, TRPO])
def test_an_environment_object_is_copied_along(cls):
    agent = cls(Walk(), hidden=(8,), n_steps=8, learning_rate_steps=200).learn(110, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = copy.deepcopy(agent)
    assert other._made_from is not agent._made_from
    assert everything(other.learn(200, progress=False)) == everything(agent.learn(200, progress=False))


def test_vector_environments_begin_new_episodes_as_after_a_load():
    vec = SyncVectorEnv([Walk] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    agent = PPO(vec, hidden=(8,), n_steps=8).learn(40, progress=False)
    with pytest.warns(UserWarning, match="new episodes begin"):
        other = copy.deepcopy(agent)
    assert other.envs.vec is not vec and np.array_equal(other.policy.vector, agent.policy.vector)
    assert other.learn(80, progress=False).steps == 80 and agent.steps == 48


def test_an_environment_that_cannot_be_copied_is_one_clear_error():
    env = Walk()
    env.lock = threading.Lock()
    agent = PPO(env, hidden=(8,))
    for way in WAYS.values():
        with pytest.raises(InputError, match="^PPO cannot be copied, because its environment cannot; .*id can: ") as e:
            way(agent)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("way", [WAYS["deepcopy"], WAYS["pickle"], WAYS["cloudpickle"]])
@pytest.mark.parametrize("actions", [gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,))], ids=["discrete", "box"])
def test_the_parameters_of_a_copied_policy_are_views_of_its_own_vector(actions, way):
    policy = ActorCritic(gym.spaces.Box(-1, 1, (3,)), actions, (8,), normalize_obs=True)
    policy.moments.update(np.random.default_rng(0).normal(size=(9, 3)))
    other, obs = way(policy), np.ones((1, 3), np.float32)
    assert np.array_equal(policy.vector, other.vector) and policy.vector.any()
    before = policy.mode(obs), policy.forward(obs)
    other.vector[:], other.grad[:] = 0, 2
    assert not any(p.any() for p in other.parameters().values()) and not other.critic.vector.any()
    assert not other.forward(obs)[0].any() and not other.forward(obs)[1].any() and not policy.grad.any()
    after = policy.mode(obs), policy.forward(obs)
    assert (after[0] == before[0]).all() and (after[1][0] == before[1][0]).all() and (after[1][1] == before[1][1]).all()
    assert (other.critic.grad == 2).all() and (other.actor.grad == 2).all() and other.whole


@pytest.mark.parametrize("name", ["dqn", "naf", "qt_opt", "ddpg", "td3", "sac"])
def test_copied_networks_are_independent(name):
    agent = make(name)
    for part in agent._parts().values():
        if isinstance(part, MLP):
            before = part.vector.copy()
            for copied in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
                assert (copied.vector == part.vector).all()
                out = copied.forward_cached(np.ones((4, copied.sizes[0]), np.float32))
                copied.backward(np.ones_like(out))
                copied.vector += 1
                assert copied.grad.any() and not part.grad.any() and (part.vector == before).all()


# ---- networks that something else was put in the place of ---------------------------------------------------------


NETWORKS = [
    (PPO, "policy"),
    (DQN, "online"),
    (DQN, "target"),
    (DQN, "greedy"),
    (SAC, "actor"),
    (TD3, "critics"),
    (DDPG, "target_actor"),
]


@pytest.mark.parametrize(("cls", "name"), NETWORKS, ids=lambda x: x if isinstance(x, str) else x.algorithm)
def test_networks_cannot_be_replaced(cls, name):
    agent = make(cls.algorithm)
    before = getattr(agent, name)
    with pytest.raises(InputError, match=f"^{cls.__name__}: {name} cannot be replaced, .*load_state_dict"):
        setattr(agent, name, torch.nn.Linear(1, 1))
    assert getattr(agent, name) is before


@pytest.mark.parametrize("name", ["reinforce", "actor_critic", "a2c", "ppo", "trpo"])
def test_parts_of_a_policy_cannot_be_replaced(name):
    agent = make(name)
    for part in ("actor", "critic", "vector", "grad"):
        before = getattr(agent.policy, part)
        with pytest.raises(InputError, match=f"^policy: {part} cannot be replaced, .*hidden and activation"):
            setattr(agent.policy, part, object())
        assert getattr(agent.policy, part) is before
    agent.policy.actor.vector = agent.policy.actor.vector.copy()  # deeper down it is noticed before training
    with pytest.raises(InputError, match=r"policy has other parameters than its optimizer; .*load_state_dict"):
        agent.learn(100, progress=False)
    assert agent.steps == 0


def test_a_network_that_was_converted_is_noticed():
    agent = make("dqn")
    agent.online.vector = agent.online.vector.copy()
    with pytest.raises(InputError, match="^DQN: online has other parameters than its optimizer"):
        agent.learn(100, progress=False)
    agent = make("dqn", dueling=False, network=torch.nn.Linear(4, 2))
    agent.online.module.double()
    with pytest.raises(InputError, match="^DQN: online has other parameters than its optimizer"):
        agent.learn(100, progress=False)


def test_other_weights_are_taken(tmp_path):
    agent, other = make("ppo"), make("ppo", seed=5)
    agent.policy.load_state_dict(other.policy.state_dict())
    assert np.array_equal(agent.policy.vector, other.policy.vector)
    agent.learn(50, progress=False)
    assert agent.optimizer.steps > 0
