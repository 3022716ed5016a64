"""fastrl: compiled kernels for deep reinforcement learning, and thin agents on top of them.

``import fastrl`` loads NumPy and nothing heavier; ``fastrl.agents`` needs the ``agents`` extra (PyTorch, Gymnasium).
"""

from fastrl._backend import get_num_threads, set_num_threads
from fastrl.kernels import (
    FisherVectorProduct,
    Generator,
    SumTree,
    adam_step,
    categorical_log_prob_entropy,
    categorical_sample,
    conjugate_gradient,
    discounted_returns,
    gae,
    gather_rows,
    hessian_vector_product,
    lambda_returns,
    line_search,
    manual_seed,
    n_step_gather,
    n_step_returns,
    natural_gradient_step,
    normal_log_prob_entropy,
    normal_sample,
    off_policy_returns,
    reverse_affine_scan,
    tanh_normal_log_prob,
    tanh_normal_mode,
    tanh_normal_sample,
    vtrace,
)
from fastrl.replay import PrioritizedReplay, ReplayBuffer

__version__ = "0.1.0"

__all__ = [
    "FisherVectorProduct",
    "Generator",
    "PrioritizedReplay",
    "ReplayBuffer",
    "SumTree",
    "__version__",
    "adam_step",
    "categorical_log_prob_entropy",
    "categorical_sample",
    "conjugate_gradient",
    "discounted_returns",
    "gae",
    "gather_rows",
    "get_num_threads",
    "hessian_vector_product",
    "lambda_returns",
    "line_search",
    "manual_seed",
    "n_step_gather",
    "n_step_returns",
    "natural_gradient_step",
    "normal_log_prob_entropy",
    "normal_sample",
    "off_policy_returns",
    "reverse_affine_scan",
    "set_num_threads",
    "tanh_normal_log_prob",
    "tanh_normal_mode",
    "tanh_normal_sample",
    "vtrace",
]
