"""Conjugate gradient for (A + damping I) x = b, where A is known by its products alone (Hestenes & Stiefel 1952).

The vector work of an iteration is fused into three passes, one call on CPU; dots are float64 sums.
On a GPU the step lengths and the stop test stay in device memory: nothing is read back, iterations after the last one
are no-ops, and so the whole solve can be captured in a CUDA graph if the products can.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastrl import _backend
from fastrl.kernels import _arrays, _heads

_OP = "conjugate_gradient"
_FLOATS = ("float32", "float64")

# What a step says; a solve that is still running when its iterations are used up ends with MAX_ITER.
RUNNING, CONVERGED, MAX_ITER, NEGATIVE_CURVATURE, BREAKDOWN = range(5)
STATUS = ("running", "converged", "max_iter", "negative_curvature", "breakdown")

# The float64 state of a solve on a GPU: status, finished iterations, r.r, r.y, the square of the residual norm to
# reach, and what the CUDA kernels tell each other: alpha, beta, and whether the latest step was good.
S_STATUS, S_ITERATIONS, S_RR, S_RZ, S_TARGET, S_ALPHA, S_BETA, S_GOOD = range(8)
SCRATCH = 3 * 512 + 1  # float64 numbers in which the CUDA kernels keep partial sums


class CGInfo:
    """How a solve ended: `iterations` (finished ones), `residual_norm` and `status`; unpacks as the three.

    `residual_norm` is ||r||, r = b - (A + damping I) x as the recurrence carries it.  After a solve on a GPU the first
    look at any of the three waits for the device.
    """

    __slots__ = ("_read", "_values")

    def __init__(self, iterations: int, residual_norm: float, status: str) -> None:
        self._values: tuple[int, float, str] | None = (iterations, residual_norm, status)
        self._read: Callable[[], tuple[int, float, str]] | None = None

    @classmethod
    def deferred(cls, read: Callable[[], tuple[int, float, str]]) -> CGInfo:
        """The values come from `read`, called at the first look."""
        info = cls.__new__(cls)
        info._values, info._read = None, read
        return info

    def _get(self) -> tuple[int, float, str]:
        if self._values is None:
            assert self._read is not None
            self._values, self._read = self._read(), None
        return self._values

    @property
    def iterations(self) -> int:
        return self._get()[0]

    @property
    def residual_norm(self) -> float:
        return self._get()[1]

    @property
    def status(self) -> str:
        """ "converged", "max_iter", "negative_curvature" or "breakdown"."""
        return self._get()[2]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._get())

    def __repr__(self) -> str:
        iterations, norm, status = self._get()
        return f"CGInfo(iterations={iterations}, residual_norm={norm!r}, status={status!r})"


def conjugate_gradient(
    matvec: Any,
    b: Any,
    *,
    x0: Any = None,
    max_iter: int = 10,
    rtol: float = 1e-5,
    atol: float = 0.0,
    damping: float = 0.0,
    preconditioner: Any = None,
) -> tuple[Any, CGInfo]:
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
    b: Any,
    *,
    x0: Any = None,
    max_iter: int = 10,
    rtol: float = 1e-5,
    atol: float = 0.0,
    damping: float = 0.0,
    preconditioner: Any = None,
) -> tuple[Any, CGInfo]:
    """`conjugate_gradient` with its vector work in plain NumPy (torch for a CUDA tensor)."""
    kernels = reference_cuda if getattr(b, "is_cuda", False) else reference
    x, info, _ = solve(matvec, b, x0, max_iter, rtol, atol, damping, preconditioner, kernels)
    return x, info


# ---- arguments ---------------------------------------------------------------------------------------------------


def _operator(obj: Any, name: str, op: str) -> Callable[[Any], Any]:
    """`obj`, a callable, or an object with `matvec` or `@`, as a function of a vector."""
    method = getattr(obj, "matvec", None)
    if callable(method):
        return method  # type: ignore[no-any-return]
    if callable(obj):
        return obj  # type: ignore[no-any-return]
    if hasattr(type(obj), "__matmul__"):
        return obj.__matmul__  # type: ignore[no-any-return]
    raise TypeError(f"{op}: {name} must be callable, or have matvec or @, got {type(obj).__name__}")


def check_number(value: Any, where: str, low: float = 0.0) -> float:
    if not _arrays.is_number(value):
        raise TypeError(f"{where} must be a number, got {type(value).__name__}")
    number = _arrays.to_float(value)
    if not low <= number < math.inf:
        raise ValueError(f"{where} must be finite and >= {low:g}, got {value!r}")
    return number


def check_max_iter(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{where} must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{where} must be >= 0, got {value}")
    return int(value)


def _load_b(b: Any, op: str) -> tuple[Any, bool]:
    """The right-hand side, detached, and whether it is on a GPU."""
    is_tensor = _arrays.is_tensor(b)
    if not is_tensor and not isinstance(b, np.ndarray):
        raise TypeError(f"{op}: b must be a numpy.ndarray or a torch.Tensor, got {type(b).__name__}")
    on_gpu = is_tensor and b.is_cuda
    array = _heads.load(b, f"{op}: b", _FLOATS)
    if array.ndim != 1:
        raise ValueError(f"{op}: b must have shape [n], got {tuple(array.shape)}")
    return (b.detach() if is_tensor else array), on_gpu


def load_like(obj: Any, name: str, b: Any, op: str = _OP) -> Any:
    """An array of the kind, device, dtype and shape of b; a NumPy view of it on CPU."""
    where = f"{op}: {name}"
    array = _heads.load(obj, where, _FLOATS, b, "b", same_dtype=True)
    if tuple(array.shape) != tuple(b.shape):
        raise ValueError(f"{where} must have shape {tuple(b.shape)} like b, got {tuple(array.shape)}")
    return array


# ---- the solve ---------------------------------------------------------------------------------------------------


def solve(
    matvec: Any,
    b: Any,
    x0: Any,
    max_iter: int,
    rtol: float,
    atol: float,
    damping: float,
    preconditioner: Any,
    kernels: Any = None,
    op: str = _OP,
) -> tuple[Any, CGInfo, Any]:
    """x, how it ended, and the recurrence's r [n]: that of x, however it ended, if x0 is None."""
    product = _operator(matvec, "matvec", op)
    b, on_gpu = _load_b(b, op)
    max_iter = check_max_iter(max_iter, f"{op}: max_iter")
    rtol, atol = check_number(rtol, f"{op}: rtol"), check_number(atol, f"{op}: atol")
    damping = check_number(damping, f"{op}: damping")
    if x0 is not None:
        load_like(x0, "x0", b, op)
    inverse, precondition = None, None
    if _is_array(preconditioner):
        load_like(preconditioner, "preconditioner", b, op)
        inverse = preconditioner
    elif preconditioner is not None:
        precondition = _operator(preconditioner, "preconditioner", op)
    if kernels is None:
        kernels = _cuda() if on_gpu else _cpu()
    loop = _solve_on_device if on_gpu else _solve_on_host
    return loop(kernels, product, b, x0, max_iter, rtol, atol, damping, inverse, precondition)


