"""Ready-made convolutional networks, and frames that are stored once."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from odd_envs import Bright, register
from torch import nn

import fastrl.agents
from fastrl.agents import A2C, DQN, PPO, EnvConfig, InputError, SACDiscrete, SACDiscreteConfig, envs
from fastrl.agents.convolution import Convolution
from fastrl.agents.images import ReadyMade
from fastrl.agents.torch_networks import TorchNetwork
from fastrl.kernels import MLP

SHAPES = [(2, 40, 36), (40, 36, 2), (40, 36)]
SMALL = {"seed": 1, "learning_starts": 20, "batch_size": 8, "buffer_size": 100, "train_every": 4}


register("BrightForTests-v0", Bright)
STACKED = EnvConfig("BrightForTests-v0", wrappers=["FrameStackObservation(stack_size=3)"])


def nature(x, p):
    """Mnih et al.'s network by torch's functions, for images [B, C, H, W] of 0..1."""
    f = nn.functional
    for i, stride in ((0, 4), (2, 2), (4, 1)):
        x = f.conv2d(x, p[f"convolutions.{i}.weight"], p[f"convolutions.{i}.bias"], stride).relu()
    x = f.linear(x.flatten(1), p["head.0.weight"], p["head.0.bias"]).relu()
    return f.linear(x, p["head.2.weight"], p["head.2.bias"])


@pytest.mark.parametrize("shape", SHAPES)
def test_nature_is_the_papers_whatever_axis_the_channels_are_in(shape):
    agent = DQN(Bright(shape), network="nature", **SMALL)
    p = {name: torch.from_numpy(x) for name, x in agent.online.parameters().items()}
    assert [tuple(p[f"convolutions.{i}.weight"].shape) for i in (2, 4)] == [(64, 32, 4, 4), (64, 64, 3, 3)]
    image = agent.envs.observation_space.sample()
    x = torch.from_numpy(image)[None] / 255
    x = x[:, None] if len(shape) == 2 else x.permute(0, 3, 1, 2) if shape[2] == 2 else x
    np.testing.assert_allclose(agent._values(agent.online, image[None]), nature(x, p), rtol=1e-4, atol=1e-5)
    assert agent.predict(image) == nature(x, p).argmax() == agent.policy_to_torch()(torch.from_numpy(image)[None])


@pytest.mark.parametrize("kind", ["nature", "impala"])
@pytest.mark.parametrize("shape", [(3, 40, 44), (40, 44, 3)])
def test_convolutions_with_the_channels_last_in_memory_are_those_of_torch(kind, shape):
    agent = DQN(Bright(shape), network=kind, **SMALL)
    network, module = agent.online, agent.online.module
    x = np.random.default_rng(0).random((3, *shape), np.float32)
    plain = copy.deepcopy(module).double()
    first = plain.convolutions[0]
    plain.convolutions[0] = nn.Conv2d(3, first.out_channels, first.kernel_size, first.stride, first.padding).double()
    plain.convolutions[0].load_state_dict(first.state_dict())
    expected = plain(torch.from_numpy(x).double())
    np.testing.assert_allclose(network.forward(x), expected.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.forward_cached(x), expected.detach(), rtol=1e-4, atol=1e-5)
    d = np.random.default_rng(1).standard_normal(expected.shape, np.float32)
    network.backward(d)
    expected.backward(torch.from_numpy(d).double())
    for (name, mine), p in zip(network.parameters(network.grad).items(), plain.parameters(), strict=True):
        np.testing.assert_allclose(mine, p.grad, rtol=1e-3, atol=1e-4, err_msg=name)
    seen = []
    module.convolutions[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.forward_cached(x), network.forward(x)
    formats = [y.is_contiguous(memory_format=torch.channels_last) for y in seen]
    assert formats == ([True, kind == "impala"] if shape[0] == 3 else [True, True])


def test_channels_are_last_where_both_axes_may_be():
    """As MinAtar's ``[10, 10, 10]`` of Seaquest."""
    agent = DQN(Bright((10, 10, 10)), network="impala", **SMALL)
    module, image = agent.online.module, torch.rand(2, 10, 10, 10)
    expected = module.head(module.convolutions(image.permute(0, 3, 1, 2)))
    torch.testing.assert_close(module(image), expected)
    first = Convolution(ReadyMade("impala", (9, 10, 10)), 2)
    torch.testing.assert_close(first(image[:, :9]), first.head(first.convolutions(image[:, :9])))


