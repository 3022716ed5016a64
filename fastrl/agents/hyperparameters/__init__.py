"""The hyperparameters of the algorithms: defaults, meanings and checks, without PyTorch."""

from typing import Any

from fastrl.agents.hyperparameters.batch import FQIConfig
from fastrl.agents.hyperparameters.distributed import ApeXConfig, ApeXDPGConfig, ApeXR2D2Config, IMPALAConfig
from fastrl.agents.hyperparameters.off_policy import (
    CrossQConfig,
    D4PGConfig,
    DDPGConfig,
    DQNConfig,
    NAFConfig,
    QTOptConfig,
    SACConfig,
    SACDiscreteConfig,
    TD3Config,
    TQCConfig,
)
from fastrl.agents.hyperparameters.on_policy import (
    A2CConfig,
    A3CConfig,
    ActorCriticConfig,
    CEMConfig,
    PPOConfig,
    QPropConfig,
    REINFORCEConfig,
    TRPOConfig,
)
from fastrl.agents.hyperparameters.recurrent import R2D2Config, RecurrentPPOConfig
from fastrl.agents.hyperparameters.tabular import SARSAConfig, TabularConfig

CONFIGS: dict[str, type[Any]] = {
    "dqn": DQNConfig,
    "r2d2": R2D2Config,
    "reinforce": REINFORCEConfig,
    "actor_critic": ActorCriticConfig,
    "a2c": A2CConfig,
    "a3c": A3CConfig,
    "ppo": PPOConfig,
    "recurrent_ppo": RecurrentPPOConfig,
    "trpo": TRPOConfig,
    "q_prop": QPropConfig,
    "cem": CEMConfig,
    "naf": NAFConfig,
    "qt_opt": QTOptConfig,
    "ddpg": DDPGConfig,
    "d4pg": D4PGConfig,
    "td3": TD3Config,
    "sac": SACConfig,
    "sac_discrete": SACDiscreteConfig,
    "tqc": TQCConfig,
    "crossq": CrossQConfig,
    "q_learning": TabularConfig,
    "sarsa": SARSAConfig,
    "expected_sarsa": TabularConfig,
    "fqi": FQIConfig,
    "apex": ApeXConfig,
    "apex_dpg": ApeXDPGConfig,
    "apex_r2d2": ApeXR2D2Config,
    "impala": IMPALAConfig,
}

__all__ = [
    "CONFIGS",
    "A2CConfig",
    "A3CConfig",
    "ActorCriticConfig",
    "ApeXConfig",
    "ApeXDPGConfig",
    "ApeXR2D2Config",
    "CEMConfig",
    "CrossQConfig",
    "D4PGConfig",
    "DDPGConfig",
    "DQNConfig",
    "FQIConfig",
    "IMPALAConfig",
    "NAFConfig",
    "PPOConfig",
    "QPropConfig",
    "QTOptConfig",
    "R2D2Config",
    "REINFORCEConfig",
    "RecurrentPPOConfig",
    "SACConfig",
    "SACDiscreteConfig",
    "SARSAConfig",
    "TD3Config",
    "TQCConfig",
    "TRPOConfig",
    "TabularConfig",
]
