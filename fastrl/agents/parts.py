"""What a checkpoint holds of an agent's parts: networks, optimizers, generators, arrays, and what has a small state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastrl.agents.checkpoint import load_optimizer_tensors, optimizer_tensors
from fastrl.agents.networks import TorchNetwork
from fastrl.agents.noisy import NoisyMLP
from fastrl.agents.training import Diverged
from fastrl.kernels import MLP, FlatAdam

Parts = Mapping[str, Any]
NETWORKS = (MLP, NoisyMLP, TorchNetwork, torch.nn.Module)
ARRAYS = (np.ndarray, torch.Tensor)


def parts_state(parts: Parts) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The state of all parts, by name: JSON types, and tensors, which need not be copies.

    A network's weights are ``{part}.{name}``, as plain torch has them; Adam's moments are ``{part}.exp_avg`` and
    ``{part}.exp_avg_sq``, ``{part}.steps`` its number of steps.
    """
    state: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, (*NETWORKS, FlatAdam)):
            tensors |= {f"{name}.{k}": torch.as_tensor(v) for k, v in part.state_dict().items()}
        elif isinstance(part, torch.optim.Optimizer):
            tensors |= optimizer_tensors(part, f"{name}.")
        elif isinstance(part, ARRAYS):
            tensors[name] = torch.as_tensor(part)
        elif isinstance(part, np.random.Generator):
            state[name] = part.bit_generator.state
        else:
            state[name] = part.state_dict()
    return state, tensors


def load_parts(parts: Parts, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Give back what `parts_state` took; raises ValueError, RuntimeError or KeyError for what does not fit."""
    for name, part in parts.items():
        if isinstance(part, (*NETWORKS, FlatAdam)):
            start = f"{name}."
            part.load_state_dict({k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)})
        elif isinstance(part, torch.optim.Optimizer):
            load_optimizer_tensors(part, dict(tensors), f"{name}.")
        elif isinstance(part, ARRAYS):
            if tuple(tensors[name].shape) != tuple(part.shape):
                raise ValueError(f"{name} must have shape {tuple(part.shape)}, got {tuple(tensors[name].shape)}")
            part[...] = tensors[name]
        elif isinstance(part, np.random.Generator):
            part.bit_generator.state = state[name]
        else:
            part.load_state_dict(state[name])


def check_weights(parts: Parts, step: int) -> None:
    """Raise Diverged for weights that are NaN or infinite, which the last loss need not show."""
    for part in parts.values():
        if not all(map(_finite, _weights(part))):
            raise Diverged(f"weights are not finite at step {step}: training diverged; try a lower learning_rate")


def _weights(part: Any) -> list[Any]:
    if isinstance(part, torch.nn.Module):
        # A number by itself is the logarithm of a temperature, which may be 0.
        return [p if p.ndim else p.exp() for p in part.parameters()]
    if isinstance(part, NETWORKS):
        return [part.vector]
    return [torch.as_tensor(part).exp()] if isinstance(part, ARRAYS) else []  # logarithms too


def _finite(x: NDArray[Any] | torch.Tensor) -> bool:
    return bool(np.isfinite(x).all()) if isinstance(x, np.ndarray) else bool(torch.isfinite(x).all())
