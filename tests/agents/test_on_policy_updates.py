"""Updates are those of plain torch: autograd, torch.optim, the same minibatches; the twin computes in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fastrl.agents import A2C, PPO, REINFORCE, TRPO

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


class Twin(nn.Module):
    def __init__(self, policy):
        super().__init__()
        self.actor = copy.deepcopy(policy.actor.to_torch())
        self.critic = None if policy.critic is None else copy.deepcopy(policy.critic.to_torch())
        self.log_std = None if policy.log_std is None else nn.Parameter(torch.from_numpy(policy.log_std.copy()))
        self.shared = policy.shared
        self.double()

    def forward(self, obs):
        out, value = self.actor(obs), None
        if self.shared:
            out, value = out[:, :-1], out[:, -1]
        elif self.critic is not None:
            value = self.critic(obs).squeeze(1)
        if self.log_std is None:
            return torch.distributions.Categorical(logits=out), value
        normal = torch.distributions.Normal(out, self.log_std.exp().expand_as(out))
        return torch.distributions.Independent(normal, 1), value

    def vector(self):
        """In the order of the policy's."""
        parts = [*self.actor.parameters(), *([] if self.log_std is None else [self.log_std])]
        parts += [] if self.critic is None else list(self.critic.parameters())
        return torch.cat([p.detach().flatten() for p in parts]).numpy()


def recorded(agent, updates):
    """The minibatches of so many updates, as tensors."""
    seen, loss = [], agent._loss

    def record(*batch):
        seen.append([torch.from_numpy(np.array(x)) for x in batch])
        return loss(*batch)

    agent._loss = record
    while len(seen) < updates:
        agent.learn(agent.steps + 1, progress=False)
    return seen


def double(x):
    return x.double() if x.is_floating_point() else x


def replay(agent, twin, seen, optimizer, loss_of):
    c = agent.config
    for batch in seen:
        optimizer.zero_grad()
        loss_of(c, twin, *map(double, batch)).backward()
        if c.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), c.max_grad_norm)
        optimizer.step()


def normalised(a):
    return (a - a.mean()) / (a.std(correction=0) + 1e-8)


def ppo_loss(c, twin, obs, action, old_log_prob, advantage, target, old_value, old_out=None):
    dist, value = twin(obs)
    a = normalised(advantage) if c.normalize_advantages else advantage
    ratio = (dist.log_prob(action) - old_log_prob).exp()
    policy_loss = -torch.min(ratio * a, ratio.clamp(1 - c.clip_range, 1 + c.clip_range) * a).mean()
    error = (value - target) ** 2
    if c.clip_value is not None:
        near = old_value + (value - old_value).clamp(-c.clip_value, c.clip_value)
        error = torch.max(error, (near - target) ** 2)
    return policy_loss + c.value_coef * error.mean() / 2 - c.entropy_coef * dist.entropy().mean()


def actor_critic_loss(c, twin, obs, action, advantage, target):
    dist, value = twin(obs)
    a = normalised(advantage) if c.normalize_advantages and len(advantage) > 1 else advantage
    loss = -(a * dist.log_prob(action)).mean() - c.entropy_coef * dist.entropy().mean()
    return loss if value is None else loss + c.value_coef * ((value - target) ** 2).mean() / 2


FIXED = {"learning_rate": 1e-3, "learning_rate_end": 1e-3, "hidden": (16, 16), "seed": 1}
SMALL_PPO = {**FIXED, "num_envs": 4, "n_steps": 32, "epochs": 5, "minibatches": 4, "entropy_coef": 0.01}
CASES = {
    "ppo": (PPO, "CartPole-v1", SMALL_PPO),
    "ppo shared": (PPO, "CartPole-v1", {**SMALL_PPO, "shared_network": True, "activation": "relu"}),
    "ppo box": (PPO, "Pendulum-v1", {**SMALL_PPO, "clip_value": 0.2, "normalize_rewards": True}),
    "ppo plain": (PPO, "Pendulum-v1", {**SMALL_PPO, "normalize_advantages": False, "max_grad_norm": None}),
    "a2c": (A2C, "CartPole-v1", {**FIXED, "num_envs": 8, "entropy_coef": 0.01}),
    "a2c box": (A2C, "Pendulum-v1", {**FIXED, "num_envs": 8, "max_grad_norm": 0.5, "normalize_rewards": True}),
    "a2c rmsprop": (A2C, "CartPole-v1", {**FIXED, "optimizer": "rmsprop", "shared_network": True}),
    "reinforce": (REINFORCE, "CartPole-v1", {**FIXED, "num_envs": 1, "episodes": 1}),
    "reinforce plain": (REINFORCE, "CartPole-v1", {**FIXED, "num_envs": 1, "episodes": 1, "baseline": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_200_updates_are_those_of_plain_torch(case):
    cls, env, settings = CASES[case]
    agent = cls(env, **settings)
    twin, c = Twin(agent.policy), agent.config
    start = agent.policy.vector.copy()
    seen = recorded(agent, 200)
    if getattr(c, "optimizer", "adam") == "rmsprop":
        optimizer = torch.optim.RMSprop(twin.parameters(), lr=c.learning_rate, alpha=0.99, eps=c.optimizer_eps)
    else:
        eps = getattr(c, "adam_eps", getattr(c, "optimizer_eps", 1e-8))
        optimizer = torch.optim.Adam(twin.parameters(), lr=c.learning_rate, eps=eps)
    replay(agent, twin, seen, optimizer, ppo_loss if cls is PPO else actor_critic_loss)
    assert np.abs(agent.policy.vector - start).max() > 0.02
    np.testing.assert_allclose(agent.policy.vector, twin.vector(), **CLOSE)


def test_rmsprop_goes_on_from_earlier_checkpoints():
    """Which had torch's names."""
    agent = A2C("CartPole-v1", optimizer="rmsprop", hidden=(4,)).learn(100, progress=False)
    state, tensors = copy.deepcopy(agent._state())
    tensors["optimizer.0.square_avg"] = tensors.pop("optimizer.square_avg")
    loaded = A2C("CartPole-v1", optimizer="rmsprop", hidden=(4,))
    loaded._load_state(state, tensors)
    assert (agent.optimizer.square_avg > 0).any()
    np.testing.assert_array_equal(loaded.optimizer.square_avg, agent.optimizer.square_avg)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_value_of_trpo_learns_as_in_plain_torch(env):
    agent = TRPO(
        env, hidden=(16,), num_envs=4, n_steps=32, value_epochs=50, minibatches=4, seed=1, normalize_rewards=True
    )
    agent.rollout.collect(agent.generator)
    twin, c, critic = Twin(agent.policy), agent.config, agent.policy.critic
    obs, *_, target = agent.rollout.batch(agent.rollout.advantages(c.gamma, c.gae_lambda, agent.scale_rewards)[1])
    order = copy.deepcopy(agent.rng)
    agent._fit_value(obs, target)
    optimizer = torch.optim.Adam(twin.critic.parameters(), lr=c.learning_rate, eps=c.adam_eps)
    for _ in range(50):
        for rows in np.split(order.permutation(len(obs)), 4):
            optimizer.zero_grad()
            error = twin(torch.from_numpy(obs[rows]).double())[1] - torch.from_numpy(target[rows]).double()
            (0.5 * error**2).mean().backward()
            optimizer.step()
    np.testing.assert_allclose(critic.vector, twin.vector()[agent.policy.n_policy :], **CLOSE)
