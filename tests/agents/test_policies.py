"""The networks of the on-policy agents: initial weights, the NumPy and the torch way to act, and the KL divergence."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from fastrl.agents.policies import ActorCritic
from fastrl.kernels import Generator

OBS = gym.spaces.Box(-1, 1, (3,), np.float32)
DISCRETE, BOX = gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,), np.float32)


def make(actions, **settings):
    policy = ActorCritic(OBS, actions, (16, 8), seed=2, **settings)
    with torch.no_grad():  # a policy that is not nearly uniform
        policy.actor[-1].weight *= 100
    return policy


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_numpy_and_torch_act_alike_and_follow_training(actions, shared, activation, rng, tolerance):
    policy = make(actions, shared=shared, activation=activation, log_std=-0.5)
    obs = rng.normal(size=(19, 3)).astype(np.float32)
    numpy_actor = policy._numpy_actor
    for _ in range(2):
        policy._numpy_actor = numpy_actor
        action, log_prob = policy.act(obs, Generator(5))
        mode = policy.mode(obs)
        policy._numpy_actor = None  # what a GPU would do
        torch_action, torch_log_prob = policy.act(obs, Generator(5))
        np.testing.assert_allclose(action, torch_action, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(log_prob, torch_log_prob, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mode, policy.mode(obs), rtol=1e-5, atol=1e-5)
        out = policy(torch.from_numpy(obs))[0].detach()
        np.testing.assert_allclose(mode, out.argmax(1) if policy.discrete else out, rtol=1e-5, atol=1e-5)
        policy.flat[0].data += 0.1


def test_draws_have_the_distribution_of_the_policy():
    obs = np.tile(np.array([[0.3, -0.4, 0.5]], np.float32), (40_000, 1))
    policy = make(DISCRETE)
    p = policy(torch.from_numpy(obs[:1]))[0].detach().softmax(1)[0].numpy()
    action, _ = policy.act(obs, Generator(5))
    np.testing.assert_allclose(np.bincount(action, minlength=4) / 40_000, p, atol=0.01)  # 4 standard deviations
    policy = make(BOX, log_std=-0.5)
    mean = policy(torch.from_numpy(obs[:1]))[0].detach()[0].numpy()
    action, _ = policy.act(obs, Generator(5))
    np.testing.assert_allclose(action.mean(0), mean, atol=4 * np.exp(-0.5) / 200)
    np.testing.assert_allclose(action.std(0), np.exp(-0.5), rtol=0.015)


@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_kl_against_torch_distributions(actions, rng):
    policy = make(actions, log_std=0.2)
    old, new = (torch.from_numpy(rng.normal(size=(7, 4 if policy.discrete else 2))) for _ in range(2))
    old_log_std = torch.tensor([-0.3, 0.4], dtype=torch.float64)
    if policy.discrete:
        p, q = torch.distributions.Categorical(logits=old), torch.distributions.Categorical(logits=new)
        expected, kl = torch.distributions.kl_divergence(p, q), policy.kl(old, None, new)
    else:
        policy.double()
        p, q = torch.distributions.Normal(old, old_log_std.exp()), torch.distributions.Normal(new, policy.log_std.exp())
        expected, kl = torch.distributions.kl_divergence(p, q).sum(1), policy.kl(old, old_log_std, new)
    np.testing.assert_allclose(kl.detach(), expected.detach(), rtol=1e-10)
    assert policy.kl(old, policy.log_std, old).abs().max() < 1e-12


def test_initial_weights_are_orthogonal_and_seeded():
    state = torch.get_rng_state()
    policy = ActorCritic(OBS, DISCRETE, (16, 8), seed=2)
    assert torch.equal(state, torch.get_rng_state())
    for net, last in ((policy.actor, 0.01), (policy.critic, 1.0)):
        for layer, gain in ((net[0], 2**0.5), (net[2], 2**0.5), (net[4], last)):
            w = layer.weight.detach().double()
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            np.testing.assert_allclose(gram, gain**2 * torch.eye(len(gram)), atol=1e-5)
            assert not layer.bias.any()
    again, other = (ActorCritic(OBS, DISCRETE, (16, 8), seed=seed).flat[0] for seed in (2, 3))
    assert torch.equal(policy.flat[0], again) and not torch.equal(again, other)


def test_every_parameter_is_a_view_of_the_one_vector():
    policy = ActorCritic(OBS, BOX, (16, 8), shared=True)
    assert {name.split(".")[0] for name, _ in policy.named_parameters()} == {"trunk", "actor", "critic", "log_std"}
    vector, gradient = policy.flat
    with torch.no_grad():
        vector.fill_(3.0)
    gradient.fill_(7.0)
    assert all((p == 3).all() and (p.grad == 7).all() for p in policy.parameters())


def test_actions_for_the_environment():
    space = gym.spaces.Box(np.array([[-1, -2.0]]), np.array([[1, 0.5]]), (1, 2), np.float64)
    policy = ActorCritic(OBS, space, (4,))
    sent = policy.to_env(np.array([[-3.0, -1.5], [0.25, 2.0]], np.float32))
    assert sent.dtype == space.dtype and sent.tolist() == [[[-1.0, -1.5]], [[0.25, 0.5]]]
    actions = np.array([0, 3])
    assert ActorCritic(OBS, DISCRETE, (4,)).to_env(actions) is actions
