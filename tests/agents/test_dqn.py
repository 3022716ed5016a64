"""The update rule, exploration and target updates of DQN against hand computation."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch

from fastrl.agents import DQN, DQNConfig
from fastrl.agents.config import InputError
from fastrl.replay import Batch

B, GAMMA = 6, 0.9
SWITCHES = [
    {},
    {"double": True},
    {"dueling": True},
    {"prioritized": True},
    {"n_step": 3},
    {"double": True, "dueling": True, "prioritized": True, "n_step": 3},
]
IDS = ["plain", "double", "dueling", "prioritized", "n-step", "all"]


def weights(net):
    """The parameters as torch's, with their gradients: the network's own memory."""
    return list(net.to_torch().parameters())


def make_agent(**overrides):
    settings = {"hidden": (8, 8), "batch_size": B, "gamma": GAMMA, "max_grad_norm": None, "seed": 3}
    settings |= {"train_every": 1, "target_every": 100, "tau": 1.0, "learning_rate_steps": 50_000, **overrides}
    agent = DQN("CartPole-v1", DQNConfig(), **settings)
    with torch.no_grad():  # a target network of its own
        for p in weights(agent.target):
            p += 0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return agent


def make_batch():
    rng = np.random.default_rng(0)
    terminated = np.array([True, False, False, True, False, False])
    truncated = np.array([False, True, False, True, False, False])
    return Batch(
        obs=rng.normal(size=(B, 4)).astype(np.float32),
        action=rng.integers(2, size=B),
        reward=rng.normal(size=B).astype(np.float32),
        next_obs=rng.normal(size=(B, 4)).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        indices=np.arange(B),
        weights=rng.uniform(0.2, 1, size=B).astype(np.float32),
        discount=np.where(terminated, 0, GAMMA ** np.arange(1, B + 1)).astype(np.float32),
    )


def layers(net):
    """(weight, bias) of every Linear in float64, in the order of the module."""
    return [
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy())
        for m in net.to_torch().modules()
        if isinstance(m, torch.nn.Linear)
    ]


def forward(net, x, dueling):
    """Q values by the formulas, in float64."""
    x, relu = x.astype(np.float64), lambda v: np.maximum(v, 0)
    if not dueling:
        (w1, b1), (w2, b2), (w3, b3) = layers(net)
        return relu(relu(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    (w1, b1), (wv1, bv1), (wv2, bv2), (wa1, ba1), (wa2, ba2) = layers(net)
    x = relu(x @ w1.T + b1)
    value, advantage = relu(x @ wv1.T + bv1) @ wv2.T + bv2, relu(x @ wa1.T + ba1) @ wa2.T + ba2
    return value + advantage - advantage.mean(1, keepdims=True)


def targets(agent, batch, dueling, double):
    """y_i one transition at a time: bootstrapped through truncation, not through termination."""
    next_target, next_online = (forward(net, batch.next_obs, dueling) for net in (agent.target, agent.online))
    y = np.zeros(B)
    for i in range(B):
        best = next_online[i].argmax() if double else next_target[i].argmax()
        bootstrap = 0.0 if batch.terminated[i] else GAMMA ** (i + 1) * next_target[i, best]  # after i + 1 steps
        y[i] = batch.reward[i].item() + bootstrap
    return y


@pytest.mark.parametrize("loss", ["huber", "mse"])
@pytest.mark.parametrize("switches", SWITCHES, ids=IDS)
def test_update_against_hand_computation(switches, loss, monkeypatch):
    agent, batch, seen = make_agent(loss=loss, **switches), make_batch(), {}
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    if agent.config.prioritized:
        monkeypatch.setattr(agent.buffer, "update_priorities", lambda i, td: seen.update(indices=i, td=td))
    dueling = agent.config.dueling
    y = targets(agent, batch, dueling, agent.config.double)
    td = forward(agent.online, batch.obs, dueling)[np.arange(B), batch.action] - y
    per_item = np.where(abs(td) < 1, td**2 / 2, abs(td) - 0.5) if loss == "huber" else td**2
    w = batch.weights.astype(np.float64) if agent.config.prioritized else np.ones(B)
    expected_loss = (w * per_item).mean()

    # The gradient with y a constant, by central differences on one weight of every parameter tensor.
    def loss_now():
        d = forward(agent.online, batch.obs, dueling)[np.arange(B), batch.action] - y
        return (w * (np.where(abs(d) < 1, d**2 / 2, abs(d) - 0.5) if loss == "huber" else d**2)).mean()

    numeric, eps = [], 2.0**-12
    for p in weights(agent.online):
        at, was = (0,) * p.ndim, p.data[(0,) * p.ndim].item()
        p.data[at] = was + eps
        high = loss_now()
        p.data[at] = was - eps
        low = loss_now()
        p.data[at] = was
        numeric.append((high - low) / (2 * eps))
    target_before = agent.target.vector.copy()
    agent._update()

    assert agent.metrics()["loss"] == pytest.approx(expected_loss, rel=1e-5)
    analytic = [p.grad[(0,) * p.ndim].item() for p in weights(agent.online)]
    np.testing.assert_allclose(analytic, numeric, rtol=1e-3, atol=1e-4)
    assert not agent.target.grad.any() and (agent.target.vector == target_before).all()
    if agent.config.prioritized:
        assert seen["indices"] is batch.indices
        np.testing.assert_allclose(abs(seen["td"]), abs(td), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
def test_targets_of_whole_episodes(n_step, prioritized, monkeypatch):
    """y of what the agent's own buffer draws, by hand from the episodes as they were played, time limits included."""
    env = gym.make("CartPole-v1", max_episode_steps=9)
    agent = DQN(env, n_step=n_step, prioritized=prioritized, gamma=GAMMA, seed=1, hidden=(8,), learning_starts=1000)
    played, add = [], agent.buffer.add
    monkeypatch.setattr(agent.buffer, "add", lambda *item: played.append([np.array(x) for x in item]) or add(*item))
    agent.learn(150, progress=False)
    batch = agent.buffer.sample(400)
    ends = {"terminated": 0, "truncated": 0, "newest": 0}
    for b in range(400):
        (t,) = [t for t, item in enumerate(played) if np.array_equal(item[0].ravel(), batch.obs[b])]
        start, reward = t, 0.0
        while True:
            r, next_obs, terminated, truncated = (x.reshape(-1) for x in played[t][2:6])
            reward += GAMMA ** (t - start) * r.item()
            t += 1
            if terminated or truncated or t - start == n_step or t == len(played):
                break
        assert batch.reward[b].item() == pytest.approx(reward)
        assert batch.discount[b].item() == pytest.approx(0.0 if terminated else GAMMA ** (t - start))
        np.testing.assert_array_equal(batch.next_obs[b], next_obs)
        assert batch.terminated[b] == terminated and batch.truncated[b] == truncated
        assert batch.action[b] == played[start][1].item()
        if terminated or truncated:
            ends["terminated" if terminated else "truncated"] += 1
        elif t == len(played):
            ends["newest"] += 1
    assert all(ends.values()), ends


