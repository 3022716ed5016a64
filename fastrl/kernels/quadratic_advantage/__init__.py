"""The advantage of normalized advantage functions (Gu et al. 2016, arXiv:1603.00748): a parabola over the actions.

    A(a) = -1/2 (a - mean)^T L L^T (a - mean) <= 0

L is lower triangular with a positive diagonal, so that A is 0 at a = mean and below everywhere else.  Inside,
everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.arrays import A
from fastrl.kernels._core.backends import choose
from fastrl.kernels.quadratic_advantage import reference

backend = choose(__package__)


def quadratic_advantage(mean: A, cholesky: A, action: A) -> A:
    """-1/2 |L_b^T (action_b - mean_b)|^2 for each row b = 0 .. B-1.

    u_bj = sum_{i >= j} L_bij d_bi,  d = action - mean,  result_b = -1/2 sum_j u_bj^2,  i, j = 0 .. A-1

    L_bij with j <= i is entry i (i + 1) / 2 + j of cholesky_b (row after row of the lower triangle), and on the
    diagonal e to its power.

    Gradients with respect to all three; second ones raise.  With g that of the result: d mean_bi = g_b sum_j L_bij
    u_bj, d action = - d mean, d L_bij = - g_b u_bj d_bi, times L_bii for a diagonal entry.

    Args:
        mean: float32 or float64 [B, A], A >= 1, any strides, NumPy or torch; bfloat16 and float16 too.
        cholesky: [B, A (A + 1) / 2], of the same kind, device and dtype.
        action: [B, A], of the same kind, device and dtype.

    Returns:
        [B], of the kind, device and dtype of `mean`; -inf where it is beyond the dtype.

    Raises:
        TypeError, ValueError: a wrong kind, dtype or shape.

    Source: Gu et al. 2016, arXiv:1603.00748, section 4.

    >>> import numpy as np, fastrl
    >>> zero, action = np.zeros((1, 2)), np.array([[1.0, 2.0]])
    >>> fastrl.quadratic_advantage(zero, np.array([[0.0, 0.5, 0.0]]), action)  # L = [[1, 0], [0.5, 1]]
    array([-4.])
    """
    if _arrays.is_half(mean):
        value = quadratic_advantage(*map(_arrays.to_float32, (mean, cholesky, action)))
        return _arrays.to_half(value, mean)  # type: ignore[no-any-return]
    if _arrays.is_compiling():
        from fastrl.kernels.quadratic_advantage import _torch

        return _torch.quadratic_advantage(mean, cholesky, action)  # type: ignore[no-any-return]
    if _arrays.wants_grad(mean, cholesky, action):
        from fastrl.kernels.quadratic_advantage import _torch

        result: A = _torch.quadratic_advantage_autograd(mean, cholesky, action)
    else:
        result = backend.of(mean).quadratic_advantage(mean, cholesky, action)
    return result


def quadratic_advantage_pullback(
    mean: Any, cholesky: Any, action: Any
) -> tuple[Any, Callable[[Any], tuple[Any, Any, Any]]]:
    """`quadratic_advantage` without autograd: the values, and how gradients go back through them.

    The second result maps the gradient [B] of a loss for the values to those for mean, cholesky and action.  Arguments,
    values and errors are those of `quadratic_advantage`; nothing is recorded.

    >>> import numpy as np, fastrl
    >>> value, pullback = fastrl.quadratic_advantage_pullback(np.zeros((1, 1)), np.zeros((1, 1)), np.full((1, 1), 3.0))
    >>> value, pullback(np.ones(1))
    (array([-4.5]), (array([[3.]]), array([[-9.]]), array([[-3.]])))
    """
    kernels = backend.of(mean)

    def pullback(grad: Any) -> tuple[Any, Any, Any]:
        g_mean, g_cholesky = kernels.quadratic_advantage_backward(mean, cholesky, action, grad)
        return g_mean, g_cholesky, -g_mean

    return kernels.quadratic_advantage(mean, cholesky, action), pullback


def quadratic_advantage_reference(mean: A, cholesky: A, action: A) -> A:
    """`quadratic_advantage` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    result: A = reference.quadratic_advantage(mean, cholesky, action)
    return result
