"""The Python twin of csrc/binding/call.h: losses of a batch of float32 arrays, computed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays


class Call:
    """The arrays of one call, by name in the error texts; `letters`: what lengths that may be any are called there."""

    def __init__(self, op: str, letters: str = "BCD") -> None:
        self.op, self.letters = op, letters

    def floats(self, x: Any, name: str, shape: tuple[int, ...], optional: bool = False) -> Any:
        """In float64; -1 in `shape` is any length, and `optional` lets a last dimension of 1 follow."""
        where = f"{self.op}: {name}"
        a = _arrays.load(x, where, ("float32",))
        got = a.shape[:-1] if optional and a.ndim == len(shape) + 1 and a.shape[-1] == 1 else a.shape
        if len(got) != len(shape) or any(w not in (-1, g) for w, g in zip(shape, got, strict=True)):
            wanted = ", ".join(self.letters[i] if w < 0 else str(w) for i, w in enumerate(shape))
            wanted = f"[{wanted}]" if -1 in shape else str(shape)
            raise ValueError(f"{where} must have shape {wanted}, got {a.shape}")
        return a.reshape(got).astype(np.float64)

    def maybe(self, x: Any, name: str, shape: tuple[int, ...]) -> Any:
        return None if x is None else self.floats(x, name, shape)

    def actions(self, x: Any, rows: int, n: int) -> Any:
        where = f"{self.op}: actions"
        a = _arrays.load(x, where, ("int64", "int32"))
        if a.shape != (rows,):
            raise ValueError(f"{where} must have shape ({rows},), got {a.shape}")
        for i in np.flatnonzero((a < 0) | (a >= n))[:1]:
            raise IndexError(f"{where}[{i}] must be in [0, {n}), got {a[i]}")
        return a

    def check_rows(self, rows: int, name: str) -> None:
        if rows < 1:
            raise ValueError(f"{self.op}: {name} must have at least one row")


def give(result: Any, like: Any) -> Any:
    """As float32 in the shape and of the kind of `like`."""
    return _arrays.like(np.ascontiguousarray(result, np.float32).reshape(like.shape), like)
