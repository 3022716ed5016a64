"""Hyperparameters of the agents whose actors, replay and learner are processes of their own, on Ray."""

from __future__ import annotations

from dataclasses import dataclass

from fastrl.agents.config import InputError, check_range
from fastrl.agents.hyperparameters.off_policy import DQNConfig


@dataclass(frozen=True)
class ApeXConfig(DQNConfig):
    """Hyperparameters: DQN's, and the rates of actors, replay and learner.  Schedules count environment steps."""

    # Sources: [H] Horgan et al. 2018, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    actors: int = 2
    """Processes that act, each in num_envs environments."""
    shards: int = 1
    """Processes that hold an equal part of the replay buffer each."""
    address: str | None = None
    """Of a Ray cluster that runs already (host:port, auto); None: Ray is started on this machine, and stopped."""
    chunk: int = 50  # [H]
    """Steps of each environment that an actor sends in one message; n-step returns do not go beyond it."""
    broadcast_every: int = 25  # [T]
    """Updates from one broadcast of the weights to the next."""
    prefetch: int = 8
    """Batches that are drawn, and whose priorities are sent back, together; two such requests are under way."""
    timeout: float = 300.0
    """Seconds without a sign of life of any actor or shard after which the run ends with an error."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 10**4, "actors", "shards", "prefetch")
        check_range(self, 1, 10**6, "chunk")
        check_range(self, 1, 10**9, "broadcast_every")
        check_range(self, 1, 10**6, "timeout")
        if not self.prioritized:
            raise InputError("ApeXConfig: prioritized must be True, got False; per_alpha=0 draws uniformly")
        least = max(self.batch_size, self.chunk * self.num_envs) * self.shards
        if self.buffer_size < least:
            raise InputError(
                f"ApeXConfig: buffer_size must be >= {least}, so that each of {self.shards} shards holds a batch and a "
                f"chunk, got {self.buffer_size}"
            )