def _is_array(obj: Any) -> bool:
    return isinstance(obj, np.ndarray) or _arrays.is_tensor(obj)


def _copy(array: Any) -> Any:
    """A contiguous copy."""
    if isinstance(array, np.ndarray):
        return np.array(array, order="C", ndmin=1)
    torch = sys.modules["torch"]
    return array.detach().clone(memory_format=torch.contiguous_format)


def _empty_like(b: Any) -> Any:
    if isinstance(b, np.ndarray):
        return np.empty(b.shape, b.dtype)
    return sys.modules["torch"].empty(b.shape, dtype=b.dtype, device=b.device)


def _zeros_like(b: Any) -> Any:
    if isinstance(b, np.ndarray):
        return np.zeros(b.shape, b.dtype)
    return sys.modules["torch"].zeros(b.shape, dtype=b.dtype, device=b.device)


def _times(array: Any, factor: float) -> Any:
    with np.errstate(all="ignore"):
        return array * factor if isinstance(array, np.ndarray) else array.detach() * factor


def _solve_on_host(
    kernels: Any,
    product: Any,
    b: Any,
    x0: Any,
    max_iter: int,
    rtol: float,
    atol: float,
    damping: float,
    inverse: Any,
    precondition: Any,
) -> tuple[Any, CGInfo, Any]:
    x = _zeros_like(b) if x0 is None else _copy(x0)
    x_next, r, r_next, p = (_empty_like(b) for _ in range(4))
    z = None if x0 is None else product(x)
    bb, rr, rz = kernels.cg_start(b, x, z, inverse, damping, r, p)
    if not 1e-280 <= bb < math.inf:  # b is zero, or not finite, or its squares leave float64
        largest = float(np.abs(view(b)).max(initial=0.0))
        if largest == 0:
            return _zeros_like(b), CGInfo(0, 0.0, "converged"), r
        if largest < math.inf:  # in units of a power of two
            unit = math.ldexp(1.0, max(math.frexp(largest)[1] - 1, -1022))
            start = None if x0 is None else _times(x0, 1 / unit)
            settings = (max_iter, rtol, atol / unit, damping, inverse, precondition)
            scaled = _solve_on_host(kernels, product, _times(b, 1 / unit), start, *settings)
            found, info = _times(scaled[0], unit), scaled[1]
            if np.isfinite(view(found)).all():
                return found, CGInfo(info.iterations, info.residual_norm * unit, info.status), _times(scaled[2], unit)
            small = view(_times(r, 1 / unit))  # the solution is beyond the dtype: as after no iteration
            return x, CGInfo(0, math.sqrt(_dot(small, small)) * unit, "breakdown"), r
    reach = max(rtol * math.sqrt(bb), atol)
    target = reach * reach
    if not (rr < math.inf and bb < math.inf):
        if x0 is not None:
            start = _arrays.load(x, _OP)
            start[~np.isfinite(start)] = 0
        return x, CGInfo(0, math.sqrt(rr) if rr >= 0 else math.nan, "breakdown"), r
    if rr <= target:
        return x, CGInfo(0, math.sqrt(rr), "converged"), r
    if precondition is not None and max_iter > 0:
        rz = kernels.cg_direction(precondition(r), r, p, 0.0)
    status, done = MAX_ITER, 0
    for _ in range(max_iter):
        if not 0 < rz < math.inf:
            status = BREAKDOWN
            break
        code, rr_next, rz_next = kernels.cg_step(
            x, x_next, r, r_next, p, product(p), inverse, damping, rz, target, precondition is None
        )
        if code >= NEGATIVE_CURVATURE:
            status = code
            break
        x, x_next, r, r_next, rr, done = x_next, x, r_next, r, rr_next, done + 1
        if code == CONVERGED:
            status = CONVERGED
            break
        if precondition is not None and done < max_iter:
            rz_next = kernels.cg_direction(precondition(r), r, p, rz)
        rz = rz_next
    return x, CGInfo(done, math.sqrt(rr), STATUS[status]), r


