"""`policy_to_torch`: a plain torch module that acts as `predict` does, and shares nothing with the agent."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from fastrl.agents import D4PG, DDPG, DQN, NAF, SAC, TD3, TQC, CrossQ, QTOpt

SMALL = {"hidden": (16, 8), "learning_starts": 30, "batch_size": 16, "buffer_size": 200}


class Odd(gym.Env):
    """Observations and actions of any shape, dtype and bounds."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(0)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation_space.sample(), float(np.sum(action)), False, bool(self.np_random.random() < 0.1), {}


OBSERVATIONS = {
    "bytes": gym.spaces.Box(0, 255, (6,), np.uint8),
    "image": gym.spaces.Box(0, 255, (3, 4, 2), np.uint8),
    "float64": gym.spaces.Box(-2, 2, (2, 3), np.float64),
    "float32": gym.spaces.Box(-2, 2, (5,), np.float32),
    "ints": gym.spaces.Box(-9, 9, (4,), np.int16),
}
BOXES = {
    "float32": gym.spaces.Box(np.float32([-3, 0]), np.float32([1, 0.5]), dtype=np.float32),
    "float64": gym.spaces.Box(-2.0, 7.0, (2, 2), np.float64),
}


def assert_same(agent, space):
    space.seed(3)
    obs = np.stack([space.sample() for _ in range(50)])
    policy = agent.policy_to_torch()
    got, expected = policy(torch.from_numpy(obs)), agent.predict(obs)
    assert got.shape == expected.shape and got.numpy().dtype == expected.dtype and not got.requires_grad
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)
    return policy, obs, got


@pytest.mark.filterwarnings("ignore:.*look like images")
@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("dueling", [False, True])
def test_dqn(observations, dueling):
    space = OBSERVATIONS[observations]
    agent = DQN(Odd(space, gym.spaces.Discrete(3)), **SMALL, dueling=dueling).learn(60, progress=False)
    obs = np.stack([space.sample() for _ in range(50)])
    *_, last_bias = agent.greedy.parameters().values()
    last_bias -= agent._forward(agent.greedy, obs).mean(0)  # so that no action is the best everywhere
    assert len(set(agent.predict(obs))) > 1
    assert_same(agent, space)


@pytest.mark.filterwarnings("ignore:.*look like images")
@pytest.mark.parametrize("observations", ["image", "float64", "float32"])
@pytest.mark.parametrize("actions", BOXES)
@pytest.mark.parametrize("cls", [NAF, QTOpt, D4PG, DDPG, TD3, SAC, TQC, CrossQ])
def test_bounded_actions(cls, observations, actions):
    space, box = OBSERVATIONS[observations], BOXES[actions]
    agent = cls(Odd(space, box), **SMALL).learn(60, progress=False)
    acting = {NAF: lambda: agent.online, QTOpt: lambda: agent.target}.get(cls, lambda: agent.actor)()
    acting.vector *= 3
    policy, obs, before = assert_same(agent, space)
    assert all(box.contains(action) for action in policy(torch.from_numpy(obs)).numpy())
    agent.learn(80, progress=False)  # what is trained on is another network
    acting.vector += 1
    assert torch.equal(policy(torch.from_numpy(obs)), before)
    copied = copy.deepcopy(policy)
    copied.load_state_dict(policy.state_dict())
    assert torch.equal(copied(torch.from_numpy(obs)), before)


def test_networks_of_the_users_own():
    space = OBSERVATIONS["image"]
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(16, 3))
    agent = DQN(Odd(space, gym.spaces.Discrete(3)), **SMALL, network=module).learn(60, progress=False)
    policy, obs, before = assert_same(agent, space)
    agent.greedy.vector += 1
    assert torch.equal(policy(torch.from_numpy(obs)), before)


KINDS = {
    "sac": (SAC, {}),
    "dueling": (DQN, {"dueling": True}),
    "c51": (DQN, {"distributional": "c51"}),
    "qr": (DQN, {"distributional": "qr"}),
    "iqn": (DQN, {"distributional": "iqn", "hidden": (8, 8)}),
    "rainbow": (DQN, {"rainbow": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_exported(kind, tmp_path):
    cls, settings = KINDS[kind]
    env = "Pendulum-v1" if cls is SAC else Odd(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(3))
    agent = cls(env, **{**SMALL, **settings}).learn(60, progress=False)
    check_export(agent, torch.randn(5, 3), tmp_path)


def test_policies_of_images_can_be_exported(tmp_path):
    space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    agent = DQN(Odd(space, gym.spaces.Discrete(3)), **SMALL, network="nature", distributional="iqn", dueling=True)
    check_export(agent, torch.randint(0, 256, (5, 36, 36, 3), dtype=torch.uint8), tmp_path)


def check_export(agent, obs, tmp_path):
    """A program of any batch size; convolutions of torch 2.4 want it to have a bound."""
    batch = torch.export.Dim("batch", max=2**31)
    program = torch.export.export(agent.policy_to_torch(), (obs,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "policy.pt2")
    loaded = torch.export.load(tmp_path / "policy.pt2").module()
    np.testing.assert_allclose(loaded(obs[:3]).numpy(), agent.predict(obs[:3].numpy()), rtol=1e-4, atol=1e-5)
