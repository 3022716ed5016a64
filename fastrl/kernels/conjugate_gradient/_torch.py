"""The same with torch operations on a GPU, where nothing is read back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from fastrl.kernels.conjugate_gradient.reference import BREAKDOWN, CONVERGED, NEGATIVE_CURVATURE, RUNNING, load_like
from fastrl.kernels.conjugate_gradient.solve import S_ITERATIONS, S_RR, S_RZ, S_STATUS, S_TARGET


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
    y = _tensor_like(y, "the result of preconditioner", r)
    running = state[S_STATUS] == RUNNING
    rz_next = _dot_on_device(r, y)
    new = y if first else (y + (rz_next / state[S_RZ]) * p.double()).to(p.dtype)
    p.copy_(torch.where(running, new, p))
    state[S_RZ] = torch.where(running, rz_next, state[S_RZ])


fallback = SimpleNamespace(cg_start=_start_on_device, cg_step=_step_on_device, cg_direction=_direction_on_device)