def _solve_on_device(
    kernels: Any,
    product: Any,
    b: Any,
    x0: Any,
    max_iter: int,
    rtol: float,
    atol: float,
    damping: float,
    inverse: Any,
    precondition: Any,
) -> tuple[Any, CGInfo, Any]:
    """The same with all numbers in `state`, in device memory: the kernels do nothing once it says that it is over."""
    torch = sys.modules["torch"]
    x = _zeros_like(b) if x0 is None else _copy(x0)
    r, p = _empty_like(b), _empty_like(b)
    z = None if x0 is None else product(x)
    state = torch.zeros(8, dtype=torch.float64, device=b.device)
    scratch = torch.zeros(SCRATCH, dtype=torch.float64, device=b.device)
    kernels.cg_start(b, x, z, inverse, damping, rtol, atol, r, p, state, scratch)
    for i in range(max_iter):
        if precondition is not None:
            kernels.cg_direction(precondition(r), r, p, state, scratch, i == 0)
        z = product(p)
        kernels.cg_step(x, r, p, z, inverse, damping, state, scratch, precondition is None)

    def read() -> tuple[int, float, str]:
        values = state.tolist()
        status = int(values[S_STATUS]) or MAX_ITER
        rr = values[S_RR]
        return int(values[S_ITERATIONS]), math.sqrt(rr) if rr >= 0 else math.nan, STATUS[status]

    return x, CGInfo.deferred(read), r


