"""`network=`: torch modules of the user's own in the place of the MLP."""

import copy
import functools
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from fastrl.agents import CEM, DDPG, DQN, NAF, REINFORCE, SAC, TD3, TRPO, InputError, QProp
from fastrl.agents.torch_networks import TorchNetwork
from fastrl.kernels import MLP

SMALL = {"hidden": (8,), "learning_starts": 30, "batch_size": 16, "buffer_size": 200, "seed": 2}


class Critic(nn.Module):
    def __init__(self, out=1):
        super().__init__()
        self.obs, self.action, self.out = nn.Linear(3, 8), nn.Linear(1, 8), nn.Linear(8, out)

    def forward(self, obs, action):
        return self.out(torch.nn.functional.silu(self.obs(obs) + self.action(action)))


def actor(out=1):
    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, out))


class Flashes(gym.Env):
    """Bright or dark images ``[1, 8, 8]`` of bytes; the right action says which."""

    observation_space = gym.spaces.Box(0, 255, (1, 8, 8), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def _image(self):
        self.bright = int(self.np_random.integers(2))
        return self.np_random.integers(100 * self.bright, 100 + 100 * self.bright, (1, 8, 8), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._image(), {}

    def step(self, action):
        reward = float(action == self.bright)
        return self._image(), reward, True, False, {}


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))


def same(a, b):
    (state_a, x), (state_b, y) = a._state(), b._state()
    return state_a == state_b and x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)


def test_a_convolution_learns_from_images_and_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = DQN(Flashes(), network=convolutional, seed=0, learning_starts=100, epsilon_steps=1000, gamma=0.5)
    agent.learn(1500, progress=False)
    assert agent.evaluate(50, env=Flashes()).mean() > 0.95
    image = agent.envs.observation_space.sample()
    q = agent.policy_to_torch().network(torch.from_numpy(image[None]) / 255)
    assert agent.predict(image) == q.argmax()


