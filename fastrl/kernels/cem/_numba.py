"""The search of the reference, with networks in float32 on NumPy's own BLAS."""

from functools import partial

from fastrl.kernels.cem import reference
from fastrl.kernels.mlp._numba import MlpCore

cem_argmax = partial(reference.cem_argmax, core=MlpCore)
