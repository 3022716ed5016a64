"""The kernels: one file an op, each with its equation, its backends and a plain reference.

Importing this package imports neither torch nor numba.
"""

from fastrl.kernels.gather_rows import gather_rows, gather_rows_reference
from fastrl.kernels.generator import Generator, manual_seed
from fastrl.kernels.sum_tree import SumTree, SumTreeReference

__all__ = ["Generator", "SumTree", "SumTreeReference", "gather_rows", "gather_rows_reference", "manual_seed"]
