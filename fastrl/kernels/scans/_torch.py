"""The scans with torch operations on a GPU, the gradient of `reverse_affine_scan`, and the ops for torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.autograd import detached, into, like, once, register
from fastrl.kernels._core.backends import choose
from fastrl.kernels.scans.reference import Call, ReferenceScans

backend = choose(__package__)


class TorchCall(Call):
    """`Call` with torch tensors, on the device of the first one."""

    xp = torch

    def load(self, name: str, obj: Any, dtypes: tuple[str, ...]) -> Any:
        if dtypes == _arrays.FLOATS:
            dtypes = (*_arrays.FLOATS, *_arrays.HALVES)
        return _arrays.load_tensor(obj, f"{self.op}: {name}", dtypes, self.first, self.first_name)

    def like(self, result: Any) -> Any:
        return result.contiguous()

    def cast(self, array: Any, dtype: str) -> Any:
        return array.to(getattr(torch, dtype))

    def full(self, value: Any) -> Any:
        dtype = torch.bool if isinstance(value, bool) else torch.float64
        return torch.full((self.T, self.N), value, dtype=dtype, device=self.first.device)

    def number(self, name: str, value: Any, high: float = 1.0) -> Any:
        # A tensor, because torch makes float32 of a Python number times a bool tensor.
        x = super().number(name, value, high)
        return torch.full((), x, dtype=torch.float64, device=self.first.device)


class TorchScans(ReferenceScans):
    """`ReferenceScans` on torch tensors, on any one device.  Checking uint8 flags waits for a GPU."""

    call = TorchCall


fallback = TorchScans()


def _reverse_affine_scan(a: Tensor, b: Tensor, y_T: Tensor | None, last: float) -> Tensor:
    y: Tensor = backend.of(a).reverse_affine_scan(a, b, last if y_T is None else y_T, None)
    return y


def _reverse_affine_scan_backward(
    a: Tensor, y: Tensor, y_T: Tensor | None, last: float, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """l_t = g_t + a_{t-1} l_{t-1}: a reverse scan of the reversed arrays."""
    if len(y) == 0:
        return like(a), like(y), torch.zeros_like(y.sum(0))
    before = torch.cat((a[:-1].flip(0), torch.zeros_like(a[:1])))
    adjoint = backend.of(a).reverse_affine_scan(before, grad.flip(0), None, None).flip(0)
    end = torch.full_like(y[:1], last) if y_T is None else y_T[None].detach()
    # As in the scan itself, 0 times x is 0: a step that nothing depends on has no gradient, be the rest NaN.
    grad_a = torch.where(adjoint != 0, adjoint * torch.cat((y[1:], end)), 0)
    grad_y_T = torch.where(a[-1] != 0, a[-1] * adjoint[-1], 0)
    return grad_a, adjoint, grad_y_T


def _save_affine(ctx: Any, inputs: Any, output: Any) -> None:
    a, _, y_T, last = inputs
    ctx.save_for_backward(a, output, y_T)
    ctx.last = last


def _affine_grads(ctx: Any, backward: Callable[..., Any], grad: Tensor) -> Any:
    a, y, y_T = ctx.saved_tensors
    grad_a, grad_b, grad_y_T = backward(a, y, y_T, ctx.last, grad)
    return grad_a, grad_b, grad_y_T if y_T is not None else None, None


class ReverseAffineScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, y_T: Tensor | None, last: float) -> Any:
        y = _reverse_affine_scan(a, b, y_T, last)
        _save_affine(ctx, (a, b, y_T, last), y)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _affine_grads(ctx, _reverse_affine_scan_backward, grad)


_affine_apply: Any = ReverseAffineScan.apply
_affine_backward_op = register(
    _reverse_affine_scan_backward,
    lambda a, y, y_T, last, grad: (like(a), like(y), y.new_empty(y.shape[1:])),
)
_affine_op = register(
    _reverse_affine_scan,
    lambda a, b, y_T, last: like(b),
    save=_save_affine,
    backward=lambda ctx, grad: _affine_grads(ctx, _affine_backward_op, grad),
)


def _end(y_T: Any) -> tuple[Tensor | None, float]:
    """y_T as an array or None, and as a number."""
    if y_T is None:
        return None, 0.0
    if _arrays.is_number(y_T):
        return None, _arrays.to_float(y_T)
    if not isinstance(y_T, Tensor):
        if isinstance(y_T, np.ndarray) or hasattr(type(y_T), "__dlpack__"):
            raise TypeError(f"reverse_affine_scan: y_T must be a torch.Tensor like a, got a {_arrays.kind_name(y_T)}")
        raise TypeError(f"reverse_affine_scan: y_T must be an array, got {type(y_T).__name__}")
    return y_T, 0.0


def _refuse_out(out: Any) -> None:
    if out is not None:
        raise ValueError("reverse_affine_scan: out must be None where a gradient is wanted")


def reverse_affine_scan_autograd(a: Any, b: Any, y_T: Any, out: Any) -> Any:
    _refuse_out(out)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return backend.of(a).reverse_affine_scan(a, b, y_T, out)  # which says what is wrong
    return _affine_apply(a, b, *_end(y_T))


def reverse_affine_scan(a: Any, b: Any, y_T: Any, out: Any) -> Any:
    if _arrays.requires_grad(a, b, y_T):
        _refuse_out(out)
    return into(out, _affine_op(a, b, *_end(y_T)), "reverse_affine_scan", " like a")


def _gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor | None,
    gamma: float, lam: float, mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor] = backend.of(rewards).gae(
        rewards, values, next_values, terminated, truncated, gamma, lam, mask, None
    )
    return found


def _discounted_returns(
    rewards: Tensor, terminated: Tensor, truncated: Tensor | None, gamma: float, next_values: Tensor | None,
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    found: Tensor = backend.of(rewards).discounted_returns(
        rewards, terminated, truncated, gamma, next_values, mask, None
    )
    return found


def _lambda_returns(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor | None, gamma: float, lam: float,
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    found: Tensor = backend.of(rewards).lambda_returns(
        rewards, next_values, terminated, truncated, gamma, lam, mask, None
    )
    return found


def _n_step_returns(
    rewards: Tensor, next_values: Tensor | None, terminated: Tensor, truncated: Tensor | None, gamma: float, n: int,
    cut: Tensor | None, mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor, Tensor] = backend.of(rewards).n_step_returns(
        rewards, next_values, terminated, truncated, gamma, n, cut, mask, None
    )
    return found


def _vtrace(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor | None,
    log_rhos: Tensor,
    gamma: float, lam: float, rho_clip: float, c_clip: float, pg_rho_clip: float, mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor] = backend.of(rewards).vtrace(
        rewards, values, next_values, terminated, truncated, log_rhos,
        gamma, lam, rho_clip, c_clip, pg_rho_clip, mask, None,
    )  # fmt: skip
    return found


def _off_policy_returns(
    rewards: Tensor, q_values: Tensor, next_state_values: Tensor, traces: Tensor, terminated: Tensor,
    truncated: Tensor | None, gamma: float, mask: Tensor | None,
) -> Tensor:  # fmt: skip
    found: Tensor = backend.of(rewards).off_policy_returns(
        rewards, q_values, next_state_values, traces, terminated, truncated, gamma, mask, None
    )
    return found


def _scan(fn: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The op for torch.compile, with `out` as its last argument."""
    op, name = register(fn, fake), fn.__name__.removeprefix("_")
    return lambda *args: into(args[-1], op(*detached(args[:-1])), name, " like rewards")


gae = _scan(_gae, lambda rewards, *_: (like(rewards), like(rewards)))
discounted_returns = _scan(_discounted_returns, lambda rewards, *_: like(rewards))
lambda_returns = _scan(_lambda_returns, lambda rewards, *_: like(rewards))
n_step_returns = _scan(
    _n_step_returns,
    lambda rewards, *_: (like(rewards), like(rewards), rewards.new_empty(rewards.shape, dtype=torch.int64)),
)
vtrace = _scan(_vtrace, lambda rewards, *_: (like(rewards), like(rewards)))
off_policy_returns = _scan(_off_policy_returns, lambda rewards, *_: like(rewards))
