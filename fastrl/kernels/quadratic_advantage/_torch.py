"""The quadratic advantage with gradients and for torch.compile; its reference runs on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrl.kernels._core.autograd import like, once, register
from fastrl.kernels._core.backends import choose
from fastrl.kernels.quadratic_advantage import reference

backend = choose(__package__)
fallback = reference


class QuadraticAdvantage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, cholesky: Tensor, action: Tensor) -> Any:
        ctx.save_for_backward(mean, cholesky, action)
        return backend.of(mean).quadratic_advantage(mean, cholesky, action)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> Any:
        g_mean, g_cholesky = backend.of(grad).quadratic_advantage_backward(*ctx.saved_tensors, grad)
        wanted = zip((g_mean, g_cholesky, -g_mean), ctx.needs_input_grad, strict=True)
        return tuple(g if needed else None for g, needed in wanted)


quadratic_advantage_autograd: Any = QuadraticAdvantage.apply


def _quadratic_advantage(mean: Tensor, cholesky: Tensor, action: Tensor) -> Tensor:
    result: Tensor = backend.of(mean).quadratic_advantage(mean, cholesky, action)
    return result


def _quadratic_advantage_backward(
    mean: Tensor, cholesky: Tensor, action: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    grads: tuple[Tensor, Tensor] = backend.of(mean).quadratic_advantage_backward(mean, cholesky, action, grad)
    return grads


def _grad(ctx: Any, grad: Tensor) -> Any:
    g_mean, g_cholesky = _backward_op(*ctx.saved_tensors, grad)
    return g_mean, g_cholesky, -g_mean


_backward_op = register(
    _quadratic_advantage_backward, lambda mean, cholesky, action, grad: (like(mean), like(cholesky))
)
_op = register(
    _quadratic_advantage,
    lambda mean, cholesky, action: mean.new_empty(mean.shape[0]),
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    backward=_grad,
)


def quadratic_advantage(mean: Any, cholesky: Any, action: Any) -> Any:
    result: Tensor = _op(mean, cholesky, action)
    return result
