"""Categorical policy head: draw an action with its log-probability; log-probability and entropy of given actions.

For logits z [B, K]: log p_bk = z_bk - m_b - log sum_j e^{z_bj - m_b}, m_b = max_j z_bj, k = 0 .. K-1.  A logit of -inf
masks its action: p is exactly 0, adds 0 to the entropy and is never drawn.  Each call is one fused pass over the
logits, and so is each gradient.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastrl import _backend
from fastrl.kernels import _arrays, _heads
from fastrl.kernels.generator import Generator


def categorical_sample(logits: Any, *, generator: Generator | None = None) -> tuple[Any, Any]:
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
    if _heads.is_half(logits):
        action, log_prob = categorical_sample(_heads.to_float32(logits), generator=generator)
        return action, _heads.to_half(log_prob, logits)
    if _arrays.is_compiling():
        from fastrl.kernels import _torch

        return _torch.categorical_sample(logits, generator)
    state = _heads.state_of(generator, logits, "categorical_sample")
    if _heads.wants_grad(logits):
        from fastrl.kernels import _torch

        drawn: tuple[Any, Any] = _torch.categorical_sample_autograd(logits, state)
    else:
        drawn = kernels_for(logits).categorical_sample(logits, state, None)
    return drawn


def categorical_log_prob_entropy(logits: Any, action: Any) -> tuple[Any, Any]:
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
    if _heads.is_half(logits):
        log_prob, entropy = categorical_log_prob_entropy(_heads.to_float32(logits), action)
        return _heads.to_half(log_prob, logits), _heads.to_half(entropy, logits)
    if _arrays.is_compiling():
        from fastrl.kernels import _torch

        return _torch.categorical_log_prob_entropy(logits, action)
    if _heads.wants_grad(logits):
        from fastrl.kernels import _torch

        result: tuple[Any, Any] = _torch.categorical_log_prob_entropy_autograd(logits, action)
    else:
        result = kernels_for(logits).categorical_log_prob_entropy(logits, action)
    return result


def categorical_sample_reference(logits: Any, *, generator: Generator | None = None) -> tuple[Any, Any]:
    """`categorical_sample` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    return _sample(logits, _heads.state_of(generator, logits, "categorical_sample"), None)


def categorical_log_prob_entropy_reference(logits: Any, action: Any) -> tuple[Any, Any]:
    """`categorical_log_prob_entropy` in plain NumPy (torch for a CUDA tensor), in float64 and without gradients."""
    return _log_prob_entropy(logits, action)


# ---- reference ---------------------------------------------------------------------------------------------------


def load_logits(logits: Any, op: str) -> Any:
    array = _heads.load(logits, f"{op}: logits")
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"{op}: logits must have shape [B, K] with K >= 1, got {tuple(array.shape)}")
    return array


def load_action(action: Any, op: str, logits: Any) -> Any:
    """int64 [B] in [0, K); a copy, because another thread may write to the caller's meanwhile."""
    array = _heads.load(action, f"{op}: action", ("int64", "int32"), logits, "logits")
    rows, actions = logits.shape
    if tuple(array.shape) != (rows,):
        raise ValueError(f"{op}: action must have shape ({rows},), got {tuple(array.shape)}")
    xp = _heads.module_of(array)
    array = xp.asarray(array, dtype=xp.int64) + 0
    bad = xp.asarray((array < 0) | (array >= actions), dtype=xp.int8)
    if bool(bad.any()):  # waits for a GPU
        i = int(bad.argmax())
        raise IndexError(f"{op}: action[{i}] is {int(array[i])}, outside [0, {actions})")
    return array


def invalid_row(row: int) -> ValueError:
    return ValueError(f"categorical_sample: logits[{row}] has NaN, +inf or only -inf: there is no action to draw")


def _exponentials(z: Any) -> tuple[Any, Any]:
    """d = z - max (0 where all are masked) and e^d [B, K], in float64."""
    xp = _heads.module_of(z)
    z = _heads.to_float64(z)
    with np.errstate(invalid="ignore", under="ignore"):
        largest = xp.amax(z, 1)[:, None]
        d = z - xp.where(largest == -np.inf, 0.0, largest)
        return d, xp.where(d < -708.0, 0.0, xp.exp(d))


