"""Hessian and Fisher products against explicit matrices and double backward; the natural gradient step; line search."""

import copy
import importlib
import math
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402
from torch.nn.utils import parameters_to_vector, vector_to_parameters  # noqa: E402

from fastrl import (  # noqa: E402
    FisherVectorProduct,
    conjugate_gradient,
    hessian_vector_product,
    line_search,
    natural_gradient_step,
)

cg, curvature = (importlib.import_module(f"fastrl.kernels.{name}") for name in ("conjugate_gradient", "curvature"))

EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Gaussian(nn.Module):
    """A chain and a log_std [A] that all states share."""

    def __init__(self, net, n_out):
        super().__init__()
        self.net = net
        self.log_std = nn.Parameter(0.3 * torch.randn(n_out))

    def forward(self, obs):
        return self.net(obs), self.log_std


class StateDependent(nn.Module):
    """Mean and log_std [B, A] from a shared torso, with LayerNorm."""

    def __init__(self):
        super().__init__()
        self.torso = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh())
        self.mean, self.log_std = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, obs):
        h = self.torso(obs)
        return self.mean(h), self.log_std(h) - 1


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, obs):
        return self.net(obs.unsqueeze(1))


def chain(sizes, activation=nn.Tanh, bias=True, last=False):
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, bias=bias), activation()]
    return nn.Sequential(*(layers if last else layers[:-1]))


def package_policy(discrete):
    """A torch view of an agent's policy."""
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    from fastrl import MLP
    from fastrl.agents.trpo import Gaussian

    net = MLP((5, 7, 6, 4 if discrete else 3), "tanh", seed=1).to_torch()
    return net if discrete else Gaussian(net, torch.full((3,), -0.3))


def frozen_layer():
    net = chain((5, 7, 6, 4))
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


class Wrapped(nn.Module):
    """What looks like a chain but is not one."""

    def __init__(self):
        super().__init__()
        self.net = chain((5, 6, 4))

    def forward(self, obs):
        return 2 * self.net(obs)


class DetachedHalf(nn.Module):
    """The chain's output, but not its gradient."""

    def __init__(self):
        super().__init__()
        self.net = chain((5, 6, 4))

    def forward(self, obs):
        out = self.net(obs)
        return 0.5 * (out + out.detach())


class ClampedStd(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.log_std = chain((5, 6, 3)), nn.Parameter(torch.zeros(3))

    def forward(self, obs):
        return self.net(obs), 0.5 * self.log_std


class ScaledObservations(Gaussian):
    def forward(self, obs):
        return self.net(self.log_std.exp() * obs), torch.zeros(3, dtype=obs.dtype)


def tied():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 4))


class SharedParameter(nn.Module):
    """Two modules that hold one parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.second.weight = self.first.weight

    def forward(self, obs):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(obs)))))


def hooked():
    net = chain((5, 6, 4))
    net[0].register_forward_hook(lambda module, args, out: 3 * out)
    return net


# The name says what it is; the value whether the direct path serves it, and how to make it.
POLICIES = {
    "categorical tanh": (True, lambda: chain((5, 7, 6, 4))),
    "categorical relu": (True, lambda: chain((5, 7, 6, 4), nn.ReLU)),
    "categorical silu": (True, lambda: chain((5, 7, 6, 4), nn.SiLU)),
    "one layer": (True, lambda: nn.Linear(5, 4)),
    "no biases": (True, lambda: chain((5, 7, 4), bias=False)),
    "activation at the end": (True, lambda: chain((5, 7, 4), last=True)),
    "flatten, nested": (True, lambda: nn.Sequential(nn.Flatten(), chain((5, 7), last=True), nn.Linear(7, 4))),
    "wide": (True, lambda: chain((5, 70, 33, 18))),
    "gaussian tanh": (True, lambda: Gaussian(chain((5, 7, 6, 3)), 3)),
    "gaussian relu": (True, lambda: Gaussian(chain((5, 7, 6, 3), nn.ReLU), 3)),
    "gaussian silu": (True, lambda: Gaussian(chain((5, 7, 6, 3), nn.SiLU), 3)),
    "some frozen": (True, frozen_layer),
    "package, discrete": (True, lambda: package_policy(True)),
    "package, continuous": (True, lambda: package_policy(False)),
    "state-dependent log_std, LayerNorm, torso": (False, StateDependent),
    "convolution": (False, Conv),
    "scaled chain": (False, Wrapped),
    "detached chain": (False, DetachedHalf),
    "log_std through a function": (False, ClampedStd),
    "observations scaled by log_std": (False, lambda: ScaledObservations(chain((5, 6, 3)), 1)),
    "in-place ReLU": (True, lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 4))),
    "in-place ReLU in a module": (
        True,
        lambda: Gaussian(nn.Sequential(nn.Flatten(), nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)), 3),
    ),
    "in-place SiLU": (False, lambda: nn.Sequential(nn.Linear(5, 7), nn.SiLU(inplace=True), nn.Linear(7, 4))),
    "one layer twice": (False, tied),
    "a shared parameter": (False, SharedParameter),
    "forward hook": (False, hooked),
}


@pytest.fixture(params=POLICIES)
def case(request):
    direct, make = POLICIES[request.param]
    torch.manual_seed(3)
    policy = make().double()
    return policy, torch.randn(23, 5, dtype=torch.float64), direct


def distribution(policy, obs):
    """torch's own, for the oracle."""
    outputs = policy(obs)
    if isinstance(outputs, tuple):
        mean, log_std = outputs
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp().expand_as(mean)), 1)
    return torch.distributions.Categorical(logits=outputs)


