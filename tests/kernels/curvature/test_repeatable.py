"""Policies that are another one at each call, and products beside a refresh."""

import copy
import importlib
import threading
import time

import pytest
from torch import nn

from fastrl import (
    FisherVectorProduct,
    hessian_vector_product,
)
from fastrl.kernels.curvature.mlp import NARROW

from .helpers import Conv, chain

torch = pytest.importorskip("torch", reason="torch is not installed")
cg, cg_torch, natural_gradient = (
    importlib.import_module(f"fastrl.kernels.{name}")
    for name in ("conjugate_gradient.solve", "conjugate_gradient._torch", "curvature.natural_gradient")
)


class _Policy(nn.Module):
    def __init__(self, layer, functional=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), layer, nn.Tanh(), nn.Linear(8, 3))
        self.functional = functional

    def forward(self, x):
        out = self.net(x)
        return torch.nn.functional.dropout(out, training=self.training) if self.functional else out


class _Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return x


NOT_REPEATABLE = {
    "Dropout": lambda: _Policy(nn.Dropout(0.5)),
    "AlphaDropout": lambda: _Policy(nn.AlphaDropout(0.5)),
    "BatchNorm": lambda: _Policy(nn.BatchNorm1d(8)),
    "RReLU": lambda: _Policy(nn.RReLU()),
    "functional dropout": lambda: _Policy(nn.Tanh(), functional=True),
    "chain": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("method", ["auto", "func", "double_backward"])
@pytest.mark.parametrize("name", NOT_REPEATABLE)
def test_a_policy_that_is_another_one_at_each_call_is_refused(name, method):
    torch.manual_seed(0)
    policy, observations = NOT_REPEATABLE[name](), torch.randn(64, 4)
    policy.train()
    state, seed = copy.deepcopy(policy.state_dict()), torch.get_rng_state()
    text = (
        "FisherVectorProduct: policy must give the same output each time and change no buffer, unlike Dropout and "
        "BatchNorm in training mode: call policy.eval() first"
    )
    with pytest.raises(ValueError) as caught:
        FisherVectorProduct(policy, observations, method=method)
    assert str(caught.value) == text
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(x, state[key]) for key, x in policy.state_dict().items())
    policy.eval()
    fisher = FisherVectorProduct(policy, observations, method=method)
    u, v = torch.randn(2, fisher.shape[0])
    assert torch.equal(fisher(v), fisher(v))
    torch.testing.assert_close(u @ fisher(v), v @ fisher(u), rtol=1e-3, atol=1e-5)
    policy.train()  # nobody has seen it yet
    with pytest.raises(ValueError, match="policy.eval"):
        fisher.refresh()
    policy.eval()
    fisher.refresh()


def test_a_buffer_that_a_call_changes_is_as_before():
    policy = _Policy(_Counts())
    with pytest.raises(ValueError, match="change no buffer"):
        FisherVectorProduct(policy, torch.randn(8, 4))
    assert policy.net[1].calls == 0


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.LayerNorm(8), nn.Identity()], ids=str)
def test_a_policy_in_training_mode_that_is_repeatable_is_taken(layer):
    fisher = FisherVectorProduct(_Policy(layer).train(), torch.randn(8, 4))
    v = torch.randn(fisher.shape[0])
    assert torch.equal(fisher(v), fisher(v))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(8)], ids=str)
def test_a_hessian_is_one_matrix_though_the_policy_is_not_repeatable(layer):
    """The loss's graph is built once: every product is one with the Hessian of that loss."""
    torch.manual_seed(0)
    policy = _Policy(layer).train()
    product = hessian_vector_product(
        lambda: policy(torch.ones(16, 4) + torch.arange(16)[:, None]).square().mean(), policy
    )
    u, v = torch.randn(2, product.shape[0])
    assert torch.equal(product(v), product(v))
    torch.testing.assert_close(u @ product(v), v @ product(u), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: chain((5, 16, 4)), lambda: chain((5, NARROW + 1, 4)), Conv], ids=["C++", "wide", "func"]
)
def test_refresh_beside_products(make):
    """A product is that of the old or of the new observations, of any number of rows, and reads no freed memory."""
    torch.manual_seed(0)
    policy = make()
    batches = [torch.randn(rows, 5) for rows in (3, 700, 40)]
    v = torch.randn(sum(p.numel() for p in policy.parameters()))
    wanted = [FisherVectorProduct(policy, obs)(v) for obs in batches]
    fisher = FisherVectorProduct(policy, batches[0])
    stop, wrong = threading.Event(), []

    def product():
        while not stop.is_set():
            got = fisher(v)
            if not any(torch.allclose(got, x, rtol=1e-4, atol=1e-6) for x in wanted):
                wrong.append(got)

    threads = [threading.Thread(target=product) for _ in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        for obs in batches:
            fisher.refresh(obs)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_direct_product_over_some_parameters():
    policy = chain((3, 8, 4))
    chosen = [policy[2].bias, policy[0].weight]
    obs = torch.randn(7, 3)
    fisher = FisherVectorProduct(policy, obs, parameters=chosen)
    v = torch.randn(fisher.shape[0])
    assert fisher.method == "direct"
    wanted = FisherVectorProduct(policy, obs, parameters=chosen, method="func")(v)
    torch.testing.assert_close(fisher(v), wanted, rtol=1e-4, atol=1e-6)
