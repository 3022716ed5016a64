"""What DDPG, TD3 and SAC share: settings, bounded Box actions, and how their networks are made."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.agent import Env
from fastrl.agents.config import InputError, check_buffer, check_range
from fastrl.agents.deploy import TorchPolicy
from fastrl.agents.networks import Network, own_network
from fastrl.agents.off_policy import INF, OffPolicyAgent
from fastrl.agents.training import check_loss
from fastrl.kernels import MLP, FlatAdam

CC = TypeVar("CC", bound="ContinuousConfig")


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


def clip(x: Any, bound: float) -> Any:
    """x in [-bound, bound]; for the small arrays here `np.clip` costs five times as much."""
    return np.minimum(np.maximum(x, -bound), bound) if isinstance(x, np.ndarray) else x.clamp(-bound, bound)


class ContinuousAgent(OffPolicyAgent[CC]):
    """Base of DDPG, TD3 and SAC: an actor with actions in [-1, 1]^A and `n_critics` critics, with target networks.

    Everything inside is in those units, the buffer too: actions are scaled to the bounds of the Box, and shaped like
    it, only on their way to the environment.  So what is learned does not depend on the units of the bounds.
    """

    n_critics: ClassVar[int]
    actor_outputs: ClassVar[int]  # for each dimension of the actions
    discrete = False
    _trained = {"actor": "actor_optimizer", "critics": "critic_optimizer"}  # noqa: RUF012

    def __init__(self, env: Env, config: CC | None = None, **overrides: Any) -> None:
        super().__init__(env, config, **overrides)
        c = self.config
        self.n_actions = int(np.prod(self.envs.action_space.shape or ()))
        self.buffer = self._replay(((self.n_actions,), np.float32))
        self.actor, self.critics = self._networks()
        self.target_critics = copy.deepcopy(self.critics)
        self.actor_optimizer = FlatAdam(self.actor.vector, self.actor.grad, lr=c.actor_learning_rate)
        self.critic_optimizer = FlatAdam(self.critics.vector, self.critics.grad, lr=c.learning_rate)
        self._log = {"loss": 0.0, "actor_loss": 0.0, "mean_q": 0.0}

    def _networks(self) -> tuple[Network, Network]:
        """The actor ``[B, obs]`` -> ``[B, A * actor_outputs]`` and the critics ``[B, obs + A]`` -> ``[n, B, 1]``."""
        this, device = type(self).__name__, str(self.device)
        given, hidden = {} if self._network is None else self._network, self.config.hidden
        if not isinstance(given, Mapping) or not set(given) <= {"actor", "critic"}:
            got = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
            raise InputError(f"{this}: network must be a dict with the keys actor, critic or one of them, got {got}")
        (n_obs, shape), n_actions, n_out = (
            (self._n_obs, self._obs_shape),
            self.n_actions,
            self.n_actions * self.actor_outputs,
        )
        n, seeds = self.n_critics, self._seeds
        actor: Network
        critics: Network
        if "actor" in given:
            actor = own_network(given["actor"], f"{this}: actor", [shape], n_out, seed=seeds[0], device=device)
        else:
            actor = MLP((n_obs, *hidden, n_out), seed=seeds[0], device=device)
        if "critic" in given:
            takes = [shape, (n_actions,)]
            critics = own_network(given["critic"], f"{this}: critic", takes, 1, n=n, seed=seeds[1], device=device)
        else:
            critics = MLP((n_obs + n_actions, *hidden, 1), n=n, seed=seeds[1], device=device)
        return actor, critics

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

    @property
    def actor_learning_rate(self) -> float:
        """The actor's learning rate now, which falls in the same proportion as the critics'."""
        c = self.config
        return c.actor_learning_rate * self.learning_rate / c.learning_rate

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

    def policy_to_torch(self) -> TorchPolicy:
        return TorchPolicy(self.actor, self.envs, tanh=True, units=(self._bias, self._scale))

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
