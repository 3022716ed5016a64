"""Stable-Baselines3's PPO and A2C, compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer as HostRolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance

from fastrl.integrations.sb3.algorithm import Compiled
from fastrl.integrations.sb3.buffers import RolloutBuffer, rollout_gae
from fastrl.integrations.sb3.networks import (
    CannotCompile,
    Layers,
    Learner,
    check_observations,
    check_type,
    hidden_layers,
)
from fastrl.integrations.sb3.optimizers import FlatOptimizer
from fastrl.kernels import (
    categorical_log_prob_entropy,
    gather_rows,
    normal_log_prob_entropy,
    ppo_categorical_loss,
    ppo_normal_loss,
)


class Rollout(NamedTuple):
    """NumPy arrays of B steps."""

    obs: Any
    action: Any
    old_value: Any
    old_log_prob: Any
    advantage: Any
    returns: Any


class Networks(Learner):
    """pi and V in one vector, whose beginning is `theta`, all that pi has, with the gradient `d_theta`."""

    def __init__(self, model: Any) -> None:
        policy, space = model.policy, model.action_space
        check_type(policy, ActorCriticPolicy)
        if policy.use_sde:
            raise CannotCompile("use_sde")
        self.discrete = type(space) is spaces.Discrete
        if not self.discrete and type(space) is not spaces.Box:
            raise CannotCompile(f"the action space is {space}, not Discrete or Box")
        check_observations(policy, policy)
        if not policy.share_features_extractor:
            raise CannotCompile("share_features_extractor is False")
        super().__init__(policy)
        extractor = policy.mlp_extractor
        actor, activation = hidden_layers([*extractor.policy_net, policy.action_net])
        critic, critic_activation = hidden_layers([*extractor.value_net, policy.value_net])
        log_std = [] if self.discrete else [policy.log_std]
        shared = self.share(Layers([actor], activation), *log_std, Layers([critic], critic_activation))
        self.actor, *rest, self.critic = shared.networks
        self.log_std: Any = None
        if rest:
            self.log_std, self.d_log_std = rest[0], shared.gradients[1]
        self.theta, self.d_theta = (x[: len(x) - len(self.critic.vector)] for x in (shared.vector, shared.grad))
        self.optimizer = FlatOptimizer(policy.optimizer, shared)

    def sample(self, out: Any) -> Any:
        """Actions ``[B]`` or ``[B, A]`` from the actor's output, drawn as the host draws them."""
        if self.discrete:
            return torch.multinomial(torch.softmax(torch.from_numpy(out), 1), 1, True)[:, 0].numpy()
        return out + np.exp(self.log_std) * torch.randn(out.shape).numpy()

    def rollout(self, columns: list[Any]) -> Rollout:
        obs, action, *rest = columns
        dtype = np.int64 if self.discrete else np.float32
        action = action.astype(dtype, copy=False)
        return Rollout(self.flat(obs), action.reshape(-1) if self.discrete else action, *(x.reshape(-1) for x in rest))

    def log_prob_entropy(self, out: Any, action: Any) -> Any:
        if self.discrete:
            return categorical_log_prob_entropy(out, action)
        return normal_log_prob_entropy(out, self.log_std, action)

    def mode(self, out: Any) -> Any:
        return out.argmax(1) if self.discrete else out

    def policy_loss(self, out: Any, action: Any, old_log_prob: Any, advantage: Any, **how: Any) -> Any:
        if self.discrete:
            return ppo_categorical_loss(out, action, old_log_prob, advantage, **how)
        return ppo_normal_loss(out, self.log_std, action, old_log_prob, advantage, **how)

    def backward(self, d_out: Any, d_log_std: Any, d_value: Any) -> None:
        self.actor.backward(d_out)
        if d_log_std is not None:
            self.d_log_std[...] = d_log_std
        self.critic.backward(d_value)

    @contextmanager
    def collecting(self, model: Any, buffer: Any) -> Iterator[None]:
        """Inside, calling the policy, its values and the advantages of `buffer` are the compiled ones."""

        policy, host = self.policy, type(self.policy)

        def forward(obs: Any, deterministic: bool = False) -> tuple[Any, Any, Any]:
            if torch.is_grad_enabled() or not self.whole(model):  # a callback's call, or it has changed the policy
                result: tuple[Any, Any, Any] = host.forward(policy, obs, deterministic)
                return result
            x = self.flat(obs.numpy())
            out = self.actor.forward(x)
            action = self.mode(out) if deterministic else self.sample(out)
            log_prob, _ = self.log_prob_entropy(out, action)
            shaped = action.reshape(-1, *policy.action_space.shape)
            return torch.from_numpy(shaped), torch.from_numpy(self.critic.forward(x)), torch.from_numpy(log_prob)

        def values(obs: Any) -> Any:
            if torch.is_grad_enabled() or not self.whole(model):
                return host.predict_values(policy, obs)
            return torch.from_numpy(self.critic.forward(self.flat(obs.numpy())))

        if type(buffer) is HostRolloutBuffer:
            buffer.compute_returns_and_advantage = lambda last_values, dones: rollout_gae(buffer, last_values, dones)
        try:
            with self.methods(forward=forward, predict_values=values):
                yield
        finally:
            buffer.__dict__.pop("compute_returns_and_advantage", None)


