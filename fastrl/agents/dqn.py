"""Deep Q-network (Mnih et al. 2015, doi:10.1038/nature14236) with four switches, in any combination:

double       van Hasselt et al. 2016, arXiv:1509.06461
dueling      Wang et al. 2016, arXiv:1511.06581
prioritized  Schaul et al. 2016, arXiv:1511.05952
n_step       Sutton and Barto 2018, section 7.1; Hessel et al. 2018 (Rainbow), arXiv:1710.02298

It acts with the weights of the moment; the policy that it is judged by has averaged ones, unless averaging=False
(Shamir and Zhang 2013, arXiv:1212.1824, polynomial-decay averaging).
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.config import InputError
from fastrl.agents.deploy import TorchPolicy
from fastrl.agents.hyperparameters.off_policy import DQNConfig
from fastrl.agents.networks import Network, own_network
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.kernels import MLP, FlatAdam, q_learning_loss


class DQN(OffPolicyAgent[DQNConfig]):
    """Deep Q-network (Mnih et al. 2015, doi:10.1038/nature14236), with the switches of Double, Dueling, prioritized and
    n-step DQN (sources: ``help(fastrl.agents.dqn)``).

    mean w (Q(s, a) - y)^2 with y = r + gamma (1 - terminated) Q'(s', a'), a' = argmax Q'(s', .) or, with `double`,
    argmax Q(s', .)

    For discrete actions.  An MLP sees observations flattened, and discrete ones one-hot.  `network`: a torch module of
    your own instead, or a function that makes one, that maps observations ``[B, ...]`` (bytes as 0..1) to
    ``[B, n_actions]``.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `DQNConfig`.  Raises InputError for anything that cannot work.

    >>> agent = DQN("CartPole-v1", seed=0, prioritized=True).learn(50_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "dqn"
    config_class = DQNConfig
    continuous = False
    _trained = {"online": "optimizer"}  # noqa: RUF012

    def __init__(self, env: Env, config: DQNConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c, action_space, device = self.config, self.envs.action_space, str(self.device)
        assert isinstance(action_space, gym.spaces.Discrete)
        self.n_actions, self._start = int(action_space.n), int(action_space.start)
        self.online: Network
        if self._network is None:
            sizes = (self._n_obs, *c.hidden, self.n_actions)
            self.online = MLP(sizes, dueling=c.dueling, seed=self._seeds[0], device=device)
        elif c.dueling:
            raise InputError("DQN: dueling must be False with a network of your own, which has the streams or not")
        else:
            shapes, n = [self._obs_shape], self.n_actions
            self.online = own_network(self._network, "DQN: network", shapes, n, seed=self._seeds[0], device=device)
        self.target = copy.deepcopy(self.online)
        self.greedy = copy.deepcopy(self.online) if c.averaging else self.online
        self.optimizer = FlatAdam(self.online.vector, self.online.grad, lr=c.learning_rate)
        self.buffer = self._replay(action_space)
        self._log = {"loss": 0.0, "mean_q": 0.0}

    @property
    def epsilon(self) -> float:
        """The probability of a random action now: linear from epsilon_start to epsilon_end."""
        return self._linear(self.config.epsilon_start, self.config.epsilon_end, self.config.epsilon_steps)

    def _update(self) -> None:
        """One gradient step on L = mean_i w_i l(Q(s_i, a_i) - y_i), and the target network's turn when it is due.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) Q_target(s', a'), where s' is m <= n_step
        steps on, at the end of the episode at most, and a' the best action of the target network, or with `double` of
        the online network.  Truncation does not stop the bootstrap.  With `prioritized` |Q - y| is the new priority.
        """
        c, b = self.config, self._sample()
        next_q = self.target.forward(b.next_obs)
        next_q_online = self.online.forward(b.next_obs) if c.double else None
        q = q_learning_loss(
            self.online.forward_cached(b.obs), b.action, b.reward, b.discount, next_q,
            next_q_online=next_q_online, weights=b.weights if c.prioritized else None, loss=c.loss,
        )  # fmt: skip
        self.online.backward(q.d_q)
        self.n_updates += 1
        due = self.n_updates % c.target_every == 0
        self.optimizer.step(
            lr=self.learning_rate, max_grad_norm=c.max_grad_norm,
            target=self.target.vector if due else None, tau=c.tau,
            average=self.greedy.vector if c.averaging else None,
            average_weight=10 / (self.n_updates + 9),  # weight ~ (number of the update)^9
        )  # fmt: skip
        self._learned(b, q)

    def _act(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
        """Actions ``[B]`` of the exploring policy for observations ``[B, ...]``."""
        c, n = self.config, len(obs)
        if c.exploration == "boltzmann":  # the largest of logits + Gumbel noise is a draw from their softmax
            logits = self._forward(self.online, obs) / c.temperature
            action: NDArray[np.int64] = (logits + rng.gumbel(size=logits.shape)).argmax(1)
            return action
        random = rng.random(n) < self.epsilon
        n_random = np.count_nonzero(random)
        if n_random == n:
            return rng.integers(self.n_actions, size=n)
        action = self._forward(self.online, obs).argmax(1)
        if n_random:
            action[random] = rng.integers(self.n_actions, size=n)[random]
        return action

    def _to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        return action + self._start if self._start else action

    def _predict(self, obs: NDArray[Any], deterministic: bool) -> NDArray[Any]:
        if not deterministic:
            return self._to_env(self._act(obs, self._predict_rng))
        return self._to_env(self._forward(self.greedy, obs).argmax(1))

    def policy_to_torch(self) -> TorchPolicy:
        return TorchPolicy(self.greedy, self.envs)

    def _switches(self) -> list[str]:
        c = self.config
        n_step = [f"{c.n_step}-step"] if c.n_step > 1 else []
        return [name for name in ("double", "dueling", "prioritized") if getattr(c, name)] + n_step

    def metrics(self) -> dict[str, float]:
        """For the logs: of the last update the loss and the mean Q(s, a), and the exploration now."""
        explore = {"epsilon": self.epsilon} if self.config.exploration == "epsilon-greedy" else {}
        return {**super().metrics(), **explore}

    def _parts(self) -> dict[str, Any]:
        greedy = {"greedy": self.greedy} if self.config.averaging else {}
        return {"online": self.online, "target": self.target, **greedy, "optimizer": self.optimizer}
