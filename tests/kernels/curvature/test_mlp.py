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
