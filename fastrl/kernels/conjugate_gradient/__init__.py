"""Conjugate gradient for (A + damping I) x = b, where A is known by its products alone (Hestenes & Stiefel 1952).

The vector work of an iteration is fused into three passes, one call on CPU; dots are float64 sums.
On a GPU the step lengths and the stop test stay in device memory: nothing is read back, iterations after the last one
are no-ops, and so the whole solve can be captured in a CUDA graph if the products can.
"""

from __future__ import annotations

from typing import Any

from fastrl.kernels._core.arrays import A
from fastrl.kernels.conjugate_gradient import reference
from fastrl.kernels.conjugate_gradient.solve import CGInfo, solve


def conjugate_gradient(
    matvec: Any,
    b: A,
    *,
    x0: A | None = None,
    max_iter: int = 10,
    rtol: float = 1e-5,
    atol: float = 0.0,
    damping: float = 0.0,
    preconditioner: Any = None,
) -> tuple[A, CGInfo]:
    """Solve (A + damping I) x = b for a symmetric positive definite A + damping I.

    r_0 = b - (A + damping I) x_0, y = M^-1 r, p_0 = y_0; for k = 0 .. max_iter - 1, with z = A p_k + damping p_k:
    alpha = (r_k . y_k) / (p_k . z) ; x_{k+1} = x_k + alpha p_k ; r_{k+1} = r_k - alpha z
    beta = (r_{k+1} . y_{k+1}) / (r_k . y_k) ; p_{k+1} = y_{k+1} + beta p_k
    until ||r_{k+1}|| <= max(rtol ||b||, atol).  Dots are summed in float64, in an order that no thread count changes.

    Whatever A is, x is finite.  `status` of the result says how the solve ended:

    - "converged";
    - "max_iter": the iterations are used up;
    - "negative_curvature": p . z <= 0 was met, so A + damping I is not positive definite (or p is in its null space):
      x is that of the iteration before;
    - "breakdown": a number that is not finite was met, or a preconditioner that is not positive definite: likewise;
      or the solution is beyond the dtype of b: then x is the start.

    b = 0 gives x = 0.  No gradient flows through a solve.

    Args:
        matvec: p -> A p, called once an iteration: a callable, or an object with `matvec` (SciPy's LinearOperator) or
            `@` (a matrix).  p [n] is like b; its memory is used again, so that what is kept must be copied.
        b: float32 or float64 [n], NumPy or torch.
        x0: where to start [n], of the same kind, device and dtype; None: 0, which saves a product.
        max_iter: at most so many iterations.
        rtol, atol: when to stop.
        damping: added to the diagonal of A.
        preconditioner: an approximation M^-1 of the inverse: r -> M^-1 r as `matvec` is given, or, for a diagonal M,
            the array [n] of the inverses, of the same kind, device and dtype as b.  It must be symmetric positive
            definite.

    Returns:
        x [n], like b, and a `CGInfo`.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value, also of what `matvec` returns.

    >>> import numpy as np, fastrl
    >>> A = np.array([[4.0, 1.0], [1.0, 3.0]])
    >>> x, info = fastrl.conjugate_gradient(A, np.array([1.0, 2.0]))
    >>> np.allclose(A @ x, [1, 2]), info.iterations, info.status
    (True, 2, 'converged')
    """
    x, info, _ = solve(matvec, b, x0, max_iter, rtol, atol, damping, preconditioner)
    return x, info


def conjugate_gradient_reference(
    matvec: Any,
    b: A,
    *,
    x0: A | None = None,
    max_iter: int = 10,
    rtol: float = 1e-5,
    atol: float = 0.0,
    damping: float = 0.0,
    preconditioner: Any = None,
) -> tuple[A, CGInfo]:
    """`conjugate_gradient` with its vector work in plain NumPy (torch for a CUDA tensor)."""
    kernels: Any = reference
    if getattr(b, "is_cuda", False):
        from fastrl.kernels.conjugate_gradient._torch import fallback as kernels
    x, info, _ = solve(matvec, b, x0, max_iter, rtol, atol, damping, preconditioner, kernels)
    return x, info


__all__ = ["CGInfo", "conjugate_gradient", "conjugate_gradient_reference"]
