"""Truncated quantile critics (Kuznetsov et al. 2020, arXiv:2005.04269): SAC with distributions of returns, and its
switches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.agents.agent import Env
from fastrl.agents.hyperparameters.off_policy import TQCConfig
from fastrl.agents.sac import SAC
from fastrl.kernels import quantile_huber_loss
from fastrl.kernels.mlp.losses import QLoss
from fastrl.replay import Batch


class TQC(SAC):
    """Truncated quantile critics (Kuznetsov et al. 2020, arXiv:2005.04269).

    Critics: each gives quantiles theta_k,i(s, a) of the return, i = 1 .. `n_quantiles`; the loss is the quantile Huber
    loss to y_j = r + gamma (1 - terminated) [z_j - alpha log pi(a'|s')], where z are the pooled quantiles
    theta'_k,i(s', a') of the target critics without the largest, `drop_per_critic` for each critic.  Actor: mean [alpha
    log pi(a|s) - mean_k,i theta_k,i(s, a)], a ~ pi(.|s).  Temperature: that of SAC.

    For bounded Box actions.  An MLP sees observations flattened, and discrete ones one-hot.

    `network`: torch modules of your own, ``{"actor": ..., "critic": ...}`` or one of the two: the actor maps
    observations ``[B, ...]`` (bytes as 0..1) to ``[B, 2 A]``, a critic observations and actions in [-1, 1] ``[B, A]``
    to ``[B, n_quantiles]``; a function makes the two.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `TQCConfig`.  Raises InputError for anything that cannot work.

    >>> agent = TQC("Pendulum-v1", seed=0).learn(20_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "tqc"
    config_class = TQCConfig
    config: TQCConfig

    def __init__(self, env: Env, config: TQCConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c, b = self.config, self.config.batch_size
        midpoints = (2 * np.arange(c.n_quantiles) + 1) / (2 * c.n_quantiles)
        taus = np.tile(midpoints.astype(np.float32), (b, c.n_critics))
        self._taus = self._array(taus)
        self._only = self._array(np.zeros(b, np.int64))  # the loss is that of a value of several actions

    def _critic_shape(self) -> tuple[int, int]:
        return self.config.n_critics, self.config.n_quantiles

    def _critic_loss(self, b: Batch, q: Any, next_q: Any, bonus: Any) -> QLoss:
        """L = 1/B sum_b w_b sum_k,i 1/J sum_j |tau_i - 1[u < 0]| H(u), u = y_j - theta_k,i and H Huber's loss.

        J = n_critics (n_quantiles - drop_per_critic).
        """
        c, n_rows = self.config, len(b.reward)
        kept = c.n_critics * (c.n_quantiles - c.drop_per_critic)
        z: Any
        if self._cpu:
            pooled = next_q.transpose(1, 0, 2).reshape(n_rows, -1)
            z = np.partition(pooled, kept - 1, 1)[:, :kept]
            theta = q.transpose(1, 0, 2).reshape(n_rows, 1, -1)
        else:
            z = next_q.transpose(0, 1).reshape(n_rows, -1).sort(1).values[:, :kept]
            theta = q.transpose(0, 1).reshape(n_rows, 1, -1)
        weights = b.weights if c.prioritized else None
        next_theta = (z - bonus[:, None])[:, None]
        loss = quantile_huber_loss(
            theta, self._only, b.reward, b.discount, next_theta, taus=self._taus, weights=weights
        )
        d_q = loss.d_q.reshape(n_rows, c.n_critics, c.n_quantiles)
        d_q = np.ascontiguousarray(d_q.transpose(1, 0, 2)) if self._cpu else d_q.transpose(0, 1).contiguous()
        return loss._replace(d_q=d_q)

    def _actor_loss(self, q: Any) -> tuple[Any, Any]:
        """-mean_k,i theta_k,i, and its gradient in the critics' outputs."""
        d_q = np.full_like(q, -1 / q.size) if self._cpu else q.new_full(q.shape, -1 / q.numel())
        return -q.mean(), d_q
