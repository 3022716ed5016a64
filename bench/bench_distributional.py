"""Losses of distributional Q-learning with their gradients, Double and weighted, and IQN's networks with theirs,
against the usual torch code."""

import numpy as np
from _harness import RTOL, Case

import fastrl

ATOMS, ACTIONS, V_MIN, V_MAX = 51, 4, -10.0, 10.0
BATCHES = [{"batch": b} for b in (32, 64, 128, 256)]


class Batch:
    def __init__(self, batch):
        import torch

        rng = np.random.default_rng(0)
        shape = (batch, ACTIONS, ATOMS)
        x, after, online = (rng.standard_normal(shape, np.float32) for _ in range(3))
        rewards, discounts = rng.standard_normal(batch, np.float32), np.full(batch, 0.99, np.float32)
        discounts[::7] = 0
        weights = rng.uniform(0.1, 1, batch).astype(np.float32)
        self.arrays = x, rng.integers(0, ACTIONS, batch), rewards, discounts, after, online, weights
        self.torch = torch
        self.tensors = [torch.from_numpy(a) for a in self.arrays]
        self.x, self.each = self.tensors[0].clone().requires_grad_(), torch.arange(batch)
        self.z = torch.linspace(V_MIN, V_MAX, ATOMS)
        self.step = (V_MAX - V_MIN) / (ATOMS - 1)
        self.taus = (torch.arange(ATOMS) + 0.5) / ATOMS

    def gradient(self, loss):
        self.x.grad = None
        loss.backward()
        return self.x.grad

    def projection(self, probs):
        torch, (_, _, rewards, discounts, *_) = self.torch, self.tensors
        b = ((rewards[:, None] + discounts[:, None] * self.z).clamp(V_MIN, V_MAX) - V_MIN) / self.step
        low, high = b.floor().long(), b.ceil().long()
        low[(high > 0) & (low == high)] -= 1
        high[(low < ATOMS - 1) & (low == high)] += 1
        m = torch.zeros_like(probs)
        return m.scatter_add_(1, low, probs * (high - b)).scatter_add_(1, high, probs * (b - low))

    def torch_c51(self):
        torch, (_, actions, _, _, after, online, weights) = self.torch, self.tensors
        with torch.no_grad():
            best = (online.softmax(2) * self.z).sum(2).argmax(1)
            m = self.projection(after[self.each, best].softmax(1))
        each = -(m * self.x[self.each, actions].log_softmax(1)).sum(1)
        return self.gradient((weights * each).mean())

    def c51(self):
        *arguments, online, weights = self.arrays
        return fastrl.c51_loss(
            *arguments, next_logits_online=online, weights=weights, v_min=V_MIN, v_max=V_MAX
        ).d_q  # fmt: skip

    def torch_quantiles(self):
        torch, (_, actions, rewards, discounts, after, online, weights) = self.torch, self.tensors
        with torch.no_grad():
            y = rewards[:, None] + discounts[:, None] * after[self.each, online.mean(2).argmax(1)]
        theta = self.x[self.each, actions]
        u = y[:, None, :] - theta[:, :, None]
        size = u.abs()
        huber = torch.where(size <= 1, 0.5 * u**2, size - 0.5)
        each = ((self.taus[:, None] - (u.detach() < 0).float()).abs() * huber).mean(2).sum(1)
        return self.gradient((weights * each).mean())

    def quantiles(self):
        *arguments, online, weights = self.arrays
        return fastrl.quantile_huber_loss(*arguments, next_quantiles_online=online, weights=weights).d_q


def contender(ours, theirs, name):
    def build(batch):
        b = Batch(batch)
        np.testing.assert_allclose(getattr(b, ours)(), getattr(b, theirs)(), rtol=RTOL, atol=RTOL)
        return getattr(b, {"fastrl": ours, "torch": theirs}[name])

    return build


def projecting(name):
    def build(batch):
        b = Batch(batch)
        probs = np.random.default_rng(1).dirichlet(np.ones(ATOMS), batch).astype(np.float32)
        tensor, rest = b.torch.from_numpy(probs), b.arrays[2:4]
        ours = lambda: fastrl.categorical_projection(probs, *rest, v_min=V_MIN, v_max=V_MAX)  # noqa: E731
        theirs = lambda: b.projection(tensor)  # noqa: E731
        np.testing.assert_allclose(ours(), theirs(), rtol=RTOL, atol=RTOL)
        return {"fastrl": ours, "torch": theirs}[name]

    return build


class IQN:
    """The gradient of an update of IQN, as an agent for CartPole-v1 makes it: N = N' = 8, K = 32, layers of 128-128."""

    def __init__(self, batch):
        import torch

        from fastrl.agents.quantile_networks import QuantileMLP

        rng = np.random.default_rng(0)
        self.online, self.target = (QuantileMLP((4, 128, 128, 2), seed=seed) for seed in (0, 1))
        self.modules = [network.to_torch() for network in (self.online, self.target)]
        obs, next_obs = rng.standard_normal((2, batch, 4), np.float32)
        rewards, discounts = np.ones(batch, np.float32), np.full(batch, 0.99, np.float32)
        taus, next_taus = rng.random((2, batch, 8), np.float32)
        midpoints = (np.arange(32, dtype=np.float32) + 0.5) / 32
        self.arrays = obs, rng.integers(0, 2, batch), rewards, discounts, next_obs, taus, next_taus, midpoints
        self.tensors, self.each, self.torch = [torch.from_numpy(a) for a in self.arrays], torch.arange(batch), torch

    def fastrl(self):
        obs, *transitions, next_obs, taus, next_taus, midpoints = self.arrays
        after, choosing = self.target.forward(next_obs, next_taus), self.target.forward(next_obs, midpoints)
        out = self.online.forward_cached(obs, taus)
        loss = fastrl.quantile_huber_loss(out, *transitions, after, taus=taus, next_quantiles_online=choosing)
        self.online.backward(loss.d_q)
        return self.online.grad

    def plain(self):
        (online, target), torch = self.modules, self.torch
        obs, actions, rewards, discounts, next_obs, taus, next_taus, midpoints = self.tensors
        with torch.no_grad():
            best = target(next_obs, midpoints.expand(len(obs), -1)).mean(2).argmax(1)
            y = rewards[:, None] + discounts[:, None] * target(next_obs, next_taus)[self.each, best]
        u = y[:, None, :] - online(obs, taus)[self.each, actions][:, :, None]
        size = u.abs()
        huber = torch.where(size <= 1, 0.5 * u**2, size - 0.5)
        online.zero_grad(set_to_none=False)
        ((taus[:, :, None] - (u.detach() < 0).float()).abs() * huber).mean(2).sum(1).mean().backward()
        return self.online.grad  # which the module's gradients are views of


def iqn(name):
    def build(batch):
        both = IQN(batch)
        np.testing.assert_allclose(both.fastrl().copy(), both.plain().copy(), rtol=RTOL, atol=RTOL)
        return {"fastrl": both.fastrl, "torch": both.plain}[name]

    return build


CASES = [
    Case("categorical_projection", BATCHES, {name: projecting(name) for name in ("fastrl", "torch")}),
    Case("c51_loss", BATCHES, {name: contender("c51", "torch_c51", name) for name in ("fastrl", "torch")}),
    Case(
        "quantile_huber_loss",
        BATCHES,
        {name: contender("quantiles", "torch_quantiles", name) for name in ("fastrl", "torch")},
    ),
    Case("iqn", BATCHES[:2], {name: iqn(name) for name in ("fastrl", "torch")}),
]


def test_distributional(contender):
    contender()
