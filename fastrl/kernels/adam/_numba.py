"""The arithmetic of adam_step in Numba; the checks around it are the reference's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels.adam.reference import ReferenceAdam


@njit(nogil=True, cache=True, error_model="numpy")
def _update(
    p: Any, g: Any, m: Any, v: Any, decay: Any, weight1: Any, beta2: Any, weight2: Any, inverse_root: Any, eps: Any,
    size: Any,
) -> None:  # fmt: skip
    one = p.dtype.type(1)
    for i in range(p.size):
        gi = g[i]
        if decay != 0:
            gi += decay * p[i]
        if weight1 < 0.5:
            mi = m[i] + weight1 * (gi - m[i])
        else:
            mi = gi - (one - weight1) * (gi - m[i])
        vi = v[i] * beta2 + weight2 * gi * gi
        m[i], v[i] = mi, vi
        p[i] -= size * mi / (np.sqrt(vi) * inverse_root + eps)


class NumbaAdam(ReferenceAdam):
    def _update(self, p: Any, g: Any, m: Any, v: Any, *numbers: float) -> None:
        arrays = p, g, m, v
        if all(a.flags.c_contiguous for a in arrays):
            _update(*(a.reshape(-1) for a in arrays), *(p.dtype.type(x) for x in numbers))
        else:
            super()._update(p, g, m, v, *numbers)


adam_step = NumbaAdam().adam_step
