"""The ops that sit inside a model's step, for autograd and for torch.compile.  Imported only when torch is used.

Eager mode goes through the `torch.autograd.Function` of an op, and only where a gradient is wanted: the dispatcher
costs more than the kernels.  torch.compile goes through the ops of the library ``fastrl`` registered below, each with a
fake kernel and, where it has gradients, their formula.  No gradient has a gradient itself: a second one raises.

What draws random numbers is two ops there: `draw`, which advances the generator's state (a tensor that it says it
writes to), and a function of the drawn numbers, which has the gradient.  Where that one refuses its arguments, it takes
the draw back, so that a call that raises has drawn nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrl import _backend
from fastrl.kernels import _arrays, _heads
from fastrl.kernels.categorical import kernels_for as categorical_kernels
from fastrl.kernels.generator import Generator, default_generator
from fastrl.kernels.n_step_gather import backend as gather_backend
from fastrl.kernels.normal import kernels_for as normal_kernels
from fastrl.kernels.scans import backend_for
from fastrl.kernels.tanh_normal import kernels_for as tanh_normal_kernels

# ---- what every op needs -----------------------------------------------------------------------------------------


def register(
    fn: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    mutates: Sequence[str] = (),
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """`fn`, an op of torch tensors called _name, as torch.ops.fastrl.name; its annotations are the op's schema.

    `fake` makes empty results of the right shapes; `save(ctx, inputs, output)` and `backward(ctx, *grads)` are the
    gradient, whose kernel must be a registered op too.
    """
    op: Any = torch.library.custom_op(f"fastrl::{fn.__name__.removeprefix('_')}", fn, mutates_args=mutates)
    op.register_fake(fake)
    if backward is not None:
        op.register_autograd(backward, setup_context=save)
    return op


class _Refuse(torch.autograd.Function):
    """Its first n arguments, without a gradient for any."""

    @staticmethod
    def forward(ctx: Any, n: int, *tensors: Tensor) -> Any:
        return tensors[:n]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("fastrl: the gradient of a fastrl kernel has no gradient: no second derivatives")


_refuse: Any = _Refuse.apply  # torch leaves `apply` untyped


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a `backward` whose results have no gradient: asked for one (create_graph=True), they raise.

    torch's `once_differentiable` lets them pass as constants where the upstream gradient needs none.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        given = [g for g in results if g is not None]
        depends_on = [x for x in (*ctx.saved_tensors, *grads) if x is not None and x.requires_grad]
        refused = iter(_refuse(len(given), *given, *depends_on))
        return tuple(None if g is None else next(refused) for g in results)

    return wrapper


# ---- random numbers ----------------------------------------------------------------------------------------------

default_generator("cpu")  # made now, because torch.compile cannot trace its making


def _draw(state: Tensor, n: int, normal: bool) -> tuple[Tensor, Tensor]:
    """n float64 uniforms or standard normals of the generator with this state [2], which it advances; a copy of it."""
    words: Any = state if state.is_cuda else state.numpy().view(np.uint64)
    if not state.is_cuda and _backend.CPU_BACKEND == "cpp":
        drawn = _backend._C.draw(words, n, normal)
    else:
        drawn = _heads.normals(words, n) if normal else _heads.uniforms(words, n)
    return torch.as_tensor(drawn), state.view(torch.int64).clone()


_draw_op = register(
    _draw,
    lambda state, n, normal: (state.new_empty(n, dtype=torch.float64), state.new_empty(2, dtype=torch.int64)),
    mutates=("state",),
)


@contextmanager
def _taken_back(state: Tensor | None, drawn: Tensor | None, blocks: int) -> Iterator[None]:
    """On an error the generator is as before its draw of so many blocks, which left it at the state `drawn`."""
    try:
        yield
    except Exception:
        if state is not None and drawn is not None:
            words = state.view(torch.int64)
            if torch.equal(words, drawn):  # nobody has drawn since
                words[1] -= blocks
        raise


def _draw_normals(generator: Generator | None, mean: Tensor, op: str) -> tuple[Tensor, Tensor, Tensor]:
    """Noise for `mean`, the generator's state, and the state as it was left."""
    if mean.dim() != 2:
        raise ValueError(f"{op}: mean must have shape [B, A], got {tuple(mean.shape)}")
    state = _state_tensor(generator, mean, op)
    noise, after = _draw_op(state, mean.shape[0] * mean.shape[1], True)
    return noise.view(mean.shape).to(mean.dtype), state, after


