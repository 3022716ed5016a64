"""The search of QT-Opt for the best actions of a batch of states, and NAF's parabola with its gradients, against the
usual PyTorch code."""

import numpy as np
import torch
from _harness import RTOL, Case

from fastrl import MLP, Generator, cem_argmax, normal_sample, quadratic_advantage_pullback
from fastrl.kernels import cem_argmax_reference

HIDDEN = (64, 64)
SEARCHES = [
    {"states": b, "obs": n, "dims": a, "samples": k}
    for b, n, a, k in ((1, 3, 1, 64), (1, 17, 6, 64), (128, 3, 1, 16), (128, 3, 1, 64), (128, 17, 6, 64))
]
ADVANTAGES = [{"batch": b, "dims": a} for b, a in ((128, 1), (128, 6), (256, 17))]
ELITES, ITERATIONS = 6, 2


class Search:
    """What is found has the value that is said, and is one standard deviation better than actions at random."""

    def __init__(self, states, obs, dims, samples):
        self.samples = samples
        self.q = MLP((obs + dims, *HIDDEN, 1), seed=0)
        self.obs = np.random.default_rng(0).standard_normal((states, obs), np.float32)
        self.dims, self.generator = dims, Generator(1)
        self.prepare()
        action, value = (np.asarray(x) for x in self())
        assert action.shape == (states, dims) and abs(action).max() <= 1
        np.testing.assert_allclose(self.q.forward((self.obs, action))[:, 0], value, rtol=10 * RTOL, atol=10 * RTOL)
        uniform = np.random.default_rng(2).uniform(-1, 1, (200, states, dims)).astype(np.float32)
        tried = np.stack([self.q.forward((self.obs, x))[:, 0] for x in uniform])
        assert (value > tried.mean(0) + tried.std(0)).mean() > 0.9

    def prepare(self):
        pass


class Fastrl(Search):
    def __call__(self):
        return cem_argmax(self.q, self.obs, samples=self.samples, elites=ELITES, generator=self.generator)


class Reference(Search):
    def __call__(self):
        zero = np.zeros((ITERATIONS * self.samples, self.dims), np.float32)
        noise, _ = normal_sample(zero, zero[0], generator=self.generator)
        noise = noise.reshape(ITERATIONS, self.samples, self.dims)
        return cem_argmax_reference(self.q, self.obs, noise=noise, elites=ELITES)


class Torch(Search):
    """As it is usually written: repeat the states, draw, evaluate, topk, fit."""

    def prepare(self):
        self.module, self.states = self.q.to_torch(), torch.from_numpy(self.obs)

    @torch.no_grad()
    def __call__(self):
        rows, k, a = len(self.states), self.samples, self.dims
        states = self.states.repeat_interleave(k, 0)
        mean, std = torch.zeros(rows, 1, a), torch.ones(rows, 1, a)
        best_value, best = torch.full((rows,), -torch.inf), torch.zeros(rows, a)
        for _ in range(ITERATIONS):
            action = (mean + std * torch.randn(rows, k, a)).clamp(-1, 1)
            q = self.module(torch.cat((states, action.view(rows * k, a)), 1)).view(rows, k)
            value, index = q.topk(ELITES, 1)
            elites = action.gather(1, index[:, :, None].expand(-1, -1, a))
            mean, std = elites.mean(1, keepdim=True), elites.std(1, correction=0, keepdim=True)
            better = value[:, 0] > best_value
            best = torch.where(better[:, None], elites[:, 0], best)
            best_value = torch.where(better, value[:, 0], best_value)
        return best, best_value


class TorchCompiled(Torch):
    """`torch.compile` of the evaluation."""

    def prepare(self):
        super().prepare()
        self.module = torch.compile(self.module)


class Advantage:
    """Forward and backward; the check is by autograd in float64."""

    def __init__(self, batch, dims):
        rng = np.random.default_rng(0)
        shapes = ((batch, dims), (batch, dims * (dims + 1) // 2), (batch, dims))
        self.arrays = [(0.3 * rng.standard_normal(shape)).astype(np.float32) for shape in shapes]
        self.grad = rng.standard_normal(batch).astype(np.float32)
        self.index = torch.from_numpy(np.array(np.tril_indices(dims)))
        self.prepare()
        exact = self.by_torch([torch.from_numpy(x).double() for x in self.arrays], torch.from_numpy(self.grad).double())
        for found, wanted in zip(self(), exact, strict=True):
            scale = float(wanted.abs().max())
            np.testing.assert_allclose(np.asarray(found) / scale, wanted / scale, rtol=RTOL, atol=RTOL)

    def prepare(self):
        pass

    def by_torch(self, tensors, grad):
        mean, entries, action = (x.detach().requires_grad_() for x in tensors)
        a = mean.shape[1]
        factor = torch.zeros(len(mean), a, a, dtype=mean.dtype)
        factor[:, self.index[0], self.index[1]] = entries
        diagonal = torch.diagonal(factor, dim1=1, dim2=2).exp()
        factor = factor.tril(-1) + torch.diag_embed(diagonal)
        u = torch.bmm(factor.transpose(1, 2), (action - mean)[:, :, None])
        advantage = -0.5 * (u * u).sum((1, 2))
        return advantage.detach(), *torch.autograd.grad(advantage, (mean, entries, action), grad)


class FastrlAdvantage(Advantage):
    def __call__(self):
        advantage, pullback = quadratic_advantage_pullback(*self.arrays)
        return advantage, *pullback(self.grad)


class TorchAdvantage(Advantage):
    def prepare(self):
        self.tensors, self.row_grad = [torch.from_numpy(x) for x in self.arrays], torch.from_numpy(self.grad)

    def __call__(self):
        return self.by_torch(self.tensors, self.row_grad)


CASES = [
    Case(
        "cem_argmax",
        SEARCHES,
        {"fastrl": Fastrl, "fastrl, reference": Reference, "torch": Torch, "torch.compile of Q": TorchCompiled},
    ),
    Case("quadratic_advantage", ADVANTAGES, {"fastrl": FastrlAdvantage, "torch": TorchAdvantage}),
]


def test_cem(contender):
    contender()
