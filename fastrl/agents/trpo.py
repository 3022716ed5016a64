"""Trust region policy optimization (Schulman et al. 2015, arXiv:1502.05477): natural gradient steps of bounded KL.

Advantages are GAE's (Schulman et al. 2016, arXiv:1506.02438).
"""

from __future__ import annotations

import math
from typing import Any

from fastrl.agents.agent import Env
from fastrl.agents.arrays import exp
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.on_policy import TRPOConfig
from fastrl.agents.on_policy import OnPolicyAgent
from fastrl.agents.rollout import Minibatches, RewardScaling, normalized
from fastrl.agents.training import check_loss
from fastrl.kernels import MLP, FlatAdam, line_search, natural_gradient_step, value_loss
from fastrl.kernels.curvature.mlp import MLPFisherProduct

CG_STATUS = ("converged", "max_iter", "negative_curvature", "breakdown")


class TRPO(OnPolicyAgent[TRPOConfig]):
    """Trust region policy optimization (Schulman et al. 2015, arXiv:1502.05477).

    A step along (F + cg_damping I)^-1 g, g the gradient of mean rho A with rho = pi(a|s) / pi_old(a|s), as long as
    mean KL(pi_old || pi) <= max_kl allows; then V is fitted to G by mean (V(s) - G)^2 / 2.

    For discrete, MultiDiscrete, MultiBinary and continuous (Box) actions.  An MLP sees observations flattened, and
    discrete ones one-hot.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `TRPOConfig`.  Raises InputError for anything that cannot work.
    `network`: {"actor": ..., "critic": ...}, the user's own torch modules or functions that make them, the first
    ``[B, *observation] -> [B, K]``, logits or means of the K actions, the second ``-> [B, 1]``, V.

    >>> agent = TRPO("CartPole-v1", seed=0).learn(100_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "trpo"
    config_class = TRPOConfig
    multi = True
    masks = True

    def __init__(self, env: Env, config: TRPOConfig | None = None, *, network: Any = None, **overrides: Any) -> None:
        super().__init__(env, config, network=network, **overrides)
        c = self.config
        self._make_policy(c.n_steps, normalize_obs=c.normalize_obs)
        policy = self.policy
        if policy.critic is None:  # a step that fits the value would move the policy too
            raise InputError("network: TRPO needs a dict of actor and critic, got one network")
        n = policy.n_policy
        self.theta, self._theta_grad = policy.vector[:n], policy.grad[:n]
        self.optimizer = FlatAdam(policy.vector[n:], policy.grad[n:], lr=c.learning_rate, eps=c.adam_eps)
        self._fisher: Any = None
        self.scale_rewards = RewardScaling(c.num_envs, c.gamma) if c.normalize_rewards else None
        names = ("loss", "policy_loss", "value_loss", "entropy", "kl", "step_fraction", "cg_iterations", "cg_status")
        self._log = dict.fromkeys(names, 0.0)  # step_fraction: of the whole step; cg_status: its place in CG_STATUS

    @property
    def max_kl(self) -> float:
        """The bound of an update now: linear from max_kl to max_kl_end."""
        c = self.config
        return self._linear(c.max_kl, min(c.max_kl, c.max_kl_end), c.learning_rate_steps)

    def _iterate(self) -> None:
        self._collect()
        self.optimizer.lr = self.learning_rate
        self._update()

    def _update(self) -> None:
        """One step of the policy, then `value_epochs` passes that fit the value; both learn from the whole rollout.

        The advantages A_t and the value's targets G_t = A_t + V(s_t) are GAE's, of the values before the update.
        """
        c, r = self.config, self.rollout
        advantages, returns, _ = r.advantages(c.gamma, c.gae_lambda, self.scale_rewards)
        obs, action, _, advantage, target, *allowed = r.batch(
            advantages, returns, *([] if r.allowed is None else [r.allowed])
        )
        obs = self.policy.floats(obs)
        if len(obs):  # a rollout can hold nothing but resets
            self._log |= self._improve_policy(obs, action, *self._signal(obs, action, advantage), *allowed)
            self._log["value_loss"] = self._fit_value(obs, target)
            self._log["loss"] = self._log["policy_loss"] + self._log["value_loss"]
            check_loss(self._log["loss"], self.steps, self.policy.vector)
        self.n_updates += 1
        self._update_moments()

    def _signal(self, obs: Any, action: Any, advantage: Any) -> tuple[Any, Any]:
        """What `_improve_policy` takes as A and drift."""
        return normalized(advantage) if self.config.normalize_advantages else advantage, None

    def _improve_policy(
        self, obs: Any, action: Any, advantage: Any, drift: Any = None, allowed: Any = None
    ) -> dict[str, float]:
        """maximise L(theta) = mean rho A  subject to  D(theta) = mean KL(pi_old(.|s) || pi_theta(.|s)) <= max_kl.

        (Schulman et al. 2015, eq. 14, section 6 and appendix C.)  With rho = pi_theta(a|s) / pi_old(a|s), means over
        the rollout, g the gradient of L and F the Hessian of D at the old parameters, conjugate gradient solves
        (F + damping) x = g, and the step is sqrt(2 max_kl / x^T (F + damping) x) x.  The line search shortens it
        until L is better than before and D <= max_kl; otherwise the policy stays as it is.  So it does if D, measured
        once more when the parameters have their new values, is not within max_kl all the same.
        `drift` ``[B, A]`` adds mean sum_j drift_j out_j to L, of the actor's outputs out.  pi has only actions that are
        `allowed` ``[B, K]``, also in D and F.
        """
        c, policy, theta, max_kl = self.config, self.policy, self.theta, self.max_kl
        old_theta = theta + 0
        # What follows is relative to these, made as `evaluate` makes its own: of one or two states, the pass that keeps
        # what backward needs may differ from them in the last bit.
        out = policy.output(obs, allowed=allowed)
        policy.output(obs, cached=True)
        old_log_prob, entropy, d_out, d_log_std = policy.policy_gradient(out, action, advantage)
        old = out, None if policy.log_std is None else policy.log_std + 0

        def drifted(out: Any) -> Any:
            return 0.0 if drift is None else (drift * out).sum(1).mean()

        def evaluate(candidate: Any) -> tuple[float, float]:
            theta[...] = candidate
            out = policy.output(obs, allowed=allowed)
            log_prob, _ = policy.log_prob_entropy(out, action)
            gain = (exp(log_prob - old_log_prob) * advantage).mean() + drifted(out)
            return float(gain), policy.kl(*old, out).mean().item()

        if drift is not None:
            d_out = d_out - drift / len(out)
        policy.backward(d_out, None, d_log_std)
        g = -self._theta_grad
        self._refresh_fisher(obs, allowed)
        step, info = natural_gradient_step(self._fisher, g, max_kl=max_kl, max_iter=c.cg_iterations, rtol=c.cg_rtol)
        before = float(advantage.mean() + drifted(out))  # rho is 1
        gain, kl, fraction = before, 0.0, 0.0
        if info.scale > 0:
            found = line_search(
                evaluate,
                old_theta,
                step,
                expected_improvement=float(g @ step),
                max_kl=max_kl,
                max_backtracks=c.backtracks,
                backtrack=c.backtrack,
                surrogate=before,
            )
            if found.accepted:
                gain, kl = evaluate(found.params)
                fraction = found.fraction
            if not (found.accepted and kl <= max_kl and math.isfinite(gain)):
                theta[...] = old_theta
                gain, kl, fraction = before, 0.0, 0.0
        return {
            "policy_loss": -gain,
            "entropy": float(entropy),
            "kl": max(kl, 0.0),  # rounded
            "step_fraction": fraction,
            "cg_iterations": float(info.iterations),
            "cg_status": float(CG_STATUS.index(info.status)),
        }

    def _refresh_fisher(self, obs: Any, allowed: Any = None) -> None:
        """The Fisher matrix of the policy in these states: of an MLP on the CPU in NumPy's arrays, else by torch."""
        actor, log_std, damping = self.policy.actor, self.policy.log_std, self.config.cg_damping
        x = obs.reshape(len(obs), -1) if isinstance(actor, MLP) else obs
        if self._fisher is not None:
            self._fisher.refresh(x, allowed)
        elif isinstance(actor, MLP) and self.device == "cpu":
            self._fisher = MLPFisherProduct(actor, log_std, x, damping, self.policy.sizes, allowed)
        else:
            from fastrl.agents.torch_networks import PolicyFisher

            self._fisher = PolicyFisher(actor, log_std, x, damping, self.policy.sizes, allowed)

    def _fit_value(self, obs: Any, target: Any) -> float:
        """`value_epochs` passes of Adam on mean (V(s) - G)^2 / 2; returns that of the last minibatch."""
        c, critic = self.config, self.policy.critic
        one_pass = Minibatches([obs.reshape(len(obs), -1), target], c.minibatches, self.rng)
        for _ in range(c.value_epochs):
            for x, y in one_pass:
                loss, d_value = value_loss(critic.forward_cached(x), y)
                critic.backward(d_value)
                self.optimizer.step()
        return float(loss)
