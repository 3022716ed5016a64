"""The kinds of networks that agents have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastrl.agents.batch_norm import BatchNormMLP
from fastrl.kernels import MLP

if TYPE_CHECKING:
    from torch import nn


class OwnNetwork(ABC):
    """A network of the user's own behind the calls of `fastrl.MLP`, which see.  It knows nothing of torch by itself."""

    module: nn.Module
    vector: Any
    grad: Any
    device: str
    n: int | None

    @abstractmethod
    def forward(self, x: Any, *, first: int | None = None) -> Any: ...

    @abstractmethod
    def forward_cached(self, x: Any, *, first: int | None = None) -> Any: ...

    @abstractmethod
    def backward(self, d_out: Any, *, parameters: bool = True, inputs: slice | bool | None = None) -> Any: ...

    @abstractmethod
    def parameters(self, vector: Any = None) -> dict[str, Any]: ...

    @abstractmethod
    def move(self, vector: Any, grad: Any) -> None:
        """Let the parameters be views of `vector`, which holds their values, and their gradients of `grad`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def to_torch(self) -> nn.Module: ...


Network = MLP | BatchNormMLP | OwnNetwork
