"""Hyperparameters of the on-policy agents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastrl.agents.config import InputError, check_buffer, check_range

INF = float("inf")
Activation = Literal["tanh", "relu"]


@dataclass(frozen=True)
class REINFORCEConfig:
    """Hyperparameters.  The learning rate's schedule counts environment steps from the start of training."""

    # Sources: [W] Williams 1992, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    baseline: bool = True  # [W]
    """A learned state value is subtracted from the reward-to-go, and stands in for what a time limit cut off."""
    num_envs: int = 1
    """Environments stepped together; one that has played its episodes waits for the others, and its steps are lost."""
    episodes: int = 8  # [T]
    """Whole episodes of each environment in an update."""
    hidden: tuple[int, ...] = (64, 64)  # [T]
    """Sizes of the hidden layers."""
    activation: Activation = "tanh"  # [T]
    """Of the hidden layers: tanh or relu."""
    learning_rate: float = 5e-3  # [T]
    """Of Adam, at the start."""
    learning_rate_end: float = 5e-4  # [T]
    """Of Adam, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly; None: all of the run."""
    gamma: float = 0.99  # [T]
    """Discount."""
    value_coef: float = 0.5  # [T]
    """Weight of the baseline's loss."""
    entropy_coef: float = 0.0  # [W]
    """Weight of the entropy, which is maximised."""
    normalize_advantages: bool = True  # [T]
    """Mean 0 and standard deviation 1 within each update."""
    max_grad_norm: float | None = 0.5  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    log_std: float = 0.0
    """Log of the standard deviation of continuous actions, at the start."""
    seed: int = 0
    """Of everything random: environments, initial weights, actions."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden", "episodes")
        check_range(self, 1, 10**9, "learning_rate_steps")
        check_range(self, 0, 1, "gamma")
        check_range(self, 0, INF, "learning_rate_end", "entropy_coef", "value_coef")
        check_range(self, 1e-12, INF, "learning_rate", "max_grad_norm")
        check_range(self, -20, 5, "log_std")
        check_range(self, 0, 2**63 - 1, "seed")


@dataclass(frozen=True)
class A2CConfig:
    """Hyperparameters.  The learning rate's schedule counts environment steps from the start of training."""

    # Sources: [M] Mnih et al. 2016, [S] Stable-Baselines3's A2C, [Z] rl-baselines3-zoo's settings for CartPole-v1,
    # [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    num_envs: int = 16  # [M]
    """Environments stepped together."""
    n_steps: int = 5  # [M] [T]
    """Steps of each environment from one update to the next; the returns look at most that far ahead."""
    gae_lambda: float | None = 0.95  # [T]
    """lambda of GAE, where 0 is the one-step TD error and 1 the n-step return; None: n-step returns [M]."""
    network: Literal["auto", "mlp", "nature", "impala"] = "auto"
    """The ready-made network: an MLP, or a convolutional one for images; auto: nature for images of bytes."""
    hidden: tuple[int, ...] = (64, 64)  # [S]
    """Sizes of the hidden layers of an MLP."""
    activation: Activation = "tanh"  # [S]
    """Of the hidden layers: tanh or relu."""
    shared_network: bool = False  # [S]
    """Policy and value have the hidden layers in common."""
    optimizer: Literal["rmsprop", "adam"] = "adam"  # [T]; [M] has RMSprop
    """adam, or rmsprop (decay 0.99)."""
    learning_rate: float = 2e-3  # [T]
    """Of the optimizer, at the start."""
    learning_rate_end: float = 0.0  # [M]
    """Of the optimizer, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly; None: all of the run."""
    optimizer_eps: float = 1e-5  # [S]
    """Of the optimizer: added to the root of the second moment."""
    gamma: float = 0.98  # [T]
    """Discount."""
    value_coef: float = 0.5  # [S]
    """Weight of the value's loss."""
    entropy_coef: float = 0.0  # [Z]
    """Weight of the entropy, which is maximised."""
    normalize_advantages: bool = True  # [T]
    """Mean 0 and standard deviation 1 within each update of more than one step."""
    max_grad_norm: float | None = None  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    log_std: float = 0.0
    """Log of the standard deviation of continuous actions, at the start."""
    normalize_obs: bool = False
    """Observations are shifted and scaled to mean 0 and variance 1, as seen so far."""
    normalize_rewards: bool = False
    """Rewards are divided by the standard deviation of the discounted return, as seen so far."""
    seed: int = 0
    """Of everything random: environments, initial weights, actions."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden")
        check_range(self, 1, 10**9, "n_steps", "learning_rate_steps")
        check_range(self, 0, 1, "gamma", "gae_lambda")
        check_range(self, 0, INF, "learning_rate_end", "entropy_coef", "value_coef")
        check_range(self, 1e-12, INF, "learning_rate", "optimizer_eps", "max_grad_norm")
        check_range(self, -20, 5, "log_std")
        check_range(self, 0, 2**63 - 1, "seed")


@dataclass(frozen=True)
class ActorCriticConfig(A2CConfig):
    """Hyperparameters of the one-step actor-critic: A2C's, with other defaults."""

    num_envs: int = 32  # [T]
    """Environments stepped together."""
    n_steps: int = 1
    """Steps of each environment from one update to the next: with 1, A_t = r_t + gamma V(s_{t+1}) - V(s_t)."""
    learning_rate: float = 1e-3  # [T]
    """Of the optimizer, at the start."""
    gamma: float = 0.99  # [M]
    """Discount."""
    entropy_coef: float = 0.05  # [T] before V has learned all actions are reinforced; with less, the first one may win
    """Weight of the entropy, which is maximised."""
    normalize_advantages: bool = False  # [M] [T]
    """Mean 0 and standard deviation 1 within each update of more than one step."""
    max_grad_norm: float | None = 0.5  # [S] [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    normalize_rewards: bool = True  # [T]
    """Rewards are divided by the standard deviation of the discounted return, as seen so far."""


