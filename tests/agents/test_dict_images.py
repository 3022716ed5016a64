"""Dict and Tuple observations with images among their parts."""

import copy
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple
from odd_envs import register
from torch import nn

import fastrl.agents
from fastrl.agents import (
    A2C,
    A3C,
    CEM,
    DQN,
    FQI,
    PPO,
    R2D2,
    TRPO,
    InputError,
    OneStepActorCritic,
    RecurrentPPO,
    SACDiscrete,
    off_policy,
)
from fastrl.agents.convolution import Convolution
from fastrl.kernels import MLP

REPLAY = {"seed": 1, "learning_starts": 20, "batch_size": 8, "buffer_size": 100, "train_every": 4}
ROLLOUT = {"seed": 1, "n_steps": 8}
CASES = {
    "dqn": (DQN, REPLAY),
    "sac_discrete": (SACDiscrete, {**REPLAY, "prioritized": True, "n_step": 2}),
    "ppo": (PPO, {**ROLLOUT, "num_envs": 2}),
    "a2c": (A2C, {**ROLLOUT, "num_envs": 2}),
}
CAMERA = Box(0, 255, (36, 40, 3), np.uint8)
WHOLE = Dict(
    {
        "a": Discrete(3, start=-1),
        "camera": CAMERA,
        "more": Tuple([Box(-1, 1, (2, 2)), Box(0, 255, (2, 40, 36), np.uint8), MultiBinary(2)]),
    }
)


class Turned(gym.Env):
    """The bright half of the image says which action is right, or wrong where `turn` is 1; episodes of 6 steps."""

    observation_space = Dict({"image": Box(0, 255, (36, 36, 1), np.uint8), "turn": Discrete(2)})
    action_space = Discrete(2)

    def _observe(self):
        side, turn = (int(x) for x in self.np_random.integers(2, size=2))
        image = self.np_random.integers(0, 60, (36, 36, 1), np.uint8)
        image[:, slice(18) if side else slice(18, None)] += 150
        self.right = side ^ turn
        return {"image": image, "turn": turn}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        reward, self.t = float(action == self.right), self.t + 1
        return self._observe(), reward, self.t == 6, False, {}


class Shows(gym.Env):
    """Random observations of a space."""

    action_space = Discrete(3)

    def __init__(self, space):
        self.observation_space = copy.deepcopy(space)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action), bool(self.np_random.random() < 0.2), False, {}


register("TurnedForTests-v0", Turned)


def nature(x, layers, p):
    """The convolutions of Mnih et al.'s network by torch's functions, for images [B, C, H, W] of 0..1."""
    for i, stride in ((0, 4), (2, 2), (4, 1)):
        x = nn.functional.conv2d(x, p[f"{layers}.{i}.weight"], p[f"{layers}.{i}.bias"], stride).relu()
    return x.flatten(1)


def by_hand(module, obs):
    """The outputs of a network for observations of WHOLE, a list, from torch's functions alone."""
    f, p = nn.functional, dict(module.named_parameters())
    camera = torch.stack([torch.from_numpy(o["camera"]).permute(2, 0, 1) for o in obs]) / 255
    second = torch.stack([torch.from_numpy(o["more"][1]) for o in obs]) / 255
    rest = [
        f.one_hot(torch.tensor([int(o["a"]) + 1 for o in obs]), 3).float(),
        torch.stack([torch.from_numpy(o["more"][0]).flatten() for o in obs]),
        torch.stack([torch.from_numpy(o["more"][2]).float() for o in obs]),
    ]
    seen = [nature(x, f"convolutions.images.{i}", p) for i, x in enumerate((camera, second))]
    hidden = f.linear(torch.cat([*seen, *rest], 1), p["head.0.weight"], p["head.0.bias"]).relu()
    return f.linear(hidden, p["head.2.weight"], p["head.2.bias"])


def policy_of(agent):
    """The network of its outputs that actions are chosen by."""
    return (
        agent.online
        if isinstance(agent, DQN)
        else agent.actor
        if isinstance(agent, SACDiscrete)
        else agent.policy.actor
    )


def samples(space, n):
    space.seed(0)
    return [space.sample() for _ in range(n)]


def batch(space, obs):
    return gym.vector.utils.concatenate(space, obs, gym.vector.utils.create_empty_array(space, len(obs)))


def tensors(obs):
    if isinstance(obs, (dict, tuple)):
        each = {key: tensors(x) for key, x in (obs.items() if isinstance(obs, dict) else enumerate(obs))}
        return each if isinstance(obs, dict) else tuple(each.values())
    return torch.from_numpy(obs)


