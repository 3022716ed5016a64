"""Hyperparameters of the agents whose actors, replay and learner are processes of their own, on Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastrl.agents.config import InputError, check_range
from fastrl.agents.hyperparameters.off_policy import DQNConfig, TD3Config
from fastrl.agents.hyperparameters.on_policy import A2CConfig
from fastrl.agents.hyperparameters.recurrent import R2D2Config

INF = float("inf")


@dataclass(frozen=True)
class ActorsConfig:
    """Hyperparameters of all agents whose actors are processes of their own."""

    # The string under a setting is its help on the command line.
    actors: int = 2
    """Processes that act, each in num_envs environments."""
    address: str | None = None
    """Of a Ray cluster that runs already (host:port, auto); None: Ray is started on this machine, and stopped."""
    broadcast_every: int = 1
    """Updates from one broadcast of the weights to the next."""
    timeout: float = 300.0
    """Seconds without an answer after which an actor or shard is replaced; if none of all has answered, the run ends
    with an error."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the algorithm
        check_range(self, 1, 10**4, "actors")
        check_range(self, 1, 10**9, "broadcast_every")
        check_range(self, 1, 10**6, "timeout")


@dataclass(frozen=True)
class ShardsConfig(ActorsConfig):
    """Hyperparameters of those with a prioritized replay buffer in processes of its own."""

    # Sources: [H] Horgan et al. 2018, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    shards: int = 1
    """Processes that hold an equal part of the replay buffer each."""
    chunk: int = 50  # [H]
    """Steps of each environment that an actor sends in one message; n-step returns do not go beyond it."""
    broadcast_every: int = 25  # [T]
    """Updates from one broadcast of the weights to the next."""
    prefetch: int = 8
    """Batches that are drawn, and whose priorities are sent back, together; two such requests are under way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        c: Any = self  # with the settings of the algorithm
        check_range(c, 1, 10**4, "shards", "prefetch")
        check_range(c, 1, 10**6, "chunk")
        this = type(self).__name__
        if not getattr(c, "prioritized", True):
            raise InputError(f"{this}: prioritized must be True, got False; per_alpha=0 draws uniformly")
        least = max(c.batch_size, c.chunk * c.num_envs) * c.shards
        if c.buffer_size < least:
            raise InputError(
                f"{this}: buffer_size must be >= {least}, got {c.buffer_size}: each of {c.shards} shards holds a batch "
                "and a chunk"
            )


@dataclass(frozen=True)
class ApeXConfig(ShardsConfig, DQNConfig):
    """Hyperparameters: DQN's, and the rates of actors, replay and learner.  Schedules count environment steps."""

    # Sources: [H] Horgan et al. 2018, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    double: bool = True  # [H]
    """The online network chooses the next action, the target network values it."""
    dueling: bool = True  # [H]
    """State value and advantages in separate streams."""
    prioritized: bool = True  # [H]
    """Always: replay in proportion to |TD error|^alpha (per_alpha 0: uniform), with importance weights."""
    n_step: int = 1  # [T]; [H] has 3
    """Rewards summed before the bootstrap; fewer at the end of an episode or of a chunk."""
    num_envs: int = 4
    """Environments of each actor, stepped together."""
    buffer_size: int = 100_000
    """Transitions kept for replay, in all shards together."""
    train_every: int = 2
    """Environment steps, of all actors, for a round of updates: who is ahead, actors or learner, waits."""
    epsilon_start: float = 0.4  # [H]
    """Probability of a random action in the first environment of the first actor."""
    epsilon_end: float = 0.4**8  # [H]
    """The same in the last environment of the last actor; between them it falls geometrically."""
    epsilon_steps: int = 1  # [H]
    """Environment steps over which every environment's epsilon falls from 1 to its own."""


@dataclass(frozen=True)
class ApeXDPGConfig(ShardsConfig, TD3Config):
    """Hyperparameters: TD3's, and the rates of actors, replay and learner.  Schedules count environment steps."""

    # Sources: [H] Horgan et al. 2018, [T] tuned here on Pendulum-v1.
    # The string under a setting is its help on the command line.
    prioritized: bool = True  # [H]
    """Always: replay in proportion to |TD error|^alpha (per_alpha 0: uniform), with importance weights."""
    n_step: int = 1  # [T]; [H] has 5
    """Rewards summed before the bootstrap; fewer at the end of an episode or of a chunk."""
    num_envs: int = 4
    """Environments of each actor, stepped together."""
    batch_size: int = 128  # [T]
    """Transitions in an update."""
    train_every: int = 1
    """Environment steps, of all actors, for a round of updates: who is ahead, actors or learner, waits."""
    lap: bool = False
    """Not here: the shards have the priorities of `prioritized`."""
    lap_alpha: float = 0.4
    """Not here, as `lap`."""

    def __post_init__(self) -> None:
        for name in ("lap", "lap_alpha"):
            if getattr(self, name) != getattr(type(self), name):
                given, wanted = getattr(self, name), getattr(type(self), name)
                raise InputError(f"ApeXDPGConfig: {name} must be {wanted}, got {given}: shards have other priorities")
        super().__post_init__()


@dataclass(frozen=True)
class ApeXR2D2Config(ShardsConfig, R2D2Config):
    """Hyperparameters: R2D2's, and the rates of actors, replay and learner.  Schedules count environment steps."""

    # Sources: [H] Horgan et al. 2018, [K] Kapturowski et al. 2019.
    # The string under a setting is its help on the command line.
    chunk: int = 64
    """Steps of each environment that an actor sends in one message, cut into sequences."""
    epsilon_start: float = 0.4  # [H] [K]
    """Probability of a random action in the first environment of the first actor."""
    epsilon_end: float = 0.4**8  # [H] [K]
    """The same in the last environment of the last actor; between them it falls geometrically."""
    epsilon_steps: int = 1  # [H] [K]
    """Environment steps over which every environment's epsilon falls from 1 to its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.burn_in + self.length
        if self.chunk < least:
            raise InputError(f"ApeXR2D2Config: chunk must be >= burn_in + length = {least}, got {self.chunk}")


@dataclass(frozen=True)
class IMPALAConfig(ActorsConfig, A2CConfig):
    """Hyperparameters: A2C's, of which some have another meaning, and V-trace's.  The learning rate's schedule counts
    environment steps."""

    # Sources: [E] Espeholt et al. 2018, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    num_envs: int = 4  # [T]
    """Environments of each actor, stepped together."""
    n_steps: int = 20  # [E] has 20 to 100
    """Steps of each environment that an actor sends in one message, from which one update is made."""
    gae_lambda: float = 1.0  # [E]
    """lambda of V-trace."""
    rho_clip: float = 1.0  # [E]
    """Ratios of probabilities are clipped to it in V-trace's TD errors."""
    c_clip: float = 1.0  # [E]
    """Ratios of probabilities are clipped to it in V-trace's traces."""
    pg_rho_clip: float = 1.0  # [E]
    """Ratios of probabilities are clipped to it in the advantages of the policy gradient."""
    gamma: float = 0.99  # [E]
    """Discount."""
    normalize_advantages: bool = False  # [E]
    """Mean 0 and standard deviation 1 within each update."""
    max_grad_norm: float | None = 0.5  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    normalize_obs: bool = False
    """Not here: each actor would have statistics of its own."""
    normalize_rewards: bool = False
    """Not here: each actor would have statistics of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, INF, "rho_clip", "c_clip", "pg_rho_clip")
        for name in ("normalize_obs", "normalize_rewards"):
            if getattr(self, name):
                raise InputError(f"IMPALAConfig: {name} must be False, got True: actors' statistics would differ")
