"""The kernels: one file an op, each with its equation, its backends and a plain reference.

Importing this package imports neither torch nor numba.
"""

from fastrl.kernels.categorical import (
    categorical_log_prob_entropy,
    categorical_log_prob_entropy_reference,
    categorical_sample,
    categorical_sample_reference,
)
from fastrl.kernels.gather_rows import gather_rows, gather_rows_reference
from fastrl.kernels.generator import Generator, manual_seed
from fastrl.kernels.n_step_gather import n_step_gather, n_step_gather_reference
from fastrl.kernels.normal import (
    normal_log_prob_entropy,
    normal_log_prob_entropy_reference,
    normal_sample,
    normal_sample_reference,
)
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

__all__ = [
    "Generator",
    "SumTree",
    "SumTreeReference",
    "categorical_log_prob_entropy",
    "categorical_log_prob_entropy_reference",
    "categorical_sample",
    "categorical_sample_reference",
    "discounted_returns",
    "gae",
    "gather_rows",
    "gather_rows_reference",
    "lambda_returns",
    "manual_seed",
    "n_step_gather",
    "n_step_gather_reference",
    "n_step_returns",
    "normal_log_prob_entropy",
    "normal_log_prob_entropy_reference",
    "normal_sample",
    "normal_sample_reference",
    "off_policy_returns",
    "reverse_affine_scan",
    "vtrace",
]
