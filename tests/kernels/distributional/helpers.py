"""Transitions with distributions, and the losses as they are usually written, in float64."""

import numpy as np

from ..complex_step import exact, gradient, huber, log_softmax


class Batch:
    """Distributions `x`, `after`, `online` [B, A, N], and the rest of a batch; every third discount is 0."""

    def __init__(self, seed, rows, n_actions, n, n_after=None, scale=2.0):
        rng = np.random.default_rng(seed)
        n_after = n if n_after is None else n_after
        self.x = scale * rng.standard_normal((rows, n_actions, n), np.float32)
        self.after, self.online = (scale * rng.standard_normal((rows, n_actions, n_after), np.float32) for _ in "ab")
        self.actions = rng.integers(0, n_actions, rows).astype(np.int32 if seed % 2 else np.int64)
        self.rewards = 3 * rng.standard_normal(rows, np.float32)
        self.discounts = rng.uniform(0.1, 1, rows).astype(np.float32)
        self.discounts[::3] = 0
        self.weights = rng.uniform(0.1, 1, rows).astype(np.float32)
        self.taus = rng.uniform(0, 1, (rows, n)).astype(np.float32)

    @property
    def arguments(self):
        return self.x, self.actions, self.rewards, self.discounts, self.after

    def exact(self, double, weighted):
        """The same in float64, with what chooses the next action, and weights."""
        first, *rest = self.arguments
        choose, weights = self.online if double else self.after, self.weights if weighted else np.ones(len(first))
        return exact(first), rest[0], *map(exact, (*rest[1:], choose, weights))


def projected(p, r, discount, v_min, v_max):
    """Algorithm 1 of the C51 paper as it is usually written, with the atom that is hit exactly given its mass."""
    n = p.shape[1]
    z = np.linspace(v_min, v_max, n)
    step = (v_max - v_min) / (n - 1)
    b = ((r[:, None] + discount[:, None] * z).clip(v_min, v_max) - v_min) / step
    low, high = np.floor(b).astype(int), np.ceil(b).astype(int)
    low[(high > 0) & (low == high)] -= 1
    high[(low < n - 1) & (low == high)] += 1
    m, rows = np.zeros_like(p), np.arange(len(p))[:, None]
    np.add.at(m, (rows, low.clip(0, n - 1)), p * (high - b))
    np.add.at(m, (rows, high.clip(0, n - 1)), p * (b - low))
    return m


def c51(x, actions, r, discount, after, choose, w, v_min, v_max):
    """(loss, KL a row, mean Q, d loss / dx)."""
    rows, z = np.arange(len(x)), np.linspace(v_min, v_max, x.shape[2])
    best = (np.exp(log_softmax(choose)) @ z).argmax(1)
    m = projected(np.exp(log_softmax(after[rows, best])), r, discount, v_min, v_max)
    log_p, d = log_softmax(x[rows, actions]), np.zeros_like(x)
    d[rows, actions] = gradient(lambda chosen: -w * (m * log_softmax(chosen)).sum(1) / len(x), x[rows, actions])
    kl = (m * (np.log(np.where(m > 0, m, 1)) - log_p)).sum(1)
    return -(w * (m * log_p).sum(1)).mean(), kl, (np.exp(log_p) @ z).mean(), d


def c51_actor(logits, v_min, v_max):
    """(loss, d loss / d logits)."""
    z = np.linspace(v_min, v_max, logits.shape[1])
    each = lambda x: -np.exp(log_softmax(x)) @ z / len(x)  # noqa: E731
    return each(logits).sum(), gradient(each, logits)


def quantiles(x, actions, r, discount, after, choose, w, taus, kappa):
    """(loss, Q - mean y a row, mean Q, d loss / dx)."""
    rows, best = np.arange(len(x)), choose.mean(2).argmax(1)
    y = r[:, None] + discount[:, None] * after[rows, best]
    theta, d = x[rows, actions], np.zeros_like(x)

    def each(theta):  # [B * N, 1]: one quantile a row
        u = y[:, None, :] - theta.reshape(*taus.shape, 1)
        return (np.abs(taus[:, :, None] - (u.real < 0)) * huber(u, kappa) / kappa).mean(2).ravel()

    loss = (w * each(theta).reshape(theta.shape).sum(1)).mean()
    d[rows, actions] = (w / len(x))[:, None] * gradient(each, theta.reshape(-1, 1)).reshape(theta.shape)
    return loss, theta.mean(1) - y.mean(1), theta.mean(), d
