"""Algorithms of sb3-contrib with acting and learning compiled: change one import.

    from fastrl.integrations.sb3_contrib import TQC      # was: from sb3_contrib import TQC

All that `fastrl.integrations.sb3` says of Stable-Baselines3's classes goes for these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sb3_contrib
import torch
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from sb3_contrib.tqc import policies as tqc

from fastrl.integrations._version import untested
from fastrl.integrations.sb3.algorithm import Batch
from fastrl.integrations.sb3.continuous import SoftActorCritic, Squashed, SquashedNetworks
from fastrl.integrations.sb3.dqn import QLearning, QNetworks
from fastrl.integrations.sb3.networks import CannotCompile, Learner, check_type
from fastrl.integrations.sb3.on_policy import Networks, OnPolicy, Rollout, minibatches, normalized
from fastrl.kernels import QLoss, quantile_huber_loss
from fastrl.kernels.curvature.mlp import MLPFisherProduct

__all__ = ["QRDQN", "TQC", "TRPO"]

TESTED = "2.9"


def _check_version() -> None:
    reason = untested("sb3-contrib", TESTED)
    if reason:
        raise CannotCompile(reason)


class QRDQN(QLearning, sb3_contrib.QRDQN):  # type: ignore[misc]
    """``sb3_contrib.QRDQN`` whose `predict` and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy the host's own code runs, after one warning that says why.
    """

    _home = "sb3_contrib"

    def _compile(self) -> Learner:
        _check_version()
        policy = self.policy
        check_type(policy, QRDQNPolicy)
        nets = policy.quantile_net, policy.quantile_net_target
        for net in nets:
            check_type(net, QuantileNetwork)
        return QNetworks(policy, nets, tuple(net.quantile_net for net in nets), QuantileNetwork)

    def _quantiles(self, out: Any) -> Any:
        """theta ``[B, A, N]`` of outputs, which have the quantiles first."""
        return np.ascontiguousarray(out.reshape(len(out), self.n_quantiles, -1).transpose(0, 2, 1))

    def _values(self, out: Any) -> Any:
        return out.reshape(len(out), self.n_quantiles, -1).mean(1)

    def _loss(self, nets: Any, b: Batch) -> QLoss:
        """L = mean_j sum_i |tau_i - 1[u_ij < 0]| H(u_ij), u_ij = r + gamma (1 - done) theta'_j(s', a*) - theta_i(s, a).

        Its mean over the batch; a* = argmax_a mean_j theta'_j(s', a).
        """
        following = self._quantiles(nets.target.forward(b.next_obs))
        quantiles = self._quantiles(nets.online.forward_cached(b.obs))
        q = quantile_huber_loss(quantiles, b.action[:, 0], b.reward, b.discount, following, weights=b.weights)
        d_out = np.ascontiguousarray(q.d_q.transpose(0, 2, 1)).reshape(len(q.d_q), -1)
        return q._replace(d_q=d_out)


class TQC(SoftActorCritic, sb3_contrib.TQC):  # type: ignore[misc]
    """``sb3_contrib.TQC`` whose `predict` and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy, and with ``use_sde``, the host's own code runs, after one warning.
    """

    _home = "sb3_contrib"

    def _compile(self) -> Learner:
        _check_version()
        return SquashedNetworks(self, (tqc.TQCPolicy, tqc.Actor, tqc.Critic))

    def _critic_step(self, nets: Any, b: Batch, following: Squashed, alpha: float, target: Any) -> tuple[Any, Any]:
        """Mean over critics, quantiles i and targets j of |tau_i - 1[u_ij < 0]| H(u_ij), u_ij = y_j - theta_i(s, a).

        y_j = r + gamma (1 - done) [z_j - alpha log pi(a'|s')], z the sorted quantiles of all target critics in
        (s', a') without the `top_quantiles_to_drop_per_net` largest for each.
        """
        z = nets.target_critics.forward((b.next_obs, following.action))  # [n, B, N]
        n, B, N = z.shape
        kept = n * (N - self.top_quantiles_to_drop_per_net)
        z = np.sort(z.transpose(1, 0, 2).reshape(B, n * N))[:, :kept] - np.float32(alpha) * following.log_prob[:, None]
        theta, actions = nets.critics.forward_cached((b.obs, b.action)), np.zeros(B, np.int64)
        z = np.ascontiguousarray(z[:, None])
        losses = [
            quantile_huber_loss(one[:, None], actions, b.reward, b.discount, z, weights=b.weights) for one in theta
        ]
        nets.critics.backward(np.stack([q.d_q[:, 0] for q in losses]) / np.float32(n * N))
        nets.critic_optimizer.step(**target)
        return sum(q.loss for q in losses) / (n * N), abs(np.stack([q.td_errors for q in losses])).mean(0)

    def _judge(self, nets: Any, obs: Any, action: Any) -> tuple[Any, Any]:
        """Q = mean of all quantiles of all critics."""
        theta = nets.critics.forward_cached((obs, action))
        d_theta = np.full(theta.shape, -1 / theta.size, np.float32)
        return -float(theta.mean()), nets.critics.backward(d_theta, parameters=False, inputs=nets.action_columns)


class TRPO(OnPolicy, sb3_contrib.TRPO):  # type: ignore[misc]
    """``sb3_contrib.TRPO`` whose acting, advantages and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy, for MultiDiscrete and MultiBinary actions, with ``use_sde`` and with
    weight decay, the host's own code runs, after one warning that says why.
    """

    _home = "sb3_contrib"

    def _compile(self) -> Learner:
        _check_version()
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
