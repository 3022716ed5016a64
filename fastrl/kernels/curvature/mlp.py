"""Fisher products of a policy that is a `fastrl.MLP`, in NumPy's arrays: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl import _backend
from fastrl.kernels.mlp import MLP

# The C++ kernel serves networks no wider than this: up to here its tiles are as fast as a BLAS, or faster.
NARROW = 1024
CODES = {"": 0, "none": 0, "relu": 1, "tanh": 2, "silu": 3}  # of csrc/mlp/mlp.h
Floats = NDArray[np.float32]


class MLPFisherProduct:
    """v -> (F + damping I) v: what `FisherVectorProduct` is for torch modules, for an MLP on the CPU.

    F = (1 / B) sum_b J_b^T M_b J_b,  b = 0 .. B-1, as there (Schulman et al. 2015, arXiv:1502.05477, appendix C).

    Args:
        policy: one network without LayerNorm and streams, observations [B, in] -> logits [B, K] or means [B, A].
        log_std: None: categorical.  [A]: Gaussian, and v has a part for it behind that for the network.
        observations: float32 [B, in], B >= 1.
        damping: added to the diagonal.
        sizes: of a product of independent categoricals, the number of logits of each; None: there is one.
        allowed: bool [B, K], with a True in each row: which actions a categorical policy has; None: all.

    The forward pass is done once, at construction; after the parameters have moved, call `refresh`.
    """

    def __init__(
        self,
        policy: MLP,
        log_std: Floats | None,
        observations: Floats,
        damping: float,
        sizes: Sequence[int] | None = None,
        allowed: Any = None,
    ) -> None:
        self._policy, self._log_std, self.damping = policy, log_std, damping
        layout = policy._layout
        self._places = [(w.begin, b.begin, b.end) for w, b in zip(layout[::2], layout[1::2], strict=True)]
        shapes = [w.shape for w in layout[::2]]
        self._activations = [policy.activation] * (len(shapes) - 1) + ["none"]
        self._n_policy = layout[-1].end
        ends = np.cumsum([shapes[-1][0]] if sizes is None else sizes)
        self._parts = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        self._fused: Any = None
        if _backend.CPU_BACKEND == "cpp" and max(map(max, shapes)) <= NARROW:
            layers = [
                (n_in, n_out, CODES[name], w, b)
                for (n_out, n_in), name, (w, b, _) in zip(shapes, self._activations, self._places, strict=True)
            ]
            n, gaussian = self._n_policy, log_std is not None
            size = n + (len(log_std) if log_std is not None else 0)
            logits = [] if gaussian else [int(part.stop - part.start) for part in self._parts]
            self._fused = _backend._C.MlpFisher(size, layers, n if gaussian else -1, logits)
        self.refresh(observations, allowed)

    def refresh(self, observations: Floats, allowed: Any = None) -> None:
        """Do the forward pass anew: the parameters have moved, or the observations are others."""
        parameters = list(self._policy.parameters().values())
        self._weights = [w + 0 for w in parameters[::2]]  # copies: half a product must not see a change
        h = np.array(observations, np.float32)
        self._values, self._slopes = [h], []
        with np.errstate(over="ignore", invalid="ignore"):
            for w, b, name in zip(self._weights, parameters[1::2], self._activations, strict=True):
                h, slope = _activated(h @ w.T + b, name)
                self._values.append(h)
                self._slopes.append(slope)
            if self._log_std is None:
                h = h if allowed is None else np.where(allowed, h, np.float32(-np.inf))
                self._scale = np.concatenate([_softmax(h[:, part]) for part in self._parts], 1)
            else:
                self._scale = np.exp(-2 * self._log_std)[None] / np.float32(len(h))
        if self._fused is not None:
            slopes = [s if name == "silu" else None for s, name in zip(self._slopes, self._activations, strict=True)]
            self._fused.refresh(self._weights, self._values, slopes, self._scale)

    def __call__(self, v: Floats) -> Floats:
        if self._fused is not None:
            product: Floats = self._fused.product(v, self.damping)
            return product
        layers = list(zip(self._weights, self._values, self._slopes, self._places, strict=False))
        tangent: Any = None
        for w, h, slope, (begin, middle, end) in layers:
            t = h @ v[begin:middle].reshape(w.shape).T + v[middle:end]
            t = t if tangent is None else t + tangent @ w.T
            tangent = t if slope is None else t * slope
        if self._log_std is None:
            weighted = self._scale * tangent
            means = [np.broadcast_to(x.sum(1, keepdims=True), x.shape) for x in (weighted[:, p] for p in self._parts)]
            g = (tangent - np.concatenate(means, 1)) * self._scale / np.float32(len(tangent))
        else:
            g = tangent * self._scale
        out = np.float32(self.damping) * v
        for w, h, slope, (begin, middle, end) in reversed(layers):
            g = g if slope is None else g * slope
            out[begin:middle] += (g.T @ h).ravel()
            out[middle:end] += g.sum(0)
            g = g @ w
        out[self._n_policy :] += 2 * v[self._n_policy :]
        return out


def _softmax(z: Floats) -> Floats:
    p = np.exp(z - z.max(1, keepdims=True))
    result: Floats = p / p.sum(1, keepdims=True)
    return result


def _activated(z: Floats, name: str) -> tuple[Floats, Floats | None]:
    """f(z) and f'(z)."""
    if name == "tanh":
        h = np.tanh(z)
        return h, 1 - h * h
    if name == "relu":
        return np.maximum(z, 0), (z > 0).astype(np.float32)
    if name == "silu":
        s: Any = 1 / (1 + np.exp(-z))
        return z * s, s * (1 + z * (1 - s))
    return z, None
