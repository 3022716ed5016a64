"""The scans as loops over time in NumPy, float64 inside, and the checks that the backends written in Python share."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays

FLAGS = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64",
    "float32", "float64", "float16", "bfloat16",
)  # fmt: skip


class Call:
    """The arguments of one call, taken in and checked one after another; arrays as ``[T, N]``, floats as float64."""

    xp: Any = np

    def __init__(self, op: str, name: str, first: Any) -> None:
        self.op, self.first_name, self.first = op, name, first
        array = self.load(name, first, _arrays.FLOATS)
        if array.ndim not in (1, 2):
            raise ValueError(f"{op}: {name} must have shape [T] or [T, N], got {tuple(array.shape)}")
        self.shape = tuple(array.shape)
        self.dtype = _arrays.dtype_name(array)
        self.T, self.N = self.shape[0], self.shape[1] if array.ndim == 2 else 1
        self.inputs = [(name, array)]
        self.first_array = self.wide(array)
        self._flags: list[tuple[str, Any]] = []

    # What differs for torch tensors on a GPU.
    def load(self, name: str, obj: Any, dtypes: tuple[str, ...]) -> Any:
        return _arrays.load(obj, f"{self.op}: {name}", dtypes)

    def like(self, result: Any) -> Any:
        return _arrays.like(result, self.first)

    def cast(self, array: Any, dtype: str) -> Any:
        return array.astype(dtype)

    def wide(self, array: Any) -> Any:
        return self.cast(array, "float64").reshape(self.T, self.N)

    def wide_flags(self, array: Any) -> Any:
        return (array != 0).reshape(self.T, self.N)

    def _like_first(self, name: str, obj: Any, dtypes: tuple[str, ...], shape: tuple[int, ...], of: str = "") -> Any:
        array = self.load(name, obj, () if dtypes == FLAGS else _arrays.FLOATS if dtypes == (self.dtype,) else dtypes)
        got = "bfloat16" if _arrays.is_bfloat16(obj) else _arrays.dtype_name(array)
        if dtypes == FLAGS and got not in FLAGS:
            raise ValueError(f"{self.op}: {name} must have dtype bool, or an integer or float one, got {got}")
        kind, wanted = _arrays.kind_name(obj), _arrays.kind_name(self.first)
        if kind != wanted:
            raise TypeError(f"{self.op}: {name} must be a {wanted} like {self.first_name}, got a {kind}")
        dtype = _arrays.dtype_name(array)
        if dtypes == (self.dtype,) and dtype != self.dtype:
            raise ValueError(f"{self.op}: {name} must have dtype {self.dtype} like {self.first_name}, got {dtype}")
        if tuple(array.shape) != shape:
            raise ValueError(
                f"{self.op}: {name} must have shape {shape} like {self.first_name}{of}, got {tuple(array.shape)}"
            )
        return array

    def floats(self, name: str, obj: Any) -> Any:
        """An array like the first one."""
        array = self._like_first(name, obj, (self.dtype,), self.shape)
        self.inputs.append((name, array))
        return self.wide(array)

    def flags(self, name: str, obj: Any, default: bool = False) -> Any:
        """Flags like the first array, or `default` everywhere for None if it is optional."""
        if obj is None and name in ("mask", "cut", "truncated"):
            return self.full(default)
        array = self._like_first(name, obj, FLAGS, self.shape)
        self.inputs.append((name, array))
        if _arrays.is_bfloat16(obj) and isinstance(array, np.ndarray):  # its bits, as int16
            array = (array.astype(np.int32) << 16).view(np.float32)
        self._flags.append((name, array))
        return self.wide_flags(array)

    def full(self, value: Any) -> Any:
        return np.full((self.T, self.N), value)

    def steps(self, terminated: Any, truncated: Any, valid: Any, cut: Any = None) -> Any:
        """cont_t: whether the recurrence goes on from step t + 1 to step t."""
        cont = valid & ~(terminated | truncated)
        cont[:-1] &= valid[1:]
        if cut is not None:
            cont[:-1] &= ~cut[1:]
        cont[-1:] = False
        return cont

    def number(self, name: str, value: Any, high: float = 1.0) -> float:
        """A parameter in [0, high]."""
        wanted = "in [0, 1]" if high == 1 else ">= 0"
        return _arrays.load_float(_arrays.scalar_of(value), f"{self.op}: {name}", wanted)

    def discount(self, name: str, value: Any) -> Any:
        x = self.number(name, value)
        return x if self.counts(x) else 0 * x

    def window(self, n: Any) -> int:
        n = _arrays.scalar_of(n)
        if not _arrays.is_number(n, numbers.Integral):
            raise TypeError(f"{self.op}: n must be an int, got {type(n).__name__}")
        if operator.index(n) < 1:
            raise ValueError(f"{self.op}: n must be >= 1, got {operator.index(n)}")
        return operator.index(n)

    def counts(self, discount: Any) -> bool:
        """Whether a discount, or a product of them, is not 0 in the dtype of the arrays."""
        with np.errstate(all="ignore"):
            return bool(float(discount) != 0 if self.dtype == "float64" else np.float32(float(discount)) != 0)

    def reach(self, gamma: Any, limit: int) -> int:
        return discount_reach(float(gamma), self.dtype == "float64", limit)

    def outputs(self, out: Any, dtypes: tuple[str, ...]) -> None:
        """Check `out`, and then the values of the flags; `dtypes` of the results, "" for that of the first array."""
        self._dtypes = tuple(dtype or self.dtype for dtype in dtypes)
        self._out = out
        self._targets: list[Any] = []
        if out is not None:
            many = len(dtypes) > 1
            outs = _arrays.out_list(out, len(dtypes), self.op) if many else [out]
            taken = list(self.inputs)
            for i, (obj, dtype) in enumerate(zip(outs, self._dtypes, strict=True)):
                name = f"out[{i}]" if many else "out"
                target = self._like_first(name, obj, (dtype,), self.shape)
                _arrays.check_target(target, self.op, name, taken)
                taken.append((name, target))
                self._targets.append(target)
        for name, array in self._flags:
            if _arrays.dtype_name(array) == "bool":
                continue
            bad = (array != 0) & (array != 1)
            if bool(bad.any()):
                index = tuple(np.argwhere(np.asarray(bad.tolist()))[0].tolist())
                where, value = ", ".join(map(str, index)), array[index].item()
                raise ValueError(f"{self.op}: {name}[{where}] is {value!r}, must be 0 or 1")

    def run(self, loop: Any, *args: Any) -> Any:
        """What the loop returns, ``[T, N]`` each, as the caller's kind of array, or written to `out`."""
        with np.errstate(all="ignore"):
            arrays = loop(self.xp, *args)
            ready = [self.cast(a.reshape(self.shape), d) for a, d in zip(arrays, self._dtypes, strict=True)]
        if self._out is not None:
            for target, array in zip(self._targets, ready, strict=True):
                target[...] = array
            return self._out
        found = tuple(self.like(array) for array in ready)
        return found if len(found) > 1 else found[0]


