"""Hyperparameters of the agents with a replay buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastrl.agents.config import InputError, check_buffer, check_range

INF = float("inf")


@dataclass(frozen=True)
class DQNConfig:
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [M] Mnih et al. 2015, [S] Schaul et al. 2016, [Z] rl-baselines3-zoo's tuned settings for CartPole-v1,
    # [T] tuned here on CartPole-v1; `bench/learning.py` shows what they reach.
    # The string under a setting is its help on the command line.
    double: bool = False
    """The online network chooses the next action, the target network values it."""
    dueling: bool = False
    """State value and advantages in separate streams."""
    prioritized: bool = False
    """Replay in proportion to |TD error|^alpha, corrected by importance weights."""
    n_step: int = 1
    """Rewards summed before the bootstrap; fewer at the end of an episode.  They are those of old actions: a
    buffer_size much smaller than the run forgets the random beginning."""
    distributional: Literal["c51", "qr", "iqn"] | None = None
    """The distribution of returns is learned: c51 on fixed atoms, qr by quantiles, iqn by quantiles at random taus; its
    mean is Q."""
    noisy: bool = False
    """Noisy layers explore, and epsilon falls to 0: without its beginning CartPole is not learned."""
    rainbow: bool = False
    """double, dueling, prioritized and noisy, and unless others are given c51 and 3 steps; the agent's keywords and
    options that say otherwise are refused, but False in a DQNConfig is as if left out."""
    atoms: int = 51  # Bellemare et al. 2017
    """Atoms of c51, or quantiles of qr."""
    v_min: float = -100.0
    """The lowest atom of c51: returns below count as this."""
    v_max: float = 100.0
    """The highest atom of c51: returns above count as this."""
    num_tau_samples: int = 8  # Dabney et al. 2018, IQN
    """Random quantiles of iqn that are learned of a transition, N."""
    num_tau_prime_samples: int = 8  # Dabney et al. 2018, IQN
    """Random quantiles of iqn that are its target, N'."""
    num_quantile_samples: int = 32  # Dabney et al. 2018, IQN
    """Quantiles of iqn whose mean is the Q by which actions are chosen, K: the midpoints, in place of random ones."""
    quantile_embedding_dim: int = 64  # Dabney et al. 2018, IQN
    """Cosines by which iqn sees a tau."""
    sigma: float = 0.5  # Fortunato et al. 2018
    """Noise of the noisy layers at the start, times 1 / sqrt(inputs)."""
    num_envs: int = 1
    """Environments stepped together."""
    network: Literal["auto", "mlp", "nature", "impala"] = "auto"
    """The ready-made network: an MLP, or a convolutional one for images; auto: nature for images of bytes."""
    hidden: tuple[int, ...] = (128, 128)  # [T]
    """Sizes of the hidden layers of an MLP."""
    learning_rate: float = 1e-3  # [T]
    """Of Adam, at the start."""
    learning_rate_end: float = 3e-4  # [T] a policy learned at a constant rate is lost again now and then
    """Of Adam, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly; None: all of the run."""
    gamma: float = 0.99  # [M] [Z]
    """Discount."""
    buffer_size: int = 100_000  # [Z]
    """Transitions kept for replay."""
    batch_size: int = 64  # [Z]
    """Transitions in an update."""
    learning_starts: int = 1000  # [Z]
    """Environment steps before the first update."""
    train_every: int = 2  # [T]
    """Environment steps from one round of updates to the next."""
    updates: int = 1
    """Updates in a round."""
    target_every: int = 1
    """Updates from one update of the target network to the next."""
    tau: float = 0.02  # [T]
    """Target <- tau online + (1 - tau) target: 1 copies, less is Polyak averaging."""
    averaging: bool = True  # [T]
    """The greedy policy has the mean weights of about the last tenth of the updates, not those of the moment."""
    loss: Literal["huber", "mse"] = "mse"  # [T] Huber's bounded gradient is slow to learn that an episode ends
    """Of the TD error; distributions have losses of their own."""
    max_grad_norm: float | None = 1.0  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    exploration: Literal["epsilon-greedy", "boltzmann"] = "epsilon-greedy"  # [M]
    """How actions are chosen in training."""
    epsilon_start: float = 1.0  # [M]
    """Probability of a random action at the start."""
    epsilon_end: float = 0.04  # [Z]
    """Probability of a random action from epsilon_steps on."""
    epsilon_steps: int = 8000  # [Z]
    """Environment steps over which epsilon falls linearly."""
    temperature: float = 1.0
    """Of Boltzmann exploration: the probability of an action is proportional to exp(Q / temperature)."""
    per_alpha: float = 0.6  # [S]
    """Exponent of the priorities: 0 is uniform replay."""
    per_beta: float = 0.4  # [S]
    """Exponent of the importance weights at the start."""
    per_beta_end: float = 1.0  # [S]
    """Exponent of the importance weights from per_beta_steps on."""
    per_beta_steps: int | None = None  # [S]
    """Environment steps over which beta rises linearly; None: all of the run."""
    per_eps: float = 1e-6
    """Added to |TD error|, so that no priority is 0."""
    seed: int = 0
    """Of everything random: environments, initial weights, exploration, replay."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        if self.rainbow:
            for name in ("double", "dueling", "prioritized", "noisy"):
                object.__setattr__(self, name, True)
            object.__setattr__(self, "distributional", self.distributional or "c51")
            object.__setattr__(self, "n_step", 3 if self.n_step == 1 else self.n_step)
        check_range(self, 1, 2**16, "num_envs", "hidden")
        check_range(self, 1, 10**9, "buffer_size", "batch_size")
        check_range(self, 1, 10**9, "n_step", "train_every")
        check_range(self, 1, 10**6, "updates")
        check_range(self, 1, 10**12, "target_every", "learning_rate_steps", "epsilon_steps", "per_beta_steps")
        check_range(self, 0, 10**12, "learning_starts")
        check_range(self, 0, INF, "learning_rate_end", "per_alpha", "per_beta", "per_beta_end")
        check_range(self, 0, 2**63 - 1, "seed")
        check_range(self, 0, 1, "gamma", "epsilon_start", "epsilon_end")
        check_range(self, 1e-12, INF, "learning_rate", "max_grad_norm", "temperature", "per_eps")
        check_range(self, 1e-12, 1, "tau")
        check_range(self, 2, 10_000, "atoms")
        check_range(self, 1, 10_000, "num_tau_samples", "num_tau_prime_samples", "num_quantile_samples")
        check_range(self, 1, 10_000, "quantile_embedding_dim")
        check_range(self, 0, INF, "sigma")
        check_range(self, -1e30, 1e30, "v_min", "v_max")
        if not self.v_min < self.v_max:
            raise InputError(f"DQNConfig: v_min must be < v_max, got {self.v_min!r} and {self.v_max!r}")
        check_buffer(self)


@dataclass(frozen=True)
class BoxConfig:
    """Hyperparameters of all agents on `BoxAgent`.  Schedules count environment steps from the start."""

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
    """Sizes of the hidden layers of each network."""
    learning_rate: float = 1e-3
    """Of Adam, at the start."""
    learning_rate_end: float | None = None
    """Of Adam, from learning_rate_steps on; None: constant."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rates fall linearly; None: all of the run."""
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
        check_range(self, 1, 10**9, "n_step", "train_every")
        check_range(self, 1, 10**6, "updates")
        check_range(self, 1, 10**12, "learning_rate_steps", "per_beta_steps")
        check_range(self, 0, 10**12, "learning_starts")
        check_range(self, 0, INF, "learning_rate_end", "per_alpha", "per_beta", "per_beta_end")
        check_range(self, 0, 2**63 - 1, "seed")
        check_range(self, 0, 1, "gamma")
        check_range(self, 1e-12, INF, "learning_rate", "max_grad_norm", "per_eps")
        check_range(self, 1e-12, 1, "tau")
        check_buffer(self)


