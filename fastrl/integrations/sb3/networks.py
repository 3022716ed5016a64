"""The networks of a Stable-Baselines3 policy as `fastrl.MLP`s that share their memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn

from fastrl.kernels import MLP

_ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.SiLU: "silu"}


class CannotCompile(Exception):
    """Why the host's own code has to run."""


class Layers(NamedTuple):
    """Networks of one shape side by side (`n`; None: one).

    networks[k][l]: the Linear modules of layer l of network k, whose outputs lie side by side.
    """

    networks: list[list[tuple[nn.Linear, ...]]]
    activation: str
    n: int | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        network = self.networks[0]
        return (network[0][0].in_features, *(sum(linear.out_features for linear in layer) for layer in network))


def hidden_layers(modules: Sequence[nn.Module]) -> tuple[list[tuple[nn.Linear, ...]], str]:
    """The Linear modules of ``Linear, activation, Linear, activation, ...`` and the activation's name."""
    linears, activations = list(modules)[::2], list(modules)[1::2]
    for module in linears:
        if type(module) is not nn.Linear or module.bias is None:
            raise CannotCompile(f"{module} is no Linear layer with a bias")
    kinds = {type(module) for module in activations}
    if len(kinds) > 1 or not kinds <= set(_ACTIVATIONS):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise CannotCompile(f"the activation is {names}, not one of ReLU, Tanh, SiLU for all layers")
    return [(linear,) for linear in linears], _ACTIVATIONS[kinds.pop()] if kinds else "none"  # type: ignore[misc]


def check_observations(policy: Any, *owners: Any) -> None:
    """Are observations vectors, or flattened or one-hot and no more, on their way to each of `owners`?"""
    space = policy.observation_space
    plain = type(space) is spaces.MultiBinary or (type(space) is spaces.Box and not is_image_space(space))
    if not plain and not (type(space) is spaces.Discrete and space.start >= 0):
        raise CannotCompile(f"the observation space is {space}: a Box that is no image, Discrete or MultiBinary is")
    for owner in owners:
        if type(owner.features_extractor) is not FlattenExtractor:
            raise CannotCompile(f"the features extractor is {type(owner.features_extractor).__name__}")


def check_type(module: Any, wanted: type) -> None:
    if type(module) is not wanted:
        raise CannotCompile(f"{type(module).__name__} is not Stable-Baselines3's own {wanted.__name__}")