@pytest.mark.parametrize("network", ["auto", "impala"])
def test_sac_discretes_actor_and_critics_are_networks_of_their_own(network, tmp_path):
    agent = SACDiscrete(Bright((2, 40, 36)), network=network, **SMALL)
    parts = agent.actor, agent.critics
    image = np.stack([agent.envs.observation_space.sample() for _ in range(3)])
    x = torch.from_numpy(image) / 255
    modules = [part.module for part in parts]
    for module in (modules[0], *modules[1]):
        assert isinstance(module, Convolution)
        if network == "auto":
            torch.testing.assert_close(module(x), nature(x, dict(module.named_parameters())), rtol=1e-4, atol=1e-5)
    first, second = (critic(x) for critic in modules[1])
    assert not torch.equal(first, second) and agent.critics.vector.size == 2 * agent.actor.vector.size
    np.testing.assert_allclose(agent.critics.forward(image / np.float32(255)), [first.detach(), second.detach()], 1e-4)
    logits = agent.actor.forward(image / np.float32(255))
    np.testing.assert_array_equal(agent.predict(image), logits.argmax(1))
    np.testing.assert_array_equal(agent.policy_to_torch()(torch.from_numpy(image)), logits.argmax(1))
    before = [part.vector.copy() for part in parts]
    agent.learn(40, progress=False)
    assert agent.n_updates == 5 and all((part.vector != x).any() for part, x in zip(parts, before, strict=True))
    assert agent.buffer.transitions().obs.dtype == np.uint8
    agent.save(tmp_path / "a")
    np.testing.assert_array_equal(fastrl.agents.load(tmp_path / "a").predict(image), agent.predict(image))


@pytest.mark.parametrize("network", ["nature", "impala"])
@pytest.mark.parametrize("cls", [PPO, A2C])
def test_a_policy_and_its_value_begin_small_and_see_bytes_as_0_to_1(cls, network):
    agent = cls(Bright((2, 40, 36)), network=network, seed=1, n_steps=8)
    policy, image = agent.policy, np.stack([agent.envs.observation_space.sample() for _ in range(3)])
    assert policy.shared and isinstance(policy.actor, TorchNetwork)
    weight = policy.actor.parameters()["head.2.weight"]
    gains = np.linalg.norm(weight, axis=1)
    np.testing.assert_allclose(gains, [0.01, 0.01, 1.0], rtol=1e-4)
    out, value = policy.forward(policy.prepare(image))
    both = policy.actor.module(torch.from_numpy(image) / 255).detach().numpy()
    np.testing.assert_allclose(np.column_stack([out, value]), both, rtol=1e-3, atol=1e-6)
    agent.learn(16, progress=False)
    assert agent.rollout.obs.dtype == np.uint8 and np.isfinite(policy.vector).all()


def test_images_of_bytes_get_a_convolution_and_small_ones_a_warning():
    assert isinstance(DQN(Bright((2, 40, 36)), **SMALL).online, TorchNetwork)
    with pytest.warns(UserWarning, match="; network= takes a convolutional torch module or impala$"):
        assert isinstance(DQN(Bright((10, 10, 4)), **SMALL).online, MLP)
    with pytest.warns(UserWarning, match="look like images"):
        assert isinstance(DQN(Bright((2, 40, 36)), network="mlp", **SMALL).online, MLP)
    floats = Bright((10, 10, 4), np.float32, 1)  # as MinAtar's
    assert isinstance(DQN(floats, network="impala", **SMALL).online, TorchNetwork)
    assert isinstance(DQN(floats, **SMALL).online, MLP)


@pytest.mark.parametrize(
    ("shape", "settings", "advice"),
    [
        ((40, 40), {}, "network= takes a convolutional torch module or nature or impala"),
        ((2, 40, 36), {"network": "mlp"}, "network= takes a convolutional torch module or nature or impala"),
        ((7, 9), {}, "network= takes a convolutional torch module"),
        ((4, 40, 40, 3), {}, "network= takes a convolutional torch module"),
        (
            (4, 40, 40),
            {"noisy": True},
            "with noisy off network= takes a convolutional torch module or nature or impala",
        ),
        ((12, 12), {"dueling": True}, "with dueling off network= takes a convolutional torch module or impala"),
        ((4, 40, 40), {"rainbow": True}, "with rainbow off network= takes .* or nature or impala"),
    ],
)
def test_the_advice_for_images_is_what_would_be_taken(shape, settings, advice):
    with pytest.warns(UserWarning, match=f"look like images, and an MLP sees them .*; {advice}$"):
        DQN(Bright(shape), **settings, **SMALL)
    taken = {"nature", "impala"} & set(advice.split())
    on = [name for name in ("noisy", "dueling", "rainbow") if name in settings]
    for network in ("nature", "impala"):
        if network in taken:
            assert isinstance(DQN(Bright(shape), network=network, **SMALL).online, TorchNetwork)
        elif not on:
            with pytest.raises(InputError, match="needs observations that are images"):
                DQN(Bright(shape), network=network, **SMALL)


