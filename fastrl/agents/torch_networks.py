"""Networks of the user's own: torch modules behind the calls of `fastrl.MLP`.  Imports torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastrl.agents.config import InputError
from fastrl.agents.network_kinds import Network, OwnNetwork
from fastrl.kernels import FisherVectorProduct


@contextmanager
def building(seed: int) -> Iterator[None]:
    """Layers made inside are float32, on the CPU, and drawn from `seed`, whatever torch's defaults are.

    Torch's global generator, from which layers draw, and its defaults are left as they were.
    """
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


class TorchNetwork(OwnNetwork):
    """A torch module behind the calls of `fastrl.MLP`: the user's own architecture, differentiated by autograd.

    `module` maps a float32 batch ``[B, *shape]`` to ``[B, out]``; with a tuple of `shapes` it takes as many arguments.
    A ``ModuleList`` is networks side by side, results ``[n, B, out]``.  On the CPU arrays go in and come out as NumPy,
    on CUDA as tensors.  The parameters, in float32, become views of `vector`, and their gradients of `grad`; what a
    module keeps besides (running statistics, say) belongs to it alone and does not go to targets or averages.
    """

    def __init__(self, module: nn.Module, *shapes: Sequence[int], device: Any = "cpu") -> None:
        self.module, self._shapes, self.device = module.float().to(device), shapes, str(device)
        self.n = len(module) if isinstance(module, nn.ModuleList) else None
        self._networks = list(module) if isinstance(module, nn.ModuleList) else [module]
        self._parameter, self._gradient = flatten_parameters(self.module)
        vector = self._parameter.detach()
        cpu = vector.device.type == "cpu"
        self.vector: Any = vector.numpy() if cpu else vector
        self.grad: Any = self._gradient.numpy() if cpu else self._gradient
        self._trained = [p for p in self.module.parameters() if p.requires_grad]
        self._cached: tuple[list[Tensor], Tensor] | None = None

    def forward(self, x: Any, *, first: int | None = None) -> Any:
        with torch.no_grad():
            return self._give(self._outputs(self._take(x), first))

    __call__ = forward

    def forward_cached(self, x: Any, *, first: int | None = None) -> Any:
        inputs = [part.requires_grad_() for part in self._take(x)]
        with torch.enable_grad():
            self._cached = inputs, self._outputs(inputs, first)
        return self._give(self._cached[1].detach())

    def backward(self, d_out: Any, *, parameters: bool = True, inputs: slice | bool | None = None) -> Any:
        if self._cached is None:
            raise RuntimeError("backward needs forward_cached before it")
        xs, out = self._cached
        wanted = (self._trained if parameters else []) + (xs if inputs else [])
        d = torch.as_tensor(d_out, device=out.device).reshape(out.shape)
        found = list(torch.autograd.grad(out, wanted, d, retain_graph=True, allow_unused=True))
        if parameters:
            self._gradient.zero_()  # of what took no part
            for p in self._trained:
                if (g := found.pop(0)) is not None and p.grad is not None:
                    p.grad.copy_(g)
        if not inputs:
            return None
        columns = torch.cat([torch.zeros_like(x) if g is None else g for x, g in zip(xs, found, strict=True)], 1)
        return self._give(columns if inputs is True else columns[:, inputs])

    def parameters(self, vector: Any = None) -> dict[str, Any]:
        """Name -> view, of `vector` or of another vector like it."""
        flat, views, start = self.vector if vector is None else vector, {}, 0
        for name, p in self.module.named_parameters():
            views[name] = flat[start : start + p.numel()].reshape(tuple(p.shape))
            start += p.numel()
        return views

    def move(self, vector: Any, grad: Any) -> None:
        """Let the parameters be views of `vector`, which holds their values, and their gradients of `grad`."""
        self.vector, self.grad = vector, grad
        both = (torch.as_tensor(x, device=self.device) for x in (vector, grad))  # wherever new tensors are by default
        parameter, self._gradient = both
        self._parameter = nn.Parameter(parameter)
        gradients = self.parameters(self._gradient)
        values = self.parameters(self._parameter.data)
        for name, p in self.module.named_parameters():
            p.data, p.grad = values[name], gradients[name]

    @property
    def whole(self) -> bool:
        """Are the module's parameters still views of `vector`?  Not if it was moved, converted or changed."""
        return are_views(self.module, self._parameter)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`, tensors or NumPy arrays."""
        tensors = {name: x if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for name, x in state.items()}
        self.module.load_state_dict(tensors)

    def to_torch(self) -> nn.Module:
        """The module, whose parameters are this vector's memory."""
        return self.module

    def __reduce__(self) -> Any:
        return _torch_network, (type(self), self.module, self._shapes, self.device)

    def _take(self, x: Any) -> list[Tensor]:
        parts = x if isinstance(x, tuple) else (x,)
        device = self._parameter.device
        # Ray's arrays lie in memory that cannot be written, of which torch warns and modules do not know.
        parts = tuple(x.copy() if isinstance(x, np.ndarray) and not x.flags.writeable else x for x in parts)
        return [torch.as_tensor(part, dtype=torch.float32, device=device).detach().flatten(1) for part in parts]

    def _give(self, out: Tensor) -> Any:
        return out.numpy() if out.device.type == "cpu" else out

    def _outputs(self, flat: list[Tensor], first: int | None) -> Tensor:
        xs = [x.reshape(len(x), *shape) for x, shape in zip(flat, self._shapes, strict=True)]
        outs = [network(*xs) for network in self._networks[:first]]
        return outs[0] if self.n is None else torch.stack(outs)


def _torch_network(
    cls: type[TorchNetwork], module: nn.Module, shapes: tuple[Sequence[int], ...], device: str
) -> TorchNetwork:
    return cls(module, *shapes, device=device)


def own_network(
    given: Any,
    what: str,
    shapes: Sequence[Sequence[int]],
    n_out: int,
    *,
    n: int | None = None,
    seed: int,
    device: str,
) -> TorchNetwork:
    """A `TorchNetwork` of what the user gave: a copy of a module, or what a function makes; raises InputError.

    Several side by side (`n`; None: one) need a function or a ModuleList, because copies of one would stay equal.
    """
    takes = " and ".join(f"[B, {', '.join(map(str, shape))}]" for shape in shapes)
    made: Any
    if isinstance(given, nn.Module) and (n is None or isinstance(given, nn.ModuleList)):
        made = copy.deepcopy(given)
    elif isinstance(given, nn.Module) and n == 1:
        made = nn.ModuleList([copy.deepcopy(given)])
    elif callable(given) and not isinstance(given, nn.Module):
        with building(seed):
            modules = [given() for _ in range(n or 1)]
        made = modules[0] if n is None or not isinstance(modules[0], nn.Module) else nn.ModuleList(modules)
    else:
        wanted = "a torch.nn.Module or a function that makes one" if n in (None, 1) else "a function that makes one"
        raise InputError(f"{what} must be {wanted}, got {type(given).__name__}")
    if not isinstance(made, nn.Module) or next(made.parameters(), None) is None:
        raise InputError(f"{what} must be a torch.nn.Module with parameters, got {type(made).__name__}")
    if not any(p.requires_grad for p in made.parameters()):
        raise InputError(f"{what} must have parameters to train, got none with requires_grad")
    if isinstance(made, nn.ModuleList) and len(made) != n:
        raise InputError(f"{what} must be {n} modules, got {len(made)}")
    network = TorchNetwork(made, *shapes, device=device)
    x = [torch.zeros(2, *shape, device=device) for shape in shapes]
    wanted_shape = (2, n_out) if n is None else (n, 2, n_out)
    try:
        got = tuple(network.forward(tuple(x)).shape)
    except Exception as error:  # the module's own
        text = " ".join(str(error).split())
        raise InputError(f"{what} must take {takes}: {type(error).__name__}: {text}") from error
    if got != wanted_shape:
        got = got[1:] if n is not None and len(got) == 3 else got
        raise InputError(f"{what} must map {takes} to [B, {n_out}], got {list(got)} for B = 2")
    return network


def flatten_parameters(module: nn.Module) -> tuple[nn.Parameter, Tensor]:
    """Make the parameters of `module` and their gradients views of one vector each, and return the two.

    Optimizer, gradient clipping, zeroing and target update then take one call each instead of one a layer, which for
    small networks is what they cost.  Do it after the module has been moved to its device.
    """
    parameters = list(module.parameters())
    vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    gradient = vector.grad = torch.zeros_like(vector)
    start = 0
    for p in parameters:
        part = slice(start, start + p.numel())
        p.data, p.grad = vector.data[part].view_as(p), gradient[part].view_as(p)
        start += p.numel()
    return vector, gradient


def are_views(module: nn.Module, vector: Tensor) -> bool:
    """Whether the parameters of `module` are still what `flatten_parameters` made of them: views of `vector`."""
    at = vector.data_ptr()
    for p in module.parameters():
        if p.data_ptr() != at or p.dtype != vector.dtype:
            return False
        at += p.numel() * p.element_size()
    return at == vector.data_ptr() + vector.numel() * vector.element_size()


class PolicyFisher:
    """`fastrl.FisherVectorProduct` of a policy that torch computes, for the kind of arrays that `x` and v are.

    `actor`: observations -> logits, or means with `log_std` [A] beside them.  `sizes`: of independent categoricals, the
    number of logits of each, whose products add up; None: there is one.  `allowed` [B, K]: which actions they have.
    Raises InputError for an actor with parameters that are not to be trained.
    """

    def __init__(
        self, actor: Network, log_std: Any, x: Any, damping: float, sizes: Any = None, allowed: Any = None
    ) -> None:
        net = actor.to_torch()
        parameters = list(net.parameters())
        if not all(p.requires_grad for p in parameters):
            raise InputError("network: TRPO trains all parameters of the policy, got some without requires_grad")
        if log_std is not None:
            net = Gaussian(net, torch.as_tensor(log_std))
            parameters.append(net.log_std)
        if allowed is not None:
            net = Allowed(net, x.shape[1:])
        parts: list[nn.Module] = [net]
        if sizes is not None and len(sizes) > 1:
            ends = [int(end) for end in np.cumsum(sizes)]
            parts = [Part(net, begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        x = self._inputs(x, allowed)
        self._products = [
            FisherVectorProduct(part, x, 0.0 if i else damping, parameters=parameters) for i, part in enumerate(parts)
        ]

    def refresh(self, x: Any, allowed: Any = None) -> None:
        for product in self._products:
            product.refresh(self._inputs(x, allowed))

    @staticmethod
    def _inputs(x: Any, allowed: Any) -> Tensor:
        """What the product's module takes, which is of one tensor."""
        x = torch.as_tensor(x)
        return x if allowed is None else torch.cat((x.flatten(1), torch.as_tensor(allowed).to(x.dtype)), 1)

    def __call__(self, v: Any) -> Any:
        first, *others = (product(torch.as_tensor(v)) for product in self._products)
        product = sum(others, first)
        return product.numpy() if isinstance(v, np.ndarray) else product


class Part(nn.Module):
    """Some of a network's outputs."""

    def __init__(self, net: nn.Module, begin: int, end: int) -> None:
        super().__init__()
        self.net, self.begin, self.end = net, begin, end

    def forward(self, obs: Tensor) -> Tensor:
        out: Tensor = self.net(obs)[:, self.begin : self.end]
        return out


class Allowed(nn.Module):
    """Logits of a network of observations `shape`, far below all others where the columns behind them are 0."""

    def __init__(self, net: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.net, self.shape, self.n = net, tuple(shape), math.prod(shape)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x[:, : self.n].reshape(-1, *self.shape))
        return logits.masked_fill(x[:, self.n :] == 0, -1e9)


class Gaussian(nn.Module):
    """Mean and log_std as `FisherVectorProduct` takes them."""

    def __init__(self, net: nn.Module, log_std: Tensor) -> None:
        super().__init__()
        self.net, self.log_std = net, nn.Parameter(log_std)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(obs), self.log_std
