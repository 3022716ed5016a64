"""The policy heads: drawing an action with its log-probability, and log-probability with entropy, without and with
gradients, against the formulas of torch.distributions, which most agents call."""

import math

import numpy as np
from _harness import RTOL, Case

from fastrl import categorical_log_prob_entropy, categorical_sample, normal_log_prob_entropy, normal_sample
from fastrl.kernels import (
    categorical_log_prob_entropy_reference,
    categorical_sample_reference,
    normal_log_prob_entropy_reference,
    normal_sample_reference,
)

CATEGORICAL = [
    {"batch": b, "actions": k} for b, k in ((4, 2), (4, 18), (64, 6), (256, 2), (256, 6), (256, 18), (4096, 6))
]
NORMAL = [{"batch": b, "dims": a} for b, a in ((4, 1), (64, 6), (256, 1), (256, 6), (4096, 6))]


class Head:
    """The tensors of one size; a subclass adds `call`, and `check` compares it with float64 formulas."""

    def __init__(self, **size):
        import torch

        self.torch = torch
        torch.manual_seed(0)
        self.prepare(**size)
        self.check()

    def __call__(self):
        return self.call()

    def assert_close(self, ours, theirs):
        for a, b in zip(ours, theirs, strict=True):
            a, b = (x.detach().double().numpy() for x in (a, b))
            np.testing.assert_allclose(a, b, rtol=RTOL, atol=RTOL * max(1.0, float(np.abs(b).max(initial=0))))


class Categorical(Head):
    def prepare(self, batch, actions):
        self.logits = self.torch.randn(batch, actions)
        self.action = self.torch.randint(0, actions, (batch,))
        self.weights = self.torch.randn(batch), self.torch.randn(batch)

    def exact(self, action):
        distribution = self.torch.distributions.Categorical(logits=self.logits.double())
        return distribution.log_prob(action), distribution.entropy()


class Normal(Head):
    def prepare(self, batch, dims):
        self.mean, self.log_std = self.torch.randn(batch, dims), 0.1 * self.torch.randn(dims)
        self.action = self.mean + self.torch.randn(batch, dims)
        self.weights = self.torch.randn(batch), self.torch.randn(batch)

    def exact(self, action):
        distribution = self.torch.distributions.Normal(self.mean.double(), self.log_std.double().exp())
        return distribution.log_prob(action.double()).sum(1), distribution.entropy().sum(1)


# ---- drawing: (action, log_prob), without gradients -------------------------------------------------------------


class Sample:
    def check(self):
        action, log_prob = self.call()
        # The action in float32 against its log_prob: the difference grows with z^2 <= 30.
        self.assert_close([log_prob / 10], [self.exact(action)[0] / 10])


class CategoricalSample(Sample, Categorical):
    def call(self):
        return categorical_sample(self.logits)


class CategoricalSampleReference(Sample, Categorical):
    def call(self):
        return categorical_sample_reference(self.logits)


class CategoricalSampleTorch(Sample, Categorical):
    def call(self):
        distribution = self.torch.distributions.Categorical(logits=self.logits)
        action = distribution.sample()
        return action, distribution.log_prob(action)


class CategoricalSampleTorchUnchecked(Sample, Categorical):
    def call(self):
        distribution = self.torch.distributions.Categorical(logits=self.logits, validate_args=False)
        action = distribution.sample()
        return action, distribution.log_prob(action)


class CategoricalSampleInline(Sample, Categorical):
    def call(self):
        log_p = self.torch.log_softmax(self.logits, 1)
        action = self.torch.multinomial(log_p.exp(), 1)
        return action[:, 0], log_p.gather(1, action)[:, 0]


class NormalSample(Sample, Normal):
    def call(self):
        return normal_sample(self.mean, self.log_std)


class NormalSampleReference(Sample, Normal):
    def call(self):
        return normal_sample_reference(self.mean, self.log_std)


class NormalSampleTorch(Sample, Normal):
    def call(self):
        distribution = self.torch.distributions.Normal(self.mean, self.log_std.exp())
        action = distribution.sample()
        return action, distribution.log_prob(action).sum(1)


