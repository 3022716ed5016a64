"""The tanh-Gaussian head with gradients and for torch.compile; its reference runs on a GPU without compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.autograd import once, register
from fastrl.kernels._core.backends import choose
from fastrl.kernels.random import Generator
from fastrl.kernels.random._torch import draw_normals, taken_back
from fastrl.kernels.tanh_normal import reference

backend = choose(__package__)
fallback = reference


def _refuse_grads(op: str, noise: Any, low: Any, high: Any) -> None:
    for name, x in (("noise", noise), ("low", low), ("high", high)):
        if isinstance(x, Tensor) and x.requires_grad:
            raise ValueError(f"{op}: {name} must not require a gradient: it is taken as a constant")


def _split_bounds(ctx: Any, options: Any) -> tuple[list[Any], Any]:
    """Bounds that are tensors, to save (None for numbers, which `ctx` keeps), and the options behind the bounds."""
    ctx.numbers = [None if isinstance(x, Tensor) else x for x in options[:2]]
    return [x if isinstance(x, Tensor) else None for x in options[:2]], options[2:]


def _join_bounds(ctx: Any, low: Any, high: Any) -> tuple[Any, ...]:
    return (*(n if x is None else x for x, n in zip((low, high), ctx.numbers, strict=True)), *ctx.limits)


class TanhNormalSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Any, state: Any, options: Any) -> Any:
        kernels = backend.of(mean)
        action, log_prob, saved = kernels.tanh_normal_sample(mean, log_std, noise, state, *options, True)
        bounds, ctx.limits = _split_bounds(ctx, options)
        ctx.save_for_backward(log_std, saved, *bounds, mean)  # mean: so that a second derivative raises
        ctx.set_materialize_grads(False)
        return action, log_prob

    @staticmethod
    @once
    def backward(ctx: Any, grad_action: Tensor | None, grad_log_prob: Tensor | None) -> Any:
        log_std, saved, low, high, _ = ctx.saved_tensors
        want_mean, want_log_std = ctx.needs_input_grad[:2]
        grad_mean, grad_log_std = backend.of(log_std).tanh_normal_sample_backward(
            saved, log_std, grad_action, grad_log_prob, *_join_bounds(ctx, low, high), want_mean, want_log_std
        )
        return grad_mean, grad_log_std, None, None, None


class TanhNormalLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, action: Tensor, options: Any) -> Any:
        log_prob = backend.of(mean).tanh_normal_log_prob(mean, log_std, action, *options)
        bounds, ctx.limits = _split_bounds(ctx, options)
        ctx.save_for_backward(mean, log_std, action, *bounds)
        return log_prob

    @staticmethod
    @once
    def backward(ctx: Any, grad_log_prob: Tensor) -> Any:
        *saved, low, high = ctx.saved_tensors
        backward = backend.of(saved[0]).tanh_normal_log_prob_backward
        return *backward(*saved, grad_log_prob, *_join_bounds(ctx, low, high), *ctx.needs_input_grad[:3]), None


class TanhNormalMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, low: Any, high: Any) -> Any:
        bounds, ctx.limits = _split_bounds(ctx, (low, high))
        ctx.save_for_backward(mean, *bounds)
        return backend.of(mean).tanh_normal_mode(mean, low, high)

    @staticmethod
    @once
    def backward(ctx: Any, grad_action: Tensor) -> Any:
        mean, low, high = ctx.saved_tensors
        bounds = _join_bounds(ctx, low, high)
        return backend.of(mean).tanh_normal_mode_backward(mean, grad_action, *bounds), None, None


_tanh_normal_sample_apply: Any = TanhNormalSample.apply
_tanh_normal_log_prob_apply: Any = TanhNormalLogProb.apply
_tanh_normal_mode_apply: Any = TanhNormalMode.apply


def tanh_normal_sample_autograd(
    mean: Any, log_std: Any, noise: Any, state: Any, low: Any, high: Any, *limits: float
) -> Any:
    _refuse_grads("tanh_normal_sample", noise, low, high)
    return _tanh_normal_sample_apply(mean, log_std, noise, state, (low, high, *limits))


def tanh_normal_log_prob_autograd(mean: Any, log_std: Any, action: Any, low: Any, high: Any, *limits: float) -> Any:
    _refuse_grads("tanh_normal_log_prob", None, low, high)
    return _tanh_normal_log_prob_apply(mean, log_std, action, (low, high, *limits))


def tanh_normal_mode_autograd(mean: Any, low: Any, high: Any) -> Any:
    _refuse_grads("tanh_normal_mode", None, low, high)
    return _tanh_normal_mode_apply(mean, low, high)


def _tanh_normal_sample(
    mean: Tensor, log_std: Tensor, noise: Tensor, low: Tensor | None, high: Tensor | None,
    low_number: float, high_number: float, log_std_min: float, log_std_max: float, epsilon: float,
    state: Tensor | None = None, drawn: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with taken_back(state, drawn, -(-noise.numel() // 4)):
        results: tuple[Tensor, Tensor, Tensor] = backend.of(mean).tanh_normal_sample(
            mean, log_std, noise, None, low_number if low is None else low, high_number if high is None else high,
            log_std_min, log_std_max, epsilon, True,
        )  # fmt: skip
    return results


def _tanh_normal_sample_backward(
    saved: Tensor, log_std: Tensor, grad_action: Tensor | None, grad_log_prob: Tensor | None,
    low: Tensor | None, high: Tensor | None, low_number: float, high_number: float,
    log_std_min: float, log_std_max: float, epsilon: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grads: tuple[Tensor, Tensor] = backend.of(log_std).tanh_normal_sample_backward(
        saved, log_std, grad_action, grad_log_prob,
        low_number if low is None else low, high_number if high is None else high,
        log_std_min, log_std_max, epsilon, True, True,
    )  # fmt: skip
    return grads


def _tanh_normal_log_prob(
    mean: Tensor, log_std: Tensor, action: Tensor, low: Tensor | None, high: Tensor | None,
    low_number: float, high_number: float, log_std_min: float, log_std_max: float, epsilon: float,
) -> Tensor:  # fmt: skip
    log_prob: Tensor = backend.of(mean).tanh_normal_log_prob(
        mean, log_std, action, low_number if low is None else low, high_number if high is None else high,
        log_std_min, log_std_max, epsilon,
    )  # fmt: skip
    return log_prob


def _tanh_normal_log_prob_backward(
    mean: Tensor, log_std: Tensor, action: Tensor, grad_log_prob: Tensor, low: Tensor | None, high: Tensor | None,
    low_number: float, high_number: float, log_std_min: float, log_std_max: float, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads: tuple[Tensor, Tensor, Tensor] = backend.of(mean).tanh_normal_log_prob_backward(
        mean, log_std, action, grad_log_prob,
        low_number if low is None else low, high_number if high is None else high,
        log_std_min, log_std_max, epsilon, True, True, True,
    )  # fmt: skip
    return grads


def _tanh_normal_mode(
    mean: Tensor, low: Tensor | None, high: Tensor | None, low_number: float, high_number: float
) -> Tensor:
    action: Tensor = backend.of(mean).tanh_normal_mode(
        mean, low_number if low is None else low, high_number if high is None else high
    )
    return action


def _tanh_normal_mode_backward(
    mean: Tensor, grad_action: Tensor, low: Tensor | None, high: Tensor | None, low_number: float, high_number: float
) -> Tensor:
    grad: Tensor = backend.of(mean).tanh_normal_mode_backward(
        mean, grad_action, low_number if low is None else low, high_number if high is None else high
    )
    return grad


def _save_tanh_normal(ctx: Any, inputs: Any, output: Any) -> None:
    log_std, low, high = inputs[1], inputs[3], inputs[4]
    ctx.save_for_backward(log_std, output[2], low, high)
    ctx.mark_non_differentiable(output[2])
    ctx.numbers = inputs[5:10]


def _tanh_normal_sample_grad(ctx: Any, grad_action: Tensor | None, grad_log_prob: Tensor | None, _: Any) -> Any:
    log_std, saved, low, high = ctx.saved_tensors
    grads = _tanh_normal_sample_backward_op(saved, log_std, grad_action, grad_log_prob, low, high, *ctx.numbers)
    return *grads, *([None] * 10)


def _save_tanh_normal_given(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.numbers = inputs[5:]


def _tanh_normal_log_prob_grad(ctx: Any, grad_log_prob: Tensor) -> Any:
    mean, log_std, action, low, high = ctx.saved_tensors
    grads = _tanh_normal_log_prob_backward_op(mean, log_std, action, grad_log_prob, low, high, *ctx.numbers)
    return *grads, *([None] * 7)


def _save_tanh_normal_mode(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.numbers = inputs[3:]


def _tanh_normal_mode_grad(ctx: Any, grad_action: Tensor) -> Any:
    mean, low, high = ctx.saved_tensors
    return _tanh_normal_mode_backward_op(mean, grad_action, low, high, *ctx.numbers), None, None, None, None


_tanh_normal_sample_backward_op = register(
    _tanh_normal_sample_backward,
    lambda saved, log_std, *_: (log_std.new_empty(saved.shape[1:]), log_std.new_empty(log_std.shape)),
)
_tanh_normal_sample_op = register(
    _tanh_normal_sample,
    lambda mean, *_: (
        mean.new_empty(mean.shape),
        mean.new_empty(mean.shape[0]),
        mean.new_empty((2, *mean.shape), dtype=torch.float32 if mean.dtype.itemsize == 2 else mean.dtype),
    ),
    save=_save_tanh_normal,
    backward=_tanh_normal_sample_grad,
)
_tanh_normal_log_prob_backward_op = register(
    _tanh_normal_log_prob_backward,
    lambda mean, log_std, *_: (
        mean.new_empty(mean.shape),
        mean.new_empty(log_std.shape),
        mean.new_empty(mean.shape),
    ),
)
_tanh_normal_log_prob_op = register(
    _tanh_normal_log_prob,
    lambda mean, *_: mean.new_empty(mean.shape[0]),
    save=_save_tanh_normal_given,
    backward=_tanh_normal_log_prob_grad,
)
_tanh_normal_mode_backward_op = register(_tanh_normal_mode_backward, lambda mean, *_: mean.new_empty(mean.shape))
_tanh_normal_mode_op = register(
    _tanh_normal_mode,
    lambda mean, *_: mean.new_empty(mean.shape),
    save=_save_tanh_normal_mode,
    backward=_tanh_normal_mode_grad,
)


def _bounds(op: str, low: Any, high: Any) -> tuple[Tensor | None, Tensor | None, float, float]:
    numbers = []
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, Tensor):
            numbers.append(0.0)
        elif isinstance(bound, float):  # or torch.compile's symbol for one
            numbers.append(bound)
        elif _arrays.is_number(bound):
            numbers.append(_arrays.to_float(bound))
        else:
            raise TypeError(f"{op}: {name} must be a number or an array, got {type(bound).__name__}")
    return low if isinstance(low, Tensor) else None, high if isinstance(high, Tensor) else None, numbers[0], numbers[1]


def tanh_normal_sample(
    mean: Any,
    log_std: Any,
    noise: Any,
    generator: Generator | None,
    low: Any,
    high: Any,
    *limits: float,
) -> Any:
    _refuse_grads("tanh_normal_sample", noise, low, high)
    bounds = _bounds("tanh_normal_sample", low, high)
    state, after = None, None
    if noise is None:
        noise, state, after = draw_normals(generator, mean, "tanh_normal_sample")
    action, log_prob, _ = _tanh_normal_sample_op(mean, log_std, noise, *bounds, *limits, state, after)
    return action, log_prob


def tanh_normal_log_prob(mean: Any, log_std: Any, action: Any, low: Any, high: Any, *limits: float) -> Any:
    _refuse_grads("tanh_normal_log_prob", None, low, high)
    bounds = _bounds("tanh_normal_log_prob", low, high)
    log_prob: Tensor = _tanh_normal_log_prob_op(mean, log_std, action, *bounds, *limits)
    return log_prob


def tanh_normal_mode(mean: Any, low: Any, high: Any) -> Any:
    _refuse_grads("tanh_normal_mode", None, low, high)
    action: Tensor = _tanh_normal_mode_op(mean, *_bounds("tanh_normal_mode", low, high))
    return action
