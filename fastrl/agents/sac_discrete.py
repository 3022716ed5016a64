"""Soft actor-critic for discrete actions (Christodoulou 2019, arXiv:1910.07207), with switches in any combination:

temperature  fixed, or tuned to a target entropy
prioritized  Schaul et al. 2016, arXiv:1511.05952
n_step       Sutton and Barto 2018, section 7.1
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.arrays import exp, log_softmax
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.off_policy import SACDiscreteConfig
from fastrl.agents.networks import Network, own_network
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.agents.temperature import Temperature
from fastrl.kernels import MLP, FlatAdam, min_q_targets, q_regression_loss


class SACDiscrete(Temperature, OffPolicyAgent[SACDiscreteConfig]):
    """Soft actor-critic for discrete actions (Christodoulou 2019, arXiv:1910.07207).

    Critics: sum_k mean w (Q_k(s, a) - y)^2 with y = r + gamma (1 - terminated) sum_a' pi(a'|s') [min_k Q'_k(s', a') -
    alpha log pi(a'|s')].  Actor: mean sum_a pi(a|s) [alpha log pi(a|s) - min_k Q_k(s, a)].  Temperature: log(alpha)
    mean [H(pi(.|s)) - target_entropy].  The sums over the actions are exact: no action is drawn in an update.

    For discrete actions.  Images of bytes are seen by convolutional networks (the setting `network`), all else
    flattened by MLPs, discrete observations one-hot.  `network`: torch modules of your own instead, ``{"actor": ...,
    "critic": ...}`` or one of the two: the actor maps observations ``[B, ...]`` (bytes as 0..1) to logits
    ``[B, n_actions]``, a critic to values ``[B, n_actions]``; a function makes the two.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `SACDiscreteConfig`.  Raises InputError for anything that cannot work.

    >>> agent = SACDiscrete("CartPole-v1", seed=0).learn(50_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "sac_discrete"
    config_class = SACDiscreteConfig
    continuous = False
    config: SACDiscreteConfig
    _trained = {"actor": "actor_optimizer", "critics": "critic_optimizer"}  # noqa: RUF012

    def __init__(self, env: Env, config: SACDiscreteConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c, action_space = self.config, self.envs.action_space
        assert isinstance(action_space, gym.spaces.Discrete)
        self.n_actions, self._start = int(action_space.n), int(action_space.start)
        self.actor, self.critics = self._networks()
        self.target_critics = copy.deepcopy(self.critics)
        self.actor_optimizer = FlatAdam(self.actor.vector, self.actor.grad, lr=c.actor_learning_rate)
        self.critic_optimizer = FlatAdam(self.critics.vector, self.critics.grad, lr=c.learning_rate)
        alpha = self._make_temperature(0.98 * math.log(self.n_actions))
        self._rows = self._array(np.arange(c.batch_size))
        self.buffer = self._replay(action_space)
        self._log = {"loss": 0.0, "actor_loss": 0.0, "mean_q": 0.0, "temperature": alpha, "entropy": 0.0}

    def _networks(self) -> tuple[Network, Network]:
        """The actor ``[B, obs]`` -> ``[B, n_actions]`` and the critics ``[B, obs]`` -> ``[2, B, n_actions]``."""
        given, n, seeds, device = self._network or {}, self.n_actions, self._seeds, self.device
        if self._ready_made is not None:
            from fastrl.agents.convolution import q_network  # needs torch

            made = q_network(self._ready_made, n, seed=seeds[0], device=device)
            return made, q_network(self._ready_made, n, n=2, seed=seeds[1], device=device)
        if not isinstance(given, Mapping) or not set(given) <= {"actor", "critic"}:
            got = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
            wanted = "a dict with the keys actor, critic or one of them"
            raise InputError(f"SACDiscrete: network must be {wanted}, got {got}")
        sizes, shapes = (self._n_obs, *self.config.hidden, n), [self._obs_shape]
        actor: Network = MLP(sizes, seed=seeds[0], device=device)
        critics: Network = MLP(sizes, n=2, seed=seeds[1], device=device)
        if "actor" in given:
            actor = own_network(given["actor"], "SACDiscrete: actor", shapes, n, seed=seeds[0], device=device)
        if "critic" in given:
            critics = own_network(given["critic"], "SACDiscrete: critic", shapes, n, n=2, seed=seeds[1], device=device)
        return actor, critics

    @property
    def learning_rate(self) -> float:
        """The learning rate now: linear from learning_rate to learning_rate_end."""
        return self.config.learning_rate if self.config.learning_rate_end is None else super().learning_rate

    @property
    def actor_learning_rate(self) -> float:
        """The actor's learning rate now, which falls in the same proportion as the critics'."""
        return self.config.actor_learning_rate * self.learning_rate / self.config.learning_rate

    def _update(self) -> None:
        """One gradient step of the critics, of the actor and of the temperature alpha, and then the targets' turn.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) sum_a' pi(a'|s') [min_k Q_target,k(s', a') - alpha log
        pi(a'|s')], where s' is m <= n_step steps on, at the end of the episode at most.  Truncation does not stop the
        bootstrap.  Critics: L = sum_k mean_i w_i (Q_k(s_i, a_i) - y_i)^2.
        Actor: L = mean_i J_i, J_i = sum_a pi(a|s_i) [alpha log pi(a|s_i) - min_k Q_k(s_i, a)], whose gradient in the
        logit of a is pi(a|s_i) [alpha log pi(a|s_i) - min_k Q_k(s_i, a) - J_i].
        Temperature: L = log(alpha) mean_i [H(pi(.|s_i)) - target_entropy].
        """
        c, b = self.config, self._sample()
        alpha = self._alpha()
        log_p = log_softmax(self.actor.forward(b.next_obs))
        soft_q = self._least(self.target_critics.forward(b.next_obs)) - alpha * log_p
        y = min_q_targets(((exp(log_p) * soft_q).sum(1))[None], b.reward, b.discount)
        q = self.critics.forward_cached(b.obs)
        taken = (slice(None), self._rows, b.action)
        q_loss = q_regression_loss(q[taken], y, weights=b.weights if c.prioritized else None)
        d_q = np.zeros_like(q) if self._cpu else q.new_zeros(q.shape)
        d_q[taken] = q_loss.d_q
        self.critics.backward(d_q)
        target = self.target_critics.vector
        self.critic_optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm, target=target, tau=c.tau)

        log_p = log_softmax(self.actor.forward_cached(b.obs))
        p, cost = exp(log_p), alpha * log_p - self._least(self.critics.forward(b.obs))
        each = (p * cost).sum(1)
        self.actor.backward(p * (cost - each[:, None]) / len(p))
        self.actor_optimizer.step(lr=self.actor_learning_rate, max_grad_norm=c.max_grad_norm)

        entropy = -(p * log_p).sum(1).mean()
        self._tune_temperature(entropy)
        self.n_updates += 1
        self._last |= {"actor_loss": each.mean(), "temperature": alpha[0], "entropy": entropy}
        self._learned(b, q_loss)

    def _least(self, q: Any) -> Any:
        """min_k Q_k ``[B, n_actions]``."""
        return np.minimum(q[0], q[1]) if self._cpu else q.amin(0)

    def _act(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
        if self.steps < self.config.learning_starts and rng is self.rng:
            return rng.integers(self.n_actions, size=len(obs))
        logits = self._forward(self.actor, obs)  # the largest of logits + Gumbel noise is a draw from their softmax
        action: NDArray[np.int64] = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        return action

    def _to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        return action + self._start if self._start else action

    def _predict(self, obs: NDArray[Any], deterministic: bool) -> NDArray[Any]:
        if not deterministic:
            return self._to_env(self._act(obs, self._predict_rng))
        return self._to_env(self._forward(self.actor, obs).argmax(1))

    def _deploy(self, deploy: Any) -> Any:
        return deploy.TorchPolicy(self.actor, self.envs)

    def _switches(self) -> list[str]:
        c = self.config
        return self._temperature_switches() + ["prioritized"] * c.prioritized + [f"{c.n_step}-step"] * (c.n_step > 1)

    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "critics": self.critics,
            "target_critics": self.target_critics,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            **self._temperature_parts(),
        }