@dataclass(frozen=True)
class A3CConfig(A2CConfig):
    """Hyperparameters of A3C: A2C's, with other defaults.  The schedule counts the steps of all workers together."""

    # Sources: [M] Mnih et al. 2016, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    workers: int = 1  # [M] has 16
    """Processes that act and learn, this one among them; with more than one a run does not repeat itself."""
    worker_timeout: float = 60.0
    """Seconds after which a worker that has taken no step is ended, and the others go on."""
    num_envs: int = 1  # [M]
    """Environments of each worker, stepped together."""
    n_steps: int = 20  # [T]; [M] has 5
    """Steps of each environment from one update to the next; the returns look at most that far ahead."""
    gae_lambda: float | None = None  # [M]
    """lambda of GAE, where 0 is the one-step TD error and 1 the n-step return; None: n-step returns [M]."""
    optimizer: Literal["rmsprop"] = "rmsprop"  # [M]
    """rmsprop (decay 0.99), whose statistics are shared."""
    learning_rate: float = 7e-4  # [M]
    """Of the optimizer, at the start."""
    gamma: float = 0.99  # [M]
    """Discount."""
    normalize_advantages: bool = False  # [M]
    """Mean 0 and standard deviation 1 within each update of more than one step."""
    max_grad_norm: float | None = 0.5  # [T]
    """Gradients are scaled down to this norm; None leaves them alone."""
    normalize_obs: bool = False
    """Not here: each worker would have statistics of its own, and all the same weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 1024, "workers")
        check_range(self, 1e-3, 1e9, "worker_timeout")
        if self.normalize_obs:
            raise InputError("A3CConfig: normalize_obs must be False, got True: workers' statistics would differ")
        if self.normalize_rewards and self.workers > 1:
            raise InputError(
                "A3CConfig: normalize_rewards must be False with several workers, got True: workers' statistics would "
                "differ"
            )


@dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters.  The learning rate's schedule counts environment steps from the start of training."""

    # Sources: [P] Schulman et al. 2017, [H] Huang et al. 2022 ("The 37 implementation details of PPO"),
    # [Z] rl-baselines3-zoo's tuned settings for CartPole-v1, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    objective: Literal["clip", "penalty"] = "clip"  # [P]
    """clip: the ratio of probabilities is clipped.  penalty: KL(old || new) costs beta, which adapts to penalty_kl."""
    num_envs: int = 8  # [Z]
    """Environments stepped together."""
    n_steps: int = 32  # [Z]
    """Steps of each environment from one update to the next."""
    epochs: int = 20  # [Z]
    """Passes over the n_steps x num_envs steps in an update."""
    minibatches: int = 1  # [Z]
    """Equal parts of a pass, a gradient step each."""
    network: Literal["auto", "mlp", "nature", "impala"] = "auto"
    """The ready-made network: an MLP, or a convolutional one for images; auto: nature for images of bytes."""
    hidden: tuple[int, ...] = (64, 64)  # [P]
    """Sizes of the hidden layers of an MLP."""
    activation: Activation = "tanh"  # [P]
    """Of the hidden layers: tanh or relu."""
    shared_network: bool = False  # [P]
    """Policy and value have the hidden layers in common."""
    learning_rate: float = 1e-3  # [Z]
    """Of Adam, at the start."""
    learning_rate_end: float = 1e-4  # [T]
    """Of Adam, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly; None: all of the run."""
    adam_eps: float = 1e-5  # [H]
    """Of Adam: added to the root of the second moment."""
    gamma: float = 0.98  # [Z]
    """Discount."""
    gae_lambda: float = 0.8  # [Z]
    """lambda of GAE: 0 is the one-step TD error, 1 the whole return."""
    clip_range: float = 0.2  # [P]
    """Of the ratio of probabilities, around 1 (objective clip)."""
    clip_value: float | None = None  # [H] finds no gain in it
    """The new value is clipped to within this of the old one, and the larger loss of the two taken; None does not."""
    penalty_kl: float = 0.01  # [P]
    """KL(old || new) of an update that beta aims at (objective penalty)."""
    penalty_beta: float = 1.0  # [P]
    """Weight of the KL at the start (objective penalty)."""
    target_kl: float | None = None
    """An update ends after the pass whose last minibatch, before its step, estimates KL(old || new) above this."""
    value_coef: float = 0.5  # [P] [H]
    """Weight of the value's loss."""
    entropy_coef: float = 0.0  # [Z]
    """Weight of the entropy, which is maximised."""
    normalize_advantages: bool = True  # [H]
    """Mean 0 and standard deviation 1 within each minibatch."""
    max_grad_norm: float | None = 0.5  # [H]
    """Gradients are scaled down to this norm; None leaves them alone."""
    log_std: float = 0.0  # [H]
    """Log of the standard deviation of continuous actions, at the start."""
    normalize_obs: bool = False
    """Observations are shifted and scaled to mean 0 and variance 1, as seen so far."""
    normalize_rewards: bool = False
    """Rewards are divided by the standard deviation of the discounted return, as seen so far."""
    seed: int = 0
    """Of everything random: environments, initial weights, actions, minibatches."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden", "minibatches")
        check_range(self, 1, 10**6, "epochs")
        check_range(self, 1, 10**9, "learning_rate_steps")
        check_range(self, 2, 10**9, "n_steps")
        check_range(self, 0, 1, "gamma", "gae_lambda")
        check_range(self, 0, INF, "learning_rate_end", "entropy_coef", "value_coef")
        check_range(self, 1e-12, INF, "learning_rate", "adam_eps", "clip_range", "clip_value")
        check_range(self, 1e-12, INF, "target_kl", "penalty_kl", "max_grad_norm")
        check_range(self, 1e-6, 1e6, "penalty_beta")
        check_range(self, -20, 5, "log_std")
        check_range(self, 0, 2**63 - 1, "seed")


@dataclass(frozen=True)
class TRPOConfig:
    """Hyperparameters.  The learning rate is the value network's: the policy's step has its length from max_kl."""

    # Sources: [S] Schulman et al. 2015, [G] Schulman et al. 2016, [C] sb3-contrib's TRPO, [Z] rl-baselines3-zoo's
    # settings of it for CartPole-v1, [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    num_envs: int = 8  # [T]; [Z] has 2
    """Environments stepped together."""
    n_steps: int = 128  # [T]; [Z] has 512, of as many steps in all
    """Steps of each environment from one update to the next."""
    max_kl: float = 0.01  # [S]
    """No update moves the policy by more than this mean KL(old || new), at the start."""
    max_kl_end: float = 1e-3  # [T]; the same as max_kl in [S]
    """From learning_rate_steps on, if less: at the bound, a policy that is good already still moves at random."""
    cg_iterations: int = 15  # [C]; [S] has 10
    """Of conjugate gradient, at most."""
    cg_damping: float = 1e-3  # [Z]
    """Added to the diagonal of the Fisher matrix."""
    cg_rtol: float = 1e-5  # [C]: 1e-10 of the residual's square
    """Conjugate gradient stops when the residual is this small relative to the gradient."""
    backtracks: int = 10  # [S] [C]
    """How often the line search makes the step shorter, at most."""
    backtrack: float = 0.8  # [C]
    """By this factor."""
    value_epochs: int = 20  # [Z]
    """Passes over the n_steps x num_envs steps to fit the value, in an update."""
    minibatches: int = 8  # [C]: of 128 steps; [Z] has 2
    """Equal parts of a pass, a gradient step each."""
    hidden: tuple[int, ...] = (64, 64)  # [C]
    """Sizes of the hidden layers, of the policy and of the value network."""
    activation: Activation = "tanh"  # [S]
    """Of the hidden layers: tanh or relu."""
    learning_rate: float = 1e-3  # [C]
    """Of Adam, at the start."""
    learning_rate_end: float = 1e-3  # [C]
    """Of Adam, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate and max_kl fall linearly; None: all of the run."""
    adam_eps: float = 1e-5  # [C]
    """Of Adam: added to the root of the second moment."""
    gamma: float = 0.98  # [T]; [S] [Z] have 0.99
    """Discount."""
    gae_lambda: float = 0.95  # [C]; [Z] has 0.98
    """lambda of GAE: 0 is the one-step TD error, 1 the whole return."""
    normalize_advantages: bool = True  # [C]
    """Mean 0 and standard deviation 1 within each update."""
    log_std: float = 0.0  # [C]
    """Log of the standard deviation of continuous actions, at the start."""
    normalize_obs: bool = False
    """Observations are shifted and scaled to mean 0 and variance 1, as seen so far."""
    normalize_rewards: bool = False
    """Rewards are divided by the standard deviation of the discounted return, as seen so far."""
    seed: int = 0
    """Of everything random: environments, initial weights, actions, minibatches."""
    device: str = "cpu"
    """cpu, cuda or auto; small networks are faster on the CPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden", "minibatches")
        check_range(self, 1, 10**6, "cg_iterations", "backtracks", "value_epochs")
        check_range(self, 1, 10**9, "n_steps", "learning_rate_steps")
        check_range(self, 0, 1, "gamma", "gae_lambda")
        check_range(self, 0, INF, "learning_rate_end", "cg_damping", "cg_rtol")
        check_range(self, 1e-12, INF, "learning_rate", "adam_eps", "max_kl", "max_kl_end")
        check_range(self, 1e-3, 0.999, "backtrack")
        check_range(self, -20, 5, "log_std")
        check_range(self, 0, 2**63 - 1, "seed")


