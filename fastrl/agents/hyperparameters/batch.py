"""Hyperparameters of the agents that learn from a fixed batch of transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastrl.agents.config import check_range

INF = float("inf")


@dataclass(frozen=True)
class FQIConfig:
    """Hyperparameters.  The steps of the agent, and those of schedules, are iterations."""

    # Sources: [E] Ernst et al. 2005, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    regressor: Literal["auto", "table", "trees", "network"] = "auto"
    """What Q is fitted by: the mean of each cell (table), extremely randomised trees, or MLPs (network); auto: a table
    for Discrete observations, else a network."""
    dataset: str | None = None
    """A file or storage folder of a replay buffer, or the id of a Minari dataset on this machine; None: random play."""
    transitions: int | None = None
    """How many are learned from: the newest of the dataset (None: all), or of random play (None: 20,000)."""
    num_envs: int = 1
    """Environments that the random policy plays in."""
    gamma: float = 0.99
    """Discount."""
    networks: int = 5  # [T]; 1 is Riedmiller's
    """MLPs of the regressor network, each with its own weights; Q is the least of theirs, so that what the
    transitions do not show is not overestimated."""
    hidden: tuple[int, ...] = (64, 64)  # [T]
    """Sizes of the hidden layers of each MLP."""
    epochs: int = 2  # [T]
    """Passes of the MLPs over all transitions in an iteration."""
    batch_size: int = 256  # [T]
    """Transitions in a gradient step of the MLPs."""
    learning_rate: float = 1e-3  # [T]
    """Of Adam, at the start."""
    learning_rate_end: float = 1e-3
    """Of Adam, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Iterations over which the learning rate falls linearly; None: all of the run."""
    trees: int = 50  # [E]
    """Trees of each action."""
    min_split: int = 5  # [T]
    """Transitions that a node of a tree must have to be split; more of them smooth."""
    seed: int = 0
    """Of everything random: environments, random play, initial weights, minibatches, trees."""
    device: str = "cpu"
    """cpu."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden", "trees")
        check_range(self, 1, 1024, "networks")
        check_range(self, 1, 10**9, "transitions", "batch_size", "epochs", "learning_rate_steps")
        check_range(self, 2, 10**9, "min_split")
        check_range(self, 0, 1, "gamma")
        check_range(self, 1e-12, INF, "learning_rate")
        check_range(self, 0, INF, "learning_rate_end")
        check_range(self, 0, 2**63 - 1, "seed")
