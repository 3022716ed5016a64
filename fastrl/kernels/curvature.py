"""Products with the Hessian of a loss and with a policy's Fisher matrix, and the natural gradient step made of them.

Parameters are one flat vector [n]: those given, in their order, each row-major.  Needs torch; importing this does not.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrl import _fork
from fastrl.kernels import _arrays
from fastrl.kernels.conjugate_gradient import CGInfo, check_max_iter, check_number, solve

if TYPE_CHECKING:
    from torch import Tensor, nn

_METHODS = ("auto", "direct", "func", "double_backward")
_DISTRIBUTIONS = ("auto", "normal", "categorical")


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise RuntimeError("curvature products need PyTorch; to install: pip install torch") from error
    return torch


class _Parameters:
    """The parameters as one vector: their places in it, and the checks of a vector given for it."""

    def __init__(self, parameters: Any, op: str) -> None:
        torch = _torch()
        if isinstance(parameters, torch.Tensor):
            parameters = [parameters]
        elif isinstance(parameters, torch.nn.Module):
            parameters = [p for p in parameters.parameters() if p.requires_grad]
        elif not isinstance(parameters, Iterable):
            raise TypeError(f"{op}: params must be tensors, got {type(parameters).__name__}")
        self.op = op
        self.tensors: list[Any] = list(parameters)
        if not self.tensors:
            raise ValueError(f"{op}: params must name at least one tensor that requires a gradient, got none")
        for i, p in enumerate(self.tensors):
            if not isinstance(p, torch.Tensor):
                raise TypeError(f"{op}: params[{i}] must be a torch.Tensor, got {type(p).__name__}")
            if not p.requires_grad:
                raise ValueError(f"{op}: params[{i}] must require a gradient")
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{op}: params[{i}] must have dtype float32 or float64, got {_dtype_name(p.dtype)}")
            first = self.tensors[0]
            if (p.dtype, p.device) != (first.dtype, first.device):
                raise ValueError(
                    f"{op}: params[{i}] must be {_dtype_name(first.dtype)} on {first.device} like params[0], "
                    f"got {_dtype_name(p.dtype)} on {p.device}"
                )
        if len({id(p) for p in self.tensors}) < len(self.tensors):
            raise ValueError(f"{op}: params must not name a tensor twice")
        self.dtype, self.device = self.tensors[0].dtype, self.tensors[0].device
        self.sizes = [p.numel() for p in self.tensors]
        self.n = sum(self.sizes)

    def check(self, v: Any) -> Any:
        """`v`, detached and contiguous."""
        torch = sys.modules["torch"]
        if not isinstance(v, torch.Tensor):
            raise TypeError(f"{self.op}: v must be a torch.Tensor, got {type(v).__name__}")
        if v.dim() != 1 or v.shape[0] != self.n:
            raise ValueError(f"{self.op}: v must have shape ({self.n},), got {tuple(v.shape)}")
        if v.dtype != self.dtype:
            raise ValueError(
                f"{self.op}: v must have dtype {_dtype_name(self.dtype)} like the parameters, "
                f"got {_dtype_name(v.dtype)}"
            )
        if v.device != self.device:
            raise ValueError(f"{self.op}: v must be on {self.device} like the parameters, got {v.device}")
        return v.detach().contiguous()

    def split(self, vector: Any) -> list[Any]:
        """Views of a flat vector, of the parameters' shapes."""
        return [part.view(p.shape) for part, p in zip(vector.split(self.sizes), self.tensors, strict=True)]

    def join(self, parts: Sequence[Any]) -> Any:
        """The flat vector of gradients of which some may be None, for 0."""
        torch = sys.modules["torch"]
        flat = [
            p.detach().new_zeros(p.numel()) if part is None else part.detach().reshape(-1)
            for part, p in zip(parts, self.tensors, strict=True)
        ]
        return torch.cat(flat)


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


# ---- Hessian -----------------------------------------------------------------------------------------------------