class NormalSampleInline(Sample, Normal):
    def call(self):
        noise = self.torch.randn_like(self.mean)
        action = self.mean + self.log_std.exp() * noise
        return action, (-0.5 * noise**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(1)


# ---- log_prob and entropy of given actions ----------------------------------------------------------------------


class Given:
    """`both` gives log_prob and entropy from the inputs."""

    def check(self):
        self.assert_close(self.call(), self.exact(self.action))

    def call(self):
        return self.both(*self.inputs())


class Categorical2(Categorical):
    def inputs(self):
        return (self.logits,)


class Normal2(Normal):
    def inputs(self):
        return self.mean, self.log_std


class CategoricalFastrl(Categorical2):
    def both(self, logits):
        return categorical_log_prob_entropy(logits, self.action)


class CategoricalReference(Categorical2):
    def both(self, logits):
        return categorical_log_prob_entropy_reference(logits, self.action)


class CategoricalTorch(Categorical2):
    def both(self, logits):
        distribution = self.torch.distributions.Categorical(logits=logits)
        return distribution.log_prob(self.action), distribution.entropy()


class CategoricalTorchUnchecked(Categorical2):
    def both(self, logits):
        distribution = self.torch.distributions.Categorical(logits=logits, validate_args=False)
        return distribution.log_prob(self.action), distribution.entropy()


class CategoricalInline(Categorical2):
    def both(self, logits):
        log_p = self.torch.log_softmax(logits, 1)
        return log_p.gather(1, self.action[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)


class NormalFastrl(Normal2):
    def both(self, mean, log_std):
        return normal_log_prob_entropy(mean, log_std, self.action)


class NormalReference(Normal2):
    def both(self, mean, log_std):
        return normal_log_prob_entropy_reference(mean, log_std, self.action)


class NormalTorch(Normal2):
    def both(self, mean, log_std):
        distribution = self.torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
        return distribution.log_prob(self.action).sum(1), distribution.entropy().sum(1)


class NormalInline(Normal2):
    def both(self, mean, log_std):
        z = (self.action - mean) * (-log_std).exp()
        log_prob = -0.5 * (z**2).sum(1) - (log_std + 0.5 * math.log(2 * math.pi)).sum()
        return log_prob, (log_std + 0.5 * (1 + math.log(2 * math.pi))).sum().expand(len(mean))


class Gradients:
    """Forward and backward, from leaves to their gradients; the upstream gradients are ready."""

    def prepare(self, **size):
        super().prepare(**size)
        self.leaves = [x.clone().requires_grad_() for x in self.inputs()]

    def call(self):
        return self.torch.autograd.grad(self.both(*self.leaves), self.leaves, self.weights)

    def check(self):
        exact = [x.double().requires_grad_() for x in self.inputs()]
        peer = (CategoricalInline if isinstance(self, Categorical) else NormalInline).both
        weights = [w.double() for w in self.weights]
        self.assert_close(self.call(), self.torch.autograd.grad(peer(self, *exact), exact, weights))


class Compiled:
    """The same, through torch.compile."""

    def prepare(self, **size):
        super().prepare(**size)
        self.torch._dynamo.reset()
        self.both = self.torch.compile(super().both)


def given(base):
    return type(base.__name__ + "Given", (Given, base), {})


def gradients(base):
    return type(base.__name__ + "Gradients", (Gradients, base), {})


def compiled(base):
    return type(base.__name__ + "Compiled", (Compiled, base), {})


CASES = [
    Case(
        "categorical_sample",
        CATEGORICAL,
        {
            "fastrl": CategoricalSample,
            "fastrl, reference": CategoricalSampleReference,
            "torch Categorical": CategoricalSampleTorch,
            "torch Categorical, validate_args=False": CategoricalSampleTorchUnchecked,
            "torch inline": CategoricalSampleInline,
        },
    ),
    Case(
        "categorical_log_prob_entropy",
        CATEGORICAL,
        {
            "fastrl": given(CategoricalFastrl),
            "fastrl, reference": given(CategoricalReference),
            "torch Categorical": given(CategoricalTorch),
            "torch Categorical, validate_args=False": given(CategoricalTorchUnchecked),
            "torch inline": given(CategoricalInline),
        },
    ),
    Case(
        "categorical forward + backward",
        CATEGORICAL,
        {
            "fastrl": gradients(CategoricalFastrl),
            "torch Categorical": gradients(CategoricalTorch),
            "torch Categorical, validate_args=False": gradients(CategoricalTorchUnchecked),
            "torch inline": gradients(CategoricalInline),
            "torch.compile, inline": compiled(gradients(CategoricalInline)),
        },
    ),
    Case(
        "normal_sample",
        NORMAL,
        {
            "fastrl": NormalSample,
            "fastrl, reference": NormalSampleReference,
            "torch Normal": NormalSampleTorch,
            "torch inline": NormalSampleInline,
        },
    ),
    Case(
        "normal_log_prob_entropy",
        NORMAL,
        {
            "fastrl": given(NormalFastrl),
            "fastrl, reference": given(NormalReference),
            "torch Normal": given(NormalTorch),
            "torch inline": given(NormalInline),
        },
    ),
    Case(
        "normal forward + backward",
        NORMAL,
        {
            "fastrl": gradients(NormalFastrl),
            "torch Normal": gradients(NormalTorch),
            "torch inline": gradients(NormalInline),
            "torch.compile, inline": compiled(gradients(NormalInline)),
        },
    ),
]


def test_heads(contender):
    contender()
