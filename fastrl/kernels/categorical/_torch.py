"""The categorical head with gradients and for torch.compile; its reference runs on a GPU without compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrl.kernels._core.autograd import once, register
from fastrl.kernels._core.backends import choose
from fastrl.kernels.categorical import reference
from fastrl.kernels.random import Generator
from fastrl.kernels.random._torch import draw_op, state_tensor, taken_back

backend = choose(__package__)
fallback = reference


class CategoricalLogProbEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, action: Tensor) -> Any:
        result = backend.of(logits).categorical_log_prob_entropy(logits, action)
        ctx.save_for_backward(logits, action)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    @once
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> Any:
        logits, action = ctx.saved_tensors
        backward = backend.of(logits).categorical_log_prob_entropy_backward
        return backward(logits, action, grad_log_prob, grad_entropy), None


class CategoricalSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, state: Any) -> Any:
        action, log_prob = backend.of(logits).categorical_sample(logits, state, None)
        ctx.save_for_backward(logits, action)
        ctx.mark_non_differentiable(action)
        ctx.set_materialize_grads(False)
        return action, log_prob

    @staticmethod
    @once
    def backward(ctx: Any, _: Any, grad_log_prob: Tensor | None) -> Any:
        logits, action = ctx.saved_tensors
        backward = backend.of(logits).categorical_log_prob_entropy_backward
        return backward(logits, action, grad_log_prob, None), None


categorical_log_prob_entropy_autograd: Any = CategoricalLogProbEntropy.apply
categorical_sample_autograd: Any = CategoricalSample.apply


def _categorical_log_prob_entropy(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = backend.of(logits).categorical_log_prob_entropy(logits, action)
    return result


def _categorical_log_prob_entropy_backward(
    logits: Tensor, action: Tensor, grad_log_prob: Tensor | None, grad_entropy: Tensor | None
) -> Tensor:
    backward = backend.of(logits).categorical_log_prob_entropy_backward
    grad: Tensor = backward(logits, action, grad_log_prob, grad_entropy)
    return grad


def _categorical_sample(
    logits: Tensor, uniform: Tensor, state: Tensor | None = None, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(log_prob, action): opcheck adds up what an op returns, and cannot begin with integers."""
    with taken_back(state, drawn, uniform.numel()):
        action, log_prob = backend.of(logits).categorical_sample(logits, None, uniform)
    return log_prob, action


def _save_logits_drawn(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])


_categorical_backward_op = register(
    _categorical_log_prob_entropy_backward,
    lambda logits, action, grad_log_prob, grad_entropy: logits.new_empty(logits.shape),
)
_categorical_op = register(
    _categorical_log_prob_entropy,
    lambda logits, action: (logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape[0])),
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    backward=lambda ctx, gl, gh: (_categorical_backward_op(*ctx.saved_tensors, gl, gh), None),
)
_categorical_sample_op = register(
    _categorical_sample,
    lambda logits, *_: (logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape[0], dtype=torch.int64)),
    save=_save_logits_drawn,
    backward=lambda ctx, gl, _: (_categorical_backward_op(*ctx.saved_tensors, gl, None), None, None, None),
)


def categorical_log_prob_entropy(logits: Any, action: Any) -> Any:
    result: tuple[Tensor, Tensor] = _categorical_op(logits, action)
    return result


def categorical_sample(logits: Any, generator: Generator | None) -> Any:
    state = state_tensor(generator, logits, "categorical_sample")
    uniform, after = draw_op(state, logits.shape[0], False)
    log_prob, action = _categorical_sample_op(logits, uniform, state, after)
    return action, log_prob
