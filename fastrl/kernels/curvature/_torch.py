"""Fisher products of plain MLPs by hand: `FisherVectorProduct` with method "direct".  Imports torch.

The forward pass is cached.  A product is one sweep of tangents forward (T_k = act'(Z_k) (H_{k-1} V_k^T + T_{k-1} W_k^T
+ v_k)) and one of cotangents backward (V_k' = G_k^T H_{k-1}, G_{k-1} = act'(Z_{k-1}) (G_k W_k)): four matrix products
a layer (two in the first), written where their results are wanted.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fastrl import _backend
from fastrl.kernels.curvature.mlp import CODES, NARROW
from fastrl.kernels.curvature.products import OutputFisher

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.SiLU: "silu"}


class _Layer:
    """A Linear layer, with the activation after it ("" for none) and the places of its parameters in the vector."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.bias = linear.weight, linear.bias
        self.activation = ""
        self.modules: list[nn.Module] = [linear]
        self.weight_at: tuple[int, int] | None = None  # None: not among the parameters
        self.bias_at: tuple[int, int] | None = None


def _plain(module: nn.Module) -> bool:
    """Whether calling it does what its class says."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(module, name) for name in hooks)


def _flatten(module: nn.Module) -> list[nn.Module] | None:
    """The layers of a (nested) Sequential in order; None if it is something else."""
    if not _plain(module):
        return None
    if type(module) is not nn.Sequential:
        return [module]
    layers: list[nn.Module] = []
    for child in module:
        inner = _flatten(child)
        if inner is None:
            return None
        layers += inner
    return layers


def _chain(modules: list[nn.Module]) -> list[_Layer] | None:
    layers: list[_Layer] = []
    for module in modules:
        kind = type(module)
        if kind is nn.Identity:
            continue
        if kind is nn.Flatten:
            if layers or module.start_dim != 1 or module.end_dim != -1:
                return None
        elif kind is nn.Linear:
            layers.append(_Layer(module))  # type: ignore[arg-type]
        elif kind in _ACTIVATIONS:
            if not layers or layers[-1].activation:
                return None
            if kind is nn.SiLU and module.inplace:  # its slope needs what it overwrites
                return None
            layers[-1].activation = _ACTIVATIONS[kind]
            layers[-1].modules.append(module)
        else:
            return None
    return layers or None


def find_chain(head: Any, parameters: Any, observations: Any) -> Direct | None:
    """The product of `head`'s policy, or None where it is no chain of layers."""
    policy, log_std = head.policy, None
    parts: list[nn.Module] | None
    if type(policy) in (nn.Sequential, nn.Linear):
        if head.distribution == "normal":
            return None
        parts, certain = _flatten(policy), True
    else:  # a module that holds one chain, and perhaps a log_std: whether it does more, its forward pass shows
        children, own = list(policy.children()), list(policy.parameters(recurse=False))
        if len(children) != 1 or type(children[0]) is not nn.Sequential or len(own) > 1 or not _plain(policy):
            return None
        if any(True for _ in policy.buffers()) or (own and own[0].dim() != 1):
            return None
        parts, log_std, certain = _flatten(children[0]), own[0] if own else None, False
    layers = _chain(parts) if parts else None
    if layers is None:
        return None
    at, places = 0, {}
    for p, size in zip(parameters.tensors, parameters.sizes, strict=True):
        places[id(p)] = at, at + size
        at += size
    used = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    used += [] if log_std is None else [log_std]
    if len({id(p) for p in used}) < len(used) or any(p.dtype != parameters.dtype for p in used):
        return None
    if observations.dtype != parameters.dtype:
        return None
    for layer in layers:
        layer.weight_at = places.get(id(layer.weight))
        layer.bias_at = None if layer.bias is None else places.get(id(layer.bias))
    is_flat = observations.dim() == 2 or any(type(m) is nn.Flatten for m in parts or [])
    if not is_flat or observations.numel() // observations.shape[0] != layers[0].weight.shape[1]:
        return None
    log_std_at = None if log_std is None else places.get(id(log_std))
    if log_std is not None and log_std.shape[0] != layers[-1].weight.shape[0]:
        return None
    known = {id(p) for p in used}
    if not certain and any(id(p) not in known for p in parameters.tensors):
        return None
    product = Direct(layers, log_std, log_std_at, parameters, None if certain else head)
    return product if product.refresh(observations) else None


