"""fastrl: compiled kernels for deep reinforcement learning, and thin agents on top of them.

``import fastrl`` loads NumPy and nothing heavier; ``fastrl.agents`` needs the ``agents`` extra (PyTorch, Gymnasium).
"""

from fastrl._backend import get_num_threads, set_num_threads
from fastrl.kernels import (
    Generator,
    SumTree,
    categorical_log_prob_entropy,
    categorical_sample,
    discounted_returns,
    gae,
    gather_rows,
    lambda_returns,
    manual_seed,
    n_step_gather,
    n_step_returns,
    normal_log_prob_entropy,
    normal_sample,
    off_policy_returns,
    reverse_affine_scan,
    vtrace,
)
from fastrl.replay import PrioritizedReplay, ReplayBuffer

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "PrioritizedReplay",
    "ReplayBuffer",
    "SumTree",
    "__version__",
    "categorical_log_prob_entropy",
    "categorical_sample",
    "discounted_returns",
    "gae",
    "gather_rows",
    "get_num_threads",
    "lambda_returns",
    "manual_seed",
    "n_step_gather",
    "n_step_returns",
    "normal_log_prob_entropy",
    "normal_sample",
    "off_policy_returns",
    "reverse_affine_scan",
    "set_num_threads",
    "vtrace",
]
