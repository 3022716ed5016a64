"""Arrays of either kind: NumPy's on the CPU, torch's tensors on CUDA.  Torch is imported where it is needed only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.config import import_torch


def on_device(x: NDArray[Any], device: str) -> Any:
    """`x` itself on the CPU, else a tensor on that device."""
    return x if device == "cpu" else import_torch(f"device {device}").from_numpy(x).to(device)


def to_numpy(x: Any) -> Any:
    """A tensor of any device as NumPy's array, on the CPU of the same memory; anything else as it is."""
    return x.detach().cpu().numpy() if hasattr(x, "detach") else x


def concatenate(parts: Sequence[Any], axis: int = 0) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis)
    return import_torch("a tensor").cat(tuple(parts), axis)


def stack(parts: Sequence[Any]) -> Any:
    return np.stack(parts) if isinstance(parts[0], np.ndarray) else import_torch("a tensor").stack(tuple(parts))


def exp(x: Any) -> Any:
    return np.exp(x) if isinstance(x, np.ndarray) else x.exp()


def double(x: Any) -> Any:
    return np.asarray(x, np.float64) if isinstance(x, np.ndarray) else x.detach().double()


def log_softmax(x: Any) -> Any:
    """log p_k of the logits ``[B, K]``; NaN where they are infinite."""
    if not isinstance(x, np.ndarray):
        return x.log_softmax(1)
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
