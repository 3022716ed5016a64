"""Agents: one file an algorithm, on networks, environments, training loop and checkpoints that they share."""

from fastrl.agents.a2c import A2C, A2CConfig, ActorCriticConfig, OneStepActorCritic
from fastrl.agents.dqn import DQN, DQNConfig
from fastrl.agents.ppo import PPO, PPOConfig
from fastrl.agents.reinforce import REINFORCE, REINFORCEConfig

ALGORITHMS = {"dqn": DQN, "reinforce": REINFORCE, "actor_critic": OneStepActorCritic, "a2c": A2C, "ppo": PPO}

__all__ = [
    "A2C",
    "ALGORITHMS",
    "DQN",
    "PPO",
    "REINFORCE",
    "A2CConfig",
    "ActorCriticConfig",
    "DQNConfig",
    "OneStepActorCritic",
    "PPOConfig",
    "REINFORCEConfig",
]
