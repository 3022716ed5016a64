"""Bad input of the Fisher products, and products with a Hessian."""

import importlib

import numpy as np
import pytest
from torch import nn
from torch.nn.utils import parameters_to_vector

from fastrl import (
    FisherVectorProduct,
    conjugate_gradient,
    hessian_vector_product,
)

from .helpers import EXACT, Conv, chain

torch = pytest.importorskip("torch", reason="torch is not installed")
cg, cg_torch, natural_gradient = (
    importlib.import_module(f"fastrl.kernels.{name}")
    for name in ("conjugate_gradient.solve", "conjugate_gradient._torch", "curvature.natural_gradient")
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