class HessianVectorProduct:
    """What `hessian_vector_product` makes: h(v) = H v, from a graph that is built once."""

    def __init__(self, loss: Any, params: Any, op: str = "hessian_vector_product") -> None:
        torch = _torch()
        self._parameters = _Parameters(params, op)
        if callable(loss) and not isinstance(loss, torch.Tensor):
            with torch.enable_grad():
                loss = loss()
        if not isinstance(loss, torch.Tensor):
            raise TypeError(
                f"{op}: loss must be a torch.Tensor, or a callable that gives one, got {type(loss).__name__}"
            )
        if loss.numel() != 1:
            raise ValueError(f"{op}: loss must have one element, got shape {tuple(loss.shape)}")
        tensors = self._parameters.tensors
        gradients: Any = (None,) * len(tensors)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss.reshape(()), tensors, create_graph=True, allow_unused=True)
        # A gradient that does not depend on any parameter (of a linear loss) adds nothing.
        self._gradients = [g if g is not None and g.requires_grad else None for g in gradients]

    @property
    def shape(self) -> tuple[int, int]:
        return self._parameters.n, self._parameters.n

    def __call__(self, v: Tensor) -> Tensor:
        torch = sys.modules["torch"]
        parameters = self._parameters
        parts = parameters.split(parameters.check(v))
        used = [(g, part) for g, part in zip(self._gradients, parts, strict=True) if g is not None]
        if not used:
            zeros: Tensor = torch.zeros_like(v)
            return zeros
        products = torch.autograd.grad(
            [g for g, _ in used], parameters.tensors, [part for _, part in used], retain_graph=True, allow_unused=True
        )
        flat: Tensor = parameters.join(products)
        return flat

    matvec = __matmul__ = __call__


def hessian_vector_product(loss: Any, params: Any, v: Tensor | None = None) -> Any:
    """Products with the Hessian of a scalar loss (Pearlmutter 1994).

    (H v)_i = sum_j (d^2 loss / d theta_i d theta_j) v_j,  i, j = 0 .. n-1

    The gradient's graph is built once; each product is one backward pass through it.

    Args:
        loss: a tensor of one element with a graph to the parameters, or a callable that computes it.
        params: a tensor, several, or a module (those of its parameters that require gradients).
        v: a vector [n] over the parameters, of their dtype and device.

    Returns:
        The operator h: h(v) is H v [n]; or H v itself where `v` is given.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value.

    >>> import torch, fastrl
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> fastrl.hessian_vector_product((x**3).sum(), x, torch.ones(2))
    tensor([ 6., 12.])
    """
    product = HessianVectorProduct(loss, params)
    return product if v is None else product(v)


# ---- Fisher ------------------------------------------------------------------------------------------------------


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
        torch = _torch()
        op = "FisherVectorProduct"
        if not isinstance(policy, torch.nn.Module):
            raise TypeError(f"{op}: policy must be a torch.nn.Module, got {type(policy).__name__}")
        if distribution not in _DISTRIBUTIONS:
            raise ValueError(f"{op}: distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {distribution!r}")
        if method not in _METHODS:
            raise ValueError(f"{op}: method must be one of {', '.join(_METHODS)}, got {method!r}")
        self.damping = check_number(damping, f"{op}: damping")
        self._head: Any = _head_class()(policy, distribution)
        self._parameters = _Parameters(policy if parameters is None else parameters, op)
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
            from fastrl.kernels._direct import find_chain

            self._product = find_chain(self._head, self._parameters, self._observations)
            if self._product is None and method == "direct":
                raise ValueError(
                    f'{op}: method "direct" needs a chain of Linear and Tanh, ReLU or SiLU layers, '
                    f"got {type(policy).__name__}"
                )
        if self._product is None:
            kind = _DoubleBackward if method == "double_backward" else _Func
            self._product = kind(self._head, self._parameters, self._observations)
            self.method = "double_backward" if method == "double_backward" else "func"
        else:
            self.method = "direct"

    def _check(self, observations: Any) -> Any:
        torch, op = sys.modules["torch"], "FisherVectorProduct"
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
                f"{op}: observations must have dtype {_dtype_name(self._parameters.dtype)} like the parameters, "
                f"got {_dtype_name(observations.dtype)}"
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
                self._product = _Func(self._head, self._parameters, checked)
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


def _head_class() -> Any:
    """The class of a module that gives the distribution's parameters: (logits,) or (mean, log_std)."""
    global _head
    if _head is not None:
        return _head
    torch = _torch()

    class Head(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, policy: Any, distribution: str) -> None:
            super().__init__()
            self.policy = policy
            self.distribution = distribution

        def forward(self, observations: Any) -> tuple[Any, ...]:
            return check_output(self.policy(observations), self.distribution, observations)

    _head = Head
    return Head