def discount_reach(gamma: float, is_double: bool, limit: int) -> int:
    """The smallest k <= limit for which gamma^k is 0 in the dtype of the arrays, or limit + 1.

    What lies further on counts for nothing, be it NaN.
    """

    def is_zero(k: int) -> bool:
        with np.errstate(all="ignore"):
            return gamma**k == 0 if is_double else bool(np.float32(gamma**k) == 0)

    if limit < 1 or not is_zero(limit):
        return limit + 1
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_zero(middle) else (middle, high)
    return high


class ReferenceScans:
    """Every op as a loop over time in float64, on NumPy arrays; the Numba backend replaces the loops."""

    call: type[Call] = Call

    def reverse_affine_scan(self, a: Any, b: Any, y_T: Any, out: Any) -> Any:
        c = self.call("reverse_affine_scan", "a", a)
        a, b = c.first_array, c.floats("b", b)
        y = c.full(0.0)[:1].sum(0)
        if _arrays.is_number(y_T):
            y = y + _arrays.to_float(y_T)
        elif y_T is not None:
            last = c._like_first("y_T", y_T, (c.dtype,), c.shape[1:], "[0]")
            c.inputs.append(("y_T", last))
            y = y + c.cast(last, "float64").reshape(c.N)
        c.outputs(out, ("",))
        return c.run(self._affine, a, b, y)

    def gae(
        self, rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any,
        gamma: Any, lam: Any, mask: Any, out: Any,
    ) -> Any:  # fmt: skip
        c = self.call("gae", "rewards", rewards)
        v, nv = c.floats("values", values), c.floats("next_values", next_values)
        term, trunc = c.flags("terminated", terminated), c.flags("truncated", truncated)
        gamma, lam = c.discount("gamma", gamma), c.discount("lam", lam)
        valid = c.flags("mask", mask, True)
        c.outputs(out, ("", ""))
        lam = lam if c.counts(gamma * lam) else 0 * lam
        return c.run(self._gae, c.first_array, v, nv, term, c.steps(term, trunc, valid), valid, gamma, lam)

    def discounted_returns(
        self, rewards: Any, terminated: Any, truncated: Any, gamma: Any, next_values: Any, mask: Any, out: Any
    ) -> Any:
        c = self.call("discounted_returns", "rewards", rewards)
        term, trunc = c.flags("terminated", terminated), c.flags("truncated", truncated)
        gamma = c.discount("gamma", gamma)
        nv = c.full(0.0) if next_values is None else c.floats("next_values", next_values)
        valid = c.flags("mask", mask, True)
        c.outputs(out, ("",))
        return c.run(self._lambda_returns, c.first_array, nv, term, c.steps(term, trunc, valid), valid, gamma, 1.0)

    def lambda_returns(
        self, rewards: Any, next_values: Any, terminated: Any, truncated: Any,
        gamma: Any, lam: Any, mask: Any, out: Any,
    ) -> Any:  # fmt: skip
        c = self.call("lambda_returns", "rewards", rewards)
        nv = c.floats("next_values", next_values)
        term, trunc = c.flags("terminated", terminated), c.flags("truncated", truncated)
        gamma, lam = c.discount("gamma", gamma), c.discount("lam", lam)
        valid = c.flags("mask", mask, True)
        c.outputs(out, ("",))
        lam = lam if c.counts(gamma * lam) else 0 * lam
        return c.run(self._lambda_returns, c.first_array, nv, term, c.steps(term, trunc, valid), valid, gamma, lam)

    def n_step_returns(
        self, rewards: Any, next_values: Any, terminated: Any, truncated: Any,
        gamma: Any, n: Any, cut: Any, mask: Any, out: Any,
    ) -> Any:  # fmt: skip
        c = self.call("n_step_returns", "rewards", rewards)
        nv = c.full(0.0) if next_values is None else c.floats("next_values", next_values)
        term, trunc = c.flags("terminated", terminated), c.flags("truncated", truncated)
        gamma = c.discount("gamma", gamma)
        n = c.window(n)
        cut = c.flags("cut", cut)
        valid = c.flags("mask", mask, True)
        c.outputs(out, ("", "", "int64"))
        cont = c.steps(term, trunc, valid, cut)
        n = min(n, max(c.T, 1))
        return c.run(self._n_step, c.first_array, nv, term, cont, valid, gamma, n, c.reach(gamma, n))

    def vtrace(
        self, rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any, log_rhos: Any,
        gamma: Any, lam: Any, rho_clip: Any, c_clip: Any, pg_rho_clip: Any, mask: Any, out: Any,
    ) -> Any:  # fmt: skip
        c = self.call("vtrace", "rewards", rewards)
        v, nv = c.floats("values", values), c.floats("next_values", next_values)
        term, trunc = c.flags("terminated", terminated), c.flags("truncated", truncated)
        log_rhos = c.floats("log_rhos", log_rhos)
        gamma, lam = c.discount("gamma", gamma), c.discount("lam", lam)
        rho_clip, c_clip = c.number("rho_clip", rho_clip, math.inf), c.number("c_clip", c_clip, math.inf)
        pg_rho_clip = c.number("pg_rho_clip", pg_rho_clip, math.inf)
        valid = c.flags("mask", mask, True)
        c.outputs(out, ("", ""))
        cont = c.steps(term, trunc, valid)
        lam = lam if c.counts(gamma * lam) else 0 * lam
        clips = (rho_clip, c_clip, pg_rho_clip)
        return c.run(self._vtrace, c.first_array, v, nv, log_rhos, term, cont, valid, gamma, lam, *clips)

    def off_policy_returns(
        self, rewards: Any, q_values: Any, next_state_values: Any, traces: Any, terminated: Any, truncated: Any,
        gamma: Any, mask: Any, out: Any,
    ) -> Any:  # fmt: skip
        c = self.call("off_policy_returns", "rewards", rewards)
        q, nv = c.floats("q_values", q_values), c.floats("next_state_values", next_state_values)
        traces = c.floats("traces", traces)
        term, trunc = c.flags("terminated", terminated), c.flags("truncated", truncated)
        gamma = c.discount("gamma", gamma)
        valid = c.flags("mask", mask, True)
        c.outputs(out, ("",))
        cont = c.steps(term, trunc, valid)
        return c.run(self._off_policy, c.first_array, q, nv, traces, term, cont, valid, gamma)

    # ---- the loops: float64 and bool [T, N] in, a tuple of [T, N] out

    @staticmethod
    def _affine(xp: Any, a: Any, b: Any, y: Any) -> tuple[Any, ...]:
        out = xp.zeros_like(b)
        for t in reversed(range(len(b))):
            y = b[t] + _times(xp, a[t], y)
            out[t] = y
        return (out,)

    @staticmethod
    def _gae(
        xp: Any, r: Any, v: Any, nv: Any, term: Any, cont: Any, valid: Any, gamma: float, lam: float
    ) -> tuple[Any, ...]:
        advantages, returns = xp.zeros_like(r), xp.zeros_like(r)
        advantage = xp.zeros_like(r[:1]).sum(0)
        for t in reversed(range(len(r))):
            delta = r[t] + _times(xp, gamma * ~term[t], nv[t]) - v[t]
            advantage = delta + _times(xp, gamma * lam * cont[t], advantage)
            advantages[t] = xp.where(valid[t], advantage, 0.0)
            returns[t] = xp.where(valid[t], advantage + v[t], 0.0)
        return advantages, returns

    @staticmethod
    def _lambda_returns(
        xp: Any, r: Any, nv: Any, term: Any, cont: Any, valid: Any, gamma: float, lam: float
    ) -> tuple[Any, ...]:
        returns = xp.zeros_like(r)
        y = xp.zeros_like(r[:1]).sum(0)
        for t in reversed(range(len(r))):
            weight = gamma * ~term[t] - gamma * lam * cont[t]  # gamma (1 - lam) where cont_t; exactly 0 for lam = 1
            y = r[t] + _times(xp, weight, nv[t]) + _times(xp, gamma * lam * cont[t], y)
            returns[t] = xp.where(valid[t], y, 0.0)
        return (returns,)

    @staticmethod
    def _n_step(
        xp: Any, r: Any, nv: Any, term: Any, cont: Any, valid: Any, gamma: float, n: int, reach: int
    ) -> tuple[Any, ...]:
        # All t at once in O(log n) passes: the bits of m say which sums of 1, 2, 4, ... rewards make up one of m.
        T = len(r)
        now = xp.cumsum(xp.ones_like(valid, dtype=xp.int64), 0) - 1
        column = xp.cumsum(xp.ones_like(valid, dtype=xp.int64), 1) - 1
        end = xp.where(cont, T, now)  # the last step that can be reached
        for k in (1 << j for j in range(n.bit_length())):
            end[:-k] = xp.minimum(end[:-k] + 0, end[k:])
        last = xp.where(end - now < n, end, now + (n - 1))
        m = last - now + 1
        rewards = xp.where(m < reach, m, reach)  # so many of them count
        returns, taken, sums = xp.zeros_like(r), now * 0, r
        for size in (1 << j for j in range(n.bit_length())):
            takes = (rewards & size) != 0
            at = xp.where(takes, now + taken, now)
            returns = returns + xp.where(takes, _times(xp, gamma**taken, sums[at, column]), 0.0)
            taken = taken + size * takes
            longer = sums + 0
            longer[:-size] = sums[:-size] + _times(xp, gamma**size, sums[size:])
            sums = longer
        discounts = xp.where((m < reach) & valid & ~term[last, column], gamma**m, 0.0)
        returns = returns + _times(xp, discounts, nv[last, column])
        return xp.where(valid, returns, 0.0), discounts, last

    @staticmethod
    def _vtrace(
        xp: Any, r: Any, v: Any, nv: Any, log_rhos: Any, term: Any, cont: Any, valid: Any,
        gamma: float, lam: float, rho_clip: float, c_clip: float, pg_rho_clip: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        vs, pg_advantages = xp.zeros_like(r), xp.zeros_like(r)
        e = xp.zeros_like(r[:1]).sum(0)
        for t in reversed(range(len(r))):
            rho = xp.exp(log_rhos[t])
            delta = r[t] + _times(xp, gamma * ~term[t], nv[t]) - v[t]
            error = delta + _times(xp, gamma * cont[t], e)
            pg = _times(xp, xp.where(rho > pg_rho_clip, pg_rho_clip, rho), error)
            trace = _times(xp, gamma * lam * cont[t], xp.where(rho > c_clip, c_clip, rho))
            e = _times(xp, xp.where(rho > rho_clip, rho_clip, rho), delta) + _times(xp, trace, e)
            vs[t] = xp.where(valid[t], v[t] + e, 0.0)
            pg_advantages[t] = xp.where(valid[t], pg, 0.0)
        return vs, pg_advantages

    @staticmethod
    def _off_policy(
        xp: Any, r: Any, q: Any, nv: Any, traces: Any, term: Any, cont: Any, valid: Any, gamma: float
    ) -> tuple[Any, ...]:
        returns = xp.zeros_like(r)
        correction = xp.zeros_like(r[:1]).sum(0)  # c_{t+1} (y_{t+1} - Q_{t+1})
        for t in reversed(range(len(r))):
            y = r[t] + _times(xp, gamma * ~term[t], nv[t]) + _times(xp, gamma * cont[t], correction)
            returns[t] = xp.where(valid[t], y, 0.0)
            correction = _times(xp, traces[t], y - q[t])
        return (returns,)


def _times(xp: Any, weight: Any, x: Any) -> Any:
    """weight * x, but 0 where the weight is 0, whatever x is."""
    return xp.where(weight != 0, weight * x, 0.0)


_ops = ReferenceScans()
reverse_affine_scan = _ops.reverse_affine_scan
gae = _ops.gae
discounted_returns = _ops.discounted_returns
lambda_returns = _ops.lambda_returns
n_step_returns = _ops.n_step_returns
vtrace = _ops.vtrace
off_policy_returns = _ops.off_policy_returns

__all__ = [
    "discounted_returns",
    "gae",
    "lambda_returns",
    "n_step_returns",
    "off_policy_returns",
    "reverse_affine_scan",
    "vtrace",
]
