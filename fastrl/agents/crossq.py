"""CrossQ (Bhatt et al. 2024, arXiv:1902.05605): SAC with batch normalisation and without target networks."""

from __future__ import annotations

from typing import Any

from fastrl.agents.arrays import concatenate
from fastrl.agents.batch_norm import BatchNormMLP
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.off_policy import CrossQConfig
from fastrl.agents.sac import SAC
from fastrl.kernels import tanh_normal_sample, tanh_normal_sample_pullback


class CrossQ(SAC):
    """CrossQ (Bhatt et al. 2024, arXiv:1902.05605).

    Critics: those of SAC, without target networks: y = r + gamma (1 - terminated) [min_k Q_k(s', a') - alpha log
    pi(a'|s')], where Q(s, a) and Q(s', a') come from one pass of both batches through networks with batch
    renormalisation (Ioffe 2017), so that they share its statistics, and y is a constant of the gradient.  Actor and
    temperature, every `policy_delay` updates: those of SAC.

    For bounded Box actions.  An MLP sees observations flattened, and discrete ones one-hot.  Networks of one's own
    (`network`) are refused: what is learned depends on how batches are normalised.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `CrossQConfig`.  Raises InputError for anything that cannot work.

    >>> agent = CrossQ("Pendulum-v1", seed=0).learn(20_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "crossq"
    config_class = CrossQConfig
    config: CrossQConfig
    actor: BatchNormMLP
    critics: BatchNormMLP
    has_targets = False

    def _networks(self) -> tuple[BatchNormMLP, BatchNormMLP]:
        if self._network is not None:
            raise InputError("CrossQ: its networks have batch renormalisation; network= cannot be given")
        c, n_obs, n_actions = self.config, self._n_obs, self.n_actions
        norm: dict[str, Any] = {"momentum": c.norm_momentum, "warmup": c.norm_warmup, "device": self.device}
        actor = BatchNormMLP((n_obs, *c.hidden, 2 * n_actions), seed=self._seeds[0], **norm)
        sizes = (n_obs + n_actions, *c.critic_hidden, 1)
        return actor, BatchNormMLP(sizes, n=self.n_critics, seed=self._seeds[1], **norm)

    @property
    def _beta1(self) -> float:
        return self.config.adam_beta1

    def _update(self) -> None:
        """One gradient step of the critics, and every `policy_delay` times one of the actor and the temperature.

        [Q_k(s_i, a_i), Q_k(s'_i, a'_i)] is one pass of 2 B rows by their own statistics, a' ~ pi(.|s').
        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) [min_k Q_k(s', a') - alpha log pi(a'|s')], where s' is m
        <= n_step steps on, at the end of the episode at most.  Truncation does not stop the bootstrap.
        Critics: L = sum_k mean_i w_i (Q_k(s_i, a_i) - y_i)^2; the gradient reaches the rows of s' by the statistics.
        Actor: L = mean_i [alpha log pi(a|s_i) - min_k Q_k(s_i, a)], a ~ pi(.|s_i) by the batch's statistics, Q_k by
        the running ones.
        """
        c, b, n = self.config, self._sample(), self.n_actions
        alpha = self._alpha()
        out = self.actor.forward(b.next_obs)
        next_action, next_log_prob = tanh_normal_sample(
            out[:, :n], out[:, n:], generator=self.generator, **self._log_std_limits
        )
        both = concatenate([b.obs, b.next_obs]), concatenate([b.action, next_action])
        q = self.critics.forward_batch(both)
        q_loss = self._critic_loss(b, q[:, : c.batch_size], q[:, c.batch_size :], alpha * next_log_prob)
        self.critics.backward(concatenate([q_loss.d_q, 0 * q_loss.d_q], 1))
        self.critic_optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm)
        self.n_updates += 1
        self._learned(b, q_loss)
        if self.n_updates % c.policy_delay:
            return

        out = self.actor.forward_batch(b.obs)
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
        self._last |= {"actor_loss": actor_loss - alpha[0] * entropy, "temperature": alpha[0], "entropy": entropy}
