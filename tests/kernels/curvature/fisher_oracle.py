"""Products with the Fisher matrix of an MLP in float64, through the Jacobian of each state."""

import numpy as np

from ..complex_step import exact, log_softmax
from ..mlp.helpers import by_hand


def fisher_product(policy, log_std, obs, damping, parts=None):
    """v -> (1 / B) sum_b J_b^T M_b J_b v + damping v: M_b is 1 / sigma^2, or diag(p) - p p^T of each part's logits."""
    n, n_out = len(policy.vector), policy.sizes[-1]
    out = by_hand(policy, obs, np.zeros((len(obs), n_out)))[0]
    jacobian = np.zeros((*out.shape, n))
    for b, k in np.ndindex(out.shape):
        jacobian[b, k] = by_hand(policy, obs[b : b + 1], np.eye(n_out)[k : k + 1])[1]

    def metric(t):
        if log_std is not None:
            return np.exp(-2 * exact(log_std)) * t
        split = np.cumsum(parts or [n_out])[:-1]
        p = [np.exp(log_softmax(z)) for z in np.split(out, split, 1)]
        return np.concatenate(
            [q * (s - (q * s).sum(1, keepdims=True)) for q, s in zip(p, np.split(t, split, 1), strict=True)], 1
        )

    def product(v):
        wanted = damping * exact(v)
        wanted[:n] += np.einsum("bkn,bk->n", jacobian, metric(jacobian @ v[:n])) / len(obs)
        wanted[n:] += 2 * v[n:]
        return wanted

    return product
