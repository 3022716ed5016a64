"""Stable-Baselines3's own classes with acting and learning compiled: change one import.

    from fastrl.integrations.sb3 import SAC      # was: from stable_baselines3 import SAC

Each class IS a subclass of the host's.  Constructor, callbacks, logger, VecNormalize, random numbers, ``save`` and
``load`` are the host's; files of either are read by the other.  What differs is the speed, and results by the rounding
of float32.  ``MlpPolicy`` on the CPU is compiled (ReLU, Tanh or SiLU; observations a Box that is no image, Discrete or
MultiBinary); for anything else the host's own code runs, after one warning that says why.
"""

from fastrl.integrations._version import installed

with installed("stable-baselines3", '"fastrl-kernels[sb3]"', "stable_baselines3", "torch"):
    from fastrl.integrations.sb3.buffers import PrioritizedReplayBuffer, ReplayBuffer, RolloutBuffer
    from fastrl.integrations.sb3.continuous import DDPG, SAC, TD3
    from fastrl.integrations.sb3.dqn import DQN
    from fastrl.integrations.sb3.on_policy import A2C, PPO

__all__ = ["A2C", "DDPG", "DQN", "PPO", "SAC", "TD3", "PrioritizedReplayBuffer", "ReplayBuffer", "RolloutBuffer"]
