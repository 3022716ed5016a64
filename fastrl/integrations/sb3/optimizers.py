"""A torch optimizer of the host, stepped on a whole vector at once."""

from __future__ import annotations

import math
from operator import is_
from typing import Any

import numpy as np
import torch

from fastrl.integrations.sb3.networks import CannotCompile, Shared
from fastrl.kernels import FlatAdam

_UNUSUAL = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")


class FlatOptimizer:
    """Steps of the host's optimizer for the parameters of `shared`.

    ``torch.optim.Adam`` is one call of `FlatAdam`, on the moments that the optimizer's state holds, which are views of
    two vectors; so its ``state_dict`` is always true, and it can step by itself in between.  Any other optimizer steps
    by itself, as does Adam with settings that `FlatAdam` has not.
    """

    def __init__(self, host: Any, shared: Shared) -> None:
        self._host, self._shared = host, shared
        self._params = [p for group in host.param_groups for p in group["params"]]
        if {id(p) for p in self._params} != {id(p) for p, _ in shared.places}:
            raise CannotCompile("the optimizer does not have the parameters of its networks, or has others besides")
        self._flat = FlatAdam(shared.vector, shared.grad)
        moments = [torch.from_numpy(self._flat.exp_avg), torch.from_numpy(self._flat.exp_avg_sq)]
        self._steps = np.zeros(len(shared.places), np.float32)
        steps = torch.from_numpy(self._steps)
        self._states = []  # what the host's optimizer holds of each parameter, as views
        for k, (p, gradient) in enumerate(shared.places):
            start = gradient.storage_offset()
            m, v = (x[start : start + p.numel()].view_as(p) for x in moments)
            self._states.append({"step": steps[k], "exp_avg": m, "exp_avg_sq": v})
        self._held = [value for state in self._states for value in state.values()]
        self._adam: FlatAdam | None = None

    def begin(self) -> FlatOptimizer:
        """Take over what the host's optimizer holds now: before the first step of a round."""
        for p, gradient in self._shared.places:
            if p.grad is not gradient:
                p.grad = gradient
        self._adam = self._flat if self._usual() and self._adopt() else None
        return self

    def _usual(self) -> bool:
        """Is this an Adam as `FlatAdam` has it?"""
        host, group = self._host, self._host.param_groups[0]
        if type(host) is not torch.optim.Adam or len(host.param_groups) > 1:
            return False
        if any(map(group.get, _UNUSUAL)) or isinstance(group["lr"], torch.Tensor) or not group["lr"] >= 0:
            return False
        if host._optimizer_step_pre_hooks or host._optimizer_step_post_hooks:
            return False
        return len(group["params"]) == len(self._params) and all(map(is_, group["params"], self._params))

    def _replaced(self) -> bool:
        """Does the host's optimizer hold other tensors than ours?"""
        held = [value for state in self._host.state.values() for value in state.values()]
        return len(held) != len(self._held) or not all(map(is_, held, self._held))

    def _adopt(self) -> bool:
        """Take over settings and moments; False if the parameters have not all made as many steps."""
        if self._replaced():
            for (p, _), ours in zip(self._shared.places, self._states, strict=True):
                theirs = self._host.state.get(p)
                for name, value in ours.items():
                    value.copy_(torch.as_tensor(theirs[name])) if theirs else value.zero_()
            if self._host.state:
                self._publish()
        adam, group = self._flat, self._host.param_groups[0]
        adam.lr, adam.eps, adam.weight_decay = float(group["lr"]), group["eps"], group["weight_decay"]
        (adam.beta1, adam.beta2), adam.steps = group["betas"], int(self._steps[0])
        return len(set(self._steps.tolist())) == 1

    def _publish(self) -> None:
        self._host.state.clear()
        self._host.state.update((p, dict(ours)) for (p, _), ours in zip(self._shared.places, self._states, strict=True))

    def step(self, *, max_grad_norm: float | None = None, target: Any = None, tau: float = 1.0) -> None:
        """Clip the gradient to the norm, step, and move `target`, a vector: target <- target + tau (p - target)."""
        vector, ours = self._shared.vector, max_grad_norm is None or 0 < max_grad_norm < math.inf
        if self._adam is not None and ours:
            self._adam.step(max_grad_norm=max_grad_norm, target=target, tau=tau)
            self._steps += 1
            if self._adam.steps == 1:
                self._publish()
            return
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._params, max_grad_norm)
        self._host.step()
        if self._adam is not None:
            self._adam.steps = int(self._steps[0])
        if target is not None:
            move(target, vector, tau)


def move(target: Any, vector: Any, tau: float) -> None:
    """target <- (1 - tau) target + tau vector, the host's polyak_update."""
    target *= 1 - tau
    target += tau * vector
