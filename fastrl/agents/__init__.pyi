# Made by `python docs/make_reference.py`: the constructors as editors and type checkers see them.
from collections.abc import Sequence
from typing import Any, Literal

from fastrl.agents.agent import Env
from fastrl.agents.config import InputError as InputError
from fastrl.agents.a2c import A2C as _A2C
from fastrl.agents.a2c import OneStepActorCritic as _OneStepActorCritic
from fastrl.agents.a3c import A3C as _A3C
from fastrl.agents.agent import Agent as Agent
from fastrl.agents.callbacks import Callback as Callback
from fastrl.agents.cem import CEM as _CEM
from fastrl.agents.crossq import CrossQ as _CrossQ
from fastrl.agents.d4pg import D4PG as _D4PG
from fastrl.agents.ddpg import DDPG as _DDPG
from fastrl.agents.dqn import DQN as _DQN
from fastrl.agents.env_config import EnvConfig as EnvConfig
from fastrl.agents.evaluation import Evaluation as Evaluation
from fastrl.agents.fqi import FQI as _FQI
from fastrl.agents.loading import load as load
from fastrl.agents.naf import NAF as _NAF
from fastrl.agents.ppo import PPO as _PPO
from fastrl.agents.q_prop import QProp as _QProp
from fastrl.agents.qt_opt import QTOpt as _QTOpt
from fastrl.agents.r2d2 import R2D2 as _R2D2
from fastrl.agents.recurrent_ppo import RecurrentPPO as _RecurrentPPO
from fastrl.agents.reinforce import REINFORCE as _REINFORCE
from fastrl.agents.sac import SAC as _SAC
from fastrl.agents.sac_discrete import SACDiscrete as _SACDiscrete
from fastrl.agents.tabular import ExpectedSARSA as _ExpectedSARSA
from fastrl.agents.tabular import QLearning as _QLearning
from fastrl.agents.tabular import SARSA as _SARSA
from fastrl.agents.td3 import TD3 as _TD3
from fastrl.agents.tqc import TQC as _TQC
from fastrl.agents.trpo import TRPO as _TRPO
from fastrl.agents.hyperparameters import A2CConfig as A2CConfig
from fastrl.agents.hyperparameters import A3CConfig as A3CConfig
from fastrl.agents.hyperparameters import ActorCriticConfig as ActorCriticConfig
from fastrl.agents.hyperparameters import CEMConfig as CEMConfig
from fastrl.agents.hyperparameters import CrossQConfig as CrossQConfig
from fastrl.agents.hyperparameters import D4PGConfig as D4PGConfig
from fastrl.agents.hyperparameters import DDPGConfig as DDPGConfig
from fastrl.agents.hyperparameters import DQNConfig as DQNConfig
from fastrl.agents.hyperparameters import FQIConfig as FQIConfig
from fastrl.agents.hyperparameters import NAFConfig as NAFConfig
from fastrl.agents.hyperparameters import PPOConfig as PPOConfig
from fastrl.agents.hyperparameters import QPropConfig as QPropConfig
from fastrl.agents.hyperparameters import QTOptConfig as QTOptConfig
from fastrl.agents.hyperparameters import R2D2Config as R2D2Config
from fastrl.agents.hyperparameters import REINFORCEConfig as REINFORCEConfig
from fastrl.agents.hyperparameters import RecurrentPPOConfig as RecurrentPPOConfig
from fastrl.agents.hyperparameters import SACConfig as SACConfig
from fastrl.agents.hyperparameters import SACDiscreteConfig as SACDiscreteConfig
from fastrl.agents.hyperparameters import SARSAConfig as SARSAConfig
from fastrl.agents.hyperparameters import TD3Config as TD3Config
from fastrl.agents.hyperparameters import TQCConfig as TQCConfig
from fastrl.agents.hyperparameters import TRPOConfig as TRPOConfig
from fastrl.agents.hyperparameters import TabularConfig as TabularConfig

__all__ = ['A2C', 'A2CConfig', 'A3C', 'A3CConfig', 'ALGORITHMS', 'ActorCriticConfig', 'Agent', 'CEM', 'CEMConfig', 'Callback', 'CrossQ', 'CrossQConfig', 'D4PG', 'D4PGConfig', 'DDPG', 'DDPGConfig', 'DQN', 'DQNConfig', 'EnvConfig', 'Evaluation', 'ExpectedSARSA', 'FQI', 'FQIConfig', 'InputError', 'NAF', 'NAFConfig', 'OneStepActorCritic', 'PPO', 'PPOConfig', 'QLearning', 'QProp', 'QPropConfig', 'QTOpt', 'QTOptConfig', 'R2D2', 'R2D2Config', 'REINFORCE', 'REINFORCEConfig', 'RecurrentPPO', 'RecurrentPPOConfig', 'SAC', 'SACConfig', 'SACDiscrete', 'SACDiscreteConfig', 'SARSA', 'SARSAConfig', 'TD3', 'TD3Config', 'TQC', 'TQCConfig', 'TRPO', 'TRPOConfig', 'TabularConfig', 'load']

CLASS_NAMES: dict[str, str]
ALGORITHMS: dict[str, type[Agent[Any]]]