# ---- reference: NumPy --------------------------------------------------------------------------------------------


def _dot(u: Any, v: Any) -> float:
    with np.errstate(all="ignore"):
        return float(np.dot(u.astype(np.float64, copy=False), v.astype(np.float64, copy=False)))


def view(array: Any) -> Any:
    return _arrays.load(array, _OP)


def _damped(z: Any, p: Any, damping: float) -> Any:
    return z.astype(np.float64) + damping * p.astype(np.float64)


def _start(b: Any, x: Any, z: Any, inverse: Any, damping: float, r: Any, p: Any) -> tuple[float, float, float]:
    """r = b - (z + damping x), or b where z is None; p = inverse * r, or r.  Returns b.b, r.r and r.p."""
    if z is not None:
        z = load_like(z, "the result of matvec", b)
    right, start, residual, direction = view(b), view(x), view(r), view(p)
    with np.errstate(all="ignore"):
        residual[:] = right if z is None else right - _damped(z, start, damping)
        direction[:] = residual if inverse is None else residual * view(inverse)
    return _dot(right, right), _dot(residual, residual), _dot(residual, direction)


def _step(
    x: Any,
    x_next: Any,
    r: Any,
    r_next: Any,
    p: Any,
    z: Any,
    inverse: Any,
    damping: float,
    rz: float,
    target: float,
    fused: bool,
) -> tuple[int, float, float]:
    """One iteration after its product z: x_next and r_next, and if `fused` the next p.  Returns a code, r.r and r.y.

    x and r stay, and p does where there is no next iteration.
    """
    z = load_like(z, "the result of matvec", r)
    now, following, residual, direction = view(x), view(x_next), view(r_next), view(p)
    with np.errstate(all="ignore"):
        damped = _damped(z, direction, damping)
        curvature = _dot(direction, damped)
        if not -math.inf < curvature < math.inf:
            return BREAKDOWN, 0.0, 0.0
        if curvature <= 0:
            return NEGATIVE_CURVATURE, 0.0, 0.0
        alpha = rz / curvature
        following[:] = now + alpha * direction.astype(np.float64)
        residual[:] = view(r) - alpha * damped
        y = residual if inverse is None else residual * view(inverse)
        rr, rz_next = _dot(residual, residual), _dot(residual, y)
        if not (rr < math.inf and np.isfinite(following).all()):
            return BREAKDOWN, 0.0, 0.0
        if rr <= target:
            return CONVERGED, rr, rz_next
        if fused:
            direction[:] = y + (rz_next / rz) * direction.astype(np.float64)
    return RUNNING, rr, rz_next


def _direction(y: Any, r: Any, p: Any, rz: float) -> float:
    """p = y + beta p, beta = r.y / rz (0 if rz is 0).  Returns r.y."""
    y = load_like(y, "the result of preconditioner", r)
    residual, direction = view(r), view(p)
    rz_next = _dot(residual, y)
    with np.errstate(all="ignore"):
        direction[:] = y if rz == 0 else y + (rz_next / rz) * direction.astype(np.float64)
    return rz_next


reference = SimpleNamespace(cg_start=_start, cg_step=_step, cg_direction=_direction)


# ---- reference: torch on a GPU, nothing read back ------------------------------------------------------------------


def _tensor_like(obj: Any, name: str, b: Any) -> Any:
    load_like(obj, name, b)
    return obj.detach()


def _dot_on_device(u: Any, v: Any) -> Any:
    return u.double().dot(v.double())


