"""The networks of the on-policy agents: initial weights, acting, gradients, and the KL divergence."""

import copy

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
    policy.actor.parameters()["4.weight"][:] *= 100  # a policy that is not nearly uniform
    return policy


def output(policy, obs):
    """By torch, in float64."""
    module = copy.deepcopy(policy.actor.to_torch()).double()
    return module(torch.from_numpy(obs).double()).detach()[:, : policy.n_out]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_what_acts_is_what_is_trained(actions, shared, activation, rng):
    policy = make(actions, shared=shared, activation=activation, log_std=-0.5)
    obs = rng.normal(size=(19, 3)).astype(np.float32)
    for _ in range(2):
        action, log_prob = policy.act(obs, Generator(5))
        out, expected = policy.forward(obs)[0], output(policy, obs)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(policy.forward_cached(obs)[0], out, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(policy.mode(obs), out.argmax(1) if policy.discrete else out, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(log_prob, policy.log_prob_entropy(out, action)[0], rtol=1e-5, atol=1e-5)
        policy.vector += 0.1


def test_draws_have_the_distribution_of_the_policy():
    obs = np.tile(np.array([[0.3, -0.4, 0.5]], np.float32), (40_000, 1))
    policy = make(DISCRETE)
    p = output(policy, obs[:1]).softmax(1)[0].numpy()
    action, _ = policy.act(obs, Generator(5))
    np.testing.assert_allclose(np.bincount(action, minlength=4) / 40_000, p, atol=0.01)  # 4 standard deviations
    policy = make(BOX, log_std=-0.5)
    mean = output(policy, obs[:1])[0].numpy()
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
        expected, kl = torch.distributions.kl_divergence(p, q), policy.kl(old.numpy(), None, new.numpy())
    else:
        std = torch.from_numpy(policy.log_std).double().exp()
        p, q = torch.distributions.Normal(old, old_log_std.exp()), torch.distributions.Normal(new, std)
        expected, kl = (
            torch.distributions.kl_divergence(p, q).sum(1),
            policy.kl(old.numpy(), old_log_std.numpy(), new.numpy()),
        )
    np.testing.assert_allclose(kl, expected, rtol=1e-10)
    assert np.abs(policy.kl(old.numpy(), policy.log_std, old.numpy())).max() < 1e-12


def test_initial_weights_are_orthogonal_and_seeded():
    state = torch.get_rng_state()
    policy = ActorCritic(OBS, DISCRETE, (16, 8), seed=2)
    assert torch.equal(state, torch.get_rng_state())
    shared = ActorCritic(OBS, DISCRETE, (16, 8), seed=2, shared=True).actor.parameters()
    last = shared["4.weight"]
    for net, heads in (
        (policy.actor.parameters(), [(policy.actor.parameters()["4.weight"], 0.01)]),
        (policy.critic.parameters(), [(policy.critic.parameters()["4.weight"], 1.0)]),
        (shared, [(last[:4], 0.01), (last[4:], 1.0)]),
    ):
        for w, gain in ((net["0.weight"], 2**0.5), (net["2.weight"], 2**0.5), *heads):
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5)
        assert not any(net[f"{k}.bias"].any() for k in (0, 2, 4))
    again, other = (ActorCritic(OBS, DISCRETE, (16, 8), seed=seed).vector for seed in (2, 3))
    assert np.array_equal(policy.vector, again) and not np.array_equal(policy.vector, other)


@pytest.mark.parametrize("shared", [False, True])
def test_every_parameter_is_a_view_of_the_one_vector(shared):
    policy = ActorCritic(OBS, BOX, (16, 8), shared=shared)
    names = {name.split(".")[0] for name in policy.parameters()}
    assert names == {"actor", "log_std"} | (set() if shared else {"critic"})
    policy.vector[:], policy.grad[:] = 3.0, 7.0
    own = [x for net in (policy.actor, policy.critic) if net is not None for x in net.parameters().values()]
    assert all((p == 3).all() for p in (*policy.parameters().values(), *own, policy.log_std))
    assert sum(p.size for p in policy.parameters().values()) == len(policy.vector)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_gradients_of_both_networks_are_those_of_autograd(actions, shared, rng):
    policy = make(actions, shared=shared)
    obs = rng.normal(size=(7, 3)).astype(np.float32)
    out, value = policy.forward_cached(obs)
    d_out, d_value = (rng.normal(size=x.shape).astype(np.float32) for x in (out, value))
    d_log_std = None if policy.discrete else rng.normal(size=2).astype(np.float32)
    policy.grad[:] = np.nan
    policy.backward(d_out, d_value, d_log_std)
    nets = {name: copy.deepcopy(net.to_torch()) for name in ("actor", "critic") if (net := getattr(policy, name))}
    x = torch.from_numpy(obs)
    both = nets["actor"](x) if shared else torch.cat([nets["actor"](x), nets["critic"](x)], 1)
    np.testing.assert_allclose(np.c_[out, value], both.detach(), rtol=1e-5, atol=1e-5)
    for net in nets.values():
        net.zero_grad()
    both.backward(torch.from_numpy(np.c_[d_out, d_value]))
    found = policy.parameters(policy.grad)
    for part, net in nets.items():
        for name, p in net.named_parameters():
            np.testing.assert_allclose(found[f"{part}.{name}"], p.grad, rtol=1e-4, atol=1e-5)
    if d_log_std is not None:
        assert np.array_equal(found["log_std"], d_log_std)


def test_weights_of_another_shape_are_refused():
    policy, before = make(BOX), make(BOX).vector.copy()
    state = policy.state_dict()
    for wrong in ({**state, "log_std": state["log_std"][:1]}, {**state, "more": state["log_std"]}):
        with pytest.raises(ValueError, match="^policy: "):
            policy.load_state_dict(wrong)
    assert np.array_equal(policy.vector, before)
    policy.load_state_dict({name: torch.from_numpy(value + 1) for name, value in state.items()})
    assert np.array_equal(policy.vector, before + 1)


def test_actions_for_the_environment():
    space = gym.spaces.Box(np.array([[-1, -2.0]]), np.array([[1, 0.5]]), (1, 2), np.float64)
    policy = ActorCritic(OBS, space, (4,))
    sent = policy.to_env(np.array([[-3.0, -1.5], [0.25, 2.0]], np.float32))
    assert sent.dtype == space.dtype and sent.tolist() == [[[-1.0, -1.5]], [[0.25, 0.5]]]
    actions = np.array([0, 3])
    assert ActorCritic(OBS, DISCRETE, (4,)).to_env(actions) is actions
