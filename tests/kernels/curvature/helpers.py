"""What the tests of this op share."""

import importlib
from itertools import pairwise

import pytest
from torch import nn

torch = pytest.importorskip("torch", reason="torch is not installed")
cg, cg_torch, natural_gradient = (
    importlib.import_module(f"fastrl.kernels.{name}")
    for name in ("conjugate_gradient.solve", "conjugate_gradient._torch", "curvature.natural_gradient")
)


class Gaussian(nn.Module):
    """A chain and a log_std [A] that all states share."""

    def __init__(self, net, n_out):
        super().__init__()
        self.net = net
        self.log_std = nn.Parameter(0.3 * torch.randn(n_out))

    def forward(self, obs):
        return self.net(obs), self.log_std


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, obs):
        return self.net(obs.unsqueeze(1))


def chain(sizes, activation=nn.Tanh, bias=True, last=False):
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, bias=bias), activation()]
    return nn.Sequential(*(layers if last else layers[:-1]))


def distribution(policy, obs):
    """torch's own, for the oracle."""
    outputs = policy(obs)
    if isinstance(outputs, tuple):
        mean, log_std = outputs
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp().expand_as(mean)), 1)
    return torch.distributions.Categorical(logits=outputs)


def detached(d):
    if isinstance(d, torch.distributions.Categorical):
        return torch.distributions.Categorical(logits=d.logits.detach())
    base = d.base_dist
    return torch.distributions.Independent(torch.distributions.Normal(base.loc.detach(), base.scale.detach()), 1)


def mean_kl(policy, obs, old=None):
    new = distribution(policy, obs)
    return torch.distributions.kl_divergence(detached(new) if old is None else old, new).mean()


EXACT = {"rtol": 1e-10, "atol": 1e-10}
