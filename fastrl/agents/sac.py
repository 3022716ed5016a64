"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290 and arXiv:1812.05905), with switches in any combination:

temperature  fixed, or tuned to a target entropy
prioritized  Schaul et al. 2016, arXiv:1511.05952
n_step       Sutton and Barto 2018, section 7.1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastrl.agents.adam import Adam
from fastrl.agents.agent import Env
from fastrl.agents.config import InputError, check_range
from fastrl.agents.off_policy import INF, ContinuousAgent, ContinuousConfig
from fastrl.kernels import Generator, tanh_normal_mode, tanh_normal_sample


@dataclass(frozen=True)
class SACConfig(ContinuousConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [H] Haarnoja et al. 2018 (second paper), [C] CleanRL's sac_continuous_action, [S] Stable-Baselines3.
    # The string under a setting is its help on the command line.
    learning_rate: float = 1e-3  # [C]
    """Of the critics' Adam, and of the temperature's, at the start."""
    actor_learning_rate: float = 3e-4  # [H] [C] [S]
    """Of the actor's Adam, at the start; falls in the same proportion as the critics'."""
    temperature: float | None = None  # [H] [C] [S]
    """Weight of the entropy; None: tuned so that the policy has the target entropy."""
    initial_temperature: float = 1.0  # [C] [S]
    """Where the tuning starts."""
    target_entropy: float | None = None  # [H] [C] [S]
    """Of the policy, where the actions' range is [-1, 1]; None: minus the number of action dimensions."""
    log_std_min: float = -20.0  # [H] [S]
    """The log standard deviation before the tanh is at least this."""
    log_std_max: float = 2.0  # [H] [S]
    """The log standard deviation before the tanh is at most this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1e12, "temperature")  # the losses have its square, in float32
        check_range(self, 1e-12, 1e12, "initial_temperature")
        check_range(self, -INF, INF, "target_entropy")
        check_range(self, -20, 5, "log_std_min", "log_std_max")
        if self.log_std_min > self.log_std_max:
            raise InputError(
                f"SACConfig: log_std_min must be at most log_std_max, got {self.log_std_min!r} and {self.log_std_max!r}"
            )


class SAC(ContinuousAgent[SACConfig]):
    """Soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290 and arXiv:1812.05905).

    Critics: sum_k mean w (Q_k(s, a) - y)^2 with y = r + gamma (1 - terminated) [min_k Q'_k(s', a') - alpha log
    pi(a'|s')].  Actor: mean [alpha log pi(a|s) - min_k Q_k(s, a)], a ~ pi(.|s).  Temperature: -log(alpha) mean
    [log pi(a|s) + target_entropy].

    For bounded Box actions; observations are Boxes, which an MLP sees flattened.

    `env`: an id, an environment, or a Gymnasium vector environment in any autoreset mode.  `config` and keyword
    overrides set the hyperparameters of `SACConfig`.  Raises InputError for anything that cannot work.

    >>> agent = SAC("Pendulum-v1", seed=0).learn(20_000)
    >>> agent.evaluate().mean()
    """

    algorithm = "sac"
    config_class = SACConfig
    n_critics = 2
    actor_outputs = 2  # mean and log standard deviation before the tanh

    def __init__(self, env: Env, config: SACConfig | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c = self.config
        self.target_entropy = -float(self.n_actions) if c.target_entropy is None else c.target_entropy
        start = c.initial_temperature if c.temperature is None else c.temperature
        # As a logarithm, so that it stays positive; of a fixed temperature 0 it is -inf.
        log = nn.Parameter(
            torch.tensor(math.log(start) if start else -INF, dtype=torch.float32, device=self.device),
            requires_grad=False,
        )
        self.temperature = nn.ParameterDict({"log": log})
        self.temperature_optimizer = Adam([log], c.learning_rate) if c.temperature is None else None
        # Not the seed itself: these draws have to be independent of the buffer's.
        seeds = [int(seed) for seed in np.random.SeedSequence(c.seed).generate_state(3, np.uint64)]
        self.generator = Generator(seeds[0], self.device)  # of the updates
        self._action_generator, self._predict_generator = Generator(seeds[1]), Generator(seeds[2])
        self._log |= {"temperature": start, "entropy": 0.0}

    def _set_learning_rates(self) -> None:
        super()._set_learning_rates()
        if self.temperature_optimizer is not None:
            self.temperature_optimizer.param_groups[0]["lr"] = self.learning_rate

    def _update(self) -> None:
        """One gradient step of the critics, of the actor and of the temperature alpha, and then the targets' turn.

        y = sum_{k<m} gamma^k r_k + gamma^m (1 - terminated) [min_k Q_target,k(s', a') - alpha log pi(a'|s')], where s'
        is m <= n_step steps on, at the end of the episode at most, and a' ~ pi(.|s').  Truncation does not stop the
        bootstrap.  Critics: L = sum_k mean_i w_i (Q_k(s_i, a_i) - y_i)^2.
        Actor: L = mean_i [alpha log pi(a|s_i) - min_k Q_k(s_i, a)], a ~ pi(.|s_i), through the reparameterisation.
        Temperature: L = - log(alpha) mean_i [log pi(a|s_i) + target_entropy].
        """
        batch, obs, next_obs = self._sample()
        c, n, temperature = self.config, self.n_actions, self.temperature["log"].exp()
        next_action, next_log_prob = self._draw(self.actor(next_obs), self.generator)
        next_q = self.target_critics(next_obs, next_action).amin(0)
        y = batch.reward + batch.discount * (next_q - temperature * next_log_prob)
        self._critic_step(obs, batch.action, y, batch)

        out, actor_pullback = self.actor.linearize(obs)
        out.requires_grad_()  # autograd for the sample alone
        action, log_prob = self._draw(out, self.generator)
        entropy = -log_prob.detach().mean()
        (q0, q1), pullback = self.critics.q(obs, action.detach())
        d_q = torch.stack((q0 <= q1, q0 > q1)).to(q0.dtype) / -c.batch_size  # -1/B for the lower of the two
        d_action = pullback.last_inputs(d_q.unsqueeze(2), n)
        torch.autograd.backward((action, log_prob), (d_action, (temperature / c.batch_size).expand_as(log_prob)))
        assert out.grad is not None
        self._actor_step(actor_pullback, out.grad)

        if self.temperature_optimizer is not None:
            self.temperature["log"].grad = entropy - self.target_entropy
            self.temperature_optimizer.step()
        self._update_targets()
        self.n_updates += 1
        actor_loss = -temperature * entropy - torch.minimum(q0, q1)
        self._last |= {"actor_loss": actor_loss, "temperature": temperature, "entropy": entropy}

    def _draw(self, out: Any, generator: Generator) -> tuple[Any, Any]:
        c, n = self.config, self.n_actions
        bounds: dict[str, Any] = {"log_std_min": c.log_std_min, "log_std_max": c.log_std_max}
        drawn: tuple[Any, Any] = tanh_normal_sample(out[:, :n], out[:, n:], generator=generator, **bounds)
        return drawn

    def _explore(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        generator = self._action_generator if rng is self.rng else self._predict_generator
        action: NDArray[np.float32] = self._draw(self._actor_output(obs), generator)[0]
        return action

    def _mode(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        mode: NDArray[np.float32] = tanh_normal_mode(self._actor_output(obs)[:, : self.n_actions])
        return mode

    def _switches(self) -> list[str]:
        return ["fixed temperature"] * (self.temperature_optimizer is None) + super()._switches()

    def _parts(self) -> dict[str, Any]:
        tuned = {} if self.temperature_optimizer is None else {"temperature_optimizer": self.temperature_optimizer}
        generators = {"generator": self.generator, "action_generator": self._action_generator}
        return {**super()._parts(), "temperature": self.temperature, **tuned, **generators}