@dataclass(frozen=True)
class ContinuousConfig(BoxConfig):
    """Hyperparameters of all agents on `ContinuousAgent`, and of SAC for discrete actions."""

    actor_learning_rate: float = 3e-4
    """Of the actor's Adam, at the start; falls in the same proportion as the critics'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1e-12, INF, "actor_learning_rate")


@dataclass(frozen=True)
class NoiseConfig(BoxConfig):
    """Hyperparameters of all agents on `NoisyAgent`."""

    # Sources: [L] Lillicrap et al. 2016 (DDPG), [C] CleanRL's ddpg_continuous_action.
    noise: Literal["gaussian", "ou"] = "gaussian"  # [C]; [L] has ou
    """Of the exploration: independent from step to step, or an Ornstein-Uhlenbeck process, begun anew each episode."""
    noise_std: float = 0.1  # [C]
    """Standard deviation of the noise, or of the process's increments, where the actions' range is [-1, 1]."""
    ou_theta: float = 0.15  # [L]
    """How much of its value the Ornstein-Uhlenbeck process loses in a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1e12, "noise_std")  # the process is kept in float32
        check_range(self, 1e-12, 1, "ou_theta")


@dataclass(frozen=True)
class NAFConfig(NoiseConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [G] Gu et al. 2016; without a mark, ours.
    # The string under a setting is its help on the command line.
    hidden: tuple[int, ...] = (200, 200)  # [G]
    """Sizes of the hidden layers, which V, mu and L share."""
    learning_rate: float = 1e-3  # [G] chose of 1e-2, 1e-3 and 1e-4
    """Of Adam, at the start."""
    batch_size: int = 128
    """Transitions in an update."""
    reward_scale: float = 1.0
    """Rewards are learned from as so many times what they are: values of 1 to 10 are learned best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1e-12, 1e12, "reward_scale")


@dataclass(frozen=True)
class QTOptConfig(NoiseConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [K] Kalashnikov et al. 2018; without a mark, ours.
    # The string under a setting is its help on the command line.
    batch_size: int = 128
    """Transitions in an update."""
    lag: int = 500  # [K] has 6000, and a tau of 1e-4
    """Updates from one copy of the target network to the second target network to the next."""
    cem_iterations: int = 2  # [K]
    """Of the search for the best action."""
    cem_samples: int = 64  # [K]
    """Actions tried in an iteration."""
    cem_elites: int = 6  # [K]
    """The best of them, to whose mean and standard deviation the next iteration goes on."""
    cem_std: float = 1.0
    """Standard deviation of the first iteration, where the actions' range is [-1, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 10**9, "lag")
        check_range(self, 1, 1000, "cem_iterations")
        check_range(self, 1, 2**16, "cem_samples", "cem_elites")
        check_range(self, 1e-6, 1e6, "cem_std")
        if self.cem_elites > self.cem_samples:
            raise InputError(
                f"QTOptConfig: cem_elites must be at most cem_samples, got {self.cem_elites} and {self.cem_samples}"
            )


@dataclass(frozen=True)
class LAPConfig(ContinuousConfig):
    """Hyperparameters of all agents on `LAPAgent`."""

    # Source: Fujimoto et al. 2020, arXiv:2007.06049.
    lap: bool = False
    """Loss-adjusted priorities: replay in proportion to max(|TD error|, 1)^lap_alpha without importance weights, and
    Huber's loss in place of the square."""
    lap_alpha: float = 0.4
    """Exponent of the loss-adjusted priorities: 0 is uniform replay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, INF, "lap_alpha")
        if self.lap and self.prioritized:
            raise InputError(
                f"{type(self).__name__}: lap and prioritized are two kinds of priorities, got True for both"
            )


@dataclass(frozen=True)
class DDPGConfig(NoiseConfig, LAPConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [L] Lillicrap et al. 2016, [S] Stable-Baselines3's DDPG.
    # The string under a setting is its help on the command line.
    learning_rate: float = 1e-3  # [L] [S]
    """Of the critic's Adam, at the start."""
    actor_learning_rate: float = 1e-3  # [S]
    """Of the actor's Adam, at the start; falls in the same proportion as the critic's."""


@dataclass(frozen=True)
class D4PGConfig(NoiseConfig, ContinuousConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [B] Barth-Maron et al. 2018; without a mark, ours or those of DDPG.
    # The string under a setting is its help on the command line.
    n_step: int = 5  # [B]
    """Rewards summed before the bootstrap; fewer at the end of an episode."""
    n_atoms: int = 51  # [B]
    """Returns that the critic gives a probability each."""
    v_min: float = -150.0  # [B] by task
    """The least of them; what falls below counts as it."""
    v_max: float = 150.0  # [B] by task
    """The largest of them; what lies above counts as it."""
    learning_rate: float = 1e-3
    """Of the critic's Adam, at the start."""
    actor_learning_rate: float = 1e-3
    """Of the actor's Adam, at the start; falls in the same proportion as the critic's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 2, 2**16, "n_atoms")
        check_range(self, -1e30, 1e30, "v_min", "v_max")
        if self.v_min >= self.v_max:
            raise InputError(f"D4PGConfig: v_min must be < v_max, got {self.v_min!r} and {self.v_max!r}")


@dataclass(frozen=True)
class TD3Config(LAPConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [F] Fujimoto et al. 2018, [C] CleanRL's td3_continuous_action, [S] Stable-Baselines3's TD3.
    # The string under a setting is its help on the command line.
    learning_rate: float = 1e-3  # [F] [S]
    """Of the critics' Adam, at the start."""
    actor_learning_rate: float = 1e-3  # [F] [S]
    """Of the actor's Adam, at the start; falls in the same proportion as the critics'."""
    policy_delay: int = 2  # [F] [C] [S]
    """Updates of the critics from one of the actor and the targets to the next."""
    exploration_noise: float = 0.1  # [F] [C]
    """Standard deviation of the Gaussian noise on the actions, where their range is [-1, 1]."""
    target_noise: float = 0.2  # [F] [C] [S]
    """Standard deviation of the noise on the target actor's actions, in the same units."""
    target_noise_clip: float = 0.5  # [F] [C] [S]
    """That noise is clipped to at most this much either way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 10**9, "policy_delay")
        check_range(self, 0, INF, "exploration_noise", "target_noise", "target_noise_clip")


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


@dataclass(frozen=True)
class TQCConfig(SACConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [K] Kuznetsov et al. 2020; the others are those of SAC.
    # The string under a setting is its help on the command line.
    n_critics: int = 5  # [K]
    """Critics, whose quantiles are pooled."""
    n_quantiles: int = 25  # [K]
    """Quantiles of the return that a critic gives."""
    drop_per_critic: int = 2  # [K] 0 to 5 by task
    """Of the target's pooled quantiles the largest are left out, so many for each critic."""
    learning_rate: float = 3e-4  # [K]
    """Of the critics' Adam, and of the temperature's, at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 1024, "n_critics")
        check_range(self, 1, 10_000, "n_quantiles")
        check_range(self, 0, 10_000, "drop_per_critic")
        if self.drop_per_critic >= self.n_quantiles:
            raise InputError(
                f"TQCConfig: drop_per_critic must be < n_quantiles, got {self.drop_per_critic} and {self.n_quantiles}"
            )


@dataclass(frozen=True)
class CrossQConfig(SACConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [B] Bhatt et al. 2024, [S] sb3-contrib's CrossQ; the others are those of SAC.
    # The string under a setting is its help on the command line.
    critic_hidden: tuple[int, ...] = (256, 256)  # [B] 2048 each, [S] 1024 each
    """Sizes of the hidden layers of each critic; wider ones learn faster and cost more."""
    actor_learning_rate: float = 1e-3  # [B] [S]
    """Of the actor's Adam, at the start; falls in the same proportion as the critics'."""
    adam_beta1: float = 0.5  # [B] [S]
    """Decay of the mean of the gradients in the actor's and the critics' Adam."""
    tau: float = 1.0
    """There are no target networks: only 1."""
    policy_delay: int = 3  # [B] [S]
    """Updates of the critics from one of the actor and the temperature to the next."""
    norm_momentum: float = 0.01  # [B] [S]
    """How far the running statistics of the batch normalisation move to those of a batch."""
    norm_warmup: int = 100_000  # [B] [S]
    """Batches normalised by their own statistics, before the running ones count (batch renormalisation)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 2**16, "critic_hidden")
        check_range(self, 0, 0.999999, "adam_beta1")
        check_range(self, 1, 1, "tau")
        check_range(self, 1, 10**9, "policy_delay")
        check_range(self, 1e-12, 1, "norm_momentum")
        check_range(self, 0, 10**12, "norm_warmup")


@dataclass(frozen=True)
class SACDiscreteConfig(ContinuousConfig):
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [D] Christodoulou 2019, [T] tuned here on CartPole-v1; the others are those of SAC.
    # The string under a setting is its help on the command line.
    network: Literal["auto", "mlp", "nature", "impala"] = "auto"
    """The ready-made networks: MLPs, or convolutional ones for images; auto: nature for images of bytes."""
    hidden: tuple[int, ...] = (128, 128)  # [T]
    """Sizes of the hidden layers of each MLP."""
    learning_rate: float = 1e-3  # [T]; [D] has 3e-4
    """Of the critics' Adam, and of the temperature's, at the start."""
    learning_rate_end: float | None = 1e-5  # [T]
    """Of Adam, from learning_rate_steps on; None: constant."""
    actor_learning_rate: float = 1e-3  # [T]; [D] has 3e-4
    """Of the actor's Adam, at the start; falls in the same proportion as the critics'."""
    batch_size: int = 256
    """Transitions in an update."""
    tau: float = 0.02  # [T]
    """Target <- tau online + (1 - tau) target; 1 copies."""
    train_every: int = 2  # [T]
    """Environment steps from one round of updates to the next."""
    max_grad_norm: float | None = 1.0  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    temperature: float | None = 0.1  # [T]; [D] tunes it, which on CartPole-v1 let it grow without end
    """Weight of the entropy; None: tuned so that the policy has the target entropy."""
    initial_temperature: float = 1.0  # [D]
    """Where the tuning starts."""
    target_entropy: float | None = None  # [D]
    """Of the policy; None: 0.98 of the largest, log(number of actions)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1e12, "temperature")  # the losses have its square, in float32
        check_range(self, 1e-12, 1e12, "initial_temperature")
        check_range(self, 0, INF, "target_entropy")
