"""The cross-entropy method as argmax over actions, in NumPy; the same lines run on torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.mlp.reference import MlpCore


def search(q: Callable[[Any, Any], Any], obs: Any, noise: Any, elites: int, std: float) -> tuple[Any, Any]:
    """(action [B, A], value [B]) for q(obs [B N, ...], action [B N, A]) -> [B N] and noise [T, N, A]."""
    xp, rows, (iterations, samples, a) = _arrays.module_of(obs), len(obs), noise.shape
    on = {} if xp is np else {"device": obs.device}
    stable: dict[str, Any] = {"kind": "stable"} if xp is np else {"stable": True}
    row = xp.arange(rows * samples, **on) // samples
    states, first = obs[row], xp.arange(rows, **on)[:, None] * samples
    eps = _arrays.to_float64(noise)
    mean, sigma = xp.zeros((rows, 1, a), dtype=xp.float64, **on), std
    best_action, best = xp.zeros((rows, a), dtype=xp.float32, **on), xp.zeros(rows, dtype=xp.float32, **on)
    for t in range(iterations):
        action = xp.asarray((mean + sigma * eps[t]).clip(-1, 1), dtype=xp.float32).reshape(-1, a)
        value = q(states, action)
        rank = xp.where(xp.isnan(value), -xp.inf, value)
        order = first + xp.argsort(-rank.reshape(rows, samples), **stable)[:, :elites]
        top = order[:, 0]
        better = rank[top] > xp.where(xp.isnan(best), -xp.inf, best)
        better = better if t > 0 else xp.ones_like(better)
        best_action = xp.where(better[:, None], action[top], best_action)
        best = xp.where(better, value[top], best)
        chosen = _arrays.to_float64(action)[order]
        mean = chosen.mean(1)[:, None]
        sigma = xp.sqrt(((chosen - mean) ** 2).mean(1))[:, None]
    return best_action, best


def cem_argmax(
    sizes: list[int],
    activation: int,
    layer_norm: bool,
    dueling: bool,
    vector: Any,
    obs: Any,
    noise: Any,
    elites: int,
    std: float,
    core: type[MlpCore] = MlpCore,
) -> tuple[Any, Any]:
    """`search` with the network of an `MLP`, of contiguous float32 arrays that are checked."""
    network = core(sizes, ("none", "relu", "tanh", "silu")[activation], 1, False, layer_norm, dueling)
    states = _arrays.load(obs, "cem_argmax: obs", ("float32",))
    eps = _arrays.load(noise, "cem_argmax: noise", ("float32",))

    def q(x: Any, action: Any) -> Any:
        return network.forward(vector, (x, action), 1, False)[:, 0]

    action, value = search(q, states, eps, elites, std)
    return _arrays.like(np.ascontiguousarray(action), obs), _arrays.like(value, obs)


__all__ = ["cem_argmax"]
