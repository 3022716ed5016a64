"""Distributional Q-learning: the projection of C51, its loss, and that of QR-DQN and IQN, with their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose
from fastrl.kernels.mlp.losses import QLoss

__all__ = ["c51_actor_loss", "c51_loss", "categorical_projection", "quantile_huber_loss", "two_hot"]

backend = choose(__package__)


def categorical_projection(probs: Any, rewards: Any, discounts: Any, *, v_min: float, v_max: float) -> Any:
    """The distribution of r + discount Z on the atoms of Z: ``[B, N]``.

        z_j = v_min + j step, step = (v_max - v_min) / (N - 1), j = 0 .. N - 1
        m_ij = sum_k p_ik max(0, 1 - |clip(r_i + discount_i z_k, v_min, v_max) - z_j| / step)

    Each mass is shared by the two atoms beside it, in proportion to how near they are: the sum of the masses stays, and
    so does their mean unless they are clipped.  A discount of 0 puts a mass of 1 on r, whatever probs are.  A row with
    a NaN among its numbers (or an infinite discount or probability) is NaN, and no other.  No gradients.

    Args:
        probs: p, float32 ``[B, N]``, N >= 2; each row sums to 1.
        rewards, discounts: float32 ``[B]``; discount = gamma^m (1 - terminated).
        v_min, v_max: at most 1e200 in size, v_min < v_max.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, one atom, or v_min >= v_max.

    Source: Bellemare et al. 2017, arXiv:1707.06887, algorithm 1.
    """
    low, high = _support("categorical_projection", v_min, v_max)
    return backend.of(probs).categorical_projection(probs, rewards, discounts, low, high)


def two_hot(values: Any, n_atoms: int, *, v_min: float, v_max: float) -> Any:
    """A mass of 1 on each value, shared by the two atoms beside it: ``[B, n_atoms]``, with the value (clipped) as mean.

    `categorical_projection` with discounts of 0; values: float32 ``[B]``.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, less than 2 atoms, or v_min >= v_max.

    Source: Imani and White 2018, arXiv:1806.04613; Schrittwieser et al. 2020, arXiv:1911.08265, appendix F.
    """
    low, high = _support("two_hot", v_min, v_max)
    if not (_arrays.is_int(n_atoms) and 2 <= n_atoms <= 2**24):
        raise ValueError(f"two_hot: n_atoms must be an int in [2, 16777216], got {n_atoms!r}")
    x = _arrays.load_on_device(values, "two_hot: values", ("float32",))
    if x.ndim != 1:
        raise ValueError(f"two_hot: values must have shape [B], got {tuple(x.shape)}")
    if isinstance(x, np.ndarray):
        none, probs = np.zeros(len(x), np.float32), np.zeros((len(x), int(n_atoms)), np.float32)
        found = backend.of(values).categorical_projection(probs, x, none, low, high)
        return _arrays.like(found, values)
    return backend.of(values).categorical_projection(
        x.new_zeros(len(x), int(n_atoms)), x, x.new_zeros(len(x)), low, high
    )


def c51_loss(
    logits: Any,
    actions: Any,
    rewards: Any,
    discounts: Any,
    next_logits: Any,
    *,
    v_min: float,
    v_max: float,
    next_logits_online: Any = None,
    weights: Any = None,
) -> QLoss:
    """The loss of categorical DQN (C51): the cross-entropy to the projected target, and its gradient.

        p(s, a) = softmax(logits(s, a));  Q(s, a) = sum_j z_j p_j(s, a)
        a*_i = argmax_a Q'(s'_i, a), or with `next_logits_online` argmax_a Q(s'_i, a)
        m_i = categorical_projection(p'(s'_i, a*_i), r_i, discount_i)
        L = -1/B sum_i w_i sum_j m_ij log p_j(s_i, a_i)

    m is constant: no gradient goes through it.  A discount of 0 stops the bootstrap whatever next_logits are.  Where a
    number of a row is NaN its loss, error and gradient are, and no other row's.

    Args:
        logits, next_logits, next_logits_online: of s, of s' by the target network, of s' by the online one; float32
            ``[B, A, N]``, N >= 2 atoms z_j from v_min to v_max, as in `categorical_projection`.
        actions: int64 or int32 ``[B]``.
        rewards, discounts, weights: float32 ``[B]``; weights None: 1.
        v_min, v_max: at most 1e200 in size, v_min < v_max.

    Returns:
        QLoss: d_q ``[B, A, N]`` is the gradient in logits, td_errors ``[B]`` the divergences KL(m || p(s, a)), >= 0, by
        which Rainbow prioritises, and mean_q the mean of Q(s, a).  If logits require grad the loss is a tensor with
        that gradient.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, no rows, one atom, or v_min >= v_max.
        IndexError: an action outside [0, A) (on CUDA torch's own assertion).

    Sources: Bellemare et al. 2017, arXiv:1707.06887; Hessel et al. 2018 (Rainbow), arXiv:1710.02298.
    """
    low, high = _support("c51_loss", v_min, v_max)
    arguments = (logits, actions, rewards, discounts, next_logits, next_logits_online, weights, low, high)
    return _loss("c51_loss", *arguments)


def c51_actor_loss(logits: Any, *, v_min: float, v_max: float) -> tuple[Any, Any]:
    """The loss of an actor that maximises the mean of a categorical critic (D4PG), and its gradient in the logits.

        p(s, a) = softmax(logits(s, a));  Q(s, a) = sum_j z_j p_j(s, a)
        L = -1/B sum_i Q(s_i, a_i);  dL / dlogits_ij = p_ij (Q_i - z_j) / B

    Where a number of a row is NaN the loss and the row's gradient are, and no other row's.

    Args:
        logits: float32 ``[B, N]``, N >= 2 atoms z_j from v_min to v_max.
        v_min, v_max: at most 1e200 in size, v_min < v_max.

    Returns:
        L (a float; on CUDA a tensor without dimensions) and the gradient ``[B, N]``.

    Raises:
        TypeError, ValueError: a wrong type, dtype or shape, no rows, one atom, or v_min >= v_max.

    Source: Barth-Maron et al. 2018, arXiv:1804.08617.
    """
    return tuple(backend.of(logits).c51_actor_loss(logits, *_support("c51_actor_loss", v_min, v_max)))


def quantile_huber_loss(
    quantiles: Any,
    actions: Any,
    rewards: Any,
    discounts: Any,
    next_quantiles: Any,
    *,
    taus: Any = None,
    next_quantiles_online: Any = None,
    weights: Any = None,
    kappa: float = 1.0,
) -> QLoss:
    """The loss of quantile regression, QR-DQN's and IQN's, and its gradient.

        Q(s, a) = mean_i theta_i(s, a);  a* = argmax_a Q'(s', a), or with `next_quantiles_online` argmax_a Q(s', a)
        y_j = r + discount theta'_j(s', a*);  u_ij = y_j - theta_i(s, a)
        L = 1/B sum_b w_b sum_i 1/N' sum_j |tau_i - 1[u_ij < 0]| H(u_ij) / kappa
        H(u) = u^2 / 2 for |u| <= kappa, else kappa (|u| - kappa / 2)

    y is constant: no gradient goes through it.  A discount of 0 stops the bootstrap whatever next_quantiles are.

    Args:
        quantiles: theta of s, float32 ``[B, A, N]``.
        actions: int64 or int32 ``[B]``.
        rewards, discounts, weights: float32 ``[B]``; weights None: 1.
        next_quantiles, next_quantiles_online: of s' by the target network and by the online one, ``[B, A, N']``; each
            may have its own number of quantiles.
        taus: tau, float32 ``[B, N]`` (IQN); None: the midpoints (2 i + 1) / (2 N) (QR-DQN).
        kappa: > 0, where the loss goes over from squares to distances.

    Returns:
        QLoss: d_q ``[B, A, N]`` is the gradient in quantiles, td_errors ``[B]`` are Q(s, a) - mean_j y_j, and mean_q is
        the mean of Q(s, a).  If quantiles require grad the loss is a tensor with that gradient.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, no rows, or a kappa not finite and > 1e-300.
        IndexError: an action outside [0, A) (on CUDA torch's own assertion).

    Sources: Dabney et al. 2018, arXiv:1710.10044 (QR-DQN, eq. 10) and arXiv:1806.06923 (IQN, eq. 3).
    """
    kappa = _arrays.load_float(kappa, "quantile_huber_loss: kappa", "finite and >= 0")
    if not kappa > 1e-300:  # 1 / kappa is finite
        raise ValueError(f"quantile_huber_loss: kappa must be > 1e-300, got {kappa!r}")
    arguments = (quantiles, actions, rewards, discounts, next_quantiles, next_quantiles_online, weights, taus, kappa)
    return _loss("quantile_huber_loss", *arguments)


def _loss(op: str, x: Any, *arguments: Any) -> QLoss:
    if _arrays.wants_grad(x):
        from fastrl.kernels.distributional._torch import with_gradient

        return QLoss(*with_gradient(x, op, *arguments))
    return QLoss(*getattr(backend.of(x), op)(x, *arguments))


def _support(op: str, v_min: Any, v_max: Any) -> tuple[float, float]:
    low, high = (_arrays.load_float(x, f"{op}: {name}", "finite") for x, name in ((v_min, "v_min"), (v_max, "v_max")))
    if max(abs(low), abs(high)) > 1e200:  # a discount times an atom is finite, so that infinite rewards have a place
        raise ValueError(f"{op}: v_min and v_max must be between -1e200 and 1e200, got {low!r} and {high!r}")
    if high - low <= 1e-300:
        wanted = "< v_max" if low >= high else "more than 1e-300 below v_max"
        raise ValueError(f"{op}: v_min must be {wanted}, got {low!r} and {high!r}")
    return low, high
