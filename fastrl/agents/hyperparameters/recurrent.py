"""Hyperparameters of the recurrent agents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastrl.agents.config import InputError, check_buffer, check_range
from fastrl.agents.hyperparameters.on_policy import PPOConfig

INF = float("inf")


@dataclass(frozen=True)
class R2D2Config:
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [K] Kapturowski et al. 2019, [D] DQN's here, [T] tried here on fastrl/TMaze-v0.
    # The string under a setting is its help on the command line.
    network: Literal["lstm", "gru"] = "lstm"  # [K]
    """The network's memory, between its hidden layers and its outputs."""
    hidden: tuple[int, ...] = (64,)  # [T]
    """Sizes of the hidden layers before the memory."""
    memory_size: int = 64  # [T]
    """Units of the memory."""
    double: bool = True  # [K]
    """The online network chooses the next action, the target network values it."""
    dueling: bool = True  # [K]
    """State value and advantages in separate streams."""
    rescaling: bool = False  # [T] returns here are small; [K] rescales those of Atari
    """Q is learned as h(Q), with h(x) = sign(x) (sqrt(|x| + 1) - 1) + x / 1000, for rewards of very different sizes."""
    length: int = 32  # [T]; [K] has 80
    """Steps of a sequence that are trained on; gradients go that far back."""
    burn_in: int = 0  # [T]; [K] has 40
    """Steps before them, to bring the stored state up to date; the first ones of an episode are not trained on then."""
    n_step: int = 5  # [K]
    """Rewards summed before the bootstrap; fewer at the end of an episode or of a sequence."""
    num_envs: int = 4
    """Environments stepped together."""
    learning_rate: float = 1e-3  # [T]
    """Of Adam, at the start."""
    learning_rate_end: float = 3e-4  # [D]
    """Of Adam, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly; None: all of the run."""
    gamma: float = 0.99  # [D]
    """Discount."""
    buffer_size: int = 100_000  # [D]
    """Transitions kept for replay."""
    batch_size: int = 32  # [T]; [K] has 64
    """Sequences in an update."""
    learning_starts: int = 1000  # [D]
    """Environment steps before the first update."""
    train_every: int = 8  # [T]
    """Environment steps from one round of updates to the next."""
    updates: int = 1
    """Updates in a round."""
    target_every: int = 1
    """Updates from one update of the target network to the next."""
    tau: float = 0.02  # [D]
    """Target <- tau online + (1 - tau) target: 1 copies, less is Polyak averaging."""
    averaging: bool = True  # [D]
    """The greedy policy has the mean weights of about the last tenth of the updates, not those of the moment."""
    loss: Literal["huber", "mse"] = "mse"  # [K]
    """Of the TD error."""
    max_grad_norm: float | None = 1.0  # [D]
    """Gradients are scaled down to this norm; None leaves them alone."""
    epsilon_start: float = 1.0  # [D]
    """Probability of a random action at the start."""
    epsilon_end: float = 0.04  # [D]
    """Probability of a random action from epsilon_steps on."""
    epsilon_steps: int = 8000  # [D]
    """Environment steps over which epsilon falls linearly."""
    eta: float = 0.9  # [K]
    """A sequence's priority: eta max |TD error| + (1 - eta) mean |TD error|, over its steps."""
    per_alpha: float = 0.9  # [K]
    """Exponent of the priorities: 0 is uniform replay."""
    per_beta: float = 0.6  # [K]
    """Exponent of the importance weights at the start."""
    per_beta_end: float = 0.6  # [K]
    """Exponent of the importance weights from per_beta_steps on."""
    per_beta_steps: int | None = None
    """Environment steps over which beta changes linearly; None: all of the run."""
    per_eps: float = 1e-6
    """Added to the TD errors' mixture, so that no priority is 0."""
    seed: int = 0
    """Of everything random: environments, initial weights, exploration, replay."""
    device: str = "cpu"
    """The CPU is the one device of this agent."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden", "memory_size")
        check_range(self, 1, 10**9, "buffer_size", "batch_size")
        check_range(self, 1, 10**9, "n_step", "train_every")
        check_range(self, 1, 10**6, "updates", "length")
        check_range(self, 0, 10**6, "burn_in")
        check_range(self, 1, 10**12, "target_every", "learning_rate_steps", "epsilon_steps", "per_beta_steps")
        check_range(self, 0, 10**12, "learning_starts")
        check_range(self, 0, INF, "learning_rate_end", "per_alpha", "per_beta", "per_beta_end")
        check_range(self, 0, 2**63 - 1, "seed")
        check_range(self, 0, 1, "gamma", "epsilon_start", "epsilon_end", "eta")
        check_range(self, 1e-12, INF, "learning_rate", "max_grad_norm", "per_eps")
        check_range(self, 1e-12, 1, "tau")
        check_buffer(self)
        least = self.num_envs * (self.burn_in + self.length)
        if self.buffer_size < least:
            raise InputError(
                f"R2D2Config: buffer_size must be >= num_envs (burn_in + length) = {least}, got {self.buffer_size}"
            )


@dataclass(frozen=True)
class RecurrentPPOConfig(PPOConfig):
    """Hyperparameters: PPO's, with other defaults, and the memory's."""

    # Sources: [P] Schulman et al. 2017, [H] Huang et al. 2022; [T] tried here on fastrl/TMaze-v0, and not tuned.
    # The string under a setting is its help on the command line.
    objective: Literal["clip"] = "clip"  # [P]
    """The ratio of probabilities is clipped."""
    network: Literal["lstm", "gru"] = "lstm"  # type: ignore[assignment]  # [H]
    """The network's memory, between its hidden layers and its outputs."""
    hidden: tuple[int, ...] = (64,)  # [T]
    """Sizes of the hidden layers before the memory."""
    memory_size: int = 64  # [T]
    """Units of the memory."""
    shared_network: bool = True  # [H]
    """Always: policy and value have the hidden layers and the memory in common."""
    n_steps: int = 64  # [T]
    """Steps of each environment from one update to the next; gradients go that far back."""
    epochs: int = 10  # [T]
    """Passes over the environments in an update."""
    minibatches: int = 1
    """Equal parts of the environments, a gradient step each, with all their steps."""
    gamma: float = 0.99  # [H]
    """Discount."""
    gae_lambda: float = 0.95  # [H]
    """lambda of GAE: 0 is the one-step TD error, 1 the whole return."""
    entropy_coef: float = 0.01  # [H]
    """Weight of the entropy, which is maximised."""
    device: str = "cpu"
    """The CPU is the one device of this agent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 2**16, "memory_size")
        if not self.shared_network:
            raise InputError("RecurrentPPOConfig: shared_network must be True, got False")
        if self.minibatches > self.num_envs:
            raise InputError(
                f"RecurrentPPOConfig: minibatches must be <= num_envs, got {self.minibatches} and {self.num_envs}"
            )