def detached(d):
    if isinstance(d, torch.distributions.Categorical):
        return torch.distributions.Categorical(logits=d.logits.detach())
    base = d.base_dist
    return torch.distributions.Independent(torch.distributions.Normal(base.loc.detach(), base.scale.detach()), 1)


def mean_kl(policy, obs, old=None):
    new = distribution(policy, obs)
    return torch.distributions.kl_divergence(detached(new) if old is None else old, new).mean()


def trained(policy):
    return [p for p in policy.parameters() if p.requires_grad]


def explicit_fisher(policy, obs):
    """The Hessian of the mean KL(old || new) at new = old, row by row."""
    params = trained(policy)
    grads = torch.autograd.grad(mean_kl(policy, obs), params, create_graph=True, allow_unused=True)
    flat = torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(grads, params, strict=True)]
    )
    rows = []
    for g in flat:
        if not g.requires_grad:
            rows.append(torch.zeros_like(flat))
            continue
        row = torch.autograd.grad(g, params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if x is None else x).reshape(-1) for x, p in zip(row, params, strict=True)])
        )
    return torch.stack(rows).detach()


# ---- Fisher products ---------------------------------------------------------------------------------------------


def test_fisher_is_the_hessian_of_the_kl(case):
    policy, obs, direct = case
    n = sum(p.numel() for p in trained(policy))
    reference = FisherVectorProduct(policy, obs, damping=0.0, method="double_backward")
    v = torch.randn(n, 3, dtype=torch.float64).unbind(1)
    F = explicit_fisher(policy, obs) if n < 300 else None
    for method in ("auto", "func", "double_backward", *(("direct",) if direct else ())):
        fisher = FisherVectorProduct(policy, obs, damping=0.0, method=method)
        assert fisher.method == {"auto": "direct" if direct else "func"}.get(method, method)
        assert fisher.shape == (n, n)
        for x in v:
            torch.testing.assert_close(fisher(x), reference(x), **EXACT)
            if F is not None:
                torch.testing.assert_close(fisher(x), F @ x, **EXACT)
    damped = FisherVectorProduct(policy, obs, damping=0.7)
    torch.testing.assert_close(damped(v[0]), reference(v[0]) + 0.7 * v[0], **EXACT)


def test_fisher_is_what_its_formula_says():
    """J^T M J / B with the Jacobians of every state, M = diag(1 / sigma^2) and 2, or diag(p) - p p^T."""
    for make, gaussian in ((lambda: chain((5, 6, 4)), False), (StateDependent, True)):
        torch.manual_seed(0)
        policy, obs = make().double(), torch.randn(9, 5, dtype=torch.float64)
        params, F = trained(policy), 0
        for b in range(len(obs)):
            out = policy(obs[b : b + 1])
            out = torch.cat(out, 1)[0] if gaussian else out[0]
            J = torch.stack(
                [torch.cat([g.reshape(-1) for g in torch.autograd.grad(x, params, retain_graph=True)]) for x in out]
            )
            if gaussian:
                M = torch.diag(torch.cat([torch.exp(-2 * out[3:]), torch.full((3,), 2.0, dtype=torch.float64)]))
            else:
                p = out.softmax(0)
                M = torch.diag(p) - torch.outer(p, p)
            F = F + (J.T @ M @ J).detach() / len(obs)
        v = torch.randn(len(F), dtype=torch.float64)
        for method in ("auto", "func", "double_backward"):
            torch.testing.assert_close(FisherVectorProduct(policy, obs, 0.0, method=method)(v), F @ v, **EXACT)


def test_kl_is_summed_over_action_dimensions():
    """sb3-contrib averages it over them, so that its product is F / A."""
    policy = Gaussian(chain((5, 7, 3)), 3).double()
    obs = torch.randn(11, 5, dtype=torch.float64)
    fisher = FisherVectorProduct(policy, obs, damping=0.0)
    v = torch.zeros(fisher.shape[0], dtype=torch.float64)
    v[0] = 1.0  # log_std of the first action: F is 2 there, not 2 / 3
    assert fisher(v)[0] == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("name", ["gaussian tanh", "categorical silu", "state-dependent log_std, LayerNorm, torso"])
