"""Fisher products of an MLP without torch, against the float64 products of the same network by torch.func."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastrl import MLP, FisherVectorProduct, _backend  # noqa: E402
from fastrl.kernels.curvature.mlp import NARROW, MLPFisherProduct  # noqa: E402

from .helpers import Gaussian  # noqa: E402


def twin(policy, log_std, obs, damping):
    net = copy.deepcopy(policy.to_torch()).double()
    if log_std is not None:
        net, chain = Gaussian(net, len(log_std)).double(), net
        net.net = chain
        net.log_std.data.copy_(torch.from_numpy(log_std))
    order = [*(net if log_std is None else net.net).parameters(), *([] if log_std is None else [net.log_std])]
    fisher = FisherVectorProduct(net, torch.from_numpy(obs).double(), damping, method="func", parameters=order)
    return lambda v: fisher(torch.from_numpy(v).double()).numpy()


@pytest.mark.parametrize("gaussian", [False, True], ids=["categorical", "gaussian"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu", "none"])
@pytest.mark.parametrize("sizes", [(5, 7, 6, 3), (4, NARROW + 1, 2), (3, 2)], ids=str)
def test_products_and_refresh(sizes, activation, gaussian, rng, monkeypatch):
    policy = MLP(sizes, activation, seed=3)
    log_std = rng.uniform(-1, 1, sizes[-1]).astype(np.float32) if gaussian else None
    obs = rng.normal(size=(61, sizes[0])).astype(np.float32)
    products = [MLPFisherProduct(policy, log_std, obs, 0.1)]
    monkeypatch.setattr(_backend, "CPU_BACKEND", "reference")
    products.append(MLPFisherProduct(policy, log_std, obs, 0.1))
    assert products[1]._fused is None
    v = rng.normal(size=len(policy.vector) + (len(log_std) if gaussian else 0)).astype(np.float32)
    for _ in range(2):
        wanted = twin(policy, log_std, obs, 0.1)(v)
        for product in products:
            got = product(v)
            assert got.dtype == np.float32 and got.shape == v.shape
            assert np.abs(got - wanted).max() < 2e-6 * np.abs(wanted).max() * np.sqrt(max(sizes))
        before = [product(v) for product in products]
        policy.vector[:] *= 0.5  # what has begun stays as it was until refresh
        assert all(np.array_equal(product(v), x) for product, x in zip(products, before, strict=True))
        obs = rng.normal(size=(3, sizes[0])).astype(np.float32)
        for product in products:
            product.refresh(obs)


@pytest.mark.parametrize("parts", [[3], [2, 3], [1, 4, 2, 16]], ids=str)
def test_products_of_independent_categoricals_add_up(parts, rng, monkeypatch):
    """Against the dense F of each, by autograd in float64, of the same network's logits."""
    sizes = (5, 7, sum(parts))
    policy = MLP(sizes, "tanh", seed=3)
    obs = rng.normal(size=(70, 5)).astype(np.float32)
    products = [MLPFisherProduct(policy, None, obs, 0.1, parts)]
    monkeypatch.setattr(_backend, "CPU_BACKEND", "reference")
    products.append(MLPFisherProduct(policy, None, obs, 0.1, parts))
    net = copy.deepcopy(policy.to_torch()).double()
    weights = tuple(p.detach() for p in net.parameters())
    shapes = [w.shape for w in weights]

    def logits(flat):
        pieces = torch.split(flat, [w.numel() for w in weights])
        w1, b1, w2, b2 = (x.reshape(shape) for x, shape in zip(pieces, shapes, strict=True))
        return torch.tanh(torch.from_numpy(obs).double() @ w1.T + b1) @ w2.T + b2

    flat = torch.cat([w.flatten() for w in weights])
    old = torch.split(logits(flat), parts, 1)

    def kl(flat):
        new = torch.split(logits(flat), parts, 1)
        return sum(
            (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean() for p, q in zip(old, new, strict=True)
        )

    fisher = torch.autograd.functional.hessian(kl, flat).numpy() + 0.1 * np.eye(len(flat))
    for v in rng.normal(size=(3, len(flat))).astype(np.float32):
        for product in products:
            assert np.abs(product(v) - fisher @ v).max() < 1e-5 * np.abs(fisher @ v).max()


@pytest.mark.skipif(_backend._C is None, reason="needs the compiled extension")
def test_bad_parts():
    layers = [(3, 4, 0, 0, 12)]
    for logits in ([3], [3, 2], [0, 4], [5]):
        with pytest.raises(ValueError, match="FisherVectorProduct: the logits do not fit the layers"):
            _backend._C.MlpFisher(16, layers, -1, logits)
