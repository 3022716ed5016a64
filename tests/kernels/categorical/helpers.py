"""What the tests of this op share."""

import numpy as np
import scipy.special
import scipy.stats

INF, NAN = np.inf, np.nan
# Around the 16 rows and 64 actions that the C++ kernel works on together.
SIZES = [(1, 1), (4, 2), (15, 18), (16, 3), (17, 6), (99, 4), (989, 5), (3, 63), (2, 64), (33, 65), (5, 1000)]


def random_logits(rng, rows, actions, dtype, masked=0.2):
    """Of a few sizes, some masked, every row with an action left."""
    z = (rng.normal(size=(rows, actions)) * 10.0 ** rng.uniform(-2, 2, (rows, 1))).astype(dtype)
    z[rng.random((rows, actions)) < masked] = -INF
    z[np.arange(rows), rng.integers(0, actions, rows)] = 0.5
    return z


def oracle_entropy(z):
    return scipy.stats.entropy(scipy.special.softmax(z.astype(np.float64), axis=1), axis=1)
