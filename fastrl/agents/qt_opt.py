"""QT-Opt style Q-learning (Kalashnikov et al. 2018, arXiv:1806.10293), whose argmax over actions is a search, with
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
from fastrl.agents.arrays import stack, to_numpy
from fastrl.agents.hyperparameters.off_policy import QTOptConfig
from fastrl.agents.networks import Network, own_network
from fastrl.agents.noise import NoisyAgent
from fastrl.kernels import MLP, FlatAdam, Generator, cem_argmax, min_q_targets, normal_sample, q_regression_loss


class QTOpt(NoisyAgent[QTOptConfig]):
    """QT-Opt style Q-learning (Kalashnikov et al. 2018, arXiv:1806.10293).

    Loss: mean w (Q(s, a) - y)^2 with y = r + gamma (1 - terminated) min(Q_1(s', a'), Q_2(s', a')), a' = argmax_a
    Q_1(s', a) by the cross-entropy method; Q_1 follows Q at the rate tau, and Q_2 is what Q_1 was.  (The paper's Q is a
    probability, learned by cross-entropy from grasps that succeed or fail.)

    For bounded Box actions.  An MLP sees observations flattened, and discrete ones one-hot.  `network`: a torch module
    of your own instead, or a function that makes one, that maps observations ``[B, ...]`` (bytes as 0..1) and actions
    in [-1, 1] ``[B, A]`` to ``[B, 1]``.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `QTOptConfig`.  Raises InputError for anything that cannot work.

    >>> agent = QTOpt("Pendulum-v1", seed=0).learn(30_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "qt_opt"
    config_class = QTOptConfig
    _trained = {"online": "optimizer"}  # noqa: RUF012

    def __init__(self, env: Env, config: QTOptConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c, a, device = self.config, self.n_actions, self.device
        self.online: Network
        if self._network is None:
            self.online = MLP((self._n_obs + a, *c.hidden, 1), seed=self._seeds[0], device=device)
        else:
            shapes = [self._obs_shape, (a,)]
            self.online = own_network(self._network, "QTOpt: network", shapes, 1, seed=self._seeds[0], device=device)
        self.target, self.lagged_target = copy.deepcopy(self.online), copy.deepcopy(self.online)
        self.optimizer = FlatAdam(self.online.vector, self.online.grad, lr=c.learning_rate)
        # Not the seed itself: these draws have to be independent of the buffer's.
        seeds = [int(seed) for seed in np.random.SeedSequence(c.seed).generate_state(2, np.uint64)]
        self.generator = Generator(seeds[0], self.device)  # of the updates' searches
        # Acting searches with the same noise every time, so that the policy is a function of the observation.
        zero = np.zeros((c.cem_iterations * c.cem_samples, a), np.float32)
        noise, _ = normal_sample(zero, zero[0], generator=Generator(seeds[1]))
        self._noise = self._array(noise.reshape(c.cem_iterations, c.cem_samples, a))
        self._log = {"loss": 0.0, "mean_q": 0.0}

    def _argmax(self, network: Network, obs: Any, **noise: Any) -> tuple[Any, Any]:
        """About argmax_a Q(s, a) ``[B, A]``, and Q there ``[B]``."""
        c = self.config
        q = network if isinstance(network, MLP) else lambda obs, action: network.forward((obs, action))[:, 0]
        sizes: dict[str, Any] = {
            "iterations": c.cem_iterations,
            "samples": c.cem_samples,
            "elites": c.cem_elites,
            "std": c.cem_std,
        }
        return cem_argmax(q, obs, self.n_actions, **sizes, **noise)

    def _update(self) -> None:
        """One gradient step on L = mean_i w_i (Q(s_i, a_i) - y_i)^2, and then the targets' turn.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) min(Q_1(s', a'), Q_2(s', a')), where s' is m <= n_step
        steps on, at the end of the episode at most, and a' about argmax_a Q_1(s', a).  Truncation does not stop the
        bootstrap.  Q_1 <- tau Q + (1 - tau) Q_1, and every `lag` updates Q_2 <- Q_1.
        """
        c, b = self.config, self._sample()
        next_action, next_q = self._argmax(self.target, b.next_obs, generator=self.generator)
        lagged_q = self.lagged_target.forward((b.next_obs, next_action))[:, 0]
        both = stack((next_q, lagged_q))
        y = min_q_targets(both, b.reward, b.discount)
        q = self.online.forward_cached((b.obs, b.action))
        q_loss = q_regression_loss(q[None], y, weights=b.weights if c.prioritized else None)
        self.online.backward(q_loss.d_q[0])
        lr, target = self.learning_rate, self.target.vector
        self.optimizer.step(lr=lr, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)
        self.n_updates += 1
        if self.n_updates % c.lag == 0:
            self.lagged_target.vector[:] = self.target.vector
        self._learned(b, q_loss)

    def _mode(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        x = self._array(self._inputs(np.asarray(obs, np.float32)))
        action, _ = self._argmax(self.target, x, noise=self._noise)
        mode: NDArray[np.float32] = to_numpy(action)
        return mode

    def _deploy(self, deploy: Any) -> Any:
        own = None if isinstance(self.target, MLP) else self._obs_shape
        search = deploy.Search(self.target.to_torch(), own, to_numpy(self._noise), self.config)
        return deploy.TorchPolicy(search, self.envs, units=(self._bias, self._scale))

    def _parts(self) -> dict[str, Any]:
        networks = {"online": self.online, "target": self.target, "lagged_target": self.lagged_target}
        return {**super()._parts(), **networks, "optimizer": self.optimizer, "generator": self.generator}
