"""R2D2: its update against plain torch, the states that it stores, and what it remembers when it is used."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

import fastrl.agents
from fastrl.agents import DQN, R2D2, InputError, R2D2Config
from fastrl.agents.memory import Memory
from fastrl.agents.r2d2 import EPS, rescaled, rescaled_back

SMALL = {
    "hidden": (8, 6), "memory_size": 5, "length": 9, "burn_in": 3, "num_envs": 3, "batch_size": 16,
    "learning_starts": 200, "train_every": 4, "n_step": 3, "buffer_size": 600,
}  # fmt: skip


def trained(env="CartPole-v1", steps=400, **more):
    return R2D2(env, **{**SMALL, **more}).learn(steps, progress=False)


def plain_cell(kind, module, x, state):
    """One step of the LSTM or GRU, from its weights: ``[B, n]``, ``[B, S]`` -> features, state."""
    cell = module.cell
    w, u, b, c = cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0
    if kind == "lstm":
        h, memory = state.chunk(2, 1)
        i, f, g, o = (x @ w.T + b + h @ u.T + c).chunk(4, 1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        h = o.sigmoid() * memory.tanh()
        return h, torch.cat((h, memory), 1)
    (r, z, n), (hr, hz, hn) = (x @ w.T + b).chunk(3, 1), (state @ u.T + c).chunk(3, 1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    z = (z + hz).sigmoid()
    h = (1 - z) * n + z * state
    return h, h


def plain_q(kind, module, obs, state, burn_in, detached=True):
    """Q ``[B, T, A]`` of observations ``[B, T, n]``, step by step; no gradient goes into the burn-in."""
    found = []
    for t in range(obs.shape[1]):
        x = obs[:, t]
        for layer in module.hidden:
            x = layer(x)
        features, state = plain_cell(kind, module, x, state)
        if t < burn_in and detached:
            state = state.detach()
        q = module.head(features)
        if module.value is not None:
            q = module.value(features) + q - q.mean(1, keepdim=True)
        found.append(q)
    return torch.stack(found, 1)


def h(x):
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + 1e-3 * x


def h_inverse(x):
    return x.sign() * ((((1 + 4e-3 * (x.abs() + 1 + 1e-3)).sqrt() - 1) / 2e-3) ** 2 - 1)


def plain_update(agent, batch, detached=True):
    """Loss, gradient and priorities of a batch, a step of a sequence at a time, in float64."""
    c = agent.config
    online, target = (copy.deepcopy(net.module).double() for net in (agent.online, agent.target))
    for p in online.parameters():
        p.grad = None
    state = torch.from_numpy(batch.state).double()
    lengths = batch.mask.sum(1)
    total, count, priorities = 0.0, 0, []
    for i, n in enumerate(lengths):
        obs = torch.from_numpy(np.concatenate([batch.obs[i, :n], batch.next_obs[i, n - 1 : n]])).double()[None]
        q = plain_q(c.network, online, obs, state[i : i + 1], c.burn_in, detached)[0]
        with torch.no_grad():
            q_target = plain_q(c.network, target, obs, state[i : i + 1], c.burn_in)[0]
        errors = []
        for t in range(c.burn_in, n):
            y, end = torch.tensor(0.0, dtype=torch.float64), min(t + c.n_step, n)
            for k in range(t, end):
                y += c.gamma ** (k - t) * float(batch.reward[i, k])
            if not batch.terminated[i, end - 1]:
                best = (q if c.double else q_target)[end].argmax()
                value = q_target[end, best]
                y += c.gamma ** (end - t) * (h_inverse(value) if c.rescaling else value)
            y = h(y) if c.rescaling else y
            delta = q[t, int(batch.action[i, t])] - y
            total, count = total + float(batch.weights[i]) * delta**2, count + 1
            errors.append(abs(delta.item()))
        priorities.append(c.eta * max(errors) + (1 - c.eta) * np.mean(errors))
    loss = total / count
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in online.parameters()])
    return loss.item(), gradient.numpy(), np.array(priorities)


@pytest.mark.parametrize("network", ["lstm", "gru"])
@pytest.mark.parametrize(
    "more",
    [{}, {"rescaling": True, "dueling": False}, {"burn_in": 0, "double": False, "n_step": 20}, {"n_step": 1}],
)
def test_the_update_is_that_of_plain_torch(network, more):
    agent = trained(network=network, **more)
    batch = agent.buffer.sample(16)
    assert not batch.mask.all() and batch.mask.all(1).any()  # some sequences are padded
    assert (batch.terminated & batch.mask).any() and np.abs(batch.state).max() > 0.01
    q = agent._loss(batch)
    agent.online.backward(q.d_q)
    loss, gradient, priorities = plain_update(agent, batch)
    assert float(q.loss) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(agent.online.grad, gradient, rtol=1e-3, atol=1e-5 * abs(gradient).max())
    if agent.config.burn_in:
        other = plain_update(agent, batch, detached=False)[1]
        assert abs(other - gradient).max() > 1e-3 * abs(gradient).max()
    assert agent.buffer.update_priorities(batch.indices, q.td_errors, batch.mask[:, agent.config.burn_in :]) == 0
    leaves = agent.buffer._tree[batch.indices % agent.buffer.capacity]
    np.testing.assert_allclose(leaves, (priorities + 1e-6) ** 0.9, rtol=1e-4)


def test_a_whole_update():
    """One step of Adam on the clipped gradient, then the target network's."""
    agent = trained(max_grad_norm=0.1, tau=0.25)
    networks = agent.online, agent.target, agent.greedy
    online, target, greedy = (torch.from_numpy(net.vector.copy()).double() for net in networks)
    m, v, steps = (torch.from_numpy(np.array(x)).double() for x in agent.optimizer.state_dict().values())
    batch = agent._sample()
    agent._sample = lambda: batch
    gradient = torch.from_numpy(plain_update(agent, batch)[1])
    rate = agent.learning_rate
    agent._update()
    gradient *= min(1.0, 0.1 / (gradient.norm().item() + 1e-6))
    m, v, steps = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, steps + 1
    online -= rate * (m / (1 - 0.9**steps)) / ((v / (1 - 0.999**steps)).sqrt() + 1e-8)
    target += 0.25 * (online - target)
    np.testing.assert_allclose(agent.online.vector, online, atol=2e-6)
    greedy += 10 / (agent.n_updates + 9) * (online - greedy)
    np.testing.assert_allclose(agent.target.vector, target, atol=2e-6)
    np.testing.assert_allclose(agent.greedy.vector, greedy, atol=2e-6)


