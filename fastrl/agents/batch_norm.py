"""Networks with batch renormalisation (Ioffe 2017, arXiv:1702.03275), differentiated by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastrl.agents.arrays import concatenate, on_device, stack, to_numpy
from fastrl.kernels import MLP
from fastrl.kernels._core.arrays import assign

EPS, R_MAX, D_MAX = 1e-3, 3.0, 5.0


class _Layer(NamedTuple):
    scale: slice  # in the vector
    shift: slice
    linear: MLP
    mean: Any  # running
    variance: Any


def means(x: Any) -> Any:
    """The mean of each column; as a product it takes NumPy a fifth of the time."""
    return np.full(len(x), 1 / len(x), np.float32) @ x if isinstance(x, np.ndarray) else x.mean(0)


def relu(x: Any) -> Any:
    return np.maximum(x, 0) if isinstance(x, np.ndarray) else x.clip(0)


class BatchNormMLP:
    """`n` ReLU networks side by side, with batch renormalisation before every linear layer.

        h_0 = x;  h_l = relu(W_l BN_l(h_{l-1}) + b_l) for l < L;  out = W_L BN_L(h_{L-1}) + b_L
        BN(h) = scale [r (h - m) / s + d] + shift, each feature by itself

    In `forward` and `forward_cached` m is the running mean M, s = S = sqrt(running variance + 1e-3), r = 1 and d = 0.
    In `forward_batch` m and s are those of the batch, s^2 = variance + 1e-3, and r and d, after the first `warmup` such
    calls, clip(s / S, 1/3, 3) and clip((m - M) / S, -5, 5), which are constants of the gradient: the output is that of
    the running statistics, the gradient that of the batch's.  Before, r = 1 and d = 0.  Each such call moves the
    running mean and variance by `momentum` of the way to the batch's.

    `vector` holds the parameters, network by network, scale, shift, weight and bias of each layer; `backward` writes
    `grad`.  Arrays are NumPy's on the CPU and tensors on CUDA; nothing needs torch on the CPU.

    Args:
        sizes: widths of inputs, hidden layers and outputs.
        n: None: one network, results ``[B, out]``.  A number: results ``[n, B, out]``.
        momentum, warmup: see above.
        seed: of the weights, uniform within 1 / sqrt(in); scale starts from 1 and shift from 0.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        n: int | None = None,
        momentum: float = 0.01,
        warmup: int = 100_000,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.sizes, self.n, self.momentum, self.warmup = tuple(sizes), n, momentum, warmup
        self.device, self.steps = device, 0
        size = sum(2 * n_in + (n_in + 1) * n_out for n_in, n_out in pairwise(self.sizes))
        k, features = n or 1, sum(self.sizes[:-1])
        self.vector, self.grad = (on_device(np.zeros(k * size, np.float32), device) for _ in range(2))
        self._means = on_device(np.zeros((k, features), np.float32), device)
        self._variances = on_device(np.ones((k, features), np.float32), device)
        self._make_layers()
        rng = np.random.default_rng(seed)
        for name, view in self.parameters().items():
            i, kind = (int(name.split(".")[-2]), name.split(".")[-1])
            bound = self.sizes[i // 3] ** -0.5
            start = rng.uniform(-bound, bound, tuple(view.shape)) if i % 3 else np.full(view.shape, kind == "weight")
            assign(view, start.astype(np.float32))

    def _make_layers(self) -> None:
        self._layers: list[list[_Layer]] = [[] for _ in range(self.n or 1)]  # of each network
        self._tapes: list[list[Any]] = []
        at = 0
        for k, layers in enumerate(self._layers):
            begin = 0
            for n_in, n_out in pairwise(self.sizes):
                ends = np.cumsum((at, n_in, n_in, (n_in + 1) * n_out))
                scale, shift, linear = (slice(x, y) for x, y in pairwise(ends))
                own = {"vector": self.vector[linear], "grad": self.grad[linear], "device": self.device}
                running = self._means[k, begin : begin + n_in], self._variances[k, begin : begin + n_in]
                layers.append(_Layer(scale, shift, MLP((n_in, n_out), "none", **own), *running))
                at, begin = ends[-1], begin + n_in

    # ---- what it computes

    def forward(self, x: Any, *, first: int | None = None) -> Any:
        """The outputs for x ``[B, in]``, or a tuple of arrays that are its columns, by the running statistics."""
        return self._run(x, first, batch=False, keep=False)

    __call__ = forward

    def forward_cached(self, x: Any, *, first: int | None = None) -> Any:
        """`forward`, and what `backward` needs is kept."""
        return self._run(x, first, batch=False, keep=True)

    def forward_batch(self, x: Any) -> Any:
        """The outputs by the statistics of x, towards which the running ones move; kept for `backward`."""
        out = self._run(x, None, batch=True, keep=True)
        self.steps += 1
        return out

    def _run(self, x: Any, first: int | None, batch: bool, keep: bool) -> Any:
        x = concatenate(x, 1) if isinstance(x, tuple) else x
        outs, tapes = [], []
        for layers in self._layers[:first]:
            h, tape = x, []
            for i, layer in enumerate(layers):
                normal, r, d, slope = self._batch_norm(h, layer) if batch else self._running_norm(h, layer)
                scale = self.vector[layer.scale]
                y = normal * (r * scale)
                y += d * scale + self.vector[layer.shift]
                tape.append((h, normal, r, d, slope))
                h = layer.linear.forward_cached(y) if keep else layer.linear.forward(y)
                if i + 1 < len(layers):
                    h = relu(h)
            outs.append(h)
            tapes.append(tape)
        if keep:
            self._tapes, self._by_batch = tapes, batch
        return outs[0] if self.n is None else stack(outs)

    def _running_norm(self, h: Any, layer: _Layer) -> tuple[Any, Any, Any, Any]:
        """As `_batch_norm`, with the running mean and 1 / S."""
        slope = (layer.variance + EPS) ** -0.5
        return (h - layer.mean) * slope, 1.0, 0.0, slope

    def _batch_norm(self, h: Any, layer: _Layer) -> tuple[Any, Any, Any, Any]:
        """(h - m) / s, r, d, and the slope r / s; the running statistics move."""
        m = means(h)
        normal = h - m
        v = means(normal * normal)
        s = (v + EPS) ** 0.5
        normal *= 1 / s
        r: Any = 1.0
        d: Any = 0.0
        if self.steps >= self.warmup:
            running = (layer.variance + EPS) ** 0.5
            r = (s / running).clip(1 / R_MAX, R_MAX)
            d = ((m - layer.mean) / running).clip(-D_MAX, D_MAX)
        layer.mean[...] += self.momentum * (m - layer.mean)
        layer.variance[...] += self.momentum * (v - layer.variance)
        return normal, r, d, r / s

    def backward(self, d_out: Any, *, parameters: bool = True, inputs: slice | bool | None = None) -> Any:
        """The gradients of sum(d_out * out) for the outputs last kept: into `grad`, and ``[B, in]`` of all networks.

        `inputs`: True, or a slice of the columns of x.
        """
        if not self._tapes:
            raise RuntimeError("backward needs forward_cached or forward_batch before it")
        if parameters and len(self._tapes) < len(self._layers):
            self.grad[...] = 0
        d_x: Any = 0
        for tape, layers, d in zip(self._tapes, self._layers, d_out if self.n is not None else [d_out], strict=False):
            for i in range(len(tape) - 1, -1, -1):
                (h, normal, r, shift, slope), layer = tape[i], layers[i]
                d = layer.linear.backward(d, parameters=parameters, inputs=True)
                if parameters or self._by_batch:
                    mean, along = means(d), means(d * normal)
                if parameters:
                    self.grad[layer.scale], self.grad[layer.shift] = len(d) * (r * along + shift * mean), len(d) * mean
                if self._by_batch:
                    d -= mean
                    d -= normal * along
                d *= self.vector[layer.scale] * slope
                if i > 0:
                    d *= h > 0
            d_x = d_x + d
        return d_x if inputs is True else d_x[:, inputs] if inputs else None

    # ---- parameters

    def _prefixes(self) -> list[str]:
        return [""] if self.n is None else [f"{k}." for k in range(self.n)]

    def parameters(self, vector: Any = None) -> dict[str, Any]:
        """Name -> view, of `vector` or of another vector like it; names are those of `to_torch`'s module."""
        flat, found = self.vector if vector is None else vector, {}
        for prefix, layers in zip(self._prefixes(), self._layers, strict=True):
            for i, layer in enumerate(layers):
                found[f"{prefix}{3 * i}.weight"], found[f"{prefix}{3 * i}.bias"] = flat[layer.scale], flat[layer.shift]
                of = flat[layer.shift.stop : layer.shift.stop + len(layer.linear.vector)]
                views = layer.linear.parameters(of)
                found[f"{prefix}{3 * i + 1}.weight"], found[f"{prefix}{3 * i + 1}.bias"] = views.values()
        return found

    def _statistics(self) -> dict[str, Any]:
        """Name -> view of the running means and variances."""
        return {
            f"{prefix}{3 * i}.{name}": view
            for prefix, layers in zip(self._prefixes(), self._layers, strict=True)
            for i, layer in enumerate(layers)
            for name, view in (("running_mean", layer.mean), ("running_var", layer.variance))
        }

    def statistics(self) -> tuple[Any, Any]:
        """The running means and variances of all layers ``[n, features]``."""
        return self._means, self._variances

    def state_dict(self) -> dict[str, Any]:
        """Copies of parameters, running statistics and the numbers of batches, as `to_torch`'s module has them."""
        counts = [f"{p}{3 * i}.num_batches_tracked" for p in self._prefixes() for i in range(len(self.sizes) - 1)]
        copies = {name: view + 0 for name, view in {**self.parameters(), **self._statistics()}.items()}
        return {**copies, **{name: np.array(self.steps) for name in counts}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; nothing changes if a name, a shape or a statistic does not fit."""
        own, views = self.state_dict(), {**self.parameters(), **self._statistics()}
        if set(own) != set(state):
            missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
            raise ValueError(f"BatchNormMLP: state_dict does not fit: missing {missing}, unexpected {extra}")
        for name, view in views.items():
            if tuple(state[name].shape) != tuple(view.shape):
                raise ValueError(f"BatchNormMLP: {name} must have shape {tuple(view.shape)}, got {state[name].shape}")
        for name in self._statistics():
            x, wanted = np.asarray(to_numpy(state[name])), "finite" + " and >= 0" * name.endswith("var")
            if not np.isfinite(x).all() or (name.endswith("var") and (x < 0).any()):
                raise ValueError(f"BatchNormMLP: {name} must be {wanted}")
        steps = int(next(state[name] for name in own if name.endswith("num_batches_tracked")))
        if steps < 0:
            raise ValueError(f"BatchNormMLP: num_batches_tracked must be >= 0, got {steps}")
        for name, view in views.items():
            assign(view, state[name])
        self.steps = steps

    def to_torch(self) -> Any:
        """``BatchNorm1d``, ``Linear`` and ``ReLU`` in a ``Sequential`` (a ``ModuleList`` with `n`), on this memory.

        In evaluation mode it computes what `forward` does.
        """
        import torch
        from torch import nn

        def one() -> nn.Sequential:
            layers = [
                [nn.BatchNorm1d(n_in, EPS, self.momentum), nn.Linear(n_in, n_out), nn.ReLU()]
                for n_in, n_out in pairwise(self.sizes)
            ]
            return nn.Sequential(*[layer for three in layers for layer in three][:-1])

        module: nn.Module = one() if self.n is None else nn.ModuleList(one() for _ in range(self.n))
        gradients = self.parameters(self.grad)
        for name, view in {**self.parameters(), **self._statistics()}.items():
            owner, _, leaf = name.rpartition(".")
            tensor = torch.as_tensor(view)
            if name in gradients:
                tensor = nn.Parameter(tensor)
                tensor.grad = torch.as_tensor(gradients[name])
            setattr(module.get_submodule(owner), leaf, tensor)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.num_batches_tracked = torch.tensor(self.steps)
        return module

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name not in ("_layers", "_tapes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_layers()

    def __repr__(self) -> str:
        return f"BatchNormMLP({self.sizes}" + ("" if self.n is None else f", n={self.n}") + ")"
