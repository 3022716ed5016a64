"""What needs torch: CUDA tensors (its own products and autograd, nothing read back), and modules that share memory."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.mlp._layout import layout, size_of

_F = ("float32",)
_MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


# ---- modules that share memory
class Dueling(nn.Module):
    """V + A - mean A of two streams on the same features; with several values, the atoms, for each by itself."""

    def __init__(self, value: nn.Module, advantage: nn.Module) -> None:
        super().__init__()
        self.value, self.advantage = value, advantage

    def forward(self, features: Tensor) -> Tensor:
        value: Tensor = self.value(features)
        advantage: Tensor = self.advantage(features).view(features.shape[0], -1, value.shape[1])
        return (value.unsqueeze(1) + (advantage - advantage.mean(1, keepdim=True))).flatten(1)


def _sequential(sizes: tuple[int, ...], activation: str, layer_norm: bool, ends: bool = True) -> nn.Sequential:
    modules: list[nn.Module] = []
    for k, (n_in, n_out) in enumerate(pairwise(sizes)):
        modules.append(nn.Linear(n_in, n_out, device="meta"))
        if ends and k + 2 == len(sizes):
            break
        modules += [nn.LayerNorm(n_out, device="meta")] * layer_norm
        modules.append(_MODULES.get(activation, nn.Identity)())
    return nn.Sequential(*modules)


def _network(mlp: Any) -> nn.Sequential:
    sizes, settings = mlp.sizes, (mlp.activation, mlp.layer_norm)
    if not mlp.dueling:
        return _sequential(sizes, *settings)
    trunk = _sequential(sizes[:-2], *settings, ends=False)
    value, advantage = _sequential((*sizes[-3:-1], int(mlp.dueling)), *settings), _sequential(sizes[-3:], *settings)
    return nn.Sequential(*trunk, Dueling(value, advantage))


def to_torch(mlp: Any) -> nn.Module:
    module: nn.Module = _network(mlp) if mlp.n is None else nn.ModuleList(_network(mlp) for _ in range(mlp.n))
    values, gradients = mlp.parameters(), mlp.parameters(mlp.grad)
    for name, _ in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(torch.as_tensor(values[name]))
        parameter.grad = torch.as_tensor(gradients[name])
        setattr(module.get_submodule(owner), leaf, parameter)
    return module


def _describe(module: nn.Sequential) -> dict[str, Any]:
    """The settings of an MLP from the layers of a module."""
    layers = [layer for layer in module if not isinstance(layer, (nn.Flatten, nn.Identity))]
    if layers and type(layers[-1]).__name__ == "Dueling":
        return _describe_dueling(layers)
    sizes: list[int] = []
    found: set[tuple[str, bool]] = set()
    while layers:
        linear = layers.pop(0)
        if not isinstance(linear, nn.Linear) or linear.bias is None:
            raise TypeError(f"MLP: from_torch takes Linear layers with a bias here, got {linear}")
        sizes += [linear.in_features] * (not sizes)
        if sizes[-1] != linear.in_features:
            raise ValueError(f"MLP: from_torch: a layer of {linear.in_features} inputs after {sizes[-1]} outputs")
        sizes.append(linear.out_features)
        norm = bool(layers) and isinstance(layers[0], nn.LayerNorm)
        if norm:
            layer = layers.pop(0)
            if layer.normalized_shape != (sizes[-1],) or layer.eps != 1e-5 or layer.bias is None:
                raise TypeError(f"MLP: from_torch takes LayerNorm of one layer, with bias and eps 1e-5, got {layer}")
        name = next((name for name, kind in _MODULES.items() if layers and type(layers[0]) is kind), "none")
        if name != "none":
            layers.pop(0)
        if layers:
            found.add((name, norm))
        elif name != "none" or norm:
            raise TypeError("MLP: from_torch takes modules that end with a Linear layer")
    if not sizes:
        raise TypeError("MLP: from_torch takes modules with at least one Linear layer")
    if len(found) > 1:
        raise TypeError(f"MLP: from_torch takes one activation for all layers, got {sorted(x for x, _ in found)}")
    activation, norm = next(iter(found), ("none", False))
    return {"sizes": tuple(sizes), "activation": activation, "layer_norm": norm}


def _describe_dueling(layers: list[Any]) -> dict[str, Any]:
    head = layers[-1]
    value, advantage = (_describe(nn.Sequential(*layers[:-1], *stream)) for stream in (head.value, head.advantage))
    sizes = advantage["sizes"]
    one_hidden = len(head.value) == len(_sequential(sizes[-3:], "relu", advantage["layer_norm"]))
    atoms = value["sizes"][-1]
    if value != {**advantage, "sizes": (*sizes[:-1], atoms)} or sizes[-1] % atoms or not one_hidden:
        raise TypeError("MLP: from_torch takes a Dueling head of two streams with one hidden layer each, of one size")
    return {**advantage, "dueling": True if atoms == 1 else atoms}


def from_torch(cls: Any, module: Any) -> Any:
    several = isinstance(module, nn.ModuleList)
    networks = list(module) if several else [module]
    if not networks or not all(isinstance(net, nn.Sequential) for net in networks):
        raise TypeError(f"MLP: from_torch takes a Sequential or a ModuleList of them, got {type(module).__name__}")
    settings = [_describe(net) for net in networks]
    if any(s != settings[0] for s in settings):
        raise ValueError("MLP: from_torch takes networks of one shape")
    parameters = list(module.parameters())
    first = parameters[0]
    for p in parameters:
        if p.dtype != torch.float32 or p.device != first.device:
            raise ValueError(f"MLP: from_torch takes float32 parameters on one device, got {p.dtype} on {p.device}")
    if len({id(p) for p in parameters}) != sum(1 for net in networks for _ in net.parameters()):
        raise ValueError("MLP: from_torch takes networks that share no parameters")
    size = sum(p.numel() for p in parameters)
    vector, grad = (torch.zeros(size, device=first.device) for _ in range(2))
    n = len(networks) if several else None
    mlp = cls(**settings[0], n=n, vector=vector, grad=grad, device=str(first.device))
    names = _module_order(list(mlp.parameters()), several)
    values, gradients = mlp.parameters(), mlp.parameters(grad)
    with torch.no_grad():
        for p, name in zip(parameters, names, strict=True):
            values[name].copy_(p)
            p.data, p.grad = values[name], gradients[name]
    return mlp


def _module_order(names: list[str], several: bool) -> list[str]:
    """As a module lists them: the stream of the value, then that of the advantages; in the vector they alternate."""

    def place(name: str) -> tuple[int, int]:
        return int(name.split(".")[0]) if several else 0, 1 * (".value." in name) + 2 * (".advantage." in name)

    return sorted(names, key=place)


# ---- CUDA tensors
def new_vector(n: int, device: str) -> Tensor:
    return torch.zeros(n, device=device)


def zeros_like(vector: Tensor) -> Tensor:
    return torch.zeros_like(vector)


def check_vector(x: Any, where: str, n: int) -> Tensor:
    t: Tensor = _arrays.load_tensor(x, where, _F, x, "vector")
    if tuple(t.shape) != (n,):
        raise ValueError(f"{where} must have shape ({n},), got {tuple(t.shape)}")
    if not t.is_contiguous():
        raise ValueError(f"{where} must be contiguous")
    return t


class MlpCore:
    """The networks of fastrl/kernels/mlp by torch; a graph of autograd is what is kept."""

    def __init__(
        self, sizes: list[int], activation: str, n: int, stacked: bool, layer_norm: bool, dueling: int
    ) -> None:
        self._sizes, self._activation, self._n, self._stacked = tuple(sizes), activation, n, stacked
        self._norm, self._dueling = layer_norm, dueling
        self._layout = layout(self._sizes, layer_norm, dueling)
        self.size = size_of(self._layout) * n
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, vector: Any, x: Any, first: int, cached: bool) -> Tensor:
        v = check_vector(vector, "MLP: vector", self.size)
        parts = [
            _arrays.load_tensor(p, "MLP: x", _F, v, "vector") for p in (x if isinstance(x, (tuple, list)) else [x])
        ]
        for p in parts:
            if p.ndim != 2:
                raise ValueError(f"MLP: x must have shape [B, C], got {tuple(p.shape)}")
        inputs = torch.cat(parts, 1)
        if inputs.shape[1] != self._sizes[0]:
            raise ValueError(f"MLP: x must have {self._sizes[0]} columns, got {inputs.shape[1]}")
        with torch.set_grad_enabled(cached):
            if cached:
                v, inputs = v.detach().requires_grad_(), inputs.requires_grad_()
            out = self._all(v, inputs, first)
        if cached:
            self._kept = v, inputs, out
        found: Tensor = out.detach() if self._stacked else out.detach()[0]
        return found

    def backward(self, d_out: Any, grad: Any, begin: int, end: int) -> Any:
        if self._kept is None:
            raise RuntimeError("MLP: backward needs a forward_cached before it")
        v, inputs, out = self._kept
        d = _arrays.load_tensor(d_out, "MLP: d_out", _F, out, "the outputs")
        wanted = tuple(out.shape) if self._stacked else tuple(out.shape[1:])
        if tuple(d.shape) != wanted:
            raise ValueError(
                f"MLP: d_out must have shape {wanted} like the outputs of forward_cached, got {tuple(d.shape)}"
            )
        wants = [v] * (grad is not None) + [inputs] * (end > begin)
        if not wants:
            return None
        found = list(torch.autograd.grad(out, wants, d.reshape(out.shape), retain_graph=True))
        if grad is not None:
            check_vector(grad, "MLP: grad", self.size).copy_(found.pop(0))
        return found[0][:, begin:end] if found else None

    def _all(self, vector: Tensor, x: Tensor, first: int) -> Tensor:
        size = size_of(self._layout)
        # One batched product a layer serves all networks.
        flat = vector.view(self._n, size)[:first]
        p = {q.name: flat[:, q.begin : q.end].reshape(first, *q.shape) for q in self._layout}
        layers, step = len(self._sizes) - 1, 2 + self._norm
        trunk = layers - 2 if self._dueling else layers
        h = x.expand(first, *x.shape)
        for k in range(trunk):
            h = self._layer(p, str(step * k), f"{step * k + 1}", h, k + 1 < layers)
        if not self._dueling:
            return h
        streams = []
        for stream in ("value", "advantage"):
            name = f"{step * trunk}.{stream}"
            hidden = self._layer(p, f"{name}.0", f"{name}.1", h, True)
            streams.append(self._layer(p, f"{name}.{step}", "", hidden, False))
        value, advantage = streams[0].unsqueeze(2), streams[1].view(first, len(x), -1, self._dueling)
        out: Tensor = (value + (advantage - advantage.mean(2, keepdim=True))).flatten(2)
        return out

    def _layer(self, p: dict[str, Tensor], name: str, norm: str, h: Tensor, hidden: bool) -> Tensor:
        z = torch.baddbmm(p[f"{name}.bias"].unsqueeze(1), h, p[f"{name}.weight"].transpose(1, 2))
        if not hidden:
            return z
        if self._norm:
            z = torch.layer_norm(z, z.shape[-1:])
            z = z * p[f"{norm}.weight"].unsqueeze(1) + p[f"{norm}.bias"].unsqueeze(1)
        function = {"relu": torch.relu, "tanh": torch.tanh, "silu": nn.functional.silu}.get(self._activation)
        return z if function is None else function(z)


@torch.no_grad()
def flat_adam(
    param: Any, grad: Any, exp_avg: Any, exp_avg_sq: Any, target: Any, average: Any, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float, steps: float, max_norm: float, tau: float, average_weight: float,
) -> Any:  # fmt: skip
    p, g, m, v = (
        check_vector(x, f"FlatAdam: {name}", param.numel())
        for name, x in (("vector", param), ("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq))
    )
    norm: Any = math.nan
    if max_norm >= 0:
        norm = g.norm()
        g.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
    bias1, bias2 = 1 - beta1**steps, 1 - beta2**steps
    d = g.add(p, alpha=weight_decay) if weight_decay else g
    m.lerp_(d, 1 - beta1)
    v.mul_(beta2).addcmul_(d, d, value=1 - beta2)
    p.addcdiv_(m, v.sqrt().mul_(1 / math.sqrt(bias2)).add_(eps), value=-lr / bias1)
    for x, weight in ((target, tau), (average, average_weight)):
        if x is not None:
            check_vector(x, "FlatAdam: target", param.numel()).lerp_(p, weight)
    return norm


# ---- losses, by autograd
def _gradients(loss: Tensor, *xs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, xs))


def _leaf(x: Any, where: str) -> Tensor:
    leaf: Tensor = _arrays.load_tensor(x, where, _F, x, where).clone()
    return leaf.requires_grad_()


def _rows(x: Tensor) -> Tensor:
    return x.squeeze(2) if x.ndim == 3 else x


def _point_loss(e: Tensor, huber: bool) -> Tensor:
    return nn.functional.huber_loss(e, torch.zeros_like(e), reduction="none") if huber else e.square()


def _times(a: Tensor, x: Tensor) -> Tensor:
    return torch.where(a == 0, torch.zeros_like(x), a * x)


def q_learning_loss(
    q: Any, actions: Any, rewards: Any, discounts: Any, next_q: Any, next_q_online: Any, weights: Any, huber: bool
) -> tuple[Any, ...]:
    x = _leaf(q, "q_learning_loss: q")
    best = (next_q if next_q_online is None else next_q_online).argmax(1, keepdim=True)
    y = rewards + _times(discounts, next_q.gather(1, best).squeeze(1))
    with torch.enable_grad():
        chosen = x.gather(1, actions.long().unsqueeze(1)).squeeze(1)
        error = chosen - y
        each = _point_loss(error, huber)
        loss = (each if weights is None else weights * each).mean()
    (d,) = _gradients(loss, x)
    return loss.detach(), d, error.detach(), chosen.detach().mean()


def min_q_targets(next_q: Any, rewards: Any, discounts: Any, next_log_prob: Any, temperature: float) -> Tensor:
    value = _rows(next_q).amin(0)
    if next_log_prob is not None and temperature != 0:
        value = value - temperature * next_log_prob
    y: Tensor = rewards + _times(discounts, value)
    return y


def q_regression_loss(q: Any, targets: Any, weights: Any, huber: bool) -> tuple[Any, ...]:
    x = _leaf(q, "q_regression_loss: q")
    with torch.enable_grad():
        error = _rows(x) - targets
        each = _point_loss(error, huber)
        loss = (each if weights is None else weights * each).mean(1).sum()
    (d,) = _gradients(loss, x)
    return loss.detach(), d, error.detach(), x.detach().mean()


def min_q_loss(q: Any) -> tuple[Tensor, Tensor]:
    x = _leaf(q, "min_q_loss: q")
    rows = _rows(x.detach())
    d = torch.zeros_like(rows).scatter_(0, rows.argmin(0, keepdim=True), -1 / rows.shape[1])
    return -rows.amin(0).mean(), d.view_as(x)


def value_loss(values: Any, returns: Any, old_values: Any, clip_range: float, coef: float) -> tuple[Tensor, Tensor]:
    x = _leaf(values, "value_loss: values")
    with torch.enable_grad():
        v = x.squeeze(1) if x.ndim == 2 else x
        error = (v - returns).square()
        if old_values is not None:
            near = old_values + (v - old_values).clamp(-clip_range, clip_range)
            error = torch.max(error, (near - returns).square())
        loss = coef * 0.5 * error.mean()
    (d,) = _gradients(loss, x)
    return loss.detach(), d


def _policy(
    log_prob: Tensor, old: Tensor | None, advantages: Tensor, clip_range: float, kl: Tensor | None, kl_coef: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """L_policy and the mean KL."""
    log_ratio = log_prob - (log_prob.detach() if old is None else old)
    a = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8) if normalize else advantages
    ratio = log_ratio.exp()
    gain = torch.min(ratio * a, ratio.clamp(1 - clip_range, 1 + clip_range) * a).mean()
    if kl is None:
        return -gain, (ratio - 1 - log_ratio).mean()
    return kl_coef * kl.mean() - gain, kl.mean()


def ppo_categorical_loss(
    logits: Any, actions: Any, old_log_probs: Any, advantages: Any, old_logits: Any, clip_range: float,
    kl_coef: float, entropy_coef: float, normalize: bool,
) -> tuple[Any, ...]:  # fmt: skip
    x = _leaf(logits, "ppo_categorical_loss: logits")
    with torch.enable_grad():
        log_p = x.log_softmax(1)
        safe = log_p.masked_fill(log_p == -math.inf, 0)  # 0 log 0 is 0, and so is its gradient
        mean_entropy = -(log_p.exp() * safe).sum(1).mean()
        kl = None
        if old_logits is not None:
            old = old_logits.log_softmax(1)
            kl = (old.exp() * (old.masked_fill(old == -math.inf, 0) - safe)).sum(1)
        log_prob = log_p.gather(1, actions.long().unsqueeze(1)).squeeze(1)
        policy, mean_kl = _policy(log_prob, old_log_probs, advantages, clip_range, kl, kl_coef, normalize)
        loss = policy - entropy_coef * mean_entropy
    (d,) = _gradients(loss, x)
    return loss.detach(), policy.detach(), mean_entropy.detach(), mean_kl.detach(), d


def ppo_normal_loss(
    mean: Any, log_std: Any, actions: Any, old_log_probs: Any, advantages: Any, old_mean: Any, old_log_std: Any,
    clip_range: float, kl_coef: float, entropy_coef: float, normalize: bool,
) -> tuple[Any, ...]:  # fmt: skip
    m, s = _leaf(mean, "ppo_normal_loss: mean"), _leaf(log_std, "ppo_normal_loss: log_std")
    with torch.enable_grad():
        half, x = 0.5 * math.log(2 * math.pi), (actions - m) * torch.exp(-s)
        log_prob = (-0.5 * x * x - s - half).sum(1)
        entropy = (s + 0.5 + half).sum()
        kl = None
        if old_mean is not None:
            ratio = (torch.exp(2 * old_log_std) + (m - old_mean) ** 2) * torch.exp(-2 * s)
            kl = (s - old_log_std + 0.5 * (ratio - 1)).sum(1)
        policy, mean_kl = _policy(log_prob, old_log_probs, advantages, clip_range, kl, kl_coef, normalize)
        loss = policy - entropy_coef * entropy
    d_m, d_s = _gradients(loss, m, s)
    return loss.detach(), policy.detach(), entropy.detach(), mean_kl.detach(), d_m, d_s