def test_kl_of_a_small_step(name):
    """KL(old || old + t d) = t^2 d.F d / 2 + O(t^3)."""
    torch.manual_seed(1)
    policy, obs = POLICIES[name][1]().double(), torch.randn(31, 5, dtype=torch.float64)
    old = detached(distribution(policy, obs))
    theta = parameters_to_vector(policy.parameters()).detach()
    d = torch.randn_like(theta)
    half = 0.5 * d @ FisherVectorProduct(policy, obs, damping=0.0)(d)
    errors = []
    for t in (1e-2, 1e-3):
        vector_to_parameters(theta + t * d, policy.parameters())
        errors.append(abs(mean_kl(policy, obs, old).item() / t**2 - half.item()))
    assert errors[0] <= 1.0 * half and errors[1] <= 0.02 * half
    assert errors[1] <= 0.2 * errors[0]


@settings(max_examples=25)
@given(st.integers(0, 2**31 - 1), st.sampled_from(sorted(POLICIES)[:6]), st.integers(1, 40))
def test_symmetric_semi_definite_linear(seed, name, batch):
    torch.manual_seed(seed)
    policy, obs = POLICIES[name][1]().double(), torch.randn(batch, 5, dtype=torch.float64)
    fisher = FisherVectorProduct(policy, obs, damping=0.0)
    u, v = torch.randn(2, fisher.shape[0], dtype=torch.float64)
    Fu, Fv = fisher(u), fisher(v)
    torch.testing.assert_close(u @ Fv, v @ Fu, rtol=1e-9, atol=1e-9)
    assert u @ Fu >= -1e-12 and v @ Fv >= -1e-12
    torch.testing.assert_close(fisher(2.5 * u - 3 * v), 2.5 * Fu - 3 * Fv, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2, 31, 32, 33, 511, 1000, 4099])
@pytest.mark.parametrize("sizes", [(17, 64, 64, 6), (3, 1), (376, 40, 17), (4, 120, 84, 2), (1, 1, 1)])
def test_float32_at_real_sizes(batch, sizes):
    torch.manual_seed(0)
    policy = Gaussian(chain(sizes), sizes[-1])
    obs = torch.randn(batch, sizes[0])
    fisher = FisherVectorProduct(policy, obs, damping=0.1)
    assert fisher.method == "direct"
    v = torch.randn(fisher.shape[0])
    ours = fisher(v)
    double = Gaussian(chain(sizes), sizes[-1]).double()
    double.load_state_dict(policy.state_dict())
    exact = FisherVectorProduct(double, obs.double(), damping=0.1, method="func")(v.double())
    assert (ours - exact).abs().max() <= 3e-6 * exact.abs().max()


def test_results_are_the_callers_own():
    fisher = FisherVectorProduct(chain((5, 7, 4)), torch.randn(8, 5))
    v = torch.randn(fisher.shape[0])
    copy, first = v.clone(), fisher(v)
    kept = first.clone()
    fisher(torch.randn_like(v))
    assert torch.equal(first, kept) and torch.equal(v, copy)
    assert torch.equal(fisher(v), kept)
    assert torch.equal(fisher(torch.stack([v, v], 1)[:, 0]), kept)  # any strides
    assert not first.requires_grad


@pytest.mark.parametrize("method", ["auto", "func", "double_backward"])
def test_policy_is_left_as_it_was(method):
    for _, make in POLICIES.values():
        policy = make().double()
        before = {name: (id(p), p.detach().clone()) for name, p in policy.named_parameters(remove_duplicate=False)}
        fisher = FisherVectorProduct(policy, torch.randn(4, 5, dtype=torch.float64), method=method)
        fisher(torch.randn(fisher.shape[0], dtype=torch.float64))
        after = dict(policy.named_parameters(remove_duplicate=False))
        assert {name: id(p) for name, p in after.items()} == {name: x[0] for name, x in before.items()}
        assert all(torch.equal(p, before[name][1]) for name, p in after.items())


@pytest.mark.parametrize("method", ["auto", "func", "double_backward"])
def test_refresh(method):
    policy, obs = Gaussian(chain((5, 7, 3)), 3).double(), torch.randn(8, 5, dtype=torch.float64)
    fisher = FisherVectorProduct(policy, obs, method=method)
    v = torch.randn(fisher.shape[0], dtype=torch.float64)
    before = fisher(v)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.1)
    fisher.refresh()
    after = fisher(v)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, FisherVectorProduct(policy, obs, method="double_backward")(v), **EXACT)
    more = torch.randn(13, 5, dtype=torch.float64)
    fisher.refresh(more)
    torch.testing.assert_close(fisher(v), FisherVectorProduct(policy, more, method="double_backward")(v), **EXACT)


@pytest.mark.parametrize("method", ["auto", "func", "double_backward"])
def test_nothing_is_rebuilt_at_a_product(method):
    """skrl rebuilds the KL, and the policy's forward pass with it, at every product."""
    calls = []

    class Counted(Gaussian):
        def forward(self, obs):
            calls.append(1)
            return super().forward(obs)

    policy = Counted(chain((5, 7, 3)), 3).double()
    fisher = FisherVectorProduct(policy, torch.randn(8, 5, dtype=torch.float64), method=method)
    calls.clear()
    for _ in range(10):
        fisher(torch.randn(fisher.shape[0], dtype=torch.float64))
    # Forward mode carries the tangents through the policy itself: one pass, which is that product's work.
    assert len(calls) == (10 if method == "func" else 0)


