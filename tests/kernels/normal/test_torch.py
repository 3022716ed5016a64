"""Gradients of the normal head, and its reference on torch's operations."""

import math

import numpy as np
import pytest

from fastrl.kernels import (
    Generator,
    normal,
    normal_log_prob_entropy,
    normal_sample,
)
from fastrl.kernels._core import arrays as _arrays

from .helpers import inputs


def test_tensors_give_what_arrays_give(backend, torch, rng):
    arrays = inputs(rng, 40, 3, np.float32, shared=True)
    tensors = [torch.from_numpy(x) for x in arrays]
    for ours, theirs in zip(normal_log_prob_entropy(*tensors), normal_log_prob_entropy(*arrays), strict=True):
        assert type(ours) is torch.Tensor
        np.testing.assert_array_equal(ours.numpy(), theirs)
    for ours, theirs in zip(
        normal_sample(*tensors[:2], generator=Generator(3)),
        normal_sample(*arrays[:2], generator=Generator(3)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("shared", [True, False], ids=["[A]", "[B, A]"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 6), (3, 257), (1030, 3)], ids=str)
def test_gradients_against_torch(backend, torch, rng, size, dtype, shared):
    arrays = [torch.from_numpy(x) for x in inputs(rng, *size, dtype, shared)]
    weights = torch.from_numpy(rng.normal(size=(2, size[0])))
    for use in ((1, 0), (0, 1), (1, 1)):
        results = []
        for kind in (arrays[0].dtype, torch.float64):
            mean, log_std, action = (x.detach().to(kind).requires_grad_() for x in arrays)
            if kind == torch.float64 and (dtype != "float64" or results):
                distribution = torch.distributions.Normal(mean, log_std.exp())
                terms = distribution.log_prob(action).sum(1), distribution.entropy().expand(mean.shape).sum(1)
            else:
                terms = normal_log_prob_entropy(mean, log_std, action)
            loss = sum((t * w.to(kind)).sum() for t, w, u in zip(terms, weights, use, strict=True) if u)
            results.append(torch.autograd.grad(loss, (mean, log_std, action), allow_unused=True))
        for ours, theirs in zip(*results, strict=True):
            theirs = torch.zeros_like(ours) if theirs is None else theirs
            # Both derive from sums of |terms| up to e^6 and over B rows: the scale of the rounding.
            scale = max(1.0, float(theirs.abs().max()))
            tolerance = 1e-5 if dtype == "float32" else 1e-12
            np.testing.assert_allclose(ours / scale, theirs / scale, rtol=tolerance, atol=tolerance)


def test_sample_gradients_against_rsample(backend, torch, tolerance, rng):
    for shared in (True, False):
        mean, log_std, noise = (torch.from_numpy(x) for x in inputs(rng, 33, 4, np.float64, shared))
        weights = torch.from_numpy(rng.normal(size=(33, 4))), torch.from_numpy(rng.normal(size=33))
        gradients = []
        for ours in (True, False):
            m, s = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
            if ours:
                action, log_prob = normal_sample(m, s, noise=noise)
            else:
                action = m + s.exp() * noise
                log_prob = (-0.5 * noise**2 - s - 0.5 * math.log(2 * math.pi)).sum(1)
            loss = (action * weights[0]).sum() + (log_prob * weights[1]).sum()
            gradients.append(torch.autograd.grad(loss, (m, s)))
        for ours, theirs in zip(*gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, **tolerance(ours.dtype))


def test_drawn_noise_is_kept_for_the_backward(backend, torch, tolerance):
    """d action / d log_std = action - mean, though mean = 1000 hides it in a difference."""
    mean, log_std = torch.full((50, 2), 1000.0), torch.zeros(2, requires_grad=True)
    action, _ = normal_sample(mean, log_std, generator=Generator(6))
    (ours,) = torch.autograd.grad(action.sum(), log_std)
    eps, _ = normal_sample(np.zeros((50, 2)), np.zeros(2), generator=Generator(6))
    np.testing.assert_allclose(ours, eps.sum(0), **tolerance(ours.dtype))


def test_gradcheck(backend, torch, rng):
    for shared in (True, False):
        mean, log_std, action = (torch.from_numpy(x).requires_grad_() for x in inputs(rng, 5, 3, np.float64, shared))
        noise = action.detach()
        assert torch.autograd.gradcheck(normal_log_prob_entropy, (mean, log_std, action))
        assert torch.autograd.gradcheck(lambda m, s, n=noise: normal_sample(m, s, noise=n), (mean, log_std))
        assert torch.autograd.gradcheck(lambda m, s: normal_sample(m, s, generator=Generator(4)), (mean, log_std))
        assert torch.autograd.gradcheck(lambda s, m=mean, x=action: normal_log_prob_entropy(m, s, x), (log_std,))


def test_only_the_wanted_gradients(backend, torch, rng):
    mean, log_std, action = (torch.from_numpy(x) for x in inputs(rng, 5, 3, np.float64, True))
    mean.requires_grad_()
    log_prob, _ = normal_log_prob_entropy(mean, log_std, action)
    log_prob.sum().backward()
    assert mean.grad is not None and log_std.grad is None and action.grad is None


def test_second_derivatives_raise(backend, torch, rng):
    for call in (
        lambda m, s, x: normal_log_prob_entropy(m, s, x),
        lambda m, s, x: normal_sample(m, s, noise=x.detach()),
    ):
        arrays = [torch.from_numpy(x).requires_grad_() for x in inputs(rng, 5, 3, np.float64, True)]
        _, log_std, _ = arrays
        (gradient,) = torch.autograd.grad(sum(t.sum() for t in call(*arrays)), log_std, create_graph=True)
        penalized = (log_std**2).sum() + (gradient**2).sum()
        for wanted in (gradient.sum(), penalized):
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(wanted, log_std, retain_graph=True)


def test_reference_on_torch_operations(torch, tolerance, rng, monkeypatch):
    """What serves a GPU without compiled kernels, here on the CPU: the same numbers and state."""
    generator = Generator(2**63 + 3)
    state = torch.from_numpy(generator.state.copy().view(np.int64))
    for shared in (True, False):
        arrays = inputs(rng, 33, 5, np.float64, shared)
        mean, log_std, action = (torch.from_numpy(x) for x in arrays)
        g = torch.from_numpy(rng.normal(size=33))
        reference = normal.reference
        calls = (
            (reference.normal_sample, (mean, log_std, None, state, True)),
            (reference.normal_sample, (mean, log_std, action, None, True)),
            (reference.normal_log_prob_entropy, (mean, log_std, action)),
            (reference.normal_log_prob_entropy_backward, (mean, log_std, action, g, None, True, True, True)),
            (lambda *args: [normal.reference.normal_sample_backward(*args)], (log_std, action, mean, g)),
        )
        for call, args in calls:
            plain = [x.numpy() if isinstance(x, torch.Tensor) and x is not state else x for x in args]
            theirs = call(*(generator.state if x is state else x for x in plain))
            monkeypatch.setattr(_arrays, "load_on_device", lambda obj, *_, **__: obj.detach())
            ours = call(*args)
            monkeypatch.undo()
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, **tolerance(mean.dtype))
    np.testing.assert_array_equal(state.numpy().view(np.uint64), generator.state)