def _state_tensor(generator: Generator | None, first: Tensor, op: str) -> Tensor:
    return torch.as_tensor(_heads.state_of(generator, first, op))  # the same memory


# ---- categorical -------------------------------------------------------------------------------------------------


class CategoricalLogProbEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, action: Tensor) -> Any:
        result = categorical_kernels(logits).categorical_log_prob_entropy(logits, action)
        ctx.save_for_backward(logits, action)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    @once
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> Any:
        logits, action = ctx.saved_tensors
        backward = categorical_kernels(logits).categorical_log_prob_entropy_backward
        return backward(logits, action, grad_log_prob, grad_entropy), None


class CategoricalSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, state: Any) -> Any:
        action, log_prob = categorical_kernels(logits).categorical_sample(logits, state, None)
        ctx.save_for_backward(logits, action)
        ctx.mark_non_differentiable(action)
        ctx.set_materialize_grads(False)
        return action, log_prob

    @staticmethod
    @once
    def backward(ctx: Any, _: Any, grad_log_prob: Tensor | None) -> Any:
        logits, action = ctx.saved_tensors
        backward = categorical_kernels(logits).categorical_log_prob_entropy_backward
        return backward(logits, action, grad_log_prob, None), None


categorical_log_prob_entropy_autograd: Any = CategoricalLogProbEntropy.apply
categorical_sample_autograd: Any = CategoricalSample.apply