@pytest.mark.parametrize("network", ["nature", "impala"])
def test_sac_discrete_refuses_images_that_are_too_small(network):
    least = {"nature": 36, "impala": 8}[network]
    text = rf"^SACDiscrete: network {network} needs .* at least {least} x {least} pixels, got shape \(7, 40, 3\)$"
    with pytest.raises(InputError, match=text):
        SACDiscrete(Bright((7, 40, 3)), network=network, **SMALL)
    with pytest.raises(InputError, match="^SACDiscrete: network must be a module of your own or nature, not both$"):
        SACDiscrete(Bright(), SACDiscreteConfig(network="nature"), network={"actor": nn.Linear(3, 2)})
    with pytest.warns(UserWarning, match="look like images, and an MLP sees them"):
        assert isinstance(SACDiscrete(Bright((7, 40, 3)), **SMALL).critics, MLP)


@pytest.mark.parametrize(
    ("shape", "settings", "text"),
    [
        ((35, 40, 3), {"network": "nature"}, r"at least 36 x 36 pixels, got shape \(35, 40, 3\)"),
        ((4, 7, 8), {"network": "impala"}, r"at least 8 x 8 pixels, got shape \(4, 7, 8\)"),
        ((9,), {"network": "nature"}, r"needs observations that are images .*, got shape \(9,\)"),
        ((40, 40), {"network": "cnn"}, r"network must be .*'nature'.* 'impala', got 'cnn'"),
        ((40, 40), {"network": "nature", "noisy": True}, "noisy must be False with network nature"),
    ],
)
def test_images_that_a_network_cannot_see(shape, settings, text):
    with pytest.raises(InputError, match=rf"^DQN: .*{text}") as error:
        DQN(Bright(shape), **settings, **SMALL)
    assert "\n" not in str(error.value)


def test_dueling_streams():
    agent = DQN(Bright((40, 36)), network="impala", dueling=True, distributional="qr", atoms=5, **SMALL)
    module, x = agent.online.module, torch.rand(3, 40, 36)
    features = module.convolutions(x[:, None])
    a = module.head(features).reshape(3, 2, 5)
    q = module.value(features)[:, None] + a - a.mean(1, keepdim=True)
    torch.testing.assert_close(module(x), q.flatten(1))


@pytest.mark.parametrize("dueling", [False, True])
def test_implicit_quantiles_of_images(dueling):
    how = {
        "network": "impala",
        "dueling": dueling,
        "distributional": "iqn",
        "quantile_embedding_dim": 6,
        "double": True,
    }
    agent = DQN(Bright((40, 36)), **how, **SMALL)
    module, x, taus = agent.online.module, torch.rand(3, 40, 36), torch.rand(3, 5)
    cosines = torch.stack([torch.cos(torch.pi * i * taus) for i in range(6)], 2)
    features = module.convolutions(x[:, None])[:, None] * torch.relu(module.embedding(cosines))
    z = module.head(features)
    if dueling:
        z = module.value(features) + z - z.mean(2, keepdim=True)
    assert z.shape == (3, 5, 2)
    torch.testing.assert_close(module(x, taus), z.transpose(1, 2))
    np.testing.assert_allclose(agent.online.forward(x.numpy(), taus.numpy()), z.transpose(1, 2).detach(), rtol=1e-5)
    before = agent.online.state_dict()
    agent.learn(40, progress=False)
    assert agent.n_updates and not any(torch.equal(p, before[name]) for name, p in agent.online.state_dict().items())
    obs = np.random.default_rng(0).integers(0, 256, (20, 40, 36), np.uint8)
    actions = agent.policy_to_torch()(torch.from_numpy(obs)).numpy()
    np.testing.assert_array_equal(actions, agent.predict(obs))


def same(a, b):
    (state_a, x), (state_b, y) = a._state(), b._state()
    return state_a == state_b and x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("cls", [DQN, SACDiscrete])
