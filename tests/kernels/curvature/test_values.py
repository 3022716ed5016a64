"""Products with a policy's Fisher matrix and with a Hessian: exact matrices, threads, levels."""

import importlib
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fastrl import (
    FisherVectorProduct,
    conjugate_gradient,
)

from .helpers import EXACT, Conv, Gaussian, chain, detached, distribution, mean_kl

torch = pytest.importorskip("torch", reason="torch is not installed")
cg, cg_torch, natural_gradient = (
    importlib.import_module(f"fastrl.kernels.{name}")
    for name in ("conjugate_gradient.solve", "conjugate_gradient._torch", "curvature.natural_gradient")
)


class StateDependent(nn.Module):
    """Mean and log_std [B, A] from a shared torso, with LayerNorm."""

    def __init__(self):
        super().__init__()
        self.torso = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh())
        self.mean, self.log_std = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, obs):
        h = self.torso(obs)
        return self.mean(h), self.log_std(h) - 1


def package_policy(discrete):
    """A torch view of an agent's policy."""
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    from fastrl import MLP
    from fastrl.agents.torch_networks import Gaussian as AgentGaussian

    net = MLP((5, 7, 6, 4 if discrete else 3), "tanh", seed=1).to_torch()
    return net if discrete else AgentGaussian(net, torch.full((3,), -0.3))


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
