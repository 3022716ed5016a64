"""What agents for bounded Box actions share: units, the networks of actor and critics, a deterministic actor."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters.off_policy import BoxConfig, ContinuousConfig
from fastrl.agents.networks import Network, own_network
from fastrl.agents.off_policy import OffPolicyAgent
from fastrl.agents.training import check_loss
from fastrl.kernels import MLP, FlatAdam, tanh_normal_mode

BC = TypeVar("BC", bound="BoxConfig")
CC = TypeVar("CC", bound="ContinuousConfig")


def clip(x: Any, bound: float) -> Any:
    """x in [-bound, bound]; for the small arrays here `np.clip` costs five times as much."""
    return np.minimum(np.maximum(x, -bound), bound) if isinstance(x, np.ndarray) else x.clamp(-bound, bound)


class BoxAgent(OffPolicyAgent[BC]):
    """Base of the agents with a replay buffer and bounded Box actions, which are in [-1, 1]^A in here.

    Everything inside is in those units, the buffer too: actions are scaled to the bounds of the Box, and shaped like
    it, only on their way to the environment.  So what is learned does not depend on the units of the bounds.
    """

    discrete = False

    def __init__(self, env: Env, config: BC | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        self.n_actions = int(np.prod(self.envs.action_space.shape or ()))
        self.buffer = self._replay(((self.n_actions,), np.float32))

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
        """The learning rate now: linear from learning_rate to learning_rate_end."""
        return self.config.learning_rate if self.config.learning_rate_end is None else super().learning_rate

    def _act(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        if self.steps < self.config.learning_starts:
            return 2 * rng.random((len(obs), self.n_actions), np.float32) - 1
        action = self._explore(obs, rng)
        if not np.vdot(action, action) < 2 * action.size:  # a NaN, in [-1, 1] otherwise
            check_loss(np.nan, self.steps)
        return action

    def _to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        space: Any = self.envs.action_space
        scaled = self._bias + self._scale * action.reshape(len(action), *space.shape)
        sent: NDArray[Any] = np.minimum(
            np.maximum(scaled.astype(space.dtype), space.low), space.high
        )  # against rounding
        return sent

    def _predict(self, obs: NDArray[Any], deterministic: bool) -> NDArray[Any]:
        return self._to_env(self._mode(obs) if deterministic else self._explore(obs, self._predict_rng))

    def _switches(self) -> list[str]:
        c = self.config
        return ["prioritized"] * c.prioritized + [f"{c.n_step}-step"] * (c.n_step > 1)

    def _parts(self) -> dict[str, Any]:
        return {}


class ContinuousAgent(BoxAgent[CC]):
    """Base of DDPG, D4PG, TD3, SAC, TQC and CrossQ: an actor and `n_critics` critics, with target networks or not."""

    has_targets: ClassVar[bool] = True
    n_critics: ClassVar[int]
    actor_outputs: ClassVar[int]  # for each dimension of the actions
    _trained = {"actor": "actor_optimizer", "critics": "critic_optimizer"}  # noqa: RUF012

    def __init__(self, env: Env, config: CC | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c = self.config
        self.actor, self.critics = self._networks()
        if self.has_targets:
            self.target_critics = copy.deepcopy(self.critics)
        self.actor_optimizer = FlatAdam(self.actor.vector, self.actor.grad, lr=c.actor_learning_rate, beta1=self._beta1)
        self.critic_optimizer = FlatAdam(self.critics.vector, self.critics.grad, lr=c.learning_rate, beta1=self._beta1)
        self._log = {"loss": 0.0, "actor_loss": 0.0, "mean_q": 0.0}

    def _critic_shape(self) -> tuple[int, int]:
        """How many critics there are, and of how many outputs each."""
        return self.n_critics, 1

    def _networks(self) -> tuple[Network, Network]:
        """The actor ``[B, obs]`` -> ``[B, A * actor_outputs]`` the critics ``[B, obs + A]`` -> ``[n, B, outputs]``."""
        this, device = type(self).__name__, self.device
        given, hidden = {} if self._network is None else self._network, self.config.hidden
        if not isinstance(given, Mapping) or not set(given) <= {"actor", "critic"}:
            got = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
            raise InputError(f"{this}: network must be a dict with the keys actor, critic or one of them, got {got}")
        (n_obs, shape), n_actions, n_out = (
            (self._n_obs, self._obs_shape),
            self.n_actions,
            self.n_actions * self.actor_outputs,
        )
        (n, out), seeds = self._critic_shape(), self._seeds
        actor: Network
        critics: Network
        if "actor" in given:
            actor = own_network(given["actor"], f"{this}: actor", [shape], n_out, seed=seeds[0], device=device)
        else:
            actor = MLP((n_obs, *hidden, n_out), seed=seeds[0], device=device)
        if "critic" in given:
            takes = [shape, (n_actions,)]
            critics = own_network(given["critic"], f"{this}: critic", takes, out, n=n, seed=seeds[1], device=device)
        else:
            critics = MLP((n_obs + n_actions, *hidden, out), n=n, seed=seeds[1], device=device)
        return actor, critics

    @property
    def _beta1(self) -> float:
        """Of Adam."""
        return 0.9

    @property
    def actor_learning_rate(self) -> float:
        """The actor's learning rate now, which falls in the same proportion as the critics'."""
        c = self.config
        return c.actor_learning_rate * self.learning_rate / c.learning_rate

    def _deploy(self, deploy: Any) -> Any:
        return deploy.TorchPolicy(self.actor, self.envs, tanh=True, units=(self._bias, self._scale))

    def _parts(self) -> dict[str, Any]:
        return {
            **super()._parts(),
            "actor": self.actor,
            "critics": self.critics,
            **({"target_critics": self.target_critics} if self.has_targets else {}),
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }


class DeterministicAgent(ContinuousAgent[CC]):
    """Base of DDPG, D4PG and TD3: the actor is mu(s) = tanh(out), and has a target network, too."""

    actor_outputs = 1

    def __init__(self, env: Env, config: CC | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        self.target_actor = copy.deepcopy(self.actor)

    def _mode(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        mode: NDArray[np.float32] = tanh_normal_mode(self._forward(self.actor, obs))
        return mode

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "target_actor": self.target_actor}