def test_frames_are_stored_once_and_training_goes_on_exactly(cls, tmp_path):
    first, straight = (cls(STACKED, **SMALL, n_step=2) for _ in range(2))
    assert first.buffer.frame_stack == 3 and first.envs.observation_space.shape == (3, 36, 36)
    first.learn(40, schedule_steps=60, progress=False)
    straight.learn(60, progress=False)
    first.save(tmp_path / "a")
    loaded = cls.load(tmp_path / "a")
    assert loaded.buffer.frame_stack == 3
    for agent in (first, loaded, copy.deepcopy(loaded)):
        assert same(agent.learn(60, progress=False), straight)


class Ends(Bright):
    """Episodes of random length."""

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, bool(self.np_random.random() < 0.2), truncated, info


register("EndsForTests-v0", Ends, max_episode_steps=4)


@pytest.mark.parametrize("steps", [90, 300])  # the second more than the buffer holds
def test_stacks_of_frames_are_those_of_whole_observations(steps, monkeypatch):
    env = EnvConfig("EndsForTests-v0", wrappers=["FrameStackObservation(stack_size=3)"])

    def transitions():
        settings = {**SMALL, "num_envs": 3, "n_step": 2, "buffer_size": 120, "learning_starts": 10**6}
        agent = DQN(env, **settings).learn(steps, schedule_steps=10**7, progress=False)
        held, sampled = agent.buffer.transitions(), agent.buffer.sample(3000)
        rows = [
            {
                (*(x.tobytes() for x in row[:4]), float(row[4]))
                for row in zip(b.obs, b.action, b.reward, b.next_obs, b.discount, strict=True)
            }
            for b in (held, sampled)
        ]
        return agent.buffer.frame_stack, len(held.obs), *rows

    frames, n, held, sampled = transitions()
    monkeypatch.setattr(envs, "stacked_frames", lambda _: 1)
    whole_frames, n_whole, whole, whole_sampled = transitions()
    assert (frames, whole_frames) == (3, 1)
    if steps == 90:
        assert n == n_whole == 90 and held == whole and sampled == whole_sampled
    else:
        assert n > 60 and held <= whole and sampled <= whole_sampled
    assert {x[-1] for x in held} == {0.0, np.float32(0.99)} and len({x[-1] for x in sampled}) == 3


def test_stacks_that_are_flattened_are_no_frames():
    env = EnvConfig("FrozenLake-v1", wrappers=["FrameStackObservation(stack_size=3)"])
    agent = DQN(env, **SMALL).learn(30, progress=False)
    assert agent.envs.observation_space.shape == (48,) and agent.buffer.frame_stack == 1 and agent.n_updates > 0


def test_a_wrapper_around_the_stack_is_not_known_to_keep_it():
    from gymnasium.wrappers import FrameStackObservation, TransformObservation

    stack = FrameStackObservation(Bright(), 3)
    turned = TransformObservation(stack, lambda obs: obs[::-1], stack.observation_space)
    assert DQN(gym.wrappers.TimeLimit(stack, 5), **SMALL).buffer.frame_stack == 3
    agent = DQN(turned, **SMALL)
    assert agent.buffer.frame_stack == 1 and agent.learn(30, progress=False).n_updates > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (DQN, {"batch_size": 16, "learning_starts": 50, "epsilon_steps": 300, "gamma": 0.5}),
        (SACDiscrete, {"batch_size": 16, "learning_starts": 50, "gamma": 0.5}),
        (PPO, {"n_steps": 32, "num_envs": 1}),
    ],
)
def test_what_is_in_the_images_is_learned(cls, settings):
    agent = cls(Bright(), network="nature", seed=0, **settings).learn(800, progress=False)
    assert agent.evaluate(10, env=Bright()).mean() > 5


@pytest.mark.parametrize("mode", [gym.vector.AutoresetMode.NEXT_STEP, gym.vector.AutoresetMode.SAME_STEP])
def test_ataris_vector_environment(mode):
    ale = pytest.importorskip("ale_py.vector_env", reason="ale-py is not installed")
    size = {"img_height": 36, "img_width": 36, "max_num_frames_per_episode": 40}
    envs = ale.AtariVectorEnv("pong", num_envs=2, autoreset_mode=mode, **size)
    agent = DQN(envs, **{**SMALL, "learning_starts": 16}).learn(48, progress=False)
    assert agent.buffer.frame_stack == 4 and agent.n_updates > 0 and isinstance(agent.online, TorchNetwork)
    assert agent.envs.episodes > 2


def test_minatar():
    pytest.importorskip("minatar", reason="MinAtar is not installed")
    gym_minatar = pytest.importorskip("minatar.gym")
    gym_minatar.register_envs()
    agent = DQN("MinAtar/Breakout-v1", network="impala", **SMALL).learn(30, progress=False)
    assert agent.n_updates > 0
