"""C51, QR-DQN, IQN, noisy layers, Rainbow: the update against plain torch, exploration, checkpoints, bad settings."""

import copy

import numpy as np
import pytest
import torch

from fastrl.agents import DQN, DQNConfig, InputError
from fastrl.agents.noisy import NoisyMLP
from fastrl.agents.quantile_networks import QuantileMLP
from fastrl.replay import Batch

F = torch.nn.functional
B, N, GAMMA = 6, 7, 0.9
SWITCHES = {
    "c51": {"distributional": "c51"},
    "qr": {"distributional": "qr"},
    "noisy": {"noisy": True},
    "c51 double dueling": {"distributional": "c51", "double": True, "dueling": True},
    "qr noisy prioritized": {"distributional": "qr", "noisy": True, "prioritized": True},
    "rainbow": {"rainbow": True},
    "rainbow qr": {"rainbow": True, "distributional": "qr"},
    "iqn": {"distributional": "iqn"},
    "iqn double prioritized": {"distributional": "iqn", "double": True, "prioritized": True, "n_step": 2},
    "iqn dueling": {"distributional": "iqn", "dueling": True, "hidden": (8, 7, 6)},
    "iqn noisy": {"distributional": "iqn", "noisy": True},
    "rainbow iqn": {"rainbow": True, "distributional": "iqn"},
}


def make_agent(**overrides):
    settings = {"hidden": (8, 8), "batch_size": B, "gamma": GAMMA, "max_grad_norm": None, "seed": 3, "atoms": N}
    settings |= {
        "num_tau_samples": 3,
        "num_tau_prime_samples": 5,
        "num_quantile_samples": 9,
        "quantile_embedding_dim": 11,
    }
    settings |= {"v_min": -3, "v_max": 4, "train_every": 1, "target_every": 100, "tau": 1.0, "learning_starts": 50}
    return DQN("CartPole-v1", **settings | overrides)


def make_batch():
    rng = np.random.default_rng(0)
    return Batch(
        obs=rng.normal(size=(B, 4)).astype(np.float32),
        action=rng.integers(2, size=B),
        reward=rng.normal(size=B).astype(np.float32),
        next_obs=rng.normal(size=(B, 4)).astype(np.float32),
        terminated=np.zeros(B, bool),
        truncated=np.zeros(B, bool),
        indices=np.arange(B),
        weights=rng.uniform(0.2, 1, size=B).astype(np.float32),
        discount=np.array([0, 0.9, 0.81, 0.9, 0, 0.9], np.float32),
    )


def module_of(network):
    """In float64, with the noise of the moment."""
    network = network._noisy if isinstance(network, NoisyMLP) else network
    return copy.deepcopy(network.to_torch()).double()


def plain_loss(agent, batch, rng):
    """(loss, errors a row, the module with gradients) as torch code is usually written; `rng` draws the taus."""
    c, online, target = agent.config, module_of(agent.online), module_of(agent.target)
    obs, next_obs, r, discount, w = (
        torch.from_numpy(x).double() for x in (batch.obs, batch.next_obs, batch.reward, batch.discount, batch.weights)
    )
    each = torch.arange(B)
    if not c.prioritized:
        w = torch.ones(B)
    z = torch.linspace(c.v_min, c.v_max, N).double()
    if c.distributional == "iqn":
        loss, errors = plain_iqn(agent, online, target, (obs, batch.action, r, next_obs, discount, w), rng)
        loss.backward()
        return loss.item(), errors.numpy(), online
    values = {
        None: lambda out: out,
        "c51": lambda out: out.view(B, 2, N).softmax(2) @ z,
        "qr": lambda out: out.view(B, 2, N).mean(2),
    }[c.distributional]
    with torch.no_grad():
        after = target(next_obs)
        best = values(online(next_obs) if c.double else after).argmax(1)
    out = online(obs)
    action = torch.from_numpy(batch.action)
    if c.distributional is None:
        errors = out[each, action] - (r + discount * after[each, best])
        rows = errors.square()
    elif c.distributional == "qr":
        y = r[:, None] + discount[:, None] * after.view(B, 2, N)[each, best]
        theta = out.view(B, 2, N)[each, action]
        u = y[:, None, :] - theta[:, :, None]
        taus = (torch.arange(N) + 0.5) / N
        huber = torch.where(u.abs() <= 1, 0.5 * u.square(), u.abs() - 0.5)
        rows = ((taus[:, None] - (u < 0).double()).abs() * huber).mean(2).sum(1)
        errors = theta.mean(1) - y.mean(1)
    else:
        p = after.view(B, 2, N)[each, best].softmax(1)
        place = ((r[:, None] + discount[:, None] * z).clamp(c.v_min, c.v_max) - c.v_min) / (z[1] - z[0])
        m = (p[:, :, None] * (1 - (place[:, :, None] - torch.arange(N)).abs()).clamp(min=0)).sum(1)
        log_p = out.view(B, 2, N)[each, action].log_softmax(1)
        rows, errors = -(m * log_p).sum(1), F.kl_div(log_p, m, reduction="none").sum(1)
    loss = (w * rows).mean()
    for p in online.parameters():
        p.grad = None
    loss.backward()
    return loss.item(), errors.detach().numpy(), online


