"""Networks whose weights are noisy, for exploration (Fortunato et al. 2018, arXiv:1706.10295)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastrl.agents.arrays import concatenate, on_device
from fastrl.kernels import MLP


class NoisyMLP:
    """`fastrl.MLP` with noisy layers: w = mu + sigma * eps with factorised Gaussian noise, one for a whole batch.

        eps_W = f(e_out) f(e_in)^T, eps_b = f(e_out), f(x) = sign(x) sqrt(|x|), e ~ N(0, 1)      (eq. 10 and 11)

    `resample` draws eps and makes the weights that `forward` uses; after a change of `vector` it has to be called anew.
    `mean` is the network without noise, with weights mu.  `vector` holds mu and then sigma, and `backward` writes the
    gradients in both into `grad`: dL/dw and eps * dL/dw.  sigma starts from `sigma` / sqrt(inputs of the layer).
    `kind`: makes another network of the same settings, a `QuantileMLP` say.

    The noise is as many numbers as the layers have units, so that it costs little beside the products.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        dueling: bool | int = False,
        sigma: float = 0.5,
        seed: int = 0,
        device: str = "cpu",
        kind: Callable[..., Any] = MLP,
    ) -> None:
        self._settings = (tuple(sizes), dueling, sigma, device, kind)
        how: dict[str, Any] = {"dueling": dueling, "device": device}
        first = kind(sizes, seed=seed, **how)
        self.device, n = first.device, len(first.vector)
        self.vector, self.grad = (concatenate([x, x]) for x in (first.vector, 0 * first.vector))
        self.mean = kind(sizes, vector=self.vector[:n], grad=self.grad[:n], **how)
        self._sigma = self.vector[n:]
        for name, view in self.mean.parameters(self._sigma).items():
            view[...] = sigma * self._inputs(name) ** -0.5
        self._noisy = kind(sizes, vector=first.vector, grad=self.grad[:n], **how)
        self._epsilon = np.zeros(n, np.float32)
        views = self.mean.parameters(self._epsilon)
        self._layers = [(views[f"{k[:-7]}.weight"], views[f"{k[:-7]}.bias"]) for k in views if k.endswith(".weight")]
        self._factors = sum(sum(weight.shape) for weight, _ in self._layers)
        self._on_device: Any = self._epsilon

    def _inputs(self, name: str) -> int:
        return int(self.mean.parameters()[name.rpartition(".")[0] + ".weight"].shape[1])

    def resample(self, rng: np.random.Generator) -> None:
        """Other noise, and the weights that it makes of `vector`."""
        x = rng.standard_normal(self._factors, np.float32)
        x = np.copysign(np.sqrt(np.abs(x)), x)
        at = 0
        for weight, bias in self._layers:
            n_out, n_in = weight.shape
            bias[:] = x[at : at + n_out]
            np.multiply(bias[:, None], x[at + n_out : at + n_out + n_in], out=weight)
            at += n_out + n_in
        weights, n = self._noisy.vector, len(self._epsilon)
        if isinstance(weights, np.ndarray):
            np.multiply(self._sigma, self._epsilon, out=weights)
            weights += self.vector[:n]
        else:
            self._on_device = on_device(self._epsilon, str(weights.device))
            weights.copy_(self.vector[:n] + self._sigma * self._on_device)

    def forward(self, x: Any, *more: Any) -> Any:
        return self._noisy.forward(x, *more)

    __call__ = forward

    def forward_cached(self, x: Any, *more: Any) -> Any:
        return self._noisy.forward_cached(x, *more)

    def backward(self, d_out: Any) -> None:
        self._noisy.backward(d_out)
        n = len(self._epsilon)
        self.grad[n:] = self.grad[:n] * self._on_device

    def state_dict(self) -> dict[str, Any]:
        sigma = {f"{name}_sigma": view + 0 for name, view in self.mean.parameters(self._sigma).items()}
        return {**self.mean.state_dict(), **sigma}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        mean = {name: x for name, x in state.items() if not name.endswith("_sigma")}
        sigma = {name: state[f"{name}_sigma"] for name in self.mean.parameters() if f"{name}_sigma" in state}
        sizes, dueling, _, device, kind = self._settings
        shadow = kind(sizes, dueling=dueling, device=device)
        shadow.load_state_dict(sigma)  # checks, and changes nothing
        self.mean.load_state_dict(mean)
        self._sigma[...] = shadow.vector

    def __reduce__(self) -> Any:
        return _copy, (*self._settings, self.vector + 0)

    def __repr__(self) -> str:
        return f"NoisyMLP({self._settings[0]}, dueling={self._settings[1]})"


def _copy(
    sizes: tuple[int, ...], dueling: bool | int, sigma: float, device: str, kind: Callable[..., Any], vector: Any
) -> NoisyMLP:
    network = NoisyMLP(sizes, dueling=dueling, sigma=sigma, device=device, kind=kind)
    network.vector[...] = vector
    return network
