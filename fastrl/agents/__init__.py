"""Agents: one file an algorithm, on networks, environments, training loop and checkpoints that they share.

Settings and errors are there at once; Gymnasium and the agents are imported when one is first used, PyTorch only for a
CUDA device, a network that is no MLP or a policy as a torch module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastrl.agents.config import InputError
from fastrl.agents.hyperparameters import (
    A2CConfig,
    A3CConfig,
    ActorCriticConfig,
    CEMConfig,
    CrossQConfig,
    D4PGConfig,
    DDPGConfig,
    DQNConfig,
    FQIConfig,
    NAFConfig,
    PPOConfig,
    QPropConfig,
    QTOptConfig,
    R2D2Config,
    RecurrentPPOConfig,
    REINFORCEConfig,
    SACConfig,
    SACDiscreteConfig,
    SARSAConfig,
    TabularConfig,
    TD3Config,
    TQCConfig,
    TRPOConfig,
)

if TYPE_CHECKING:
    from fastrl.agents.a2c import A2C, OneStepActorCritic
    from fastrl.agents.a3c import A3C
    from fastrl.agents.agent import Agent
    from fastrl.agents.callbacks import Callback
    from fastrl.agents.cem import CEM
    from fastrl.agents.crossq import CrossQ
    from fastrl.agents.d4pg import D4PG
    from fastrl.agents.ddpg import DDPG
    from fastrl.agents.dqn import DQN
    from fastrl.agents.env_config import EnvConfig
    from fastrl.agents.evaluation import Evaluation
    from fastrl.agents.fqi import FQI
    from fastrl.agents.loading import load
    from fastrl.agents.naf import NAF
    from fastrl.agents.ppo import PPO
    from fastrl.agents.q_prop import QProp
    from fastrl.agents.qt_opt import QTOpt
    from fastrl.agents.r2d2 import R2D2
    from fastrl.agents.recurrent_ppo import RecurrentPPO
    from fastrl.agents.reinforce import REINFORCE
    from fastrl.agents.sac import SAC
    from fastrl.agents.sac_discrete import SACDiscrete
    from fastrl.agents.tabular import SARSA, ExpectedSARSA, QLearning
    from fastrl.agents.td3 import TD3
    from fastrl.agents.tqc import TQC
    from fastrl.agents.trpo import TRPO

    ALGORITHMS: dict[str, type[Agent[Any]]]

# In which module each is that needs Gymnasium; and the agents by their names on the command line.
_MODULES = {
    "A2C": "a2c",
    "A3C": "a3c",
    "Agent": "agent",
    "Callback": "callbacks",
    "CEM": "cem",
    "CrossQ": "crossq",
    "D4PG": "d4pg",
    "DDPG": "ddpg",
    "DQN": "dqn",
    "EnvConfig": "env_config",
    "Evaluation": "evaluation",
    "ExpectedSARSA": "tabular",
    "FQI": "fqi",
    "NAF": "naf",
    "OneStepActorCritic": "a2c",
    "PPO": "ppo",
    "QLearning": "tabular",
    "QProp": "q_prop",
    "QTOpt": "qt_opt",
    "R2D2": "r2d2",
    "RecurrentPPO": "recurrent_ppo",
    "REINFORCE": "reinforce",
    "SAC": "sac",
    "SACDiscrete": "sac_discrete",
    "SARSA": "tabular",
    "TD3": "td3",
    "TQC": "tqc",
    "TRPO": "trpo",
    "load": "loading",
}
CLASS_NAMES = {
    "dqn": "DQN",
    "r2d2": "R2D2",
    "reinforce": "REINFORCE",
    "actor_critic": "OneStepActorCritic",
    "a2c": "A2C",
    "a3c": "A3C",
    "ppo": "PPO",
    "recurrent_ppo": "RecurrentPPO",
    "trpo": "TRPO",
    "q_prop": "QProp",
    "cem": "CEM",
    "naf": "NAF",
    "qt_opt": "QTOpt",
    "ddpg": "DDPG",
    "d4pg": "D4PG",
    "td3": "TD3",
    "sac": "SAC",
    "sac_discrete": "SACDiscrete",
    "tqc": "TQC",
    "crossq": "CrossQ",
    "q_learning": "QLearning",
    "sarsa": "SARSA",
    "expected_sarsa": "ExpectedSARSA",
    "fqi": "FQI",
}

__all__ = [
    "A2C",
    "A3C",
    "ALGORITHMS",
    "CEM",
    "D4PG",
    "DDPG",
    "DQN",
    "FQI",
    "NAF",
    "PPO",
    "R2D2",
    "REINFORCE",
    "SAC",
    "SARSA",
    "TD3",
    "TQC",
    "TRPO",
    "A2CConfig",
    "A3CConfig",
    "ActorCriticConfig",
    "Agent",
    "CEMConfig",
    "Callback",
    "CrossQ",
    "CrossQConfig",
    "D4PGConfig",
    "DDPGConfig",
    "DQNConfig",
    "EnvConfig",
    "Evaluation",
    "ExpectedSARSA",
    "FQIConfig",
    "InputError",
    "NAFConfig",
    "OneStepActorCritic",
    "PPOConfig",
    "QLearning",
    "QProp",
    "QPropConfig",
    "QTOpt",
    "QTOptConfig",
    "R2D2Config",
    "REINFORCEConfig",
    "RecurrentPPO",
    "RecurrentPPOConfig",
    "SACConfig",
    "SACDiscrete",
    "SACDiscreteConfig",
    "SARSAConfig",
    "TD3Config",
    "TQCConfig",
    "TRPOConfig",
    "TabularConfig",
    "load",
]


def __getattr__(name: str) -> Any:
    value: Any
    if name != "ALGORITHMS" and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        if name == "ALGORITHMS":
            value = {algorithm: getattr(import_module(__name__), agent) for algorithm, agent in CLASS_NAMES.items()}
        else:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("gymnasium", "rich", "safetensors", "tensorboard"):
            raise
        how = 'to install: pip install "fastrl-kernels[agents]"'
        raise ModuleNotFoundError(f"agents need {error.name}; {how}", name=error.name) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
