"""Distributed distributional deterministic policy gradients (Barth-Maron et al. 2018, arXiv:1804.08617), with switches
in any combination:

noise        gaussian, or an Ornstein-Uhlenbeck process
prioritized  Schaul et al. 2016, arXiv:1511.05952
n_step       Sutton and Barto 2018, section 7.1

The paper's actors are environments stepped together here (`num_envs`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.agents.agent import Env
from fastrl.agents.continuous import DeterministicAgent
from fastrl.agents.hyperparameters.off_policy import D4PGConfig
from fastrl.agents.noise import NoisyAgent
from fastrl.kernels import c51_actor_loss, c51_loss, tanh_normal_mode


class D4PG(NoisyAgent[D4PGConfig], DeterministicAgent[D4PGConfig]):
    """Distributed distributional deterministic policy gradients (Barth-Maron et al. 2018, arXiv:1804.08617).

    Critic: the distribution Z(s, a) of the return, as probabilities p of `n_atoms` atoms z from v_min to v_max; mean w
    times the cross-entropy of p(s, a) to the projection of r + gamma (1 - terminated) Z'(s', mu'(s')).  Actor:
    -mean Q(s, mu(s)) with Q = sum_j p_j z_j.

    For bounded Box actions.  An MLP sees observations flattened, and discrete ones one-hot.

    `network`: torch modules of your own, ``{"actor": ..., "critic": ...}`` or one of the two: the actor maps
    observations ``[B, ...]`` (bytes as 0..1) to ``[B, A]``, a critic observations and actions in [-1, 1] ``[B, A]``
    to logits ``[B, n_atoms]``.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `D4PGConfig`.  Raises InputError for anything that cannot work.

    >>> agent = D4PG("Pendulum-v1", seed=0, v_min=-300.0, v_max=0.0).learn(20_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "d4pg"
    config_class = D4PGConfig
    n_critics = 1

    def __init__(self, env: Env, config: D4PGConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        one = np.zeros(self.config.batch_size, np.int64)
        self._only = self._array(one)  # the loss is that of a value of several actions

    def _critic_shape(self) -> tuple[int, int]:
        return self.n_critics, self.config.n_atoms

    def _update(self) -> None:
        """One gradient step of the critic and of the actor, and then the targets' turn.

        m_i = the projection of sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) Z_target(s', mu_target(s')) on the
        atoms, where s' is m <= n_step steps on, at the end of the episode at most.  Truncation does not stop the
        bootstrap.  Critic: L = - mean_i w_i sum_j m_ij log p_j(s_i, a_i).  Actor: L = - mean_i Q(s_i, mu(s_i)).
        """
        c, b = self.config, self._sample()
        next_action = tanh_normal_mode(self.target_actor.forward(b.next_obs))
        next_logits = self.target_critics.forward((b.next_obs, next_action))[0]
        logits = self.critics.forward_cached((b.obs, b.action))[0]
        loss = c51_loss(
            logits[:, None], self._only, b.reward, b.discount, next_logits[:, None], v_min=c.v_min, v_max=c.v_max,
            weights=b.weights if c.prioritized else None,
        )  # fmt: skip
        self.critics.backward(loss.d_q.reshape(1, *logits.shape))
        target = self.target_critics.vector
        self.critic_optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)

        action = tanh_normal_mode(self.actor.forward_cached(b.obs))
        logits = self.critics.forward_cached((b.obs, action))[0]
        self._last["actor_loss"], d_logits = c51_actor_loss(logits, v_min=c.v_min, v_max=c.v_max)
        d_action = self.critics.backward(d_logits[None], parameters=False, inputs=slice(-self.n_actions, None))
        self.actor.backward(d_action * (1 - action * action))
        lr, target = self.actor_learning_rate, self.target_actor.vector
        self.actor_optimizer.step(lr=lr, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)
        self.n_updates += 1
        self._learned(b, loss)
