"""sb3-contrib's QRDQN and TQC, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import sb3_contrib
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from sb3_contrib.tqc import policies as tqc

from fastrl.integrations.sb3.algorithm import Batch
from fastrl.integrations.sb3.continuous import Squashed, SquashedNetworks, TargetActorCritic
from fastrl.integrations.sb3.dqn import QLearning, QNetworks
from fastrl.integrations.sb3.networks import Learner, check_type
from fastrl.integrations.sb3_contrib.version import check_version
from fastrl.kernels import QLoss, quantile_huber_loss


class QRDQN(QLearning, sb3_contrib.QRDQN):  # type: ignore[misc]
    """``sb3_contrib.QRDQN`` whose `predict` and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy the host's own code runs, after one warning that says why.
    """

    _home = "sb3_contrib"

    def _compile(self) -> Learner:
        check_version()
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


class TQC(TargetActorCritic, sb3_contrib.TQC):  # type: ignore[misc]
    """``sb3_contrib.TQC`` whose `predict` and `train` are compiled for ``MlpPolicy`` on the CPU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32.  For any other policy, and with ``use_sde``, the host's own code runs, after one warning.
    """

    _home = "sb3_contrib"

    def _compile(self) -> Learner:
        check_version()
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
