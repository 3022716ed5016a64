"""The loop around the vector work, on the host and, without a look at the numbers, on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose
from fastrl.kernels.conjugate_gradient.reference import (
    BREAKDOWN,
    CONVERGED,
    MAX_ITER,
    NEGATIVE_CURVATURE,
    OP,
    dot,
    load_like,
    view,
)

backend = choose(__package__)


STATUS = ("running", "converged", "max_iter", "negative_curvature", "breakdown")
# The float64 state of a solve on a GPU: status, finished iterations, r.r, r.y, the square of the residual norm to
# reach, and what the CUDA kernels tell each other: alpha, beta, and whether the latest step was good.
S_STATUS, S_ITERATIONS, S_RR, S_RZ, S_TARGET, S_ALPHA, S_BETA, S_GOOD = range(8)
SCRATCH = 3 * 512 + 1  # float64 numbers in which the CUDA kernels keep partial sums


class CGInfo:
    """How a solve ended: `iterations` (finished ones), `residual_norm` and `status`; unpacks as the three.

    `residual_norm` is ||r||, r = b - (A + damping I) x as the recurrence carries it.  After a solve on a GPU the first
    look at any of the three waits for the stream it ran on, whatever stream asks.  Of a solve captured in a CUDA graph
    it reads, once, what the replays so far on the current stream have left.
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
    array = _arrays.load_on_device(b, f"{op}: b", _arrays.FLOATS)
    if array.ndim != 1:
        raise ValueError(f"{op}: b must have shape [n], got {tuple(array.shape)}")
    return (b.detach() if is_tensor else array), on_gpu


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
    op: str = OP,
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
        kernels = backend.of(b)
    loop = _solve_on_device if on_gpu else _solve_on_host
    return loop(kernels, product, b, x0, max_iter, rtol, atol, damping, inverse, precondition)


def _is_array(obj: Any) -> bool:
    return isinstance(obj, np.ndarray) or _arrays.is_tensor(obj)


def _copy(array: Any) -> Any:
    """A contiguous copy."""
    if isinstance(array, np.ndarray):
        return np.array(array, order="C", ndmin=1)
    torch = _arrays.torch()
    return array.detach().clone(memory_format=torch.contiguous_format)


def _empty_like(b: Any) -> Any:
    if isinstance(b, np.ndarray):
        return np.empty(b.shape, b.dtype)
    return _arrays.torch().empty(b.shape, dtype=b.dtype, device=b.device)


def _zeros_like(b: Any) -> Any:
    if isinstance(b, np.ndarray):
        return np.zeros(b.shape, b.dtype)
    return _arrays.torch().zeros(b.shape, dtype=b.dtype, device=b.device)


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
            return x, CGInfo(0, math.sqrt(dot(small, small)) * unit, "breakdown"), r
    reach = max(rtol * math.sqrt(bb), atol)
    target = reach * reach
    if not (rr < math.inf and bb < math.inf):
        if x0 is not None:
            start = _arrays.load(x, OP)
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
    torch = _arrays.torch()
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

    read_state = deferred_read(state)

    def read() -> tuple[int, float, str]:
        values = read_state()
        status = int(values[S_STATUS]) or MAX_ITER
        rr = values[S_RR]
        return int(values[S_ITERATIONS]), math.sqrt(rr) if rr >= 0 else math.nan, STATUS[status]

    return x, CGInfo.deferred(read), r


def deferred_read(numbers: Any) -> Callable[[], list[float]]:
    """A function that reads a tensor's numbers after the work given so far to the stream that is current now."""
    stream: Any = None
    if numbers.is_cuda:
        cuda = _arrays.torch().cuda
        if not cuda.is_current_stream_capturing():
            stream = cuda.current_stream(numbers.device)

    def read() -> list[float]:
        if stream is not None:
            stream.synchronize()
        found: list[float] = numbers.tolist()
        return found

    return read
