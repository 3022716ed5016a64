"""Networks with batch renormalisation by autograd, for the tests."""

from itertools import pairwise

import torch
from torch import nn


class Renorm(nn.Module):
    """Ioffe 2017, algorithm 1, by autograd and in float64."""

    def __init__(self, n, momentum, warmup):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.momentum, self.warmup = momentum, warmup

    def forward(self, x):
        running = (self.running_var + 1e-3).sqrt()
        if not self.training:
            return self.weight * (x - self.running_mean) / running + self.bias
        mean, var = x.mean(0), x.var(0, correction=0)
        std, r, d = (var + 1e-3).sqrt(), 1.0, 0.0
        if self.num_batches_tracked >= self.warmup:
            r = (std / running).detach().clamp(1 / 3, 3)
            d = ((mean - self.running_mean) / running).detach().clamp(-5, 5)
        with torch.no_grad():
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var - self.running_var)
            self.num_batches_tracked += 1
        return self.weight * ((x - mean) / std * r + d) + self.bias


def batch_norm_oracle(net):
    """The same networks in torch and float64, with layers of its own."""

    def one():
        layers = []
        for n_in, n_out in pairwise(net.sizes):
            layers += [Renorm(n_in, net.momentum, net.warmup), nn.Linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    module = one() if net.n is None else nn.ModuleList(one() for _ in range(net.n))
    module.load_state_dict({name: torch.as_tensor(x) for name, x in net.state_dict().items()})
    return module.double().eval()
