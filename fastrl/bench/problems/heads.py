"""The policy heads, forward and backward through torch's autograd."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import fastrl
from fastrl.bench.timing import OURS, Call, Kernel, Problem, close, library, with_gradients


def _categorical(batch: int, actions: int) -> Problem:
    """log_prob and entropy of given actions, forward and backward."""
    torch = library("torch")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, actions, generator=generator, requires_grad=True)
    action = torch.randint(0, actions, (batch,), generator=generator)
    weights = [torch.randn(batch, generator=generator) for _ in range(2)]

    def inline(logits: Any) -> Any:
        log_p = torch.log_softmax(logits, 1)
        return log_p.gather(1, action[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)

    def distribution(logits: Any) -> Any:
        found = torch.distributions.Categorical(logits=logits)
        return found.log_prob(action), found.entropy()

    exact = with_gradients(inline, [logits.detach().double().requires_grad_()], [w.double() for w in weights])()
    return Problem(
        {
            name: lambda both=both: with_gradients(both, [logits], weights)  # type: ignore[misc]
            for name, both in {
                OURS: lambda logits: fastrl.categorical_log_prob_entropy(logits, action),
                "reference: torch": inline,
                "torch.distributions": distribution,
            }.items()
        },
        lambda found: close(found, [x.detach().numpy() for x in exact]),
    )


def _normal(batch: int, dims: int) -> Problem:
    """log_prob and entropy of given actions, forward and backward; one log_std for all states."""
    torch = library("torch")
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(batch, dims, generator=generator, requires_grad=True)
    log_std = torch.zeros(dims, requires_grad=True)
    action = mean.detach() + torch.randn(batch, dims, generator=generator)
    weights = [torch.randn(batch, generator=generator) for _ in range(2)]

    def inline(mean: Any, log_std: Any) -> Any:
        z = (action - mean) * (-log_std).exp()
        log_prob = -0.5 * (z**2).sum(1) - (log_std + 0.5 * math.log(2 * math.pi)).sum()
        return log_prob, (log_std + 0.5 * (1 + math.log(2 * math.pi))).sum().expand(len(mean))

    def distribution(mean: Any, log_std: Any) -> Any:
        found = torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
        return found.log_prob(action).sum(1), found.entropy().sum(1)

    leaves = [x.detach().double().requires_grad_() for x in (mean, log_std)]
    exact = with_gradients(inline, leaves, [w.double() for w in weights])()
    return Problem(
        {
            name: lambda both=both: with_gradients(both, [mean, log_std], weights)  # type: ignore[misc]
            for name, both in {
                OURS: lambda mean, log_std: fastrl.normal_log_prob_entropy(mean, log_std, action),
                "reference: torch": inline,
                "torch.distributions": distribution,
            }.items()
        },
        lambda found: close(found, [x.detach().numpy() for x in exact]),
    )


def _tanh_normal(batch: int, dims: int) -> Problem:
    """Draw actions in (-1, 1) with their log_prob, forward and backward; log_std differs between states."""
    torch = library("torch")
    generator = torch.Generator().manual_seed(0)
    leaves = [0.3 * torch.randn(batch, dims, generator=generator) - shift for shift in (0.0, 1.0)]
    weights = [torch.randn(batch, dims, generator=generator), torch.randn(batch, generator=generator)]
    for x in leaves:
        x.requires_grad_()

    def inline(mean: Any, log_std: Any) -> Any:
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        correction = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
        log_prob = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - correction).sum(1)
        return u.tanh(), log_prob

    def distribution(mean: Any, log_std: Any) -> Any:
        d = torch.distributions
        tanh = d.TanhTransform(cache_size=1)
        found = d.TransformedDistribution(d.Normal(mean, log_std.exp()), tanh)
        action = found.rsample()
        return action, found.log_prob(action).sum(1)

    def stable_baselines3() -> Call:
        make = library("stable_baselines3.common.distributions").SquashedDiagGaussianDistribution
        return with_gradients(lambda *leaves: make(dims).log_prob_from_params(*leaves), leaves, weights)

    def check(found: Any) -> None:
        """log_prob is that of the action, by the formula; the draws of no two contenders are the same."""
        mean, log_std = (x.detach().double().numpy() for x in leaves)
        action, log_prob = (x.detach().double().numpy() for x in found[:2])
        assert np.abs(action).max() < 1
        u = np.arctanh(action)
        z = (u - mean) / np.exp(log_std)
        exact = (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi) - np.log1p(-(action**2))).sum(1)
        np.testing.assert_allclose(log_prob, exact, rtol=1e-2, atol=1e-2)
        ga, gl = (w.double().numpy() for w in weights)
        d_mean = ga * (1 - action**2) + 2 * gl[:, None] * action
        gradients = (d_mean, d_mean * (u - mean) - gl[:, None])
        for x, wanted in zip(found[2:], gradients, strict=True):
            np.testing.assert_allclose(x.numpy(), wanted, rtol=1e-2, atol=1e-2)

    return Problem(
        {
            OURS: lambda: with_gradients(fastrl.tanh_normal_sample, leaves, weights),
            "reference: torch": lambda: with_gradients(inline, leaves, weights),
            "torch.distributions": lambda: with_gradients(distribution, leaves, weights),
            "Stable-Baselines3": stable_baselines3,
        },
        check,
    )


KERNELS = {
    "categorical": Kernel(_categorical, [{"batch": 256, "actions": 6}], {"batch": 16, "actions": 3}),
    "normal": Kernel(_normal, [{"batch": 256, "dims": 6}], {"batch": 16, "dims": 2}),
    "tanh_normal": Kernel(_tanh_normal, [{"batch": 256, "dims": 6}], {"batch": 16, "dims": 2}),
}
