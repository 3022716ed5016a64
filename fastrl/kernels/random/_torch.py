"""Drawing under torch.compile.

What draws random numbers is two ops there: `draw`, which advances the generator's state (a tensor that it says it
writes to), and a function of the drawn numbers, which has the gradient.  Where that one refuses its arguments, it takes
the draw back, so that a call that raises has drawn nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrl.kernels._core.autograd import register
from fastrl.kernels._core.backends import choose
from fastrl.kernels.random import Generator, default_generator, reference, state_of

backend = choose(__package__)
fallback = reference
default_generator("cpu")  # made now, because torch.compile cannot trace its making


def _draw(state: Tensor, n: int, normal: bool) -> tuple[Tensor, Tensor]:
    """n float64 uniforms or standard normals of the generator with this state, which it advances; a copy of it."""
    words: Any = state if state.is_cuda else state.numpy().view(np.uint64)
    return torch.as_tensor(backend.of(state).draw(words, n, normal)), state.view(torch.int64).clone()


draw_op = register(
    _draw,
    lambda state, n, normal: (state.new_empty(n, dtype=torch.float64), state.new_empty(state.shape, dtype=torch.int64)),
    mutates=("state",),
)


@contextmanager
def taken_back(state: Tensor | None, drawn: Tensor | None, blocks: int) -> Iterator[None]:
    """On an error the generator is as before its draw of so many blocks, which left it at the state `drawn`."""
    try:
        yield
    except Exception:
        if state is not None and drawn is not None:
            words = state.view(torch.int64)
            if torch.equal(words, drawn):  # nobody has drawn since
                words[1] -= blocks
        raise


def draw_normals(generator: Generator | None, mean: Tensor, op: str) -> tuple[Tensor, Tensor, Tensor]:
    """Noise for `mean`, the generator's state, and the state as it was left."""
    if mean.dim() != 2:
        raise ValueError(f"{op}: mean must have shape [B, A], got {tuple(mean.shape)}")
    state = state_tensor(generator, mean, op)
    noise, after = draw_op(state, mean.shape[0] * mean.shape[1], True)
    return noise.view(mean.shape).to(mean.dtype), state, after


def state_tensor(generator: Generator | None, first: Tensor, op: str) -> Tensor:
    return torch.as_tensor(state_of(generator, first, op))  # the same memory