def test_double_differs_from_plain():
    """The test above means something: on its batch the two choose different actions."""
    agent, batch = make_agent(), make_batch()
    assert not np.allclose(targets(agent, batch, False, True), targets(agent, batch, False, False))


def test_gradient_clipping(monkeypatch):
    agent, batch = make_agent(max_grad_norm=1e-3), make_batch()
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    agent._update()
    assert np.linalg.norm(agent.online.grad) == pytest.approx(1e-3, rel=1e-3)


def test_hard_target_update_every_c_updates(monkeypatch):
    agent, batch = make_agent(target_every=3), make_batch()
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    equal = []
    for _ in range(6):
        agent._update()
        equal.append((agent.online.vector == agent.target.vector).all())
    assert equal == [False, False, True, False, False, True]


def test_polyak_target_update(monkeypatch):
    agent, batch = make_agent(target_every=1, tau=0.1), make_batch()
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    before = agent.target.vector.copy()
    agent._update()
    np.testing.assert_allclose(agent.target.vector, 0.1 * agent.online.vector + 0.9 * before, rtol=1e-5, atol=1e-7)


def test_epsilon_schedule_and_frequency():
    agent = make_agent(epsilon_start=0.8, epsilon_end=0.2, epsilon_steps=1000)
    assert agent.epsilon == 0.8
    agent.steps = 500
    assert agent.epsilon == pytest.approx(0.5)
    agent.steps = 10_000
    assert agent.epsilon == pytest.approx(0.2)
    obs = np.zeros((40_000, 4), np.float32)
    actions = agent._act(obs, np.random.default_rng(0))
    other = (actions != agent.predict(obs)).mean()  # half of the random actions are the greedy one
    assert other == pytest.approx(0.1, abs=0.006)  # 4 standard deviations


