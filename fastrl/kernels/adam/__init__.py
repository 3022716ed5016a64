"""Adam for lists of parameters: one call and one pass."""

from __future__ import annotations

from typing import Any

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose
from fastrl.kernels.adam import reference

backend = choose(__package__)


def adam_step(
    params: Any,
    grads: Any,
    exp_avgs: Any,
    exp_avg_sqs: Any,
    steps: Any,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One step of Adam down the gradients g of all parameters p of a list, in place.

        t <- t + 1
        g <- g + weight_decay p
        m <- m + (1 - beta1) (g - m)
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    The state is that of ``torch.optim.Adam``, and either can go on where the other stopped: the results agree within
    the rounding of single steps (in C++, on processors with fused multiply-add, m and v are as a rule those of torch's
    fused Adam to the bit).  They depend neither on strides nor on the number of threads.

    As under ``torch.no_grad()`` no gradient is recorded, and torch is told that the parameters changed, so that a
    backward pass through their old values raises.  torch.compile breaks its graph at the call.

    CUDA tensors are checked and given to torch's own fused kernel (one launch for many tensors; can be captured in a
    CUDA graph): they must have no gaps, and `steps` must be float32.

    Args:
        params: list or tuple of p, NumPy arrays or torch tensors, all arrays of a call of one kind and device; float32
            or float64; any strides.  Empty lists and arrays are left as they are.
        grads, exp_avgs, exp_avg_sqs: lists of g, m and v, each like its p.  g is only read; m and v start from zeros.
        steps: list of arrays without dimensions, float32 or float64, each t of one parameter; 0 to start with.
        lr, eps, weight_decay: finite, >= 0.  On CUDA `lr` may be a tensor without dimensions, which a captured graph
            reads anew at each replay.
        beta1, beta2: in [0, 1).

    Raises:
        TypeError: a wrong type, or another kind of array.
        ValueError: a wrong length, dtype, shape or device; a number out of range; a step that is negative or NaN (on
            CUDA nothing waits for the device to check that); an array that is not aligned, or is to be written and is
            read-only, overlaps itself, or shares memory with another array of the call.  Views that only interleave
            (two columns of a matrix, or the items of one strange view) count as that.
        Nothing is written in any of these cases.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    first = params[0] if isinstance(params, (list, tuple)) and params else params
    backend.of(first).adam_step(params, grads, exp_avgs, exp_avg_sqs, steps, lr, beta1, beta2, eps, weight_decay)
    _arrays.mark_written(params)


def adam_step_reference(
    params: Any,
    grads: Any,
    exp_avgs: Any,
    exp_avg_sqs: Any,
    steps: Any,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """`adam_step` in NumPy."""
    reference.adam_step(params, grads, exp_avgs, exp_avg_sqs, steps, lr, beta1, beta2, eps, weight_decay)
