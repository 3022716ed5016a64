"""Stable-Baselines3's SAC, TD3 and DDPG, compiled."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3
from torch import nn

from fastrl.integrations.sb3.algorithm import Batch, OffPolicy, learned, sample
from fastrl.integrations.sb3.networks import (
    CannotCompile,
    Layers,
    Learner,
    check_observations,
    check_type,
    hidden_layers,
)
from fastrl.integrations.sb3.optimizers import FlatOptimizer
from fastrl.kernels import min_q_loss, min_q_targets, q_regression_loss

_LOG_STD = sac.LOG_STD_MIN, sac.LOG_STD_MAX
_EPSILON = 1e-6  # of SquashedDiagGaussianDistribution: log(1 - a^2 + epsilon)


def critic_layers(critic: Any) -> Layers:
    found = [hidden_layers(list(network)) for network in critic.q_networks]
    return Layers([layers for layers, _ in found], found[0][1], len(found))


class ActionLearner(Learner):
    """Of a policy whose actions are in [-1, 1] until the environment takes them."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.n_actions = int(np.prod(policy.action_space.shape))
        self.action_columns = slice(-self.n_actions, None)

    def to_env(self, action: Any) -> Any:
        """Actions ``[B, A]`` in [-1, 1] as the environment takes them."""
        space = self.policy.action_space
        action = action.reshape(-1, *space.shape)
        return space.low + (0.5 * (action + 1.0) * (space.high - space.low))


class TemperedLearner(ActionLearner):
    """With the temperature alpha of SAC, tuned or fixed."""

    def share_temperature(self, model: Any) -> None:
        self.log_alpha_tensor, self.alpha_optimizer = model.log_ent_coef, None
        if model.ent_coef_optimizer is not None:
            alpha = self.share(model.log_ent_coef)
            self.d_log_alpha, (self.log_alpha,) = alpha.grad, alpha.networks
            self.alpha_optimizer = FlatOptimizer(model.ent_coef_optimizer, alpha)

    def whole(self, model: Any) -> bool:
        return super().whole(model) and model.log_ent_coef is self.log_alpha_tensor

    def alpha(self, model: Any) -> float:
        fixed = self.alpha_optimizer is None
        return float(model.ent_coef_tensor.item() if fixed else math.exp(self.log_alpha[0]))

    def tune(self, excess: float, losses: list[Any]) -> None:
        """A step down -log(alpha) excess, excess = mean log pi(a|s) + target_entropy; none of a fixed alpha."""
        if self.alpha_optimizer is not None:
            self.d_log_alpha[0] = -excess
            losses.append(self.log_alpha[0] * self.d_log_alpha[0])
            self.alpha_optimizer.step()


class _ActorCritic(ActionLearner):
    """Critics with targets, for all of SAC, TD3 and TQC."""

    def __init__(self, policy: Any, kind: type = ContinuousCritic) -> None:
        for critic in (policy.critic, policy.critic_target):
            check_type(critic, kind)
        check_observations(policy, policy.actor, policy.critic, policy.critic_target)
        super().__init__(policy)
        critics, targets = (self.share(critic_layers(c)) for c in (policy.critic, policy.critic_target))
        (self.critics,), (self.target_critics,) = critics.networks, targets.networks
        self.critic_optimizer = FlatOptimizer(policy.critic.optimizer, critics)

    def critic_step(self, batch: Any, y: Any, factor: float, **target: Any) -> tuple[Any, Any]:
        """Down the gradient of factor sum_k mean (Q_k(s, a) - y)^2: the loss and the TD errors ``[n, B]``."""
        q = q_regression_loss(self.critics.forward_cached((batch.obs, batch.action)), y, weights=batch.weights)
        self.critics.backward(q.d_q if factor == 1 else q.d_q * np.float32(factor))
        self.critic_optimizer.step(**target)
        return factor * q.loss, q.td_errors


class SquashedNetworks(_ActorCritic, TemperedLearner):
    """Of SAC and of what has its actor and temperature; `kinds`: the types of policy, actor and critics."""

    def __init__(self, model: Any, kinds: tuple[type, type, type]) -> None:
        policy = model.policy
        check_type(policy, kinds[0])
        check_type(policy.actor, kinds[1])
        if policy.actor.use_sde:
            raise CannotCompile("use_sde")
        super().__init__(policy, kinds[2])
        hidden, last = list(policy.actor.latent_pi), (policy.actor.mu, policy.actor.log_std)
        layers, activation = hidden_layers([*hidden, last[0]])
        hidden_layers([last[1]])
        actor = self.share(Layers([[*layers[:-1], last]], activation))
        (self.actor,) = actor.networks
        self.actor_optimizer = FlatOptimizer(policy.actor.optimizer, actor)
        self.share_temperature(model)


def tanh(x: Any) -> Any:
    """Torch's, to the bit: where it is flat, 1 - tanh^2 multiplies the rounding."""
    return torch.tanh(torch.from_numpy(x)).numpy()


