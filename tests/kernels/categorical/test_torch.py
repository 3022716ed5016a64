"""Gradients of the categorical head, and its reference on torch's operations."""

import numpy as np
import pytest

from fastrl.kernels import (
    Generator,
    categorical,
    categorical_log_prob_entropy,
    categorical_sample,
    categorical_sample_reference,
)
from fastrl.kernels._core import arrays as _arrays

from .helpers import INF, NAN, SIZES, random_logits


def test_tensors_give_what_arrays_give(backend, torch, rng):
    z = random_logits(rng, 40, 6, np.float32)
    for view in (torch.from_numpy(z), torch.from_numpy(z.T.copy()).T, torch.nn.Parameter(torch.from_numpy(z))):
        with torch.no_grad():
            action, log_prob = categorical_sample(view, generator=Generator(3))
            results = categorical_log_prob_entropy(view, action)
        expected, expected_log_prob = categorical_sample(z, generator=Generator(3))
        assert type(action) is type(log_prob) is torch.Tensor and not log_prob.requires_grad
        np.testing.assert_array_equal(action.numpy(), expected)
        np.testing.assert_array_equal(log_prob.numpy(), expected_log_prob)
        for ours, theirs in zip(results, categorical_log_prob_entropy(z, expected), strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_against_torch(backend, torch, tolerance, rng, size, dtype):
    z = torch.from_numpy(random_logits(rng, *size, dtype)).requires_grad_()
    exact = z.detach().double().clamp(min=-1e5).requires_grad_()  # torch's own entropy is NaN at -inf
    action = torch.from_numpy(np.where(z.detach().numpy() > -INF, 1, 0).argmax(1))
    weights = torch.from_numpy(rng.normal(size=(2, size[0])).astype(dtype))
    distribution = torch.distributions.Categorical(logits=exact, validate_args=False)
    for use in ((1, 0), (0, 1), (1, 1)):
        log_prob, entropy = categorical_log_prob_entropy(z, action)
        terms = (log_prob * weights[0], entropy * weights[1])
        (ours,) = torch.autograd.grad(sum(t.sum() for t, u in zip(terms, use, strict=True) if u), z)
        terms = (distribution.log_prob(action) * weights[0], distribution.entropy() * weights[1])
        (theirs,) = torch.autograd.grad(
            sum(t.sum() for t, u in zip(terms, use, strict=True) if u), exact, retain_graph=True
        )
        assert ours.dtype == z.dtype and ours.is_contiguous()
        np.testing.assert_allclose(ours, theirs, **tolerance(z.dtype))
        assert (ours[z == -INF] == 0).all()


def test_sample_gradient(backend, torch, tolerance, rng):
    z = torch.from_numpy(random_logits(rng, 33, 5, np.float64)).requires_grad_()
    action, log_prob = categorical_sample(z, generator=Generator(0))
    assert not action.requires_grad
    (ours,) = torch.autograd.grad(log_prob.sum(), z)
    log_prob, _ = categorical_log_prob_entropy(z, action)
    (theirs,) = torch.autograd.grad(log_prob.sum(), z)
    np.testing.assert_allclose(ours, theirs, **tolerance(ours.dtype))


def test_gradcheck(backend, torch, rng):
    z = torch.from_numpy(rng.normal(size=(7, 4))).requires_grad_()
    action = torch.from_numpy(rng.integers(0, 4, 7))
    assert torch.autograd.gradcheck(lambda x: categorical_log_prob_entropy(x, action), (z,))
    assert torch.autograd.gradcheck(lambda x: categorical_sample(x, generator=Generator(1))[1], (z,))
    assert torch.autograd.gradcheck(lambda x: categorical_log_prob_entropy(x.T, action[:4])[1], (z,))


def test_a_nan_row_has_a_nan_gradient_alone(backend, torch, rng):
    z = torch.from_numpy(rng.normal(size=(20, 3)))
    z[7, 1] = NAN
    z.requires_grad_()
    log_prob, entropy = categorical_log_prob_entropy(z, torch.zeros(20, dtype=torch.int64))
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), z)
    assert gradient[7].isnan().all()
    assert not gradient[torch.arange(20) != 7].isnan().any()


def test_expanded_and_strided_upstream_gradients(backend, torch, tolerance, rng):
    z = torch.from_numpy(rng.normal(size=(9, 3))).requires_grad_()
    action = torch.zeros(9, dtype=torch.int64)
    log_prob, entropy = categorical_log_prob_entropy(z, action)
    (one,) = torch.autograd.grad(log_prob.mean() + entropy.mean(), z, retain_graph=True)  # stride 0
    strided = torch.full((18,), 1 / 9, dtype=torch.float64)[::2]
    (two,) = torch.autograd.grad((log_prob, entropy), z, (strided, strided))
    np.testing.assert_allclose(one, two, **tolerance(one.dtype))


def test_second_derivatives_raise(backend, torch, rng):
    for call in (
        lambda z: categorical_log_prob_entropy(z, torch.zeros(5, dtype=torch.int64)),
        lambda z: categorical_sample(z)[1:],
    ):
        z = torch.from_numpy(rng.normal(size=(5, 3))).requires_grad_()
        (gradient,) = torch.autograd.grad(sum(x.sum() for x in call(z)), z, create_graph=True)
        penalized = (z**2).sum() + (gradient**2).sum()
        for wanted in (gradient.sum(), penalized):
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(wanted, z, retain_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            penalized.backward()


def test_reference_on_torch_operations(torch, tolerance, rng, monkeypatch):
    """What serves a GPU without compiled kernels, here on the CPU: the same actions, results and state."""
    monkeypatch.setattr(_arrays, "load_on_device", lambda obj, *_, **__: obj.detach())
    z = torch.from_numpy(random_logits(rng, 33, 5, np.float32))
    generator = Generator(2**63 + 3)
    state = torch.from_numpy(generator.state.copy().view(np.int64))
    action, log_prob = categorical.reference.categorical_sample(z, state, None)
    monkeypatch.undo()
    expected = categorical_sample_reference(z.numpy(), generator=generator)
    np.testing.assert_array_equal(action, expected[0])
    np.testing.assert_allclose(log_prob, expected[1], **tolerance(z.dtype))
    np.testing.assert_array_equal(state.numpy().view(np.uint64), generator.state)
    g = torch.from_numpy(rng.normal(size=33).astype(np.float32))
    for name, args in (("", ()), ("_backward", (g, g)), ("_backward", (None, g))):
        op = getattr(categorical.reference, f"categorical_log_prob_entropy{name}")
        theirs = op(z.numpy(), action.numpy(), *(x if x is None else x.numpy() for x in args))
        monkeypatch.setattr(_arrays, "load_on_device", lambda obj, *_, **__: obj.detach())
        ours = op(z, action, *args)
        monkeypatch.undo()
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, **tolerance(z.dtype))
