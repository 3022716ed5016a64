"""Who computes: fastrl._C, NumPy and Numba, NumPy alone, or torch for CUDA tensors.  Chosen once."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastrl import _backend
from fastrl.kernels.mlp import reference

OPS = (
    "MlpCore", "flat_adam", "q_learning_loss", "min_q_targets", "q_regression_loss", "min_q_loss", "value_loss",
    "ppo_categorical_loss", "ppo_normal_loss",
)  # fmt: skip


def named(name: str) -> SimpleNamespace:
    """The ops of the CPU backend of that name."""
    module: Any = reference
    if name == "cpp":
        module = _backend._C
    elif name == "numba":
        from fastrl.kernels.mlp import _numba as module
    return SimpleNamespace(
        **{op: getattr(module, op) for op in OPS},
        new_vector=lambda n, device: np.zeros(n, np.float32),
        zeros_like=_zeros_like,
        check_vector=reference.check_vector,
    )


def _zeros_like(vector: Any) -> Any:
    return (
        np.zeros(len(vector), np.float32) if isinstance(vector, np.ndarray) else vector.detach().new_zeros(len(vector))
    )


@functools.cache
def cpu() -> SimpleNamespace:
    return named(_backend.CPU_BACKEND)


@functools.cache
def cuda() -> Any:
    from fastrl.kernels.mlp import _torch

    return _torch


def of_device(device: str) -> Any:
    return cpu() if device == "cpu" else cuda()


def of_array(x: Any) -> Any:
    return cuda() if getattr(x, "is_cuda", False) else cpu()
