"""fastrl: compiled kernels for deep reinforcement learning, and thin agents on top of them.

``import fastrl`` loads NumPy and nothing heavier; ``fastrl.agents`` and ``fastrl.envs``, imported when they are first
used, need the ``agents`` extra (PyTorch, Gymnasium).
"""

from typing import TYPE_CHECKING, Any

from fastrl._backend import get_num_threads, set_num_threads
from fastrl.kernels import (
    MLP,
    CGInfo,
    FisherVectorProduct,
    FlatAdam,
    Generator,
    LineSearchResult,
    NaturalGradientInfo,
    PPOLoss,
    QLoss,
    SumTree,
    adam_step,
    c51_actor_loss,
    c51_loss,
    categorical_log_prob_entropy,
    categorical_projection,
    categorical_sample,
    cem_argmax,
    conjugate_gradient,
    discounted_returns,
    gae,
    gather_rows,
    hessian_vector_product,
    lambda_returns,
    line_search,
    manual_seed,
    min_q_loss,
    min_q_targets,
    n_step_gather,
    n_step_returns,
    natural_gradient_step,
    normal_log_prob_entropy,
    normal_sample,
    off_policy_returns,
    ppo_categorical_loss,
    ppo_normal_loss,
    q_learning_loss,
    q_regression_loss,
    quadratic_advantage,
    quadratic_advantage_pullback,
    quantile_huber_loss,
    reverse_affine_scan,
    tanh_normal_log_prob,
    tanh_normal_mode,
    tanh_normal_sample,
    tanh_normal_sample_pullback,
    two_hot,
    value_loss,
    vtrace,
)
from fastrl.replay import HindsightReplay, PrioritizedReplay, ReplayBuffer, SequenceReplay

__version__ = "0.2.0"

__all__ = [
    "MLP",
    "CGInfo",
    "FisherVectorProduct",
    "FlatAdam",
    "Generator",
    "HindsightReplay",
    "LineSearchResult",
    "NaturalGradientInfo",
    "PPOLoss",
    "PrioritizedReplay",
    "QLoss",
    "ReplayBuffer",
    "SequenceReplay",
    "SumTree",
    "__version__",
    "adam_step",
    "c51_actor_loss",
    "c51_loss",
    "categorical_log_prob_entropy",
    "categorical_projection",
    "categorical_sample",
    "cem_argmax",
    "conjugate_gradient",
    "discounted_returns",
    "gae",
    "gather_rows",
    "get_num_threads",
    "hessian_vector_product",
    "lambda_returns",
    "line_search",
    "manual_seed",
    "min_q_loss",
    "min_q_targets",
    "n_step_gather",
    "n_step_returns",
    "natural_gradient_step",
    "normal_log_prob_entropy",
    "normal_sample",
    "off_policy_returns",
    "ppo_categorical_loss",
    "ppo_normal_loss",
    "q_learning_loss",
    "q_regression_loss",
    "quadratic_advantage",
    "quadratic_advantage_pullback",
    "quantile_huber_loss",
    "reverse_affine_scan",
    "set_num_threads",
    "tanh_normal_log_prob",
    "tanh_normal_mode",
    "tanh_normal_sample",
    "tanh_normal_sample_pullback",
    "two_hot",
    "value_loss",
    "vtrace",
]

if TYPE_CHECKING:
    from fastrl import agents as agents
    from fastrl import envs as envs
else:

    def __getattr__(name: str) -> Any:
        if name in ("agents", "envs"):
            from importlib import import_module

            return import_module(f"fastrl.{name}")
        raise AttributeError(f"module 'fastrl' has no attribute {name!r}")
