"""n-step returns of sampled items, straight from the ring buffer they are stored in."""

from __future__ import annotations

from typing import Any

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.arrays import A
from fastrl.kernels._core.backends import choose
from fastrl.kernels.n_step_gather import reference

backend = choose(__package__)


def n_step_gather(
    rewards: A,
    terminated: Any,
    truncated: Any,
    indices: Any,
    cursor: Any,
    size: Any,
    *,
    gamma: float,
    n: int,
    next_values: A | None = None,
    cut: Any = None,
    out: Any = None,
) -> tuple[A, A, Any]:
    """n-step returns from a ring buffer of C slots for N environments, of the items that `indices` name.

    returns_b = sum_{k=0}^{m-1} gamma^k r_{s+k} + gamma^m (1 - terminated_{s+m-1}) V'_{s+m-1}, slots modulo C, where s
    is the slot of item b and m <= n the largest number of steps such that none of steps s .. s+m-2 is terminated or
    truncated, none of cut_{s+1} .. cut_{s+m-1} is set, and s+m-1 is not beyond the newest item.  So no return crosses
    an episode's end or the write cursor, and the last n - 1 items before each have a shorter one.

    Sums are float64 inside.  What is left out is selected, never multiplied by 0: V' of a terminated step is not read.
    On the CPU the flags are only read, and checked, along the way.

    Args:
        rewards: [C] or [C, N], float32 or float64, on CUDA also bfloat16 and float16: r of the item in each slot.
            NumPy or torch, all arrays of a call on one device; any strides, without a copy.
        terminated, truncated: flags like `rewards`, bool or uint8 of 0 and 1: step s ended in a terminal state; was cut
            by a limit.
        indices: int64 / int32 [B]: where the items start, as slot * N + environment.
        cursor: the slot that is written next: an int, or int64 / int32 [N], one an environment; in [0, C).
        size: how many slots hold an item, an int or [N]: the newest is in slot cursor - 1, the oldest in slot
            cursor - size, modulo C.
        gamma: in [0, 1].
        n: int >= 1.
        next_values: None for the reward part alone, or V' like `rewards`: the value of the observation that the step in
            each slot reached.
        cut: None, or flags like `rewards`: no return goes on into a slot with `cut`, as where the stored action is not
            the one that the current policy would take, or where the item does not start where the one before it ended.
        out: None, or three arrays of any strides, written in place of new ones.

    Returns:
        returns [B], dtype of `rewards`.
        discounts [B], dtype of `rewards`: gamma^m (1 - terminated_{s+m-1}), the factor of V'.
        last [B], int64: the flat index of the last step, from whose next observation is bootstrapped.

    Raises:
        IndexError: naming the first index that is out of range or whose slot holds no item.
        ValueError, TypeError: a wrong dtype, shape, kind or device of an array; a flag that is neither 0 nor 1; a
            number out of range.
        Nothing is written in any of these cases.

    The compiled CUDA kernel does not wait for the device to check values: any flag but 0 counts as 1, and an item whose
    index is out of range or whose slot holds no item has returns and discounts NaN and last -1.

    Source: Sutton and Barto, "Reinforcement Learning" (2018), eq. 7.1.
    """
    kernels: Any = backend.of(rewards)
    if _arrays.is_compiling():
        from fastrl.kernels.n_step_gather import _torch as kernels
    found: tuple[Any, Any, Any] = kernels.n_step_gather(
        rewards, terminated, truncated, indices, cursor, size, gamma, n, next_values, cut, out
    )
    if out is not None:
        _arrays.mark_written(out)
    return found


def n_step_gather_reference(
    rewards: A,
    terminated: Any,
    truncated: Any,
    indices: Any,
    cursor: Any,
    size: Any,
    *,
    gamma: float,
    n: int,
    next_values: A | None = None,
    cut: Any = None,
    out: Any = None,
) -> tuple[A, A, Any]:
    """`n_step_gather` in NumPy, one step after another for all items; in torch for CUDA tensors."""
    kernels: Any = reference
    if getattr(rewards, "is_cuda", False):
        from fastrl.kernels.n_step_gather._torch import fallback as kernels
    found: tuple[Any, Any, Any] = kernels.n_step_gather(
        rewards, terminated, truncated, indices, cursor, size, gamma, n, next_values, cut, out
    )
    return found
