"""Loss-adjusted prioritized replay (Fujimoto et al. 2020, arXiv:2007.06049), a switch of DDPG and TD3."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from fastrl.agents.continuous import DeterministicAgent
from fastrl.agents.hyperparameters.off_policy import LAPConfig
from fastrl.kernels.mlp.losses import QLoss

LC = TypeVar("LC", bound="LAPConfig")


class LAPAgent(DeterministicAgent[LC]):
    """Base of the deterministic agents whose critics learn by regression: the priorities that `lap` wants.

    p_i = max(|delta_i|, 1)^lap_alpha (eq. 7), of twin critics the larger |delta_i|, and Huber's loss.  Where Huber's
    gradient is bounded, the priority makes the expected one that of a steeper loss; where it is not, replay is uniform,
    so there is nothing for importance weights to correct.
    """

    def _priorities(self) -> dict[str, Any] | None:
        c = self.config
        if not c.lap:
            return super()._priorities()
        return {"alpha": c.lap_alpha, "eps": 1e-30, "beta": 0.0, "beta_end": 0.0}  # 1 + eps is 1

    def _td_errors(self, q: QLoss) -> Any:
        if not self.config.lap:
            return super()._td_errors(q)
        size = abs(q.td_errors)
        if isinstance(size, np.ndarray):
            return np.maximum(size if size.ndim == 1 else size.max(0), 1)
        return (size if size.ndim == 1 else size.amax(0)).clamp(min=1)

    def _switches(self) -> list[str]:
        return ["lap"] * self.config.lap + super()._switches()