def _start_on_device(
    b: Any,
    x: Any,
    z: Any,
    inverse: Any,
    damping: float,
    rtol: float,
    atol: float,
    r: Any,
    p: Any,
    state: Any,
    scratch: Any,
) -> None:
    torch = sys.modules["torch"]
    if z is None:
        r.copy_(b)
    else:
        z = _tensor_like(z, "the result of matvec", b)
        r.copy_(b.double() - (z.double() + damping * x.double()))
    p.copy_(r if inverse is None else r * inverse.detach())
    bb, rr, rz = _dot_on_device(b, b), _dot_on_device(r, r), _dot_on_device(r, p)
    zero = bb == 0
    target = torch.clamp(rtol * bb.sqrt(), min=atol) ** 2
    finite = zero | (torch.isfinite(bb) & torch.isfinite(rr))
    x.copy_(torch.where(zero | ~torch.isfinite(x), 0.0, x))
    status = torch.where(finite, torch.where(zero | (rr <= target), CONVERGED, RUNNING), BREAKDOWN)
    state.zero_()
    state[S_STATUS], state[S_RR], state[S_RZ], state[S_TARGET] = status, torch.where(zero, 0.0, rr), rz, target


def _step_on_device(
    x: Any,
    r: Any,
    p: Any,
    z: Any,
    inverse: Any,
    damping: float,
    state: Any,
    scratch: Any,
    fused: bool,
) -> None:
    torch = sys.modules["torch"]
    z = _tensor_like(z, "the result of matvec", r)
    status, rz = state[S_STATUS].clone(), state[S_RZ].clone()
    running = status == RUNNING
    usable = (rz > 0) & torch.isfinite(rz)
    damped = z.double() + damping * p.double()
    curvature = _dot_on_device(p, damped)
    alpha = rz / curvature
    x_next = x + (alpha * p.double()).to(x.dtype)
    following = (r.double() - alpha * damped).to(r.dtype)
    y = following if inverse is None else following * inverse.detach()
    rr, rz_next = _dot_on_device(following, following), _dot_on_device(following, y)
    finite = usable & torch.isfinite(curvature)
    positive = curvature > 0
    good = running & finite & positive & torch.isfinite(rr) & torch.isfinite(x_next).all()
    x.copy_(torch.where(good, x_next, x))
    r.copy_(torch.where(good, following, r))
    over = torch.where(rr <= state[S_TARGET], CONVERGED, RUNNING)
    bad = torch.where(finite & ~positive, NEGATIVE_CURVATURE, BREAKDOWN)
    state[S_STATUS] = torch.where(running, torch.where(good, over, bad).double(), status)
    state[S_ITERATIONS] += good
    state[S_RR] = torch.where(good, rr, state[S_RR])
    if fused:
        further = good & (over == RUNNING)
        p.copy_(torch.where(further, (y + (rz_next / rz) * p.double()).to(p.dtype), p))
        state[S_RZ] = torch.where(further, rz_next, rz)


def _direction_on_device(y: Any, r: Any, p: Any, state: Any, scratch: Any, first: bool) -> None:
    torch = sys.modules["torch"]
    y = _tensor_like(y, "the result of preconditioner", r)
    running = state[S_STATUS] == RUNNING
    rz_next = _dot_on_device(r, y)
    new = y if first else (y + (rz_next / state[S_RZ]) * p.double()).to(p.dtype)
    p.copy_(torch.where(running, new, p))
    state[S_RZ] = torch.where(running, rz_next, state[S_RZ])


reference_cuda = SimpleNamespace(
    cg_start=_start_on_device,
    cg_step=_step_on_device,
    cg_direction=_direction_on_device,
)


# ---- backends ----------------------------------------------------------------------------------------------------


@functools.cache
def _cpu() -> Any:
    """What serves CPU arrays; Numba is imported when it is first needed."""
    if _backend.CPU_BACKEND == "cpp":
        return _backend._C
    if _backend.CPU_BACKEND == "numba":
        from fastrl.kernels._numba import conjugate_gradient as numba_kernels

        return numba_kernels
    return reference


@functools.cache  # at the first call, because it imports torch
def _cuda() -> Any:
    if _backend.cuda_backend()[0] == "cuda":
        return _backend._C_cuda
    return reference_cuda
