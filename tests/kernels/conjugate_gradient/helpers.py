"""What the tests of this op share."""

import importlib

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

cg = importlib.import_module("fastrl.kernels.conjugate_gradient.solve")


def spd(rng, n, condition):
    """A symmetric matrix with eigenvalues from 1 / condition to 1: log-spaced, of a large one all but 8 above 1 / 2."""
    q = scipy.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.geomspace(1, 1 / condition, n)
    if n > 20:
        middle = max(0.5, 1 / condition)
        values = np.r_[np.linspace(1, middle, n - 8), np.geomspace(middle, 1 / condition, 8)]
    return (q * values) @ q.T
