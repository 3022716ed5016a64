"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290 and arXiv:1812.05905), with switches in any combination:

temperature  fixed, or tuned to a target entropy
prioritized  Schaul et al. 2016, arXiv:1511.05952
n_step       Sutton and Barto 2018, section 7.1
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.arrays import concatenate
from fastrl.agents.continuous import ContinuousAgent
from fastrl.agents.hyperparameters.off_policy import SACConfig
from fastrl.agents.temperature import Temperature
from fastrl.kernels import (
    Generator,
    min_q_loss,
    min_q_targets,
    q_regression_loss,
    tanh_normal_mode,
    tanh_normal_sample,
    tanh_normal_sample_pullback,
)
from fastrl.kernels.mlp.losses import QLoss
from fastrl.replay import Batch


class SAC(Temperature, ContinuousAgent[SACConfig]):
    """Soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290 and arXiv:1812.05905).

    Critics: sum_k mean w (Q_k(s, a) - y)^2 with y = r + gamma (1 - terminated) [min_k Q'_k(s', a') - alpha log
    pi(a'|s')].  Actor: mean [alpha log pi(a|s) - min_k Q_k(s, a)], a ~ pi(.|s).  Temperature: -log(alpha) mean
    [log pi(a|s) + target_entropy].

    For bounded Box actions.  An MLP sees observations flattened, and discrete ones one-hot.

    `network`: torch modules of your own, ``{"actor": ..., "critic": ...}`` or one of the two: the actor maps
    observations ``[B, ...]`` (bytes as 0..1) to ``[B, 2 A]``, a critic observations and actions in [-1, 1] ``[B, A]``
    to ``[B, 1]``; a function makes the two.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `SACConfig`.  Raises InputError for anything that cannot work.

    >>> agent = SAC("Pendulum-v1", seed=0).learn(20_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "sac"
    config_class = SACConfig
    config: SACConfig
    n_critics = 2
    actor_outputs = 2  # mean and log standard deviation before the tanh

    def __init__(self, env: Env, config: SACConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c = self.config
        self._log_std_limits: dict[str, Any] = {"log_std_min": c.log_std_min, "log_std_max": c.log_std_max}
        alpha = self._make_temperature(-float(self.n_actions))
        self._mean = self._array(np.full(c.batch_size, 1 / c.batch_size, np.float32))
        # Not the seed itself: these draws have to be independent of the buffer's.
        seeds = [int(seed) for seed in np.random.SeedSequence(c.seed).generate_state(3, np.uint64)]
        self.generator = Generator(seeds[0], self.device)  # of the updates
        self._action_generator, self._predict_generator = Generator(seeds[1]), Generator(seeds[2])
        self._log |= {"temperature": alpha, "entropy": 0.0}

    def _update(self) -> None:
        """One gradient step of the critics, of the actor and of the temperature alpha, and then the targets' turn.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) [min_k Q_target,k(s', a') - alpha log pi(a'|s')], where s'
        is m <= n_step steps on, at the end of the episode at most, and a' ~ pi(.|s').  Truncation does not stop the
        bootstrap.  Critics: L = sum_k mean_i w_i (Q_k(s_i, a_i) - y_i)^2.
        Actor: L = mean_i [alpha log pi(a|s_i) - min_k Q_k(s_i, a)], a ~ pi(.|s_i), through the reparameterisation.
        Temperature: L = - log(alpha) mean_i [log pi(a|s_i) + target_entropy].
        """
        c, b, n = self.config, self._sample(), self.n_actions
        alpha = self._alpha()
        out = self.actor.forward(b.next_obs)
        next_action, next_log_prob = tanh_normal_sample(
            out[:, :n], out[:, n:], generator=self.generator, **self._log_std_limits
        )
        next_q = self.target_critics.forward((b.next_obs, next_action))
        q_loss = self._critic_loss(b, self.critics.forward_cached((b.obs, b.action)), next_q, alpha * next_log_prob)
        self.critics.backward(q_loss.d_q)
        lr, target = self.learning_rate, self.target_critics.vector
        self.critic_optimizer.step(lr=lr, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)

        out = self.actor.forward_cached(b.obs)
        action, log_prob, pullback = tanh_normal_sample_pullback(
            out[:, :n], out[:, n:], generator=self.generator, **self._log_std_limits
        )
        actor_loss, d_q = self._actor_loss(self.critics.forward_cached((b.obs, action)))
        d_action = self.critics.backward(d_q, parameters=False, inputs=slice(-n, None))
        d_out = pullback(d_action, alpha * self._mean)
        self.actor.backward(concatenate(d_out, 1))
        self.actor_optimizer.step(lr=self.actor_learning_rate, max_grad_norm=c.max_grad_norm)

        entropy = -(log_prob @ self._mean)
        self._tune_temperature(entropy)
        self.n_updates += 1
        self._last |= {
            "actor_loss": actor_loss - alpha[0] * entropy,
            "temperature": alpha[0],
            "entropy": entropy,
        }
        self._learned(b, q_loss)

    def _critic_loss(self, b: Batch, q: Any, next_q: Any, bonus: Any) -> QLoss:
        """sum_k mean w (Q_k - y)^2, from the critics' and target critics' outputs and alpha log pi(a'|s')."""
        y = min_q_targets(next_q, b.reward, b.discount, next_log_prob=bonus, temperature=1.0)
        return q_regression_loss(q, y, weights=b.weights if self.config.prioritized else None)

    def _actor_loss(self, q: Any) -> tuple[Any, Any]:
        """-mean min_k Q_k, and its gradient in the critics' outputs."""
        return min_q_loss(q)

    def _explore(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        generator = self._action_generator if rng is self.rng else self._predict_generator
        out, n = self._forward(self.actor, obs), self.n_actions
        action: NDArray[np.float32]
        action, _ = tanh_normal_sample(out[:, :n], out[:, n:], generator=generator, **self._log_std_limits)
        return action

    def _mode(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        mode: NDArray[np.float32] = tanh_normal_mode(self._forward(self.actor, obs)[:, : self.n_actions])
        return mode

    def _switches(self) -> list[str]:
        return self._temperature_switches() + super()._switches()

    def _parts(self) -> dict[str, Any]:
        generators = {"generator": self.generator, "action_generator": self._action_generator}
        return {**super()._parts(), **self._temperature_parts(), **generators}
