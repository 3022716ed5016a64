"""Tensors: autograd, and what serves CUDA, on CPU tensors."""

import numpy as np
import pytest

import fastrl

torch = pytest.importorskip("torch")

from .helpers import Batch  # noqa: E402

OPS = {"c51_loss": {"v_min": -5.0, "v_max": 4.0}, "quantile_huber_loss": {}}


@pytest.mark.parametrize("op", OPS)
def test_autograd(backend, op):
    b = Batch(0, 6, 3, 8)
    x, *rest = map(torch.from_numpy, b.arguments)
    plain = getattr(fastrl, op)(x, *rest, **OPS[op])
    assert isinstance(plain.loss, float) and isinstance(plain.d_q, torch.Tensor)
    logits = x.clone().requires_grad_()
    found = getattr(fastrl, op)(2 * logits / 2, *rest, **OPS[op])
    assert found.loss.item() == pytest.approx(plain.loss)
    assert not found.d_q.requires_grad and not found.td_errors.requires_grad
    (3 * found.loss).backward()
    torch.testing.assert_close(logits.grad, 3 * plain.d_q)
    with torch.no_grad():
        assert isinstance(getattr(fastrl, op)(logits, *rest, **OPS[op]).loss, float)


@pytest.mark.parametrize("op", OPS)
def test_the_torch_backend_agrees(op):
    from fastrl.kernels.distributional import _torch, reference

    b = Batch(0, 30, 3, 8)
    taus = {"c51_loss": (), "quantile_huber_loss": (b.taus,)}[op]
    for online, w in ((None, None), (b.online, b.weights)):
        arguments = (*b.arguments, online, w, *taus, *(OPS[op].values() or (0.7,)))
        tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments]
        wanted, found = getattr(reference, op)(*arguments), getattr(_torch, op)(*tensors)
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x.numpy(), y, rtol=1e-5, atol=1e-5)


def test_the_torch_projection_agrees():
    from fastrl.kernels.distributional import _torch, reference

    probs = np.random.default_rng(0).dirichlet(np.ones(5), 7).astype(np.float32)
    rewards = np.array([0, 1, np.nan, np.inf, -9, 0.3, 0], np.float32)
    discounts = np.array([1, 0.9, 1, 1, 0.5, 0, np.inf], np.float32)
    found = _torch.categorical_projection(*map(torch.from_numpy, (probs, rewards, discounts)), -1.0, 2.0)
    wanted = reference.categorical_projection(probs, rewards, discounts, -1.0, 2.0)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_the_torch_loss_of_an_actor_agrees():
    from fastrl.kernels.distributional import _torch, reference

    logits = Batch(0, 30, 1, 8).x[:, 0]
    wanted, found = (f(logits if f is reference.c51_actor_loss else torch.from_numpy(logits), -5.0, 4.0)
                     for f in (reference.c51_actor_loss, _torch.c51_actor_loss))  # fmt: skip
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x.numpy(), y, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="logits must have rows and at least 2 atoms"):
        _torch.c51_actor_loss(torch.zeros(3, 1), -5.0, 4.0)


@pytest.mark.parametrize("op", OPS)
def test_cuda(op):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    b = Batch(0, 30, 3, 8)
    wanted = getattr(fastrl, op)(*b.arguments, **OPS[op])
    found = getattr(fastrl, op)(*(torch.from_numpy(x).cuda() for x in b.arguments), **OPS[op])
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x.cpu().numpy(), y, rtol=1e-5, atol=1e-5)


def test_two_hot_of_a_tensor_is_one():
    assert isinstance(fastrl.two_hot(torch.zeros(2), 3, v_min=0, v_max=1), torch.Tensor)
