"""The product with a policy's Fisher matrix."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastrl import _fork
from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.conjugate_gradient.solve import check_number
from fastrl.kernels.curvature.parameters import Parameters, import_torch
from fastrl.kernels.curvature.products import DoubleBackwardProduct, FuncProduct, head_class

if TYPE_CHECKING:
    from torch import Tensor, nn


_METHODS = ("auto", "direct", "func", "double_backward")
_DISTRIBUTIONS = ("auto", "normal", "categorical")


class FisherVectorProduct:
    """v -> (F + damping I) v, F the mean Fisher matrix of a policy over observations.

    F = (1 / B) sum_b J_b^T M_b J_b,  b = 0 .. B-1
    with J_b the Jacobian of the distribution's parameters in the state b by the policy's parameters, and M_b their
    Fisher matrix (Schulman et al. 2015, appendix C): for a diagonal Gaussian 1 / sigma_j^2 for the mean and 2 for
    log_std_j on the diagonal; for a categorical distribution of probabilities p, diag(p) - p p^T for the logits.
    F is the Hessian of mean_b KL(pi_old(.|s_b) || pi(.|s_b)) at pi = pi_old.

    The forward pass is done once, at construction; after the parameters have moved, call `refresh`.  Safe for several
    threads: a product is that of before or after a `refresh`.  A pickle or copy is made anew from the policy and the
    observations; a deepcopy from deep copies of them.

    Args:
        policy: a module that maps observations to logits [B, K], or to a pair of mean [B, A] and log_std [A] or [B, A].
            It must be deterministic (`policy.eval()` where it has Dropout or BatchNorm), and the rows of a batch
            independent.
        observations: [B, ...], B >= 1, of the parameters' dtype and device.
        damping: added to the diagonal of F.
        distribution: "normal", "categorical", or "auto": which of the two the output says.
        method: "direct": for chains of Linear and Tanh / ReLU / SiLU (`nn.Sequential`, or a module that holds one and a
            log_std parameter [A]), one forward and one backward sweep of matrix products, no autograd;
            "func": `torch.func.jvp` and `vjp`, any module; "double_backward": through the KL's gradient, slower;
            "auto": "direct" where it applies, else "func".
        parameters: over which v ranges; None: all of the policy's that require gradients, in the order of
            `policy.parameters()`.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value.

    >>> import torch, fastrl
    >>> policy = torch.nn.Linear(2, 3)  # logits
    >>> fisher = fastrl.FisherVectorProduct(torch.nn.Sequential(policy), torch.randn(8, 2), damping=0.0)
    >>> v = torch.randn(9)
    >>> bool(v @ fisher(v) >= 0)
    True
    """

    def __init__(
        self,
        policy: nn.Module,
        observations: Tensor,
        damping: float = 0.1,
        *,
        distribution: str = "auto",
        method: str = "auto",
        parameters: Iterable[Tensor] | None = None,
    ) -> None:
        torch = import_torch()
        op = "FisherVectorProduct"
        if not isinstance(policy, torch.nn.Module):
            raise TypeError(f"{op}: policy must be a torch.nn.Module, got {type(policy).__name__}")
        if distribution not in _DISTRIBUTIONS:
            raise ValueError(f"{op}: distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {distribution!r}")
        if method not in _METHODS:
            raise ValueError(f"{op}: method must be one of {', '.join(_METHODS)}, got {method!r}")
        self.damping = check_number(damping, f"{op}: damping")
        self._head: Any = head_class()(policy, distribution)
        self._parameters = Parameters(policy if parameters is None else parameters, op)
        owned = {id(p) for p in policy.parameters()}
        for i, p in enumerate(self._parameters.tensors):
            if id(p) not in owned:
                raise ValueError(f"{op}: params[{i}] must be a parameter of the policy")
        self._observations = self._check(observations)
        self._product: Any = None
        self._asked_method = method
        self._only_direct = method == "direct"
        self._lock = threading.RLock()
        _fork.guarded.add(self._lock)
        if method in ("auto", "direct"):
            from fastrl.kernels.curvature._torch import find_chain

            self._product = find_chain(self._head, self._parameters, self._observations)
            if self._product is None and method == "direct":
                raise ValueError(
                    f'{op}: method "direct" needs a chain of Linear and Tanh, ReLU or SiLU layers, '
                    f"got {type(policy).__name__}"
                )
        if self._product is None:
            kind = DoubleBackwardProduct if method == "double_backward" else FuncProduct
            self._product = kind(self._head, self._parameters, self._observations)
            self.method = "double_backward" if method == "double_backward" else "func"
        else:
            self.method = "direct"

    def _check(self, observations: Any) -> Any:
        torch, op = _arrays.torch(), "FisherVectorProduct"
        if not isinstance(observations, torch.Tensor):
            raise TypeError(f"{op}: observations must be a torch.Tensor, got {type(observations).__name__}")
        if observations.dim() < 1 or observations.shape[0] < 1:
            raise ValueError(
                f"{op}: observations must have shape [B, ...] with B >= 1, got {tuple(observations.shape)}"
            )
        if observations.device != self._parameters.device:
            raise ValueError(
                f"{op}: observations must be on {self._parameters.device} like the parameters, "
                f"got {observations.device}"
            )
        if observations.is_floating_point() and observations.dtype != self._parameters.dtype:
            raise ValueError(
                f"{op}: observations must have dtype {_arrays.dtype_name(self._parameters)} like the parameters, "
                f"got {_arrays.dtype_name(observations)}"
            )
        return observations.detach()

    def refresh(self, observations: Tensor | None = None) -> None:
        """Do the forward pass anew: the parameters have moved, or `observations` are others."""
        if observations is not None:
            checked = self._check(observations)
            if checked.shape[1:] != self._observations.shape[1:]:
                shape, rest = tuple(checked.shape), ", ".join(map(str, self._observations.shape[1:]))
                raise ValueError(
                    f"FisherVectorProduct: observations must have shape [B, {rest}] as before, got {shape}"
                )
        else:
            checked = self._observations
        with self._lock:
            self._observations = checked
            fits = self._product.refresh(checked)
            if (
                self.method == "direct" and not fits
            ):  # a policy that does more than its chain, which did not show before
                if self._only_direct:
                    raise ValueError("FisherVectorProduct: the policy's output is not that of its chain of layers")
                self._product = FuncProduct(self._head, self._parameters, checked)
                self.method = "func"

    def __reduce__(self) -> tuple[Any, ...]:
        policy = self._head.policy
        at = {id(p): i for i, p in enumerate(policy.parameters())}
        places = [at[id(p)] for p in self._parameters.tensors]
        settings = (self.damping, self._head.distribution, self._asked_method)
        return _fisher_of, (policy, self._observations, *settings, places)

    @property
    def shape(self) -> tuple[int, int]:
        return self._parameters.n, self._parameters.n

    @property
    def dtype(self) -> Any:
        return self._parameters.dtype

    def __call__(self, v: Tensor) -> Tensor:
        v, product = self._parameters.check(v), self._product
        result: Tensor
        if getattr(product, "fused", None) is not None:  # keeps what it began with
            result = product(v, self.damping)
        else:
            with self._lock:
                result = self._product(v, self.damping)
        return result

    matvec = __matmul__ = __call__


def _fisher_of(
    policy: Any, observations: Any, damping: float, distribution: str, method: str, places: list[int]
) -> FisherVectorProduct:
    """What a pickle or a copy of a FisherVectorProduct makes; `places`: of its parameters among the policy's."""
    tensors = list(policy.parameters())
    return FisherVectorProduct(
        policy,
        observations,
        damping,
        distribution=distribution,
        method=method,
        parameters=[tensors[i] for i in places],
    )