def test_learning_rate_schedule(monkeypatch):
    agent, seen = (
        make_agent(learning_rate=1e-2, learning_rate_end=2e-3, learning_rate_steps=100, learning_starts=40),
        [],
    )
    step = agent.optimizer.step
    monkeypatch.setattr(agent.optimizer, "step", lambda *, lr, **kw: (seen.append(lr), step(lr=lr, **kw)))
    agent.learn(120, progress=False)
    assert seen == pytest.approx([1e-2 - 8e-3 * min(1, step / 100) for step in range(41, 121)])


def test_boltzmann_exploration_frequency():
    agent = make_agent(exploration="boltzmann", temperature=0.5)
    obs = np.tile(np.array([[0.1, -0.4, 0.2, 0.3]], np.float32), (40_000, 1))
    q = agent._forward(agent.online, obs[:1])[0].astype(np.float64) / 0.5
    expected = np.exp(q[1]) / np.exp(q).sum()
    assert 0.02 < expected < 0.98
    assert agent._act(obs, np.random.default_rng(0)).mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("dueling", [False, True])
def test_acting_is_by_the_network_and_follows_it(dueling, tolerance):
    agent = make_agent(dueling=dueling)
    obs = np.random.default_rng(0).normal(size=(19, 4)).astype(np.float32)
    for _ in range(2):
        with torch.no_grad():
            expected = agent.online.to_torch()(torch.from_numpy(obs)).numpy()
        np.testing.assert_allclose(agent._forward(agent.online, obs), expected, **tolerance("float32"))
        agent.online.vector += 0.1


def test_greedy_policy_has_the_averaged_weights():
    """Shamir and Zhang 2013: w_n = (1 - (eta + 1) / (n + eta)) w_{n-1} + (eta + 1) / (n + eta) theta_n, eta = 9."""
    agent = make_agent(learning_rate=0.05, learning_starts=40)
    agent.learn(40, progress=False)  # no updates yet
    mean = agent.greedy.vector.astype(np.float64)
    for n in range(1, 61):
        agent.learn(40 + n, progress=False)
        assert agent.n_updates == n
        mean = (1 - 10 / (n + 9)) * mean + 10 / (n + 9) * agent.online.vector
    np.testing.assert_allclose(agent.greedy.vector, mean, rtol=1e-4, atol=1e-5)
    assert abs(agent.greedy.vector - agent.online.vector).max() > 0.01
    obs = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    np.testing.assert_array_equal(agent.predict(obs), agent.greedy.forward(obs).argmax(1))
    now = make_agent(averaging=False)
    assert now.greedy is now.online


def test_predict_shapes():
    agent = make_agent()
    obs = np.zeros((5, 4), np.float32)
    assert isinstance(agent.predict(obs[0]), int)
    assert agent.predict(obs).shape == (5,) and agent.predict(obs).dtype == np.int64
    with pytest.raises(ValueError, match=r"obs must have shape \(4,\) or \(B, \*\(4,\)\), got \(3,\)"):
        agent.predict(np.zeros(3))


