"""The tanh-Gaussian head: an action with its log-probability from the mean and the raw log_std of a network, without
and with gradients, against the code that SAC implementations have inline. Every contender draws its own noise."""

import math

import numpy as np
from _harness import RTOL, Case

from fastrl import tanh_normal_sample
from fastrl.kernels import tanh_normal_sample_reference

SIZES = [{"batch": b, "dims": a} for b, a in ((4, 1), (256, 6), (256, 17), (4096, 17), (65536, 8))]
LOW, HIGH = -5.0, 2.0


class Policy:
    """`draw(mean, log_std)` gives action and log_prob; `check` holds the second against the first."""

    def __init__(self, **size):
        import torch

        self.torch = torch
        torch.manual_seed(0)
        self.prepare(**size)
        self.check()

    def __call__(self):
        return self.call()

    def prepare(self, batch, dims):
        self.mean = self.torch.randn(batch, dims)
        self.log_std = (0.5 * self.torch.randn(batch, dims) - 1.0).clamp(LOW, HIGH)

    def call(self):
        with self.torch.no_grad():
            return self.draw(self.mean, self.log_std)

    def check(self):
        """log_prob is the density, in float64, of the action, where tanh is not so flat that float32 loses it; the
        epsilon of the usual form shows there too."""
        action, log_prob = (x.detach().double() for x in self.draw(self.mean, self.log_std))
        rows = (action.abs() < 0.99).all(1)
        mean, log_std = self.mean.double()[rows], self.log_std.double()[rows]
        action = action[rows]
        z = (action.atanh() - mean) * (-log_std).exp()
        exact = (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi) - (1 - action**2).log()).sum(1)
        # A float32 action is known to 2^-24, its atanh to that over 1 - 0.99^2, z to that over sigma.
        np.testing.assert_allclose(log_prob[rows], exact, rtol=100 * RTOL, atol=2e-2)
        assert len(action) == 0 or abs(action.mean()) < 1


class Fastrl(Policy):
    def draw(self, mean, log_std):
        return tanh_normal_sample(mean, log_std)


class Reference(Policy):
    def draw(self, mean, log_std):
        return tanh_normal_sample_reference(mean, log_std)


class CleanRL(Policy):
    def draw(self, mean, log_std):
        normal = self.torch.distributions.Normal(mean, log_std.exp())
        u = normal.rsample()
        action = self.torch.tanh(u)
        log_prob = normal.log_prob(u) - self.torch.log(1.0 * (1 - action.pow(2)) + 1e-6)
        return action, log_prob.sum(1)


class Inline(Policy):
    """In as few torch calls as it takes."""

    def draw(self, mean, log_std):
        noise = self.torch.randn_like(mean)
        action = self.torch.tanh(mean + log_std.exp() * noise)
        log_prob = -0.5 * noise * noise - log_std - 0.9189385332046727 - self.torch.log(1 - action * action + 1e-6)
        return action, log_prob.sum(1)


class Compiled(CleanRL):
    """CleanRL's code and not the one above, whose `randn_like` torch.compile makes several times slower."""

    def prepare(self, **size):
        super().prepare(**size)
        self.torch._dynamo.reset()
        self.draw = self.torch.compile(super().draw)


class TorchDistribution(Policy):
    def draw(self, mean, log_std):
        d = self.torch.distributions
        squashed = d.TransformedDistribution(
            d.Independent(d.Normal(mean, log_std.exp()), 1), d.TanhTransform(cache_size=1)
        )
        action = squashed.rsample()
        return action, squashed.log_prob(action)


class StableBaselines3(Policy):
    def prepare(self, batch, dims):
        from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

        super().prepare(batch, dims)
        self.distribution = SquashedDiagGaussianDistribution(dims)

    def draw(self, mean, log_std):
        return self.distribution.log_prob_from_params(mean, log_std)


class TorchRL(Policy):
    def prepare(self, **size):
        from torchrl.modules import TanhNormal

        super().prepare(**size)
        self.distribution = TanhNormal

    def draw(self, mean, log_std):
        squashed = self.distribution(mean, log_std.exp())
        action = squashed.rsample()
        return action, squashed.log_prob(action)


class Gradients:
    """Forward and backward, from mean and log_std to their gradients; the upstream gradients are ready."""

    def prepare(self, **size):
        super().prepare(**size)
        rows = len(self.mean)
        self.leaves = [x.clone().requires_grad_() for x in (self.mean, self.log_std)]
        self.weights = self.torch.full_like(self.mean, -1.0 / rows), self.torch.full((rows,), 0.2 / rows)

    def call(self):
        return self.torch.autograd.grad(self.draw(*self.leaves), self.leaves, self.weights)

    def check(self):
        """Through the drawn action: d loss / d mean and, with e^log_std eps = atanh(action) - mean, / d log_std."""
        super().check()
        action, log_prob = self.draw(*self.leaves)
        found = self.torch.autograd.grad((action, log_prob), self.leaves, self.weights)
        t = action.detach().double()
        rows = t.abs() < 0.99
        ga, gl = self.weights[0].double(), self.weights[1].double()[:, None]
        g_mean = ga * (1 - t**2) + gl * 2 * t
        g_log_std = g_mean * (t.atanh() - self.mean.double()) - gl
        for a, b in zip(found, (g_mean, g_log_std), strict=True):
            np.testing.assert_allclose(a.double()[rows] * len(t), b[rows] * len(t), rtol=1e-3, atol=1e-3)


def gradients(base):
    return type(base.__name__ + "Gradients", (Gradients, base), {})


PEERS = {
    "CleanRL inline": CleanRL,
    "torch inline": Inline,
    "torch.compile, CleanRL": Compiled,
    "torch TransformedDistribution": TorchDistribution,
    "Stable-Baselines3": StableBaselines3,
    "torchrl TanhNormal": TorchRL,
}
CASES = [
    Case("tanh_normal_sample", SIZES, {"fastrl": Fastrl, "fastrl, reference": Reference, **PEERS}),
    Case(
        "tanh_normal forward + backward",
        SIZES,
        {"fastrl": gradients(Fastrl), **{name: gradients(peer) for name, peer in PEERS.items()}},
    ),
]


def test_tanh_normal(contender):
    contender()
