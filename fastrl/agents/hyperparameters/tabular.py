"""Hyperparameters of the agents that learn a table."""

from __future__ import annotations

from dataclasses import dataclass

from fastrl.agents.config import check_range

INF = float("inf")


@dataclass(frozen=True)
class TabularConfig:
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # The string under a setting is its help on the command line.
    num_envs: int = 1
    """Environments that share the table."""
    learning_rate: float = 0.1
    """At the start: Q(s, a) moves by this share of the TD error."""
    learning_rate_end: float = 0.1
    """From learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly; None: all of the run."""
    learning_rate_power: float = 0.0
    """The learning rate is divided by (visits of s, a)^power; above 1/2 Q converges in spite of chance."""
    learning_rate_horizon: float = 0.0  # H of Jin et al. 2018, arXiv:1807.03765
    """H: that divisor is ((H + visits) / (H + 1))^power, so that where rewards are many steps away what was learned
    before they were found is forgotten."""
    gamma: float = 0.99
    """Discount."""
    initial_value: float = 0.0
    """Of all Q at the start; a value too high makes the agent try everything."""
    epsilon_start: float = 1.0
    """Probability of a random action at the start."""
    epsilon_end: float = 0.05
    """Probability of a random action from epsilon_steps on."""
    epsilon_steps: int | None = None
    """Environment steps over which epsilon falls linearly; None: all of the run."""
    seed: int = 0
    """Of everything random: environments and exploration."""
    device: str = "cpu"
    """cpu: a table is not learned on a GPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs")
        check_range(self, 1, INF, "learning_rate_steps", "epsilon_steps")
        check_range(self, 1e-12, 1, "learning_rate")
        check_range(self, 0, 1, "learning_rate_end", "learning_rate_power", "gamma", "epsilon_start", "epsilon_end")
        check_range(self, -1e30, 1e30, "initial_value")
        check_range(self, 0, 1e12, "learning_rate_horizon")
        check_range(self, 0, 2**63 - 1, "seed")


@dataclass(frozen=True)
class SARSAConfig(TabularConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    lam: float = 0.0
    """Lambda: how fast the eligibility of what was done before decays, besides gamma; 0: one step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "lam")
