"""Advantage actor-critic: A2C, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783), and the one-step
actor-critic (Sutton & Barto 2018, section 13.5), which is A2C with rollouts of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fastrl.agents.agent import Env
from fastrl.agents.hyperparameters.on_policy import A2CConfig, ActorCriticConfig
from fastrl.agents.on_policy import OnPolicyAgent
from fastrl.agents.rollout import RewardScaling, normalized
from fastrl.agents.training import check_loss
from fastrl.kernels import FlatAdam, n_step_returns, value_loss
from fastrl.kernels._core.arrays import assign


class A2C(OnPolicyAgent[A2CConfig]):
    """Advantage actor-critic, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783).

    L = -mean A log pi(a|s) + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s))

    For discrete, MultiDiscrete, MultiBinary and continuous (Box) actions.  An MLP sees observations flattened, and
    discrete ones one-hot.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `A2CConfig`.  Raises InputError for anything that cannot work.
    `network`: the user's own torch module, or a function that makes one, ``[B, *observation] -> [B, K + 1]``: the
    logits or means of the K actions, and V; or {"actor": one ``-> [B, K]``, "critic": one ``-> [B, 1]``}.

    >>> agent = A2C("CartPole-v1", seed=0).learn(500_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "a2c"
    config_class: ClassVar[type[A2CConfig]] = A2CConfig
    multi = True
    masks = True

    def __init__(self, env: Env, config: A2CConfig | None = None, *, network: Any = None, **overrides: Any) -> None:
        super().__init__(env, config, network=network, **overrides)
        c = self.config
        self._make_policy(c.n_steps, shared=c.shared_network, normalize_obs=c.normalize_obs)
        vector, grad = self.policy.vector, self.policy.grad
        if c.optimizer == "adam":
            self.optimizer = FlatAdam(vector, grad, lr=c.learning_rate, eps=c.optimizer_eps)
        else:
            self.optimizer = FlatRMSprop(vector, grad, eps=c.optimizer_eps)
        self.scale_rewards = RewardScaling(c.num_envs, c.gamma) if c.normalize_rewards else None
        self._log = dict.fromkeys(("loss", "policy_loss", "value_loss", "entropy"), 0.0)

    def _iterate(self) -> None:
        self._collect()
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
        obs, action, _, advantage, target, *allowed = r.batch(
            advantages, targets, *([] if r.allowed is None else [r.allowed])
        )
        if len(obs):  # a rollout can hold nothing but resets
            losses = self._loss(obs, action, advantage, target, *allowed)
            self.optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm)
            self._log = {name: float(value) for name, value in losses.items()}
            check_loss(self._log["loss"], self.steps, self.policy.vector)
        self.n_updates += 1
        self._update_moments()

    def _loss(self, obs: Any, action: Any, advantage: Any, target: Any, allowed: Any = None) -> dict[str, Any]:
        """L = -mean A log pi(a|s) + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s)), and its parts.

        With `normalize_advantages` A is shifted to mean 0 and divided by its standard deviation (divisor B, not
        B - 1) + 1e-8, if there is more than one; G never is.  pi has only actions that are `allowed` ``[B, K]``.  The
        gradient overwrites the policy's `grad`.
        """
        c, policy = self.config, self.policy
        if c.normalize_advantages:
            advantage = normalized(advantage)
        out, value = policy.forward_cached(obs, allowed)
        log_prob, entropy, d_out, d_log_std = policy.policy_gradient(out, action, advantage, c.entropy_coef)
        loss_v, d_value = value_loss(value, target)
        policy.backward(d_out, c.value_coef * d_value, d_log_std)
        policy_loss = -(advantage * log_prob).mean()
        loss = policy_loss + c.value_coef * loss_v - c.entropy_coef * entropy
        return {"loss": loss, "policy_loss": policy_loss, "value_loss": loss_v, "entropy": entropy}

    def _switches(self) -> list[str]:
        c = self.config
        return ["n-step"] * (c.gae_lambda is None and c.n_steps > 1) + ["shared network"] * c.shared_network


class FlatRMSprop:
    """RMSprop on one vector (Tieleman and Hinton 2012), as ``torch.optim.RMSprop`` has it.

        g <- g min(1, max_grad_norm / (|g| + 1e-6));  s <- alpha s + (1 - alpha) g^2;  p <- p - lr g / (sqrt(s) + eps)

    `vector` and `grad` are p and g, float32 ``[P]``, changed in place; s starts from 0.
    """

    def __init__(self, vector: Any, grad: Any, *, alpha: float = 0.99, eps: float = 1e-8) -> None:
        self.vector, self.grad, self.alpha, self.eps = vector, grad, alpha, eps
        self.square_avg = 0 * vector

    def step(self, *, lr: float, max_grad_norm: float | None = None) -> None:
        g, s = self.grad, self.square_avg
        with np.errstate(over="ignore", invalid="ignore"):
            if max_grad_norm is not None:
                g *= min(max_grad_norm / (float(g @ g) ** 0.5 + 1e-6), 1.0)  # in this order a NaN stays one
            s *= self.alpha
            s += (1 - self.alpha) * g * g
            self.vector -= lr * g / (s**0.5 + self.eps)

    def state_dict(self) -> dict[str, Any]:
        return {"square_avg": self.square_avg + 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, or the state of torch's optimizer, which earlier checkpoints hold."""
        square_avg = state["square_avg" if "square_avg" in state else "0.square_avg"]
        if tuple(square_avg.shape) != tuple(self.square_avg.shape):
            wanted, got = tuple(self.square_avg.shape), tuple(square_avg.shape)
            raise ValueError(f"RMSprop: square_avg must have shape {wanted}, got {got}")
        assign(self.square_avg, square_avg)


class OneStepActorCritic(A2C):
    """The one-step actor-critic (Sutton & Barto 2018, section 13.5): A2C that learns from the TD error of every step.

    See `A2C`; the hyperparameters are those of `ActorCriticConfig`.
    """

    algorithm = "actor_critic"
    config_class = ActorCriticConfig
