"""What a checkpoint holds of an agent's parts: networks, optimizers, generators, arrays, and what has a small state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.arrays import exp, to_numpy
from fastrl.agents.batch_norm import BatchNormMLP
from fastrl.agents.networks import OwnNetwork
from fastrl.agents.noisy import NoisyMLP
from fastrl.agents.quantile_networks import QuantileMLP
from fastrl.agents.training import Diverged
from fastrl.kernels import MLP
from fastrl.kernels._core.arrays import assign, is_tensor

Parts = Mapping[str, Any]
NETWORKS = (MLP, NoisyMLP, BatchNormMLP, QuantileMLP, OwnNetwork)


def parts_state(parts: Parts) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The state of all parts, by name: JSON types, and arrays, which need not be copies.

    A network's weights are ``{part}.{name}``, as plain torch has them; Adam's moments are ``{part}.exp_avg`` and
    ``{part}.exp_avg_sq``, ``{part}.steps`` its number of steps.
    """
    state: dict[str, Any] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for name, part in parts.items():
        if _has_vector(part):
            tensors |= {f"{name}.{k}": np.asarray(to_numpy(v)) for k, v in part.state_dict().items()}
        elif _is_array(part):
            tensors[name] = to_numpy(part)
        elif isinstance(part, np.random.Generator):
            state[name] = part.bit_generator.state
        else:
            state[name] = part.state_dict()
    return state, tensors


def load_parts(parts: Parts, state: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Give back what `parts_state` took; raises ValueError, RuntimeError or KeyError for what does not fit."""
    for name, part in parts.items():
        if _has_vector(part):
            start = f"{name}."
            part.load_state_dict({k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)})
        elif _is_array(part):
            if tensors[name].shape != tuple(part.shape):
                raise ValueError(f"{name} must have shape {tuple(part.shape)}, got {tensors[name].shape}")
            assign(part, tensors[name])
        elif isinstance(part, np.random.Generator):
            part.bit_generator.state = state[name]
        else:
            part.load_state_dict(state[name])


def check_weights(parts: Parts, step: int) -> None:
    """Raise Diverged for weights that are NaN or infinite, which the last loss need not show."""
    for part in parts.values():
        if isinstance(part, NETWORKS):
            arrays = [part.vector, *(part.statistics() if isinstance(part, BatchNormMLP) else ())]
        elif _is_array(part):  # a logarithm, of a temperature say, which may be 0
            with np.errstate(over="ignore"):
                arrays = [exp(part)]
        else:
            continue
        if not all(np.isfinite(to_numpy(array)).all() for array in arrays):
            raise Diverged(f"weights are not finite at step {step}: training diverged; try a lower learning_rate")


def _has_vector(part: Any) -> bool:
    """Is it a network, or the optimizer of one's vector?"""
    return hasattr(part, "vector")


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray) or is_tensor(part)
