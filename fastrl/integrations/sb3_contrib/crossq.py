"""sb3-contrib's CrossQ, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import sb3_contrib
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.crossq import policies as crossq
from torch import nn

from fastrl.integrations.sb3.algorithm import Batch, learned
from fastrl.integrations.sb3.continuous import SoftActorCritic, Squashed, TemperedLearner
from fastrl.integrations.sb3.networks import CannotCompile, Layers, Learner, Shared, check_observations, check_type
from fastrl.integrations.sb3.optimizers import FlatOptimizer
from fastrl.integrations.sb3_contrib.version import check_version
from fastrl.kernels import min_q_loss, min_q_targets, q_regression_loss

_ORDER = BatchRenorm1d, nn.Linear, nn.ReLU


class _Tape(NamedTuple):
    """What the gradient of a layer's normalisation needs, for a batch of B rows."""

    h: Any  # its input [B, n]
    normal: Any  # (h - mean) / sqrt(variance + eps) [B, n]
    slope: Any  # 1 / sqrt(variance + eps) [n]
    offset: Any = 0.0  # d sqrt(v) / r
    by_mean: Any = 0.0  # d / (r sqrt(v))
    by_variance: Any = 1.0  # 1 / r^2


class RenormNetwork:
    """One network of the host, with batch renormalisation (Ioffe 2017, arXiv:1702.03275) before every linear layer.

        h_0 = x;  h_l = relu(W_l BN_l(h_{l-1}) + b_l) for l < L;  out = W_L BN_L(h_{L-1}) + b_L
        BN(h) = scale (h - mean) / sqrt(variance + eps) + bias, each feature by itself

    mean and variance are the running ones, M and V, or with ``batch=True`` the m and v of the rows (divisor B - 1),
    towards which the running ones move; after more than `warmup_steps` such calls they are m - d sqrt(v) / r and
    v / r^2, r = clip(sqrt(v + eps) / sqrt(V + eps), 1/3, 3) and d = clip((m - M) / sqrt(V + eps), -5, 5), constants of
    the gradient.

    `parts` and `gradients` are those of `Shared`, three a layer: scale, bias, weights.  `norms` are the host's modules,
    whose buffers are the running statistics here, too.
    """

    def __init__(self, norms: Sequence[Any], parts: Sequence[Any], gradients: Sequence[Any]) -> None:
        self._norms = norms
        self._scales, self._shifts, self._linears = parts[::3], parts[1::3], parts[2::3]
        self._d_scales, self._d_shifts = gradients[::3], gradients[1::3]
        self._buffers = [(m.ra_mean, m.ra_var, m.steps) for m in norms]
        self._running = [tuple(x.numpy() for x in three) for three in self._buffers]
        self._addresses = self._now()
        self._tapes: list[_Tape] = []
        self._by_batch = False

    def _now(self) -> list[int]:
        return [x.data_ptr() for three in self._buffers for x in three]

    @property
    def whole(self) -> bool:
        """Are the host's statistics still the memory that they were?"""
        return self._now() == self._addresses

    def forward(self, x: Any) -> Any:
        """The outputs ``[B, out]`` for x ``[B, in]`` by the running statistics."""
        return self._run(x, batch=False, keep=False)

    def forward_cached(self, x: Any, *, batch: bool = False) -> Any:
        """`forward`, or by the statistics of x, which the running ones follow; kept for `backward`."""
        return self._run(x, batch=batch, keep=True)

    def _run(self, h: Any, batch: bool, keep: bool) -> Any:
        tapes = []
        for k, linear in enumerate(self._linears):
            if k:
                h = np.maximum(h, 0, out=h)
            tape = self._batch_norm(k, h) if batch else self._running_norm(k, h)
            y = tape.normal * self._scales[k]
            y += self._shifts[k]
            tapes.append(tape)
            h = linear.forward_cached(y) if keep else linear.forward(y)
        if keep:
            self._tapes, self._by_batch = tapes, batch
        return h

    def _running_norm(self, k: int, h: Any) -> _Tape:
        mean, variance, _ = self._running[k]
        slope = 1 / np.sqrt(variance + np.float32(self._norms[k].eps))
        normal = h - mean
        normal *= slope
        return _Tape(h, normal, slope)

    def _batch_norm(self, k: int, h: Any) -> _Tape:
        norm, (mean, variance, steps) = self._norms[k], self._running[k]
        eps, n = np.float32(norm.eps), len(h)
        m = _sum(h) / np.float32(n)
        normal = h - m
        v = _sum(normal * normal) / np.float32(n - 1)
        if steps[()] > norm.warmup_steps:
            running = np.sqrt(variance + eps)
            r = (np.sqrt(v + eps) / running).clip(1 / norm.rmax, norm.rmax)
            d = ((m - mean) / running).clip(-norm.dmax, norm.dmax)
            spread = np.sqrt(v)
            # Where v is 0 the host's gradient is NaN, which its ReLU hides where all rows are 0.
            by_mean = np.divide(d, r * spread, out=np.zeros_like(v), where=spread > 0)
            slope, offset = 1 / np.sqrt(v / (r * r) + eps), d * spread / r
            normal += offset
            tape = _Tape(h, normal, slope, offset, by_mean, 1 / (r * r))
        else:
            tape = _Tape(h, normal, 1 / np.sqrt(v + eps))
        normal *= tape.slope
        mean += norm.momentum * (m - mean)
        variance += norm.momentum * (v - variance)
        steps += 1
        return tape

    def backward(self, d: Any, *, parameters: bool = True, inputs: slice | None = None) -> Any:
        """The gradients of sum(d * out) in the parameters, and in the columns `inputs` of x, for the outputs last kept.

        Of the normalisation by a batch, with g the gradient in (h - mean) / sqrt(variance + eps), a that root's
        inverse, n the rows, and sums over them:

            dh = a [g - sum(g) / n + (h - m) / (n - 1) k],  k = sum(g) d / (r sqrt(v)) - sum(g normal) a / r^2
        """
        for k in range(len(self._tapes) - 1, -1, -1):
            tape, scale = self._tapes[k], self._scales[k]
            d = self._linears[k].backward(
                d, parameters=parameters, inputs=inputs if k == 0 and not parameters else True
            )
            if parameters:
                self._d_shifts[k][...] = by_shift = _sum(d)
                self._d_scales[k][...] = by_scale = _sum(d * tape.normal)
            if k == 0:
                return None if inputs is None else d * (scale * tape.slope)[inputs]
            d *= scale * tape.slope
            if self._by_batch:
                n = len(d)
                by_shift, by_scale = scale * by_shift, scale * by_scale
                factor = (by_shift * tape.by_mean - by_scale * tape.slope * tape.by_variance) / np.float32(n - 1)
                d += tape.normal * factor
                d -= tape.slope * (by_shift / np.float32(n) + tape.offset * factor)
            d *= tape.h > 0
        return None


