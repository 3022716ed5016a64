"""Implicit quantiles (IQN) by torch: the module of the compiled networks, images, and modules of the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.agents.convolution import Convolution
from fastrl.agents.images import ReadyMade
from fastrl.agents.torch_networks import TorchNetwork, building


def _cosines(taus: Tensor, n: int) -> Tensor:
    """cos(pi i tau), i = 0 .. n - 1, for taus ``[B, N]``: ``[B, N, n]``."""
    return torch.cos(taus[..., None] * (math.pi * torch.arange(n, dtype=taus.dtype, device=taus.device)))


class Quantiles(nn.Module):
    """What `fastrl.agents.quantile_networks.QuantileMLP` computes: x ``[B, in]``, taus ``[B, N]`` -> ``[B, A, N]``."""

    def __init__(self, features: nn.Module, embedding: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.features, self.embedding, self.head = features, embedding, head

    def forward(self, x: Tensor, taus: Tensor) -> Tensor:
        n = self.embedding[0].in_features
        assert isinstance(n, int)
        both = self.features(x)[:, None].relu() * self.embedding(_cosines(taus, n)).relu()
        out: Tensor = self.head(both.flatten(0, 1))
        return out.reshape(*taus.shape, -1).transpose(1, 2)


class QuantileConvolution(Convolution):
    """`Convolution` of images ``[B, *shape]`` whose features are multiplied by those of taus ``[B, N]``: ``[B, A, N]``.

    The features are those after the convolutions, as in Dabney et al. 2018, arXiv:1806.06923.
    """

    def __init__(self, made: ReadyMade, n_out: int, *, dueling: int, embedding_dim: int) -> None:
        super().__init__(made, n_out, dueling=dueling)
        first = self.head[0]
        assert isinstance(first, nn.Linear)
        self.embedding = nn.Linear(embedding_dim, first.in_features)

    def forward(self, obs: Tensor, taus: Tensor) -> Tensor:  # type: ignore[override]
        phi = self.embedding(_cosines(taus, self.embedding.in_features)).relu()
        out = self.outputs((self.features(obs)[:, None] * phi).flatten(0, 1))
        return out.reshape(*taus.shape, -1).transpose(1, 2)


class QuantileNetwork(TorchNetwork):
    """A module of observations and taus behind the calls of `QuantileMLP`."""

    def __init__(self, module: nn.Module, *shapes: Sequence[int], device: Any = "cpu") -> None:
        super().__init__(module, *shapes[:1], (-1,), device=device)

    def forward(self, x: Any, taus: Any) -> Any:  # type: ignore[override]
        return self._quantiles(super().forward((x, self._each(x, taus))), taus)

    __call__ = forward  # type: ignore[assignment]

    def forward_cached(self, x: Any, taus: Any) -> Any:  # type: ignore[override]
        return self._quantiles(super().forward_cached((x, self._each(x, taus))), taus)

    def _each(self, x: Any, taus: Any) -> Tensor:
        """The taus ``[B, N]`` of each row, if all have the same, too."""
        return torch.as_tensor(taus).expand(x.shape[0], -1)

    def _quantiles(self, out: Any, taus: Any) -> Any:
        return out.reshape(len(out), math.prod(out.shape[1:]) // taus.shape[-1], taus.shape[-1])


def quantile_convolution(
    made: ReadyMade, n_out: int, *, dueling: int, embedding_dim: int, seed: int, device: str
) -> QuantileNetwork:
    """`QuantileConvolution` with torch's initial weights drawn from `seed`."""
    with building(seed):
        module = QuantileConvolution(made, n_out, dueling=dueling, embedding_dim=embedding_dim)
        return QuantileNetwork(module, made.shape, device=device)
