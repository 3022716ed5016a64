"""What the tests of this op share."""

import math

import numpy as np

DTYPES = [np.float32, np.float64]
FORMS = ["stable", "epsilon"]
LIMITS = (-math.inf, math.inf, 0.0)


def inputs(rng, rows, columns, dtype, shared=False):
    mean, noise = rng.normal(size=(2, rows, columns)).astype(dtype)
    log_std = rng.uniform(-3, 1, columns if shared else (rows, columns)).astype(dtype)
    return mean, log_std, noise