@pytest.mark.parametrize("case", CASES)
def test_each_image_has_its_convolutions_and_the_hidden_layer_sees_all_else_beside_them(case):
    cls, settings = CASES[case]
    agent = cls(Shows(WHOLE), **{**settings, "num_envs": 1})
    network, obs = policy_of(agent), samples(WHOLE, 5)
    assert isinstance(network.module, Convolution)
    together = batch(WHOLE, obs)
    flat = agent.envs.flattened(together, "obs", 5)
    expected = by_hand(network.module, obs).detach()
    np.testing.assert_allclose(network.forward(flat), expected, rtol=1e-4, atol=1e-5)
    best = expected[:, :3].argmax(1)
    np.testing.assert_array_equal(agent.predict(together), best)
    np.testing.assert_array_equal(agent.policy_to_torch()(tensors(together)), best)
    assert [agent.predict(o) for o in obs] == best.tolist()


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_exactly_and_loads_without_its_environment(case, tmp_path):
    cls, settings = CASES[case]
    first, straight = (cls("TurnedForTests-v0", **settings) for _ in range(2))
    before = policy_of(first).vector.copy()
    first.learn(40, schedule_steps=80, progress=False)
    straight.learn(80, progress=False)
    first.save(tmp_path / "a")
    for agent in (first, cls.load(tmp_path / "a"), copy.deepcopy(first)):
        agent.learn(80, progress=False)
        (state, x), (wanted, y) = agent._state(), straight._state()
        assert state == wanted and x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
    assert first.n_updates and (policy_of(first).vector != before).any()
    first.save(tmp_path / "b")
    obs = samples(Turned.observation_space, 3)
    loaded = fastrl.agents.load(tmp_path / "b")
    assert [loaded.predict(o) for o in obs] == [first.predict(o) for o in obs]


class Masked(Shows):
    """One of three actions is not allowed."""

    def action_masks(self):
        return np.arange(3) != self.np_random.integers(3)


FLOATS = Dict({"camera": CAMERA, "depth": Box(0, 1, (36, 36)), "x": Box(-1, 1, (3,))})


@pytest.mark.parametrize(
    ("cls", "env", "settings", "n_bytes"),
    [
        (DQN, lambda: Shows(WHOLE), {}, 36 * 40 * (3 + 2)),
        (DQN, lambda: Masked(WHOLE), {"prioritized": True, "n_step": 2}, 36 * 40 * (3 + 2)),
        (SACDiscrete, lambda: Shows(Tuple([CAMERA])), {}, 36 * 40 * 3),
        (SACDiscrete, lambda: Shows(FLOATS), {"network": "impala"}, 36 * 40 * 3),
    ],
)
def test_replay_keeps_bytes_as_bytes_and_gives_back_what_it_was_given(cls, env, settings, n_bytes, monkeypatch):
    agent = cls(env(), **settings, **REPLAY).learn(60, progress=False)
    kept = agent.buffer.transitions().obs
    kept = kept.get("obs", kept)
    assert kept["images"].dtype == np.uint8 and kept["images"].shape[1] == n_bytes
    assert kept.get("others", np.zeros((1, 0))).shape[1] == agent.envs.observation_space.shape[0] - n_bytes
    monkeypatch.setattr(off_policy, "packed", lambda _: None)
    whole = cls(env(), **settings, **REPLAY).learn(60, progress=False)
    (state, x), (wanted, y) = agent._state(), whole._state()
    assert agent.n_updates and state == wanted and all(np.array_equal(x[name], y[name]) for name in y)
    obs = whole.buffer.transitions().obs
    np.testing.assert_array_equal(agent._packed.unpack(kept), obs["obs"] if isinstance(obs, dict) else obs)


@pytest.mark.parametrize("cls", [DQN, SACDiscrete, PPO, A2C, A3C, OneStepActorCritic])
def test_large_images_of_bytes_get_a_convolution_unless_an_mlp_is_asked_for(cls):
    assert [part.name for part in cls(Turned(), seed=0)._ready_made.images] == ["['image']"]
    text = (
        rf"^{cls.__name__}: observations \['image'\] of shape \(36, 36, 1\) look like images, and an MLP sees them .*"
    )
    with pytest.warns(
        UserWarning, match=text + "; network= takes a torch module for the whole vector or nature or impala$"
    ):
        agent = cls(Turned(), network="mlp", seed=0)
    assert agent._ready_made is None and isinstance(policy_of(agent), MLP)


WITHOUT = {
    TRPO: "network= takes a torch module for the whole vector$",
    CEM: "network= takes a torch module for the whole vector$",
    R2D2: "networks with a memory have no convolutions$",
    RecurrentPPO: "networks with a memory have no convolutions$",
    FQI: "FQI has no convolutions$",
}


