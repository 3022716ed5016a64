"""What a policy gives, and the products with its Fisher matrix by torch.func and through the gradient of the KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.curvature.hessian import HessianVectorProduct
from fastrl.kernels.curvature.parameters import Parameters, import_torch


def head_class() -> Any:
    """The class of a module that gives the distribution's parameters: (logits,) or (mean, log_std)."""
    global _head
    if _head is not None:
        return _head
    torch = import_torch()

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
    torch, op = _arrays.torch(), "FisherVectorProduct"
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
    torch = _arrays.torch()
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
        torch = _arrays.torch()
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
        torch = _arrays.torch()
        t -= torch.linalg.vecdot(self.p, t).unsqueeze_(1)
        return t.mul_(self.scaled_p)

    def __call__(self, tangents: Sequence[Any]) -> tuple[Any, ...]:
        if not self.normal:
            return (self.logits_(tangents[0].clone()),)
        return self.mean_(tangents[0].clone()), self.log_std_(tangents[1].clone())


class FuncProduct:
    """Forward-mode and reverse-mode products of torch.func; the reverse graph is kept from product to product."""

    def __init__(self, head: Any, parameters: Parameters, observations: Any) -> None:
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
        torch = _arrays.torch()
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
        torch = _arrays.torch()
        _, tangents = torch.func.jvp(self.outputs, self.values, tuple(self.parameters.split(v)))
        return self.parameters.join(self.vjp(self.fisher(tangents))).add_(v, alpha=damping)


class DoubleBackwardProduct:
    """The Hessian of the mean KL, whose old distribution is a constant."""

    def __init__(self, head: Any, parameters: Parameters, observations: Any) -> None:
        self.head, self.parameters = head, parameters
        self.refresh(observations)

    def refresh(self, observations: Any) -> None:
        torch = _arrays.torch()
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
