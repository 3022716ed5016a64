"""REINFORCE (Williams 1992, doi:10.1007/BF00992696) with reward-to-go and, if wanted, a learned baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrl.agents.agent import Env
from fastrl.agents.config import check_range
from fastrl.agents.on_policy import OnPolicyAgent
from fastrl.agents.policies import Activation
from fastrl.agents.rollout import normalized
from fastrl.agents.training import check_loss
from fastrl.kernels import FlatAdam, discounted_returns, value_loss

INF = float("inf")


@dataclass(frozen=True)
class REINFORCEConfig:
    """Hyperparameters.  The learning rate's schedule counts environment steps from the start of training."""

    # Sources: [W] Williams 1992, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    baseline: bool = True  # [W]
    """A learned state value is subtracted from the reward-to-go, and stands in for what a time limit cut off."""
    num_envs: int = 1
    """Environments stepped together; one that has played its episodes waits for the others, and its steps are lost."""
    episodes: int = 8  # [T]
    """Whole episodes of each environment in an update."""
    hidden: tuple[int, ...] = (64, 64)  # [T]
    """Sizes of the hidden layers."""
    activation: Activation = "tanh"  # [T]
    """Of the hidden layers: tanh or relu."""
    learning_rate: float = 5e-3  # [T]
    """Of Adam, at the start."""
    learning_rate_end: float = 5e-4  # [T]
    """Of Adam, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly; None: all of the run."""
    gamma: float = 0.99  # [T]
    """Discount."""
    value_coef: float = 0.5  # [T]
    """Weight of the baseline's loss."""
    entropy_coef: float = 0.0  # [W]
    """Weight of the entropy, which is maximised."""
    normalize_advantages: bool = True  # [T]
    """Mean 0 and standard deviation 1 within each update."""
    max_grad_norm: float | None = 0.5  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    log_std: float = 0.0
    """Log of the standard deviation of continuous actions, at the start."""
    seed: int = 0
    """Of everything random: environments, initial weights, actions."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden", "episodes")
        check_range(self, 1, 10**9, "learning_rate_steps")
        check_range(self, 0, 1, "gamma")
        check_range(self, 0, INF, "learning_rate_end", "entropy_coef", "value_coef")
        check_range(self, 1e-12, INF, "learning_rate", "max_grad_norm")
        check_range(self, -20, 5, "log_std")
        check_range(self, 0, 2**63 - 1, "seed")


class REINFORCE(OnPolicyAgent[REINFORCEConfig]):
    """REINFORCE (Williams 1992, doi:10.1007/BF00992696), with a learned baseline V if wanted.

    L = -mean (G - V(s)) log pi(a|s) + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s)), with the
    reward-to-go G.

    For discrete and for continuous (Box) actions; observations are Boxes, which an MLP sees flattened.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode, whose episodes must end.
    `config` and keyword overrides set the hyperparameters of `REINFORCEConfig`.  Raises InputError for anything that
    cannot work.

    >>> agent = REINFORCE("CartPole-v1", seed=0).learn(200_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "reinforce"
    config_class = REINFORCEConfig

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
            self.steps += self.envs.num_envs
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
        obs, action, _, advantage, target = r.batch(advantages, returns)
        losses = self._loss(obs, action, advantage, target)
        self.optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm)
        self.n_updates += 1
        self._log = {name: float(value) for name, value in losses.items()}
        check_loss(self._log["loss"], self.steps, self.policy.vector)

    def _loss(self, obs: Any, action: Any, advantage: Any, target: Any) -> dict[str, Any]:
        """L = -mean A log pi(a|s) + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s)), and its parts.

        With `normalize_advantages` A is `normalized`; G never is.  Without a baseline there is no V.  The gradient
        overwrites the policy's `grad`.
        """
        c, policy = self.config, self.policy
        if c.normalize_advantages:
            advantage = normalized(advantage)
        out, value = policy.forward_cached(obs)
        log_prob, entropy, d_out, d_log_std = policy.policy_gradient(out, action, advantage, c.entropy_coef)
        loss_v, d_value = value_loss(value, target) if c.baseline else (0.0, None)
        policy.backward(d_out, None if d_value is None else c.value_coef * d_value, d_log_std)
        policy_loss = -(advantage * log_prob).mean()
        loss = policy_loss + c.value_coef * loss_v - c.entropy_coef * entropy
        return {"loss": loss, "policy_loss": policy_loss, "value_loss": loss_v, "entropy": entropy}

    def _switches(self) -> list[str]:
        return [] if self.config.baseline else ["no baseline"]