@pytest.mark.parametrize("cls", WITHOUT)
def test_agents_without_convolutions_say_that_they_see_images_flattened(cls, recwarn):
    text = rf"^{cls.__name__}: observations \['image'\] of shape \(36, 36, 1\) look like images, and an MLP sees them"
    with pytest.warns(UserWarning, match=f"{text} flattened, divided by 255; {WITHOUT[cls]}"):
        agent = cls(Turned(), seed=0)
    assert agent._ready_made is None
    with pytest.warns(UserWarning, match="; with noisy off network= takes .* or nature or impala$"):
        assert DQN(Turned(), noisy=True, **REPLAY)._ready_made is None


@pytest.mark.parametrize(
    ("parts", "seen", "text"),
    [
        ({"small": (35, 40, 3)}, [], "['small'] of shape (35, 40, 3) look .* an MLP .* vector or impala"),
        ({"flat": (36, 36)}, [], "['flat'] of shape (36, 36) look .* an MLP .* vector or nature or impala"),
        ({"stack": (4, 40, 40, 3)}, [], "['stack'] of shape (4, 40, 40, 3) look .* an MLP .* for the whole vector"),
        ({"a": (7, 7, 3), "b": (5, 6)}, [], "['a'] of shape (7, 7, 3), ['b'] of shape (5, 6) look .* whole vector"),
        ({"a": (7, 7, 3), "b": (36, 36, 3)}, ["['b']"], "['a'] of shape (7, 7, 3) look .* layer of network nature .*"),
    ],
)
def test_the_images_that_no_convolution_sees_are_named_once(parts, seen, text):
    space = Dict({name: Box(0, 255, shape, np.uint8) for name, shape in parts.items()} | {"x": Discrete(2)})
    pattern = "^DQN: observations " + ".*".join(map(re.escape, text.split(".*"))) + "$"
    with pytest.warns(UserWarning, match=pattern) as warned:
        agent = DQN(Shows(space), **REPLAY)
    assert len(warned) == 1
    assert [part.name for part in (agent._ready_made and agent._ready_made.images) or ()] == seen


@pytest.mark.parametrize(
    "part",
    [
        Box(0, 1, (36, 36, 3)),
        Box(0, 254, (36, 36, 3), np.uint8),
        Discrete(2),
        Box(0, 255, (0, 36, 36), np.uint8),
    ],
)
def test_other_parts_are_no_images_unless_asked_for(part, recwarn):
    space = Dict({"part": part, "x": Box(-1, 1, (2,))})
    agent = DQN(Shows(space), **REPLAY)
    assert agent._ready_made is None and isinstance(agent.online, MLP) and not recwarn
    if 0 in part.shape:
        assert agent.learn(30, progress=False).n_updates
    elif not isinstance(part, Discrete):
        asked = DQN(Shows(space), network="impala", **REPLAY).learn(30, progress=False)
        assert [seen.name for seen in asked._ready_made.images] == ["['part']"] and asked.n_updates


@pytest.mark.parametrize(
    "switches", [{"distributional": "qr", "atoms": 5}, {"distributional": "iqn"}, {"double": True}]
)
def test_dueling_and_distributions(switches, tmp_path):
    agent = DQN(Shows(WHOLE), dueling=True, **switches, **REPLAY).learn(40, progress=False)
    obs = batch(WHOLE, samples(WHOLE, 6))
    raw, batch_size, policy = tensors(obs), torch.export.Dim("batch"), agent.policy_to_torch()
    np.testing.assert_array_equal(policy(raw), agent.predict(obs))
    shapes = torch.utils._pytree.tree_map(lambda _: {0: batch_size}, raw)
    program = torch.export.export(policy, (raw,), dynamic_shapes=(shapes,))
    fewer = torch.utils._pytree.tree_map(lambda x: x[:4], raw)
    np.testing.assert_array_equal(program.module()(fewer), agent.predict(obs)[:4])


@pytest.mark.parametrize(
    ("space", "settings", "text"),
    [
        (Dict({"i": Box(0, 255, (35, 40, 3), np.uint8), "x": Discrete(3)}), {"network": "nature"},
         r"network nature needs observations with images .* of at least 36 x 36 pixels among their parts, got "
         r"\['i'\] of shape \(35, 40, 3\), \['x'\] of shape \(\)$"),
        (Tuple([MultiBinary((9, 9)), Discrete(3)]), {"network": "impala"}, r"got \[0\] of shape \(9, 9\), \[1\] of"),
        (WHOLE, {"network": "nature", "noisy": True}, "noisy must be False with network nature"),
    ],
)  # fmt: skip
def test_parts_that_a_network_cannot_see(space, settings, text):
    with pytest.raises(InputError, match=f"^DQN: .*{text}") as error:
        DQN(Shows(space), **settings, **REPLAY)
    assert "\n" not in str(error.value)