_head: Any = None


def check_output(output: Any, distribution: str, observations: Any) -> tuple[Any, ...]:
    """The policy's output as (logits,) or (mean, log_std)."""
    torch, op = sys.modules["torch"], "FisherVectorProduct"
    parts = tuple(output) if isinstance(output, (tuple, list)) else (output,)
    if not all(isinstance(x, torch.Tensor) for x in parts) or len(parts) not in (1, 2):
        raise TypeError(
            f"{op}: policy must give logits or a pair (mean, log_std), got "
            + (", ".join(type(x).__name__ for x in parts) or "nothing")
        )
    found = "categorical" if len(parts) == 1 else "normal"
    if distribution not in ("auto", found):
        wanted = "logits" if distribution == "categorical" else "a pair (mean, log_std)"
        raise ValueError(f"{op}: policy must give {wanted} for a {distribution} distribution")
    batch, first = observations.shape[0], parts[0]
    name = "logits [B, K]" if len(parts) == 1 else "a mean [B, A]"
    if first.dim() != 2 or first.shape[0] != batch:
        raise ValueError(f"{op}: policy must give {name} with B = {batch}, got shape {tuple(first.shape)}")
    if len(parts) == 2 and tuple(parts[1].shape) not in (tuple(first.shape), tuple(first.shape[1:])):
        raise ValueError(
            f"{op}: policy must give log_std of shape {tuple(first.shape[1:])} or {tuple(first.shape)}, "
            f"got {tuple(parts[1].shape)}"
        )
    return parts


