"""Distributions of returns in NumPy and float64: what the other backends are held to."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.kernels._core.call import Call, give

__all__ = ["c51_actor_loss", "c51_loss", "categorical_projection", "quantile_huber_loss"]


# ---- arguments
def load_projection(probs: Any, rewards: Any, discounts: Any) -> tuple[Any, Any, Any]:
    load = Call("categorical_projection", "BN")
    p = load.floats(probs, "probs", (-1, -1))
    check_atoms(load, p.shape[1], "probs")
    return p, load.floats(rewards, "rewards", (len(p),)), load.floats(discounts, "discounts", (len(p),))


def load_transitions(
    load: Call, x: Any, name: str, actions: Any, rewards: Any, discounts: Any, next_x: Any, next_online: Any,
    weights: Any, same_atoms: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """What both losses take; next_x may have other atoms than x, and next_online than both, unless `same_atoms`."""
    now = load.floats(x, name, (-1, -1, -1))
    rows, n_actions, atoms = now.shape
    load.check_rows(min(rows, n_actions), name)
    if same_atoms:
        check_atoms(load, atoms, name)
    a = load.actions(actions, rows, n_actions)
    r, discount = load.floats(rewards, "rewards", (rows,)), load.floats(discounts, "discounts", (rows,))
    like = (rows, n_actions, atoms if same_atoms else -1)
    after, online = load.floats(next_x, f"next_{name}", like), load.maybe(next_online, f"next_{name}_online", like)
    w = load.maybe(weights, "weights", (rows,))
    for given, what in ((now, name), (after, f"next_{name}"), (online, f"next_{name}_online")):
        if given is not None and given.shape[2] < 1:
            raise ValueError(f"{load.op}: {what} must have at least one quantile")
    return now, a, r, discount, after, online, w


def load_c51(
    logits: Any, actions: Any, rewards: Any, discounts: Any, next_logits: Any, online: Any, weights: Any
) -> tuple[Any, ...]:
    load = Call("c51_loss", "BAN")
    return load_transitions(load, logits, "logits", actions, rewards, discounts, next_logits, online, weights, True)


def load_actor(logits: Any) -> Any:
    load = Call("c51_actor_loss", "BN")
    x = load.floats(logits, "logits", (-1, -1))
    load.check_rows(len(x), "logits")
    check_atoms(load, x.shape[1], "logits")
    return x


def load_quantiles(
    quantiles: Any, actions: Any, rewards: Any, discounts: Any, next_quantiles: Any, online: Any, weights: Any,
    taus: Any,
) -> tuple[Any, ...]:  # fmt: skip
    load = Call("quantile_huber_loss", "BAN")
    found = load_transitions(
        load, quantiles, "quantiles", actions, rewards, discounts, next_quantiles, online, weights, False
    )
    rows, _, n = found[0].shape
    midpoints = np.broadcast_to((np.arange(n) + 0.5) / n, (rows, n))
    return *found, midpoints if taus is None else load.floats(taus, "taus", (rows, n))


def check_atoms(load: Call, n: int, name: str) -> None:
    if n < 2:
        raise ValueError(f"{load.op}: {name} must have at least 2 atoms, got {n}")


# ---- the ops
def _project(p: Any, r: Any, discount: Any, v_min: float, v_max: float) -> Any:
    """For p [B, N]: m_j = sum_k p_k max(0, 1 - |clip(r + discount z_k) - z_j| / step)."""
    n = p.shape[1]
    step = (v_max - v_min) / (n - 1)
    z = v_min + step * np.arange(n)
    bootstraps = discount != 0
    p = np.where(bootstraps[:, None], p, np.arange(n) == 0)  # else one mass of 1, on r
    moved = r[:, None] + np.where(bootstraps[:, None], discount[:, None] * z, 0)
    place = np.minimum((np.clip(moved, v_min, v_max) - v_min) / step, n - 1)
    share = np.maximum(0, 1 - np.abs(place[:, :, None] - np.arange(n)))
    m = (p[:, :, None] * share).sum(1)
    lost = np.isnan(r) | ~np.isfinite(discount) | ~np.isfinite(p).all(1)
    m[lost] = np.nan
    return m


def _log_softmax(x: Any) -> Any:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _times(a: Any, x: Any) -> Any:
    """a x, and 0 where a is 0."""
    return np.where(a == 0, 0, a * x)


def categorical_projection(probs: Any, rewards: Any, discounts: Any, v_min: float, v_max: float) -> Any:
    p, r, discount = load_projection(probs, rewards, discounts)
    with np.errstate(all="ignore"):
        return give(_project(p, r, discount, v_min, v_max), probs)


def c51_loss(
    logits: Any, actions: Any, rewards: Any, discounts: Any, next_logits: Any, next_logits_online: Any, weights: Any,
    v_min: float, v_max: float,
) -> tuple[float, Any, Any, float]:  # fmt: skip
    x, a, r, discount, after, online, w = load_c51(
        logits, actions, rewards, discounts, next_logits, next_logits_online, weights
    )
    rows, _, n = x.shape
    each, z = np.arange(rows), np.linspace(v_min, v_max, n)
    share = (np.ones(rows) if w is None else w) / rows
    with np.errstate(all="ignore"):
        values = (np.exp(_log_softmax(after if online is None else online)) * z).sum(2)
        p_next = np.exp(_log_softmax(after[each, values.argmax(1)]))
        m = _project(p_next, r, discount, v_min, v_max)
        log_p = _log_softmax(x[each, a])
        p = np.exp(log_p)
        cross_entropy = -_times(m, log_p).sum(1)
        kl = np.maximum(cross_entropy + _times(m, np.log(np.where(m == 0, 1, m))).sum(1), 0)
        d = np.zeros_like(x)
        d[each, a] = share[:, None] * (p - m)
        return float((share * cross_entropy).sum()), give(d, logits), give(kl, rewards), float((p * z).sum(1).mean())


def c51_actor_loss(logits: Any, v_min: float, v_max: float) -> tuple[float, Any]:
    x = load_actor(logits)
    rows, n = x.shape
    z = np.linspace(v_min, v_max, n)
    with np.errstate(all="ignore"):
        p = np.exp(_log_softmax(x))
        q = (p * z).sum(1)
        return -float(q.mean()), give(p * (q[:, None] - z) / rows, logits)


def quantile_huber_loss(
    quantiles: Any, actions: Any, rewards: Any, discounts: Any, next_quantiles: Any, next_quantiles_online: Any,
    weights: Any, taus: Any, kappa: float,
) -> tuple[float, Any, Any, float]:  # fmt: skip
    x, a, r, discount, after, online, w, tau = load_quantiles(
        quantiles, actions, rewards, discounts, next_quantiles, next_quantiles_online, weights, taus
    )
    rows = len(x)
    each, share = np.arange(rows), (np.ones(rows) if w is None else w) / rows
    with np.errstate(all="ignore"):
        best = (after if online is None else online).mean(2).argmax(1)
        y = r[:, None] + _times(discount[:, None], after[each, best])
        theta = x[each, a]
        u = y[:, None, :] - theta[:, :, None]  # [B, N, N']
        size, side = np.abs(u), np.abs(tau[:, :, None] - (u < 0))
        huber = np.where(size <= kappa, 0.5 * u * u / kappa, size - 0.5 * kappa)
        d = np.zeros_like(x)
        d[each, a] = -share[:, None] * (side * np.clip(u / kappa, -1, 1)).mean(2)
        loss = (share * (side * huber).mean(2).sum(1)).sum()
        errors, value = theta.mean(1) - y.mean(1), theta.mean(1).mean()
        return float(loss), give(d, quantiles), give(errors, rewards), float(value)