def test_observations_that_are_not_of_the_space():
    agent, (good,) = PPO(Shows(WHOLE), **ROLLOUT), samples(WHOLE, 1)
    with pytest.raises(
        InputError, match=r"predict: obs\['camera'\] must be numbers of shape \(36, 40, 3\), got uint8 of"
    ):
        agent.predict({**good, "camera": good["camera"][:35]})
    with pytest.raises(InputError, match="predict: obs must be a dict with a, camera, more, got a, more"):
        agent.predict({"a": good["a"], "more": good["more"]})


def test_a_line_at_the_start_says_what_sees_the_images(capsys):
    PPO(Shows(WHOLE), **ROLLOUT).learn(8)
    assert "network nature sees ['camera'], ['more'][1] as images, and the other numbers beside them" in " ".join(
        capsys.readouterr().err.split()
    )


SMALL = Dict({"a": Box(0, 255, (8, 9), np.uint8), "camera": CAMERA, "map": Box(0, 255, (36, 36), np.uint8)})


@pytest.mark.parametrize("network", ["auto", "nature", "impala"])
@pytest.mark.parametrize("space", [WHOLE, SMALL, Tuple([CAMERA])], ids=["whole", "small", "one"])
def test_the_buffer_of_an_agent_is_a_dataset(space, network, tmp_path):
    """Whichever parts its network saw as images."""
    dqn = DQN(Shows(space), network=network, **REPLAY).learn(40, progress=False)
    dqn.save(tmp_path / "dqn")
    kept = dqn.buffer.transitions()
    for dataset in (dqn.buffer, str(tmp_path / "dqn" / "replay")):
        fqi = FQI(Shows(space), dataset=dataset, hidden=(4,), networks=1).learn(1, progress=False)
        found = fqi.buffer.transitions()
        np.testing.assert_array_equal(found.obs, dqn._packed.unpack(kept.obs))
        np.testing.assert_array_equal(found.next_obs, dqn._packed.unpack(kept.next_obs))
        np.testing.assert_array_equal(found.action, kept.action)


def test_a_buffer_of_other_images_is_no_dataset():
    dqn = DQN(Shows(WHOLE), **REPLAY).learn(30, progress=False)
    with pytest.raises(InputError, match="dataset: an observation must be a dict with camera, depth, x, got images, o"):
        FQI(Shows(FLOATS), dataset=dqn.buffer)


class Untrue(Turned):
    """Images that are not of the space."""

    def __init__(self, change):
        self.change = change

    def _observe(self):
        obs = super()._observe()
        return {**obs, "image": self.change(obs["image"])}


@pytest.mark.parametrize("cls", [DQN, PPO])
@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda x: x / 255, r"float64 from 0\.\d* to 0\.\d*$"),
        (lambda x: x.astype(np.int64) - 1, r"int64 from -1 to "),
        (lambda x: x.astype(np.float32) + 200, r"float32 from 2\d\d\.0 to 4"),
        (lambda x: x + 256 * np.ones((), np.uint16), r"uint16 from 2"),
    ],
)
def test_images_that_are_no_bytes_are_refused_as_single_ones_are(cls, change, got):
    where = r"the observation of Untrue\['image'\]"
    with pytest.raises(InputError, match=f"^{where} must be whole numbers from 0 to 255 like its space, got {got}"):
        cls(Untrue(change), **(REPLAY if cls is DQN else ROLLOUT)).learn(40, progress=False)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_whole_numbers_of_another_dtype_are_images(dtype):
    same, other = (
        DQN(env, **REPLAY).learn(30, progress=False) for env in (Turned(), Untrue(lambda x: x.astype(dtype)))
    )
    x, y = same.buffer.transitions(), other.buffer.transitions()
    np.testing.assert_array_equal(x.obs["images"], y.obs["images"])
    assert len(x.reward) == 30 and np.array_equal(same.online.vector, other.online.vector)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (PPO, {"n_steps": 64, "num_envs": 1}),
        (DQN, {"batch_size": 16, "learning_starts": 50, "epsilon_steps": 500, "gamma": 0.5}),
    ],
)
def test_what_only_image_and_number_together_say_is_learned(cls, settings):
    agent = cls("TurnedForTests-v0", seed=0, **settings).learn(2000, progress=False)
    assert agent.evaluate(10).mean() > 5
