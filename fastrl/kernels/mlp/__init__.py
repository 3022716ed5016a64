"""Small multilayer perceptrons trained without autograd: forward, backward, losses and Adam, a call each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose
from fastrl.kernels.mlp import reference
from fastrl.kernels.mlp._layout import ACTIVATIONS, layout, size_of
from fastrl.kernels.mlp.losses import (
    PPOLoss,
    QLoss,
    min_q_loss,
    min_q_targets,
    ppo_categorical_loss,
    ppo_normal_loss,
    q_learning_loss,
    q_regression_loss,
    value_loss,
)

__all__ = [
    "MLP",
    "FlatAdam",
    "PPOLoss",
    "QLoss",
    "min_q_loss",
    "min_q_targets",
    "ppo_categorical_loss",
    "ppo_normal_loss",
    "q_learning_loss",
    "q_regression_loss",
    "value_loss",
]

backend = choose(__package__)


def _vectors(kernels: Any) -> Any:
    """What makes and checks the vectors: the extension and Numba work on what NumPy makes."""
    return kernels if hasattr(kernels, "new_vector") else reference


class MLP:
    """One network, or `n` of one shape side by side, with all parameters in one float32 vector.

        h_0 = x;  h_l = f(LN(W_l h_{l-1} + b_l)) for l < L;  out = W_L h_{L-1} + b_L

    with LN(z) = scale (z - mean z) / sqrt(var z + 1e-5) + shift if `layer_norm` (Ba et al. 2016, arXiv:1607.06450).
    With `dueling` the last hidden layer is two of that size, one a stream, and out = V + A - mean_a A (Wang et al.
    2016, arXiv:1511.06581, eq. 9).  A number N of atoms makes that N values a stream, for each by itself: the outputs
    are ``[actions, N]``, in rows (Hessel et al. 2018, arXiv:1710.02298).

    Nothing is recorded: `forward_cached` keeps what `backward` needs, until the next `forward_cached`.  `vector` holds
    the parameters and `grad` what `backward` wrote, in one layout (`parameters` gives views); they may be memory of
    NumPy or of torch, and be changed by either between two calls.  Results do not depend on the number of threads.
    Any number of threads may call one object; a backward pass belongs to the last `forward_cached` of any of them.

    Args:
        sizes: widths of inputs, hidden layers and outputs, two at least.
        activation: f: "relu", "tanh", "silu" or "none".
        n: None: one network, results ``[B, out]``.  A number: that many, results ``[n, B, out]``.
        layer_norm: before each activation.
        dueling: True, or the number of atoms, by which the outputs must be divisible; needs a hidden layer at least.
        seed: of the initial parameters, uniform within 1 / sqrt(in) as those of ``torch.nn.Linear``; LayerNorm starts
            from scale 1 and shift 0.  None: fresh entropy, or with `vector` what is there.
        device: "cpu" or a CUDA device, where torch does the work and `vector` is a tensor.
        vector, grad: memory to use, contiguous float32 ``[num_parameters]``, a part of a longer vector say.  By default
            new NumPy arrays (tensors on CUDA).

    Raises:
        TypeError, ValueError: from the constructor for settings that cannot work; from a call for `x` or `d_out` of a
            wrong type, dtype, shape or device, and when `vector` or `grad` is no longer what it was (resized, say).
        RuntimeError: `backward` without `forward_cached`.

    >>> net = MLP((4, 64, 64, 2), seed=0)
    >>> q = net.forward_cached(np.zeros((32, 4), np.float32))
    >>> net.backward(np.ones_like(q))
    >>> FlatAdam(net.vector, net.grad).step(lr=1e-3)
    nan
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        *,
        n: int | None = None,
        layer_norm: bool = False,
        dueling: bool | int = False,
        seed: int | None = None,
        device: Any = "cpu",
        vector: Any = None,
        grad: Any = None,
    ) -> None:
        self.sizes, self.activation = _checked_sizes(sizes, dueling), activation
        self.layer_norm, self.dueling, self.device = bool(layer_norm), dueling, str(device)
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if n is not None and not (_arrays.is_int(n) and 1 <= n <= 1024):
            raise ValueError(f"MLP: n must be None or an int in [1, 1024], got {n!r}")
        self.n = None if n is None else int(n)
        self._layout = layout(self.sizes, self.layer_norm, self.dueling)
        size = size_of(self._layout) * (self.n or 1)
        vectors = _vectors(backend.on(self.device))
        self.vector = vectors.new_vector(size, self.device) if vector is None else vector
        self.grad = vectors.new_vector(size, self.device) if grad is None else grad
        self._make_core()
        for name in ("vector", "grad"):
            vectors.check_vector(getattr(self, name), f"MLP: {name}", size)
        if vector is None or seed is not None:
            self.reset(seed)

    def _make_core(self) -> None:
        core = backend.on(self.device).MlpCore
        n = self.n or 1
        self._core = core(list(self.sizes), self.activation, n, self.n is not None, self.layer_norm, int(self.dueling))
        self._networks = n

    @staticmethod
    def num_parameters(
        sizes: Sequence[int], *, n: int | None = None, layer_norm: bool = False, dueling: bool | int = False
    ) -> int:
        """The length of the vector that such networks need."""
        return size_of(layout(_checked_sizes(sizes, dueling), layer_norm, dueling)) * (n or 1)

    # ---- what it computes

    def forward(self, x: Any, *, first: int | None = None) -> Any:
        """The outputs ``[B, out]`` or ``[n, B, out]`` for x ``[B, in]``, or a tuple of arrays that are its columns.

        `first`: of the first so many networks only.  What `forward_cached` kept stays.
        """
        return self._core.forward(self.vector, x, self._networks if first is None else self._first(first), False)

    __call__ = forward

    def forward_cached(self, x: Any, *, first: int | None = None) -> Any:
        """`forward`, and what a backward pass needs is kept."""
        return self._core.forward(self.vector, x, self._networks if first is None else self._first(first), True)

    def backward(self, d_out: Any, *, parameters: bool = True, inputs: slice | bool | None = None) -> Any:
        """The gradients of sum(d_out * out) for the outputs of the last `forward_cached`.

        Args:
            d_out: like those outputs.
            parameters: overwrite `grad` (networks that took no part get 0).
            inputs: True: return the gradient ``[B, in]`` in x, of all networks together.  A slice: in those columns
                only; the others are never computed.
        """
        begin, end = (0, 0) if inputs is None else self._columns(inputs)
        d_x = self._core.backward(d_out, self.grad if parameters else None, begin, end)
        if parameters:
            _arrays.mark_written(self.grad)
        return d_x

    def _first(self, first: int) -> int:
        if not (_arrays.is_int(first) and 1 <= first <= self._networks):
            raise ValueError(f"MLP: first must be an int in [1, {self._networks}], got {first!r}")
        return int(first)

    def _columns(self, inputs: slice | bool) -> tuple[int, int]:
        width = self.sizes[0]
        if isinstance(inputs, bool):
            return (0, width) if inputs else (0, 0)
        if not isinstance(inputs, slice) or inputs.step not in (None, 1):
            raise TypeError(f"MLP: inputs must be None, a bool or a slice without a step, got {inputs!r}")
        begin, end, _ = inputs.indices(width)
        if begin >= end:
            raise ValueError(f"MLP: inputs must name at least one of {width} columns, got {inputs!r}")
        return begin, end

    # ---- parameters

    def parameters(self, vector: Any = None) -> dict[str, Any]:
        """Name -> view, of `vector` or of another vector like it (`grad`, the moments of Adam).

        Names and shapes are those of ``torch.nn.Sequential`` ("0.weight" ``[out, in]``, "0.bias", "2.weight", ...),
        with "k." before them if there are `n` networks.
        """
        flat, size = self.vector if vector is None else vector, size_of(self._layout)
        prefixes = [""] if self.n is None else [f"{k}." for k in range(self.n)]
        return {
            prefix + p.name: flat[k * size + p.begin : k * size + p.end].reshape(p.shape)
            for k, prefix in enumerate(prefixes)
            for p in self._layout
        }

    def state_dict(self) -> dict[str, Any]:
        """Copies of the parameters by name; a torch module of the same layers loads them (as tensors)."""
        return {name: view + 0 for name, view in self.parameters().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the parameters of `state_dict`, of this class or of a torch module of the same layers.

        Nothing changes if a name or a shape does not fit.
        """
        views = self.parameters()
        if set(views) != set(state):
            missing, extra = sorted(set(views) - set(state)), sorted(set(state) - set(views))
            raise ValueError(f"MLP: state_dict does not fit: missing {missing}, unexpected {extra}")
        for name, view in views.items():
            if tuple(state[name].shape) != tuple(view.shape):
                raise ValueError(f"MLP: {name} must have shape {tuple(view.shape)}, got {tuple(state[name].shape)}")
        for name, view in views.items():
            _arrays.assign(view, state[name])

    def reset(self, seed: int | None = None) -> None:
        """New initial parameters."""
        rng = np.random.default_rng(seed)
        for view, p in zip(self.parameters().values(), self._layout * self._networks, strict=True):
            new = rng.uniform(-p.bound, p.bound, p.shape) if p.bound else np.full(p.shape, p.start)
            _arrays.assign(view, new.astype(np.float32))

    def to_torch(self) -> Any:
        """A ``torch.nn.Sequential`` (a ``ModuleList`` of them with `n`) whose parameters ARE this vector's memory.

        Their `.grad` are views of `grad`.  What either side writes the other sees.
        """
        from fastrl.kernels.mlp._torch import to_torch

        return to_torch(self)

    @classmethod
    def from_torch(cls, module: Any) -> MLP:
        """An MLP of the layers of a ``torch.nn.Sequential``, or of a ``ModuleList`` of equal ones, sharing memory.

        The module's parameters are moved into one vector, of which they are views from then on (make optimizers after
        it).  Linear with ReLU, Tanh, SiLU or nothing between, LayerNorm (eps 1e-5) before each or none; a leading
        Flatten is skipped.
        """
        from fastrl.kernels.mlp._torch import from_torch

        mlp: MLP = from_torch(cls, module)
        return mlp

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_core"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_core()

    def __repr__(self) -> str:
        n = "" if self.n is None else f", n={self.n}"
        extras = ", layer_norm=True" * self.layer_norm + (f", dueling={self.dueling}" if self.dueling else "")
        return f"MLP({self.sizes}, {self.activation!r}{n}{extras})"


def _checked_sizes(sizes: Iterable[int], dueling: bool | int) -> tuple[int, ...]:
    sizes = tuple(sizes)
    if not all(_arrays.is_int(s) for s in sizes):
        raise TypeError(f"MLP: sizes must be ints, got {sizes!r}")
    sizes = tuple(map(int, sizes))
    if not 2 <= len(sizes) <= 64 or not all(1 <= s <= 2**24 for s in sizes):
        raise ValueError(f"MLP: sizes must be 2 to 64 numbers in [1, 16777216], got {sizes!r}")
    if dueling and len(sizes) < 3:
        raise ValueError(f"MLP: dueling needs at least one hidden layer, got sizes {sizes!r}")
    if not (isinstance(dueling, (int, np.integer)) and dueling >= 0 and (not dueling or sizes[-1] % dueling == 0)):
        raise ValueError(
            f"MLP: dueling must be a bool, or an int that divides the {sizes[-1]} outputs, got {dueling!r}"
        )
    return tuple(int(s) for s in sizes)


class FlatAdam:
    """Adam on one vector, with what an update does besides in the same pass over the memory.

        g <- g min(1, max_grad_norm / (|g| + 1e-6));  p, m, v, t as in `adam_step`;
        target <- target + tau (p - target);  average <- average + average_weight (p - average)

    A tau of 1 copies exactly.  Rounding is that of `adam_step` and of ``torch.lerp``; |g| is summed in float64.

    Args:
        vector, grad: parameters and gradient, contiguous float32 ``[P]``, of one network or of several that lie in one
            vector.  They are read anew at each step.
        lr, eps, weight_decay: finite, >= 0.
        beta1, beta2: in [0, 1).

    Sources: Kingma and Ba 2015, arXiv:1412.6980; Lillicrap et al. 2016, arXiv:1509.02971 (tau).
    """

    def __init__(
        self,
        vector: Any,
        grad: Any,
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.vector, self.grad = vector, grad
        self.lr, self.eps, self.weight_decay = _number("lr", lr), _number("eps", eps), _number("decay", weight_decay)
        self.beta1, self.beta2 = (_number(name, b, below_1=True) for name, b in (("beta1", beta1), ("beta2", beta2)))
        vectors = _vectors(backend.of(vector))
        vectors.check_vector(vector, "FlatAdam: vector", len(vector))
        vectors.check_vector(grad, "FlatAdam: grad", len(vector))
        self.exp_avg, self.exp_avg_sq = (vectors.zeros_like(vector) for _ in range(2))
        self.steps = 0

    def step(
        self,
        *,
        lr: float | None = None,
        max_grad_norm: float | None = None,
        target: Any = None,
        tau: float = 1.0,
        average: Any = None,
        average_weight: float = 1.0,
    ) -> float:
        """One step; returns the gradient's norm before it was clipped, NaN without `max_grad_norm`.

        `grad` is scaled in place.  `target` and `average` are vectors like `vector`; `tau` and `average_weight` are in
        [0, 1].  Nothing is written if an argument is refused.
        """
        lr = self.lr if lr is None else _number("lr", lr)
        norm = -1.0
        if max_grad_norm is not None:
            norm = _number("max_grad_norm", max_grad_norm)
            if not norm > 0:
                raise ValueError(f"FlatAdam: max_grad_norm must be > 0, got {norm!r}")
        for name, weight in (("tau", tau), ("average_weight", average_weight)):
            if not 0 <= _number(name, weight) <= 1:
                raise ValueError(f"FlatAdam: {name} must be in [0, 1], got {weight!r}")
        size: float = backend.of(self.vector).flat_adam(
            self.vector, self.grad, self.exp_avg, self.exp_avg_sq, target, average, lr, self.beta1, self.beta2,
            self.eps, self.weight_decay, float(self.steps + 1), norm, float(tau), float(average_weight),
        )  # fmt: skip
        self.steps += 1
        _arrays.mark_written([x for x in (self.vector, self.grad, target, average) if x is not None])
        return size

    def state_dict(self) -> dict[str, Any]:
        """Copies of the moments, and the number of steps: what `load_state_dict` takes."""
        return {"exp_avg": self.exp_avg + 0, "exp_avg_sq": self.exp_avg_sq + 0, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("exp_avg", "exp_avg_sq"):
            if tuple(state[name].shape) != tuple(self.exp_avg.shape):
                raise ValueError(
                    f"FlatAdam: {name} must have shape {tuple(self.exp_avg.shape)}, got {tuple(state[name].shape)}"
                )
        _arrays.assign(self.exp_avg, state["exp_avg"])
        _arrays.assign(self.exp_avg_sq, state["exp_avg_sq"])
        self.steps = int(state["steps"])


def _number(name: str, value: Any, below_1: bool = False) -> float:
    return _arrays.load_float(value, f"FlatAdam: {name}", "in [0, 1)" if below_1 else "finite and >= 0")
