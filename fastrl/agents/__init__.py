"""Agents: one file an algorithm, on networks, environments, training loop and checkpoints that they share."""

from fastrl.agents.a2c import A2C, A2CConfig, ActorCriticConfig, OneStepActorCritic
from fastrl.agents.agent import Agent
from fastrl.agents.config import InputError
from fastrl.agents.ddpg import DDPG, DDPGConfig
from fastrl.agents.dqn import DQN, DQNConfig
from fastrl.agents.ppo import PPO, PPOConfig
from fastrl.agents.reinforce import REINFORCE, REINFORCEConfig
from fastrl.agents.sac import SAC, SACConfig
from fastrl.agents.td3 import TD3, TD3Config
from fastrl.agents.trpo import TRPO, TRPOConfig

ALGORITHMS = {
    "dqn": DQN,
    "reinforce": REINFORCE,
    "actor_critic": OneStepActorCritic,
    "a2c": A2C,
    "ppo": PPO,
    "trpo": TRPO,
    "ddpg": DDPG,
    "td3": TD3,
    "sac": SAC,
}

__all__ = [
    "A2C",
    "ALGORITHMS",
    "DDPG",
    "DQN",
    "PPO",
    "REINFORCE",
    "SAC",
    "TD3",
    "TRPO",
    "A2CConfig",
    "ActorCriticConfig",
    "Agent",
    "DDPGConfig",
    "DQNConfig",
    "InputError",
    "OneStepActorCritic",
    "PPOConfig",
    "REINFORCEConfig",
    "SACConfig",
    "TD3Config",
    "TRPOConfig",
]
