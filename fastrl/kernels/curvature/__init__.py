"""Products with the Hessian of a loss and with a policy's Fisher matrix, and the natural gradient step made of them.

Parameters are one flat vector [n]: those given, in their order, each row-major.  Needs torch; importing this does not,
nor do the products of a `fastrl.MLP` in `mlp.py`.
"""

from __future__ import annotations

from fastrl.kernels.curvature.fisher import FisherVectorProduct
from fastrl.kernels.curvature.hessian import HessianVectorProduct, hessian_vector_product
from fastrl.kernels.curvature.natural_gradient import (
    LineSearchResult,
    NaturalGradientInfo,
    line_search,
    natural_gradient_step,
)

__all__ = [
    "FisherVectorProduct",
    "HessianVectorProduct",
    "LineSearchResult",
    "NaturalGradientInfo",
    "hessian_vector_product",
    "line_search",
    "natural_gradient_step",
]
