"""Conjugate gradient, and Fisher products of a policy."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrl
from fastrl.bench.timing import OURS, Call, Kernel, Problem, close, library


def _conjugate_gradient(n: int, iterations: int) -> Problem:
    """A given number of iterations, far from the solution; the products with the matrix are the same for all."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    matrix = (q * np.geomspace(1, 1e4, n)) @ q.T
    b = rng.standard_normal(n)

    def loop() -> Any:
        x, r, p, rr = np.zeros(n), b.copy(), b.copy(), b @ b
        for _ in range(iterations):
            z = matrix @ p
            step = rr / (p @ z)
            x += step * p
            r -= step * z
            rr, before = r @ r, rr
            p = r + rr / before * p
        return (x,)

    def scipy() -> Call:
        linalg = library("scipy.sparse.linalg")
        operator = linalg.aslinearoperator(matrix)
        return lambda: linalg.cg(operator, b, rtol=0.0, maxiter=iterations)[:1]

    (exact,) = loop()
    return Problem(
        {
            OURS: lambda: lambda: fastrl.conjugate_gradient(lambda p: matrix @ p, b, max_iter=iterations, rtol=0.0)[:1],
            "reference: NumPy": lambda: loop,
            "SciPy": scipy,
        },
        lambda found: close(found, [exact]),
    )


def _fisher_product(batch: int, hidden: int) -> Problem:
    """(F + 0.1 I) v for the 17-hidden-hidden-6 Gaussian policy of HalfCheetah."""
    torch = library("torch")
    nn = torch.nn

    class Policy(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(17, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 6)
            )
            self.log_std = nn.Parameter(torch.zeros(6))

        def forward(self, obs: Any) -> Any:
            return self.net(obs), self.log_std

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy, obs = Policy(), torch.randn(batch, 17)
        v = torch.randn(sum(p.numel() for p in policy.parameters()))
    parameters = list(policy.parameters())

    def double_backward(policy: Any = policy, obs: Any = obs, v: Any = v) -> Call:
        """The Hessian of the mean KL, its graph kept."""
        parameters = list(policy.parameters())
        mean, log_std = policy(obs)
        distance = (mean - mean.detach()) / log_std.exp()
        kl = log_std - log_std.detach() + 0.5 * ((2 * (log_std.detach() - log_std)).exp() + distance**2)
        gradient = torch.autograd.grad(kl.sum(1).mean(), parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in gradient])

        def call() -> Any:
            product = torch.autograd.grad(flat, parameters, v, retain_graph=True)
            return (torch.cat([g.flatten() for g in product]) + 0.1 * v,)

        return call

    def functional() -> Call:  # J^T M J v: one jvp and one vjp
        names = [name for name, _ in policy.named_parameters()]
        shapes = [p.shape for p in parameters]
        flat = torch.cat([p.detach().flatten() for p in parameters])

        def mean(theta: Any) -> Any:
            parts = theta.split([s.numel() for s in shapes])
            given = {name: x.view(s) for name, x, s in zip(names, parts, shapes, strict=True)}
            return torch.func.functional_call(policy, given, (obs,))[0]

        _, vjp = torch.func.vjp(mean, flat)
        position = sum(p.numel() for p in parameters[: names.index("log_std")])

        def call() -> Any:
            _, tangent = torch.func.jvp(mean, (flat,), (v,))
            product = vjp(tangent * torch.exp(-2 * policy.log_std.detach()) / batch)[0] + 0.1 * v
            product[position : position + 6] += 2 * v[position : position + 6]
            return (product,)

        return call

    def ours() -> Call:
        fisher = fastrl.FisherVectorProduct(policy, obs, damping=0.1)
        return lambda: (fisher(v).clone(),)

    (exact,) = double_backward()()
    return Problem(
        {OURS: ours, "reference: torch": double_backward, "torch.func": functional},
        lambda found: close(found, [exact.detach().numpy()]),
    )


KERNELS = {
    "conjugate_gradient": Kernel(
        _conjugate_gradient, [{"n": 100, "iterations": 10}, {"n": 500, "iterations": 10}], {"n": 20, "iterations": 5}
    ),
    "fisher_product": Kernel(
        _fisher_product, [{"batch": 1000, "hidden": 64}, {"batch": 2048, "hidden": 64}], {"batch": 32, "hidden": 8}
    ),
}
