"""Networks of implicit quantiles (IQN): quantiles of the return at any tau (Dabney et al. 2018, arXiv:1806.06923)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.arrays import on_device
from fastrl.agents.config import import_torch
from fastrl.kernels import MLP
from fastrl.kernels._core.arrays import assign


def cosines(taus: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """cos(pi i tau), i = 0 .. n - 1, for taus ``[...]``: ``[..., n]``."""
    return np.cos(taus[..., None] * (np.float32(np.pi) * np.arange(n, dtype=np.float32)))


class QuantileMLP:
    """The quantiles Z_tau(s, a) of the return at given taus, by three MLPs (Dabney et al. 2018, eq. 4).

        Z_tau(s, .) = head(relu(features(s)) * relu(embedding(cos(pi i tau)))),  i = 0 .. embedding_dim - 1

    `head` has the last hidden layer, with `dueling` in two streams, `features` those before it.  `vector` holds the
    parameters of features, embedding and head, and `backward` writes `grad`.  Arrays are NumPy's on the CPU, tensors on
    CUDA.

    Args:
        sizes: widths of inputs, hidden layers, two at least, and outputs.
        embedding_dim: cosines of a tau.
        seed: of the initial parameters, as those of `fastrl.MLP`.
        vector, grad: memory to use, as in `fastrl.MLP`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        dueling: bool | int = False,
        embedding_dim: int = 64,
        seed: int | None = None,
        device: str = "cpu",
        vector: Any = None,
        grad: Any = None,
    ) -> None:
        self.sizes, self.dueling, self.embedding_dim, self.device = tuple(sizes), dueling, embedding_dim, device
        width = self.sizes[-3]
        shapes = [(self.sizes[:-2], False), ((embedding_dim, width), False), (self.sizes[-3:], dueling)]
        ends = np.cumsum([0, *(MLP.num_parameters(shape, dueling=streams) for shape, streams in shapes)])
        new = vector is None
        self.vector = on_device(np.zeros(ends[-1], np.float32), device) if vector is None else vector
        self.grad = on_device(np.zeros(ends[-1], np.float32), device) if grad is None else grad
        seeds = [None] * 3 if seed is None else np.random.SeedSequence(seed).generate_state(3, np.uint64).tolist()
        self._networks: dict[str, MLP] = {}
        for i, (name, (shape, streams)) in enumerate(zip(("features", "embedding", "head"), shapes, strict=True)):
            part = slice(ends[i], ends[i + 1])
            memory = {"vector": self.vector[part], "grad": self.grad[part]}
            self._networks[name] = MLP(shape, dueling=streams, device=device, **memory)
            if new or seed is not None:
                self._networks[name].reset(seeds[i])
        self._kept: Any = None

    # ---- what it computes

    def forward(self, x: Any, taus: NDArray[np.float32]) -> Any:
        """Z ``[B, actions, N]`` for x ``[B, in]`` and taus ``[B, N]``, or ``[N]``, the same for all."""
        return self._run(x, taus, False)

    __call__ = forward

    def forward_cached(self, x: Any, taus: NDArray[np.float32]) -> Any:
        """`forward`, and what `backward` needs is kept."""
        return self._run(x, taus, True)

    def _run(self, x: Any, taus: NDArray[np.float32], keep: bool) -> Any:
        features, embedding, head = (net.forward_cached if keep else net.forward for net in self._networks.values())
        inputs = on_device(cosines(taus, self.embedding_dim).reshape(-1, self.embedding_dim), self.device)
        psi = features(x)[:, None].clip(0)  # [B, 1, D]
        phi = embedding(inputs).clip(0).reshape(-1, taus.shape[-1], psi.shape[2])  # [B or 1, N, D]
        self._kept = (psi, phi) if keep else self._kept
        out = head((psi * phi).reshape(-1, psi.shape[2]))
        return out.reshape(len(psi), phi.shape[1], out.shape[-1]).swapaxes(1, 2)

    def backward(self, d_out: Any) -> None:
        """Overwrite `grad` by the gradients of sum(d_out * out) for the outputs of the last `forward_cached`.

        Its taus were those of each row.
        """
        if self._kept is None:
            raise RuntimeError("backward needs forward_cached before it")
        psi, phi = self._kept
        features, embedding, head = self._networks.values()
        d = d_out.reshape(len(psi), -1, phi.shape[1]).swapaxes(1, 2).reshape(-1, head.sizes[-1])
        d_x = head.backward(d, inputs=True).reshape(phi.shape)
        features.backward((d_x * phi).sum(1) * (psi[:, 0] > 0))
        embedding.backward((d_x * psi * (phi > 0)).reshape(-1, phi.shape[2]))

    # ---- parameters

    def parameters(self, vector: Any = None) -> dict[str, Any]:
        """Name -> view, of `vector` or of another vector like it; names are those of `to_torch`'s module."""
        flat, begin = self.vector if vector is None else vector, 0
        found: dict[str, Any] = {}
        for name, net in self._networks.items():
            end = begin + len(net.vector)
            found |= {f"{name}.{key}": view for key, view in net.parameters(flat[begin:end]).items()}
            begin = end
        return found

    def state_dict(self) -> dict[str, Any]:
        """Copies of the parameters by name."""
        return {name: view + 0 for name, view in self.parameters().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the parameters of `state_dict`; nothing changes if a name or a shape does not fit."""
        views = self.parameters()
        if set(views) != set(state):
            missing, extra = sorted(set(views) - set(state)), sorted(set(state) - set(views))
            raise ValueError(f"QuantileMLP: state_dict does not fit: missing {missing}, unexpected {extra}")
        for name, view in views.items():
            if tuple(state[name].shape) != tuple(view.shape):
                wanted, got = tuple(view.shape), tuple(state[name].shape)
                raise ValueError(f"QuantileMLP: {name} must have shape {wanted}, got {got}")
        for name, view in views.items():
            assign(view, state[name])

    def to_torch(self) -> Any:
        """A module (x ``[B, in]``, taus ``[B, N]``) -> ``[B, actions, N]`` whose parameters are this memory."""
        import_torch("to_torch")
        from fastrl.agents.torch_quantiles import Quantiles

        return Quantiles(*(net.to_torch() for net in self._networks.values()))

    def __reduce__(self) -> Any:
        settings = {"dueling": self.dueling, "embedding_dim": self.embedding_dim, "device": self.device}
        return _copy, (self.sizes, settings, self.vector + 0)

    def __repr__(self) -> str:
        return f"QuantileMLP({self.sizes}, dueling={self.dueling}, embedding_dim={self.embedding_dim})"


def _copy(sizes: tuple[int, ...], settings: dict[str, Any], vector: Any) -> QuantileMLP:
    return QuantileMLP(sizes, **settings, vector=vector)
