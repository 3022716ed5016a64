"""The losses with autograd; the ops in torch, for CUDA tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.autograd import once
from fastrl.kernels._core.backends import choose

backend = choose(__package__)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, op: str, *arguments: Any) -> Any:
        loss, d, errors, mean_q = getattr(backend.of(x), op)(x, *arguments)
        ctx.save_for_backward(d)
        if not isinstance(loss, Tensor):
            loss, mean_q = x.new_tensor(loss), x.new_tensor(mean_q)
        ctx.mark_non_differentiable(d, errors, mean_q)
        return loss, d, errors, mean_q

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        (d,) = ctx.saved_tensors
        return grad * d, *[None] * 10


def with_gradient(x: Tensor, op: str, *arguments: Any) -> Any:
    return _Loss.apply(x, op, *arguments)  # type: ignore[no-untyped-call]


# ---- CUDA tensors
def _load(x: Any, where: str, first: Any, shape: tuple[int, ...], dtypes: tuple[str, ...] = ("float32",)) -> Any:
    t = _arrays.load_tensor(x, where, dtypes, first, "the first argument")
    if t.ndim != len(shape) or any(w not in (-1, g) for w, g in zip(shape, t.shape, strict=True)):
        wanted = str(shape).replace("-1", "any")
        raise ValueError(f"{where} must have shape {wanted}, got {tuple(t.shape)}")
    return t


def _transitions(op: str, x: Any, name: str, least: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    now = _load(x, f"{op}: {name}", x, (-1, -1, -1))
    rows, n_actions, atoms = now.shape
    if min(rows, n_actions) < 1 or atoms < least:
        raise ValueError(f"{op}: {name} must have rows and at least {least} atoms, got {tuple(now.shape)}")
    actions, rewards, discounts, after, online, weights = arguments
    a = _load(actions, f"{op}: actions", x, (rows,), ("int64", "int32")).long()
    r, discount = (
        _load(y, f"{op}: {what}", x, (rows,)) for what, y in (("rewards", rewards), ("discounts", discounts))
    )
    like = (rows, n_actions, atoms if least > 1 else -1)
    after = _load(after, f"{op}: next_{name}", x, like)
    online = after if online is None else _load(online, f"{op}: next_{name}_online", x, like)
    w = torch.ones_like(r) if weights is None else _load(weights, f"{op}: weights", x, (rows,))
    return now, a, r, discount, after, online, w / rows


def _pick(x: Tensor, index: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device), index]


def _project(p: Tensor, r: Tensor, discount: Tensor, v_min: float, v_max: float) -> Tensor:
    """In float64."""
    n = p.shape[1]
    p, r, discount = p.double(), r.double(), discount.double()
    step = (v_max - v_min) / (n - 1)
    j = torch.arange(n, device=p.device)
    bootstraps = (discount != 0).unsqueeze(1)
    p = torch.where(bootstraps, p, (j == 0).double())
    moved = r.unsqueeze(1) + torch.where(bootstraps, discount.unsqueeze(1) * (v_min + step * j), 0.0)
    lost = r.isnan() | ~discount.isfinite() | ~p.isfinite().all(1)
    place = ((moved.clamp(v_min, v_max) - v_min) / step).clamp(max=n - 1).nan_to_num()
    left = place.long().clamp(max=n - 2)
    right_share = place - left
    m = torch.zeros_like(p)
    m.scatter_add_(1, left, p * (1 - right_share)).scatter_add_(1, left + 1, p * right_share)
    return m.masked_fill(lost.unsqueeze(1), math.nan)


def _times(a: Tensor, x: Tensor) -> Tensor:
    return torch.where(a == 0, torch.zeros_like(x), a * x)


@torch.no_grad()
def categorical_projection(probs: Any, rewards: Any, discounts: Any, v_min: float, v_max: float) -> Tensor:
    op = "categorical_projection"
    p = _load(probs, f"{op}: probs", probs, (-1, -1))
    if p.shape[1] < 2:
        raise ValueError(f"{op}: probs must have at least 2 atoms, got {p.shape[1]}")
    r, discount = (
        _load(y, f"{op}: {name}", probs, (len(p),)) for name, y in (("rewards", rewards), ("discounts", discounts))
    )
    return _project(p, r, discount, v_min, v_max).float()


@torch.no_grad()
def c51_loss(logits: Any, *arguments: Any) -> tuple[Tensor, ...]:
    v_min, v_max = arguments[-2:]
    x, a, r, discount, after, online, share = _transitions("c51_loss", logits, "logits", 2, arguments[:-2])
    z = torch.linspace(v_min, v_max, x.shape[2], device=x.device)
    best = (online.softmax(2) @ z).argmax(1)
    m = _project(_pick(after, best).softmax(1), r, discount, v_min, v_max)
    log_p = _pick(x, a).double().log_softmax(1)
    cross_entropy = -_times(m, log_p).sum(1)
    kl = (cross_entropy + torch.special.xlogy(m, m).sum(1)).clamp(min=0)
    d = torch.zeros_like(x)
    d[torch.arange(len(x), device=x.device), a] = (share.unsqueeze(1) * (log_p.exp() - m)).float()
    mean_q = (log_p.exp() @ z.double()).mean()
    return (share * cross_entropy).sum().float(), d, kl.float(), mean_q.float()


@torch.no_grad()
def c51_actor_loss(logits: Any, v_min: float, v_max: float) -> tuple[Tensor, Tensor]:
    op = "c51_actor_loss"
    x = _load(logits, f"{op}: logits", logits, (-1, -1))
    if len(x) < 1 or x.shape[1] < 2:
        raise ValueError(f"{op}: logits must have rows and at least 2 atoms, got {tuple(x.shape)}")
    z, p = torch.linspace(v_min, v_max, x.shape[1], device=x.device), x.softmax(1)
    q = p @ z
    return -q.mean(), p * (q.unsqueeze(1) - z) / len(x)


@torch.no_grad()
def quantile_huber_loss(quantiles: Any, *arguments: Any) -> tuple[Tensor, ...]:
    op, (taus, kappa) = "quantile_huber_loss", arguments[-2:]
    x, a, r, discount, after, online, share = _transitions(op, quantiles, "quantiles", 1, arguments[:-2])
    rows, _, n = x.shape
    tau = ((torch.arange(n, device=x.device) + 0.5) / n).expand(rows, n)
    if taus is not None:
        tau = _load(taus, f"{op}: taus", x, (rows, n))
    y = r.unsqueeze(1) + _times(discount.unsqueeze(1), _pick(after, online.mean(2).argmax(1)))
    theta = _pick(x, a)
    u = y.unsqueeze(1) - theta.unsqueeze(2)
    side = (tau.unsqueeze(2) - (u < 0).float()).abs()
    size, slope = u.abs(), (u / kappa).clamp(-1, 1)
    huber = torch.where(size <= kappa, 0.5 * u * slope, size - 0.5 * kappa)
    d = torch.zeros_like(x)
    d[torch.arange(rows, device=x.device), a] = -share.unsqueeze(1) * (side * slope).mean(2)
    loss = (share * (side * huber).mean(2).sum(1)).sum()
    return loss, d, theta.mean(1) - y.mean(1), theta.mean()