def test_same_seed_same_training_other_seed_other_and_global_generators_untouched():
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

    def trained(seed):
        agent = make_agent(seed=seed, learning_starts=50, train_every=4, updates=1)
        agent.learn(300, progress=False)
        agent.predict(np.zeros(4), deterministic=False)
        return agent.online.vector.copy()

    first = trained(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert (first == trained(0)).all() and (first != trained(1)).any()


def test_evaluation_and_prediction_do_not_disturb_training():
    def train(evaluate):
        agent = make_agent(learning_starts=50, train_every=4, updates=1)
        agent.learn(200, progress=False)
        if evaluate:
            assert (agent.evaluate(3, seed=7) == agent.evaluate(3, seed=7)).all()
            agent.predict(np.zeros(4), deterministic=False)
        agent.learn(400, progress=False)
        return agent.online.vector.copy()

    assert (train(False) == train(True)).all()


def test_total_steps_counts_from_the_start():
    agent = make_agent(learning_starts=50)
    assert agent.learn(100, progress=False) is agent and agent.steps == 100
    for total in (100, 40, 0, -5):
        with pytest.raises(InputError, match=r"total_steps must be > 100.*100 are behind this agent"):
            agent.learn(total, progress=False)


def test_updates_per_round_and_vector_environments():
    agent = make_agent(num_envs=3, learning_starts=60, train_every=20, updates=5)
    agent.learn(200, progress=False)
    assert agent.steps == 201  # whole steps of all environments
    assert agent.n_updates == 5 * (200 // 20 - 60 // 20)
    assert len(agent.buffer) == 201


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 1.5},
        {"batch_size": 0},
        {"tau": 0.0},
        {"hidden": ()},
        {"hidden": (0,)},
        {"hidden": (4,) * 63},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"per_alpha": float("inf")},
        {"per_beta": float("inf")},
        {"buffer_size": 3_000_000_000},
        {"batch_size": 3_000_000_000},
        {"num_envs": 100_000},
        {"hidden": (10**10,)},
        {"loss": "l1"},
        {"exploration": "greedy"},
        {"double": 1},
        {"seed": -1},
        {"batch_size": 2.5},
        {"nonsense": 1},
        {"device": "tpu"},
        {"temperature": 0.0},
        {"n_step": 0},
        {"n_step": 1.5},
    ],
    ids=lambda s: next(iter(s)),
)
def test_bad_hyperparameters_are_named(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        DQN("CartPole-v1", **settings)


def test_bad_evaluation_is_named():
    agent = make_agent()
    with pytest.raises(InputError, match="seed must be >= 0, got -1"):
        agent.evaluate(1, seed=-1)
    with pytest.raises(InputError, match="episodes must be >= 1, got 0"):
        agent.evaluate(0)


def test_unsuitable_environments():
    with pytest.raises(InputError, match=r"DQN needs discrete actions.*Pendulum-v1"):
        DQN("Pendulum-v1")
    with pytest.raises(InputError, match="DQN needs discrete actions; CartPole-v1 has action space MultiDiscrete"):
        DQN(gym.wrappers.TransformAction(gym.make("CartPole-v1"), lambda a: a[0], gym.spaces.MultiDiscrete([2, 2])))
    with pytest.raises(InputError, match="cannot make environment 'NoSuchEnv-v0'"):
        DQN("NoSuchEnv-v0")


def test_environment_object_and_image_observations():
    class Images(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (4, 4, 1), np.uint8)
        action_space = gym.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.observation_space.sample() * 0, {}

        def step(self, action):
            self.t += 1
            obs = self.np_random.integers(0, 256, (4, 4, 1), np.uint8)
            return obs, float(action), False, self.t == 7, {}

    agent = DQN(Images(), hidden=(8,), learning_starts=20, train_every=5, updates=1, batch_size=8, dueling=True)
    agent.learn(60, progress=False)
    assert agent.n_updates == 8
    with pytest.raises(InputError, match="give it `env`"):
        agent.evaluate(2)
    assert agent.evaluate(2, env=Images()).shape == (2,)


def test_evaluation_keeps_the_wrappers_of_an_environment_object(monkeypatch):
    seen = []
    env = gym.make("CartPole-v1", max_episode_steps=5)
    agent = DQN(gym.wrappers.TransformObservation(env, lambda obs: 0 * obs + 7, env.observation_space), hidden=(4,))
    monkeypatch.setattr(agent, "predict", lambda obs: seen.append(obs) or 0)
    assert set(agent.evaluate(2)) == {5.0} and len(seen) == 10 and (np.array(seen) == 7).all()


@pytest.mark.filterwarnings("ignore:.*look like images")
def test_observations_of_any_width():
    space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)

    class Screen(gym.Env):
        observation_space, action_space = space, gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.full(space.shape, 7, np.uint8), {}

        def step(self, action):
            return np.full(space.shape, 200, np.uint8), 1.0, True, False, {}

    agent = DQN(Screen(), network="mlp", hidden=(4,), batch_size=2, buffer_size=10, learning_starts=4).learn(
        8, progress=False
    )
    assert agent.online.sizes == (100_800, 4, 2) and agent.n_updates == 2
