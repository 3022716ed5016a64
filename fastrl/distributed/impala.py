"""IMPALA (Espeholt et al. 2018, arXiv:1802.01561): actors and learner as processes of their own.

The loss is that of `fastrl.agents.a2c`, with V-trace's targets and advantages.
"""

from __future__ import annotations

from typing import Any

from fastrl.agents.a2c import A2C
from fastrl.agents.arrays import to_numpy
from fastrl.agents.hyperparameters.distributed import IMPALAConfig
from fastrl.agents.rollout import state_values
from fastrl.agents.training import check_loss
from fastrl.distributed.actor import RolloutPlayer
from fastrl.distributed.learner import Learner
from fastrl.kernels import vtrace


class IMPALA(Learner[Any], A2C):
    """IMPALA (Espeholt et al. 2018, arXiv:1802.01561) on Ray: `actors` that play, and this process, which learns.

    L = -mean A log pi(a|s) + value_coef mean (V(s) - vs)^2 / 2 - entropy_coef mean H(pi(.|s))

    vs and A are the targets and advantages of V-trace (`fastrl.vtrace`), with rho = pi(a|s) / mu(a|s), where mu is the
    policy that the actor played with.  An update is made from each chunk: n_steps of an actor's num_envs environments.

    For discrete, MultiDiscrete, MultiBinary and continuous (Box) actions.  `env`: an id or an `EnvConfig`, which the
    actors can make.  `network` as in `A2C`.  What is learned depends on who is faster, so that no run repeats another.
    Raises InputError for anything that cannot work.

    >>> agent = IMPALA("CartPole-v1", actors=2, seed=0).learn(300_000)
    """

    algorithm = "impala"
    config: IMPALAConfig
    config_class = IMPALAConfig
    player_class = RolloutPlayer

    def _sent(self) -> list[Any]:
        return [self.policy.vector]

    def _iterate(self) -> None:
        """Ask for chunks, and update on each that has come."""
        while actor := self._fleet.idle_actor():
            self._fleet.collect(actor, self.steps)
        for report, chunk in self._fleet.poll(0.1):
            self._hear(report)
            self._learn(chunk)
            self._updated()

    def _learn(self, chunk: Any) -> None:
        """One gradient step on the loss of a chunk of `RolloutPlayer`."""
        c, policy = self.config, self.policy
        obs, action, log_mu, reward, terminated, truncated, last_obs, finals, allowed = chunk
        values, next_values = state_values(policy, obs, last_obs, finals)
        flat = [x.reshape(-1, *x.shape[2:]) for x in (policy.prepare(obs), action)]
        masks = [] if allowed is None else [allowed.reshape(-1, allowed.shape[-1])]
        batch = [policy.array(x) for x in (*flat, *masks)]
        log_pi, _ = policy.log_prob_entropy(policy.output(batch[0], allowed=batch[2] if masks else None), batch[1])
        log_rhos = to_numpy(log_pi).reshape(log_mu.shape) - log_mu
        targets, advantages = vtrace(
            reward, values, next_values, terminated, truncated, log_rhos, gamma=c.gamma, lam=c.gae_lambda,
            rho_clip=c.rho_clip, c_clip=c.c_clip, pg_rho_clip=c.pg_rho_clip,
        )  # fmt: skip
        wanted = [policy.array(x.ravel()) for x in (advantages, targets)]
        losses = self._loss(*batch[:2], *wanted, *batch[2:])
        self.optimizer.step(lr=self.learning_rate, max_grad_norm=c.max_grad_norm)
        self._log = {name: float(value) for name, value in losses.items()}
        check_loss(self._log["loss"], self.steps, policy.vector)
        self.n_updates += 1