class Late(nn.Module):
    """A chain, until the clamp is switched on."""

    def __init__(self):
        super().__init__()
        self.net, self.clamp = chain((5, 6, 4)), False

    def forward(self, obs):
        out = self.net(obs)
        return out.clamp(-0.1, 0.1) if self.clamp else out


@pytest.mark.parametrize("method", ["auto", "direct"])
def test_a_chain_that_turns_out_not_to_be_one(method):
    policy, obs = Late().double(), torch.randn(20, 5, dtype=torch.float64)
    fisher = FisherVectorProduct(policy, obs, method=method)
    assert fisher.method == "direct"
    policy.clamp = True
    if method == "direct":
        with pytest.raises(ValueError, match="the policy's output is not that of its chain of layers"):
            fisher.refresh()
        return
    fisher.refresh()
    assert fisher.method == "func"
    v = torch.randn(fisher.shape[0], dtype=torch.float64)
    torch.testing.assert_close(fisher(v), FisherVectorProduct(policy, obs, method="double_backward")(v), **EXACT)


def test_a_chain_whose_output_is_changed_in_place_is_not_taken_for_one():
    class Scaled(Gaussian):
        def forward(self, obs):
            mean = self.net(obs)
            mean *= 5
            return mean, self.log_std

    torch.manual_seed(0)
    policy, obs, v = Scaled(chain((5, 8, 3)), 3), torch.randn(9, 5), torch.randn(78)
    fisher = FisherVectorProduct(policy, obs)
    assert fisher.method == "func"
    torch.testing.assert_close(fisher(v), FisherVectorProduct(policy, obs, method="double_backward")(v))


