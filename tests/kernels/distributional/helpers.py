"""Transitions with distributions, and the usual torch code in float64."""

import numpy as np
import torch

F = torch.nn.functional


def exact(x, grad=False):
    return torch.from_numpy(np.array(x)).double().requires_grad_(grad)


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

    def pick(self, x, index):
        return x[torch.arange(len(x)), torch.as_tensor(index).long()]


def torch_projection(p, r, discount, v_min, v_max):
    """Algorithm 1 of the C51 paper as it is usually written, with the atom that is hit exactly given its mass."""
    n = p.shape[1]
    z = torch.linspace(v_min, v_max, n, dtype=p.dtype)
    step = (v_max - v_min) / (n - 1)
    b = ((r[:, None] + discount[:, None] * z).clamp(v_min, v_max) - v_min) / step
    low, high = b.floor().long(), b.ceil().long()
    low[(high > 0) & (low == high)] -= 1
    high[(low < n - 1) & (low == high)] += 1
    m = torch.zeros_like(p)
    m.scatter_add_(1, low.clamp(0, n - 1), p * (high - b))
    m.scatter_add_(1, high.clamp(0, n - 1), p * (b - low))
    return m


def torch_c51(x, actions, r, discount, after, choose, w, v_min, v_max):
    """(loss, KL a row, mean Q), of tensors."""
    z = torch.linspace(v_min, v_max, x.shape[2], dtype=x.dtype)
    with torch.no_grad():
        best = (choose.softmax(2) * z).sum(2).argmax(1)
        m = torch_projection(after[torch.arange(len(x)), best].softmax(1), r, discount, v_min, v_max)
    log_p = x[torch.arange(len(x)), actions].log_softmax(1)
    each = -(m * log_p).sum(1)
    kl = F.kl_div(log_p, m, reduction="none").sum(1)
    return (w * each).mean(), kl, (log_p.exp() * z).sum(1).mean()


def torch_quantiles(x, actions, r, discount, after, choose, w, taus, kappa):
    """(loss, Q - mean y a row, mean Q), of tensors."""
    with torch.no_grad():
        best = choose.mean(2).argmax(1)
        y = r[:, None] + discount[:, None] * after[torch.arange(len(x)), best]
    theta = x[torch.arange(len(x)), actions]
    n, n_after = theta.shape[1], y.shape[1]
    u = y[:, None, :] - theta[:, :, None]
    huber = F.huber_loss(
        theta[:, :, None].expand(-1, n, n_after), y[:, None, :].expand(-1, n, n_after), reduction="none", delta=kappa
    )
    each = ((taus[:, :, None] - (u.detach() < 0).to(x)).abs() * huber / kappa).mean(2).sum(1)
    return (w * each).mean(), theta.mean(1) - y.mean(1), theta.mean()
