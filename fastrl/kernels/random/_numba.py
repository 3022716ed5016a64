"""Philox 4x32-10 and what is drawn with it, in Numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels.random.reference import advance


@njit(nogil=True, cache=True, error_model="numpy")
def _philox(seed: Any, block: Any) -> Any:
    """The four words of a block, as `philox4x32_reference`."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1 = block & mask, block >> shift
    c2, c3 = np.uint64(0), np.uint64(0)
    k0, k1 = seed & mask, seed >> shift
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & mask, (p0 >> shift) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return c0, c1, c2, c3


@njit(nogil=True, cache=True, error_model="numpy")
def _uniforms(seed: Any, counter: Any, out: Any) -> None:
    for i in range(len(out)):
        c0, c1, _, _ = _philox(seed, counter + np.uint64(i))
        out[i] = np.float64(((c1 << np.uint64(32)) | c0) >> np.uint64(11)) * 2.0**-53


@njit(nogil=True, cache=True, error_model="numpy")
def _normals(seed: Any, counter: Any, out: Any) -> None:
    """Box-Muller, as `normals` of the reference."""
    for i in range(0, len(out), 4):
        c0, c1, c2, c3 = _philox(seed, counter + np.uint64(i // 4))
        for k in range(i, min(i + 4, len(out))):
            first, second = (c0, c1) if k - i < 2 else (c2, c3)
            radius = math.sqrt(-2.0 * math.log(np.float64(first | np.uint64(1)) * 2.0**-32))
            angle = np.float64(second) * (2.0 * math.pi * 2.0**-32)
            out[k] = radius * (math.sin(angle) if k % 2 else math.cos(angle))


def draw(state: Any, n: int, normal: bool) -> Any:
    seed, counter = advance(state, -(-n // 4) if normal else n)
    drawn = np.empty(n)
    (_normals if normal else _uniforms)(np.uint64(seed), np.uint64(counter), drawn)
    return drawn
