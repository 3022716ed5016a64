"""Ready-made convolutional networks for images: `nature` and `impala`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastrl.agents.images import ReadyMade, image_shape
from fastrl.agents.spaces import Part
from fastrl.agents.torch_networks import TorchNetwork, building


class Convolution(nn.Module):
    """Images ``[B, *shape]`` of 0..1 -> ``[B, n_out]``: convolutions, one hidden layer, and the outputs.

    Of observations with images among their parts, which come flattened, each image has convolutions of its own, and the
    hidden layer sees what these give and all the other parts beside it.

    nature: three convolutions and 512 hidden units (Mnih et al. 2015, doi:10.1038/nature14236)
    impala: 15 convolutions in three residual blocks of 16, 32 and 32 channels, and 256 hidden units (Espeholt et al.
    2018, arXiv:1802.01561, the large one without its LSTM)

    Args:
        made: kind, shape ``[C, H, W]``, ``[H, W, C]`` or ``[H, W]`` (`fastrl.agents.images.image_shape`), or where the
            images are.
        dueling: 0, or N: V + A - mean_a A, from hidden layers of their own, of N numbers an action (Wang
            et al. 2016, arXiv:1511.06581).
        policy: None, or of a policy with V as its last output, how many outputs are the policy's: the weights are
            orthogonal, small ones in the policy's row; else they are torch's.
    """

    def __init__(self, made: ReadyMade, n_out: int, *, dueling: int = 0, policy: int | None = None) -> None:
        super().__init__()
        width = {"nature": 512, "impala": 256}[made.kind]
        self._image = made.shape if made.images is None else None
        if made.images is None:
            self.convolutions: nn.Module = _convolutions(made.kind, made.shape)
        else:
            self.convolutions = Combined(made.kind, made.images, made.shape[0])
        with torch.no_grad():
            n = self.features(torch.zeros(1, *made.shape)).shape[1]
        self.head = nn.Sequential(nn.Linear(n, width), nn.ReLU(), nn.Linear(width, n_out))
        self.value, self._n = None, dueling
        if dueling:
            self.value = nn.Sequential(nn.Linear(n, width), nn.ReLU(), nn.Linear(width, dueling))
        if policy is not None:
            self._orthogonal(policy)

    def _orthogonal(self, policy: int) -> None:
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.orthogonal_(layer.weight, 2**0.5)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            nn.init.orthogonal_(last.weight[:policy], 0.01)
            if policy < last.out_features:
                nn.init.orthogonal_(last.weight[policy:], 1.0)

    def features(self, obs: Tensor) -> Tensor:
        """What the convolutions make of observations ``[B, *shape]``: ``[B, n]``."""
        found: Tensor = self.convolutions(obs if self._image is None else _channels_first(obs, self._image))
        return found

    def outputs(self, features: Tensor) -> Tensor:
        out: Tensor = self.head(features)
        if self.value is None:
            return out
        each = out.reshape(out.shape[0], -1, self._n)
        q: Tensor = self.value(features)[:, None] + each - each.mean(1, keepdim=True)
        return q.flatten(1)

    def forward(self, obs: Tensor) -> Tensor:
        return self.outputs(self.features(obs))


class Combined(nn.Module):
    """Flattened observations ``[B, n]`` -> ``[B, m]``: what convolutions make of each image, then the other numbers."""

    def __init__(self, kind: str, images: Sequence[Part], n: int) -> None:
        super().__init__()
        self._at = [(part.start, part.stop, tuple(part.space.shape or ())) for part in images]
        self.images = nn.ModuleList(_convolutions(kind, shape) for _, _, shape in self._at)
        begins, ends = [0, *(part.stop for part in images)], [*(part.start for part in images), n]
        self._others = [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]

    def forward(self, x: Tensor) -> Tensor:
        seen = [
            convolutions(_channels_first(x[:, start:stop].reshape(-1, *shape), shape))
            for convolutions, (start, stop, shape) in zip(self.images, self._at, strict=True)
        ]
        return torch.cat([*seen, *(x[:, begin:end] for begin, end in self._others)], 1)


def _convolutions(kind: str, shape: Sequence[int]) -> nn.Module:
    """Of images ``[B, C, H, W]``, flattened at the end."""
    image = image_shape(tuple(shape))
    assert image is not None
    return nn.Sequential(*{"nature": _nature, "impala": _impala}[kind](image[0]), nn.Flatten())


def _channels_first(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``[B, C, H, W]`` of images ``[B, *shape]``."""
    if len(shape) == 3:
        return x.permute(0, 3, 1, 2) if shape[0] >= shape[2] else x
    return x[:, None]


class _First(nn.Conv2d):
    """A first layer that hands on images with the channels last in memory, as the ones behind it then do, too.

    On a CPU gradients take two thirds of the time so, and IMPALA's forward half; Nature's alone takes as long as ever.
    """

    def __init__(
        self, channels: int, n: int, size: int, stride: int = 1, padding: int = 0, always: bool = False
    ) -> None:
        super().__init__(channels, n, size, stride, padding)
        self._always = always

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and (self._always or torch.is_grad_enabled()):
            x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x.relu()).relu())
        return out


def _nature(channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        layers += [(nn.Conv2d if layers else _First)(channels, n, size, stride), nn.ReLU()]
        channels = n
    return layers


def _impala(channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n in (16, 32, 32):
        conv = nn.Conv2d(channels, n, 3, padding=1) if layers else _First(channels, n, 3, padding=1, always=True)
        layers += [conv, nn.MaxPool2d(3, 2, padding=1), _Residual(n), _Residual(n)]
        channels = n
    return [*layers, nn.ReLU()]


def q_network(
    made: ReadyMade, n_out: int, *, n: int | None = None, dueling: int = 0, seed: int, device: str
) -> TorchNetwork:
    """`Convolution` with torch's initial weights drawn from `seed`, as for Q; `n` of them side by side, if given."""
    with building(seed):
        each = [Convolution(made, n_out, dueling=dueling) for _ in range(n or 1)]
    return TorchNetwork(each[0] if n is None else nn.ModuleList(each), made.shape, device=device)


def policy_network(made: ReadyMade, n_out: int, critic: bool) -> Callable[[], nn.Module]:
    """A function that makes the `Convolution` of a policy with `n_out` outputs and, with a `critic`, V behind them."""
    return lambda: Convolution(made, n_out + critic, policy=n_out)