@dataclass(frozen=True)
class QPropConfig(TRPOConfig):
    """Hyperparameters.  The learning rate is the value network's: the policy's step has its length from max_kl."""

    # Sources: [G] Gu et al. 2017 (Q-Prop); the others are those of TRPO.
    # The string under a setting is its help on the command line.
    control: Literal["conservative", "aggressive"] = "conservative"  # [G]
    """Where control variate and advantage have different signs, it is left out, or goes in with the other sign."""
    critic_hidden: tuple[int, ...] = (64, 64)  # [G] has 100, 100
    """Sizes of the hidden layers of Q."""
    critic_learning_rate: float = 1e-3  # [G]
    """Of Q's Adam."""
    critic_updates: int | None = None  # [G]
    """Of Q after each rollout; None: as many as the rollout has steps."""
    tau: float = 0.005  # [G] has 0.001
    """Target of Q <- tau Q + (1 - tau) target; 1 copies."""
    batch_size: int = 64  # [G]
    """Transitions in an update of Q."""
    buffer_size: int = 1_000_000  # [G]
    """Transitions kept for replay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 2**16, "critic_hidden")
        check_range(self, 1, 10**9, "critic_updates", "batch_size", "buffer_size")
        check_range(self, 1e-12, INF, "critic_learning_rate")
        check_range(self, 1e-12, 1, "tau")
        check_buffer(self)


@dataclass(frozen=True)
class CEMConfig:
    """Hyperparameters.  All schedules count environment steps from the start of training."""

    # Sources: [S] Szita and Lorincz 2006, [D] de Boer et al. 2005 (smoothing), [T] tuned here on CartPole-v1.
    # The string under a setting is its help on the command line.
    num_envs: int = 1
    """Environments stepped together, with the same policy; one that has played its episodes waits for the others."""
    population: int = 24  # [T]
    """Policies in a generation."""
    elites: int = 6  # [T]
    """The best of them, of which the next generation is made."""
    episodes: int = 1
    """Whole episodes of each policy in each environment."""
    hidden: tuple[int, ...] = (8,)  # [T]
    """Sizes of the hidden layers."""
    activation: Activation = "tanh"
    """Of the hidden layers: tanh or relu."""
    std: float = 0.5  # [T]
    """Standard deviation of the weights in the first generation."""
    extra_std: float = 0.1  # [T]; [S] is the idea
    """The variance grows by the square of so much after each generation, at the start; it falls linearly to 0."""
    extra_std_steps: int | None = None
    """Environment steps over which extra_std falls; None: all of the run."""
    learning_rate: float = 1.0  # [S]; less is [D]'s smoothing
    """How far mean and variance go over to the elites', at the start."""
    learning_rate_end: float = 1.0
    """How far they do, from learning_rate_steps on."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate changes linearly; None: all of the run."""
    seed: int = 0
    """Of everything random: environments, initial weights, populations."""
    device: str = "cpu"
    """cpu: policies that play one after another are too little for a GPU."""

    def __post_init__(self) -> None:
        check_range(self, 1, 2**16, "num_envs", "hidden", "episodes", "population", "elites")
        check_range(self, 1, 10**9, "learning_rate_steps", "extra_std_steps")
        check_range(self, 1e-12, 1e6, "std")
        check_range(self, 0, 1e6, "extra_std")
        check_range(self, 1e-12, 1, "learning_rate")
        check_range(self, 0, 1, "learning_rate_end")
        check_range(self, 0, 2**63 - 1, "seed")
        if self.elites > self.population:
            raise InputError(f"CEMConfig: elites must be at most population, got {self.elites} and {self.population}")