def plain_iqn(agent, online, target, batch, rng):
    """The loss of Dabney et al. 2018, algorithm 1, but for actions chosen by the midpoints of K equal parts."""
    c, each, (obs, action, r, next_obs, discount, w) = agent.config, torch.arange(B), batch
    tau, tau_prime = (
        torch.from_numpy(rng.random((B, n), np.float32)).double() for n in (c.num_tau_samples, c.num_tau_prime_samples)
    )
    k = c.num_quantile_samples
    midpoints = torch.from_numpy((np.arange(k, dtype=np.float32) + np.float32(0.5)) / np.float32(k)).double()
    with torch.no_grad():
        best = (online if c.double else target)(next_obs, midpoints.expand(B, k)).mean(2).argmax(1)
        y = r[:, None] + discount[:, None] * target(next_obs, tau_prime)[each, best]
    z = online(obs, tau)[each, torch.from_numpy(action)]
    delta = y[:, None, :] - z[:, :, None]
    huber = F.huber_loss(z[:, :, None].expand_as(delta), y[:, None, :].expand_as(delta), reduction="none")
    rows = ((tau[:, :, None] - (delta.detach() < 0).double()).abs() * huber).mean(2).sum(1)
    return (w * rows).mean(), (z.mean(1) - y.mean(1)).detach()