class Shared:
    """Parameters moved into one vector, of which they are views from then on; their gradients are views of `grad`.

    `networks` has one entry for each of `parts`: an `MLP` for `Layers`, a NumPy view for a tensor; `gradients` has the
    views of `grad`.
    """

    def __init__(self, *parts: Layers | Tensor) -> None:
        sizes = [
            part.numel() if isinstance(part, Tensor) else MLP.num_parameters(part.sizes, n=part.n) for part in parts
        ]
        values, gradients = (torch.zeros(sum(sizes)) for _ in range(2))
        self.vector, self.grad = values.numpy(), gradients.numpy()
        self.places: list[tuple[Tensor, Tensor]] = []  # a parameter and the view that is its gradient
        self.networks: list[Any] = []
        self.gradients: list[Any] = []
        self._addresses: list[int] = []
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            here = slice(start, start + size)
            start += size
            self.gradients.append(self.grad[here])
            if isinstance(part, Tensor):
                self._move(part, values[here].view_as(part), gradients[here].view_as(part))
                self.networks.append(self.vector[here])
                continue
            mlp = MLP(part.sizes, part.activation, n=part.n, vector=self.vector[here], grad=self.grad[here])
            self._move_layers(part, mlp.parameters(values[here]), mlp.parameters(gradients[here]))
            self.networks.append(mlp)

    def _move_layers(self, part: Layers, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        for k, network in enumerate(part.networks):
            prefix = "" if part.n is None else f"{k}."
            for layer, linears in enumerate(network):
                begin = 0
                for linear in linears:
                    rows = slice(begin, begin + linear.out_features)
                    begin = rows.stop
                    for kind in ("weight", "bias"):
                        name = f"{prefix}{2 * layer}.{kind}"
                        self._move(getattr(linear, kind), values[name][rows], gradients[name][rows])

    def _move(self, parameter: Tensor, value: Tensor, gradient: Tensor) -> None:
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise CannotCompile(f"parameters are {parameter.dtype} on {parameter.device}, not float32 on the CPU")
        if not parameter.requires_grad:
            raise CannotCompile("a parameter does not require a gradient")
        value.copy_(parameter.detach())
        parameter.data = value
        self.places.append((parameter, gradient))
        self._addresses.append(value.data_ptr())

    @property
    def whole(self) -> bool:
        """Are the parameters still views of the vector, all of them to be trained?"""
        now = [p.data_ptr() if p.requires_grad else None for p, _ in self.places]
        return now == self._addresses


class Modules:
    """What a policy consisted of when it was compiled, to see whether it still does."""

    def __init__(self, policy: nn.Module) -> None:
        modules = list(policy.modules())
        self._parts = [d for m in modules for d in (m._modules, m._parameters, m._buffers) if d]
        self._kept = self._now()
        self._hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
        if any(self._hooks):
            raise CannotCompile("a module of the policy has hooks")

    def _now(self) -> list[Any]:
        return [value for part in self._parts for value in part.values()]

    @property
    def whole(self) -> bool:
        now = self._now()
        return len(now) == len(self._kept) and all(map(is_, now, self._kept)) and not any(self._hooks)


class Learner:
    """The compiled parts of one policy.  It belongs to this process: a copy or a pickle of it is None."""

    compiled = True

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self._modules = Modules(policy)
        space = policy.observation_space
        self._shape = space.shape
        self._classes = int(space.n) if type(space) is spaces.Discrete else None
        self._shared: list[Shared] = []

    def share(self, *parts: Layers | Tensor) -> Shared:
        shared = Shared(*parts)
        self._shared.append(shared)
        return shared

    def whole(self, model: Any) -> bool:
        """Is what was compiled still what the model consists of?"""
        return model.policy is self.policy and self._modules.whole and all(s.whole for s in self._shared)

    def inputs(self, observation: Any) -> tuple[Any, bool] | None:
        """Observations as the networks take them, ``[B, n]``, and whether they were a batch; None: the host's turn."""
        if not isinstance(observation, np.ndarray) or not observation.size:
            return None
        batch = observation.shape[1:] == self._shape and observation.ndim == len(self._shape) + 1
        if not batch and observation.shape != self._shape:
            return None
        return self.flat(observation.reshape(-1, *self._shape)), batch

    def flat(self, observations: Any) -> Any:
        """NumPy observations ``[B, *shape]`` as the networks take them, float32 ``[B, n]``; Discrete ones one-hot."""
        if self._classes is not None:
            found = np.zeros((len(observations), self._classes), np.float32)
            found[np.arange(len(found)), observations.reshape(-1).astype(np.int64, copy=False)] = 1
            return found
        x = observations.reshape(len(observations), -1)
        return x if x.dtype == np.float32 else x.astype(np.float32)

    @contextmanager
    def methods(self, **methods: Any) -> Iterator[None]:
        """Inside, these are what calls of the policy's methods reach."""
        own = self.policy.__dict__
        own.update(methods)
        try:
            yield
        finally:
            for name in methods:
                own.pop(name, None)

    def set_training_mode(self, mode: bool) -> None:
        """The policy's, which walks through all modules, where it changes anything."""
        if self.policy.training != mode:
            type(self.policy).set_training_mode(self.policy, mode)

    def __reduce__(self) -> Any:
        return type(None), ()


class HostOnly(Learner):
    """In the place of a `Learner` where the host's own code runs."""

    compiled = False

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def whole(self, model: Any) -> bool:
        return model.policy is self.policy
