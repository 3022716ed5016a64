"""The kernels: one folder an op, each with its equation, its backends and a plain reference.

Importing this package imports neither torch nor numba.
"""

from fastrl.kernels.adam import adam_step, adam_step_reference
from fastrl.kernels.categorical import (
    categorical_log_prob_entropy,
    categorical_log_prob_entropy_reference,
    categorical_sample,
    categorical_sample_reference,
)
from fastrl.kernels.cem import cem_argmax, cem_argmax_reference
from fastrl.kernels.conjugate_gradient import CGInfo, conjugate_gradient, conjugate_gradient_reference
from fastrl.kernels.curvature import (
    FisherVectorProduct,
    LineSearchResult,
    NaturalGradientInfo,
    hessian_vector_product,
    line_search,
    natural_gradient_step,
)
from fastrl.kernels.distributional import (
    c51_actor_loss,
    c51_loss,
    categorical_projection,
    quantile_huber_loss,
    two_hot,
)
from fastrl.kernels.gather_rows import gather_rows, gather_rows_reference
from fastrl.kernels.mlp import (
    MLP,
    FlatAdam,
    PPOLoss,
    QLoss,
    min_q_loss,
    min_q_targets,
    ppo_categorical_loss,
    ppo_normal_loss,
    q_learning_loss,
    q_regression_loss,
    value_loss,
)
from fastrl.kernels.n_step_gather import n_step_gather, n_step_gather_reference
from fastrl.kernels.normal import (
    normal_log_prob_entropy,
    normal_log_prob_entropy_reference,
    normal_sample,
    normal_sample_reference,
)
from fastrl.kernels.quadratic_advantage import (
    quadratic_advantage,
    quadratic_advantage_pullback,
    quadratic_advantage_reference,
)
from fastrl.kernels.random import Generator, manual_seed
from fastrl.kernels.scans import (
    discounted_returns,
    gae,
    lambda_returns,
    n_step_returns,
    off_policy_returns,
    reverse_affine_scan,
    vtrace,
)
from fastrl.kernels.sum_tree import SumTree, SumTreeReference
from fastrl.kernels.tanh_normal import (
    tanh_normal_log_prob,
    tanh_normal_log_prob_reference,
    tanh_normal_mode,
    tanh_normal_mode_reference,
    tanh_normal_sample,
    tanh_normal_sample_pullback,
    tanh_normal_sample_reference,
)

__all__ = [
    "MLP",
    "CGInfo",
    "FisherVectorProduct",
    "FlatAdam",
    "Generator",
    "LineSearchResult",
    "NaturalGradientInfo",
    "PPOLoss",
    "QLoss",
    "SumTree",
    "SumTreeReference",
    "adam_step",
    "adam_step_reference",
    "c51_actor_loss",
    "c51_loss",
    "categorical_log_prob_entropy",
    "categorical_log_prob_entropy_reference",
    "categorical_projection",
    "categorical_sample",
    "categorical_sample_reference",
    "cem_argmax",
    "cem_argmax_reference",
    "conjugate_gradient",
    "conjugate_gradient_reference",
    "discounted_returns",
    "gae",
    "gather_rows",
    "gather_rows_reference",
    "hessian_vector_product",
    "lambda_returns",
    "line_search",
    "manual_seed",
    "min_q_loss",
    "min_q_targets",
    "n_step_gather",
    "n_step_gather_reference",
    "n_step_returns",
    "natural_gradient_step",
    "normal_log_prob_entropy",
    "normal_log_prob_entropy_reference",
    "normal_sample",
    "normal_sample_reference",
    "off_policy_returns",
    "ppo_categorical_loss",
    "ppo_normal_loss",
    "q_learning_loss",
    "q_regression_loss",
    "quadratic_advantage",
    "quadratic_advantage_pullback",
    "quadratic_advantage_reference",
    "quantile_huber_loss",
    "reverse_affine_scan",
    "tanh_normal_log_prob",
    "tanh_normal_log_prob_reference",
    "tanh_normal_mode",
    "tanh_normal_mode_reference",
    "tanh_normal_sample",
    "tanh_normal_sample_pullback",
    "tanh_normal_sample_reference",
    "two_hot",
    "value_loss",
    "vtrace",
]
