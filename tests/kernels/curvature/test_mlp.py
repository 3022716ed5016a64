"""Fisher products of an MLP without torch, against those through its Jacobian in float64."""

import numpy as np
import pytest

from fastrl import MLP, _backend
from fastrl.kernels.curvature.mlp import NARROW, MLPFisherProduct

from .fisher_oracle import fisher_product


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
        wanted = fisher_product(policy, log_std, obs, 0.1)(v)
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
    sizes = (5, 7, sum(parts))
    policy = MLP(sizes, "tanh", seed=3)
    obs = rng.normal(size=(70, 5)).astype(np.float32)
    products = [MLPFisherProduct(policy, None, obs, 0.1, parts)]
    monkeypatch.setattr(_backend, "CPU_BACKEND", "reference")
    products.append(MLPFisherProduct(policy, None, obs, 0.1, parts))
    wanted = fisher_product(policy, None, obs, 0.1, parts)
    for v in rng.normal(size=(3, len(policy.vector))).astype(np.float32):
        for product in products:
            assert np.abs(product(v) - wanted(v)).max() < 1e-5 * np.abs(wanted(v)).max()


@pytest.mark.skipif(_backend._C is None, reason="needs the compiled extension")
def test_bad_parts():
    layers = [(3, 4, 0, 0, 12)]
    for logits in ([3], [3, 2], [0, 4], [5]):
        with pytest.raises(ValueError, match="FisherVectorProduct: the logits do not fit the layers"):
            _backend._C.MlpFisher(16, layers, -1, logits)