def _categorical_log_prob_entropy(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = categorical_kernels(logits).categorical_log_prob_entropy(logits, action)
    return result


def _categorical_log_prob_entropy_backward(
    logits: Tensor, action: Tensor, grad_log_prob: Tensor | None, grad_entropy: Tensor | None
) -> Tensor:
    backward = categorical_kernels(logits).categorical_log_prob_entropy_backward
    grad: Tensor = backward(logits, action, grad_log_prob, grad_entropy)
    return grad


def _categorical_sample(
    logits: Tensor, uniform: Tensor, state: Tensor | None = None, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(log_prob, action): opcheck adds up what an op returns, and cannot begin with integers."""
    with _taken_back(state, drawn, uniform.numel()):
        action, log_prob = categorical_kernels(logits).categorical_sample(logits, None, uniform)
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


def categorical_log_prob_entropy(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _categorical_op(logits, action)
    return result


def categorical_sample(logits: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
    state = _state_tensor(generator, logits, "categorical_sample")
    uniform, after = _draw_op(state, logits.shape[0], False)
    log_prob, action = _categorical_sample_op(logits, uniform, state, after)
    return action, log_prob


# ---- normal ------------------------------------------------------------------------------------------------------


class NormalLogProbEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, action: Tensor) -> Any:
        result = normal_kernels(mean).normal_log_prob_entropy(mean, log_std, action)
        ctx.save_for_backward(mean, log_std, action)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    @once
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        backward = normal_kernels(saved[0]).normal_log_prob_entropy_backward
        return backward(*saved, grad_log_prob, grad_entropy, *ctx.needs_input_grad)


class NormalSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor | None, state: Any) -> Any:
        action, log_prob, drawn = normal_kernels(mean).normal_sample(mean, log_std, noise, state, noise is None)
        ctx.save_for_backward(log_std, drawn if noise is None else noise)
        ctx.set_materialize_grads(False)
        return action, log_prob

    @staticmethod
    @once
    def backward(ctx: Any, grad_action: Tensor | None, grad_log_prob: Tensor | None) -> Any:
        grad_log_std = None
        if ctx.needs_input_grad[1]:
            log_std, noise = ctx.saved_tensors
            grad_log_std = normal_kernels(noise).normal_sample_backward(log_std, noise, grad_action, grad_log_prob)
        return grad_action, grad_log_std, None, None


normal_log_prob_entropy_autograd: Any = NormalLogProbEntropy.apply
normal_sample_autograd: Any = NormalSample.apply


def _normal_log_prob_entropy(mean: Tensor, log_std: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = normal_kernels(mean).normal_log_prob_entropy(mean, log_std, action)
    return result


def _normal_log_prob_entropy_backward(
    mean: Tensor, log_std: Tensor, action: Tensor, grad_log_prob: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    backward = normal_kernels(mean).normal_log_prob_entropy_backward
    grads: tuple[Tensor, Tensor, Tensor] = backward(
        mean, log_std, action, grad_log_prob, grad_entropy, True, True, True
    )
    return grads


def _normal_sample(
    mean: Tensor, log_std: Tensor, noise: Tensor, state: Tensor | None = None, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    with _taken_back(state, drawn, -(-noise.numel() // 4)):
        action, log_prob, _ = normal_kernels(mean).normal_sample(mean, log_std, noise, None, False)
    return action, log_prob


def _normal_sample_backward(
    log_std: Tensor, noise: Tensor, grad_action: Tensor | None, grad_log_prob: Tensor | None
) -> Tensor:
    grad: Tensor = normal_kernels(noise).normal_sample_backward(log_std, noise, grad_action, grad_log_prob)
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


def normal_log_prob_entropy(mean: Tensor, log_std: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _normal_op(mean, log_std, action)
    return result


def normal_sample(
    mean: Tensor, log_std: Tensor, noise: Tensor | None, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    state, after = None, None
    if noise is None:
        noise, state, after = _draw_normals(generator, mean, "normal_sample")
    elif noise.requires_grad:
        raise ValueError("normal_sample: noise must not require a gradient: it is taken as a constant")
    drawn: tuple[Tensor, Tensor] = _normal_sample_op(mean, log_std, noise, state, after)
    return drawn


# ---- tanh_normal -------------------------------------------------------------------------------------------------
# `limits` is what a backend takes last: log_std_min, log_std_max, epsilon.  `saved` is [2, B, A]: u and e^s eps.


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
        kernels = tanh_normal_kernels(mean)
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
        grad_mean, grad_log_std = tanh_normal_kernels(log_std).tanh_normal_sample_backward(
            saved, log_std, grad_action, grad_log_prob, *_join_bounds(ctx, low, high), want_mean, want_log_std
        )
        return grad_mean, grad_log_std, None, None, None


class TanhNormalLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, action: Tensor, options: Any) -> Any:
        log_prob = tanh_normal_kernels(mean).tanh_normal_log_prob(mean, log_std, action, *options)
        bounds, ctx.limits = _split_bounds(ctx, options)
        ctx.save_for_backward(mean, log_std, action, *bounds)
        return log_prob

    @staticmethod
    @once
    def backward(ctx: Any, grad_log_prob: Tensor) -> Any:
        *saved, low, high = ctx.saved_tensors
        backward = tanh_normal_kernels(saved[0]).tanh_normal_log_prob_backward
        return *backward(*saved, grad_log_prob, *_join_bounds(ctx, low, high), *ctx.needs_input_grad[:3]), None


class TanhNormalMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, low: Any, high: Any) -> Any:
        bounds, ctx.limits = _split_bounds(ctx, (low, high))
        ctx.save_for_backward(mean, *bounds)
        return tanh_normal_kernels(mean).tanh_normal_mode(mean, low, high)

    @staticmethod
    @once
    def backward(ctx: Any, grad_action: Tensor) -> Any:
        mean, low, high = ctx.saved_tensors
        bounds = _join_bounds(ctx, low, high)
        return tanh_normal_kernels(mean).tanh_normal_mode_backward(mean, grad_action, *bounds), None, None


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


# The registered ops take a bound as a tensor, or as None and a number.


def _tanh_normal_sample(
    mean: Tensor, log_std: Tensor, noise: Tensor, low: Tensor | None, high: Tensor | None,
    low_number: float, high_number: float, log_std_min: float, log_std_max: float, epsilon: float,
    state: Tensor | None = None, drawn: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with _taken_back(state, drawn, -(-noise.numel() // 4)):
        results: tuple[Tensor, Tensor, Tensor] = tanh_normal_kernels(mean).tanh_normal_sample(
            mean, log_std, noise, None, low_number if low is None else low, high_number if high is None else high,
            log_std_min, log_std_max, epsilon, True,
        )  # fmt: skip
    return results


def _tanh_normal_sample_backward(
    saved: Tensor, log_std: Tensor, grad_action: Tensor | None, grad_log_prob: Tensor | None,
    low: Tensor | None, high: Tensor | None, low_number: float, high_number: float,
    log_std_min: float, log_std_max: float, epsilon: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grads: tuple[Tensor, Tensor] = tanh_normal_kernels(log_std).tanh_normal_sample_backward(
        saved, log_std, grad_action, grad_log_prob,
        low_number if low is None else low, high_number if high is None else high,
        log_std_min, log_std_max, epsilon, True, True,
    )  # fmt: skip
    return grads


def _tanh_normal_log_prob(
    mean: Tensor, log_std: Tensor, action: Tensor, low: Tensor | None, high: Tensor | None,
    low_number: float, high_number: float, log_std_min: float, log_std_max: float, epsilon: float,
) -> Tensor:  # fmt: skip
    log_prob: Tensor = tanh_normal_kernels(mean).tanh_normal_log_prob(
        mean, log_std, action, low_number if low is None else low, high_number if high is None else high,
        log_std_min, log_std_max, epsilon,
    )  # fmt: skip
    return log_prob


def _tanh_normal_log_prob_backward(
    mean: Tensor, log_std: Tensor, action: Tensor, grad_log_prob: Tensor, low: Tensor | None, high: Tensor | None,
    low_number: float, high_number: float, log_std_min: float, log_std_max: float, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads: tuple[Tensor, Tensor, Tensor] = tanh_normal_kernels(mean).tanh_normal_log_prob_backward(
        mean, log_std, action, grad_log_prob,
        low_number if low is None else low, high_number if high is None else high,
        log_std_min, log_std_max, epsilon, True, True, True,
    )  # fmt: skip
    return grads


def _tanh_normal_mode(
    mean: Tensor, low: Tensor | None, high: Tensor | None, low_number: float, high_number: float
) -> Tensor:
    action: Tensor = tanh_normal_kernels(mean).tanh_normal_mode(
        mean, low_number if low is None else low, high_number if high is None else high
    )
    return action


def _tanh_normal_mode_backward(
    mean: Tensor, grad_action: Tensor, low: Tensor | None, high: Tensor | None, low_number: float, high_number: float
) -> Tensor:
    grad: Tensor = tanh_normal_kernels(mean).tanh_normal_mode_backward(
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
    mean: Tensor,
    log_std: Tensor,
    noise: Tensor | None,
    generator: Generator | None,
    low: Any,
    high: Any,
    *limits: float,
) -> tuple[Tensor, Tensor]:
    _refuse_grads("tanh_normal_sample", noise, low, high)
    bounds = _bounds("tanh_normal_sample", low, high)
    state, after = None, None
    if noise is None:
        noise, state, after = _draw_normals(generator, mean, "tanh_normal_sample")
    action, log_prob, _ = _tanh_normal_sample_op(mean, log_std, noise, *bounds, *limits, state, after)
    return action, log_prob


def tanh_normal_log_prob(mean: Tensor, log_std: Tensor, action: Tensor, low: Any, high: Any, *limits: float) -> Tensor:
    _refuse_grads("tanh_normal_log_prob", None, low, high)
    bounds = _bounds("tanh_normal_log_prob", low, high)
    log_prob: Tensor = _tanh_normal_log_prob_op(mean, log_std, action, *bounds, *limits)
    return log_prob


def tanh_normal_mode(mean: Tensor, low: Any, high: Any) -> Tensor:
    _refuse_grads("tanh_normal_mode", None, low, high)
    action: Tensor = _tanh_normal_mode_op(mean, *_bounds("tanh_normal_mode", low, high))
    return action


# ---- scans -------------------------------------------------------------------------------------------------------


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _detached(args: Sequence[Any]) -> list[Any]:
    """The arguments of an op through which no gradient flows."""
    return [x.detach() if isinstance(x, Tensor) else x for x in args]


def _into(out: Any, results: Any, op: str, like: str) -> Any:
    """The results, or `out` with them in it; `like` ends the text about a wrong shape."""
    if out is None:
        return results
    many = not isinstance(results, Tensor)
    sequence = isinstance(out, (tuple, list))
    if many and (not sequence or len(out) != len(results)):
        got = f"{len(out)} arrays" if sequence else type(out).__name__
        raise ValueError(f"{op}: out must be {len(results)} arrays, got {got}")
    outs, found = (out, results) if many else ((out,), (results,))
    for i, (target, result) in enumerate(zip(outs, found, strict=True)):
        name = f"out[{i}]" if many else "out"
        if not isinstance(target, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor{like}, got a {type(target).__name__}")
        if target.dtype != result.dtype:
            wanted, got = (str(x.dtype).removeprefix("torch.") for x in (result, target))
            raise ValueError(f"{op}: {name} must have dtype {wanted}, got {got}")
        if target.shape != result.shape:
            raise ValueError(f"{op}: {name} must have shape {tuple(result.shape)}{like}, got {tuple(target.shape)}")
    for target, result in zip(outs, found, strict=True):
        target.copy_(result)
    return out


def _reverse_affine_scan(a: Tensor, b: Tensor, y_T: Tensor | None, last: float) -> Tensor:
    y: Tensor = backend_for(a).reverse_affine_scan(a, b, last if y_T is None else y_T, None)
    return y


def _reverse_affine_scan_backward(
    a: Tensor, y: Tensor, y_T: Tensor | None, last: float, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """l_t = g_t + a_{t-1} l_{t-1}: a reverse scan of the reversed arrays."""
    if len(y) == 0:
        return _like(a), _like(y), torch.zeros_like(y.sum(0))
    before = torch.cat((a[:-1].flip(0), torch.zeros_like(a[:1])))
    adjoint = backend_for(a).reverse_affine_scan(before, grad.flip(0), None, None).flip(0)
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
    lambda a, y, y_T, last, grad: (_like(a), _like(y), y.new_empty(y.shape[1:])),
)
_affine_op = register(
    _reverse_affine_scan,
    lambda a, b, y_T, last: _like(b),
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
        return backend_for(a).reverse_affine_scan(a, b, y_T, out)  # which says what is wrong
    return _affine_apply(a, b, *_end(y_T))


def reverse_affine_scan(a: Any, b: Any, y_T: Any, out: Any) -> Any:
    if _heads.requires_grad(a, b, y_T):
        _refuse_out(out)
    return _into(out, _affine_op(a, b, *_end(y_T)), "reverse_affine_scan", " like a")


def _gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor | None,
    gamma: float, lam: float, mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor] = backend_for(rewards).gae(
        rewards, values, next_values, terminated, truncated, gamma, lam, mask, None
    )
    return found


def _discounted_returns(
    rewards: Tensor, terminated: Tensor, truncated: Tensor | None, gamma: float, next_values: Tensor | None,
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    found: Tensor = backend_for(rewards).discounted_returns(
        rewards, terminated, truncated, gamma, next_values, mask, None
    )
    return found


def _lambda_returns(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor | None, gamma: float, lam: float,
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    found: Tensor = backend_for(rewards).lambda_returns(
        rewards, next_values, terminated, truncated, gamma, lam, mask, None
    )
    return found


def _n_step_returns(
    rewards: Tensor, next_values: Tensor | None, terminated: Tensor, truncated: Tensor | None, gamma: float, n: int,
    cut: Tensor | None, mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor, Tensor] = backend_for(rewards).n_step_returns(
        rewards, next_values, terminated, truncated, gamma, n, cut, mask, None
    )
    return found


def _vtrace(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor | None,
    log_rhos: Tensor,
    gamma: float, lam: float, rho_clip: float, c_clip: float, pg_rho_clip: float, mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor] = backend_for(rewards).vtrace(
        rewards, values, next_values, terminated, truncated, log_rhos,
        gamma, lam, rho_clip, c_clip, pg_rho_clip, mask, None,
    )  # fmt: skip
    return found


def _off_policy_returns(
    rewards: Tensor, q_values: Tensor, next_state_values: Tensor, traces: Tensor, terminated: Tensor,
    truncated: Tensor | None, gamma: float, mask: Tensor | None,
) -> Tensor:  # fmt: skip
    found: Tensor = backend_for(rewards).off_policy_returns(
        rewards, q_values, next_state_values, traces, terminated, truncated, gamma, mask, None
    )
    return found


def _scan(fn: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The op for torch.compile, with `out` as its last argument."""
    op, name = register(fn, fake), fn.__name__.removeprefix("_")
    return lambda *args: _into(args[-1], op(*_detached(args[:-1])), name, " like rewards")


gae = _scan(_gae, lambda rewards, *_: (_like(rewards), _like(rewards)))
discounted_returns = _scan(_discounted_returns, lambda rewards, *_: _like(rewards))
lambda_returns = _scan(_lambda_returns, lambda rewards, *_: _like(rewards))
n_step_returns = _scan(
    _n_step_returns,
    lambda rewards, *_: (_like(rewards), _like(rewards), rewards.new_empty(rewards.shape, dtype=torch.int64)),
)
vtrace = _scan(_vtrace, lambda rewards, *_: (_like(rewards), _like(rewards)))
off_policy_returns = _scan(_off_policy_returns, lambda rewards, *_: _like(rewards))


# ---- n_step_gather -----------------------------------------------------------------------------------------------


def _n_step_gather(
    rewards: Tensor, terminated: Tensor, truncated: Tensor | None, indices: Tensor, cursor: Tensor | None,
    size: Tensor | None,
    one_cursor: int, one_size: int, gamma: float, n: int, next_values: Tensor | None, cut: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor, Tensor] = gather_backend(
        rewards, terminated, truncated, indices, one_cursor if cursor is None else cursor,
        one_size if size is None else size, gamma, n, next_values, cut, None,
    )  # fmt: skip
    return found


_n_step_gather_op = register(
    _n_step_gather,
    lambda rewards, terminated, truncated, indices, *_: (
        rewards.new_empty(indices.shape),
        rewards.new_empty(indices.shape),
        rewards.new_empty(indices.shape, dtype=torch.int64),
    ),
)


def n_step_gather(
    rewards: Tensor, terminated: Tensor, truncated: Tensor | None, indices: Tensor, cursor: Any, size: Any,
    gamma: float,
    n: int, next_values: Tensor | None, cut: Tensor | None, out: Any,
) -> Any:  # fmt: skip
    """`cursor` and `size` are each an int or a tensor: two arguments of the op, for a schema has one type for each."""
    tensors = [x if isinstance(x, Tensor) else None for x in (cursor, size)]
    ints = [0 if isinstance(x, Tensor) else x for x in (cursor, size)]
    arrays = _detached((rewards, terminated, truncated, indices, *tensors))
    found = _n_step_gather_op(*arrays, *ints, gamma, n, *_detached((next_values, cut)))
    return _into(out, found, "n_step_gather", "")
