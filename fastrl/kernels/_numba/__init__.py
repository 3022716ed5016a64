"""Numba versions of the kernels, imported only when no compiled extension is there."""
