"""Normalized advantage functions (Gu et al. 2016, arXiv:1603.00748): Q-learning whose best action is known, with
switches in any combination:

noise        gaussian, or an Ornstein-Uhlenbeck process
prioritized  Schaul et al. 2016, arXiv:1511.05952
n_step       Sutton and Barto 2018, section 7.1
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.arrays import concatenate
from fastrl.agents.hyperparameters.off_policy import NAFConfig
from fastrl.agents.networks import Network, own_network
from fastrl.agents.noise import NoisyAgent
from fastrl.kernels import (
    MLP,
    FlatAdam,
    min_q_targets,
    q_regression_loss,
    quadratic_advantage_pullback,
    tanh_normal_mode,
)


class NAF(NoisyAgent[NAFConfig]):
    """Normalized advantage functions (Gu et al. 2016, arXiv:1603.00748).

    Q(s, a) = V(s) - 1/2 |L(s)^T (a - mu(s))|^2, with L lower triangular, the best action is mu(s), and its value V(s).
    Loss: mean w (Q(s, a) - y)^2 with y = reward_scale r + gamma (1 - terminated) V'(s').

    For bounded Box actions.  An MLP sees observations flattened, and discrete ones one-hot.  `network`: a torch module
    of your own instead, or a function that makes one, that maps observations ``[B, ...]`` (bytes as 0..1) to
    ``[B, A + 1 + A (A + 1) / 2]``: mu before its tanh, V, and the entries of L row after row, those on the diagonal as
    logarithms.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `NAFConfig`.  Raises InputError for anything that cannot work.

    >>> agent = NAF("Pendulum-v1", seed=0).learn(30_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "naf"
    config_class = NAFConfig
    _trained = {"online": "optimizer"}  # noqa: RUF012

    def __init__(self, env: Env, config: NAFConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c, a, seed, device = self.config, self.n_actions, self._seeds[0], self.device
        n_out = a + 1 + a * (a + 1) // 2
        self.online: Network
        if self._network is None:
            self.online = MLP((self._n_obs, *c.hidden, n_out), seed=seed, device=device)
        else:
            self.online = own_network(self._network, "NAF: network", [self._obs_shape], n_out, seed=seed, device=device)
        self.target = copy.deepcopy(self.online)
        self.optimizer = FlatAdam(self.online.vector, self.online.grad, lr=c.learning_rate)
        self._log = {"loss": 0.0, "mean_q": 0.0}

    def _update(self) -> None:
        """One gradient step on L = mean_i w_i (Q(s_i, a_i) - y_i)^2, and then the target's turn.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) V_target(s'), where s' is m <= n_step steps on, at the end
        of the episode at most, and r_k rewards times `reward_scale`.  Truncation does not stop the bootstrap.
        """
        c, b, a = self.config, self._sample(), self.n_actions
        next_value = self.target.forward(b.next_obs)[:, a]
        y = min_q_targets(next_value[None], c.reward_scale * b.reward, b.discount)
        out = self.online.forward_cached(b.obs)
        mean = tanh_normal_mode(out[:, :a])
        advantage, pullback = quadratic_advantage_pullback(mean, out[:, a + 1 :], b.action)
        q_loss = q_regression_loss((out[:, a] + advantage)[None], y, weights=b.weights if c.prioritized else None)
        d_q = q_loss.d_q[0]
        d_mean, d_cholesky, _ = pullback(d_q)
        d_out = (d_mean * (1 - mean * mean), d_q[:, None], d_cholesky)
        self.online.backward(concatenate(d_out, 1))
        lr, target = self.learning_rate, self.target.vector
        self.optimizer.step(lr=lr, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)
        self.n_updates += 1
        self._learned(b, q_loss)

    def _mode(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        mode: NDArray[np.float32] = tanh_normal_mode(self._forward(self.online, obs)[:, : self.n_actions])
        return mode

    def _deploy(self, deploy: Any) -> Any:
        return deploy.TorchPolicy(self.online, self.envs, tanh=True, units=(self._bias, self._scale))

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "online": self.online, "target": self.target, "optimizer": self.optimizer}
