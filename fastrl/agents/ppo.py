"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347), with the clipped objective or the KL penalty.

Advantages are GAE's (Schulman et al. 2016, arXiv:1506.02438).
"""

from __future__ import annotations

from typing import Any

from fastrl.agents.agent import Env
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.on_policy import PPOConfig
from fastrl.agents.on_policy import OnPolicyAgent
from fastrl.agents.rollout import Minibatches, RewardScaling
from fastrl.agents.training import check_loss
from fastrl.kernels import FlatAdam, value_loss


class KLPenalty:
    """The weight beta of the KL penalty: halved when an update's KL is below target / 1.5, doubled above 1.5 target.

    (Schulman et al. 2017, section 4.)  It stays in [1e-6, 1e6]: from 0 there is no way back.
    """

    def __init__(self, beta: float, target: float) -> None:
        self.beta, self.target = beta, target

    def adapt(self, kl: float) -> None:
        if kl < self.target / 1.5:
            self.beta = max(self.beta / 2, 1e-6)
        elif kl > self.target * 1.5:
            self.beta = min(self.beta * 2, 1e6)

    def state_dict(self) -> dict[str, float]:
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.beta = state["beta"]


class PPO(OnPolicyAgent[PPOConfig]):
    """Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347).

    With rho = pi(a|s) / pi_old(a|s), L = L_policy + value_coef mean (V(s) - G)^2 / 2 - entropy_coef mean H(pi(.|s)):
    clip:     L_policy = -mean min(rho A, clip(rho, 1 - clip_range, 1 + clip_range) A)
    penalty:  L_policy = -mean rho A + beta mean KL(pi_old || pi), beta adapted to the KL

    For discrete, MultiDiscrete, MultiBinary and continuous (Box) actions.  An MLP sees observations flattened, and
    discrete ones one-hot.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `PPOConfig`.  Raises InputError for anything that cannot work.
    `network`: the user's own torch module, or a function that makes one, ``[B, *observation] -> [B, K + 1]``: the
    logits or means of the K actions, and V; or {"actor": one ``-> [B, K]``, "critic": one ``-> [B, 1]``}.

    >>> agent = PPO("CartPole-v1", seed=0).learn(100_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "ppo"
    config_class = PPOConfig
    multi = True
    masks = True

    def __init__(self, env: Env, config: PPOConfig | None = None, *, network: Any = None, **overrides: Any) -> None:
        super().__init__(env, config, network=network, **overrides)
        c = self.config
        least = 2 if c.normalize_advantages else 1
        if c.minibatches * least > c.n_steps * c.num_envs:
            most = c.n_steps * c.num_envs // least
            raise InputError(f"PPO: minibatches must be <= {most}, for {least} steps in each, got {c.minibatches}")
        self._make_policy(c.n_steps, shared=c.shared_network, normalize_obs=c.normalize_obs)
        self.optimizer = FlatAdam(self.policy.vector, self.policy.grad, lr=c.learning_rate, eps=c.adam_eps)
        self.scale_rewards = RewardScaling(c.num_envs, c.gamma) if c.normalize_rewards else None
        self.penalty = KLPenalty(c.penalty_beta, c.penalty_kl)
        self._old_log_std: Any = None
        self._log = dict.fromkeys(("loss", "policy_loss", "value_loss", "entropy", "kl"), 0.0)

    def _iterate(self) -> None:
        self._collect()
        self.optimizer.lr = self.learning_rate
        self._update()

    def _update(self) -> None:
        """`epochs` passes over the rollout in random order, one step down the gradient of `_loss` for each minibatch.

        The advantages A_t and the value's targets G_t = A_t + V(s_t) are GAE's, of the values before the update.
        With `target_kl` the passes end early.  Objective "penalty": beta adapts to the KL of the whole update.
        """
        c, policy = self.config, self.policy
        batch = self.rollout.batch(*self.rollout.advantages(c.gamma, c.gae_lambda, self.scale_rewards))
        more: dict[str, Any] = {}
        if self.rollout.allowed is not None:
            more["allowed"] = policy.array(self.rollout.real(self.rollout.allowed))
        if c.objective == "penalty":  # the old policy, from which the KL is measured
            more["old_out"] = policy.output(batch[0], **more) + 0
            self._old_log_std = None if policy.log_std is None else policy.log_std + 0
        one_pass, n = Minibatches([*batch, *more.values()], c.minibatches, self.rng), len(batch)
        for _ in range(c.epochs):
            for minibatch in one_pass:
                terms = self._loss(*minibatch[:n], **dict(zip(more, minibatch[n:], strict=True)))
                self.optimizer.step(max_grad_norm=c.max_grad_norm)
                self.n_updates += 1
            if c.target_kl is not None and float(terms["kl"]) > c.target_kl:
                break
        if c.objective == "penalty":
            old_out = more.pop("old_out")
            self.penalty.adapt(policy.kl(old_out, self._old_log_std, policy.output(batch[0], **more)).mean().item())
        self._log = {name: float(value) for name, value in terms.items()}  # of the last minibatch
        check_loss(self._log["loss"], self.steps, policy.vector)
        self._update_moments()

    def _loss(
        self,
        obs: Any,
        action: Any,
        old_log_prob: Any,
        advantage: Any,
        target: Any,
        old_value: Any,
        old_out: Any = None,
        allowed: Any = None,
    ) -> dict[str, Any]:
        """L = L_policy + value_coef L_value - entropy_coef H of one minibatch, and its parts; the gradient: `grad`.

        With rho = pi(a|s) / pi_old(a|s), and means over the minibatch:
        clip:     L_policy = -mean min(rho A, clip(rho, 1 - clip_range, 1 + clip_range) A)              (eq. 7)
        penalty:  L_policy = -mean rho A + beta mean KL(pi_old(.|s) || pi(.|s))                         (eq. 8)
        L_value = mean (V - G)^2 / 2, or with clip_value = e
        L_value = mean max((V - G)^2, (V_old + clip(V - V_old, -e, e) - G)^2) / 2.
        A is shifted to mean 0 and divided by its standard deviation (divisor B, not B - 1) + 1e-8; G never is.
        "kl" is exact with "penalty", else estimated by mean(rho - 1 - log rho).  pi has only `allowed` actions.
        """
        c, policy = self.config, self.policy
        out, value = policy.forward_cached(obs, allowed)
        how: dict[str, Any] = {"clip_range": c.clip_range}
        if c.objective == "penalty":
            how = {"old": (old_out, self._old_log_std), "kl_coef": self.penalty.beta}
        normalize = c.normalize_advantages and len(action) > 1
        pi = policy.loss(
            out, action, old_log_prob, advantage, entropy_coef=c.entropy_coef, normalize_advantages=normalize, **how
        )
        clip = {} if c.clip_value is None else {"old_values": old_value, "clip_range": c.clip_value}
        loss_v, d_value = value_loss(value, target, **clip)
        policy.backward(pi.d_out, c.value_coef * d_value, pi.d_log_std)
        loss = pi.loss + c.value_coef * loss_v
        parts = {"policy_loss": pi.policy_loss, "value_loss": loss_v, "entropy": pi.entropy, "kl": pi.kl}
        return {"loss": loss, **parts}

    def _switches(self) -> list[str]:
        c = self.config
        return ["penalty"] * (c.objective == "penalty") + ["shared network"] * c.shared_network

    def metrics(self) -> dict[str, float]:
        """For the logs: of the last minibatch the loss, its parts and the KL; beta and the learning rate now."""
        beta = {"beta": self.penalty.beta} if self.config.objective == "penalty" else {}
        return {**super().metrics(), **beta}

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "penalty": self.penalty}
