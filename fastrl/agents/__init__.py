"""Agents: one file an algorithm, on networks, environments, training loop and checkpoints that they share."""

from fastrl.agents.dqn import DQN, DQNConfig

ALGORITHMS = {"dqn": DQN}

__all__ = ["ALGORITHMS", "DQN", "DQNConfig"]
