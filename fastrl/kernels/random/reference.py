"""Philox 4x32-10 and what is drawn with it, in NumPy; a generator on a GPU is read and advanced there, by torch."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fastrl import _fork
from fastrl.kernels._core import arrays as _arrays

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_advance_lock = threading.Lock()
_fork.guarded.add(_advance_lock)


def advance(state: Any, n: int) -> tuple[int, int]:
    """(seed, first block) of the next `n` elements; used by the backends written in Python."""
    with _advance_lock:
        seed, counter = int(state[0]) & _MASK64, int(state[1]) & _MASK64
        after = (counter + n) & _MASK64
        state[1] = after if isinstance(state, np.ndarray) else after - (1 << 64) if after >> 63 else after
    return seed, counter


def philox4x32_reference(counter: Any, key: tuple[int, int]) -> Any:
    """Philox 4x32-10 of `counter` [n, 4] under `key`; 32-bit words held in int64 (NumPy array or torch tensor).

    One round, with M0 = 0xD2511F53, M1 = 0xCD9E8D57 and mulhi / mullo the halves of the 64-bit product::

        c0, c1, c2, c3 = mulhi(M1, c2) ^ c1 ^ k0, mullo(M1, c2), mulhi(M0, c0) ^ c3 ^ k1, mullo(M0, c0)

    then k0 += 0x9E3779B9, k1 += 0xBB67AE85; ten rounds.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    c0, c1, c2, c3 = (counter[:, i] for i in range(4))
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, but their 64 bits are the same as the unsigned product's.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    words = counter * 0
    for i, c in enumerate((c0, c1, c2, c3)):
        words[:, i] = c
    return words


def _words(state: Any, n: int) -> Any:
    """The Philox blocks [n, 4] that the next n elements take; a CUDA state is read and advanced on its device."""
    if isinstance(state, np.ndarray):
        seed, counter = advance(state, n)
        block = np.uint64(counter) + np.arange(n, dtype=np.uint64)  # wraps at 2^64, as the counter does
        words = np.zeros((n, 4), np.int64)
        words[:, 0], words[:, 1] = block & np.uint64(_MASK32), block >> np.uint64(32)
        return philox4x32_reference(words, (seed & _MASK32, seed >> 32))
    torch = _arrays.torch()
    start = state.clone()
    state[1] += n
    block = start[1] + torch.arange(n, device=state.device)
    words = torch.zeros((n, 4), dtype=torch.int64, device=state.device)
    words[:, 0], words[:, 1] = block & _MASK32, (block >> 32) & _MASK32
    return philox4x32_reference(words, (start[0] & _MASK32, (start[0] >> 32) & _MASK32))


def _uniform(low: Any, high: Any) -> Any:
    return _arrays.to_float64((high << 21) | (low >> 11)) * 2.0**-53


def uniforms(state: Any, n: int) -> Any:
    """n float64 uniforms in [0, 1) from the first 53 bits of the blocks."""
    words = _words(state, n)
    return _uniform(words[:, 0], words[:, 1])


def normals(state: Any, n: int) -> Any:
    """n float64 standard normals, four a block: of its words x, sqrt(-2 log u) times cos(2 pi v) and sin(2 pi v).

    (u, v) = ((x0 | 1) 2^-32, x1 2^-32) gives elements 0 and 1 of the block's four, (x2, x3) likewise 2 and 3.
    """
    words = _words(state, -(-n // 4))
    xp = _arrays.module_of(words)
    u = _arrays.to_float64(words[:, ::2] | 1) * 2.0**-32
    angle = _arrays.to_float64(words[:, 1::2]) * (2.0 * np.pi * 2.0**-32)
    radius = xp.sqrt(-2.0 * xp.log(u))
    return xp.stack((radius * xp.cos(angle), radius * xp.sin(angle)), -1).reshape(-1)[:n]


def uniform_reference(seed: int, counter: int, n: int) -> Any:
    """`n` float64 uniforms in [0, 1): element i is made of the first 53 bits of the Philox block at counter + i."""
    return uniforms(np.array([seed, counter], np.uint64), n)


def draw(state: Any, n: int, normal: bool) -> Any:
    """n float64 uniforms, or standard normals, of the generator with this state, which is advanced."""
    return normals(state, n) if normal else uniforms(state, n)


__all__ = ["draw"]
