"""The Numba backend: networks in float32 with NumPy's own BLAS, Adam compiled; the losses are the reference's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrl.kernels.adam._numba import _update
from fastrl.kernels.mlp import reference
from fastrl.kernels.mlp.reference import (
    min_q_loss,
    min_q_targets,
    ppo_categorical_loss,
    ppo_normal_loss,
    q_learning_loss,
    q_regression_loss,
    value_loss,
)

__all__ = [
    "MlpCore",
    "flat_adam",
    "min_q_loss",
    "min_q_targets",
    "ppo_categorical_loss",
    "ppo_normal_loss",
    "q_learning_loss",
    "q_regression_loss",
    "value_loss",
]


class MlpCore(reference.MlpCore):
    dtype = np.float32


def flat_adam(
    param: Any, grad: Any, exp_avg: Any, exp_avg_sq: Any, target: Any, average: Any, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float, steps: float, max_norm: float, tau: float, average_weight: float,
) -> float:  # fmt: skip
    p, g, m, v, t, a = reference.load_adam(param, grad, exp_avg, exp_avg_sq, target, average)
    norm = math.nan
    bias1, bias2 = 1 - beta1**steps, 1 - beta2**steps
    numbers = (weight_decay, 1 - beta1, beta2, 1 - beta2, 1 / math.sqrt(bias2), eps, lr / bias1)
    with np.errstate(all="ignore"):
        if max_norm >= 0:
            norm = float(np.sqrt(np.square(g, dtype=np.float64).sum()))
            factor = max_norm / (norm + 1e-6)
            if not factor >= 1:
                g *= np.float32(factor)
        _update(p, g, m, v, *(np.float32(x) for x in numbers))
        reference.follow(t, p, tau)
        reference.follow(a, p, average_weight)
    return norm
