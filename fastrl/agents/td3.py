"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477), with switches:

prioritized  Schaul et al. 2016, arXiv:1511.05952
lap          Fujimoto et al. 2020, arXiv:2007.06049
n_step       Sutton and Barto 2018, section 7.1
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.continuous import clip
from fastrl.agents.hyperparameters.off_policy import TD3Config
from fastrl.agents.lap import LAPAgent
from fastrl.kernels import QLoss, min_q_loss, min_q_targets, q_regression_loss, tanh_normal_mode
from fastrl.replay import Batch


class TD3(LAPAgent[TD3Config]):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477).

    Critics: sum_k mean w (Q_k(s, a) - y)^2 with y = r + gamma (1 - terminated) min_k Q'_k(s', a'), a' = mu'(s') with
    clipped noise.  Actor, every `policy_delay` updates: -mean Q_1(s, mu(s)).  `lap`: Huber's loss for the square.

    For bounded Box actions.  An MLP sees observations flattened, and discrete ones one-hot.

    `network`: torch modules of your own, ``{"actor": ..., "critic": ...}`` or one of the two: the actor maps
    observations ``[B, ...]`` (bytes as 0..1) to ``[B, A]``, a critic observations and actions in [-1, 1] ``[B, A]``
    to ``[B, 1]``; a function makes the two.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `TD3Config`.  Raises InputError for anything that cannot work.

    >>> agent = TD3("Pendulum-v1", seed=0).learn(20_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "td3"
    config_class = TD3Config
    n_critics = 2

    def _update(self) -> None:
        """One gradient step of the critics, and every `policy_delay` times one of the actor and the targets' turn.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) min_k Q_target,k(s', a'), where s' is m <= n_step steps on,
        at the end of the episode at most, a' = clip(mu_target(s') + clip(eps, -c, c), -1, 1) and eps is Gaussian.
        Truncation does not stop the bootstrap.
        Critics: L = sum_k mean_i w_i (Q_k(s_i, a_i) - y_i)^2, with `lap` sum_k mean_i H(Q_k(s_i, a_i) - y_i).
        Actor: L = - mean_i Q_1(s_i, mu(s_i)).
        """
        c, b = self.config, self._sample()
        q_loss = self._loss(b)
        self.critics.backward(q_loss.d_q)
        self.n_updates += 1
        due = self.n_updates % c.policy_delay == 0
        target = self.target_critics.vector if due else None
        self.critic_optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)
        self._learned(b, q_loss)
        if not due:
            return

        action = tanh_normal_mode(self.actor.forward_cached(b.obs))
        self._last["actor_loss"], d_q = min_q_loss(self.critics.forward_cached((b.obs, action), first=1))
        d_action = self.critics.backward(d_q, parameters=False, inputs=slice(-self.n_actions, None))
        self.actor.backward(d_action * (1 - action * action))
        lr, target = self.actor_learning_rate, self.target_actor.vector
        self.actor_optimizer.step(lr=lr, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)

    def _loss(self, b: Batch) -> QLoss:
        """The critics' loss, and its gradient in their outputs."""
        c = self.config
        noise: Any = c.target_noise * self.rng.standard_normal((len(b.reward), self.n_actions), np.float32)
        noise = self._array(clip(noise, c.target_noise_clip))
        next_action = clip(tanh_normal_mode(self.target_actor.forward(b.next_obs)) + noise, 1)
        y = min_q_targets(self.target_critics.forward((b.next_obs, next_action)), b.reward, b.discount)
        q = self.critics.forward_cached((b.obs, b.action))
        return q_regression_loss(q, y, weights=b.weights if c.prioritized else None, loss="huber" if c.lap else "mse")

    def _explore(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        mean = self._mode(obs)
        noise = self.config.exploration_noise * rng.standard_normal(mean.shape, np.float32)
        action: NDArray[np.float32] = clip(mean + noise, 1)
        return action