class Squashed:
    """a = tanh(mean + exp(log_std) noise) and log pi(a|s), from the actor's output ``[B, 2 A]``, as the host has them.

        log pi(a|s) = sum_j [-noise_j^2 / 2 - log_std_j - log(2 pi) / 2 - log(1 - a_j^2 + 1e-6)]

    with log_std clipped to [-20, 2].  The noise is drawn as the host draws it, from torch's generator.
    """

    def __init__(self, out: Any) -> None:
        n = out.shape[1] // 2
        mean, self.raw = out[:, :n], out[:, n:]
        noise = torch.randn(mean.shape).numpy()
        log_std = np.minimum(np.maximum(self.raw, _LOG_STD[0]), _LOG_STD[1])
        self.spread = np.exp(log_std) * noise
        self.action = tanh(mean + self.spread)
        self.slope = 1 - self.action * self.action
        self.log_prob = self._log_prob(noise, log_std)

    def _log_prob(self, noise: Any, log_std: Any) -> Any:
        each = -0.5 * noise * noise - log_std - np.log(self.slope + _EPSILON) - 0.5 * math.log(2 * math.pi)
        return each[:, 0] if each.shape[1] == 1 else each.sum(1)

    def gradient(self, d_action: Any, d_log_prob: float) -> Any:
        """The gradient ``[B, 2 A]`` in the output, given those in the actions and in each log pi(a|s)."""
        n, d = self.action.shape[1], np.float32(d_log_prob)
        found = np.empty((len(self.action), 2 * n), np.float32)
        inner = found[:, :n]
        inner[...] = self.slope * (d_action + 2 * d * self.action / (self.slope + _EPSILON))
        inside = (self.raw >= _LOG_STD[0]) & (self.raw <= _LOG_STD[1])
        found[:, n:] = (inner * self.spread - d) * inside
        return found


class SoftActorCritic(OffPolicy):
    """Mixin of SAC and what learns like it: a squashed Gaussian actor and a temperature."""

    @abstractmethod
    def _update(self, nets: Any, b: Batch, step: int, logs: dict[str, list[Any]]) -> None:
        """Number `step` of this round's updates."""

    def _act(self, nets: Any, x: Any, deterministic: bool) -> Any:
        out = nets.actor.forward(x)
        return nets.to_env(tanh(out[:, : nets.n_actions]) if deterministic else Squashed(out).action)

    def train(self: Any, gradient_steps: int, batch_size: int = 64) -> None:
        """So many steps of critics, actor and temperature."""
        nets = self._learner()
        if nets is None:
            super().train(gradient_steps, batch_size)  # type: ignore[misc]
            return
        tuned = self.ent_coef_optimizer is not None
        self._update_learning_rate(
            [self.actor.optimizer, self.critic.optimizer] + ([self.ent_coef_optimizer] if tuned else [])
        )
        for optimizer in (nets.actor_optimizer, nets.critic_optimizer, nets.alpha_optimizer):
            if optimizer is not None:
                optimizer.begin()
        logs: dict[str, list[Any]] = {"ent_coef": [], "actor_loss": [], "critic_loss": [], "ent_coef_loss": []}
        for step in range(gradient_steps):
            self._update(nets, sample(self, nets, batch_size), step, logs)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in logs.items():
            if values:
                self.logger.record(f"train/{name}", np.mean(values))


class TargetActorCritic(SoftActorCritic):
    """Mixin of SAC and TQC, whose critics have targets."""

    @abstractmethod
    def _critic_step(self, nets: Any, b: Batch, following: Squashed, alpha: float, target: Any) -> tuple[Any, Any]:
        """One step of the critics, with the `following` actions in s': the loss, and the TD errors ``[B]``."""

    @abstractmethod
    def _judge(self, nets: Any, obs: Any, action: Any) -> tuple[Any, Any]:
        """The mean over a batch of -Q(s, a), which the actor goes down, and its gradient in the actions."""

    def _update(self: Any, nets: Any, b: Batch, step: int, logs: dict[str, list[Any]]) -> None:
        """One step of critics, actor and temperature alpha, a ~ pi(.|s); all with the alpha before the step.

        actor: mean [alpha log pi(a|s) - Q(s, a)];  alpha: -log(alpha) mean [log pi(a|s) + target_entropy]
        """
        now, alpha = Squashed(nets.actor.forward_cached(b.obs)), nets.alpha(self)
        mean_log_prob = float(now.log_prob.mean())
        nets.tune(mean_log_prob + self.target_entropy, logs["ent_coef_loss"])

        following = Squashed(nets.actor.forward(b.next_obs))
        due = step % self.target_update_interval == 0
        target = {"target": nets.target_critics.vector, "tau": self.tau} if due else {}
        critic_loss, td_errors = self._critic_step(nets, b, following, alpha, target)
        q_loss, d_action = self._judge(nets, b.obs, now.action)
        nets.actor.backward(now.gradient(d_action, alpha / len(b.reward)))
        nets.actor_optimizer.step()
        logs["ent_coef"].append(alpha)
        logs["actor_loss"].append(alpha * mean_log_prob + q_loss)
        logs["critic_loss"].append(critic_loss)
        learned(self, b, td_errors)


