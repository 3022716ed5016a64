"""The normal head with gradients and for torch.compile; its reference runs on a GPU without compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrl.kernels._core.autograd import once, register
from fastrl.kernels._core.backends import choose
from fastrl.kernels.normal import reference
from fastrl.kernels.random import Generator
from fastrl.kernels.random._torch import draw_normals, taken_back

backend = choose(__package__)
fallback = reference


class NormalLogProbEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, action: Tensor) -> Any:
        result = backend.of(mean).normal_log_prob_entropy(mean, log_std, action)
        ctx.save_for_backward(mean, log_std, action)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    @once
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        backward = backend.of(saved[0]).normal_log_prob_entropy_backward
        return backward(*saved, grad_log_prob, grad_entropy, *ctx.needs_input_grad)


class NormalSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor | None, state: Any) -> Any:
        action, log_prob, drawn = backend.of(mean).normal_sample(mean, log_std, noise, state, noise is None)
        ctx.save_for_backward(log_std, drawn if noise is None else noise)
        ctx.set_materialize_grads(False)
        return action, log_prob

    @staticmethod
    @once
    def backward(ctx: Any, grad_action: Tensor | None, grad_log_prob: Tensor | None) -> Any:
        grad_log_std = None
        if ctx.needs_input_grad[1]:
            log_std, noise = ctx.saved_tensors
            grad_log_std = backend.of(noise).normal_sample_backward(log_std, noise, grad_action, grad_log_prob)
        return grad_action, grad_log_std, None, None


normal_log_prob_entropy_autograd: Any = NormalLogProbEntropy.apply
normal_sample_autograd: Any = NormalSample.apply


def _normal_log_prob_entropy(mean: Tensor, log_std: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = backend.of(mean).normal_log_prob_entropy(mean, log_std, action)
    return result


def _normal_log_prob_entropy_backward(
    mean: Tensor, log_std: Tensor, action: Tensor, grad_log_prob: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    backward = backend.of(mean).normal_log_prob_entropy_backward
    grads: tuple[Tensor, Tensor, Tensor] = backward(
        mean, log_std, action, grad_log_prob, grad_entropy, True, True, True
    )
    return grads


def _normal_sample(
    mean: Tensor, log_std: Tensor, noise: Tensor, state: Tensor | None = None, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    with taken_back(state, drawn, -(-noise.numel() // 4)):
        action, log_prob, _ = backend.of(mean).normal_sample(mean, log_std, noise, None, False)
    return action, log_prob


def _normal_sample_backward(
    log_std: Tensor, noise: Tensor, grad_action: Tensor | None, grad_log_prob: Tensor | None
) -> Tensor:
    grad: Tensor = backend.of(noise).normal_sample_backward(log_std, noise, grad_action, grad_log_prob)
    return grad


def _normal_sample_grad(ctx: Any, grad_action: Tensor | None, grad_log_prob: Tensor | None) -> Any:
    return grad_action, _normal_sample_backward_op(*ctx.saved_tensors, grad_action, grad_log_prob), None, None, None


_normal_backward_op = register(
    _normal_log_prob_entropy_backward,
    lambda mean, log_std, action, grad_log_prob, grad_entropy: (
        mean.new_empty(mean.shape),
        mean.new_empty(log_std.shape),
        mean.new_empty(mean.shape),
    ),
)
_normal_op = register(
    _normal_log_prob_entropy,
    lambda mean, log_std, action: (mean.new_empty(mean.shape[0]), mean.new_empty(mean.shape[0])),
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    backward=lambda ctx, gl, gh: _normal_backward_op(*ctx.saved_tensors, gl, gh),
)
_normal_sample_backward_op = register(
    _normal_sample_backward,
    lambda log_std, noise, grad_action, grad_log_prob: log_std.new_empty(log_std.shape),
)
_normal_sample_op = register(
    _normal_sample,
    lambda mean, *_: (mean.new_empty(mean.shape), mean.new_empty(mean.shape[0])),
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[1:3]),
    backward=_normal_sample_grad,
)


def normal_log_prob_entropy(mean: Any, log_std: Any, action: Any) -> Any:
    result: tuple[Tensor, Tensor] = _normal_op(mean, log_std, action)
    return result


def normal_sample(mean: Any, log_std: Any, noise: Any, generator: Generator | None) -> Any:
    state, after = None, None
    if noise is None:
        noise, state, after = draw_normals(generator, mean, "normal_sample")
    elif noise.requires_grad:
        raise ValueError("normal_sample: noise must not require a gradient: it is taken as a constant")
    drawn: tuple[Tensor, Tensor] = _normal_sample_op(mean, log_std, noise, state, after)
    return drawn
