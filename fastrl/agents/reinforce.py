"""REINFORCE (Williams 1992, doi:10.1007/BF00992696) with reward-to-go and, if wanted, a learned baseline."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.agents.agent import Env
from fastrl.agents.hyperparameters.on_policy import REINFORCEConfig
from fastrl.agents.on_policy import OnPolicyAgent
from fastrl.agents.rollout import normalized
from fastrl.agents.training import check_loss
from fastrl.kernels import FlatAdam, discounted_returns, value_loss


class REINFORCE(OnPolicyAgent[REINFORCEConfig]):
    """REINFORCE (Williams 1992, doi:10.1007/BF00992696), with a learned baseline V if wanted.

    L = -mean (G - V(s)) log pi(a|s) + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s)), with the
    reward-to-go G.

    For discrete, MultiDiscrete, MultiBinary and continuous (Box) actions.  An MLP sees observations flattened, and
    discrete ones one-hot.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode, whose episodes must end.
    `config` and keyword overrides set the hyperparameters of `REINFORCEConfig`.  Raises InputError for anything that
    cannot work.

    >>> agent = REINFORCE("CartPole-v1", seed=0).learn(200_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "reinforce"
    config_class = REINFORCEConfig
    multi = True
    masks = True

    def __init__(
        self, env: Env, config: REINFORCEConfig | None = None, *, network: Any = None, **overrides: Any
    ) -> None:
        super().__init__(env, config, network=network, **overrides)
        c = self.config
        self._make_policy(512, critic=c.baseline)  # the rollout grows with the episodes
        self.optimizer = FlatAdam(self.policy.vector, self.policy.grad, lr=c.learning_rate)
        self._log = dict.fromkeys(("loss", "policy_loss", "value_loss", "entropy"), 0.0)

    def _iterate(self) -> None:
        self._collect()
        self._update()

    def _collect(self) -> None:
        """Play `episodes` episodes from their beginning in every environment.

        All that are begun are learned from: to take those that end first would prefer short ones.
        """
        self.envs.reset()
        self.rollout.begin()
        to_play, t = np.full(self.envs.num_envs, self.config.episodes), 0
        while (active := to_play > 0).any():
            to_play -= self.rollout.step(t, self.generator, None if active.all() else active)
            self._stepped()
            t += 1
        self.rollout.end(t)

    def _update(self) -> None:
        """One gradient step on `_loss` over whole episodes.

        G_t = sum_{k>=t} gamma^(k-t) r_k to the episode's end.  Where a time limit cut it at step T' - 1, the baseline
        stands in for the rest, gamma^(T'-t) V(s_T'); without a baseline the rest counts as 0.  A_t = G_t - V(s_t), or
        G_t without a baseline.  (The factor gamma^t of the policy gradient theorem is left out, as is usual.)
        """
        c, r = self.config, self.rollout
        values, next_values = r.values() if c.baseline else (None, None)
        returns = discounted_returns(
            r.reward, r.terminated, r.truncated, gamma=c.gamma, next_values=next_values, mask=r.mask
        )
        advantages = returns if values is None else returns - values
        obs, action, _, advantage, target, *allowed = r.batch(
            advantages, returns, *([] if r.allowed is None else [r.allowed])
        )
        losses = self._loss(obs, action, advantage, target, *allowed)
        self.optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm)
        self.n_updates += 1
        self._log = {name: float(value) for name, value in losses.items()}
        check_loss(self._log["loss"], self.steps, self.policy.vector)

    def _loss(self, obs: Any, action: Any, advantage: Any, target: Any, allowed: Any = None) -> dict[str, Any]:
        """L = -mean A log pi(a|s) + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s)), and its parts.

        With `normalize_advantages` A is `normalized`; G never is.  Without a baseline there is no V.  pi has only
        actions that are `allowed` ``[B, K]``.  The gradient overwrites the policy's `grad`.
        """
        c, policy = self.config, self.policy
        if c.normalize_advantages:
            advantage = normalized(advantage)
        out, value = policy.forward_cached(obs, allowed)
        log_prob, entropy, d_out, d_log_std = policy.policy_gradient(out, action, advantage, c.entropy_coef)
        loss_v, d_value = value_loss(value, target) if c.baseline else (0.0, None)
        policy.backward(d_out, None if d_value is None else c.value_coef * d_value, d_log_std)
        policy_loss = -(advantage * log_prob).mean()
        loss = policy_loss + c.value_coef * loss_v - c.entropy_coef * entropy
        return {"loss": loss, "policy_loss": policy_loss, "value_loss": loss_v, "entropy": entropy}

    def _switches(self) -> list[str]:
        return [] if self.config.baseline else ["no baseline"]
