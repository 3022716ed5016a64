"""Algorithms of sb3-contrib with acting and learning compiled: change one import.

    from fastrl.integrations.sb3_contrib import TQC      # was: from sb3_contrib import TQC

All that `fastrl.integrations.sb3` says of Stable-Baselines3's classes goes for these.
"""

from fastrl.integrations._version import installed

with installed("sb3-contrib", '"fastrl-kernels[sb3]" sb3-contrib', "sb3_contrib", "stable_baselines3", "torch"):
    from fastrl.integrations.sb3_contrib.crossq import CrossQ
    from fastrl.integrations.sb3_contrib.quantiles import QRDQN, TQC
    from fastrl.integrations.sb3_contrib.trpo import TRPO

__all__ = ["QRDQN", "TQC", "TRPO", "CrossQ"]