def test_the_rescaling_is_exact_and_goes_back():
    x = np.concatenate([[0.0], np.logspace(-9, 9, 200)])
    x = np.concatenate([-x[::-1], x])
    np.testing.assert_allclose(rescaled(x), h(torch.from_numpy(x)).numpy(), rtol=1e-14)
    np.testing.assert_allclose(rescaled_back(x), h_inverse(torch.from_numpy(x)).numpy(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(rescaled_back(rescaled(x)), x, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(rescaled(rescaled_back(x)), x, rtol=1e-12, atol=1e-15)
    assert EPS == 1e-3 and rescaled(np.float32([3.0])) == 1.003 and rescaled(x).dtype == np.float64


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_stored_states_are_those_of_the_episodes(mode, counters):
    """With weights that stand still, the state before each step is what its episode so far makes of 0."""
    env = counters(mode, (3, 5))
    agent = R2D2(env, **{**SMALL, "num_envs": 2, "length": 2, "burn_in": 0, "learning_starts": 10**9})
    with pytest.warns(UserWarning, match="nothing is learned"):
        agent.learn(120, progress=False)
    batch = agent.buffer.sample(500)
    starts = (batch.obs[:, 0, 1] == 0).nonzero()[0]
    assert len(starts) and not batch.state[starts].any()
    later = batch.obs[:, 0, 1] > 0
    assert later.any()
    for obs, state in zip(batch.obs[later, 0], batch.state[later], strict=True):
        episode = np.array([[[obs[0], t]] for t in range(int(obs[1]))], np.float32)
        _, wanted = agent.online.unroll(episode, np.zeros((1, len(state)), np.float32))
        np.testing.assert_allclose(state, wanted[0], rtol=1e-4, atol=1e-6)


def test_sequences_end_where_somebody_resets_the_environments():
    agent = trained(steps=201)
    before = agent._memory.state
    assert before.any()
    agent.envs.reset()
    acted = []
    agent._act = lambda obs, rng, act=agent._act: (acted.append(agent._memory.state), act(obs, rng))[1]
    agent.learn(204, progress=False)
    assert not acted[0].any() and agent._memory.state.any()


def test_an_evaluation_remembers_its_own_episodes():
    agent = trained("fastrl/TMaze-v0", steps=600)
    remembered = agent._memory.state
    env, returns = gym.make("fastrl/TMaze-v0"), []
    for seed in range(5, 9):
        obs, _ = env.reset(seed=seed)
        memory, total, ended = agent.memory(), 0.0, False
        while not ended:
            obs, reward, *flags, _ = env.step(agent.predict(obs, memory=memory))
            total, ended = total + reward, any(flags)
        assert memory.state.any()
        returns.append(total)
    assert agent.evaluate(4, seed=5).tolist() == returns
    assert agent._memory.state is remembered


def test_predictions_of_a_batch_and_of_one():
    agent = trained()
    obs = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
    memory, single = agent.memory(4), [agent.memory() for _ in range(4)]
    for x in obs:
        actions = agent.predict(x, memory=memory)
        assert actions.tolist() == [agent.predict(one, memory=m) for one, m in zip(x, single, strict=True)]
    np.testing.assert_allclose(memory.state, np.concatenate([m.state for m in single]), rtol=1e-5, atol=1e-7)
    kept = memory.state
    memory.new_episodes(np.array([True, False, False, True]))
    assert not memory.state[[0, 3]].any() and (memory.state[1:3] == kept[1:3]).all() and kept[0].any()
    drawn = [agent.predict(obs[0], deterministic=False, memory=agent.memory(4)).tolist() for _ in range(20)]
    assert len({tuple(x) for x in drawn}) > 1


def test_it_deploys_and_loads_without_an_environment(tmp_path):
    agent = trained(network="gru")
    agent.save(tmp_path / "a")
    loaded = fastrl.agents.load(tmp_path / "a")
    memory, policy = loaded.memory(3), agent.policy_to_torch()
    state, rng = policy.start(3), np.random.default_rng(1)
    for _ in range(5):
        obs = rng.normal(size=(3, 4)).astype(np.float32)
        action, state = policy(torch.from_numpy(obs), state)
        assert action.tolist() == loaded.predict(obs, memory=memory).tolist()
    np.testing.assert_allclose(state, memory.state, rtol=1e-6)
    before = [p.clone() for p in policy.parameters()]
    agent.greedy.vector += 1
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_it_says_that_no_episode_was_long_enough():
    how = {"length": 4, "burn_in": 300, "learning_starts": 0, "hidden": (8,), "memory_size": 4, "seed": 0}
    with pytest.warns(UserWarning, match="^nothing was learned in 200 steps: a sequence is .* first burn_in = 300 "):
        assert R2D2("CartPole-v1", **how).learn(200, progress=False).n_updates == 0


def test_bad_input():
    agent, obs = trained(steps=20, learning_starts=0), np.zeros(4, np.float32)
    new_episodes = agent.memory(3).new_episodes
    refused = [
        (lambda: new_episodes([2]), r"^new_episodes: which must be True or bool \[3\], got int64 \(1,\)$"),
        (lambda: new_episodes([0, 1, 2]), r"^new_episodes: which must be True or bool \[3\], got int64 \(3,\)$"),
        (lambda: new_episodes([True, False]), r"^new_episodes: which must be True or bool \[3\], got bool \(2,\)$"),
        (lambda: new_episodes(False), r"^new_episodes: which must be True or bool \[3\], got bool \(\)$"),
        (lambda: agent.predict(obs), r"predict: R2D2 needs memory=agent.memory\(\), made when the episode begins"),
        (lambda: agent.predict(obs, memory=[0]), r"predict: memory must be of agent.memory\(\), got list"),
        (lambda: agent.predict(obs, memory=agent.memory(2)), r"memory must be agent.memory\(1\), \(1, 10\), got \(2"),
        (lambda: agent.predict(obs, memory=Memory(1, 3)), r"memory must be agent.memory\(1\), \(1, 10\), got \(1, 3\)"),
        (lambda: DQN("CartPole-v1").predict(obs, memory=Memory(1, 3)), "memory must be None, because DQN remembers n"),
        (lambda: agent.predict(obs, action_masks=[True, True]), "action_masks must be None, because R2D2 knows no ma"),
        (lambda: R2D2("CartPole-v1", network=nn.Linear(4, 2)), "^R2D2: network must be lstm or gru, got Linear$"),
        (lambda: R2D2("CartPole-v1", network="mlp"), "^R2D2: network must be .*'lstm' or 'gru', got 'mlp'$"),
        (lambda: R2D2("Pendulum-v1"), "^R2D2 needs discrete actions; Pendulum-v1 has action space"),
        (lambda: R2D2Config(length=0), r"^R2D2Config: length must be in \[1, "),
        (lambda: R2D2Config(burn_in=-1), r"^R2D2Config: burn_in must be in \[0, "),
        (lambda: R2D2Config(eta=1.5), r"^R2D2Config: eta must be in \[0, 1\], got 1.5$"),
        (lambda: R2D2Config(buffer_size=99, length=20, burn_in=5), r"buffer_size must be >= .* = 100, got 99$"),
    ]  # fmt: skip
    for call, text in refused:
        with pytest.raises(InputError, match=text):
            call()
    assert DQN("CartPole-v1").memory() is None


def test_it_waits_for_a_whole_sequence():
    agent = trained("Acrobot-v1", steps=42, length=20, learning_starts=0)
    assert agent.n_updates == 0 and len(agent.buffer) == 0  # 14 steps of each environment, and no episode has ended
    assert agent.learn(90, progress=False).n_updates > 0
