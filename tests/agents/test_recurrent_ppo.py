"""Recurrent PPO: its update against plain torch, and what is remembered within and across episodes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

import fastrl.agents
from fastrl.agents import InputError, RecurrentPPO, RecurrentPPOConfig
from fastrl.kernels import gae

SMALL = {"hidden": (8, 6), "memory_size": 5, "num_envs": 4, "n_steps": 16, "epochs": 2, "minibatches": 2}


def make(env="CartPole-v1", **more):
    return RecurrentPPO(env, **{**SMALL, **more})


def plain(agent, obs, state, starts):
    """Outputs ``[T, K + 1]`` of one environment, a step at a time with torch's own cells, which know no sequences."""
    module, kind = agent.policy.actor.module, agent.config.network
    cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[kind](module.cell.input_size, module.cell.hidden_size)
    parts, found = state.chunk(2) if kind == "lstm" else (state,), []
    weights = {name.removesuffix("_l0"): p for name, p in module.cell.named_parameters()}
    for x, begins in zip(obs, starts, strict=True):
        if begins:
            parts = tuple(torch.zeros_like(part) for part in parts)
        for layer in module.hidden:
            x = layer(x)
        given = tuple(part[None] for part in parts)
        after = torch.func.functional_call(cell, weights, (x[None], given if kind == "lstm" else given[0]))
        parts = tuple(part[0] for part in after) if kind == "lstm" else (after[0],)
        found.append(module.head(parts[0]))
    return torch.stack(found)


def every_sequence(agent):
    """Outputs ``[T, N, K + 1]`` of the rollout's observations, with gradients."""
    r = agent.rollout
    obs, state = torch.from_numpy(agent.policy.prepare(r.obs)), torch.from_numpy(r.state)
    return torch.stack([plain(agent, obs[:, n], state[n], r.starts[:, n]) for n in range(r.obs.shape[1])], 1)


def ones_after(done):
    """Where an episode begins, of the ends before, in autoreset modes without dummy steps."""
    return np.concatenate([np.zeros_like(done[:1]), done[:-1]])


@pytest.mark.parametrize("network", ["lstm", "gru"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_update_is_that_of_plain_torch(network, env):
    """The gradient of a minibatch of whole sequences, a rollout in, in which the state is not 0 at the start."""
    agent = make(env, network=network, clip_value=0.2, n_steps=48).learn(192, progress=False)
    agent._collect()
    c, r, policy = agent.config, agent.rollout, agent.policy
    assert r.state.any() and (r.starts.any() or env == "Pendulum-v1")
    policy.vector += np.random.default_rng(0).normal(size=len(policy.vector)).astype(np.float32) * 0.05  # rho is not 1
    advantages, returns, values = r.advantages(c.gamma, c.gae_lambda, None)
    agent.rng, envs = np.random.default_rng(3), np.random.default_rng(3).permutation(4)[:2]
    seen = []
    agent.optimizer.step = lambda **how: seen.append(policy.grad.copy())
    agent._update()
    assert len(seen) == c.epochs * c.minibatches

    out = every_sequence(agent)[:, envs].flatten(0, 1)
    action, old, advantage, target, old_value = (
        torch.from_numpy(x[:, envs].copy()).flatten(0, 1) for x in (r.action, r.log_prob, advantages, returns, values)
    )
    advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
    log_std = None
    if env == "Pendulum-v1":
        log_std = torch.tensor(policy.log_std.copy(), requires_grad=True)
        pi = torch.distributions.Normal(out[:, :1], log_std.exp())
        log_prob, entropy = pi.log_prob(action).sum(1), pi.entropy().sum(1)
    else:
        pi = torch.distributions.Categorical(logits=out[:, :-1])
        log_prob, entropy = pi.log_prob(action), pi.entropy()
    ratio, value = (log_prob - old).exp(), out[:, -1]
    clipped = old_value + (value - old_value).clamp(-0.2, 0.2)
    value_loss = torch.maximum((value - target) ** 2, (clipped - target) ** 2).mean() / 2
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    loss = -surrogate + c.value_coef * value_loss - c.entropy_coef * entropy.mean()
    wanted = list(policy.actor.module.parameters()) + ([] if log_std is None else [log_std])
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]).numpy()
    np.testing.assert_allclose(seen[0], gradient, rtol=1e-3, atol=2e-5 * abs(gradient).max())


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_state_is_that_of_the_episode(mode, counters):
    """Over rollouts and autoresets, what was acted by is what the episode's own observations make of 0."""
    agent = RecurrentPPO(counters(mode, (3, 5)), **{**SMALL, "num_envs": 2, "minibatches": 1, "n_steps": 7})
    agent._update = lambda: None  # the weights stand still
    seen, ends = {}, 0
    for _ in range(8):
        agent._iterate()
        r = agent.rollout
        if mode == AutoresetMode.DISABLED:
            assert (r.starts == ones_after(r.terminated | r.truncated)).all()
        real = np.ones(r.reward.shape, np.bool_) if r.mask is None else r.mask
        values, next_values = r.values()
        for t, n in zip(*real.nonzero(), strict=True):
            episode, step = r.obs[t, n]
            history = np.array([[[episode, k]] for k in range(int(step) + 2)], np.float32)
            wanted = agent.policy.actor.unroll(history, np.zeros((1, 10), np.float32))[0][:, 0, -1]
            assert values[t, n] == pytest.approx(wanted[-2], abs=1e-6)
            if not r.terminated[t, n]:
                assert next_values[t, n] == pytest.approx(wanted[-1], abs=1e-6)
            ends += r.truncated[t, n]
            seen[episode, step, n] = values[t, n]
        np.testing.assert_allclose(every_sequence(agent)[..., -1].detach().numpy()[real], values[real], atol=1e-6)
    assert ends > 3 and len(seen) > 40


