"""Categorical policy head: draw an action with its log-probability; log-probability and entropy of given actions.

For logits z [B, K]: log p_bk = z_bk - m_b - log sum_j e^{z_bj - m_b}, m_b = max_j z_bj, k = 0 .. K-1.  A logit of -inf
masks its action: p is exactly 0, adds 0 to the entropy and is never drawn.  Each call is one fused pass over the
logits, and so is each gradient.
"""

from __future__ import annotations

from typing import Any

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.arrays import A
from fastrl.kernels._core.backends import choose
from fastrl.kernels.categorical import reference
from fastrl.kernels.random import Generator, state_of

backend = choose(__package__)


def categorical_sample(logits: A, *, generator: Generator | None = None) -> tuple[Any, A]:
    """Draw one action a row, with its log-probability.

    action_b = min {k : sum_{j<=k} e^{z_bj - m_b} > u_b sum_j e^{z_bj - m_b}},  u_b in [0, 1)
    log_prob_b = log p_b,action_b,  b = 0 .. B-1

    The sums are taken in float64 and in the order of the index; u_b is the uniform of block counter + b of the
    generator, which advances by B.  So a seed gives the same actions on every backend and with any number of threads
    (but for a u within a rounding of a boundary: about once in 10^15 draws).

    Args:
        logits: float32 or float64 [B, K], K >= 1, any strides, NumPy or torch; bfloat16 and float16 too.  -inf
            masks an action.
        generator: a `Generator` on the same device; None: the default one (`fastrl.manual_seed`).

    Returns:
        action int64 [B] and log_prob [B], of the kind and device of `logits`, log_prob of its dtype too.  The draw has
        no gradient; log_prob has one with respect to the logits: 1{k = action} - p_k.

    Raises:
        ValueError: naming the first row that has NaN, +inf or only -inf; the generator stays as it was.  The compiled
            CUDA kernel does not wait for the device to find out: there the row has action -1 and log_prob NaN.
        TypeError, ValueError: a wrong kind, dtype or shape.

    >>> import numpy as np, fastrl
    >>> logits = np.array([[0.0, 1.0, -np.inf], [-np.inf, -np.inf, 2.0]])
    >>> action, log_prob = fastrl.categorical_sample(logits, generator=fastrl.Generator(0))
    >>> int(action[1]), float(log_prob[1])
    (2, 0.0)
    """
    if _arrays.is_half(logits):
        action, log_prob = categorical_sample(_arrays.to_float32(logits), generator=generator)
        return action, _arrays.to_half(log_prob, logits)
    if _arrays.is_compiling():
        from fastrl.kernels.categorical import _torch

        return _torch.categorical_sample(logits, generator)  # type: ignore[no-any-return]
    state = state_of(generator, logits, "categorical_sample")
    if _arrays.wants_grad(logits):
        from fastrl.kernels.categorical import _torch

        drawn: tuple[A, A] = _torch.categorical_sample_autograd(logits, state)
    else:
        drawn = backend.of(logits).categorical_sample(logits, state, None)
    return drawn


def categorical_log_prob_entropy(logits: A, action: Any) -> tuple[A, A]:
    """Log-probability of given actions, and the entropy.

    log_prob_b = log p_b,action_b
    entropy_b = - sum_k p_bk log p_bk, with 0 log 0 = 0,  b = 0 .. B-1

    Gradients with respect to the logits (second ones raise):
    d log_prob / d z_k = 1{k = action} - p_k ;  d entropy / d z_k = - p_k (log p_k + entropy).

    Args:
        logits: float32 or float64 [B, K], K >= 1, any strides, NumPy or torch; bfloat16 and float16 too.  -inf
            masks an action.
        action: int64 / int32 [B] in [0, K), of the same kind and device.

    Returns:
        log_prob [B] and entropy [B], of the kind, device and dtype of `logits`.  The log_prob of a masked action is
        -inf.  A row with NaN, +inf or only -inf is NaN in both, and no other row is.

    Raises:
        IndexError: naming the first action outside [0, K).  The compiled CUDA kernel does not wait for the device to
            find out: there log_prob and the gradients of the row are NaN.
        TypeError, ValueError: a wrong kind, dtype or shape.

    >>> import numpy as np, fastrl
    >>> log_prob, entropy = fastrl.categorical_log_prob_entropy(np.zeros((2, 4)), np.array([0, 3]))
    >>> np.allclose(log_prob, -np.log(4)) and np.allclose(entropy, np.log(4))
    True
    """
    if _arrays.is_half(logits):
        log_prob, entropy = categorical_log_prob_entropy(_arrays.to_float32(logits), action)
        return _arrays.to_half(log_prob, logits), _arrays.to_half(entropy, logits)
    if _arrays.is_compiling():
        from fastrl.kernels.categorical import _torch

        return _torch.categorical_log_prob_entropy(logits, action)  # type: ignore[no-any-return]
    if _arrays.wants_grad(logits):
        from fastrl.kernels.categorical import _torch

        result: tuple[A, A] = _torch.categorical_log_prob_entropy_autograd(logits, action)
    else:
        result = backend.of(logits).categorical_log_prob_entropy(logits, action)
    return result


def categorical_sample_reference(logits: A, *, generator: Generator | None = None) -> tuple[Any, A]:
    """`categorical_sample` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    return reference.categorical_sample(logits, state_of(generator, logits, "categorical_sample"), None)


def categorical_log_prob_entropy_reference(logits: A, action: Any) -> tuple[A, A]:
    """`categorical_log_prob_entropy` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    return reference.categorical_log_prob_entropy(logits, action)