class _Parts(NamedTuple):
    """Of a network of the host."""

    norms: list[Any]
    parts: list[Any]  # for `Shared`


def _parts(modules: Sequence[Any], last: Sequence[Any]) -> _Parts:
    """`modules` are all layers but the last Linear, or the Linear modules side by side, which `last` has."""
    for k, module in enumerate((*modules, last[0])):
        if type(module) is not _ORDER[k % 3]:
            raise CannotCompile(f"a network has {module} where it is BatchRenorm1d, Linear, ReLU and so on that is")
    norms, linears = list(modules[::3]), [(linear,) for linear in modules[1::3]] + [tuple(last)]
    parts: list[Any] = []
    for norm, layer in zip(norms, linears, strict=True):
        if any(linear.bias is None for linear in layer) or not norm.affine:
            raise CannotCompile(f"{layer[0]} after {norm} has no bias, or that is not affine")
        parts += [norm.scale, norm.bias, Layers([[layer]], "none")]
    return _Parts(norms, parts)


def _network(found: _Parts, shared: Shared, start: int) -> RenormNetwork:
    here = slice(start, start + len(found.parts))
    return RenormNetwork(found.norms, shared.networks[here], shared.gradients[here])


class _Networks(TemperedLearner):
    def __init__(self, model: Any) -> None:
        policy = model.policy
        for module, kind in (
            (policy, crossq.CrossQPolicy), (policy.actor, crossq.Actor), (policy.critic, crossq.CrossQCritic)
        ):  # fmt: skip
            check_type(module, kind)
        if policy.actor.use_sde:
            raise CannotCompile("use_sde")
        check_observations(policy, policy.actor, policy.critic)
        super().__init__(policy)
        found = _parts(policy.actor.latent_pi, (policy.actor.mu, policy.actor.log_std))
        actor = self.share(*found.parts)
        self.actor = _network(found, actor, 0)
        self.actor_optimizer = FlatOptimizer(policy.actor.optimizer, actor)
        of_critics = [_parts(network[:-1], network[-1:]) for network in policy.critic.q_networks]
        critics = self.share(*(part for one in of_critics for part in one.parts))
        self.critics = [_network(one, critics, k * len(one.parts)) for k, one in enumerate(of_critics)]
        self.critic_optimizer = FlatOptimizer(policy.critic.optimizer, critics)
        self.share_temperature(model)

    def whole(self, model: Any) -> bool:
        return super().whole(model) and all(network.whole for network in (self.actor, *self.critics))

    def q(self, obs: Any, action: Any, *, batch: bool) -> Any:
        """Q_k(s, a) ``[n, B, 1]``, kept for `backward`."""
        x = np.concatenate((obs, action), 1)
        return np.stack([critic.forward_cached(x, batch=batch) for critic in self.critics])


