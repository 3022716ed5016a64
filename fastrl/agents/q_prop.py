"""Q-Prop (Gu et al. 2017, arXiv:1611.02247): TRPO whose gradient has an off-policy critic as its control variate."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.hyperparameters.on_policy import QPropConfig
from fastrl.agents.rollout import normalized
from fastrl.agents.training import check_loss
from fastrl.agents.trpo import TRPO
from fastrl.kernels import MLP, FlatAdam, min_q_targets, q_regression_loss
from fastrl.replay import ReplayBuffer


class QProp(TRPO):
    """Q-Prop (Gu et al. 2017, arXiv:1611.02247), on TRPO's natural gradient.

    The policy is a Gaussian with mean mu(s).  Q(s, a), learned from a replay buffer, gives
    Abar(s, a) = grad_a Q(s, mu(s))^T (a - mu(s)), whose mean over the policy's actions is 0 and whose policy gradient
    is known, grad_a Q(s, mu(s))^T grad mu(s):

        g = mean [(A - eta Abar) grad log pi(a|s)] + mean [eta grad_a Q(s, mu(s))^T grad mu(s)]

    with A of GAE and eta = 1 where A Abar > 0, else 0 (conservative) or -1 (aggressive).  Then the step is that of
    TRPO.  Critic: mean (Q(s, a) - y)^2 with y = r + gamma (1 - terminated) Q'(s', mu(s')).

    For continuous (Box) actions.  An MLP sees observations flattened, and discrete ones one-hot.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `QPropConfig`.  Raises InputError for anything that cannot work.
    `network`: of the policy and V, as for `TRPO`; Q is an MLP always.

    >>> agent = QProp("Pendulum-v1", seed=0).learn(100_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "q_prop"
    config_class = QPropConfig
    config: QPropConfig
    discrete = multi = False
    cpu_only = True
    buffer: ReplayBuffer

    def __init__(self, env: Env, config: QPropConfig | None = None, *, network: Any = None, **overrides: Any) -> None:
        super().__init__(env, config, network=network, **overrides)
        c, envs = self.config, self.envs
        shape, n = envs.observation_space.shape or (), self.policy.n_out
        # Of the critic's weights and of the buffer's draws, independent of all others.
        seeds = [int(x) for x in np.random.SeedSequence([c.seed, 2]).generate_state(2, np.uint64)]
        self.q = MLP((int(np.prod(shape)) + n, *c.critic_hidden, 1), n=1, seed=seeds[0])
        self.target_q = copy.deepcopy(self.q)
        self.q_optimizer = FlatAdam(self.q.vector, self.q.grad, lr=c.critic_learning_rate)
        spaces = (shape, np.float32), ((n,), np.float32)
        self.buffer = ReplayBuffer(c.buffer_size, *spaces, c.num_envs, gamma=c.gamma, seed=seeds[1] >> 1)
        self._log |= {"critic_loss": 0.0, "eta": 0.0, "signal_variance": 1.0}

    def _update(self) -> None:
        """TRPO's update with `_signal`, and then the critic's of the new policy.

        In this order the critic has not seen the rollout from whose advantages it is taken away.
        """
        super()._update()
        self._remember()
        self._log["critic_loss"] = self._fit_critic()
        check_loss(self._log["critic_loss"], self.steps)

    def _signal(self, obs: Any, action: Any, advantage: Any) -> tuple[Any, Any]:
        """A - eta Abar ``[B]``, shifted to mean 0, and eta grad_a Q(s, mu(s)) ``[B, A]``.

        With `normalize_advantages` both are divided by the standard deviation of A.
        """
        c = self.config
        if not self.q_optimizer.steps:
            return normalized(advantage) if c.normalize_advantages else advantage, None
        mean = self.policy.output(obs)
        slope = self._slope(obs, mean)
        control = (slope * (action - mean)).sum(1)
        both = advantage * control
        eta = np.sign(both) if c.control == "aggressive" else (both > 0).astype(np.float32)
        signal, drift = advantage - eta * control, eta[:, None] * slope
        variance = advantage.var() + 1e-8
        self._log |= {"eta": float(eta.mean()), "signal_variance": float(signal.var() / variance)}
        scale = variance**-0.5 if c.normalize_advantages else np.float32(1)
        return (signal - signal.mean()) * scale, drift * scale

    def _slope(self, obs: Any, mean: Any) -> NDArray[np.float32]:
        """grad_a Q(s, a) at a = mu(s): ``[B, A]``."""
        q = self.q.forward_cached((obs.reshape(len(obs), -1), mean))
        slope: NDArray[np.float32] = self.q.backward(
            np.ones_like(q), parameters=False, inputs=slice(-mean.shape[1], None)
        )
        return slope

    def _remember(self) -> None:
        """The rollout's steps, with the policy's actions as they were before they were clipped, into the buffer."""
        r = self.rollout
        for t in range(len(r.reward)):
            next_obs = np.asarray(r.obs[t + 1] if t + 1 < len(r.obs) else self.envs.obs, np.float32)
            finals = [(n, final) for at, n, final in r.finals if at == t]
            if finals:
                next_obs = next_obs.copy()
                for n, final in finals:
                    next_obs[n] = final
            mask = None if r.mask is None else r.mask[t]
            self.buffer.add(r.obs[t], r.action[t], r.reward[t], next_obs, r.terminated[t], r.truncated[t], mask)

    def _fit_critic(self) -> float:
        """`critic_updates` steps of Adam on mean (Q(s, a) - y)^2, and of the target network; the last loss."""
        c, policy = self.config, self.policy
        loss = 0.0
        for _ in range(self.rollout.reward.size if c.critic_updates is None else c.critic_updates):
            b = self.buffer.sample(c.batch_size)
            obs, next_obs = (policy.prepare(x).reshape(c.batch_size, -1) for x in (b.obs, b.next_obs))
            next_q = self.target_q.forward((next_obs, policy.output(policy.prepare(b.next_obs))))
            y = min_q_targets(next_q, self._scaled(b.reward), b.discount)
            q_loss = q_regression_loss(self.q.forward_cached((obs, b.action)), y)
            self.q.backward(q_loss.d_q)
            self.q_optimizer.step(target=self.target_q.vector, tau=c.tau)
            loss = q_loss.loss
        return float(loss)

    def _scaled(self, reward: NDArray[np.float32]) -> NDArray[np.float32]:
        return reward if self.scale_rewards is None else self.scale_rewards.scaled(reward)

    def _switches(self) -> list[str]:
        return [self.config.control]

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "q": self.q, "target_q": self.target_q, "q_optimizer": self.q_optimizer}
