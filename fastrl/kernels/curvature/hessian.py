"""Products with the Hessian of a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.curvature.parameters import Parameters, import_torch

if TYPE_CHECKING:
    from torch import Tensor


class HessianVectorProduct:
    """What `hessian_vector_product` makes: h(v) = H v, from a graph that is built once."""

    def __init__(self, loss: Any, params: Any, op: str = "hessian_vector_product") -> None:
        torch = import_torch()
        self._parameters = Parameters(params, op)
        if callable(loss) and not isinstance(loss, torch.Tensor):
            with torch.enable_grad():
                loss = loss()
        if not isinstance(loss, torch.Tensor):
            raise TypeError(
                f"{op}: loss must be a torch.Tensor, or a callable that gives one, got {type(loss).__name__}"
            )
        if loss.numel() != 1:
            raise ValueError(f"{op}: loss must have one element, got shape {tuple(loss.shape)}")
        tensors = self._parameters.tensors
        gradients: Any = (None,) * len(tensors)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss.reshape(()), tensors, create_graph=True, allow_unused=True)
        # A gradient that does not depend on any parameter (of a linear loss) adds nothing.
        self._gradients = [g if g is not None and g.requires_grad else None for g in gradients]

    @property
    def shape(self) -> tuple[int, int]:
        return self._parameters.n, self._parameters.n

    def __call__(self, v: Tensor) -> Tensor:
        torch = _arrays.torch()
        parameters = self._parameters
        parts = parameters.split(parameters.check(v))
        used = [(g, part) for g, part in zip(self._gradients, parts, strict=True) if g is not None]
        if not used:
            zeros: Tensor = torch.zeros_like(v)
            return zeros
        products = torch.autograd.grad(
            [g for g, _ in used], parameters.tensors, [part for _, part in used], retain_graph=True, allow_unused=True
        )
        flat: Tensor = parameters.join(products)
        return flat

    matvec = __matmul__ = __call__


def hessian_vector_product(loss: Any, params: Any, v: Tensor | None = None) -> Any:
    """Products with the Hessian of a scalar loss (Pearlmutter 1994).

    (H v)_i = sum_j (d^2 loss / d theta_i d theta_j) v_j,  i, j = 0 .. n-1

    The gradient's graph is built once; each product is one backward pass through it.

    Args:
        loss: a tensor of one element with a graph to the parameters, or a callable that computes it.
        params: a tensor, several, or a module (those of its parameters that require gradients).
        v: a vector [n] over the parameters, of their dtype and device.

    Returns:
        The operator h: h(v) is H v [n]; or H v itself where `v` is given.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value.

    >>> import torch, fastrl
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> fastrl.hessian_vector_product((x**3).sum(), x, torch.ones(2))
    tensor([ 6., 12.])
    """
    product = HessianVectorProduct(loss, params)
    return product if v is None else product(v)
