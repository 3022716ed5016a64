"""sb3-contrib's TRPO, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import sb3_contrib
import torch

from fastrl.integrations.sb3.networks import CannotCompile, Learner
from fastrl.integrations.sb3.on_policy import Networks, OnPolicy, Rollout, minibatches, normalized
from fastrl.integrations.sb3_contrib.version import check_version
from fastrl.kernels.curvature.mlp import MLPFisherProduct


class TRPO(OnPolicy, sb3_contrib.TRPO):  # type: ignore[misc]
    """``sb3_contrib.TRPO`` whose acting, advantages and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy, for MultiDiscrete and MultiBinary actions, with ``use_sde`` and with
    weight decay, the host's own code runs, after one warning that says why.
    """

    _home = "sb3_contrib"

    def _compile(self) -> Learner:
        check_version()
        if any(group.get("weight_decay") for group in self.policy.optimizer.param_groups):
            raise CannotCompile("weight_decay, which is of the values alone here")
        return Networks(self)

    def train(self) -> None:
        """A step of pi that makes mean rho A larger within KL(pi || pi_old) < target_kl; V by mean (G - V)^2.

        The KL is the mean over states, and for Box actions over their dimensions, too.
        """
        nets = self._learner()
        if nets is None:
            super().train()
            return
        self._update_learning_rate(self.policy.optimizer)
        _all_states(self.policy.optimizer)
        nets.optimizer.begin()
        (b,) = minibatches(self.rollout_buffer, nets, None)
        objective, kl, success = self._improve(nets, Rollout(*(x[:: self.sub_sampling_factor] for x in b)))
        nets.d_theta[...] = 0
        value_losses = []
        for _ in range(self.n_critic_updates):
            for b in minibatches(self.rollout_buffer, nets, self.batch_size):
                error = nets.critic.forward_cached(b.obs)[:, 0] - b.returns
                nets.critic.backward(((2 / len(error)) * error)[:, None])
                nets.optimizer.step()
                value_losses.append(float(error @ error / len(error)))
        self._n_updates += 1
        self._log_common()
        self.logger.record("train/policy_objective", objective)
        self.logger.record("train/value_loss", np.mean(value_losses))
        self.logger.record("train/kl_divergence_loss", kl)
        self.logger.record("train/is_line_search_success", float(success))

    def _improve(self, nets: Any, b: Rollout) -> tuple[float, float, bool]:
        """The objective mean rho A afterwards, the KL, and whether there was a step."""
        advantage = normalized(b.advantage) if self.normalize_advantage else b.advantage
        out, theta = nets.actor.forward_cached(b.obs), nets.theta + 0
        old_log_std = None if nets.discrete else nets.log_std + 0

        def evaluate(out: Any) -> tuple[Any, float]:
            weighted = advantage * np.exp(nets.log_prob_entropy(out, b.action)[0] - b.old_log_prob)
            return weighted, float(weighted.mean())

        weighted, objective = evaluate(out)
        pi = nets.policy_loss(out, b.action, None, weighted)
        nets.actor.backward(pi.d_out)
        if pi.d_log_std is not None:
            nets.d_log_std[...] = pi.d_log_std
        product = _damped(MLPFisherProduct(nets.actor, nets.log_std, b.obs, 0.0), nets, self.cg_damping)
        step = _conjugate_gradient(product, -nets.d_theta, 0 if nets.discrete else len(nets.log_std), self.cg_max_steps)
        with np.errstate(invalid="ignore", divide="ignore"):
            size, shrunk = np.sqrt(2 * self.target_kl / float(step @ product(step))), 1.0
        for _ in range(self.line_search_max_iter):
            nets.theta[...] = theta + np.float32(shrunk * size) * step
            new = nets.actor.forward(b.obs)
            found, kl = evaluate(new)[1], _mean_kl(new, nets.log_std, out, old_log_std)
            if kl < self.target_kl and found > objective:
                return found, kl, True
            shrunk *= self.line_search_shrinking_factor
        nets.theta[...] = theta
        return objective, 0.0, False


def _all_states(optimizer: Any) -> None:
    """Zeros for what has no state in the optimizer: pi's parameters, which its steps leave alone."""
    if optimizer.state:
        steps = next(iter(optimizer.state.values()))["step"]
        for p in optimizer.param_groups[0]["params"]:
            if p not in optimizer.state:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": steps.clone(), **zeros}


def _damped(fisher: Any, nets: Any, damping: float) -> Any:
    """v -> (H + damping I) v of the Hessian H of the KL."""
    share = np.float32(1.0 if nets.discrete else 1 / len(nets.log_std))
    return lambda v: share * fisher(v) + np.float32(damping) * v


def _conjugate_gradient(product: Any, b: Any, n_last: int, steps: int) -> Any:
    """``sb3_contrib.common.utils.conjugate_gradient_solver``; there the last `n_last` numbers come first."""
    x = np.roll(1e-4 * torch.randn(len(b)).numpy(), -n_last)
    residual = b - product(x)
    square = residual @ residual
    if square < 1e-10:
        return x
    p = residual.copy()
    for i in range(steps):
        image = product(p)
        alpha = square / (p @ image)
        x += alpha * p
        if i == steps - 1:
            break
        residual -= alpha * image
        square, before = residual @ residual, square
        if square < 1e-10:
            break
        p = residual + (square / before) * p
    return x


def _mean_kl(out: Any, log_std: Any, old_out: Any, old_log_std: Any) -> float:
    """Mean KL(pi || pi_old), of Gaussians over the dimensions, too."""
    if log_std is None:
        log_p, old_log_p = _log_softmax(out), _log_softmax(old_out)
        return float((np.exp(log_p) * (log_p - old_log_p)).sum(1).mean())
    ratio = np.exp(2 * (log_std - old_log_std))
    distance = ((out - old_out) / np.exp(old_log_std)) ** 2
    return float(0.5 * (ratio + distance - 1 - np.log(ratio)).mean())


def _log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
