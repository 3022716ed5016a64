"""What the torch parts of the ops share.

Eager mode goes through the `torch.autograd.Function` of an op, and only where a gradient is wanted: the dispatcher
costs more than the kernels.  torch.compile goes through the ops of the library ``fastrl``, registered when the op's
`_torch` is imported, each with a fake kernel and, where it has gradients, their formula.  No gradient has a gradient
itself: a second one raises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

from fastrl.kernels._core import arrays as _arrays


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
    hints = get_type_hints(fn)  # torch 2.4 reads no annotations that are texts
    fn.__annotations__ = {name: None if hint is type(None) else hint for name, hint in hints.items()}
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


def like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def detached(args: Sequence[Any]) -> list[Any]:
    """The arguments of an op through which no gradient flows."""
    return [x.detach() if isinstance(x, Tensor) else x for x in args]


def into(out: Any, results: Any, op: str, like: str) -> Any:
    """The results, or `out` with them in it; `like` ends the text about a wrong shape."""
    if out is None:
        return results
    many = not isinstance(results, Tensor)
    outs = _arrays.out_list(out, len(results), op) if many else [out]
    found = results if many else (results,)
    for i, (target, result) in enumerate(zip(outs, found, strict=True)):
        name = f"out[{i}]" if many else "out"
        if not isinstance(target, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor{like}, got a {type(target).__name__}")
        if target.dtype != result.dtype:
            wanted, got = map(_arrays.dtype_name, (result, target))
            raise ValueError(f"{op}: {name} must have dtype {wanted}, got {got}")
        if target.shape != result.shape:
            raise ValueError(f"{op}: {name} must have shape {tuple(result.shape)}{like}, got {tuple(target.shape)}")
    for target, result in zip(outs, found, strict=True):
        target.copy_(result)
    return out
