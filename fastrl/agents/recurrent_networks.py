"""Recurrent networks: an LSTM or a GRU, differentiated by autograd.  Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.agents.torch_networks import TorchNetwork, building

KEEP = 1.0  # the bias of the gate that says how much stays as it is


class Recurrent(nn.Module):
    """T steps of B episodes: inputs ``[T, B, n_in]`` and the state ``[B, S]`` before them -> outputs, state after them.

    Layers `hidden` with ReLUs or tanh, an LSTM or a GRU of `memory_size` units, and one linear layer to ``[T, B,
    n_out]``.  The state is h, of an LSTM h and c one behind the other, and 0 where an episode begins.

    `dueling`: V + A - mean_a A (Wang et al. 2016, arXiv:1511.06581) from two linear layers.
    `policy`: None, or of a policy with V as its last output, how many outputs are the policy's: the weights of the
        linear layers are orthogonal, small ones in the policy's rows; else all are torch's.
    """

    def __init__(
        self,
        kind: str,
        n_in: int,
        hidden: Sequence[int],
        memory_size: int,
        n_out: int,
        *,
        activation: str = "relu",
        dueling: bool = False,
        policy: int | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size, n in pairwise((n_in, *hidden)):
            layers += [nn.Linear(size, n), {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]()]
        self.hidden = nn.Sequential(*layers)
        self.cell = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](hidden[-1], memory_size)
        self.head = nn.Linear(memory_size, n_out)
        self.value = nn.Linear(memory_size, 1) if dueling else None
        self.state_size = memory_size * (2 if kind == "lstm" else 1)
        with torch.no_grad():  # at first the memory keeps most of what it has (Gers et al. 2000)
            gate = slice(memory_size, 2 * memory_size)  # an LSTM's forget gate, a GRU's update gate
            self.cell.bias_ih_l0[gate] = KEEP
            self.cell.bias_hh_l0[gate] = 0
        if policy is not None:
            self._orthogonal(policy)

    def _orthogonal(self, policy: int) -> None:
        for layer in [*self.hidden, self.head]:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, 2**0.5)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            nn.init.orthogonal_(self.head.weight[:policy], 0.01)
            nn.init.orthogonal_(self.head.weight[policy:], 1.0)

    def forward(self, x: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`starts` ``[T, B]``: where an episode begins, before whose step the state becomes 0."""
        x = self.hidden(x)
        outs, cuts = [], [0, len(x)]
        if starts is not None:
            cuts = sorted({*cuts, *starts.any(1).nonzero().flatten().tolist()})
        for i in range(len(cuts) - 1):  # torch.export of 2.4 knows no pairwise()
            begin, end = cuts[i], cuts[i + 1]
            if starts is not None:
                state = torch.where(starts[begin, :, None], 0.0, state)
            out, state = self._run(x[begin:end], state)
            outs.append(out)
        features = outs[0] if len(outs) == 1 else torch.cat(outs)
        out = self.head(features)
        if self.value is not None:
            out = self.value(features) + out - out.mean(-1, keepdim=True)
        return out, state

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.cell, nn.GRU):
            out, h = self.cell(x, state[None])
            return out, h[0]
        h, c = (part.contiguous()[None] for part in state.chunk(2, 1))
        out, (h, c) = self.cell(x, (h, c))
        return out, torch.cat((h[0], c[0]), 1)


class RecurrentNetwork(TorchNetwork):
    """A `Recurrent` on the CPU behind NumPy's arrays; its parameters are views of `vector`."""

    module: Recurrent

    def unroll(self, x: NDArray[Any], state: NDArray[Any], starts: Any = None) -> tuple[Any, Any]:
        """Outputs ``[T, B, n_out]`` and the state ``[B, S]`` after them; see `Recurrent`."""
        with torch.no_grad():
            out, after = self.module(*_tensors(x, state, starts))
        return out.numpy(), after.numpy()

    def unroll_cached(self, x: NDArray[Any], state: NDArray[Any], starts: Any = None, *, burn_in: int = 0) -> Any:
        """Outputs ``[T - burn_in, B, n_out]``, and what `backward` needs is kept: no gradient goes into the burn-in.

        Its steps are those in front, which only bring the state up to date.
        """
        parts = _tensors(x, state, starts)
        first, rest = (_between(parts, *ends) for ends in ((0, burn_in), (burn_in, len(x))))
        if burn_in:
            with torch.no_grad():
                rest[1] = self.module(*first)[1]
        with torch.enable_grad():
            out, _ = self.module(*rest)
        self._cached = [], out
        return out.detach().numpy()


def _tensors(x: NDArray[Any], state: NDArray[Any], starts: Any) -> list[Any]:
    numbers = [torch.from_numpy(np.asarray(part, np.float32)) for part in (x, state)]
    return [*numbers, None if starts is None else torch.from_numpy(starts)]


def _between(parts: Sequence[Any], begin: int, end: int) -> list[Any]:
    x, state, starts = parts
    return [x[begin:end], state, None if starts is None else starts[begin:end]]


def recurrent_network(kind: str, *, seed: int, **settings: Any) -> RecurrentNetwork:
    """A `Recurrent` of these settings, with its initial weights drawn from `seed`."""
    with building(seed):
        return RecurrentNetwork(Recurrent(kind, **settings))
