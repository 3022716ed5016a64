"""skrl's advantages and memory on compiled kernels.

    from fastrl.integrations.skrl import RandomMemory, compute_gae

`compute_gae` goes in place of the function of that name in the module of each agent.
"""

from __future__ import annotations

import warnings
from typing import Any

from fastrl.integrations._version import installed, untested
from fastrl.kernels import gae, gather_rows

with installed("skrl with PyTorch", '"skrl[torch]"', "skrl", "torch"):
    import torch
    from skrl.memories.torch import RandomMemory as HostMemory
    from torch import Tensor

__all__ = ["RandomMemory", "compute_gae"]

if reason := untested("skrl", "2.1"):
    warnings.warn(f"fastrl.integrations.skrl: {reason}", stacklevel=2)


def compute_gae(
    *,
    rewards: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    values: Tensor,
    last_values: Tensor,
    discount_factor: float = 0.99,
    lambda_coefficient: float = 0.95,
    time_limit_bootstrap: bool = False,
) -> tuple[Tensor, Tensor]:
    """``compute_gae`` of skrl's agents (A2C, PPO, RPO, AMP, TRPO, IPPO, MAPPO) by `fastrl.gae`.

    A_t = delta_t + gamma lam A_{t+1} unless step t ended, standardised over all [T, N, 1]; returns_t = A_t + V_t of the
    A_t before that.  As in the host, V' is V of the next row, and a truncation ends a trace with `time_limit_bootstrap`
    only (the host has added gamma V to the reward then).

    Args:
        rewards, terminated, truncated, values: [T, N, 1].
        last_values: [N, 1].

    Returns:
        returns, advantages: [T, N, 1].

    Raises ValueError and TypeError as `fastrl.gae`.
    """
    with torch.no_grad():
        ended = terminated | truncated if time_limit_bootstrap else terminated
        every = torch.cat([values, last_values.reshape(1, *values.shape[1:])])
        advantages, returns = gae(
            rewards, every, None, ended, None, gamma=discount_factor, lam=lambda_coefficient, layout="TN1"
        )
        return returns, (advantages - advantages.mean()) / (advantages.std() + 1e-8)


class RandomMemory(HostMemory):  # type: ignore[misc]
    """``skrl.memories.torch.RandomMemory`` whose samples of all tensors are gathered in one pass, on the CPU."""

    def sample_by_index(self, names: list[str], *, indexes: Any, mini_batches: int = 1) -> list[list[Tensor]]:
        """The host's: for each mini-batch the rows ``[B, n]`` of each tensor, None for a name that there is not.

        Indexes of other kinds than int64 or int32 ``[B]`` >= 0, and several mini-batches, are the host's code's.
        """
        plain = isinstance(indexes, Tensor) and indexes.ndim == 1 and indexes.dtype in (torch.int64, torch.int32)
        if mini_batches > 1 or torch.device(self.device).type != "cpu" or not plain or bool((indexes < 0).any()):
            found: list[list[Tensor]] = super().sample_by_index(names, indexes=indexes, mini_batches=mini_batches)
            return found
        known = [name for name in names if name in self.tensors]
        rows = dict(zip(known, gather_rows([self.tensors_view[name] for name in known], indexes), strict=True))
        return [[rows.get(name) for name in names]]  # type: ignore[misc]