class Direct:
    def __init__(self, layers: list[_Layer], log_std: Any, log_std_at: Any, parameters: Any, head: Any) -> None:
        self.layers, self.log_std, self.log_std_at = layers, log_std, log_std_at
        places = [x for layer in layers for x in (layer.weight_at, layer.bias_at)] + [log_std_at]
        covered = sum(end - begin for begin, end in filter(None, places))
        self.covers_all = covered == parameters.n
        self.rows = -1
        self.head = head  # None: the chain is all that the policy does
        self.fused = self._fused(parameters)

    def _fused(self, parameters: Any) -> Any:
        """The C++ kernel for this chain, or None."""
        widest = max(max(layer.weight.shape) for layer in self.layers)
        usable = widest <= NARROW and parameters.dtype == torch.float32 and parameters.device.type == "cpu"
        if not usable or _backend.CPU_BACKEND != "cpp":
            return None
        nowhere = (-1, -1)
        layers = [
            (
                layer.weight.shape[1],
                layer.weight.shape[0],
                CODES[layer.activation],
                (layer.weight_at or nowhere)[0],
                (layer.bias_at or nowhere)[0],
            )
            for layer in self.layers
        ]
        logits = [layers[-1][1]] if self.log_std is None else []
        return _backend._C.MlpFisher(parameters.n, layers, (self.log_std_at or nowhere)[0], logits)

    @torch.no_grad()
    def refresh(self, observations: Any) -> bool:
        """The forward pass; False if the policy turns out to be more than its chain."""
        rows, dtype = observations.shape[0], self.layers[0].weight.dtype
        steps = self._run(observations) if self.head is None else self._watch(observations)
        if steps is None or any(x.dtype != dtype for step in steps for x in step):  # autocast
            return False
        if self.fused is None and rows != self.rows:
            self.tangents = [observations.new_empty(rows, layer.weight.shape[0]) for layer in self.layers]
            self.ones = observations.new_ones(rows)
        self.rows = rows
        # Copies: whoever changes his own does not change half of the product.
        self.inputs = [steps[0][0].clone(memory_format=torch.contiguous_format)]
        self.weights = [layer.weight.detach().clone() for layer in self.layers]
        self.slopes: list[Any] = []
        for layer, (_, z, h) in zip(self.layers, steps, strict=True):
            slope = None
            if layer.activation == "silu":
                s = torch.sigmoid(z)
                slope = s * (1 + z * (1 - s))
            elif layer.activation and self.fused is None:
                slope = 1 - h * h if layer.activation == "tanh" else (h > 0).to(h.dtype)
            self.slopes.append(slope)
            self.inputs.append(h)
        output = self.inputs[-1]
        self.fisher = OutputFisher((output,) if self.log_std is None else (output, self.log_std.detach()))
        if self.fused is not None:
            scale = self.fisher.p if self.log_std is None else self.fisher.inverse_variance[None]
            self.fused.refresh(self.weights, self.inputs, self.slopes, scale)
        return True

    def _run(self, observations: Any) -> list[tuple[Any, Any, Any]]:
        """Input, what goes into the activation, and output, of each layer."""
        steps, h = [], observations.reshape(len(observations), -1)
        for layer in self.layers:
            z = out = layer.modules[0](h)
            if layer.activation:
                out = layer.modules[1](z)
            steps.append((h, z, out))
            h = out
        return steps

    def _watch(self, observations: Any) -> list[tuple[Any, Any, Any]] | None:
        """The same from a call of the policy.

        None unless the policy gives the very tensor that the chain ends with, each layer got the very tensor that the
        one before gave, and the first one the observations, and nothing changed them in place.
        """
        if torch.is_inference_mode_enabled():  # its tensors do not tell whether they were changed
            return None
        seen: list[tuple[nn.Module, Any, Any]] = []
        versions: list[int] = []
        before = observations._version
        modules = [module for layer in self.layers for module in layer.modules]

        def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            seen.append((module, args[0], out))
            versions.append(out._version)

        hooks = [module.register_forward_hook(note) for module in modules]
        try:
            outputs = self.head(observations)
        finally:
            for hook in hooks:
                hook.remove()
        if len(outputs) != (1 if self.log_std is None else 2) or (len(outputs) == 2 and outputs[1] is not self.log_std):
            return None
        if len(seen) != len(modules) or any(s[0] is not module for s, module in zip(seen, modules, strict=True)):
            return None
        first = seen[0][1]
        if first.data_ptr() != observations.data_ptr() or first.shape != (len(observations), observations[0].numel()):
            return None
        if observations._version != before or seen[-1][2]._version != versions[-1]:
            return None
        if outputs[0] is not seen[-1][2] or any(b[1] is not a[2] for a, b in pairwise(seen)):
            return None
        steps, at = [], iter(seen)
        for layer in self.layers:
            _, h, z = next(at)
            steps.append((h, z, next(at)[2] if layer.activation else z))
        return steps

    @torch.no_grad()
    def __call__(self, v: Any, damping: float) -> Any:
        if self.fused is not None:
            return self.fused.product(v, damping)
        tangent: Any = None
        for layer, weight, h, t, slope in zip(
            self.layers, self.weights, self.inputs, self.tangents, self.slopes, strict=False
        ):
            begun = tangent is not None
            bias = None if layer.bias_at is None else v[slice(*layer.bias_at)]  # added in the first product's pass
            if begun:
                _product(bias, tangent, weight.t(), t)
            if layer.weight_at:
                v_weight = v[slice(*layer.weight_at)].view(weight.shape).t()
                if begun:
                    t.addmm_(h, v_weight)
                else:
                    _product(bias, h, v_weight, t)
            elif not begun:
                if bias is None:
                    continue
                t.copy_(bias)
            if slope is not None:
                t.mul_(slope)
            tangent = t
        out = torch.empty_like(v) if self.covers_all else torch.zeros_like(v)
        if tangent is not None:
            g = self.fisher.logits_(tangent) if self.log_std is None else self.fisher.mean_(tangent)
            self.backward(g, out)
        if self.log_std_at:
            begin, end = self.log_std_at
            torch.mul(v[begin:end], self.fisher.log_std_scale, out=out[begin:end])
        return out.add_(v, alpha=damping)

    @torch.no_grad()
    def backward(self, g: Any, out: Any) -> None:
        """The gradient of sum(g * output), g [B, outputs], is written to its places in `out`; g is used up."""
        for k in range(len(self.layers) - 1, -1, -1):
            layer, weight = self.layers[k], self.weights[k]
            if self.slopes[k] is not None:
                g.mul_(self.slopes[k])
            if layer.weight_at:
                begin, end = layer.weight_at
                torch.mm(g.t(), self.inputs[k], out=out[begin:end].view(weight.shape))
            if layer.bias_at:
                begin, end = layer.bias_at
                torch.mv(g.t(), self.ones, out=out[begin:end])
            if k == 0 or not any(x.weight_at or x.bias_at for x in self.layers[:k]):
                break
            g = torch.mm(g, weight, out=self.tangents[k - 1])


def _product(bias: Any, x: Any, weight: Any, out: Any) -> None:
    """x weight + bias, or x weight."""
    if bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)
