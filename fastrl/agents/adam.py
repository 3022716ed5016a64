"""torch.optim.Adam with the step of `fastrl.adam_step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastrl.kernels import adam_step


def _plain(group: dict[str, Any]) -> bool:
    """Whether `adam_step` knows all options of the group; torch before 2.7 has no decoupled_weight_decay."""
    other = group["amsgrad"] or group["maximize"] or group["differentiable"] or group.get("decoupled_weight_decay")
    return not other


class Adam(torch.optim.Adam):
    """torch.optim.Adam (lr, betas, eps, weight_decay) with a faster step on the CPU, and torch's fused one on a GPU.

    State and `state_dict` are those of ``torch.optim.Adam(fused=True)``, so that a checkpoint of either loads into the
    other.  Where a group or such a checkpoint brings other options (`amsgrad`, `maximize`, AdamW's decay), torch's step
    is taken.  A step costs less than half of torch's for the small networks of the agents (docs/kernels.md).  Step
    hooks do not run on the CPU.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        # A GradScaler must unscale the gradients itself, and leave out the steps that overflowed.
        self._step_supports_amp_scaling = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step down the gradients of all parameters that have one."""
        groups = self.param_groups
        if not all(map(_plain, groups)) or any(p.device.type != "cpu" for group in groups for p in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            states = [self.state[p] or self._start(p) for p in params]
            beta1, beta2 = group["betas"]
            adam_step(
                params,
                [p.grad for p in params],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [s["step"] for s in states],
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )
        return loss

    # torch wraps the `step` of every class but those that say so in a profiler range, which costs more than the step.
    step.hooked = True  # type: ignore[attr-defined]

    def _start(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state
