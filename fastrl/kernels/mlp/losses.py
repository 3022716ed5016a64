"""Losses of one batch with their gradients in the networks' outputs: one call each, nothing recorded.

Arrays are float32, NumPy or torch, all of a call of one kind and in any strides; results are of that kind.  Numbers are
Python floats (on CUDA tensors without dimensions, which nothing waits for).  Where Q is ``[n, B]`` it may also be
``[n, B, 1]``, as `MLP` gives it, and the gradient is then too.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose

backend = choose(__package__)


class QLoss(NamedTuple):
    """`loss`, its gradient `d_q` like q, `td_errors` q - y, and `mean_q`, the mean of the q that were trained."""

    loss: Any
    d_q: Any
    td_errors: Any
    mean_q: Any


class PPOLoss(NamedTuple):
    """`loss` and its parts, the gradient `d_out` in logits or mean, and in log_std (None if there is none)."""

    loss: Any
    policy_loss: Any
    entropy: Any
    kl: Any
    d_out: Any
    d_log_std: Any = None


def q_learning_loss(
    q: Any,
    actions: Any,
    rewards: Any,
    discounts: Any,
    next_q: Any,
    *,
    next_q_online: Any = None,
    weights: Any = None,
    loss: str = "mse",
) -> QLoss:
    """Q-learning's loss, its gradient and the TD errors.

        y_i = r_i + discount_i max_a Q'(s'_i, a), or with `next_q_online` r_i + discount_i Q'(s'_i, argmax_a Q(s'_i, a))
        L = 1/B sum_i w_i l(Q(s_i, a_i) - y_i), l(e) = e^2 ("mse") or e^2 / 2 for |e| <= 1, else |e| - 1/2 ("huber")

    y is constant: no gradient goes through it.  A discount of 0 stops the bootstrap whatever next_q is.

    Args:
        q, next_q, next_q_online: Q(s, .), Q'(s', .) of the target network, Q(s', .); float32 ``[B, A]``.
        actions: int64 or int32 ``[B]``.
        rewards, discounts, weights: float32 ``[B]``; discount = gamma^m (1 - terminated); weights None: 1.

    Returns:
        QLoss with d_q ``[B, A]`` and td_errors ``[B]``.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, no rows, or an unknown loss.
        IndexError: an action outside [0, A) (on CUDA torch's own assertion).

    Sources: Mnih et al. 2015, doi:10.1038/nature14236; van Hasselt et al. 2016, arXiv:1509.06461 (double).
    """
    huber = _is_huber("q_learning_loss", loss)
    ops = backend.of(q)
    return QLoss(*ops.q_learning_loss(q, actions, rewards, discounts, next_q, next_q_online, weights, huber))


def min_q_targets(
    next_q: Any, rewards: Any, discounts: Any, *, next_log_prob: Any = None, temperature: float = 0.0
) -> Any:
    """y_i = r_i + discount_i [min_k Q'_k(s'_i, a'_i) - temperature log pi(a'_i|s'_i)]: ``[B]``.

    Args:
        next_q: float32 ``[n, B]`` or ``[n, B, 1]``; one network (DDPG) has n = 1.
        rewards, discounts, next_log_prob: float32 ``[B]``; next_log_prob None: TD3 and DDPG.
        temperature: finite.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device.

    Sources: Fujimoto et al. 2018, arXiv:1802.09477; Haarnoja et al. 2018, arXiv:1812.05905.
    """
    temperature = _number("min_q_targets", "temperature", temperature, -math.inf)
    return backend.of(next_q).min_q_targets(next_q, rewards, discounts, next_log_prob, temperature)


def q_regression_loss(q: Any, targets: Any, *, weights: Any = None, loss: str = "mse") -> QLoss:
    """L = sum_k 1/B sum_i w_i l(Q_k(s_i, a_i) - y_i), l as in `q_learning_loss`: the critics of DDPG, TD3 and SAC.

    Args:
        q: float32 ``[n, B]`` or ``[n, B, 1]``.
        targets, weights: y and w, float32 ``[B]``; weights None: 1.

    Returns:
        QLoss with d_q like q and td_errors ``[n, B]``.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, no rows, or an unknown loss.
    """
    huber = _is_huber("q_regression_loss", loss)
    return QLoss(*backend.of(q).q_regression_loss(q, targets, weights, huber))


def min_q_loss(q: Any) -> tuple[Any, Any]:
    """L = -1/B sum_i min_k Q_k(s_i, a_i), and d_q like q: -1/B for the lowest (of equal ones the first), else 0.

    What an actor that maximises Q minimises (SAC adds temperature log pi).  q: float32 ``[n, B]`` or ``[n, B, 1]``.

    Raises:
        TypeError, ValueError: a wrong type, dtype or shape, or no rows.
    """
    return tuple(backend.of(q).min_q_loss(q))


def value_loss(
    values: Any, returns: Any, *, old_values: Any = None, clip_range: float | None = None, coef: float = 1.0
) -> tuple[Any, Any]:
    """L = coef mean (V - G)^2 / 2, and d_values like values.

    With `clip_range` e: coef mean max((V - G)^2, (V_old + clip(V - V_old, -e, e) - G)^2) / 2.

    Args:
        values: float32 ``[B]`` or ``[B, 1]``.
        returns, old_values: G and V_old, float32 ``[B]``.
        clip_range: > 0, with `old_values`; None: not clipped.
        coef: finite, >= 0.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, no rows, a number out of range, or one of
            `old_values` and `clip_range` without the other.
    """
    coef = _number("value_loss", "coef", coef, 0)
    if (old_values is None) != (clip_range is None):
        raise ValueError("value_loss: old_values and clip_range must be given together")
    clip = math.inf if clip_range is None else _positive("value_loss", "clip_range", clip_range)
    return tuple(backend.of(values).value_loss(values, returns, old_values, clip, coef))


def ppo_categorical_loss(
    logits: Any,
    actions: Any,
    old_log_probs: Any,
    advantages: Any,
    *,
    clip_range: float | None = None,
    old_logits: Any = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    normalize_advantages: bool = False,
) -> PPOLoss:
    """PPO's objective for a categorical policy, and its gradient in the logits.

        rho = pi(a|s) / pi_old(a|s);  L = L_policy - entropy_coef mean H(pi(.|s))
        L_policy = -mean min(rho A, clip(rho, 1 - clip_range, 1 + clip_range) A)      with `clip_range` (eq. 7)
        L_policy = -mean rho A + kl_coef mean KL(pi_old(.|s) || pi(.|s))              with `old_logits` (eq. 8)

    The two may be used together; with neither L_policy = -mean rho A.  `kl` is the exact mean with `old_logits`, else
    the estimate mean(rho - 1 - log rho).

    Args:
        logits, old_logits: float32 ``[B, K]``; -inf masks an action.
        actions: int64 or int32 ``[B]``.
        old_log_probs, advantages: float32 ``[B]``.  old_log_probs None: pi_old is pi, so rho is 1 and its gradient that
            of log pi, the policy gradient of A2C and REINFORCE.
        clip_range: > 0.  kl_coef, entropy_coef: finite, >= 0.
        normalize_advantages: A is shifted to mean 0 and divided by its standard deviation (divisor B) + 1e-8 first.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, no rows, or a number out of range.
        IndexError: an action outside [0, K) (on CUDA torch's own assertion).

    Source: Schulman et al. 2017, arXiv:1707.06347.
    """
    numbers = _ppo_numbers("ppo_categorical_loss", clip_range, kl_coef, entropy_coef)
    ops = backend.of(logits)
    return PPOLoss(
        *ops.ppo_categorical_loss(
            logits, actions, old_log_probs, advantages, old_logits, *numbers, bool(normalize_advantages)
        )
    )


def ppo_normal_loss(
    mean: Any,
    log_std: Any,
    actions: Any,
    old_log_probs: Any,
    advantages: Any,
    *,
    clip_range: float | None = None,
    old_mean: Any = None,
    old_log_std: Any = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    normalize_advantages: bool = False,
) -> PPOLoss:
    """`ppo_categorical_loss` for a diagonal Gaussian policy: gradients in mean ``[B, A]`` and log_std ``[A]``.

    Args:
        mean, actions, old_mean: float32 ``[B, A]``.
        log_std, old_log_std: float32 ``[A]``, the same in all states.  `old_mean` and `old_log_std` go together.
        The rest as there.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, no rows, or a number out of range.

    Source: Schulman et al. 2017, arXiv:1707.06347.
    """
    numbers = _ppo_numbers("ppo_normal_loss", clip_range, kl_coef, entropy_coef)
    if (old_mean is None) != (old_log_std is None):
        raise ValueError("ppo_normal_loss: old_mean and old_log_std must be given together")
    ops = backend.of(mean)
    return PPOLoss(
        *ops.ppo_normal_loss(
            mean, log_std, actions, old_log_probs, advantages, old_mean, old_log_std, *numbers,
            bool(normalize_advantages),
        )
    )  # fmt: skip


def _ppo_numbers(op: str, clip_range: Any, kl_coef: Any, entropy_coef: Any) -> tuple[float, float, float]:
    clip = math.inf if clip_range is None else _positive(op, "clip_range", clip_range)
    return clip, _number(op, "kl_coef", kl_coef, 0), _number(op, "entropy_coef", entropy_coef, 0)


def _is_huber(op: str, loss: Any) -> bool:
    if loss not in ("mse", "huber"):
        raise ValueError(f"{op}: loss must be mse or huber, got {loss!r}")
    return bool(loss == "huber")


def _number(op: str, name: str, value: Any, least: float) -> float:
    return _arrays.load_float(value, f"{op}: {name}", "finite and >= 0" if least == 0 else "finite")


def _positive(op: str, name: str, value: Any) -> float:
    number = _number(op, name, value, 0)
    if not number > 0:
        raise ValueError(f"{op}: {name} must be > 0, got {number!r}")
    return number