@pytest.mark.parametrize("cls", [TD3, DDPG, SAC])
def test_resume_and_copies_are_exact(cls, tmp_path):
    network = {"actor": functools.partial(actor, 2 if cls is SAC else 1), "critic": Critic}

    def make(steps):
        agent = cls("Pendulum-v1", **SMALL, prioritized=True, network=network)
        return agent.learn(steps, schedule_steps=90, progress=False)

    agent, straight = make(60), make(90)
    agent.save(tmp_path / "a")
    loaded = cls.load(tmp_path / "a", network=network)
    for other in (agent, loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert same(other.learn(90, progress=False), straight)
    assert isinstance(agent.actor, TorchNetwork) and "critics.0.action.weight" in agent._state()[1]
    with pytest.raises(InputError, match="give `network` again, because the agent was made with one"):
        cls.load(tmp_path / "a")
    with pytest.raises(InputError, match="does not fit its config.json"):
        cls.load(tmp_path / "a", network={**network, "critic": functools.partial(nn.Bilinear, 3, 1, 1)})
    cls("Pendulum-v1", **SMALL).save(tmp_path / "b")
    with pytest.raises(InputError, match="`network` given, but the agent was made with none"):
        cls.load(tmp_path / "b", network=network)


def test_one_of_the_two_networks():
    agent = TD3("Pendulum-v1", **SMALL, network={"critic": Critic}).learn(60, progress=False)
    assert isinstance(agent.actor, MLP) and isinstance(agent.critics, TorchNetwork) and agent.n_updates == 30


def test_a_module_is_copied_and_functions_draw_from_the_seed():
    module = nn.Linear(4, 2)
    before = module.weight.clone()
    agent = DQN("CartPole-v1", **SMALL, network=module).learn(100, progress=False)
    assert torch.equal(module.weight, before) and module.weight.grad is None
    assert not np.array_equal(agent.online.parameters()["weight"], before.detach().numpy())
    state = torch.get_rng_state()
    first, second, other = (DQN("CartPole-v1", network=lambda: nn.Linear(4, 2), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert (first.online.vector == second.online.vector).all() and (first.online.vector != other.online.vector).any()
    twins = TD3("Pendulum-v1", network={"critic": Critic}).critics
    assert (np.split(twins.vector, 2)[0] != np.split(twins.vector, 2)[1]).all()


@pytest.mark.parametrize(
    ("cls", "network", "text"),
    [
        (TD3, "cnn", r"network must be a dict with the keys actor, critic or one of them, got str"),
        (DQN, lambda: 3, r"network must be a torch.nn.Module with parameters, got int"),
        (DQN, nn.ReLU(), r"network must be a torch.nn.Module with parameters, got ReLU"),
        (DQN, nn.Linear(4, 3), r"network must map \[B, 4\] to \[B, 2\], got \[2, 3\] for B = 2"),
        (DQN, nn.Linear(5, 2), r"network must take \[B, 4\]: RuntimeError: mat1 and mat2 shapes"),
        (NAF, nn.Linear(3, 2), r"network must map \[B, 3\] to \[B, 3\], got \[2, 2\] for B = 2"),
        (TD3, nn.Linear(3, 1), r"network must be a dict with the keys actor, critic or one of them, got Linear"),
        (TD3, {"acter": actor}, r"network must be a dict with the keys actor, critic or one of them, got acter"),
        (SAC, {"actor": actor}, r"actor must map \[B, 3\] to \[B, 2\], got \[2, 1\] for B = 2"),
        (TD3, {"critic": Critic()}, r"critic must be a function that makes one, got Critic"),
        (TD3, {"critic": lambda: Critic(2)}, r"critic must map \[B, 3\] and \[B, 1\] to \[B, 1\], got \[2, 2\] for"),
        (TD3, {"critic": actor}, r"critic must take \[B, 3\] and \[B, 1\]: TypeError"),
    ],
)
def test_networks_that_cannot_work(cls, network, text):
    with pytest.raises(InputError, match=rf"^{cls.__name__}: {text}") as error:
        cls("Pendulum-v1" if cls is not DQN else "CartPole-v1", **SMALL, network=network)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nature", "nonsense"])
@pytest.mark.parametrize("cls", [REINFORCE, CEM, TRPO, QProp])
def test_names_of_networks_are_those_of_agents_that_have_them(cls, name):
    with pytest.raises(InputError, match=r"^network: .* must be a torch.nn.Module or a function .*, got str$"):
        cls("Pendulum-v1", hidden=(8,), network=name)


def test_dueling_belongs_to_the_mlp():
    with pytest.raises(InputError, match="^DQN: dueling must be False with a network of your own"):
        DQN("CartPole-v1", dueling=True, network=nn.Linear(4, 2))


def test_arrays_that_cannot_be_written_are_taken_and_stay_as_they_are():
    """As Ray's, whatever the module does with its input; torch warns of them once a process, so in one of its own."""
    code = (
        "import warnings; warnings.simplefilter('error'); import numpy as np, torch\n"
        "from fastrl.agents.torch_networks import TorchNetwork\n"
        "class Doubles(torch.nn.Linear):\n"
        "    def forward(self, x): return super().forward(x.mul_(2))\n"
        "network = TorchNetwork(Doubles(3, 2), (3,), device='cpu')\n"
        "x = np.ones((4, 3), np.float32); x.flags.writeable = False\n"
        "out = network.forward(x); assert (x == 1).all()\n"
        "assert np.array_equal(out, network.forward(np.ones((4, 3), np.float32)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_backward_needs_forward_cached():
    network = TorchNetwork(nn.Linear(4, 2), (4,))
    with pytest.raises(RuntimeError, match="backward needs forward_cached before it"):
        network.backward(np.ones((1, 2), np.float32))


def test_gradients_like_the_mlps():
    """Parameters, all inputs or some of their columns, the first networks only, and twice from one forward pass."""
    mlp = MLP((5, 8, 8, 2), n=3, seed=0)
    network = TorchNetwork(copy.deepcopy(mlp.to_torch()), (5,))
    rng = np.random.default_rng(0)
    x, d_out = rng.standard_normal((7, 5), np.float32), rng.standard_normal((3, 7, 2), np.float32)
    for first in (None, 2):
        ours, theirs = network.forward_cached(x, first=first), mlp.forward_cached(x, first=first)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(network.forward(x, first=first), theirs, rtol=1e-5, atol=1e-6)
        for inputs in (None, True, slice(-2, None), slice(0, 3)):
            network.grad[:] = np.nan
            a, b = (net.backward(d_out[:first], inputs=inputs) for net in (network, mlp))
            assert (a is None) == (b is None) == (inputs is None)
            if inputs is not None:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            for name, view in network.parameters(network.grad).items():
                np.testing.assert_allclose(view, mlp.parameters(mlp.grad)[name], rtol=1e-4, atol=1e-5)
        before = network.grad.copy()
        network.backward(d_out[:first], parameters=False, inputs=True)
        assert (network.grad == before).all()


def test_a_network_without_anything_to_train_is_refused():
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    module[0].requires_grad_(False)
    agent = DQN("CartPole-v1", network=module, learning_starts=20, seed=0).learn(60, progress=False)
    first, _, second, _ = agent.online.parameters().values()
    assert (first == module[0].weight.numpy()).all() and (second != module[1].weight.detach().numpy()).all()
    with pytest.raises(InputError, match="^DQN: network must have parameters to train, got none with requires_grad$"):
        DQN("CartPole-v1", network=module.requires_grad_(False))
