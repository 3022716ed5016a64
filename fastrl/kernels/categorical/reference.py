"""The categorical head in NumPy, float64 inside; the same lines run on torch tensors for what is on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.random.reference import uniforms


def load_logits(logits: Any, op: str) -> Any:
    array = _arrays.load_on_device(logits, f"{op}: logits")
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"{op}: logits must have shape [B, K] with K >= 1, got {tuple(array.shape)}")
    return array


def load_action(action: Any, op: str, logits: Any) -> Any:
    """int64 [B] in [0, K); a copy, because another thread may write to the caller's meanwhile."""
    array = _arrays.load_on_device(action, f"{op}: action", ("int64", "int32"), logits, "logits")
    rows, actions = logits.shape
    if tuple(array.shape) != (rows,):
        raise ValueError(f"{op}: action must have shape ({rows},), got {tuple(array.shape)}")
    xp = _arrays.module_of(array)
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
    xp = _arrays.module_of(z)
    z = _arrays.to_float64(z)
    with np.errstate(invalid="ignore", under="ignore"):
        largest = xp.amax(z, 1)[:, None]
        d = z - xp.where(largest == -np.inf, 0.0, largest)
        return d, xp.where(d < -708.0, 0.0, xp.exp(d))


def _log_p(z: Any) -> tuple[Any, Any, Any]:
    """log p, p and p log p [B, K]; NaN in a row that has no distribution."""
    xp = _arrays.module_of(z)
    d, e = _exponentials(z)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = e.sum(1)[:, None]
        total = xp.where(total > 0, total, np.nan)
        log_p, p = d - xp.log(total), e / total
        return log_p, p, xp.where(e == 0, 0.0, p * log_p) + 0.0 * total


def _pick(x: Any, action: Any) -> Any:
    xp = _arrays.module_of(x)
    return x[xp.arange(len(x)) if xp is np else xp.arange(len(x), device=x.device), action]


def _running_sums(e: Any) -> Any:
    """cumsum(e, 1), one after the other: in another order, as torch's on a GPU, a 0 can widen its action's share."""
    if isinstance(e, np.ndarray):
        return np.cumsum(e, 1)
    prefix = e.clone()
    for k in range(1, e.shape[1]):
        prefix[:, k] += prefix[:, k - 1]
    return prefix


def categorical_sample(logits: Any, state: Any, uniform: Any) -> tuple[Any, Any]:
    z = load_logits(logits, "categorical_sample")
    xp = _arrays.module_of(z)
    d, e = _exponentials(z)
    with np.errstate(invalid="ignore", divide="ignore"):
        prefix = _running_sums(e)
        total = prefix[:, -1:]
        bad = xp.asarray(~((total[:, 0] > 0) & (total[:, 0] < np.inf)), dtype=xp.int8)
    if bool(bad.any()):
        raise invalid_row(int(bad.argmax()))
    u = uniforms(state, len(z)) if uniform is None else _arrays.load_on_device(uniform, "categorical_sample: uniform")
    # Where u times the total rounds up to the total, the last action that adds something.
    action = ((prefix <= u[:, None] * total) & (prefix < total)).sum(1)
    log_prob = _pick(d, action) - xp.log(total[:, 0])
    return _arrays.hand_back(action, logits, "int64"), _arrays.hand_back(log_prob, logits)


def categorical_log_prob_entropy(logits: Any, action: Any) -> tuple[Any, Any]:
    z = load_logits(logits, "categorical_log_prob_entropy")
    a = load_action(action, "categorical_log_prob_entropy", logits)
    log_p, _, p_log_p = _log_p(z)
    return _arrays.hand_back(_pick(log_p, a), logits), _arrays.hand_back(-p_log_p.sum(1), logits)


def categorical_log_prob_entropy_backward(logits: Any, action: Any, grad_log_prob: Any, grad_entropy: Any) -> Any:
    op = "categorical_log_prob_entropy_backward"
    z = load_logits(logits, op)
    a = load_action(action, op, logits)
    gl = _arrays.load_row_grad(grad_log_prob, f"{op}: grad_log_prob", logits, "logits")
    gh = _arrays.load_row_grad(grad_entropy, f"{op}: grad_entropy", logits, "logits")
    _, p, p_log_p = _log_p(z)
    xp = _arrays.module_of(z)
    chosen = xp.asarray(a[:, None] == xp.cumsum(xp.ones_like(p), 1) - 1, dtype=xp.float64)
    entropy = -p_log_p.sum(1)[:, None]
    return _arrays.hand_back(gl * (chosen - p) - gh * (p_log_p + p * entropy), logits)


__all__ = ["categorical_log_prob_entropy", "categorical_log_prob_entropy_backward", "categorical_sample"]
