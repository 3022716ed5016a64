"""What the tests of this op share."""

import numpy as np
import scipy.stats


def inputs(rng, rows, columns, dtype, shared):
    mean = rng.normal(size=(rows, columns)).astype(dtype)
    log_std = rng.uniform(-3, 1, columns if shared else (rows, columns)).astype(dtype)
    action = (mean + np.exp(log_std) * rng.normal(size=(rows, columns))).astype(dtype)
    return mean, log_std, action


def oracle_log_prob(mean, log_std, action):
    mean, log_std, action = (x.astype(np.float64) for x in (mean, log_std, action))
    return scipy.stats.norm.logpdf(action, mean, np.exp(log_std)).sum(1)