class CrossQ(SoftActorCritic, sb3_contrib.CrossQ):  # type: ignore[misc]
    """``sb3_contrib.CrossQ`` whose `predict` and `train` are compiled for ``MlpPolicy`` on the CPU, with ReLU.

    Constructor, callbacks, logs, random numbers, ``save`` and ``load`` are the host's, and so are the results, but for
    the rounding of float32, with the running statistics of its batch renormalisation.  For any other policy, with
    ``use_sde`` and with ``batch_norm=False``, the host's own code runs, after one warning that says why.
    """

    _home = "sb3_contrib"

    def _compile(self) -> Learner:
        check_version()
        return _Networks(self)

    def _act(self, nets: Any, x: Any, deterministic: bool) -> Any:
        nets.set_training_mode(False)  # as the host leaves it: calls of its modules would move the statistics
        return super()._act(nets, x, deterministic)

    def _update(self, nets: Any, b: Batch, step: int, logs: dict[str, list[Any]]) -> None:
        """The critics go down 1/2 sum_k mean (Q_k(s, a) - y)^2, y = r + gamma (1 - done) [min_k Q_k(s', a') - alpha log
        pi(a'|s')], Q of both in one pass by their statistics; every `policy_delay` updates the actor, by the statistics
        of its batch, goes down mean [alpha log pi(a|s) - min_k Q_k(s, a)], with the running ones of the critics.
        """
        nets.set_training_mode(False)
        alpha, n = nets.alpha(self), len(b.reward)
        following = Squashed(nets.actor.forward(b.next_obs))
        q = nets.q(np.concatenate((b.obs, b.next_obs)), np.concatenate((b.action, following.action)), batch=True)
        y = min_q_targets(
            np.ascontiguousarray(q[:, n:]), b.reward, b.discount, next_log_prob=following.log_prob, temperature=alpha
        )
        loss = q_regression_loss(np.ascontiguousarray(q[:, :n]), y, weights=b.weights)
        d_q = np.zeros_like(q)
        d_q[:, :n] = loss.d_q
        d_q *= np.float32(0.5)
        for critic, d in zip(nets.critics, d_q, strict=True):
            critic.backward(d)
        nets.critic_optimizer.step()
        learned(self, b, abs(loss.td_errors).mean(0))
        logs["ent_coef"].append(alpha)
        logs["critic_loss"].append(0.5 * loss.loss)
        if (self._n_updates + step + 1) % self.policy_delay:
            return
        now = Squashed(nets.actor.forward_cached(b.obs, batch=True))
        mean_log_prob = float(now.log_prob.mean())
        nets.tune(mean_log_prob + self.target_entropy, logs["ent_coef_loss"])
        q_loss, d_q = min_q_loss(nets.q(b.obs, now.action, batch=False))
        columns, d_action = nets.action_columns, 0
        for critic, d in zip(nets.critics, d_q, strict=True):
            d_action = d_action + critic.backward(d, parameters=False, inputs=columns)
        nets.actor.backward(now.gradient(d_action, alpha / n))
        nets.actor_optimizer.step()
        logs["actor_loss"].append(alpha * mean_log_prob + q_loss)


def _sum(x: Any) -> Any:
    """Over the rows."""
    return np.ones(len(x), np.float32) @ x