def _log_p(z: Any) -> tuple[Any, Any, Any]:
    """log p, p and p log p [B, K]; NaN in a row that has no distribution."""
    xp = _heads.module_of(z)
    d, e = _exponentials(z)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = e.sum(1)[:, None]
        total = xp.where(total > 0, total, np.nan)
        log_p, p = d - xp.log(total), e / total
        return log_p, p, xp.where(e == 0, 0.0, p * log_p) + 0.0 * total


def _pick(x: Any, action: Any) -> Any:
    xp = _heads.module_of(x)
    return x[xp.arange(len(x)) if xp is np else xp.arange(len(x), device=x.device), action]


def _running_sums(e: Any) -> Any:
    """cumsum(e, 1), one after the other: in another order, as torch's on a GPU, a 0 can widen its action's share."""
    if isinstance(e, np.ndarray):
        return np.cumsum(e, 1)
    prefix = e.clone()
    for k in range(1, e.shape[1]):
        prefix[:, k] += prefix[:, k - 1]
    return prefix


def _sample(logits: Any, state: Any, uniform: Any) -> tuple[Any, Any]:
    z = load_logits(logits, "categorical_sample")
    xp = _heads.module_of(z)
    d, e = _exponentials(z)
    with np.errstate(invalid="ignore", divide="ignore"):
        prefix = _running_sums(e)
        total = prefix[:, -1:]
        bad = xp.asarray(~((total[:, 0] > 0) & (total[:, 0] < np.inf)), dtype=xp.int8)
    if bool(bad.any()):
        raise invalid_row(int(bad.argmax()))
    u = _heads.uniforms(state, len(z)) if uniform is None else _heads.load(uniform, "categorical_sample: uniform")
    # Where u times the total rounds up to the total, the last action that adds something.
    action = ((prefix <= u[:, None] * total) & (prefix < total)).sum(1)
    log_prob = _pick(d, action) - xp.log(total[:, 0])
    return _heads.hand_back(action, logits, "int64"), _heads.hand_back(log_prob, logits)


def _log_prob_entropy(logits: Any, action: Any) -> tuple[Any, Any]:
    z = load_logits(logits, "categorical_log_prob_entropy")
    a = load_action(action, "categorical_log_prob_entropy", logits)
    log_p, _, p_log_p = _log_p(z)
    return _heads.hand_back(_pick(log_p, a), logits), _heads.hand_back(-p_log_p.sum(1), logits)


def _log_prob_entropy_backward(logits: Any, action: Any, grad_log_prob: Any, grad_entropy: Any) -> Any:
    op = "categorical_log_prob_entropy_backward"
    z = load_logits(logits, op)
    a = load_action(action, op, logits)
    gl = _heads.load_row_grad(grad_log_prob, f"{op}: grad_log_prob", logits, "logits")
    gh = _heads.load_row_grad(grad_entropy, f"{op}: grad_entropy", logits, "logits")
    _, p, p_log_p = _log_p(z)
    xp = _heads.module_of(z)
    chosen = xp.asarray(a[:, None] == xp.cumsum(xp.ones_like(p), 1) - 1, dtype=xp.float64)
    entropy = -p_log_p.sum(1)[:, None]
    return _heads.hand_back(gl * (chosen - p) - gh * (p_log_p + p * entropy), logits)


# ---- backends ----------------------------------------------------------------------------------------------------

reference = SimpleNamespace(
    categorical_sample=_sample,
    categorical_log_prob_entropy=_log_prob_entropy,
    categorical_log_prob_entropy_backward=_log_prob_entropy_backward,
)


@functools.cache
def _cpu() -> Any:
    """What serves CPU arrays; Numba is imported when it is first needed."""
    if _backend.CPU_BACKEND == "cpp":
        return _backend._C
    if _backend.CPU_BACKEND == "numba":
        from fastrl.kernels._numba import categorical

        return categorical
    return reference


@functools.cache  # at the first call, because it imports torch
def _cuda() -> Any:
    return _backend._C_cuda if _backend.cuda_backend()[0] == "cuda" else reference


def kernels_for(logits: Any) -> Any:
    """The kernels of a backend: functions of the names, arguments and errors of those in `reference`."""
    return _cuda() if getattr(logits, "is_cuda", False) else _cpu()
