"""Stable-Baselines3's DQN, compiled."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import stable_baselines3
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from fastrl.integrations.sb3.algorithm import Batch, OffPolicy, learned, sample
from fastrl.integrations.sb3.networks import Layers, Learner, check_observations, check_type, hidden_layers
from fastrl.integrations.sb3.optimizers import FlatOptimizer, move
from fastrl.kernels import QLoss, q_learning_loss


class QNetworks(Learner):
    """The network and the target network of a policy for discrete actions."""

    def __init__(self, policy: Any, nets: tuple[Any, Any], layers: tuple[Any, Any], kind: type) -> None:
        for net in nets:
            check_type(net, kind)
        check_observations(policy, *nets)
        super().__init__(policy)
        parts = [hidden_layers(modules) for modules in layers]
        online, target = (self.share(Layers([found], activation)) for found, activation in parts)
        (self.online,), (self.target,) = online.networks, target.networks
        self.optimizer = FlatOptimizer(policy.optimizer, online)


class QLearning(OffPolicy):
    """Mixin of DQN and what learns like it: epsilon-greedy, a loss of one network, a target network."""

    @abstractmethod
    def _values(self, out: Any) -> Any:
        """Q(s, .) ``[B, A]`` of the network's outputs."""

    @abstractmethod
    def _loss(self, nets: Any, b: Batch) -> QLoss:
        """The loss of a batch, its gradient ``[B, out]`` in the outputs, and the TD errors."""

    def _act(self: Any, nets: Any, x: Any, deterministic: bool) -> Any:
        if not deterministic and np.random.rand() < self.exploration_rate:
            return np.array([self.action_space.sample() for _ in range(len(x))])
        return self._values(nets.online.forward(x)).argmax(1)

    def train(self: Any, gradient_steps: int, batch_size: int = 100) -> None:
        """So many steps down the gradient of the loss."""
        nets = self._learner()
        if nets is None:
            super().train(gradient_steps, batch_size)  # type: ignore[misc]
            return
        self._update_learning_rate(self.policy.optimizer)
        optimizer, losses = nets.optimizer.begin(), []
        for _ in range(gradient_steps):
            b = sample(self, nets, batch_size)
            q = self._loss(nets, b)
            nets.online.backward(q.d_q)
            optimizer.step(max_grad_norm=self.max_grad_norm)
            losses.append(q.loss)
            learned(self, b, q.td_errors)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))

    def _on_step(self: Any) -> None:
        due = (self._n_calls + 1) % max(self.target_update_interval // self.n_envs, 1) == 0
        nets: Any = self._learner() if due else None
        if due and nets is None:
            super()._on_step()  # type: ignore[misc]
            return
        self._n_calls += 1
        if due:
            move(nets.target.vector, nets.online.vector, self.tau)
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        self.logger.record("rollout/exploration_rate", self.exploration_rate)


class DQN(QLearning, stable_baselines3.DQN):  # type: ignore[misc]
    """``stable_baselines3.DQN`` whose `predict` and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy the host's own code runs, after one warning that says why.
    """

    def _compile(self) -> Learner:
        policy = self.policy
        check_type(policy, DQNPolicy)
        nets = policy.q_net, policy.q_net_target
        return QNetworks(policy, nets, tuple(net.q_net for net in nets), QNetwork)

    def _values(self, out: Any) -> Any:
        return out

    def _loss(self, nets: Any, b: Batch) -> QLoss:
        """L = mean l(Q(s, a) - y), y = r + gamma (1 - done) max_a Q_target(s', a), with Huber's l."""
        next_q = nets.target.forward(b.next_obs)
        q = nets.online.forward_cached(b.obs)
        return q_learning_loss(q, b.action[:, 0], b.reward, b.discount, next_q, weights=b.weights, loss="huber")