_COLUMNS = ("observations", "actions", "values", "log_probs", "advantages", "returns")


def minibatches(buffer: Any, nets: Networks, size: int | None) -> Iterator[Rollout]:
    """What ``buffer.get(size)`` yields, of the same random numbers, in NumPy."""
    if type(buffer) not in (HostRolloutBuffer, RolloutBuffer):
        for b in buffer.get(size):
            yield nets.rollout([x.numpy() for x in b])
        return
    total = buffer.buffer_size * buffer.n_envs
    order = np.random.permutation(total)
    if not buffer.generator_ready:
        for name in _COLUMNS:
            buffer.__dict__[name] = buffer.swap_and_flatten(buffer.__dict__[name])
        buffer.generator_ready = True
    columns = [getattr(buffer, name) for name in _COLUMNS]
    for start in range(0, total, size or total):
        yield nets.rollout(gather_rows(columns, order[start : start + (size or total)]))


def normalized(advantage: Any) -> Any:
    """With the host's standard deviation, whose divisor is B - 1."""
    centred = advantage - advantage.mean()
    return centred / (advantage.std(ddof=1) + np.float32(1e-8))


class OnPolicy(Compiled):
    def _compile(self) -> Learner:
        return Networks(self)

    def _act(self: Any, nets: Any, x: Any, deterministic: bool) -> Any:
        out, space = nets.actor.forward(x), self.action_space
        action = (nets.mode(out) if deterministic else nets.sample(out)).reshape(-1, *space.shape)
        return action if nets.discrete else np.clip(action, space.low, space.high)

    def collect_rollouts(self: Any, env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        nets, collect = self._learner(), super().collect_rollouts  # type: ignore[misc]
        if nets is None:
            return bool(collect(env, callback, rollout_buffer, n_rollout_steps))
        with nets.collecting(self, rollout_buffer):
            return bool(collect(env, callback, rollout_buffer, n_rollout_steps))

    def _log_common(self: Any) -> None:
        buffer = self.rollout_buffer
        variance = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", variance)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", torch.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


class PPO(OnPolicy, stable_baselines3.PPO):  # type: ignore[misc]
    """``stable_baselines3.PPO`` whose acting, advantages and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy, for MultiDiscrete and MultiBinary actions, and with ``use_sde``, the
    host's own code runs, after one warning that says why.
    """

    def train(self) -> None:
        """With rho = pi(a|s) / pi_old(a|s), A normalised in each minibatch if that is wanted:

        L = -mean min(rho A, clip(rho, 1 - clip_range, 1 + clip_range) A) - ent_coef mean H + vf_coef mean (G - V)^2
        """
        clip = self.clip_range(self._current_progress_remaining)
        clip_vf = None if self.clip_range_vf is None else self.clip_range_vf(self._current_progress_remaining)
        nets = self._learner() if clip >= 0 and self.ent_coef >= 0 else None
        if nets is None:
            super().train()
            return
        self._update_learning_rate(self.policy.optimizer)
        nets.optimizer.begin()
        logs: dict[str, list[Any]] = {
            name: [] for name in ("entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction")
        }
        going_on = True
        for epoch in range(self.n_epochs):
            logs["approx_kl"].clear()  # the host logs those of the last epoch
            for b in minibatches(self.rollout_buffer, nets, self.batch_size):
                loss = self._gradient(nets, b, clip, clip_vf, logs)
                if self.target_kl is not None and logs["approx_kl"][-1] > 1.5 * self.target_kl:
                    going_on = False
                    if self.verbose >= 1:
                        kl = logs["approx_kl"][-1]
                        print(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
                    break
                nets.optimizer.step(max_grad_norm=self.max_grad_norm)
            self._n_updates += 1
            if not going_on:
                break
        for name, values in logs.items():
            self.logger.record(f"train/{name}", np.mean(values))
        self.logger.record("train/loss", float(loss))
        self._log_common()
        self.logger.record("train/clip_range", clip)
        if clip_vf is not None:
            self.logger.record("train/clip_range_vf", clip_vf)

    def _gradient(self, nets: Any, b: Rollout, clip: float, clip_vf: float | None, logs: dict[str, list[Any]]) -> Any:
        """The loss of a minibatch and its gradient."""
        out, value = nets.actor.forward_cached(b.obs), nets.critic.forward_cached(b.obs)
        advantage = normalized(b.advantage) if self.normalize_advantage and len(b.advantage) > 1 else b.advantage
        # A schedule may end at 0; 1 + 1e-12 is 1.
        pi = nets.policy_loss(
            out, b.action, b.old_log_prob, advantage, clip_range=max(clip, 1e-12), entropy_coef=self.ent_coef
        )
        log_prob, _ = nets.log_prob_entropy(out, b.action)
        clipped = np.abs(np.exp(log_prob - b.old_log_prob) - 1) > clip
        error = value[:, 0] - b.returns
        if clip_vf is not None:
            near = b.old_value + np.minimum(np.maximum(value[:, 0] - b.old_value, -clip_vf), clip_vf)
            error = near - b.returns
        d_value = (2 * self.vf_coef / len(error)) * error
        if clip_vf is not None:
            d_value *= np.abs(value[:, 0] - b.old_value) <= clip_vf
        nets.backward(pi.d_out, pi.d_log_std, d_value[:, None])
        value_loss = error @ error / len(error)
        for name, number in (
            ("entropy_loss", -pi.entropy),
            ("policy_gradient_loss", pi.policy_loss),
            ("value_loss", value_loss),
            ("approx_kl", pi.kl),
            ("clip_fraction", np.count_nonzero(clipped) / len(clipped)),
        ):
            logs[name].append(number)
        return pi.loss + self.vf_coef * value_loss


class A2C(OnPolicy, stable_baselines3.A2C):  # type: ignore[misc]
    """``stable_baselines3.A2C``, compiled as `PPO` is; its default optimizer, RMSprop, steps by itself."""

    def train(self) -> None:
        """L = -mean A log pi(a|s) - ent_coef mean H + vf_coef mean (G - V)^2, one step."""
        nets = self._learner() if self.ent_coef >= 0 else None
        if nets is None:
            super().train()
            return
        self._update_learning_rate(self.policy.optimizer)
        nets.optimizer.begin()
        (b,) = minibatches(self.rollout_buffer, nets, None)
        out, value = nets.actor.forward_cached(b.obs), nets.critic.forward_cached(b.obs)
        advantage = normalized(b.advantage) if self.normalize_advantage else b.advantage
        log_prob, _ = nets.log_prob_entropy(out, b.action)
        pi = nets.policy_loss(out, b.action, None, advantage, entropy_coef=self.ent_coef)
        error = value[:, 0] - b.returns
        nets.backward(pi.d_out, pi.d_log_std, ((2 * self.vf_coef / len(error)) * error)[:, None])
        nets.optimizer.step(max_grad_norm=self.max_grad_norm)
        self._n_updates += 1
        self._log_common()
        self.logger.record("train/entropy_loss", -pi.entropy)
        self.logger.record("train/policy_loss", -float((advantage * log_prob).mean()))
        self.logger.record("train/value_loss", float(error @ error / len(error)))
