"""Advantage actor-critic: A2C, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783), and the one-step
actor-critic (Sutton & Barto 2018, section 13.5), which is A2C with rollouts of one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastrl.agents.agent import Env
from fastrl.agents.config import check_range
from fastrl.agents.networks import clip_norm
from fastrl.agents.on_policy import OnPolicyAgent
from fastrl.agents.policies import Activation
from fastrl.agents.rollout import RewardScaling, normalized
from fastrl.agents.training import check_loss
from fastrl.kernels import FlatAdam, n_step_returns, value_loss

INF = float("inf")


@dataclass(frozen=True)
class A2CConfig:
    """Hyperparameters.  The learning rate's schedule counts environment steps from the start of training."""

    # Sources: [M] Mnih et al. 2016, [S] Stable-Baselines3's A2C, [Z] rl-baselines3-zoo's settings for CartPole-v1,
    # [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    num_envs: int = 16  # [M]
    """Environments stepped together."""
    n_steps: int = 5  # [M] [T]
    """Steps of each environment from one update to the next; the returns look at most that far ahead."""
    gae_lambda: float | None = 0.95  # [T]
    """lambda of GAE, where 0 is the one-step TD error and 1 the n-step return; None: n-step returns [M]."""
    hidden: tuple[int, ...] = (64, 64)  # [S]
    """Sizes of the hidden layers."""
    activation: Activation = "tanh"  # [S]
    """Of the hidden layers: tanh or relu."""
    shared_network: bool = False  # [S]
    """Policy and value have the hidden layers in common."""
    optimizer: Literal["rmsprop", "adam"] = "adam"  # [T]; [M] has RMSprop
    """adam, or rmsprop (decay 0.99)."""
    learning_rate: float = 2e-3  # [T]
    """Of the optimizer, at the start."""
    learning_rate_end: float = 0.0  # [M]
    """Of the optimizer, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly; None: all of the run."""
    optimizer_eps: float = 1e-5  # [S]
    """Of the optimizer: added to the root of the second moment."""
    gamma: float = 0.98  # [T]
    """Discount."""
    value_coef: float = 0.5  # [S]
    """Weight of the value's loss."""
    entropy_coef: float = 0.0  # [Z]
    """Weight of the entropy, which is maximised."""
    normalize_advantages: bool = True  # [T]
    """Mean 0 and standard deviation 1 within each update of more than one step."""
    max_grad_norm: float | None = None  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    log_std: float = 0.0
    """Log of the standard deviation of continuous actions, at the start."""
    normalize_obs: bool = False
    """Observations are shifted and scaled to mean 0 and variance 1, as seen so far."""
    normalize_rewards: bool = False
    """Rewards are divided by the standard deviation of the discounted return, as seen so far."""
    seed: int = 0
    """Of everything random: environments, initial weights, actions."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden")
        check_range(self, 1, 10**9, "n_steps", "learning_rate_steps")
        check_range(self, 0, 1, "gamma", "gae_lambda")
        check_range(self, 0, INF, "learning_rate_end", "entropy_coef", "value_coef")
        check_range(self, 1e-12, INF, "learning_rate", "optimizer_eps", "max_grad_norm")
        check_range(self, -20, 5, "log_std")
        check_range(self, 0, 2**63 - 1, "seed")


class A2C(OnPolicyAgent[A2CConfig]):
    """Advantage actor-critic, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783).

    L = -mean A log pi(a|s) + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s))

    For discrete and for continuous (Box) actions; observations are Boxes, which an MLP sees flattened.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `A2CConfig`.  Raises InputError for anything that cannot work.
    `network`: the user's own torch module, or a function that makes one, ``[B, *observation] -> [B, K + 1]``: the
    logits or means of the K actions, and V; or {"actor": one ``-> [B, K]``, "critic": one ``-> [B, 1]``}.

    >>> agent = A2C("CartPole-v1", seed=0).learn(500_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "a2c"
    config_class = A2CConfig

    def __init__(self, env: Env, config: A2CConfig | None = None, *, network: Any = None, **overrides: Any) -> None:
        super().__init__(env, config, network=network, **overrides)
        c = self.config
        self._make_policy(c.n_steps, shared=c.shared_network, normalize_obs=c.normalize_obs)
        vector, grad = self.policy.vector, self.policy.grad
        if c.optimizer == "adam":
            self.optimizer = FlatAdam(vector, grad, lr=c.learning_rate, eps=c.optimizer_eps)
        else:
            self._parameter = torch.nn.Parameter(torch.as_tensor(vector))
            self._parameter.grad = torch.as_tensor(grad)
            self.optimizer = torch.optim.RMSprop([self._parameter], lr=c.learning_rate, alpha=0.99, eps=c.optimizer_eps)
        self.scale_rewards = RewardScaling(c.num_envs, c.gamma) if c.normalize_rewards else None
        self._log = dict.fromkeys(("loss", "policy_loss", "value_loss", "entropy"), 0.0)

    def _iterate(self) -> None:
        c = self.config
        self.rollout.collect(self.generator)
        self.steps += c.n_steps * c.num_envs
        self._update()

    def _update(self) -> None:
        """One gradient step on `_loss` over the rollout.

        The value's targets are n-step returns that end with the rollout, with m = min(n_steps, T - t, steps to the
        episode's end): G_t = sum_{k<m} gamma^k r_{t+k} + gamma^m V(s_{t+m}), without the last term behind a terminal
        state; and A_t = G_t - V(s_t).  With `gae_lambda` A_t is GAE's and G_t = A_t + V(s_t).
        """
        c, r = self.config, self.rollout
        if c.gae_lambda is None:
            values, next_values = r.values()
            reward = r.reward if self.scale_rewards is None else self.scale_rewards(r)
            targets, _, _ = n_step_returns(
                reward, next_values, r.terminated, r.truncated, gamma=c.gamma, n=c.n_steps, mask=r.mask
            )
            advantages = targets - values
        else:
            advantages, targets, _ = r.advantages(c.gamma, c.gae_lambda, self.scale_rewards)
        obs, action, _, advantage, target = r.batch(advantages, targets)
        if len(obs):  # a rollout can hold nothing but resets
            losses = self._loss(obs, action, advantage, target)
            self._step()
            self._log = {name: float(value) for name, value in losses.items()}
            check_loss(self._log["loss"], self.steps, self.policy.vector)
        self.n_updates += 1
        self._update_moments()

    def _step(self) -> None:
        """One step of the optimizer down the gradient, whose norm is first scaled down to `max_grad_norm`."""
        lr, max_norm = self.learning_rate, self.config.max_grad_norm
        if isinstance(self.optimizer, FlatAdam):
            self.optimizer.step(lr=lr, max_grad_norm=max_norm)
            return
        assert self._parameter.grad is not None
        clip_norm(self._parameter.grad, max_norm)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def _loss(self, obs: Any, action: Any, advantage: Any, target: Any) -> dict[str, Any]:
        """L = -mean A log pi(a|s) + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s)), and its parts.

        With `normalize_advantages` A is shifted to mean 0 and divided by its standard deviation (divisor B, not
        B - 1) + 1e-8, if there is more than one; G never is.  The gradient overwrites the policy's `grad`.
        """
        c, policy = self.config, self.policy
        if c.normalize_advantages:
            advantage = normalized(advantage)
        out, value = policy.forward_cached(obs)
        log_prob, entropy, d_out, d_log_std = policy.policy_gradient(out, action, advantage, c.entropy_coef)
        loss_v, d_value = value_loss(value, target)
        policy.backward(d_out, c.value_coef * d_value, d_log_std)
        policy_loss = -(advantage * log_prob).mean()
        loss = policy_loss + c.value_coef * loss_v - c.entropy_coef * entropy
        return {"loss": loss, "policy_loss": policy_loss, "value_loss": loss_v, "entropy": entropy}

    def _switches(self) -> list[str]:
        c = self.config
        return ["n-step"] * (c.gae_lambda is None and c.n_steps > 1) + ["shared network"] * c.shared_network


@dataclass(frozen=True)
class ActorCriticConfig(A2CConfig):
    """Hyperparameters of the one-step actor-critic: A2C's, with other defaults."""

    num_envs: int = 32  # [T]
    """Environments stepped together."""
    n_steps: int = 1
    """Steps of each environment from one update to the next: with 1, A_t = r_t + gamma V(s_{t+1}) - V(s_t)."""
    learning_rate: float = 1e-3  # [T]
    """Of the optimizer, at the start."""
    gamma: float = 0.99  # [M]
    """Discount."""
    entropy_coef: float = 0.05  # [T] before V has learned all actions are reinforced; with less, the first one may win
    """Weight of the entropy, which is maximised."""
    normalize_advantages: bool = False  # [M] [T]
    """Mean 0 and standard deviation 1 within each update of more than one step."""
    max_grad_norm: float | None = 0.5  # [S] [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    normalize_rewards: bool = True  # [T]
    """Rewards are divided by the standard deviation of the discounted return, as seen so far."""


class OneStepActorCritic(A2C):
    """The one-step actor-critic (Sutton & Barto 2018, section 13.5): A2C that learns from the TD error of every step.

    See `A2C`; the hyperparameters are those of `ActorCriticConfig`.
    """

    algorithm = "actor_critic"
    config_class = ActorCriticConfig