def test_the_network_of_implicit_quantiles_is_that_of_the_paper():
    net = QuantileMLP((4, 10, 8, 3), embedding_dim=5, seed=1)
    p = {name: view.astype(np.float64) for name, view in net.parameters().items()}
    rng = np.random.default_rng(0)
    x, taus = rng.normal(size=(6, 4)), rng.random((6, 7))
    psi = np.maximum(x @ p["features.0.weight"].T + p["features.0.bias"], 0)
    cosines = np.stack([np.cos(np.pi * i * taus) for i in range(5)], 2)
    phi = np.maximum(cosines @ p["embedding.0.weight"].T + p["embedding.0.bias"], 0)
    hidden = np.maximum((psi[:, None] * phi) @ p["head.0.weight"].T + p["head.0.bias"], 0)
    wanted = (hidden @ p["head.2.weight"].T + p["head.2.bias"]).swapaxes(1, 2)
    taus = taus.astype(np.float32)
    found = net.forward(x.astype(np.float32), taus)
    assert found.shape == (6, 3, 7) and np.ptp(found, 2).min() > 1e-4
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="backward needs forward_cached"):
        net.backward(found)
    with pytest.raises(ValueError, match=r"QuantileMLP: state_dict does not fit: missing \['embedding.0.bias'"):
        net.load_state_dict({"head.0.bias": p["head.0.bias"]})
    with pytest.raises(ValueError, match=r"QuantileMLP: head.2.bias must have shape \(3,\), got \(2,\)"):
        net.load_state_dict({**p, "head.2.bias": np.zeros(2)})
    np.testing.assert_array_equal(np.concatenate([x.ravel() for x in p.values()]), net.vector)  # nothing has changed
    same = np.broadcast_to(taus[0], (6, 7))  # of each row, or once for all
    np.testing.assert_array_equal(net.forward(x.astype(np.float32), taus[0]), net.forward(x.astype(np.float32), same))


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_update_against_torch(switches, monkeypatch):
    agent, batch, seen = make_agent(**switches), make_batch(), {}
    monkeypatch.setattr(agent.buffer, "sample", lambda n: batch)
    if agent.config.prioritized:
        monkeypatch.setattr(agent.buffer, "update_priorities", lambda i, e: seen.update(errors=e))
    rng = np.random.default_rng(1)
    agent.target.vector[:] += 0.3 * rng.standard_normal(len(agent.target.vector), np.float32)
    state = copy.deepcopy(agent.rng)
    for network in (agent.online, agent.target):  # as `_update` will
        if isinstance(network, NoisyMLP):
            network.resample(state)
    loss, errors, module = plain_loss(agent, batch, state)
    agent._update()
    assert agent.metrics()["loss"] == pytest.approx(loss, rel=1e-5)
    noisy = isinstance(agent.online, NoisyMLP)
    views = (agent.online.mean if noisy else agent.online).parameters(
        agent.online.grad[: sum(map(torch.numel, module.parameters()))]
    )
    for name, p in module.named_parameters():
        np.testing.assert_allclose(views[name], p.grad.numpy(), rtol=1e-4, atol=1e-6)
    if noisy:
        n = len(agent.online.grad) // 2
        np.testing.assert_array_equal(agent.online.grad[n:], agent.online.grad[:n] * agent.online._epsilon)
    if agent.config.prioritized:
        np.testing.assert_allclose(seen["errors"], errors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_checkpoints_and_copies_go_on_exactly(switches, tmp_path):
    straight = make_agent(**switches).learn(200, progress=False)
    first = make_agent(**switches).learn(120, schedule_steps=200, progress=False)
    first.save(tmp_path / "saved")
    copied = copy.deepcopy(first)
    loaded = DQN.load(tmp_path / "saved")
    obs = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for agent in (copied, loaded):
        agent.learn(200, progress=False)
        for name in ("online", "target", "greedy"):
            np.testing.assert_array_equal(getattr(agent, name).vector, getattr(straight, name).vector)
        np.testing.assert_array_equal(agent.predict(obs), straight.predict(obs))
    actions = straight.policy_to_torch()(torch.from_numpy(obs)).numpy()
    np.testing.assert_array_equal(actions, straight.predict(obs))


@pytest.mark.parametrize("switches", [{}, {"double": True, "dueling": True, "prioritized": True}])
def test_ten_updates_of_iqn_against_torch(switches):
    """The weights after ten updates, of batches and taus drawn alike, are those of torch's autograd and Adam."""
    settings = {"distributional": "iqn", "seed": 5, "max_grad_norm": 0.5, "target_every": 3, "averaging": False}
    settings |= {"learning_rate_end": 1e-3, "learning_starts": 40}
    with pytest.warns(UserWarning, match="nothing is learned in 40 steps"):
        agent = make_agent(**settings | switches).learn(40, progress=False)
    online, target, rng = module_of(agent.online), module_of(agent.target), copy.deepcopy(agent.rng)
    adam = torch.optim.Adam(online.parameters(), lr=1e-3)
    sample, batches = agent.buffer.sample, []
    agent.buffer.sample = lambda n: batches.append(sample(n)) or batches[-1]
    for i in range(10):
        agent._update()
        b = batches[-1]
        obs, next_obs, r, discount, w = (
            torch.from_numpy(np.asarray(x)).double()
            for x in (b.obs, b.next_obs, b.reward, b.discount, b.weights if agent.config.prioritized else np.ones(B))
        )
        adam.zero_grad()
        plain_iqn(agent, online, target, (obs, b.action, r, next_obs, discount, w), rng)[0].backward()
        torch.nn.utils.clip_grad_norm_(online.parameters(), 0.5)
        adam.step()
        if i % 3 == 2:
            target.load_state_dict(online.state_dict())
    for network, module in ((agent.online, online), (agent.target, target)):
        for name, p in module.state_dict().items():
            np.testing.assert_allclose(network.parameters()[name], p.numpy(), rtol=1e-4, atol=1e-5)
    assert agent.rng.bit_generator.state == rng.bit_generator.state


def test_noise():
    net = NoisyMLP((3, 200, 2), seed=0)
    rng = np.random.default_rng(0)
    net.resample(rng)
    p = net.mean.parameters(net._epsilon)
    weight, bias = p["0.weight"], p["0.bias"]
    assert np.linalg.matrix_rank(weight) == 1
    np.testing.assert_allclose(weight / weight[:1], (bias / bias[0])[:, None] + 0 * weight, rtol=1e-4)
    # Var f(e) = E|e| = sqrt(2 / pi), and that of a product its square.
    draws = []
    for _ in range(200):
        net.resample(rng)
        draws.append(net._epsilon.copy())
    draws = net.mean.parameters(np.mean(np.square(draws), 0))
    assert draws["0.bias"].mean() == pytest.approx((2 / np.pi) ** 0.5, rel=0.02)
    assert draws["0.weight"].mean() == pytest.approx(2 / np.pi, rel=0.1)
    sigma = net.mean.parameters(net._sigma)
    assert sigma["0.weight"][0, 0] == pytest.approx(0.5 / 3**0.5) and sigma["2.bias"][0] == pytest.approx(
        0.5 / 200**0.5
    )
    x = np.ones((1, 3), np.float32)
    weights = [net.mean.parameters(net.vector[: len(net._epsilon)] + net._sigma * net._epsilon)[k] for k in p]
    hidden = np.maximum(x @ weights[0].T + weights[1], 0)
    np.testing.assert_allclose(net.forward(x), hidden @ weights[2].T + weights[3], rtol=1e-5, atol=1e-5)


def test_noise_explores_and_the_greedy_policy_has_none():
    agent = make_agent(noisy=True, hidden=(16,), sigma=3.0)
    assert agent.epsilon == 1
    agent.steps = 8000
    assert agent.epsilon == 0
    obs = np.zeros((1, 4), np.float32)
    assert len({agent.predict(obs, deterministic=False).item() for _ in range(50)}) == 2
    obs = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    wanted = agent.greedy.mean.forward(obs).argmax(1)
    for _ in range(5):
        np.testing.assert_array_equal(agent.predict(obs), wanted)


def test_rainbow_is_all_switches():
    c = DQNConfig(rainbow=True)
    assert c.double and c.dueling and c.prioritized and c.noisy and c.distributional == "c51" and c.n_step == 3
    assert DQNConfig(rainbow=True, n_step=5).n_step == 5
    assert (
        make_agent(rainbow=True).describe() == "DQN (double, dueling, prioritized, noisy, c51, 3-step) on CartPole-v1"
    )


def test_a_network_of_ones_own_has_the_atoms():
    module = torch.nn.Linear(4, 2 * N)
    agent = make_agent(distributional="c51", network=module).learn(80, progress=False)
    assert agent.n_updates and np.isfinite(agent.online.vector).all()
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    actions = agent.policy_to_torch()(torch.from_numpy(obs)).numpy()
    np.testing.assert_array_equal(actions, agent.predict(obs))


def test_a_network_of_ones_own_takes_taus():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.psi, self.phi, self.out = torch.nn.Linear(4, 8), torch.nn.Linear(1, 8), torch.nn.Linear(8, 2)

        def forward(self, obs, taus):
            z = self.out(torch.tanh(self.psi(obs)[:, None] * self.phi(taus[..., None])))
            return z.transpose(1, 2).flatten(1)

    agent = make_agent(distributional="iqn", double=True, network=Own).learn(80, progress=False)
    assert agent.n_updates and agent.online.grad.any()
    obs = np.random.default_rng(0).normal(size=(20, 4), scale=50).astype(np.float32)
    actions = agent.policy_to_torch()(torch.from_numpy(obs)).numpy()
    np.testing.assert_array_equal(actions, agent.predict(obs))
    z = agent.greedy.module(torch.from_numpy(obs), torch.from_numpy(agent._taus[0]).expand(20, -1)).view(20, 2, -1)
    np.testing.assert_array_equal(actions, z.mean(2).argmax(1).numpy())
    assert len(np.unique(actions)) == 2
    again = copy.deepcopy(agent)
    np.testing.assert_array_equal(again.learn(120, progress=False).online.vector, agent.learn(120).online.vector)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"v_min": 1, "v_max": 1}, "v_min must be < v_max, got 1.0 and 1.0"),
        ({"v_max": float("inf")}, r"v_max must be in \[-1e\+30, 1e\+30\], got inf"),
        ({"atoms": 1}, r"atoms must be in \[2, 10000\], got 1"),
        ({"distributional": "iqn2"}, "distributional must be 'c51' or 'qr' or 'iqn' or None, got 'iqn2'"),
        ({"rainbow": True, "noisy": False}, "noisy must be True with rainbow, got False"),
        ({"rainbow": True, "n_step": 1}, "n_step must be 3 with rainbow, got 1"),
        ({"noisy": True, "network": torch.nn.Linear(4, 2)}, "noisy must be False with a network of your own"),
        ({"distributional": "iqn", "hidden": (8,)}, r"hidden must name at least 2 layers with iqn, .*, got \(8,\)"),
        ({"num_tau_samples": 0}, r"num_tau_samples must be in \[1, 10000\], got 0"),
        ({"quantile_embedding_dim": 0}, r"quantile_embedding_dim must be in \[1, 10000\], got 0"),
        ({"distributional": "iqn", "network": torch.nn.Linear(4, 6)}, r"must take \[B, 4\] and \[B, 3\]: TypeError"),
        ({"distributional": "qr", "network": torch.nn.Linear(4, 2)}, rf"must map .* to \[B, {2 * N}\], got \[2, 2\]"),
    ],
)
def test_bad_settings(settings, text):
    with pytest.raises(InputError, match=text):
        make_agent(**settings)


@pytest.mark.parametrize("kind", [None, "c51", "qr", "iqn"])
def test_no_observations_have_no_actions(kind):
    agent = DQN("CartPole-v1", seed=0, distributional=kind, hidden=(8, 8))
    assert agent.predict(np.zeros((0, 4), np.float32)).shape == (0,)
