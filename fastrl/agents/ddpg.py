"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971), with switches in any combination:

noise        gaussian, or the paper's Ornstein-Uhlenbeck process
prioritized  Schaul et al. 2016, arXiv:1511.05952
lap          Fujimoto et al. 2020, arXiv:2007.06049, in place of prioritized
n_step       Sutton and Barto 2018, section 7.1
"""

from __future__ import annotations

from fastrl.agents.hyperparameters.off_policy import DDPGConfig
from fastrl.agents.lap import LAPAgent
from fastrl.agents.noise import NoisyAgent
from fastrl.kernels import min_q_loss, min_q_targets, q_regression_loss, tanh_normal_mode


class DDPG(NoisyAgent[DDPGConfig], LAPAgent[DDPGConfig]):
    """Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971).

    Critic: mean w (Q(s, a) - y)^2 with y = r + gamma (1 - terminated) Q'(s', mu'(s')).  Actor: -mean Q(s, mu(s)).
    `lap`: Huber's loss for the square.

    For bounded Box actions.  An MLP sees observations flattened, and discrete ones one-hot.

    `network`: torch modules of your own, ``{"actor": ..., "critic": ...}`` or one of the two: the actor maps
    observations ``[B, ...]`` (bytes as 0..1) to ``[B, A]``, a critic observations and actions in [-1, 1] ``[B, A]``
    to ``[B, 1]``.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `DDPGConfig`.  Raises InputError for anything that cannot work.

    >>> agent = DDPG("Pendulum-v1", seed=0, noise="ou").learn(20_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "ddpg"
    config_class = DDPGConfig
    n_critics = 1

    def _update(self) -> None:
        """One gradient step of the critic and of the actor, and then the targets' turn.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) Q_target(s', mu_target(s')), where s' is m <= n_step steps
        on, at the end of the episode at most.  Truncation does not stop the bootstrap.
        Critic: L = mean_i w_i (Q(s_i, a_i) - y_i)^2, with `lap` mean_i H(Q(s_i, a_i) - y_i).
        Actor: L = - mean_i Q(s_i, mu(s_i)).
        """
        c, b = self.config, self._sample()
        next_action = tanh_normal_mode(self.target_actor.forward(b.next_obs))
        y = min_q_targets(self.target_critics.forward((b.next_obs, next_action)), b.reward, b.discount)
        q = self.critics.forward_cached((b.obs, b.action))
        weights, loss = b.weights if c.prioritized else None, "huber" if c.lap else "mse"
        q_loss = q_regression_loss(q, y, weights=weights, loss=loss)
        self.critics.backward(q_loss.d_q)
        target = self.target_critics.vector
        self.critic_optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)

        action = tanh_normal_mode(self.actor.forward_cached(b.obs))
        self._last["actor_loss"], d_q = min_q_loss(self.critics.forward_cached((b.obs, action)))
        d_action = self.critics.backward(d_q, parameters=False, inputs=slice(-self.n_actions, None))
        self.actor.backward(d_action * (1 - action * action))
        lr, target = self.actor_learning_rate, self.target_actor.vector
        self.actor_optimizer.step(lr=lr, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)
        self.n_updates += 1
        self._learned(b, q_loss)
