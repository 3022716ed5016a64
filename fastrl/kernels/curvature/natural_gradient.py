"""The step along the natural gradient, and how far to go."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.conjugate_gradient.solve import CGInfo, check_max_iter, check_number, deferred_read, solve

if TYPE_CHECKING:
    from torch import Tensor


class NaturalGradientInfo(CGInfo):
    """The solve's `iterations`, `residual_norm` and `status`, and the step's `curvature` and `scale`.

    curvature = x^T A x of the solution x of A x = gradient; step = scale x.  `scale` is 0 where there is no step: the
    gradient is zero, or the curvature is not a positive finite number (the status then says "breakdown", if it did not
    say "negative_curvature").
    """

    __slots__ = ("_read_scale", "_scale")

    def __init__(self, info: CGInfo, read_scale: Callable[[], tuple[float, float, bool]]) -> None:
        self._read_scale, self._scale = read_scale, (math.nan, math.nan)
        self._values = None

        def read() -> tuple[int, float, str]:
            curvature, scale, zero = read_scale()
            self._scale = curvature, scale
            status = info.status
            if scale == 0 and not zero and status in ("converged", "max_iter"):
                status = "breakdown"
            return info.iterations, info.residual_norm, status

        self._read = read

    @property
    def curvature(self) -> float:
        self._get()
        return self._scale[0]

    @property
    def scale(self) -> float:
        self._get()
        return self._scale[1]

    def __repr__(self) -> str:
        return f"NaturalGradientInfo({super().__repr__()[7:-1]}, curvature={self.curvature!r}, scale={self.scale!r})"


def natural_gradient_step(
    fisher: Any,
    gradient: Tensor,
    *,
    max_kl: float,
    max_iter: int = 10,
    rtol: float = 1e-5,
    atol: float = 0.0,
    damping: float = 0.0,
    preconditioner: Any = None,
) -> tuple[Tensor, NaturalGradientInfo]:
    """The step along the natural gradient whose predicted mean KL is `max_kl` (Schulman et al. 2015, appendix C).

    x = A^-1 gradient by `conjugate_gradient`, A = `fisher` + damping I ;  step = sqrt(2 max_kl / x^T A x) x

    x^T A x is x . (gradient - r), r the solve's residual, so that the step takes no product of its own.  However the
    solve ended ("max_iter", "negative_curvature" and "breakdown" too), x and r are those of the last finished
    iteration, and the step is made of them.  Where x^T A x is not a positive finite number, or the step would not be
    finite, the step is zero and `info.scale` is 0: so if no iteration was finished.

    Args:
        fisher: v -> A v, as `conjugate_gradient` takes it: a `FisherVectorProduct`, whose damping is in A already.
        gradient: of what is to be made larger, float32 or float64 [n], torch (or NumPy).
        max_kl: > 0.
        max_iter, rtol, atol, damping, preconditioner: as in `conjugate_gradient`.

    Returns:
        step [n], like the gradient, and how the solve ended (`NaturalGradientInfo`).

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value.
    """
    op = "natural_gradient_step"
    max_kl = check_number(max_kl, f"{op}: max_kl")
    if max_kl == 0:
        raise ValueError(f"{op}: max_kl must be > 0, got 0.0")
    x, info, r = solve(fisher, gradient, None, max_iter, rtol, atol, damping, preconditioner, op=op)
    if getattr(gradient, "is_cuda", False):
        return _scaled_on_device(x, gradient.detach() - r, info, max_kl)
    as_array = _arrays.load(x, op)
    double = as_array.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        product = _arrays.load(gradient, op).astype(np.float64) - _arrays.load(r, op)
        curvature = float(np.dot(double, product))
        scale = math.sqrt(2 * max_kl / curvature) if 0 < curvature < math.inf else 0.0
        limit = float(np.finfo(as_array.dtype).max)
        largest = float(np.abs(double).max(initial=0.0)) * scale
        if not largest <= limit:
            scale = 0.0
        step = _arrays.like((double * scale).astype(as_array.dtype), gradient)
    is_zero = not as_array.any() and info.status == "converged"
    return step, NaturalGradientInfo(info, lambda: (curvature, scale, is_zero))


def _scaled_on_device(x: Any, product: Any, info: CGInfo, max_kl: float) -> tuple[Any, NaturalGradientInfo]:
    """The same without a look at the numbers."""
    torch = _arrays.torch()
    double = x.double()
    curvature = double.dot(product.double())
    scale = torch.sqrt(2 * max_kl / curvature)
    step = (double * scale).to(x.dtype)
    usable = (curvature > 0) & torch.isfinite(scale) & torch.isfinite(step).all()
    step = torch.where(usable, step, 0.0)
    read_numbers = deferred_read(torch.stack([curvature, torch.where(usable, scale, 0.0), double.abs().sum()]))

    def read() -> tuple[float, float, bool]:
        c, s, size = read_numbers()
        return c, s, size == 0 and info.status == "converged"

    return step, NaturalGradientInfo(info, read)


class LineSearchResult(NamedTuple):
    """`params` are the accepted parameters, or those of before; `fraction` of the step (0 if none was accepted)."""

    accepted: bool
    kl: float
    improvement: float
    fraction: float
    params: Any
    evaluations: int


def line_search(
    evaluate: Callable[[Any], tuple[Any, Any]],
    params_vector: Any,
    step: Any,
    *,
    expected_improvement: float,
    max_kl: float,
    max_backtracks: int = 10,
    backtrack: float = 0.8,
    accept_ratio: float = 0.0,
    surrogate: float | None = None,
) -> LineSearchResult:
    """The first of params + backtrack^i step, i = 0 .. max_backtracks, that is better and within the KL bound.

    Accepted is the first whose surrogate is larger than before, by at least
    accept_ratio backtrack^i expected_improvement, and whose kl <= max_kl. (The expected improvement of candidate i is
    always backtrack^i times the whole step's: it does not compound.)  A candidate whose surrogate or KL is not finite
    is refused.  If none is accepted, `params_vector` has the bits it had before, even if `evaluate` wrote to it, and
    also if `evaluate` raises.

    Args:
        evaluate: parameters [n] -> (surrogate, kl), to be made larger, and bounded; numbers or tensors of one element.
            It is called with a new vector each time, and with `params_vector` first, unless `surrogate` is given.
        params_vector: where to start [n], NumPy or torch.  Only `evaluate` writes to it, if at all.
        step: [n], of the same kind, device and dtype.
        expected_improvement: of the surrogate by the whole step, to first order: gradient . step.
        max_kl: the bound, >= 0.
        max_backtracks: how often the step is made shorter.
        backtrack: by which factor, in (0, 1).
        accept_ratio: the share of the expected improvement that is enough, >= 0.
        surrogate: its value at `params_vector`, if it is known.

    Returns:
        `LineSearchResult`: accepted, kl, improvement, fraction, params, evaluations.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value.
    """
    op = "line_search"
    is_tensor = _arrays.is_tensor(params_vector)
    if not is_tensor and not isinstance(params_vector, np.ndarray):
        raise TypeError(
            f"{op}: params_vector must be a numpy.ndarray or a torch.Tensor, got {type(params_vector).__name__}"
        )
    if _arrays.kind_name(step) != _arrays.kind_name(params_vector):
        raise TypeError(
            f"{op}: step must be a {_arrays.kind_name(params_vector)} like params_vector, got {type(step).__name__}"
        )
    if params_vector.ndim != 1 or tuple(step.shape) != tuple(params_vector.shape):
        raise ValueError(
            f"{op}: params_vector and step must have one shape [n], got {tuple(params_vector.shape)} and "
            f"{tuple(step.shape)}"
        )
    if step.dtype != params_vector.dtype:
        raise ValueError(
            f"{op}: step must have dtype {_arrays.dtype_name(params_vector)} like params_vector, "
            f"got {_arrays.dtype_name(step)}"
        )
    if _arrays.dtype_name(params_vector) not in ("float32", "float64"):
        raise ValueError(
            f"{op}: params_vector must have dtype float32 or float64, got {_arrays.dtype_name(params_vector)}"
        )
    max_kl = check_number(max_kl, f"{op}: max_kl")
    accept_ratio = check_number(accept_ratio, f"{op}: accept_ratio")
    max_backtracks = check_max_iter(max_backtracks, f"{op}: max_backtracks")
    backtrack = check_number(backtrack, f"{op}: backtrack")
    if not 0 < backtrack < 1:
        raise ValueError(f"{op}: backtrack must be in (0, 1), got {backtrack!r}")
    if not (_arrays.is_number(expected_improvement) or getattr(expected_improvement, "ndim", 1) == 0):
        raise TypeError(f"{op}: expected_improvement must be a number, got {type(expected_improvement).__name__}")
    expected = _number(expected_improvement)
    if accept_ratio and not math.isfinite(expected):
        raise ValueError(f"{op}: expected_improvement must be finite, got {expected!r}")
    start = params_vector.detach() if is_tensor else params_vector
    before = start.clone() if is_tensor else start.copy()
    direction = step.detach() if is_tensor else step
    evaluations = 0
    accepted = False
    try:
        if surrogate is None:
            surrogate = _number(evaluate(params_vector)[0])
            evaluations = 1
        first = float(surrogate)
        for i in range(max_backtracks + 1 if _all_finite(direction) else 0):
            fraction = backtrack**i
            with np.errstate(all="ignore"):
                candidate = before + fraction * direction
            value, kl = map(_number, evaluate(candidate))
            evaluations += 1
            improvement = value - first
            enough = improvement > 0 and (not accept_ratio or improvement >= accept_ratio * fraction * expected)
            # A difference of two infinities or a NaN compares as False.
            if enough and math.isfinite(improvement) and math.isfinite(kl) and kl <= max_kl:
                accepted = True
                return LineSearchResult(True, kl, improvement, fraction, candidate, evaluations)
        return LineSearchResult(False, 0.0, 0.0, 0.0, params_vector, evaluations)
    finally:
        if not accepted:
            if is_tensor:
                start.copy_(before)
            elif start.tobytes() != before.tobytes():  # it may be read-only
                start[...] = before


def _number(x: Any) -> float:
    return float(x.detach() if hasattr(x, "detach") else x)


def _all_finite(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        return bool(np.isfinite(x).all())
    return bool(_arrays.torch().isfinite(x).all())