class DQN(_DQN):
    def __init__(
        self, env: Env, config: DQNConfig | None = None, *,
        network: Any = 'auto',
        double: bool = False,
        dueling: bool = False,
        prioritized: bool = False,
        n_step: int = 1,
        distributional: Literal['c51', 'qr', 'iqn'] | None = None,
        noisy: bool = False,
        rainbow: bool = False,
        atoms: int = 51,
        v_min: float = -100.0,
        v_max: float = 100.0,
        num_tau_samples: int = 8,
        num_tau_prime_samples: int = 8,
        num_quantile_samples: int = 32,
        quantile_embedding_dim: int = 64,
        sigma: float = 0.5,
        num_envs: int = 1,
        hidden: Sequence[int] = (128, 128),
        learning_rate: float = 0.001,
        learning_rate_end: float = 0.0003,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        buffer_size: int = 100000,
        batch_size: int = 64,
        learning_starts: int = 1000,
        train_every: int = 2,
        updates: int = 1,
        target_every: int = 1,
        tau: float = 0.02,
        averaging: bool = True,
        loss: Literal['huber', 'mse'] = 'mse',
        max_grad_norm: float | None = 1.0,
        exploration: Literal['epsilon-greedy', 'boltzmann'] = 'epsilon-greedy',
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.04,
        epsilon_steps: int = 8000,
        temperature: float = 1.0,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        double: bool = False. The online network chooses the next action, the target network values it.
        dueling: bool = False. State value and advantages in separate streams.
        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode. They are those of old
            actions: a buffer_size much smaller than the run forgets the random beginning.
        distributional: Literal['c51', 'qr', 'iqn'] | None = None. The distribution of returns is learned: c51 on
            fixed atoms, qr by quantiles, iqn by quantiles at random taus; its mean is Q.
        noisy: bool = False. Noisy layers explore, and epsilon falls to 0: without its beginning CartPole is not
            learned.
        rainbow: bool = False. double, dueling, prioritized and noisy, and unless others are given c51 and 3 steps;
            the agent's keywords and options that say otherwise are refused, but False in a DQNConfig is as if left
            out.
        atoms: int = 51. Atoms of c51, or quantiles of qr.
        v_min: float = -100.0. The lowest atom of c51: returns below count as this.
        v_max: float = 100.0. The highest atom of c51: returns above count as this.
        num_tau_samples: int = 8. Random quantiles of iqn that are learned of a transition, N.
        num_tau_prime_samples: int = 8. Random quantiles of iqn that are its target, N'.
        num_quantile_samples: int = 32. Quantiles of iqn whose mean is the Q by which actions are chosen, K: the
            midpoints, in place of random ones.
        quantile_embedding_dim: int = 64. Cosines by which iqn sees a tau.
        sigma: float = 0.5. Noise of the noisy layers at the start, times 1 / sqrt(inputs).
        num_envs: int = 1. Environments stepped together.
        network: Literal['auto', 'mlp', 'nature', 'impala'] = 'auto'. The ready-made network: an MLP, or a
            convolutional one for images; auto: nature for images of bytes.
        hidden: tuple[int, ...] = (128, 128). Sizes of the hidden layers of an MLP.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float = 0.0003. Of Adam, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        buffer_size: int = 100000. Transitions kept for replay.
        batch_size: int = 64. Transitions in an update.
        learning_starts: int = 1000. Environment steps before the first update.
        train_every: int = 2. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        target_every: int = 1. Updates from one update of the target network to the next.
        tau: float = 0.02. Target <- tau online + (1 - tau) target: 1 copies, less is Polyak averaging.
        averaging: bool = True. The greedy policy has the mean weights of about the last tenth of the updates, not
            those of the moment.
        loss: Literal['huber', 'mse'] = 'mse'. Of the TD error; distributions have losses of their own.
        max_grad_norm: float | None = 1.0. Gradients are scaled down to this norm; None leaves them alone.
        exploration: Literal['epsilon-greedy', 'boltzmann'] = 'epsilon-greedy'. How actions are chosen in training.
        epsilon_start: float = 1.0. Probability of a random action at the start.
        epsilon_end: float = 0.04. Probability of a random action from epsilon_steps on.
        epsilon_steps: int = 8000. Environment steps over which epsilon falls linearly.
        temperature: float = 1.0. Of Boltzmann exploration: the probability of an action is proportional to exp(Q /
            temperature).
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        """

class R2D2(_R2D2):
    def __init__(
        self, env: Env, config: R2D2Config | None = None, *,
        network: Literal['lstm', 'gru'] = 'lstm',
        hidden: Sequence[int] = (64,),
        memory_size: int = 64,
        double: bool = True,
        dueling: bool = True,
        rescaling: bool = False,
        length: int = 32,
        burn_in: int = 0,
        n_step: int = 5,
        num_envs: int = 4,
        learning_rate: float = 0.001,
        learning_rate_end: float = 0.0003,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        buffer_size: int = 100000,
        batch_size: int = 32,
        learning_starts: int = 1000,
        train_every: int = 8,
        updates: int = 1,
        target_every: int = 1,
        tau: float = 0.02,
        averaging: bool = True,
        loss: Literal['huber', 'mse'] = 'mse',
        max_grad_norm: float | None = 1.0,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.04,
        epsilon_steps: int = 8000,
        eta: float = 0.9,
        per_alpha: float = 0.9,
        per_beta: float = 0.6,
        per_beta_end: float = 0.6,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        network: Literal['lstm', 'gru'] = 'lstm'. The network's memory, between its hidden layers and its outputs.
        hidden: tuple[int, ...] = (64,). Sizes of the hidden layers before the memory.
        memory_size: int = 64. Units of the memory.
        double: bool = True. The online network chooses the next action, the target network values it.
        dueling: bool = True. State value and advantages in separate streams.
        rescaling: bool = False. Q is learned as h(Q), with h(x) = sign(x) (sqrt(|x| + 1) - 1) + x / 1000, for rewards
            of very different sizes.
        length: int = 32. Steps of a sequence that are trained on; gradients go that far back.
        burn_in: int = 0. Steps before them, to bring the stored state up to date; the first ones of an episode are
            not trained on then.
        n_step: int = 5. Rewards summed before the bootstrap; fewer at the end of an episode or of a sequence.
        num_envs: int = 4. Environments stepped together.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float = 0.0003. Of Adam, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        buffer_size: int = 100000. Transitions kept for replay.
        batch_size: int = 32. Sequences in an update.
        learning_starts: int = 1000. Environment steps before the first update.
        train_every: int = 8. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        target_every: int = 1. Updates from one update of the target network to the next.
        tau: float = 0.02. Target <- tau online + (1 - tau) target: 1 copies, less is Polyak averaging.
        averaging: bool = True. The greedy policy has the mean weights of about the last tenth of the updates, not
            those of the moment.
        loss: Literal['huber', 'mse'] = 'mse'. Of the TD error.
        max_grad_norm: float | None = 1.0. Gradients are scaled down to this norm; None leaves them alone.
        epsilon_start: float = 1.0. Probability of a random action at the start.
        epsilon_end: float = 0.04. Probability of a random action from epsilon_steps on.
        epsilon_steps: int = 8000. Environment steps over which epsilon falls linearly.
        eta: float = 0.9. A sequence's priority: eta max |TD error| + (1 - eta) mean |TD error|, over its steps.
        per_alpha: float = 0.9. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.6. Exponent of the importance weights at the start.
        per_beta_end: float = 0.6. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta changes linearly; None: all of the run.
        per_eps: float = 1e-06. Added to the TD errors' mixture, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. The CPU is the one device of this agent.
        """

class REINFORCE(_REINFORCE):
    def __init__(
        self, env: Env, config: REINFORCEConfig | None = None, *,
        network: Any = None,
        baseline: bool = True,
        num_envs: int = 1,
        episodes: int = 8,
        hidden: Sequence[int] = (64, 64),
        activation: Literal['tanh', 'relu'] = 'tanh',
        learning_rate: float = 0.005,
        learning_rate_end: float = 0.0005,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        value_coef: float = 0.5,
        entropy_coef: float = 0.0,
        normalize_advantages: bool = True,
        max_grad_norm: float | None = 0.5,
        log_std: float = 0.0,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        baseline: bool = True. A learned state value is subtracted from the reward-to-go, and stands in for what a
            time limit cut off.
        num_envs: int = 1. Environments stepped together; one that has played its episodes waits for the others, and
            its steps are lost.
        episodes: int = 8. Whole episodes of each environment in an update.
        hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        learning_rate: float = 0.005. Of Adam, at the start.
        learning_rate_end: float = 0.0005. Of Adam, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        value_coef: float = 0.5. Weight of the baseline's loss.
        entropy_coef: float = 0.0. Weight of the entropy, which is maximised.
        normalize_advantages: bool = True. Mean 0 and standard deviation 1 within each update.
        max_grad_norm: float | None = 0.5. Gradients are scaled down to this norm; None leaves them alone.
        log_std: float = 0.0. Log of the standard deviation of continuous actions, at the start.
        seed: int = 0. Of everything random: environments, initial weights, actions.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        """

class OneStepActorCritic(_OneStepActorCritic):
    def __init__(
        self, env: Env, config: ActorCriticConfig | None = None, *,
        network: Any = 'auto',
        num_envs: int = 32,
        n_steps: int = 1,
        gae_lambda: float | None = 0.95,
        hidden: Sequence[int] = (64, 64),
        activation: Literal['tanh', 'relu'] = 'tanh',
        shared_network: bool = False,
        optimizer: Literal['rmsprop', 'adam'] = 'adam',
        learning_rate: float = 0.001,
        learning_rate_end: float = 0.0,
        learning_rate_steps: int | None = None,
        optimizer_eps: float = 1e-05,
        gamma: float = 0.99,
        value_coef: float = 0.5,
        entropy_coef: float = 0.05,
        normalize_advantages: bool = False,
        max_grad_norm: float | None = 0.5,
        log_std: float = 0.0,
        normalize_obs: bool = False,
        normalize_rewards: bool = True,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        num_envs: int = 32. Environments stepped together.
        n_steps: int = 1. Steps of each environment from one update to the next: with 1, A_t = r_t + gamma V(s_{t+1})
            - V(s_t).
        gae_lambda: float | None = 0.95. lambda of GAE, where 0 is the one-step TD error and 1 the n-step return;
            None: n-step returns [M].
        network: Literal['auto', 'mlp', 'nature', 'impala'] = 'auto'. The ready-made network: an MLP, or a
            convolutional one for images; auto: nature for images of bytes.
        hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers of an MLP.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        shared_network: bool = False. Policy and value have the hidden layers in common.
        optimizer: Literal['rmsprop', 'adam'] = 'adam'. adam, or rmsprop (decay 0.99).
        learning_rate: float = 0.001. Of the optimizer, at the start.
        learning_rate_end: float = 0.0. Of the optimizer, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        optimizer_eps: float = 1e-05. Of the optimizer: added to the root of the second moment.
        gamma: float = 0.99. Discount.
        value_coef: float = 0.5. Weight of the value's loss.
        entropy_coef: float = 0.05. Weight of the entropy, which is maximised.
        normalize_advantages: bool = False. Mean 0 and standard deviation 1 within each update of more than one step.
        max_grad_norm: float | None = 0.5. Gradients are scaled down to this norm; None leaves them alone.
        log_std: float = 0.0. Log of the standard deviation of continuous actions, at the start.
        normalize_obs: bool = False. Observations are shifted and scaled to mean 0 and variance 1, as seen so far.
        normalize_rewards: bool = True. Rewards are divided by the standard deviation of the discounted return, as
            seen so far.
        seed: int = 0. Of everything random: environments, initial weights, actions.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        """

class A2C(_A2C):
    def __init__(
        self, env: Env, config: A2CConfig | None = None, *,
        network: Any = 'auto',
        num_envs: int = 16,
        n_steps: int = 5,
        gae_lambda: float | None = 0.95,
        hidden: Sequence[int] = (64, 64),
        activation: Literal['tanh', 'relu'] = 'tanh',
        shared_network: bool = False,
        optimizer: Literal['rmsprop', 'adam'] = 'adam',
        learning_rate: float = 0.002,
        learning_rate_end: float = 0.0,
        learning_rate_steps: int | None = None,
        optimizer_eps: float = 1e-05,
        gamma: float = 0.98,
        value_coef: float = 0.5,
        entropy_coef: float = 0.0,
        normalize_advantages: bool = True,
        max_grad_norm: float | None = None,
        log_std: float = 0.0,
        normalize_obs: bool = False,
        normalize_rewards: bool = False,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        num_envs: int = 16. Environments stepped together.
        n_steps: int = 5. Steps of each environment from one update to the next; the returns look at most that far
            ahead.
        gae_lambda: float | None = 0.95. lambda of GAE, where 0 is the one-step TD error and 1 the n-step return;
            None: n-step returns [M].
        network: Literal['auto', 'mlp', 'nature', 'impala'] = 'auto'. The ready-made network: an MLP, or a
            convolutional one for images; auto: nature for images of bytes.
        hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers of an MLP.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        shared_network: bool = False. Policy and value have the hidden layers in common.
        optimizer: Literal['rmsprop', 'adam'] = 'adam'. adam, or rmsprop (decay 0.99).
        learning_rate: float = 0.002. Of the optimizer, at the start.
        learning_rate_end: float = 0.0. Of the optimizer, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        optimizer_eps: float = 1e-05. Of the optimizer: added to the root of the second moment.
        gamma: float = 0.98. Discount.
        value_coef: float = 0.5. Weight of the value's loss.
        entropy_coef: float = 0.0. Weight of the entropy, which is maximised.
        normalize_advantages: bool = True. Mean 0 and standard deviation 1 within each update of more than one step.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        log_std: float = 0.0. Log of the standard deviation of continuous actions, at the start.
        normalize_obs: bool = False. Observations are shifted and scaled to mean 0 and variance 1, as seen so far.
        normalize_rewards: bool = False. Rewards are divided by the standard deviation of the discounted return, as
            seen so far.
        seed: int = 0. Of everything random: environments, initial weights, actions.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        """

class A3C(_A3C):
    def __init__(
        self, env: Env, config: A3CConfig | None = None, *,
        network: Any = 'auto',
        num_envs: int = 1,
        n_steps: int = 20,
        gae_lambda: float | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: Literal['tanh', 'relu'] = 'tanh',
        shared_network: bool = False,
        optimizer: Literal['rmsprop'] = 'rmsprop',
        learning_rate: float = 0.0007,
        learning_rate_end: float = 0.0,
        learning_rate_steps: int | None = None,
        optimizer_eps: float = 1e-05,
        gamma: float = 0.99,
        value_coef: float = 0.5,
        entropy_coef: float = 0.0,
        normalize_advantages: bool = False,
        max_grad_norm: float | None = 0.5,
        log_std: float = 0.0,
        normalize_obs: bool = False,
        normalize_rewards: bool = False,
        seed: int = 0,
        device: str = 'cpu',
        workers: int = 1,
        worker_timeout: float = 60.0,
    ) -> None:
        """Hyperparameters:

        num_envs: int = 1. Environments of each worker, stepped together.
        n_steps: int = 20. Steps of each environment from one update to the next; the returns look at most that far
            ahead.
        gae_lambda: float | None = None. lambda of GAE, where 0 is the one-step TD error and 1 the n-step return;
            None: n-step returns [M].
        network: Literal['auto', 'mlp', 'nature', 'impala'] = 'auto'. The ready-made network: an MLP, or a
            convolutional one for images; auto: nature for images of bytes.
        hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers of an MLP.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        shared_network: bool = False. Policy and value have the hidden layers in common.
        optimizer: Literal['rmsprop'] = 'rmsprop'. rmsprop (decay 0.99), whose statistics are shared.
        learning_rate: float = 0.0007. Of the optimizer, at the start.
        learning_rate_end: float = 0.0. Of the optimizer, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        optimizer_eps: float = 1e-05. Of the optimizer: added to the root of the second moment.
        gamma: float = 0.99. Discount.
        value_coef: float = 0.5. Weight of the value's loss.
        entropy_coef: float = 0.0. Weight of the entropy, which is maximised.
        normalize_advantages: bool = False. Mean 0 and standard deviation 1 within each update of more than one step.
        max_grad_norm: float | None = 0.5. Gradients are scaled down to this norm; None leaves them alone.
        log_std: float = 0.0. Log of the standard deviation of continuous actions, at the start.
        normalize_obs: bool = False. Not here: each worker would have statistics of its own, and all the same weights.
        normalize_rewards: bool = False. Rewards are divided by the standard deviation of the discounted return, as
            seen so far.
        seed: int = 0. Of everything random: environments, initial weights, actions.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        workers: int = 1. Processes that act and learn, this one among them; with more than one a run does not repeat
            itself.
        worker_timeout: float = 60.0. Seconds after which a worker that has taken no step is ended, and the others go
            on.
        """

class PPO(_PPO):
    def __init__(
        self, env: Env, config: PPOConfig | None = None, *,
        network: Any = 'auto',
        objective: Literal['clip', 'penalty'] = 'clip',
        num_envs: int = 8,
        n_steps: int = 32,
        epochs: int = 20,
        minibatches: int = 1,
        hidden: Sequence[int] = (64, 64),
        activation: Literal['tanh', 'relu'] = 'tanh',
        shared_network: bool = False,
        learning_rate: float = 0.001,
        learning_rate_end: float = 0.0001,
        learning_rate_steps: int | None = None,
        adam_eps: float = 1e-05,
        gamma: float = 0.98,
        gae_lambda: float = 0.8,
        clip_range: float = 0.2,
        clip_value: float | None = None,
        penalty_kl: float = 0.01,
        penalty_beta: float = 1.0,
        target_kl: float | None = None,
        value_coef: float = 0.5,
        entropy_coef: float = 0.0,
        normalize_advantages: bool = True,
        max_grad_norm: float | None = 0.5,
        log_std: float = 0.0,
        normalize_obs: bool = False,
        normalize_rewards: bool = False,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        objective: Literal['clip', 'penalty'] = 'clip'. clip: the ratio of probabilities is clipped. penalty: KL(old
            || new) costs beta, which adapts to penalty_kl.
        num_envs: int = 8. Environments stepped together.
        n_steps: int = 32. Steps of each environment from one update to the next.
        epochs: int = 20. Passes over the n_steps x num_envs steps in an update.
        minibatches: int = 1. Equal parts of a pass, a gradient step each.
        network: Literal['auto', 'mlp', 'nature', 'impala'] = 'auto'. The ready-made network: an MLP, or a
            convolutional one for images; auto: nature for images of bytes.
        hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers of an MLP.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        shared_network: bool = False. Policy and value have the hidden layers in common.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float = 0.0001. Of Adam, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        adam_eps: float = 1e-05. Of Adam: added to the root of the second moment.
        gamma: float = 0.98. Discount.
        gae_lambda: float = 0.8. lambda of GAE: 0 is the one-step TD error, 1 the whole return.
        clip_range: float = 0.2. Of the ratio of probabilities, around 1 (objective clip).
        clip_value: float | None = None. The new value is clipped to within this of the old one, and the larger loss
            of the two taken; None does not.
        penalty_kl: float = 0.01. KL(old || new) of an update that beta aims at (objective penalty).
        penalty_beta: float = 1.0. Weight of the KL at the start (objective penalty).
        target_kl: float | None = None. An update ends after the pass whose last minibatch, before its step, estimates
            KL(old || new) above this.
        value_coef: float = 0.5. Weight of the value's loss.
        entropy_coef: float = 0.0. Weight of the entropy, which is maximised.
        normalize_advantages: bool = True. Mean 0 and standard deviation 1 within each minibatch.
        max_grad_norm: float | None = 0.5. Gradients are scaled down to this norm; None leaves them alone.
        log_std: float = 0.0. Log of the standard deviation of continuous actions, at the start.
        normalize_obs: bool = False. Observations are shifted and scaled to mean 0 and variance 1, as seen so far.
        normalize_rewards: bool = False. Rewards are divided by the standard deviation of the discounted return, as
            seen so far.
        seed: int = 0. Of everything random: environments, initial weights, actions, minibatches.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        """

class RecurrentPPO(_RecurrentPPO):
    def __init__(
        self, env: Env, config: RecurrentPPOConfig | None = None, *,
        network: Literal['lstm', 'gru'] = 'lstm',
        objective: Literal['clip'] = 'clip',
        num_envs: int = 8,
        n_steps: int = 64,
        epochs: int = 10,
        minibatches: int = 1,
        hidden: Sequence[int] = (64,),
        activation: Literal['tanh', 'relu'] = 'tanh',
        shared_network: bool = True,
        learning_rate: float = 0.001,
        learning_rate_end: float = 0.0001,
        learning_rate_steps: int | None = None,
        adam_eps: float = 1e-05,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        clip_value: float | None = None,
        penalty_kl: float = 0.01,
        penalty_beta: float = 1.0,
        target_kl: float | None = None,
        value_coef: float = 0.5,
        entropy_coef: float = 0.01,
        normalize_advantages: bool = True,
        max_grad_norm: float | None = 0.5,
        log_std: float = 0.0,
        normalize_obs: bool = False,
        normalize_rewards: bool = False,
        seed: int = 0,
        device: str = 'cpu',
        memory_size: int = 64,
    ) -> None:
        """Hyperparameters:

        objective: Literal['clip'] = 'clip'. The ratio of probabilities is clipped.
        num_envs: int = 8. Environments stepped together.
        n_steps: int = 64. Steps of each environment from one update to the next; gradients go that far back.
        epochs: int = 10. Passes over the environments in an update.
        minibatches: int = 1. Equal parts of the environments, a gradient step each, with all their steps.
        network: Literal['lstm', 'gru'] = 'lstm'. The network's memory, between its hidden layers and its outputs.
        hidden: tuple[int, ...] = (64,). Sizes of the hidden layers before the memory.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        shared_network: bool = True. Always: policy and value have the hidden layers and the memory in common.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float = 0.0001. Of Adam, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        adam_eps: float = 1e-05. Of Adam: added to the root of the second moment.
        gamma: float = 0.99. Discount.
        gae_lambda: float = 0.95. lambda of GAE: 0 is the one-step TD error, 1 the whole return.
        clip_range: float = 0.2. Of the ratio of probabilities, around 1 (objective clip).
        clip_value: float | None = None. The new value is clipped to within this of the old one, and the larger loss
            of the two taken; None does not.
        penalty_kl: float = 0.01. KL(old || new) of an update that beta aims at (objective penalty).
        penalty_beta: float = 1.0. Weight of the KL at the start (objective penalty).
        target_kl: float | None = None. An update ends after the pass whose last minibatch, before its step, estimates
            KL(old || new) above this.
        value_coef: float = 0.5. Weight of the value's loss.
        entropy_coef: float = 0.01. Weight of the entropy, which is maximised.
        normalize_advantages: bool = True. Mean 0 and standard deviation 1 within each minibatch.
        max_grad_norm: float | None = 0.5. Gradients are scaled down to this norm; None leaves them alone.
        log_std: float = 0.0. Log of the standard deviation of continuous actions, at the start.
        normalize_obs: bool = False. Observations are shifted and scaled to mean 0 and variance 1, as seen so far.
        normalize_rewards: bool = False. Rewards are divided by the standard deviation of the discounted return, as
            seen so far.
        seed: int = 0. Of everything random: environments, initial weights, actions, minibatches.
        device: str = 'cpu'. The CPU is the one device of this agent.
        memory_size: int = 64. Units of the memory.
        """

class TRPO(_TRPO):
    def __init__(
        self, env: Env, config: TRPOConfig | None = None, *,
        network: Any = None,
        num_envs: int = 8,
        n_steps: int = 128,
        max_kl: float = 0.01,
        max_kl_end: float = 0.001,
        cg_iterations: int = 15,
        cg_damping: float = 0.001,
        cg_rtol: float = 1e-05,
        backtracks: int = 10,
        backtrack: float = 0.8,
        value_epochs: int = 20,
        minibatches: int = 8,
        hidden: Sequence[int] = (64, 64),
        activation: Literal['tanh', 'relu'] = 'tanh',
        learning_rate: float = 0.001,
        learning_rate_end: float = 0.001,
        learning_rate_steps: int | None = None,
        adam_eps: float = 1e-05,
        gamma: float = 0.98,
        gae_lambda: float = 0.95,
        normalize_advantages: bool = True,
        log_std: float = 0.0,
        normalize_obs: bool = False,
        normalize_rewards: bool = False,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        num_envs: int = 8. Environments stepped together.
        n_steps: int = 128. Steps of each environment from one update to the next.
        max_kl: float = 0.01. No update moves the policy by more than this mean KL(old || new), at the start.
        max_kl_end: float = 0.001. From learning_rate_steps on, if less: at the bound, a policy that is good already
            still moves at random.
        cg_iterations: int = 15. Of conjugate gradient, at most.
        cg_damping: float = 0.001. Added to the diagonal of the Fisher matrix.
        cg_rtol: float = 1e-05. Conjugate gradient stops when the residual is this small relative to the gradient.
        backtracks: int = 10. How often the line search makes the step shorter, at most.
        backtrack: float = 0.8. By this factor.
        value_epochs: int = 20. Passes over the n_steps x num_envs steps to fit the value, in an update.
        minibatches: int = 8. Equal parts of a pass, a gradient step each.
        hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers, of the policy and of the value network.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float = 0.001. Of Adam, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate and max_kl fall
            linearly; None: all of the run.
        adam_eps: float = 1e-05. Of Adam: added to the root of the second moment.
        gamma: float = 0.98. Discount.
        gae_lambda: float = 0.95. lambda of GAE: 0 is the one-step TD error, 1 the whole return.
        normalize_advantages: bool = True. Mean 0 and standard deviation 1 within each update.
        log_std: float = 0.0. Log of the standard deviation of continuous actions, at the start.
        normalize_obs: bool = False. Observations are shifted and scaled to mean 0 and variance 1, as seen so far.
        normalize_rewards: bool = False. Rewards are divided by the standard deviation of the discounted return, as
            seen so far.
        seed: int = 0. Of everything random: environments, initial weights, actions, minibatches.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        """

class QProp(_QProp):
    def __init__(
        self, env: Env, config: QPropConfig | None = None, *,
        network: Any = None,
        num_envs: int = 8,
        n_steps: int = 128,
        max_kl: float = 0.01,
        max_kl_end: float = 0.001,
        cg_iterations: int = 15,
        cg_damping: float = 0.001,
        cg_rtol: float = 1e-05,
        backtracks: int = 10,
        backtrack: float = 0.8,
        value_epochs: int = 20,
        minibatches: int = 8,
        hidden: Sequence[int] = (64, 64),
        activation: Literal['tanh', 'relu'] = 'tanh',
        learning_rate: float = 0.001,
        learning_rate_end: float = 0.001,
        learning_rate_steps: int | None = None,
        adam_eps: float = 1e-05,
        gamma: float = 0.98,
        gae_lambda: float = 0.95,
        normalize_advantages: bool = True,
        log_std: float = 0.0,
        normalize_obs: bool = False,
        normalize_rewards: bool = False,
        seed: int = 0,
        device: str = 'cpu',
        control: Literal['conservative', 'aggressive'] = 'conservative',
        critic_hidden: Sequence[int] = (64, 64),
        critic_learning_rate: float = 0.001,
        critic_updates: int | None = None,
        tau: float = 0.005,
        batch_size: int = 64,
        buffer_size: int = 1000000,
    ) -> None:
        """Hyperparameters:

        num_envs: int = 8. Environments stepped together.
        n_steps: int = 128. Steps of each environment from one update to the next.
        max_kl: float = 0.01. No update moves the policy by more than this mean KL(old || new), at the start.
        max_kl_end: float = 0.001. From learning_rate_steps on, if less: at the bound, a policy that is good already
            still moves at random.
        cg_iterations: int = 15. Of conjugate gradient, at most.
        cg_damping: float = 0.001. Added to the diagonal of the Fisher matrix.
        cg_rtol: float = 1e-05. Conjugate gradient stops when the residual is this small relative to the gradient.
        backtracks: int = 10. How often the line search makes the step shorter, at most.
        backtrack: float = 0.8. By this factor.
        value_epochs: int = 20. Passes over the n_steps x num_envs steps to fit the value, in an update.
        minibatches: int = 8. Equal parts of a pass, a gradient step each.
        hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers, of the policy and of the value network.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float = 0.001. Of Adam, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate and max_kl fall
            linearly; None: all of the run.
        adam_eps: float = 1e-05. Of Adam: added to the root of the second moment.
        gamma: float = 0.98. Discount.
        gae_lambda: float = 0.95. lambda of GAE: 0 is the one-step TD error, 1 the whole return.
        normalize_advantages: bool = True. Mean 0 and standard deviation 1 within each update.
        log_std: float = 0.0. Log of the standard deviation of continuous actions, at the start.
        normalize_obs: bool = False. Observations are shifted and scaled to mean 0 and variance 1, as seen so far.
        normalize_rewards: bool = False. Rewards are divided by the standard deviation of the discounted return, as
            seen so far.
        seed: int = 0. Of everything random: environments, initial weights, actions, minibatches.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        control: Literal['conservative', 'aggressive'] = 'conservative'. Where control variate and advantage have
            different signs, it is left out, or goes in with the other sign.
        critic_hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers of Q.
        critic_learning_rate: float = 0.001. Of Q's Adam.
        critic_updates: int | None = None. Of Q after each rollout; None: as many as the rollout has steps.
        tau: float = 0.005. Target of Q <- tau Q + (1 - tau) target; 1 copies.
        batch_size: int = 64. Transitions in an update of Q.
        buffer_size: int = 1000000. Transitions kept for replay.
        """

class CEM(_CEM):
    def __init__(
        self, env: Env, config: CEMConfig | None = None, *,
        network: Any = None,
        num_envs: int = 1,
        population: int = 24,
        elites: int = 6,
        episodes: int = 1,
        hidden: Sequence[int] = (8,),
        activation: Literal['tanh', 'relu'] = 'tanh',
        std: float = 0.5,
        extra_std: float = 0.1,
        extra_std_steps: int | None = None,
        learning_rate: float = 1.0,
        learning_rate_end: float = 1.0,
        learning_rate_steps: int | None = None,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        num_envs: int = 1. Environments stepped together, with the same policy; one that has played its episodes waits
            for the others.
        population: int = 24. Policies in a generation.
        elites: int = 6. The best of them, of which the next generation is made.
        episodes: int = 1. Whole episodes of each policy in each environment.
        hidden: tuple[int, ...] = (8,). Sizes of the hidden layers.
        activation: Activation = 'tanh'. Of the hidden layers: tanh or relu.
        std: float = 0.5. Standard deviation of the weights in the first generation.
        extra_std: float = 0.1. The variance grows by the square of so much after each generation, at the start; it
            falls linearly to 0.
        extra_std_steps: int | None = None. Environment steps over which extra_std falls; None: all of the run.
        learning_rate: float = 1.0. How far mean and variance go over to the elites', at the start.
        learning_rate_end: float = 1.0. How far they do, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate changes linearly; None:
            all of the run.
        seed: int = 0. Of everything random: environments, initial weights, populations.
        device: str = 'cpu'. cpu: policies that play one after another are too little for a GPU.
        """

class NAF(_NAF):
    def __init__(
        self, env: Env, config: NAFConfig | None = None, *,
        network: Any = None,
        prioritized: bool = False,
        n_step: int = 1,
        num_envs: int = 1,
        hidden: Sequence[int] = (200, 200),
        learning_rate: float = 0.001,
        learning_rate_end: float | None = None,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 0.005,
        buffer_size: int = 1000000,
        batch_size: int = 128,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates: int = 1,
        max_grad_norm: float | None = None,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        noise: Literal['gaussian', 'ou'] = 'gaussian',
        noise_std: float = 0.1,
        ou_theta: float = 0.15,
        reward_scale: float = 1.0,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (200, 200). Sizes of the hidden layers, which V, mu and L share.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float | None = None. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 0.005. Target <- tau online + (1 - tau) target; 1 copies.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 128. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 1. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        noise: Literal['gaussian', 'ou'] = 'gaussian'. Of the exploration: independent from step to step, or an
            Ornstein-Uhlenbeck process, begun anew each episode.
        noise_std: float = 0.1. Standard deviation of the noise, or of the process's increments, where the actions'
            range is [-1, 1].
        ou_theta: float = 0.15. How much of its value the Ornstein-Uhlenbeck process loses in a step.
        reward_scale: float = 1.0. Rewards are learned from as so many times what they are: values of 1 to 10 are
            learned best.
        """

class QTOpt(_QTOpt):
    def __init__(
        self, env: Env, config: QTOptConfig | None = None, *,
        network: Any = None,
        prioritized: bool = False,
        n_step: int = 1,
        num_envs: int = 1,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 0.001,
        learning_rate_end: float | None = None,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 0.005,
        buffer_size: int = 1000000,
        batch_size: int = 128,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates: int = 1,
        max_grad_norm: float | None = None,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        noise: Literal['gaussian', 'ou'] = 'gaussian',
        noise_std: float = 0.1,
        ou_theta: float = 0.15,
        lag: int = 500,
        cem_iterations: int = 2,
        cem_samples: int = 64,
        cem_elites: int = 6,
        cem_std: float = 1.0,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (256, 256). Sizes of the hidden layers of each network.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float | None = None. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 0.005. Target <- tau online + (1 - tau) target; 1 copies.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 128. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 1. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        noise: Literal['gaussian', 'ou'] = 'gaussian'. Of the exploration: independent from step to step, or an
            Ornstein-Uhlenbeck process, begun anew each episode.
        noise_std: float = 0.1. Standard deviation of the noise, or of the process's increments, where the actions'
            range is [-1, 1].
        ou_theta: float = 0.15. How much of its value the Ornstein-Uhlenbeck process loses in a step.
        lag: int = 500. Updates from one copy of the target network to the second target network to the next.
        cem_iterations: int = 2. Of the search for the best action.
        cem_samples: int = 64. Actions tried in an iteration.
        cem_elites: int = 6. The best of them, to whose mean and standard deviation the next iteration goes on.
        cem_std: float = 1.0. Standard deviation of the first iteration, where the actions' range is [-1, 1].
        """

class DDPG(_DDPG):
    def __init__(
        self, env: Env, config: DDPGConfig | None = None, *,
        network: Any = None,
        prioritized: bool = False,
        n_step: int = 1,
        num_envs: int = 1,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 0.001,
        learning_rate_end: float | None = None,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 0.005,
        buffer_size: int = 1000000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates: int = 1,
        max_grad_norm: float | None = None,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        actor_learning_rate: float = 0.001,
        lap: bool = False,
        lap_alpha: float = 0.4,
        noise: Literal['gaussian', 'ou'] = 'gaussian',
        noise_std: float = 0.1,
        ou_theta: float = 0.15,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (256, 256). Sizes of the hidden layers of each network.
        learning_rate: float = 0.001. Of the critic's Adam, at the start.
        learning_rate_end: float | None = None. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 0.005. Target <- tau online + (1 - tau) target; 1 copies.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 256. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 1. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        actor_learning_rate: float = 0.001. Of the actor's Adam, at the start; falls in the same proportion as the
            critic's.
        lap: bool = False. Loss-adjusted priorities: replay in proportion to max(|TD error|, 1)^lap_alpha without
            importance weights, and Huber's loss in place of the square.
        lap_alpha: float = 0.4. Exponent of the loss-adjusted priorities: 0 is uniform replay.
        noise: Literal['gaussian', 'ou'] = 'gaussian'. Of the exploration: independent from step to step, or an
            Ornstein-Uhlenbeck process, begun anew each episode.
        noise_std: float = 0.1. Standard deviation of the noise, or of the process's increments, where the actions'
            range is [-1, 1].
        ou_theta: float = 0.15. How much of its value the Ornstein-Uhlenbeck process loses in a step.
        """

class D4PG(_D4PG):
    def __init__(
        self, env: Env, config: D4PGConfig | None = None, *,
        network: Any = None,
        prioritized: bool = False,
        n_step: int = 5,
        num_envs: int = 1,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 0.001,
        learning_rate_end: float | None = None,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 0.005,
        buffer_size: int = 1000000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates: int = 1,
        max_grad_norm: float | None = None,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        actor_learning_rate: float = 0.001,
        noise: Literal['gaussian', 'ou'] = 'gaussian',
        noise_std: float = 0.1,
        ou_theta: float = 0.15,
        n_atoms: int = 51,
        v_min: float = -150.0,
        v_max: float = 150.0,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 5. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (256, 256). Sizes of the hidden layers of each network.
        learning_rate: float = 0.001. Of the critic's Adam, at the start.
        learning_rate_end: float | None = None. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 0.005. Target <- tau online + (1 - tau) target; 1 copies.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 256. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 1. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        actor_learning_rate: float = 0.001. Of the actor's Adam, at the start; falls in the same proportion as the
            critic's.
        noise: Literal['gaussian', 'ou'] = 'gaussian'. Of the exploration: independent from step to step, or an
            Ornstein-Uhlenbeck process, begun anew each episode.
        noise_std: float = 0.1. Standard deviation of the noise, or of the process's increments, where the actions'
            range is [-1, 1].
        ou_theta: float = 0.15. How much of its value the Ornstein-Uhlenbeck process loses in a step.
        n_atoms: int = 51. Returns that the critic gives a probability each.
        v_min: float = -150.0. The least of them; what falls below counts as it.
        v_max: float = 150.0. The largest of them; what lies above counts as it.
        """

class TD3(_TD3):
    def __init__(
        self, env: Env, config: TD3Config | None = None, *,
        network: Any = None,
        prioritized: bool = False,
        n_step: int = 1,
        num_envs: int = 1,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 0.001,
        learning_rate_end: float | None = None,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 0.005,
        buffer_size: int = 1000000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates: int = 1,
        max_grad_norm: float | None = None,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        actor_learning_rate: float = 0.001,
        lap: bool = False,
        lap_alpha: float = 0.4,
        policy_delay: int = 2,
        exploration_noise: float = 0.1,
        target_noise: float = 0.2,
        target_noise_clip: float = 0.5,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (256, 256). Sizes of the hidden layers of each network.
        learning_rate: float = 0.001. Of the critics' Adam, at the start.
        learning_rate_end: float | None = None. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 0.005. Target <- tau online + (1 - tau) target; 1 copies.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 256. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 1. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        actor_learning_rate: float = 0.001. Of the actor's Adam, at the start; falls in the same proportion as the
            critics'.
        lap: bool = False. Loss-adjusted priorities: replay in proportion to max(|TD error|, 1)^lap_alpha without
            importance weights, and Huber's loss in place of the square.
        lap_alpha: float = 0.4. Exponent of the loss-adjusted priorities: 0 is uniform replay.
        policy_delay: int = 2. Updates of the critics from one of the actor and the targets to the next.
        exploration_noise: float = 0.1. Standard deviation of the Gaussian noise on the actions, where their range is
            [-1, 1].
        target_noise: float = 0.2. Standard deviation of the noise on the target actor's actions, in the same units.
        target_noise_clip: float = 0.5. That noise is clipped to at most this much either way.
        """

class SAC(_SAC):
    def __init__(
        self, env: Env, config: SACConfig | None = None, *,
        network: Any = None,
        prioritized: bool = False,
        n_step: int = 1,
        num_envs: int = 1,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 0.001,
        learning_rate_end: float | None = None,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 0.005,
        buffer_size: int = 1000000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates: int = 1,
        max_grad_norm: float | None = None,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        actor_learning_rate: float = 0.0003,
        temperature: float | None = None,
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (256, 256). Sizes of the hidden layers of each network.
        learning_rate: float = 0.001. Of the critics' Adam, and of the temperature's, at the start.
        learning_rate_end: float | None = None. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 0.005. Target <- tau online + (1 - tau) target; 1 copies.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 256. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 1. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        actor_learning_rate: float = 0.0003. Of the actor's Adam, at the start; falls in the same proportion as the
            critics'.
        temperature: float | None = None. Weight of the entropy; None: tuned so that the policy has the target
            entropy.
        initial_temperature: float = 1.0. Where the tuning starts.
        target_entropy: float | None = None. Of the policy, where the actions' range is [-1, 1]; None: minus the
            number of action dimensions.
        log_std_min: float = -20.0. The log standard deviation before the tanh is at least this.
        log_std_max: float = 2.0. The log standard deviation before the tanh is at most this.
        """

class SACDiscrete(_SACDiscrete):
    def __init__(
        self, env: Env, config: SACDiscreteConfig | None = None, *,
        network: Any = 'auto',
        prioritized: bool = False,
        n_step: int = 1,
        num_envs: int = 1,
        hidden: Sequence[int] = (128, 128),
        learning_rate: float = 0.001,
        learning_rate_end: float | None = 1e-05,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 0.02,
        buffer_size: int = 1000000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_every: int = 2,
        updates: int = 1,
        max_grad_norm: float | None = 1.0,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        actor_learning_rate: float = 0.001,
        temperature: float | None = 0.1,
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (128, 128). Sizes of the hidden layers of each MLP.
        learning_rate: float = 0.001. Of the critics' Adam, and of the temperature's, at the start.
        learning_rate_end: float | None = 1e-05. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 0.02. Target <- tau online + (1 - tau) target; 1 copies.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 256. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 2. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = 1.0. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        actor_learning_rate: float = 0.001. Of the actor's Adam, at the start; falls in the same proportion as the
            critics'.
        network: Literal['auto', 'mlp', 'nature', 'impala'] = 'auto'. The ready-made networks: MLPs, or convolutional
            ones for images; auto: nature for images of bytes.
        temperature: float | None = 0.1. Weight of the entropy; None: tuned so that the policy has the target entropy.
        initial_temperature: float = 1.0. Where the tuning starts.
        target_entropy: float | None = None. Of the policy; None: 0.98 of the largest, log(number of actions).
        """

class TQC(_TQC):
    def __init__(
        self, env: Env, config: TQCConfig | None = None, *,
        network: Any = None,
        prioritized: bool = False,
        n_step: int = 1,
        num_envs: int = 1,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 0.0003,
        learning_rate_end: float | None = None,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 0.005,
        buffer_size: int = 1000000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates: int = 1,
        max_grad_norm: float | None = None,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        actor_learning_rate: float = 0.0003,
        temperature: float | None = None,
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
        n_critics: int = 5,
        n_quantiles: int = 25,
        drop_per_critic: int = 2,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (256, 256). Sizes of the hidden layers of each network.
        learning_rate: float = 0.0003. Of the critics' Adam, and of the temperature's, at the start.
        learning_rate_end: float | None = None. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 0.005. Target <- tau online + (1 - tau) target; 1 copies.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 256. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 1. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        actor_learning_rate: float = 0.0003. Of the actor's Adam, at the start; falls in the same proportion as the
            critics'.
        temperature: float | None = None. Weight of the entropy; None: tuned so that the policy has the target
            entropy.
        initial_temperature: float = 1.0. Where the tuning starts.
        target_entropy: float | None = None. Of the policy, where the actions' range is [-1, 1]; None: minus the
            number of action dimensions.
        log_std_min: float = -20.0. The log standard deviation before the tanh is at least this.
        log_std_max: float = 2.0. The log standard deviation before the tanh is at most this.
        n_critics: int = 5. Critics, whose quantiles are pooled.
        n_quantiles: int = 25. Quantiles of the return that a critic gives.
        drop_per_critic: int = 2. Of the target's pooled quantiles the largest are left out, so many for each critic.
        """

class CrossQ(_CrossQ):
    def __init__(
        self, env: Env, config: CrossQConfig | None = None, *,
        prioritized: bool = False,
        n_step: int = 1,
        num_envs: int = 1,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 0.001,
        learning_rate_end: float | None = None,
        learning_rate_steps: int | None = None,
        gamma: float = 0.99,
        tau: float = 1.0,
        buffer_size: int = 1000000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates: int = 1,
        max_grad_norm: float | None = None,
        per_alpha: float = 0.6,
        per_beta: float = 0.4,
        per_beta_end: float = 1.0,
        per_beta_steps: int | None = None,
        per_eps: float = 1e-06,
        seed: int = 0,
        device: str = 'cpu',
        actor_learning_rate: float = 0.001,
        temperature: float | None = None,
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
        critic_hidden: Sequence[int] = (256, 256),
        adam_beta1: float = 0.5,
        policy_delay: int = 3,
        norm_momentum: float = 0.01,
        norm_warmup: int = 100000,
    ) -> None:
        """Hyperparameters:

        prioritized: bool = False. Replay in proportion to |TD error|^alpha, corrected by importance weights.
        n_step: int = 1. Rewards summed before the bootstrap; fewer at the end of an episode.
        num_envs: int = 1. Environments stepped together.
        hidden: tuple[int, ...] = (256, 256). Sizes of the hidden layers of each network.
        learning_rate: float = 0.001. Of the critics' Adam, and of the temperature's, at the start.
        learning_rate_end: float | None = None. Of Adam, from learning_rate_steps on; None: constant.
        learning_rate_steps: int | None = None. Environment steps over which the learning rates fall linearly; None:
            all of the run.
        gamma: float = 0.99. Discount.
        tau: float = 1.0. There are no target networks: only 1.
        buffer_size: int = 1000000. Transitions kept for replay.
        batch_size: int = 256. Transitions in an update.
        learning_starts: int = 1000. Environment steps with uniformly random actions before the first update.
        train_every: int = 1. Environment steps from one round of updates to the next.
        updates: int = 1. Updates in a round.
        max_grad_norm: float | None = None. Gradients are scaled down to this norm; None leaves them alone.
        per_alpha: float = 0.6. Exponent of the priorities: 0 is uniform replay.
        per_beta: float = 0.4. Exponent of the importance weights at the start.
        per_beta_end: float = 1.0. Exponent of the importance weights from per_beta_steps on.
        per_beta_steps: int | None = None. Environment steps over which beta rises linearly; None: all of the run.
        per_eps: float = 1e-06. Added to |TD error|, so that no priority is 0.
        seed: int = 0. Of everything random: environments, initial weights, exploration, replay.
        device: str = 'cpu'. cpu, cuda or auto; small networks are faster on the CPU.
        actor_learning_rate: float = 0.001. Of the actor's Adam, at the start; falls in the same proportion as the
            critics'.
        temperature: float | None = None. Weight of the entropy; None: tuned so that the policy has the target
            entropy.
        initial_temperature: float = 1.0. Where the tuning starts.
        target_entropy: float | None = None. Of the policy, where the actions' range is [-1, 1]; None: minus the
            number of action dimensions.
        log_std_min: float = -20.0. The log standard deviation before the tanh is at least this.
        log_std_max: float = 2.0. The log standard deviation before the tanh is at most this.
        critic_hidden: tuple[int, ...] = (256, 256). Sizes of the hidden layers of each critic; wider ones learn
            faster and cost more.
        adam_beta1: float = 0.5. Decay of the mean of the gradients in the actor's and the critics' Adam.
        policy_delay: int = 3. Updates of the critics from one of the actor and the temperature to the next.
        norm_momentum: float = 0.01. How far the running statistics of the batch normalisation move to those of a
            batch.
        norm_warmup: int = 100000. Batches normalised by their own statistics, before the running ones count (batch
            renormalisation).
        """

class QLearning(_QLearning):
    def __init__(
        self, env: Env, config: TabularConfig | None = None, *,
        num_envs: int = 1,
        learning_rate: float = 0.1,
        learning_rate_end: float = 0.1,
        learning_rate_steps: int | None = None,
        learning_rate_power: float = 0.0,
        learning_rate_horizon: float = 0.0,
        gamma: float = 0.99,
        initial_value: float = 0.0,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        epsilon_steps: int | None = None,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        num_envs: int = 1. Environments that share the table.
        learning_rate: float = 0.1. At the start: Q(s, a) moves by this share of the TD error.
        learning_rate_end: float = 0.1. From learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        learning_rate_power: float = 0.0. The learning rate is divided by (visits of s, a)^power; above 1/2 Q
            converges in spite of chance.
        learning_rate_horizon: float = 0.0. H: that divisor is ((H + visits) / (H + 1))^power, so that where rewards
            are many steps away what was learned before they were found is forgotten.
        gamma: float = 0.99. Discount.
        initial_value: float = 0.0. Of all Q at the start; a value too high makes the agent try everything.
        epsilon_start: float = 1.0. Probability of a random action at the start.
        epsilon_end: float = 0.05. Probability of a random action from epsilon_steps on.
        epsilon_steps: int | None = None. Environment steps over which epsilon falls linearly; None: all of the run.
        seed: int = 0. Of everything random: environments and exploration.
        device: str = 'cpu'. cpu: a table is not learned on a GPU.
        """

class SARSA(_SARSA):
    def __init__(
        self, env: Env, config: SARSAConfig | None = None, *,
        num_envs: int = 1,
        learning_rate: float = 0.1,
        learning_rate_end: float = 0.1,
        learning_rate_steps: int | None = None,
        learning_rate_power: float = 0.0,
        learning_rate_horizon: float = 0.0,
        gamma: float = 0.99,
        initial_value: float = 0.0,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        epsilon_steps: int | None = None,
        seed: int = 0,
        device: str = 'cpu',
        lam: float = 0.0,
    ) -> None:
        """Hyperparameters:

        num_envs: int = 1. Environments that share the table.
        learning_rate: float = 0.1. At the start: Q(s, a) moves by this share of the TD error.
        learning_rate_end: float = 0.1. From learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        learning_rate_power: float = 0.0. The learning rate is divided by (visits of s, a)^power; above 1/2 Q
            converges in spite of chance.
        learning_rate_horizon: float = 0.0. H: that divisor is ((H + visits) / (H + 1))^power, so that where rewards
            are many steps away what was learned before they were found is forgotten.
        gamma: float = 0.99. Discount.
        initial_value: float = 0.0. Of all Q at the start; a value too high makes the agent try everything.
        epsilon_start: float = 1.0. Probability of a random action at the start.
        epsilon_end: float = 0.05. Probability of a random action from epsilon_steps on.
        epsilon_steps: int | None = None. Environment steps over which epsilon falls linearly; None: all of the run.
        seed: int = 0. Of everything random: environments and exploration.
        device: str = 'cpu'. cpu: a table is not learned on a GPU.
        lam: float = 0.0. Lambda: how fast the eligibility of what was done before decays, besides gamma; 0: one step.
        """

class ExpectedSARSA(_ExpectedSARSA):
    def __init__(
        self, env: Env, config: TabularConfig | None = None, *,
        num_envs: int = 1,
        learning_rate: float = 0.1,
        learning_rate_end: float = 0.1,
        learning_rate_steps: int | None = None,
        learning_rate_power: float = 0.0,
        learning_rate_horizon: float = 0.0,
        gamma: float = 0.99,
        initial_value: float = 0.0,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        epsilon_steps: int | None = None,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        num_envs: int = 1. Environments that share the table.
        learning_rate: float = 0.1. At the start: Q(s, a) moves by this share of the TD error.
        learning_rate_end: float = 0.1. From learning_rate_steps on.
        learning_rate_steps: int | None = None. Environment steps over which the learning rate falls linearly; None:
            all of the run.
        learning_rate_power: float = 0.0. The learning rate is divided by (visits of s, a)^power; above 1/2 Q
            converges in spite of chance.
        learning_rate_horizon: float = 0.0. H: that divisor is ((H + visits) / (H + 1))^power, so that where rewards
            are many steps away what was learned before they were found is forgotten.
        gamma: float = 0.99. Discount.
        initial_value: float = 0.0. Of all Q at the start; a value too high makes the agent try everything.
        epsilon_start: float = 1.0. Probability of a random action at the start.
        epsilon_end: float = 0.05. Probability of a random action from epsilon_steps on.
        epsilon_steps: int | None = None. Environment steps over which epsilon falls linearly; None: all of the run.
        seed: int = 0. Of everything random: environments and exploration.
        device: str = 'cpu'. cpu: a table is not learned on a GPU.
        """

class FQI(_FQI):
    def __init__(
        self, env: Env, config: FQIConfig | None = None, *,
        dataset: Any = None,
        regressor: Literal['auto', 'table', 'trees', 'network'] = 'auto',
        transitions: int | None = None,
        num_envs: int = 1,
        gamma: float = 0.99,
        networks: int = 5,
        hidden: Sequence[int] = (64, 64),
        epochs: int = 2,
        batch_size: int = 256,
        learning_rate: float = 0.001,
        learning_rate_end: float = 0.001,
        learning_rate_steps: int | None = None,
        trees: int = 50,
        min_split: int = 5,
        seed: int = 0,
        device: str = 'cpu',
    ) -> None:
        """Hyperparameters:

        regressor: Literal['auto', 'table', 'trees', 'network'] = 'auto'. What Q is fitted by: the mean of each cell
            (table), extremely randomised trees, or MLPs (network); auto: a table for Discrete observations, else a
            network.
        dataset: str | None = None. A file or storage folder of a replay buffer, or the id of a Minari dataset on this
            machine; None: random play.
        transitions: int | None = None. How many are learned from: the newest of the dataset (None: all), or of random
            play (None: 20,000).
        num_envs: int = 1. Environments that the random policy plays in.
        gamma: float = 0.99. Discount.
        networks: int = 5. MLPs of the regressor network, each with its own weights; Q is the least of theirs, so that
            what the transitions do not show is not overestimated.
        hidden: tuple[int, ...] = (64, 64). Sizes of the hidden layers of each MLP.
        epochs: int = 2. Passes of the MLPs over all transitions in an iteration.
        batch_size: int = 256. Transitions in a gradient step of the MLPs.
        learning_rate: float = 0.001. Of Adam, at the start.
        learning_rate_end: float = 0.001. Of Adam, from learning_rate_steps on.
        learning_rate_steps: int | None = None. Iterations over which the learning rate falls linearly; None: all of
            the run.
        trees: int = 50. Trees of each action.
        min_split: int = 5. Transitions that a node of a tree must have to be split; more of them smooth.
        seed: int = 0. Of everything random: environments, random play, initial weights, minibatches, trees.
        device: str = 'cpu'. cpu.
        """
