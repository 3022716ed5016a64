"""`policy_to_torch`: a plain torch module that acts as `predict` does, and shares nothing with the agent."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from fastrl.agents import D4PG, DDPG, DQN, FQI, NAF, PPO, SAC, TD3, TQC, CrossQ, QTOpt, RecurrentPPO, SACDiscrete

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


MIXED = gym.spaces.Dict(
    {
        "camera": gym.spaces.Box(0, 255, (36, 36, 3), np.uint8),
        "place": gym.spaces.Discrete(3, start=5),
        "inner": gym.spaces.Tuple(
            [gym.spaces.MultiDiscrete([[2, 3]]), gym.spaces.MultiBinary(4), gym.spaces.Box(-1, 1, (2, 2), np.float64)]
        ),
        "low": gym.spaces.Box(0, 9, (2,), np.uint8),
    }
)
KINDS_OF_SPACE = {
    "dict": MIXED,
    "tuple": gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Box(0, 255, (5,), np.uint8)]),
    "discrete": gym.spaces.Discrete(4, start=-1),
    "multi": gym.spaces.MultiDiscrete([3, 2]),
}


def stacked(space, n):
    space.seed(5)
    empty = gym.vector.utils.create_empty_array(space, n)
    obs = gym.vector.utils.concatenate(space, [space.sample() for _ in range(n)], empty)
    return obs, torch.utils._pytree.tree_map(torch.from_numpy, obs)


@pytest.mark.filterwarnings("ignore:.*look like images")
@pytest.mark.parametrize("kind", KINDS_OF_SPACE)
@pytest.mark.parametrize("make", [DQN, PPO, SACDiscrete, FQI, RecurrentPPO])
def test_observations_of_all_spaces_come_as_the_environment_gives_them(make, kind, tmp_path):
    space = KINDS_OF_SPACE[kind]
    settings = {DQN: SMALL, SACDiscrete: SMALL, FQI: {"hidden": (8,), "transitions": 60}}
    rollout = {"hidden": (16, 8), "n_steps": 32, "minibatches": 1, "epochs": 1}
    settings |= {PPO: rollout, RecurrentPPO: rollout}
    agent = make(Odd(space, gym.spaces.Discrete(3)), **settings[make], seed=1)
    agent.learn(2 if make is FQI else 60, progress=False)
    obs, raw = stacked(space, 40)
    policy = agent.policy_to_torch()
    rest = (policy.start(40),) if make is RecurrentPPO else ()

    def actions(policy, x, *rest):
        out = policy(x, *rest)
        return (out[0] if rest else out).tolist()

    expected = agent.predict(obs, memory=agent.memory(40)).tolist()
    assert actions(policy, raw, *rest) == expected
    batch = torch.export.Dim("batch", max=2**31)
    shapes = tuple(torch.utils._pytree.tree_map(lambda _: {0: batch}, x) for x in (raw, *rest))
    program = torch.export.export(policy, (raw, *rest), dynamic_shapes=shapes).module()
    fewer = [torch.utils._pytree.tree_map(lambda x: x[:7], x) for x in (raw, *rest)]
    assert actions(program, *fewer) == expected[:7]


def test_what_is_no_observation_is_refused():
    policy = DQN(Odd(MIXED, gym.spaces.Discrete(3)), **SMALL).policy_to_torch()
    _, raw = stacked(MIXED, 4)
    for obs, text in (
        (torch.zeros(4, 3895), "obs must be a dict with .*, got Tensor"),
        ({**raw, "more": raw["low"]}, "obs must be a dict with .*, got .*more"),
        ({**raw, "inner": raw["inner"][:2]}, r"obs\['inner'\] must be a tuple of 3, got 2"),
        ({**raw, "camera": raw["camera"] / 255}, r"obs\['camera'\] must be bytes 0..255 .*, got torch.float32"),
        (
            {**raw, "camera": raw["camera"].movedim(-1, 1)},
            r"'camera'\] must be .* \(B, 36, 36, 3\), got .*\(4, 3, 36, 36",
        ),
        ({**raw, "place": raw["place"] + 0.5}, r"obs\['place'\] must be whole numbers"),
        (
            {**raw, "place": raw["place"][:, None]},
            r"obs\['place'\] must be a tensor of shape \(B\), got shape \(4, 1\)",
        ),
    ):
        with pytest.raises(ValueError, match=f"^policy: .*{text}"):
            policy(obs)
    with pytest.raises((IndexError, RuntimeError)):
        policy({**raw, "place": raw["place"] + 3})
    plain = PPO("CartPole-v1", hidden=(8,)).policy_to_torch()
    for wrong in (torch.zeros(4), torch.zeros(2, 2, 2), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r"^policy: obs must be a tensor of shape \(B, 4\), got shape"):
            plain(wrong)


@pytest.mark.parametrize(
    "space",
    [gym.spaces.MultiBinary(3), gym.spaces.MultiDiscrete([2, 3], dtype=np.int32), gym.spaces.Discrete(3, start=2)],
)
def test_discrete_actions_have_the_dtype_of_their_space(space):
    agent = PPO(Odd(OBSERVATIONS["float32"], space), hidden=(8,), n_steps=16, minibatches=1)
    agent.policy.vector *= 30
    _, obs, _ = assert_same(agent, OBSERVATIONS["float32"])
    assert len(np.unique(agent.predict(obs), axis=0)) > 1