def test_advantages_bootstrap_from_the_final_observation(counters):
    agent = RecurrentPPO(counters(AutoresetMode.SAME_STEP), **{**SMALL, "num_envs": 2, "minibatches": 1})
    agent._collect()
    r = agent.rollout
    values, following = r.values()
    found = r.advantages(0.9, 0.8, None)[0]
    wanted = gae(r.reward, values, following, r.terminated, r.truncated, gamma=0.9, lam=0.8)[0]
    assert r.finals and np.array_equal(found, wanted)


def test_action_masks_are_kept_to():
    class Masked(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(4)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros(2, np.float32), {"action_mask": np.array([1, 0, 0, 1], np.int8)}

        def step(self, action):
            assert action in (0, 3)
            self.t += 1
            return np.zeros(2, np.float32), float(action), False, self.t == 5, {"action_mask": [1, 0, 0, 1]}

    agent = RecurrentPPO(Masked(), **{**SMALL, "num_envs": 1, "minibatches": 1}).learn(100, progress=False)
    assert agent.n_updates and np.isfinite(agent.metrics()["loss"])
    assert agent.evaluate(2, env=Masked()).max() <= 15
    allowed = [False, True, False, False]
    assert agent.predict(np.zeros(2, np.float32), memory=agent.memory(), action_masks=allowed) == 1


def test_an_evaluation_remembers_its_own_episodes(tmp_path):
    agent = make("fastrl/TMaze-v0", normalize_obs=True, normalize_rewards=True).learn(300, progress=False)
    kept, env, returns = agent.policy.memory.state, gym.make("fastrl/TMaze-v0"), []
    policy = agent.policy_to_torch()
    for seed in range(5, 8):
        obs, _ = env.reset(seed=seed)
        memory, state, total, ended = agent.memory(), policy.start(), 0.0, False
        while not ended:
            action = agent.predict(obs, memory=memory)
            deployed, state = policy(torch.from_numpy(obs)[None], state)
            assert deployed.item() == action
            obs, reward, *flags, _ = env.step(action)
            total, ended = total + reward, any(flags)
        np.testing.assert_allclose(state, memory.state, atol=1e-6)
        returns.append(total)
    assert agent.evaluate(3, seed=5).tolist() == returns and agent.policy.memory.state is kept
    agent.save(tmp_path / "a")
    loaded = fastrl.agents.load(tmp_path / "a")
    assert loaded.evaluate(3, seed=5, env=env).tolist() == returns


def test_new_episodes_after_a_reset_from_outside():
    agent = make().learn(100, progress=False)
    assert agent.policy.memory.state.any()
    agent.evaluate(1, env=agent.envs._loop.envs[0])
    assert not agent.policy.memory.state.any()


def test_bad_input():
    agent, obs = make(), np.zeros(4, np.float32)
    refused = [
        (lambda: agent.predict(obs), r"RecurrentPPO needs memory=agent.memory\(\), made when the episode begins"),
        (lambda: agent.predict(obs, memory=agent.memory(3)), r"memory must be agent.memory\(1\), \(1, 10\), got \(3"),
        (lambda: make(network=nn.Linear(4, 3)), "^RecurrentPPO: network must be lstm or gru, got Linear$"),
        (lambda: make(network="nature"), "^RecurrentPPO: network must be .*'lstm' or 'gru', got 'nature'$"),
        (lambda: make(objective="penalty"), "^RecurrentPPO: objective must be .*'clip'.*, got 'penalty'$"),
        (lambda: RecurrentPPOConfig(shared_network=False), "shared_network must be True, got False$"),
        (lambda: make(minibatches=5), "^RecurrentPPOConfig: minibatches must be <= num_envs, got 5 and 4$"),
        (lambda: RecurrentPPOConfig(memory_size=0), r"^RecurrentPPOConfig: memory_size must be in \[1, "),
        (lambda: make(device="cuda"), "^RecurrentPPO: device must be cpu, got 'cuda'$"),
    ]  # fmt: skip
    before = agent.policy.vector.copy()
    for call, text in refused:
        with pytest.raises(InputError, match=text):
            call()
    assert np.array_equal(agent.policy.vector, before)


@pytest.mark.parametrize("network", ["lstm", "gru"])
def test_at_first_the_memory_keeps_what_it_has(network):
    """At 0 in, most of the state is there after five steps, on which a gradient over long gaps depends."""
    agent = make(network=network, memory_size=16)
    state = np.full_like(agent.memory().state, 0.5)
    _, after = agent.policy.actor.unroll(np.zeros((5, 1, 4), np.float32), state)
    part = after[0, -16:] if network == "lstm" else after[0]  # the cell's
    assert np.median(part) > 0.05
