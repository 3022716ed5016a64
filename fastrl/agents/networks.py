"""Networks that the agents share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given sizes with `activation` between them and none after the last."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def orthogonal(net: nn.Sequential, last: float) -> nn.Sequential:
    """`net` with orthogonal weights of gain sqrt 2, `last` in its last layer, and biases 0 (Saxe et al. 2014)."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in linear:
        nn.init.orthogonal_(layer.weight, last if layer is linear[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
    return net


class Dueling(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean_b A(s, b), each stream an MLP on shared features (Wang et al. 2016, eq. 9).

    `value` maps ``[B, F]`` to ``[B, 1]``, `advantage` maps it to ``[B, A]``; the result is ``[B, A]``.
    """

    def __init__(self, value: nn.Module, advantage: nn.Module) -> None:
        super().__init__()
        self.value = value
        self.advantage = advantage

    def forward(self, features: Tensor) -> Tensor:
        advantage: Tensor = self.advantage(features)
        value: Tensor = self.value(features)
        return value + advantage - advantage.mean(1, keepdim=True)


def q_network(n_obs: int, n_actions: int, hidden: Sequence[int], dueling: bool) -> nn.Sequential:
    """``[B, *observation]`` -> ``[B, n_actions]``.  With `dueling` the last hidden layer is one per stream."""
    if not dueling:
        return nn.Sequential(nn.Flatten(), *mlp((n_obs, *hidden, n_actions)))
    *shared, last = hidden
    n_features = shared[-1] if shared else n_obs
    trunk = [*mlp((n_obs, *shared)), nn.ReLU()] if shared else []
    streams = Dueling(mlp((n_features, last, 1)), mlp((n_features, last, n_actions)))
    return nn.Sequential(nn.Flatten(), *trunk, streams)


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


def gradient_step(
    loss: Tensor, flat: tuple[nn.Parameter, Tensor], optimizer: torch.optim.Optimizer, max_grad_norm: float | None
) -> None:
    """One optimizer step down the gradient of `loss` in the parameters that `flatten_parameters` made one vector.

    The gradient's norm is first scaled down to `max_grad_norm` if it is larger.
    """
    _, gradient = flat
    gradient.zero_()
    loss.backward()  # type: ignore[no-untyped-call]
    if max_grad_norm is not None:  # torch.nn.utils.clip_grad_norm_ without what it does for lists of tensors
        gradient.mul_((max_grad_norm / (gradient.norm() + 1e-6)).clamp_(max=1.0))
    optimizer.step()


def numpy_forward(module: nn.Module) -> Policy:
    """The forward pass of a CPU module of the layers above as a NumPy function ``float32 [B, ...] -> float32 [B, A]``.

    It reads the parameters in place, so it follows training.  Acting in one environment is all overhead: for a
    4-120-84-2 network one call costs 6 us, and 18 us through torch.
    """
    if isinstance(module, nn.Linear):
        weight, bias = module.weight.detach().numpy().T, module.bias.detach().numpy()
        return lambda x: x @ weight + bias
    if isinstance(module, nn.Tanh):
        return np.tanh
    if isinstance(module, nn.ReLU):
        return lambda x: np.maximum(x, 0)
    if isinstance(module, nn.Flatten):
        return lambda x: x.reshape(len(x), -1)
    if isinstance(module, Dueling):
        value, advantage = numpy_forward(module.value), numpy_forward(module.advantage)

        def dueling(x: NDArray[np.float32]) -> NDArray[np.float32]:
            a = advantage(x)
            q: NDArray[np.float32] = value(x) + a - a.mean(1, keepdims=True)
            return q

        return dueling
    if isinstance(module, nn.Sequential):
        steps = [numpy_forward(child) for child in module]

        def sequential(x: NDArray[np.float32]) -> NDArray[np.float32]:
            for step in steps:
                x = step(x)
            return x

        return sequential
    raise TypeError(f"numpy_forward: no NumPy version of {type(module).__name__}")