def check_repeatable(head: Any, observations: Any) -> None:
    """Raises where a second forward pass would be another one: then there is no one F.  Policy and seeds stay."""
    torch = sys.modules["torch"]
    if observations.is_cuda and torch.cuda.is_current_stream_capturing():  # what follows looks at values
        return
    before = {name: buffer.clone() for name, buffer in head.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng([observations.device] if observations.is_cuda else []):
        first, second = ([x.detach() for x in head(observations)] for _ in range(2))
        same = True
        for name, buffer in head.named_buffers():
            if not torch.equal(buffer.nan_to_num(), before[name].nan_to_num()):
                same = False
                buffer.copy_(before[name])
    for x, y in zip(first, second, strict=True):  # but for what a GPU's order of summation changes
        same = same and torch.allclose(x, y, rtol=1e-3, atol=1e-4 * float(x.abs().nan_to_num().max()), equal_nan=True)
    if not same:
        raise ValueError(
            "FisherVectorProduct: policy must give the same output each time and change no buffer, unlike Dropout and "
            "BatchNorm in training mode: call policy.eval() first"
        )


class OutputFisher:
    """w = M t / B for tangents t of the distribution's parameters, from their values, in place."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        torch = sys.modules["torch"]
        batch = outputs[0].shape[0]
        self.normal = len(outputs) == 2
        if self.normal:
            self.inverse_variance = torch.exp(-2 * outputs[1]).div_(batch)
            self.log_std_scale = 2.0 if outputs[1].dim() == 1 else 2.0 / batch
        else:
            self.p = torch.softmax(outputs[0], 1)
            self.scaled_p = self.p / batch

    def mean_(self, t: Any) -> Any:
        return t.mul_(self.inverse_variance)

    def log_std_(self, t: Any) -> Any:
        return t.mul_(self.log_std_scale)

    def logits_(self, t: Any) -> Any:
        torch = sys.modules["torch"]
        t -= torch.linalg.vecdot(self.p, t).unsqueeze_(1)
        return t.mul_(self.scaled_p)

    def __call__(self, tangents: Sequence[Any]) -> tuple[Any, ...]:
        if not self.normal:
            return (self.logits_(tangents[0].clone()),)
        return self.mean_(tangents[0].clone()), self.log_std_(tangents[1].clone())


class _Func:
    """Forward-mode and reverse-mode products of torch.func; the reverse graph is kept from product to product."""

    def __init__(self, head: Any, parameters: _Parameters, observations: Any) -> None:
        self.head, self.parameters = head, parameters
        # All names of a parameter that several modules share, but one only where a module is used several times.
        names: dict[int, list[str]] = {id(p): [] for p in parameters.tensors}
        for prefix, module in head.named_modules():
            for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
                if id(p) in names:
                    names[id(p)].append(f"{prefix}.{name}" if prefix else name)
        self.names = [names[id(p)] for p in parameters.tensors]
        self.refresh(observations)

    def refresh(self, observations: Any) -> None:
        torch = sys.modules["torch"]
        check_repeatable(self.head, observations)
        head, names = self.head, self.names

        def outputs(*tensors: Any) -> tuple[Any, ...]:
            replaced = {name: p for group, p in zip(names, tensors, strict=True) for name in group}
            # torch's own tie_weights would leave a module that is used twice with the replacements.
            result: tuple[Any, ...] = torch.func.functional_call(head, replaced, (observations,), tie_weights=False)
            return result

        self.outputs = outputs
        self.values = tuple(p.detach().clone() for p in self.parameters.tensors)
        values, self.vjp = torch.func.vjp(outputs, *self.values)
        self.fisher = OutputFisher([x.detach() for x in values])

    def __call__(self, v: Any, damping: float) -> Any:
        torch = sys.modules["torch"]
        _, tangents = torch.func.jvp(self.outputs, self.values, tuple(self.parameters.split(v)))
        return self.parameters.join(self.vjp(self.fisher(tangents))).add_(v, alpha=damping)


class _DoubleBackward:
    """The Hessian of the mean KL, whose old distribution is a constant."""

    def __init__(self, head: Any, parameters: _Parameters, observations: Any) -> None:
        self.head, self.parameters = head, parameters
        self.refresh(observations)

    def refresh(self, observations: Any) -> None:
        torch = sys.modules["torch"]
        check_repeatable(self.head, observations)
        with torch.enable_grad():
            outputs = self.head(observations)
            old = [x.detach() for x in outputs]
            if len(outputs) == 1:
                p = torch.log_softmax(old[0], 1)
                kl = (p.exp() * (p - torch.log_softmax(outputs[0], 1))).nan_to_num().sum(1).mean()
            else:
                (m, s), (m0, s0) = outputs, old
                terms = s - s0 + 0.5 * (torch.exp(2 * (s0 - s)) + ((m0 - m) * torch.exp(-s)) ** 2 - 1)
                kl = terms.sum(1).mean()
            self.product = HessianVectorProduct(kl, self.parameters.tensors, "FisherVectorProduct")

    def __call__(self, v: Any, damping: float) -> Any:
        return self.product(v).add_(v, alpha=damping)


# ---- natural gradient --------------------------------------------------------------------------------------------


class NaturalGradientInfo(CGInfo):
    """The solve's `iterations`, `residual_norm` and `status`, and the step's `curvature` and `scale`.

    curvature = x^T A x of the solution x of A x = gradient; step = scale x.  `scale` is 0 where there is no step: the
    gradient is zero, or the curvature is not a positive finite number (the status then says "breakdown", if it did not
    say "negative_curvature").
    """

    __slots__ = ("_read_scale", "_scale")

    def __init__(self, info: CGInfo, read_scale: Callable[[], tuple[float, float, bool]]) -> None:
        self._read_scale, self._scale = read_scale, (math.nan, math.nan)
        self._values = None

        def read() -> tuple[int, float, str]:
            curvature, scale, zero = read_scale()
            self._scale = curvature, scale
            status = info.status
            if scale == 0 and not zero and status in ("converged", "max_iter"):
                status = "breakdown"
            return info.iterations, info.residual_norm, status

        self._read = read

    @property
    def curvature(self) -> float:
        self._get()
        return self._scale[0]

    @property
    def scale(self) -> float:
        self._get()
        return self._scale[1]

    def __repr__(self) -> str:
        return f"NaturalGradientInfo({super().__repr__()[7:-1]}, curvature={self.curvature!r}, scale={self.scale!r})"


def natural_gradient_step(
    fisher: Any,
    gradient: Tensor,
    *,
    max_kl: float,
    max_iter: int = 10,
    rtol: float = 1e-5,
    atol: float = 0.0,
    damping: float = 0.0,
    preconditioner: Any = None,
) -> tuple[Tensor, NaturalGradientInfo]:
    """The step along the natural gradient whose predicted mean KL is `max_kl` (Schulman et al. 2015, appendix C).

    x = A^-1 gradient by `conjugate_gradient`, A = `fisher` + damping I ;  step = sqrt(2 max_kl / x^T A x) x

    x^T A x is x . (gradient - r), r the solve's residual, so that the step takes no product of its own.  However the
    solve ended ("max_iter", "negative_curvature" and "breakdown" too), x and r are those of the last finished
    iteration, and the step is made of them.  Where x^T A x is not a positive finite number, or the step would not be
    finite, the step is zero and `info.scale` is 0: so if no iteration was finished.

    Args:
        fisher: v -> A v, as `conjugate_gradient` takes it: a `FisherVectorProduct`, whose damping is in A already.
        gradient: of what is to be made larger, float32 or float64 [n], torch (or NumPy).
        max_kl: > 0.
        max_iter, rtol, atol, damping, preconditioner: as in `conjugate_gradient`.

    Returns:
        step [n], like the gradient, and how the solve ended (`NaturalGradientInfo`).

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value.
    """
    op = "natural_gradient_step"
    max_kl = check_number(max_kl, f"{op}: max_kl")
    if max_kl == 0:
        raise ValueError(f"{op}: max_kl must be > 0, got 0.0")
    x, info, r = solve(fisher, gradient, None, max_iter, rtol, atol, damping, preconditioner, op=op)
    if getattr(gradient, "is_cuda", False):
        return _scaled_on_device(x, gradient.detach() - r, info, max_kl)
    as_array = _arrays.load(x, op)
    double = as_array.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        product = _arrays.load(gradient, op).astype(np.float64) - _arrays.load(r, op)
        curvature = float(np.dot(double, product))
        scale = math.sqrt(2 * max_kl / curvature) if 0 < curvature < math.inf else 0.0
        limit = float(np.finfo(as_array.dtype).max)
        largest = float(np.abs(double).max(initial=0.0)) * scale
        if not largest <= limit:
            scale = 0.0
        step = _arrays.like((double * scale).astype(as_array.dtype), gradient)
    is_zero = not as_array.any() and info.status == "converged"
    return step, NaturalGradientInfo(info, lambda: (curvature, scale, is_zero))


def _scaled_on_device(x: Any, product: Any, info: CGInfo, max_kl: float) -> tuple[Any, NaturalGradientInfo]:
    """The same without a look at the numbers."""
    torch = sys.modules["torch"]
    double = x.double()
    curvature = double.dot(product.double())
    scale = torch.sqrt(2 * max_kl / curvature)
    step = (double * scale).to(x.dtype)
    usable = (curvature > 0) & torch.isfinite(scale) & torch.isfinite(step).all()
    step = torch.where(usable, step, 0.0)
    numbers = torch.stack([curvature, torch.where(usable, scale, 0.0), double.abs().sum()])

    def read() -> tuple[float, float, bool]:
        c, s, size = numbers.tolist()
        return c, s, size == 0 and info.status == "converged"

    return step, NaturalGradientInfo(info, read)


class LineSearchResult(NamedTuple):
    """`params` are the accepted parameters, or those of before; `fraction` of the step (0 if none was accepted)."""

    accepted: bool
    kl: float
    improvement: float
    fraction: float
    params: Any
    evaluations: int


def line_search(
    evaluate: Callable[[Any], tuple[Any, Any]],
    params_vector: Any,
    step: Any,
    *,
    expected_improvement: float,
    max_kl: float,
    max_backtracks: int = 10,
    backtrack: float = 0.8,
    accept_ratio: float = 0.0,
    surrogate: float | None = None,
) -> LineSearchResult:
    """The first of params + backtrack^i step, i = 0 .. max_backtracks, that is better and within the KL bound.

    Accepted is the first whose surrogate is larger than before, by at least
    accept_ratio backtrack^i expected_improvement, and whose kl <= max_kl. (The expected improvement of candidate i is
    always backtrack^i times the whole step's: it does not compound.)  A candidate whose surrogate or KL is not finite
    is refused.  If none is accepted, `params_vector` has the bits it had before, even if `evaluate` wrote to it, and
    also if `evaluate` raises.

    Args:
        evaluate: parameters [n] -> (surrogate, kl), to be made larger, and bounded; numbers or tensors of one element.
            It is called with a new vector each time, and with `params_vector` first, unless `surrogate` is given.
        params_vector: where to start [n], NumPy or torch.  Only `evaluate` writes to it, if at all.
        step: [n], of the same kind, device and dtype.
        expected_improvement: of the surrogate by the whole step, to first order: gradient . step.
        max_kl: the bound, >= 0.
        max_backtracks: how often the step is made shorter.
        backtrack: by which factor, in (0, 1).
        accept_ratio: the share of the expected improvement that is enough, >= 0.
        surrogate: its value at `params_vector`, if it is known.

    Returns:
        `LineSearchResult`: accepted, kl, improvement, fraction, params, evaluations.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape or value.
    """
    op = "line_search"
    is_tensor = _arrays.is_tensor(params_vector)
    if not is_tensor and not isinstance(params_vector, np.ndarray):
        raise TypeError(
            f"{op}: params_vector must be a numpy.ndarray or a torch.Tensor, got {type(params_vector).__name__}"
        )
    if _arrays.kind_name(step) != _arrays.kind_name(params_vector):
        raise TypeError(
            f"{op}: step must be a {_arrays.kind_name(params_vector)} like params_vector, got {type(step).__name__}"
        )
    if params_vector.ndim != 1 or tuple(step.shape) != tuple(params_vector.shape):
        raise ValueError(
            f"{op}: params_vector and step must have one shape [n], got {tuple(params_vector.shape)} and "
            f"{tuple(step.shape)}"
        )
    if step.dtype != params_vector.dtype:
        raise ValueError(
            f"{op}: step must have dtype {_dtype_name(params_vector.dtype)} like params_vector, "
            f"got {_dtype_name(step.dtype)}"
        )
    if _dtype_name(params_vector.dtype) not in ("float32", "float64"):
        raise ValueError(
            f"{op}: params_vector must have dtype float32 or float64, got {_dtype_name(params_vector.dtype)}"
        )
    max_kl = check_number(max_kl, f"{op}: max_kl")
    accept_ratio = check_number(accept_ratio, f"{op}: accept_ratio")
    max_backtracks = check_max_iter(max_backtracks, f"{op}: max_backtracks")
    backtrack = check_number(backtrack, f"{op}: backtrack")
    if not 0 < backtrack < 1:
        raise ValueError(f"{op}: backtrack must be in (0, 1), got {backtrack!r}")
    if not (_arrays.is_number(expected_improvement) or getattr(expected_improvement, "ndim", 1) == 0):
        raise TypeError(f"{op}: expected_improvement must be a number, got {type(expected_improvement).__name__}")
    expected = _number(expected_improvement)
    if accept_ratio and not math.isfinite(expected):
        raise ValueError(f"{op}: expected_improvement must be finite, got {expected!r}")
    start = params_vector.detach() if is_tensor else params_vector
    before = start.clone() if is_tensor else start.copy()
    direction = step.detach() if is_tensor else step
    evaluations = 0
    accepted = False
    try:
        if surrogate is None:
            surrogate = _number(evaluate(params_vector)[0])
            evaluations = 1
        first = float(surrogate)
        for i in range(max_backtracks + 1 if _all_finite(direction) else 0):
            fraction = backtrack**i
            with np.errstate(all="ignore"):
                candidate = before + fraction * direction
            value, kl = map(_number, evaluate(candidate))
            evaluations += 1
            improvement = value - first
            enough = improvement > 0 and (not accept_ratio or improvement >= accept_ratio * fraction * expected)
            # A difference of two infinities or a NaN compares as False.
            if enough and math.isfinite(improvement) and math.isfinite(kl) and kl <= max_kl:
                accepted = True
                return LineSearchResult(True, kl, improvement, fraction, candidate, evaluations)
        return LineSearchResult(False, 0.0, 0.0, 0.0, params_vector, evaluations)
    finally:
        if not accepted:
            if is_tensor:
                start.copy_(before)
            elif start.tobytes() != before.tobytes():  # it may be read-only
                start[...] = before


def _number(x: Any) -> float:
    return float(x.detach() if hasattr(x, "detach") else x)


def _all_finite(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        return bool(np.isfinite(x).all())
    return bool(sys.modules["torch"].isfinite(x).all())