class SAC(TargetActorCritic, stable_baselines3.SAC):  # type: ignore[misc]
    """``stable_baselines3.SAC`` whose `predict` and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy, and with ``use_sde``, the host's own code runs, after one warning.
    """

    def _compile(self) -> Learner:
        return SquashedNetworks(self, (sac.SACPolicy, sac.Actor, ContinuousCritic))

    def _critic_step(self, nets: Any, b: Batch, following: Squashed, alpha: float, target: Any) -> tuple[Any, Any]:
        """1/2 sum_k mean (Q_k(s, a) - y)^2 with y = r + gamma (1 - done) [min_k Q'_k(s', a') - alpha log pi(a'|s')]."""
        next_q = nets.target_critics.forward((b.next_obs, following.action))
        y = min_q_targets(next_q, b.reward, b.discount, next_log_prob=following.log_prob, temperature=alpha)
        loss, td_errors = nets.critic_step(b, y, 0.5, **target)
        return loss, abs(td_errors).mean(0)

    def _judge(self, nets: Any, obs: Any, action: Any) -> tuple[Any, Any]:
        """Q = min_k Q_k."""
        loss, d_q = min_q_loss(nets.critics.forward_cached((obs, action)))
        return loss, nets.critics.backward(d_q, parameters=False, inputs=nets.action_columns)


class _TD3Networks(_ActorCritic):
    def __init__(self, model: Any) -> None:
        policy = model.policy
        check_type(policy, td3.TD3Policy)
        for actor in (policy.actor, policy.actor_target):
            check_type(actor, td3.Actor)
        check_observations(policy, policy.actor_target)
        super().__init__(policy)
        actor, target = (self.share(self._layers(a)) for a in (policy.actor, policy.actor_target))
        (self.actor,), (self.target_actor,) = actor.networks, target.networks
        self.actor_optimizer = FlatOptimizer(policy.actor.optimizer, actor)

    @staticmethod
    def _layers(actor: Any) -> Layers:
        *modules, last = actor.mu
        if type(last) is not nn.Tanh:
            raise CannotCompile("the actor does not end with Tanh")
        layers, activation = hidden_layers(modules)
        return Layers([layers], activation)


class _TD3(OffPolicy):
    def _compile(self) -> Learner:
        return _TD3Networks(self)

    def _act(self, nets: Any, x: Any, deterministic: bool) -> Any:
        return nets.to_env(tanh(nets.actor.forward(x)))

    def train(self: Any, gradient_steps: int, batch_size: int = 100) -> None:
        """Per step, with eps ~ N(0, target_policy_noise) clipped to target_noise_clip:

        y = r + gamma (1 - done) min_k Q_target,k(s', clip(mu_target(s') + eps, -1, 1))
        critics: sum_k mean (Q_k(s, a) - y)^2;  every policy_delay steps the actor: -mean Q_1(s, mu(s)), and the targets
        """
        nets = self._learner()
        if nets is None:
            super().train(gradient_steps, batch_size)  # type: ignore[misc]
            return
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        nets.actor_optimizer.begin()
        nets.critic_optimizer.begin()
        actor_losses, critic_losses = [], []
        for _ in range(gradient_steps):
            self._n_updates += 1
            b = sample(self, nets, batch_size)
            drawn, bound = torch.empty(b.action.shape).normal_(0, self.target_policy_noise), self.target_noise_clip
            noise = np.minimum(np.maximum(drawn.numpy(), -bound), bound)
            next_action = tanh(nets.target_actor.forward(b.next_obs)) + noise
            next_action = np.minimum(np.maximum(next_action, -1), 1)
            y = min_q_targets(nets.target_critics.forward((b.next_obs, next_action)), b.reward, b.discount)
            due = self._n_updates % self.policy_delay == 0
            target = {"target": nets.target_critics.vector, "tau": self.tau} if due else {}
            critic_loss, td_errors = nets.critic_step(b, y, 1.0, **target)
            critic_losses.append(critic_loss)
            learned(self, b, abs(td_errors).mean(0))
            if not due:
                continue
            action = tanh(nets.actor.forward_cached(b.obs))
            loss, d_q = min_q_loss(nets.critics.forward_cached((b.obs, action), first=1))
            d_action = nets.critics.backward(d_q, parameters=False, inputs=nets.action_columns)
            nets.actor.backward(d_action * (1 - action * action))
            nets.actor_optimizer.step(target=nets.target_actor.vector, tau=self.tau)
            actor_losses.append(loss)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if actor_losses:
            self.logger.record("train/actor_loss", np.mean(actor_losses))
        self.logger.record("train/critic_loss", np.mean(critic_losses))


class TD3(_TD3, stable_baselines3.TD3):  # type: ignore[misc]
    """``stable_baselines3.TD3`` whose `predict` and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy the host's own code runs, after one warning that says why.
    """


class DDPG(_TD3, stable_baselines3.DDPG):  # type: ignore[misc]
    """``stable_baselines3.DDPG``, compiled as `TD3` is."""