def test_a_refresh_that_fails_leaves_the_product_as_it_was():
    torch.manual_seed(0)
    policy, obs, v = chain((3, 16, 2)), torch.randn(8, 3), torch.randn(98)
    fisher = FisherVectorProduct(policy, obs, method="direct")
    before = fisher(v)
    for bad in (torch.randn(1000, 3).double(), torch.randn(8, 3, 1), torch.randn(8, 4)):
        with pytest.raises(ValueError, match="FisherVectorProduct: observations must have"):
            fisher.refresh(bad)
        assert torch.equal(fisher(v), before)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="not that of its chain"):
        fisher.refresh(torch.randn(1000, 3))
    assert torch.equal(fisher(v), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_product_is_that_of_the_last_refresh(dtype):
    torch.manual_seed(0)
    policy, obs = chain((3, 16, 2)).to(dtype), torch.randn(8, 3, dtype=dtype)
    fisher, v = FisherVectorProduct(policy, obs, method="direct"), torch.randn(98, dtype=dtype)
    before = fisher(v)
    with torch.no_grad():
        policy[2].weight.mul_(2)
        obs.mul_(2)
    assert torch.equal(fisher(v), before)


@pytest.mark.parametrize("level", ["1", "3"])
def test_simd_levels_and_threads(level):
    """The C++ kernel of small chains, by the code of lesser processors and by several threads."""
    code = """
import torch, fastrl
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(17, 64), nn.SiLU(), nn.Linear(64, 33), nn.ReLU(), nn.Linear(33, 6))
obs = torch.randn(9001, 17)
fisher = fastrl.FisherVectorProduct(net, obs, 0.1)
v = torch.randn(fisher.shape[0])
exact = fastrl.FisherVectorProduct(net.double(), obs.double(), 0.1, method="func")(v.double())
net.float()
one = fisher(v)
assert (one - exact).abs().max() <= 3e-6 * exact.abs().max()
for threads in (2, 3):
    fastrl.set_num_threads(threads)
    assert torch.equal(fisher(v), one)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "FASTRL_SIMD_LEVEL": level})


def test_some_parameters_only():
    policy = Gaussian(chain((5, 7, 6, 3)), 3).double()
    obs = torch.randn(9, 5, dtype=torch.float64)
    *chosen, _, _ = policy.parameters()
    n = sum(p.numel() for p in chosen)
    full = FisherVectorProduct(policy, obs, damping=0.0)
    v = torch.randn(full.shape[0], dtype=torch.float64)
    v[n:] = 0  # the last layer's
    for method in ("direct", "func"):
        part = FisherVectorProduct(policy, obs, damping=0.0, method=method, parameters=chosen)
        assert part.shape == (n, n)
        torch.testing.assert_close(part(v[:n]), full(v)[:n], **EXACT)


def test_masked_actions():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = chain((5, 7, 4))

        def forward(self, obs):
            return self.net(obs).masked_fill(torch.tensor([False, True, False, False]), -math.inf)

    policy, obs = Masked().double(), torch.randn(9, 5, dtype=torch.float64)
    fisher = FisherVectorProduct(policy, obs)
    assert fisher.method == "func"
    assert torch.isfinite(fisher(torch.randn(fisher.shape[0], dtype=torch.float64))).all()


def test_solves_are_exact_on_a_small_policy():
    torch.manual_seed(0)
    policy, obs = chain((5, 4, 3)).double(), torch.randn(50, 5, dtype=torch.float64)
    F, g = explicit_fisher(policy, obs), torch.randn(39, dtype=torch.float64)
    fisher = FisherVectorProduct(policy, obs, damping=0.1)
    x, info = conjugate_gradient(fisher, g, max_iter=80, rtol=1e-12)
    assert info.status == "converged"
    torch.testing.assert_close(
        x, torch.linalg.solve(F + 0.1 * torch.eye(39, dtype=torch.float64), g), rtol=1e-8, atol=1e-8
    )


FISHER_ERRORS = {
    "policy": (
        TypeError,
        "policy must be a torch.nn.Module, got int",
        lambda: FisherVectorProduct(3, torch.zeros(2, 5)),
    ),
    "observations": (
        TypeError,
        "observations must be a torch.Tensor, got list",
        lambda: FisherVectorProduct(chain((5, 4)), [1]),
    ),
    "no observations": (
        ValueError,
        "observations must have shape [B, ...] with B >= 1, got (0, 5)",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(0, 5)),
    ),
    "damping": (
        ValueError,
        "damping must be finite and >= 0, got -1.0",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(2, 5), -1.0),
    ),
    "method": (
        ValueError,
        "method must be one of auto, direct, func, double_backward, got 'fast'",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(2, 5), method="fast"),
    ),
    "distribution": (
        ValueError,
        "distribution must be one of auto, normal, categorical, got 'beta'",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(2, 5), distribution="beta"),
    ),
    "foreign parameter": (
        ValueError,
        "params[0] must be a parameter of the policy",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(2, 5), parameters=chain((5, 4)).parameters()),
    ),
    "not direct": (
        ValueError,
        'method "direct" needs a chain of Linear and Tanh, ReLU or SiLU layers, got Conv',
        lambda: FisherVectorProduct(Conv(), torch.zeros(2, 5), method="direct"),
    ),
    "normal wanted": (
        ValueError,
        "policy must give a pair (mean, log_std) for a normal distribution",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(2, 5), distribution="normal"),
    ),
    "v shape": (
        ValueError,
        "v must have shape (24,), got (23,)",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(2, 5))(torch.zeros(23)),
    ),
    "v dtype": (
        ValueError,
        "v must have dtype float32 like the parameters, got float64",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(2, 5))(torch.zeros(24).double()),
    ),
    "v kind": (
        TypeError,
        "v must be a torch.Tensor, got ndarray",
        lambda: FisherVectorProduct(chain((5, 4)), torch.zeros(2, 5))(np.zeros(24)),
    ),
    "frozen": (
        ValueError,
        "params must name at least one tensor that requires a gradient, got none",
        lambda: FisherVectorProduct(chain((5, 4)).requires_grad_(False), torch.zeros(2, 5)),
    ),
}


@pytest.mark.parametrize("name", FISHER_ERRORS)
def test_fisher_errors(name):
    kind, text, call = FISHER_ERRORS[name]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == f"FisherVectorProduct: {text}"


# ---- Hessian products --------------------------------------------------------------------------------------------


def test_hessian_of_a_quadratic():
    A = torch.randn(6, 6, dtype=torch.float64)
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    h = hessian_vector_product(0.5 * x @ A @ x, x)
    v = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(h(v), 0.5 * (A + A.T) @ v, **EXACT)
    torch.testing.assert_close(h.matvec(v), h @ v)


def test_hessian_of_a_network():
    net = chain((4, 6, 2), nn.SiLU).double()
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    params = dict(net.named_parameters())

    def loss(flat):
        parts = flat.split([p.numel() for p in params.values()])
        named = {k: part.view(p.shape) for (k, p), part in zip(params.items(), parts, strict=True)}
        return ((torch.func.functional_call(net, named, (x,)) - y) ** 2).mean()

    theta = parameters_to_vector(net.parameters()).detach()
    H = torch.autograd.functional.hessian(loss, theta)
    v = torch.randn(len(theta), dtype=torch.float64)
    product = hessian_vector_product(lambda: ((net(x) - y) ** 2).mean(), net)
    for _ in range(3):
        torch.testing.assert_close(product(v), H @ v, **EXACT)
    torch.testing.assert_close(
        hessian_vector_product(((net(x) - y) ** 2).mean(), list(net.parameters()), v), H @ v, **EXACT
    )


def test_hessian_of_what_does_not_bend():
    a, b = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    v = torch.randn(5)
    assert torch.equal(hessian_vector_product(3 * a.sum(), [a, b], v), torch.zeros(5))
    assert torch.equal(hessian_vector_product(torch.tensor(1.0), [a, b], v), torch.zeros(5))
    torch.testing.assert_close(hessian_vector_product((a**2).sum(), [a, b], v), torch.cat([2 * v[:3], torch.zeros(2)]))
    c = hessian_vector_product(a.sum() * b.sum(), [a, b], v)
    torch.testing.assert_close(c, torch.cat([v[3:].sum().expand(3), v[:3].sum().expand(2)]))


def test_hessian_in_conjugate_gradient():
    A = torch.randn(8, 8, dtype=torch.float64)
    A = A @ A.T + torch.eye(8)
    x = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    g = torch.randn(8, dtype=torch.float64)
    found, info = conjugate_gradient(hessian_vector_product(0.5 * x @ A @ x, x), g, max_iter=30, rtol=1e-12)
    assert info.status == "converged"
    torch.testing.assert_close(found, torch.linalg.solve(A, g), rtol=1e-8, atol=1e-8)


def test_hessian_errors():
    x = torch.randn(3, requires_grad=True)
    for call, kind, text in (
        (lambda: hessian_vector_product(x**2, x), ValueError, r"loss must have one element, got shape \(3,\)"),
        (lambda: hessian_vector_product(1.0, x), TypeError, "loss must be a torch.Tensor"),
        (lambda: hessian_vector_product(x.sum(), torch.zeros(3)), ValueError, r"params\[0\] must require a gradient"),
        (lambda: hessian_vector_product(x.sum(), [x, x]), ValueError, "params must not name a tensor twice"),
        (lambda: hessian_vector_product(x.sum(), []), ValueError, "at least one tensor"),
        (
            lambda: hessian_vector_product(x.sum(), x, torch.zeros(4)),
            ValueError,
            r"v must have shape \(3,\), got \(4,\)",
        ),
    ):
        with pytest.raises(kind, match=text):
            call()


# ---- natural gradient --------------------------------------------------------------------------------------------


def test_step_has_the_length_of_max_kl():
    torch.manual_seed(0)
    policy, obs = Gaussian(chain((5, 7, 3)), 3).double(), torch.randn(60, 5, dtype=torch.float64)
    fisher = FisherVectorProduct(policy, obs, damping=0.1)
    g = torch.randn(fisher.shape[0], dtype=torch.float64)
    for k in (1, 3, 10, 200):
        step, info = natural_gradient_step(fisher, g, max_kl=0.02, max_iter=k, rtol=1e-12)
        assert 0.5 * step @ fisher(step) == pytest.approx(0.02, rel=1e-8)
        x, _ = conjugate_gradient(fisher, g, max_iter=k, rtol=1e-12)
        torch.testing.assert_close(step, info.scale * x, rtol=1e-10, atol=1e-14)
        assert info.curvature == pytest.approx(float(x @ fisher(x)), rel=1e-8)
        assert g @ step > 0
    iterations, norm, status = info
    assert status == "converged" and iterations < 200 and norm < 1e-10


def test_step_takes_no_product_of_its_own():
    calls = []
    fisher = lambda v: calls.append(1) or torch.linspace(1, 50, 40) * v  # noqa: E731
    _, info = natural_gradient_step(fisher, torch.randn(40), max_kl=0.01, max_iter=7, rtol=0.0)
    assert len(calls) == info.iterations == 7


def test_kl_after_a_step():
    torch.manual_seed(0)
    policy, obs = chain((5, 8, 3)).double(), torch.randn(200, 5, dtype=torch.float64)
    old, F = detached(distribution(policy, obs)), FisherVectorProduct(policy, obs, damping=0.0)
    g = F(torch.randn(75, dtype=torch.float64))  # in the range of F, as the gradient of a surrogate is
    step, _ = natural_gradient_step(FisherVectorProduct(policy, obs, damping=1e-4), g, max_kl=1e-6, max_iter=60)
    vector_to_parameters(parameters_to_vector(policy.parameters()).detach() + step, policy.parameters())
    assert mean_kl(policy, obs, old).item() == pytest.approx(0.5 * (step @ F(step)).item(), rel=0.05)
    assert mean_kl(policy, obs, old).item() == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_no_square_root_of_what_is_not_positive(kind):
    """Peers take the root of x^T F x unguarded: NaN parameters (sb3-contrib #38)."""
    vector = (lambda *x: np.array(x)) if kind == "numpy" else (lambda *x: torch.tensor(x, dtype=torch.float64))
    g = vector(1.0, -2.0, 3.0)
    for product, status in (
        (lambda v: -v, "negative_curvature"),
        (lambda v: 0 * v, "negative_curvature"),
        (lambda v: v * math.nan, "breakdown"),
        (lambda v: v * math.inf, "breakdown"),
    ):
        step, info = natural_gradient_step(product, g, max_kl=0.01)
        assert (info.status, info.scale) == (status, 0.0)
        assert not np.asarray(step).any()
    step, info = natural_gradient_step(lambda v: v, 0 * g, max_kl=0.01)
    assert (info.status, info.scale) == ("converged", 0.0) and not np.asarray(step).any()
    step, info = natural_gradient_step(lambda v: v, g * math.nan, max_kl=0.01)
    assert info.status == "breakdown" and not np.asarray(step).any()
    step, info = natural_gradient_step(lambda v: 1e-320 * v, g * 1e-160, max_kl=0.01)
    assert np.isfinite(np.asarray(step)).all()


def test_breakdown_after_good_iterations_still_gives_a_right_step():
    calls, d = [], torch.linspace(1, 9, 6, dtype=torch.float64)

    def product(v):
        calls.append(1)
        return d * v * (math.nan if len(calls) == 4 else 1)

    step, info = natural_gradient_step(product, torch.ones(6, dtype=torch.float64), max_kl=0.01, rtol=0.0)
    assert (info.iterations, info.status) == (3, "breakdown")
    assert 0.5 * step @ (d * step) == pytest.approx(0.01, rel=1e-9)


def step_on_device(product, g, **options):
    """`natural_gradient_step` by the loop for GPUs with its torch reference, on CPU tensors."""
    o = {"max_iter": 10, "rtol": 1e-5, "atol": 0.0, "damping": 0.0} | options
    solve = (g, None, o["max_iter"], o["rtol"], o["atol"], o["damping"], None, None)
    x, info, r = cg._solve_on_device(cg.reference_cuda, product, *solve)
    return curvature._scaled_on_device(x, g - r, info, o["max_kl"])


@pytest.mark.parametrize("end", ["max_iter", "negative_curvature", "not finite", "overflow"])
@pytest.mark.parametrize("loop", ["host", "device", "cuda"])
def test_step_is_made_of_the_last_finished_iteration(loop, end):
    """Whatever the fourth product does, the step is that of three iterations, and takes no further product."""
    if loop == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    d, calls = torch.linspace(0.1, 0.9, 6), []
    g = torch.tensor([1.0, -2.0, 3.0, 1.0, 0.5, 0.1])
    if loop == "cuda":
        d, g = d.cuda(), g.cuda()

    def product(v):
        calls.append(1)
        z = d * v
        if len(calls) == 4 and end != "max_iter":
            across = torch.stack([v[1], -v[0], *(0 * v[2:])])  # which leaves v . z as it is
            ends = {
                "negative_curvature": -2 * z,
                "not finite": z * math.inf,
                "overflow": 3e38 / across.abs().max() * across,
            }
            return z + ends[end]
        return z

    step_of = step_on_device if loop == "device" else natural_gradient_step
    step, info = step_of(product, g, max_kl=0.01, rtol=0.0, max_iter=3 if end == "max_iter" else 4)
    status = end if end in ("max_iter", "negative_curvature") else "breakdown"
    assert (info.iterations, info.status) == (3, status)
    assert len(calls) == (3 if end == "max_iter" else 4)
    x, _ = conjugate_gradient(lambda v: d * v, g, max_iter=3, rtol=0.0)
    scale = math.sqrt(0.02 / (x.double() @ (d * x).double()))
    assert info.scale == pytest.approx(scale, rel=1e-5)
    torch.testing.assert_close(step, scale * x, rtol=1e-5, atol=0)


def test_natural_gradient_errors():
    g = torch.ones(3)
    for options, text in (
        ({"max_kl": 0.0}, "max_kl must be > 0, got 0.0"),
        ({"max_kl": -1.0}, "max_kl must be finite and >= 0, got -1.0"),
        ({"max_kl": 0.1, "max_iter": -1}, "max_iter must be >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=f"natural_gradient_step: {text}"):
            natural_gradient_step(lambda v: v, g, **options)


# ---- line search -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["numpy", "torch"])
def vector(request):
    if request.param == "numpy":
        return lambda *x: np.array(x, np.float64)
    return lambda *x: torch.tensor(x, dtype=torch.float64)


def bits(x):
    return np.asarray(x).tobytes()


def test_accepts_the_first_that_is_better_and_near(vector):
    """surrogate = x - x^2 from 0, kl = x^2 / 2: x = 1 is no better, 0.8 and 0.64 are too far, 0.512 fits."""
    seen = []

    def evaluate(x):
        seen.append(float(x[0]))
        return x[0] - x[0] ** 2, 0.5 * x[0] ** 2

    start = vector(0.0)
    found = line_search(evaluate, start, vector(1.0), expected_improvement=1.0, max_kl=0.14, backtrack=0.8)
    assert found.accepted and found.evaluations == 5
    np.testing.assert_allclose(seen, [0, 1, 0.8, 0.64, 0.512], rtol=1e-12)
    assert found.fraction == pytest.approx(0.512)
    assert found.kl == pytest.approx(0.131072) and found.improvement == pytest.approx(0.512 - 0.262144)
    np.testing.assert_allclose(np.asarray(found.params), [0.512])
    assert float(start[0]) == 0.0
    known = line_search(
        evaluate, start, vector(1.0), expected_improvement=1.0, max_kl=0.14, backtrack=0.8, surrogate=0.0
    )
    assert known[:4] == found[:4] and known.evaluations == 4


def test_none_accepted_leaves_every_bit(vector):
    """Also where evaluate writes to the vector it was given, as it does for a live view of a model."""
    live = vector(1.0, -0.0, 1e-310, 2.0)
    before = bits(live)

    def evaluate(x):
        if x is not live:
            live[:] = x
        return -1.0 if x is not live else 0.0, 0.0

    found = line_search(evaluate, live, vector(1.0, 1.0, 1.0, 1.0), expected_improvement=1.0, max_kl=1.0)
    assert not found.accepted and found.fraction == found.improvement == 0
    assert found.params is live and bits(live) == before
    assert found.evaluations == 12  # before, the whole step, ten shorter ones


def test_an_error_restores_the_parameters(vector):
    live = vector(1.0, 2.0)

    def evaluate(x):
        if x is live:
            return 0.0, 0.0
        live[:] = x
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        line_search(evaluate, live, vector(1.0, 1.0), expected_improvement=1.0, max_kl=1.0)
    np.testing.assert_array_equal(np.asarray(live), [1.0, 2.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["surrogate", "kl"])
def test_not_finite_is_refused(vector, bad, which):
    def evaluate(x):
        good = (float(x[0]), 0.0)
        if float(x[0]) < 0.7:
            return good
        return (bad, 0.0) if which == "surrogate" else (good[0], bad)

    found = line_search(evaluate, vector(0.0), vector(1.0), expected_improvement=1.0, max_kl=1.0)
    if which == "kl" and bad == -math.inf:
        assert found.accepted  # refused too: the first finite one is taken
    assert found.fraction == pytest.approx(0.64)
    always = line_search(lambda x: (bad, 0.0), vector(0.0), vector(1.0), expected_improvement=1.0, max_kl=1.0)
    assert not always.accepted


def test_expected_improvement_does_not_compound(vector):
    """skrl multiplies the expected improvement by the factor at every backtrack, and then by the factor's power again.

    Candidates are 1, 1/2, 1/4, 1/8; the improvement is 0.3 of the linear prediction at 1/8, and 0 above.
    """

    def evaluate(x):
        f = float(x[0])
        return (0.3 * f if f < 0.2 else 0.0), 0.0

    options = {"expected_improvement": 1.0, "max_kl": 1.0, "backtrack": 0.5}
    found = line_search(evaluate, vector(0.0), vector(1.0), accept_ratio=0.25, **options)
    assert found.accepted and found.fraction == 0.125
    # Compounded, the bar would be 0.9 / 8 / 8 and so on: any improvement would do.
    assert not line_search(evaluate, vector(0.0), vector(1.0), accept_ratio=0.9, **options).accepted


def test_zero_and_not_finite_steps(vector):
    calls = []

    def evaluate(x):
        calls.append(1)
        return 1.0, 0.0

    assert not line_search(evaluate, vector(1.0), vector(0.0), expected_improvement=0.0, max_kl=1.0).accepted
    calls.clear()
    found = line_search(evaluate, vector(1.0), vector(math.nan), expected_improvement=math.nan, max_kl=1.0)
    assert not found.accepted and len(calls) == 1


def test_accepted_live_parameters_stay(vector):
    live = vector(0.0)

    def evaluate(x):
        live[:] = x
        return live[0], 0.0

    found = line_search(evaluate, live, vector(1.0), expected_improvement=1.0, max_kl=1.0)
    assert found.accepted and float(live[0]) == 1.0


def test_line_search_errors(vector):
    x = vector(1.0)
    good = {"expected_improvement": 1.0, "max_kl": 1.0}
    for args, options, kind, text in (
        (([1.0], x), good, TypeError, "params_vector must be a numpy.ndarray or a torch.Tensor, got list"),
        ((x, [1.0]), good, TypeError, "step must be a .* like params_vector, got list"),
        ((x, vector(1.0, 2.0)), good, ValueError, r"must have one shape \[n\], got \(1,\) and \(2,\)"),
        ((x, x), {**good, "max_kl": -1.0}, ValueError, "max_kl must be finite and >= 0, got -1.0"),
        ((x, x), {**good, "backtrack": 1.0}, ValueError, r"backtrack must be in \(0, 1\), got 1.0"),
        ((x, x), {**good, "max_backtracks": -1}, ValueError, "max_backtracks must be >= 0, got -1"),
        ((x, x), {**good, "accept_ratio": math.nan}, ValueError, "accept_ratio must be finite and >= 0, got nan"),
    ):
        with pytest.raises(kind, match=text):
            line_search(lambda p: (0.0, 0.0), *args, **options)


def test_line_search_of_read_only_parameters():
    params = np.zeros(2)
    params.flags.writeable = False
    found = line_search(lambda p: (-1.0, 0.0), params, np.ones(2), expected_improvement=1.0, max_kl=1.0, surrogate=0.0)
    assert not found.accepted and found.params is params
    for wrong, error in (("1", TypeError), (math.nan, ValueError)):
        with pytest.raises(error, match="line_search: expected_improvement must be"):
            line_search(
                lambda p: (1.0, 0.0), params, np.ones(2), expected_improvement=wrong, max_kl=1.0, accept_ratio=0.1
            )
    with pytest.raises(ValueError, match="params_vector must have dtype float32 or float64, got int64"):
        line_search(
            lambda p: (1.0, 0.0), np.zeros(2, np.int64), np.ones(2, np.int64), expected_improvement=1.0, max_kl=1.0
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
    "make", [lambda: chain((5, 16, 4)), lambda: chain((5, 200, 4)), Conv], ids=["C++", "wide", "func"]
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
