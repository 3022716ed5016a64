"""n_step_gather in NumPy, one step after another for all items; the checks are shared by the backends in Python."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels.scans.reference import discount_reach

_FLAGS = ("bool", "uint8")


class ReferenceGather:
    """The arguments of a call, taken in and checked, and the loop; the Numba backend replaces the loop."""

    xp: Any = np

    def __call__(
        self, rewards: Any, terminated: Any, truncated: Any, indices: Any, cursor: Any, size: Any,
        gamma: Any, n: Any, next_values: Any, cut: Any, out: Any,
    ) -> Any:  # fmt: skip
        r = self._load("rewards", rewards, _arrays.FLOATS)
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
        index = self._like("indices", indices, rewards, _arrays.INTS)
        if index.ndim != 1:
            raise ValueError(f"n_step_gather: indices must have shape [B], got {tuple(index.shape)}")
        cursors = self._per_env("cursor", cursor, rewards, N, max(C - 1, 0))
        sizes = self._per_env("size", size, rewards, N, C)
        gamma, n = _arrays.scalar_of(gamma), _arrays.scalar_of(n)
        gamma = _arrays.load_float(gamma, "n_step_gather: gamma", "in [0, 1]")
        if not _arrays.is_number(n, numbers.Integral):
            raise TypeError(f"n_step_gather: n must be an int, got {type(n).__name__}")
        n = operator.index(n)
        if n < 1:
            raise ValueError(f"n_step_gather: n must be >= 1, got {n}")
        v = None if next_values is None else self._ring("next_values", next_values, rewards, r, _arrays.FLOATS)
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
        if dtypes == _arrays.FLOATS and self._dtype(array) != self._dtype(r):
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
        array = self._like(name, value, rewards, _arrays.INTS)
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
        taken, targets = dict(inputs), []
        for i, (obj, dtype) in enumerate(zip(_arrays.out_list(out, 3, "n_step_gather"), dtypes, strict=True)):
            name = f"out[{i}]"
            target = self._like(name, obj, rewards, (dtype,))
            if tuple(target.shape) != (batch,):
                raise ValueError(f"n_step_gather: {name} must have shape {(batch,)}, got {tuple(target.shape)}")
            _arrays.check_target(target, "n_step_gather", name, taken.items())
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


n_step_gather = ReferenceGather()

__all__ = ["n_step_gather"]
