"""Gradients by complex steps, Im f(x + ih) / h: exact to rounding in float64, and no derivative is written by hand."""

import numpy as np


def gradient(f, x):
    """df/dx [B, N] of f(x) [B], each of which depends on its own row alone."""
    columns = []
    for k in range(x.shape[1]):
        moved = x.astype(np.complex128)
        moved[:, k] += 1e-30j
        columns.append(f(moved).imag / 1e-30)
    return np.stack(columns, 1)


def exact(x):
    return np.asarray(x).astype(np.float64)


def log_softmax(z):
    z = z - z.real.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def huber(u, kappa=1.0):
    size = np.where(u.real < 0, -u, u)
    return np.where(size.real <= kappa, u * u / 2, kappa * (size - kappa / 2))
