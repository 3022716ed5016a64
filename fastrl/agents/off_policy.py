"""What agents that learn from a replay buffer share: settings, the buffer, the loop of acting and updating.

`OffPolicyAgent` is the loop; `ContinuousAgent` adds an actor with bounded Box actions, critics Q(s, a) and their
targets.  The rule of an update is in the algorithm's own file.
"""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.agents.adam import Adam
from fastrl.agents.agent import Agent, Env
from fastrl.agents.config import InputError, check_buffer, check_range
from fastrl.agents.envs import Transition
from fastrl.agents.networks import (
    Actor,
    Critics,
    ParallelMLP,
    Pullback,
    building,
    clip_norm,
    input_scale,
    numpy_forward,
)
from fastrl.agents.training import check_loss
from fastrl.replay import Batch, PrioritizedReplay, ReplayBuffer

INF = float("inf")
C = TypeVar("C")
CC = TypeVar("CC", bound="ContinuousConfig")


class OffPolicyAgent(Agent[C]):
    """Base of the agents with a replay buffer: act, store, and every `train_every` steps a round of updates.

    A subclass has `_act`, `_update`, and what `Agent` wants; its config has the settings that are used here.
    """

    buffer: ReplayBuffer

    def __init__(self, env: Env, config: C | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        self._predict_rng = np.random.default_rng(self._predict_seed)
        self._reached: NDArray[Any] | None = None  # the observations after the last step
        self._input_scale = input_scale(self.envs.observation_space)
        self._last: dict[str, Tensor] = {}  # of the last update: their means, not read from the device yet, are logged

    def _replay(self, action_space: Any) -> ReplayBuffer:
        """An empty buffer as the config wants it, for actions of `action_space`."""
        c: Any = self.config
        space = (c.buffer_size, self.envs.observation_space, action_space, c.num_envs)
        settings: dict[str, Any] = {"n_step": c.n_step, "gamma": c.gamma, "device": self.device, "seed": c.seed}
        if not c.prioritized:
            return ReplayBuffer(*space, **settings)
        settings |= {"beta": c.per_beta, "beta_end": c.per_beta_end}
        if c.per_beta_steps is not None:
            settings["beta_steps"] = c.per_beta_steps
        return PrioritizedReplay(*space, **settings, alpha=c.per_alpha, eps=c.per_eps)

    def _inputs(self, obs: Any) -> Any:
        """Float32 observations, NumPy's or a tensor, as the networks take them: bytes 0..255 become 0..1."""
        return obs if self._input_scale is None else obs * self._input_scale

    def _begin(self, schedule_steps: int) -> None:
        c: Any = self.config
        super()._begin(schedule_steps)
        self._span_beta()
        if c.learning_starts >= schedule_steps:
            warnings.warn(
                f"learning_starts is {c.learning_starts}, so nothing is learned in {schedule_steps} steps", stacklevel=3
            )

    @abstractmethod
    def _act(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Actions ``[B, ...]`` of the exploring policy, as the buffer keeps them, for observations ``[B, ...]``."""

    @abstractmethod
    def _set_learning_rates(self) -> None:
        """Give the optimizers their learning rates of now."""

    @abstractmethod
    def _update(self) -> None:
        """One gradient step on a batch from the buffer."""

    def _to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """Actions as the environment takes them, from those of `_act`."""
        return action

    def _after_step(self, transition: Transition) -> None:
        """For what an algorithm keeps from step to step besides the buffer."""

    def _iterate(self) -> None:
        c: Any = self.config
        obs = self.envs.obs
        if self._reached is not None and obs is not self._reached:
            self.buffer.new_episodes()  # somebody has reset the environments since
        action = self._act(obs, self.rng)
        t = self.envs.step(self._to_env(action))
        self._reached = self.envs.obs
        self.buffer.add(obs, action, t.reward, t.next_obs, t.terminated, t.truncated, t.mask)
        self._after_step(t)
        before, self.steps = self.steps, self.steps + c.num_envs
        rounds = self.steps // c.train_every - before // c.train_every  # several environments may need several
        if self.steps > c.learning_starts and rounds:
            self._set_learning_rates()
            for _ in range(rounds * c.updates):
                self._update()

    def metrics(self) -> dict[str, float]:
        """For the logs: numbers of the last update, and the learning rate now."""
        if self._last:
            self._log |= {name: value.mean().item() for name, value in self._last.items()}
        return super().metrics()

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        self.metrics()  # brings the log up to date
        return super()._state()

    def _load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super()._load_state(state, tensors)
        self._span_beta()

    def _span_beta(self) -> None:
        c: Any = self.config
        if isinstance(self.buffer, PrioritizedReplay) and c.per_beta_steps is None and self.schedule_steps:
            self.buffer._beta_steps = self.schedule_steps


@dataclass(frozen=True)
class ContinuousConfig:
    """Hyperparameters of all agents on `ContinuousAgent`.  Schedules count environment steps from the start."""

    # Sources: [C] CleanRL's continuous-action scripts (ddpg, td3, sac), [S] Stable-Baselines3, [P] Schaul et al. 2016,
    # [F] Fujimoto et al. 2018 (TD3), [H] Haarnoja et al. 2018 (SAC).
    # The string under a setting is its help on the command line.
    prioritized: bool = False
    """Replay in proportion to |TD error|^alpha, corrected by importance weights."""
    n_step: int = 1
    """Rewards summed before the bootstrap; fewer at the end of an episode."""
    num_envs: int = 1
    """Environments stepped together."""
    hidden: tuple[int, ...] = (256, 256)  # [C] [S] [H]
    """Sizes of the hidden layers of actor and critics."""
    learning_rate: float = 1e-3
    """Of the critics' Adam, at the start."""
    learning_rate_end: float | None = None
    """Of the critics' Adam, from learning_rate_steps on; None: constant."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rates fall linearly; None: all of the run."""
    actor_learning_rate: float = 3e-4
    """Of the actor's Adam, at the start; falls in the same proportion as the critics'."""
    gamma: float = 0.99  # [C] [S] [F] [H]
    """Discount."""
    tau: float = 0.005  # [C] [S] [F] [H]
    """Target <- tau online + (1 - tau) target; 1 copies."""
    buffer_size: int = 1_000_000  # [C] [S] [F] [H]
    """Transitions kept for replay."""
    batch_size: int = 256  # [C] [S] [H]
    """Transitions in an update."""
    learning_starts: int = 1000
    """Environment steps with uniformly random actions before the first update."""
    train_every: int = 1  # [C] [S] [F] [H]
    """Environment steps from one round of updates to the next."""
    updates: int = 1  # [C] [S] [F] [H]
    """Updates in a round."""
    max_grad_norm: float | None = None  # [C] [S]
    """Gradients are scaled down to this norm; None leaves them alone."""
    per_alpha: float = 0.6  # [P]
    """Exponent of the priorities: 0 is uniform replay."""
    per_beta: float = 0.4  # [P]
    """Exponent of the importance weights at the start."""
    per_beta_end: float = 1.0  # [P]
    """Exponent of the importance weights from per_beta_steps on."""
    per_beta_steps: int | None = None  # [P]
    """Environment steps over which beta rises linearly; None: all of the run."""
    per_eps: float = 1e-6
    """Added to |TD error|, so that no priority is 0."""
    seed: int = 0
    """Of everything random: environments, initial weights, exploration, replay."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden")
        check_range(self, 1, 10**9, "buffer_size", "batch_size")
        check_range(self, 1, INF, "n_step", "train_every", "updates", "learning_rate_steps", "per_beta_steps")
        check_range(self, 0, INF, "learning_starts", "learning_rate_end", "per_alpha", "per_beta", "per_beta_end")
        check_range(self, 0, 2**63 - 1, "seed")
        check_range(self, 0, 1, "gamma")
        check_range(self, 1e-12, INF, "learning_rate", "actor_learning_rate", "max_grad_norm", "per_eps")
        check_range(self, 1e-12, 1, "tau")
        check_buffer(self)


class ContinuousAgent(OffPolicyAgent[CC]):
    """Base of DDPG, TD3 and SAC: an actor with actions in [-1, 1]^A and `n_critics` critics, with target networks.

    Everything inside is in those units, the buffer too: actions are scaled to the bounds of the Box, and shaped like
    it, only on their way to the environment.  So what is learned does not depend on the units of the bounds.
    """

    n_critics: ClassVar[int]
    actor_outputs: ClassVar[int]  # for each dimension of the actions
    discrete = False

    def __init__(self, env: Env, config: CC | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c, shape = self.config, self.envs.observation_space.shape
        assert shape is not None
        n_obs, self.n_actions = int(np.prod(shape)), int(np.prod(self.envs.action_space.shape or ()))
        self.buffer = self._replay(((self.n_actions,), np.float32))
        with building(c.seed):
            self.actor = Actor(n_obs, self.n_actions * self.actor_outputs, c.hidden).to(self.device)
            self.critics = Critics(self.n_critics, n_obs, self.n_actions, c.hidden).to(self.device)
        self.target_critics = copy.deepcopy(self.critics)
        self.actor_optimizer = Adam([self.actor.vector], c.actor_learning_rate)
        self.critic_optimizer = Adam([self.critics.vector], c.learning_rate)
        self._numpy_actor = numpy_forward(self.actor) if self.device.type == "cpu" else None
        self._log = {"loss": 0.0, "actor_loss": 0.0, "mean_q": 0.0}

    def _check_spaces(self) -> None:
        super()._check_spaces()
        space = self.envs.action_space
        assert isinstance(space, gym.spaces.Box)
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        ok = np.isfinite(low) & np.isfinite(high) & (low < high)
        if not ok.all():
            where = tuple(int(i) for i in np.argwhere(~ok)[0])
            name = f"dimension {where[0] if len(where) == 1 else where}" if where else "its one dimension"
            env = self.envs.env_id or "this environment"
            raise InputError(
                f"{type(self).__name__} needs finite action bounds with low < high; {env} has "
                f"[{low[where]:g}, {high[where]:g}] in {name}; gymnasium.wrappers.TransformAction can give it others"
            )
        self._bias, self._scale = high / 2 + low / 2, high / 2 - low / 2

    @abstractmethod
    def _explore(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        """Actions ``[B, A]`` as in training, after the uniformly random ones."""

    @abstractmethod
    def _mode(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """The best actions ``[B, A]``."""

    @property
    def learning_rate(self) -> float:
        """The critics' learning rate now: linear from learning_rate to learning_rate_end."""
        return self.config.learning_rate if self.config.learning_rate_end is None else super().learning_rate

    def _set_learning_rates(self) -> None:
        c = self.config
        self.critic_optimizer.param_groups[0]["lr"] = self.learning_rate
        self.actor_optimizer.param_groups[0]["lr"] = c.actor_learning_rate * self.learning_rate / c.learning_rate

    def _actor_output(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """The actor's output for observations ``[B, ...]``, as NumPy."""
        obs = self._inputs(np.asarray(obs, np.float32))
        if self._numpy_actor is not None:
            return self._numpy_actor(obs)
        with torch.no_grad():
            out: Tensor = self.actor(torch.from_numpy(obs).to(self.device))
            return out.cpu().numpy()

    def _act(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        if self.steps < self.config.learning_starts:
            return 2 * rng.random((len(obs), self.n_actions), np.float32) - 1
        action = self._explore(obs, rng)
        if not np.isfinite(action).all():
            check_loss(np.nan, self.steps)
        return action

    def _to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        space: Any = self.envs.action_space
        scaled = self._bias + self._scale * action.reshape(len(action), *space.shape)
        clipped: NDArray[Any] = np.clip(scaled.astype(space.dtype), space.low, space.high)  # against rounding
        return clipped

    def _predict(self, obs: NDArray[Any], deterministic: bool) -> NDArray[Any]:
        return self._to_env(self._mode(obs) if deterministic else self._explore(obs, self._predict_rng))

    def _sample(self) -> tuple[Batch, Tensor, Tensor]:
        """A batch, with its observations and next observations as the networks take them."""
        batch = self.buffer.sample(self.config.batch_size)
        return batch, self._inputs(batch.obs.float()), self._inputs(batch.next_obs.float())

    def _critic_step(self, obs: Tensor, action: Tensor, y: Tensor, batch: Batch) -> None:
        """A gradient step on L = sum_k mean_i w_i (Q_k(s_i, a_i) - y_i)^2, for y ``[B]``.

        With `prioritized`, w are the importance weights and the new priorities mean_k |Q_k - y|; else w = 1.
        """
        c = self.config
        q, pullback = self.critics.q(obs, action)
        error = q - y
        weighted = error * batch.weights if c.prioritized else error
        pullback.parameters((weighted * (2 / c.batch_size)).unsqueeze(2))
        self._descend(self.critics, self.critic_optimizer)
        loss = (weighted * error).sum() / c.batch_size
        self._last |= {"loss": loss, "mean_q": q}
        if isinstance(self.buffer, PrioritizedReplay):
            check_loss(loss.item(), self.steps)  # no priority can be made of a NaN
            self.buffer.update_priorities(batch.indices, error.abs().mean(0))

    def _actor_step(self, pullback: Pullback, d_out: Tensor) -> None:
        """A gradient step of the actor, from the gradient of its loss with respect to its outputs ``[B, ...]``."""
        pullback.parameters(d_out.unsqueeze(0))
        self._descend(self.actor, self.actor_optimizer)

    def _descend(self, network: ParallelMLP, optimizer: Adam) -> None:
        """A step down the gradient that `network` holds, whose norm is first scaled down to max_grad_norm if larger."""
        assert network.vector.grad is not None
        clip_norm(network.vector.grad, self.config.max_grad_norm)
        optimizer.step()

    def _update_targets(self) -> None:
        self.target_critics.vector.data.lerp_(self.critics.vector.data, self.config.tau)  # tau = 1 copies exactly

    def _switches(self) -> list[str]:
        c = self.config
        return ["prioritized"] * c.prioritized + [f"{c.n_step}-step"] * (c.n_step > 1)

    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "critics": self.critics,
            "target_critics": self.target_critics,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }


class DeterministicActorAgent(ContinuousAgent[CC]):
    """Base of DDPG and TD3: the actor's output, through tanh, is the action; it has a target network too."""

    actor_outputs = 1

    def __init__(self, env: Env, config: CC | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        self.target_actor = copy.deepcopy(self.actor)

    def _deterministic_actor_step(self, obs: Tensor) -> None:
        """A gradient step of the actor on L = - mean_i Q_1(s_i, mu(s_i)); the critics take no part in it."""
        out, actor_pullback = self.actor.linearize(obs)
        action = out.tanh()
        q, pullback = self.critics.q(obs, action, first=1)
        d_action = pullback.last_inputs(torch.full_like(q, -1 / len(obs)).unsqueeze(2), self.n_actions)
        self._actor_step(actor_pullback, d_action * (1 - action.square()))
        self._last["actor_loss"] = -q

    def _mode(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        mode: NDArray[np.float32] = np.tanh(self._actor_output(obs))
        return mode

    def _update_targets(self) -> None:
        super()._update_targets()
        self.target_actor.vector.data.lerp_(self.actor.vector.data, self.config.tau)

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "target_actor": self.target_actor}
