"""n-step returns of sampled items, straight from the ring buffer they are stored in."""

from __future__ import annotations

import numbers
import operator
import sys
from typing import Any

import numpy as np

from fastrl import _backend
from fastrl.kernels import _arrays
from fastrl.kernels.scans import discount_reach

_FLOATS = ("float32", "float64")
_FLAGS = ("bool", "uint8")
_INTS = ("int64", "int32")


def n_step_gather(
    rewards: Any,
    terminated: Any,
    truncated: Any,
    indices: Any,
    cursor: Any,
    size: Any,
    *,
    gamma: float,
    n: int,
    next_values: Any = None,
    cut: Any = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
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
    gather = _registered if _arrays.is_compiling() else backend
    found: tuple[Any, Any, Any] = gather(
        rewards, terminated, truncated, indices, cursor, size, gamma, n, next_values, cut, out
    )
    if out is not None:
        _arrays.mark_written(out)
    return found


def n_step_gather_reference(
    rewards: Any,
    terminated: Any,
    truncated: Any,
    indices: Any,
    cursor: Any,
    size: Any,
    *,
    gamma: float,
    n: int,
    next_values: Any = None,
    cut: Any = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """`n_step_gather` in NumPy, one step after another for all items; in torch for CUDA tensors."""
    found: tuple[Any, Any, Any] = _reference(
        rewards, terminated, truncated, indices, cursor, size, gamma, n, next_values, cut, out
    )
    return found


class ReferenceGather:
    """The arguments of a call, taken in and checked, and the loop; the Numba backend replaces the loop."""

    xp: Any = np

    def __call__(
        self, rewards: Any, terminated: Any, truncated: Any, indices: Any, cursor: Any, size: Any,
        gamma: Any, n: Any, next_values: Any, cut: Any, out: Any,
    ) -> Any:  # fmt: skip
        r = self._load("rewards", rewards, _FLOATS)
        if r.ndim not in (1, 2):
            raise ValueError(f"n_step_gather: rewards must have shape [C] or [C, N], got {tuple(r.shape)}")
        shape, dtype = tuple(r.shape), self._dtype(r)
        C, N = shape[0], shape[1] if len(shape) == 2 else 1
        flags = {
            "terminated": self._ring("terminated", terminated, rewards, r, _FLAGS),
        }
        # None are for None: what is terminated may be truncated as well.
        same = truncated is None
        flags["truncated"] = flags["terminated"] if same else self._ring("truncated", truncated, rewards, r, _FLAGS)
        index = self._like("indices", indices, rewards, _INTS)
        if index.ndim != 1:
            raise ValueError(f"n_step_gather: indices must have shape [B], got {tuple(index.shape)}")
        cursors = self._per_env("cursor", cursor, rewards, N, max(C - 1, 0))
        sizes = self._per_env("size", size, rewards, N, C)
        gamma, n = _arrays.scalar_of(gamma), _arrays.scalar_of(n)
        if not _arrays.is_number(gamma):
            raise TypeError(f"n_step_gather: gamma must be a float, got {type(gamma).__name__}")
        gamma = _arrays.to_float(gamma)
        if not 0 <= gamma <= 1:
            raise ValueError(f"n_step_gather: gamma must be in [0, 1], got {gamma!r}")
        if not _arrays.is_number(n, numbers.Integral):
            raise TypeError(f"n_step_gather: n must be an int, got {type(n).__name__}")
        n = operator.index(n)
        if n < 1:
            raise ValueError(f"n_step_gather: n must be >= 1, got {n}")
        v = None if next_values is None else self._ring("next_values", next_values, rewards, r, _FLOATS)
        if cut is not None:
            flags["cut"] = self._ring("cut", cut, rewards, r, _FLAGS)
        inputs = {"rewards": r, **flags, "indices": index, **({} if v is None else {"next_values": v})}
        targets = None if out is None else self._targets(out, rewards, len(index), (dtype, dtype, "int64"), inputs)

        B = len(index)
        index = self._cast(index, "int64")
        outside = (index < 0) | (index >= C * N)
        flat = self.xp.where(outside, 0, index)
        slot, env = flat // N if N else flat, flat % N if N else flat
        if not bool(outside.all()):
            steps = (cursors[env] - slot - 1) % C + 1  # to the newest item, itself included
            free = (steps > sizes[env]) & ~outside
        else:
            steps, free = flat, outside & False
        if bool((outside | free).any()):
            b = int(self._cast(outside | free, "uint8").argmax())
            text = f"n_step_gather: indices[{b}] is {int(index[b])}, "
            if outside[b]:
                raise IndexError(f"{text}outside [0, {C * N})")
            cursor, size = int(cursors[env[b]]), int(sizes[env[b]])
            raise IndexError(f"{text}a slot that holds no item (cursor {cursor}, size {size})")
        limit = self.xp.where(steps > n, n, steps) if B and n < C else steps

        def two(array: Any) -> Any:
            return None if array is None else array.reshape(C, N)

        with np.errstate(all="ignore"):
            returns, discounts, last, bad = self._walk(
                two(r), two(flags["terminated"]), two(flags["truncated"]), slot, env, limit, gamma,
                discount_reach(gamma, dtype == "float64", min(n, C)), two(v), two(flags.get("cut")),
            )  # fmt: skip
            found = self._cast(returns, dtype), self._cast(discounts, dtype), last * N + env
        if B and bool((bad > 0).any()):
            b = int(self._cast(bad > 0, "uint8").argmax())
            name = ("terminated", "truncated", "cut")[int(bad[b]) - 1]
            where = [int(last[b]), int(env[b])][: len(shape)]
            value = int(flags[name][tuple(where)])
            raise ValueError(f"n_step_gather: {name}[{', '.join(map(str, where))}] is {value}, must be 0 or 1")
        if targets is None:
            return self._out(found[0], rewards), self._out(found[1], rewards), self._out(found[2], rewards)
        for target, array in zip(targets, found, strict=True):
            target[...] = array
        return out

    def _walk(
        self, rewards: Any, terminated: Any, truncated: Any, slot: Any, env: Any, limit: Any, gamma: float,
        reach: int, next_values: Any, cut: Any,
    ) -> tuple[Any, Any, Any, Any]:  # fmt: skip
        """returns, discounts, the slot of the last step, and which flag is bad there: 1 + its position, or 0."""
        xp = self.xp
        zero = self._cast(slot, "float64") * 0
        returns, discounts, last, bad = zero, zero, slot, slot * 0
        alive = slot >= 0
        factor = 1.0
        for k in range(int(limit.max()) if len(slot) else 0):
            at = (slot + k) % len(rewards)
            if k and cut is not None:
                flag = cut[at, env]
                wrong = alive & self._wrong(flag)
                bad, last = xp.where(wrong, 3, bad), xp.where(wrong, at, last)
                alive = alive & (flag == 0)
            alive = alive & (k < limit)
            if not bool(alive.any()):
                break
            flag, other = terminated[at, env], truncated[at, env]
            last = xp.where(alive, at, last)
            if factor != 0:
                returns = xp.where(alive, returns + factor * self._cast(rewards[at, env], "float64"), returns)
            factor = factor * gamma if k + 1 < reach else 0.0
            discounts = xp.where(alive, xp.where(flag != 0, zero, factor), discounts)
            bad = xp.where(alive & self._wrong(other), 2, bad)
            bad = xp.where(alive & self._wrong(flag), 1, bad)
            alive = alive & (flag == 0) & (other == 0)
        if next_values is not None and len(slot):
            bootstrap = discounts * self._cast(next_values[last, env], "float64")
            returns = returns + xp.where(discounts != 0, bootstrap, 0.0)
        return returns, discounts, last, bad

    def _wrong(self, flag: Any) -> Any:
        return (flag > 1) if self._dtype(flag) == "uint8" else flag & False

    def _ring(self, name: str, obj: Any, rewards: Any, r: Any, dtypes: tuple[str, ...]) -> Any:
        array = self._like(name, obj, rewards, dtypes)
        if dtypes == _FLOATS and self._dtype(array) != self._dtype(r):
            raise ValueError(
                f"n_step_gather: {name} must have dtype {self._dtype(r)} like rewards, got {self._dtype(array)}"
            )
        if array.shape != r.shape:
            raise ValueError(
                f"n_step_gather: {name} must have shape {tuple(r.shape)} like rewards, got {tuple(array.shape)}"
            )
        return array

    def _like(self, name: str, obj: Any, rewards: Any, dtypes: tuple[str, ...]) -> Any:
        array = self._load(name, obj, dtypes)
        kind, wanted = _arrays.kind_name(obj), _arrays.kind_name(rewards)
        if kind != wanted:
            raise TypeError(f"n_step_gather: {name} must be a {wanted} like rewards, got a {kind}")
        return array

    def _per_env(self, name: str, value: Any, rewards: Any, envs: int, high: int) -> Any:
        """`cursor` or `size` as an array [N]."""
        if _arrays.is_number(value, numbers.Integral):
            if not 0 <= value <= high:
                raise ValueError(f"n_step_gather: {name} must be in [0, {high}], got {value}")
            return self._full(envs, operator.index(value), rewards)
        array = self._like(name, value, rewards, _INTS)
        if tuple(array.shape) != (envs,):
            raise ValueError(f"n_step_gather: {name} must have shape {(envs,)}, got {tuple(array.shape)}")
        outside = (array < 0) | (array > high)
        if envs and bool(outside.any()):
            env = int(self._cast(outside, "uint8").argmax())
            raise ValueError(f"n_step_gather: {name}[{env}] must be in [0, {high}], got {int(array[env])}")
        return self._cast(array, "int64")

    def _targets(
        self, out: Any, rewards: Any, batch: int, dtypes: tuple[str, ...], inputs: dict[str, Any]
    ) -> list[Any]:
        if not isinstance(out, (tuple, list)) or len(out) != 3:
            got = f"{len(out)} arrays" if isinstance(out, (tuple, list)) else type(out).__name__
            raise ValueError(f"n_step_gather: out must be 3 arrays, got {got}")
        taken, targets = dict(inputs), []
        for i, (obj, dtype) in enumerate(zip(out, dtypes, strict=True)):
            name = f"out[{i}]"
            target = self._like(name, obj, rewards, (dtype,))
            if tuple(target.shape) != (batch,):
                raise ValueError(f"n_step_gather: {name} must have shape {(batch,)}, got {tuple(target.shape)}")
            if isinstance(target, np.ndarray) and not target.flags.writeable:
                raise ValueError(f"n_step_gather: {name} must be writable")
            if _arrays.overlaps_itself(target):
                raise ValueError(f"n_step_gather: {name} must not overlap itself")
            for other_name, other in taken.items():
                if self._overlap(target, other):
                    raise ValueError(f"n_step_gather: {name} must not share memory with {other_name}")
            taken[name] = target
            targets.append(target)
        return targets

    # What differs between NumPy and torch.
    def _load(self, name: str, obj: Any, dtypes: tuple[str, ...]) -> Any:
        return _arrays.load(obj, f"n_step_gather: {name}", dtypes)

    def _dtype(self, array: Any) -> str:
        return str(array.dtype)

    def _cast(self, array: Any, dtype: str) -> Any:
        return array.astype(dtype)

    def _full(self, n: int, value: int, like: Any) -> Any:
        return np.full(n, value, np.int64)

    def _out(self, array: Any, like: Any) -> Any:
        return _arrays.like(array, like)

    def _overlap(self, x: Any, y: Any) -> bool:
        return bool(np.may_share_memory(x, y))


class TorchGather(ReferenceGather):
    """The same with torch operations, on any one device.  Checking indices and flags waits for the device."""

    def __init__(self, torch: Any) -> None:
        self.xp = torch

    def _load(self, name: str, obj: Any, dtypes: tuple[str, ...]) -> Any:
        if name == "rewards":
            self._rewards = obj
        if dtypes == _FLOATS and _is_cuda(self._rewards):
            dtypes = (*_FLOATS, "float16", "bfloat16")
        return _arrays.load_tensor(obj, f"n_step_gather: {name}", dtypes, self._rewards, "rewards")

    def _dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def _cast(self, array: Any, dtype: str) -> Any:
        return array.to(getattr(self.xp, dtype))

    def _full(self, n: int, value: int, like: Any) -> Any:
        return self.xp.full((n,), value, device=self._rewards.device)

    def _out(self, array: Any, like: Any) -> Any:
        return array

    def _overlap(self, x: Any, y: Any) -> bool:
        return _arrays.tensors_overlap(x, y)


_numpy_gather = ReferenceGather()


def _is_cuda(rewards: Any) -> bool:
    return bool(getattr(rewards, "is_cuda", False))


def _reference(rewards: Any, *arguments: Any) -> Any:
    if _is_cuda(rewards):
        return TorchGather(sys.modules["torch"])(rewards, *arguments)
    return _numpy_gather(rewards, *arguments)


def _gather_cuda(rewards: Any, *arguments: Any) -> Any:
    compiled = _backend.cuda_backend()[0] == "cuda"
    return (_backend._C_cuda.n_step_gather if compiled else _reference)(rewards, *arguments)


def _gather_python(rewards: Any, *arguments: Any) -> Any:
    return (_gather_cuda if _is_cuda(rewards) else _numpy_gather)(rewards, *arguments)


def _gather_cpp(rewards: Any, *arguments: Any) -> Any:
    return (_gather_cuda if _is_cuda(rewards) else _backend._C.n_step_gather)(rewards, *arguments)


def _gather_numba(rewards: Any, *arguments: Any) -> Any:
    if _is_cuda(rewards):
        return _gather_cuda(rewards, *arguments)
    from fastrl.kernels._numba.n_step_gather import n_step_gather as gather  # not before it is needed

    return gather(rewards, *arguments)


def _registered(*arguments: Any) -> Any:
    """The op for torch.compile."""
    from fastrl.kernels import _torch

    return _torch.n_step_gather(*arguments)


backend = {"cpp": _gather_cpp, "numba": _gather_numba, "reference": _gather_python}[_backend.CPU_BACKEND]
