"""The scans with a discount of each step in place of gamma, or an array lam: one `reverse_affine_scan` in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays
from fastrl.kernels._core.backends import choose
from fastrl.kernels.scans.reference import Call, _times

backend = choose(__package__)


def wanted(discounts: Any, lam: Any = 1.0) -> bool:
    """Whether a call is for this module."""
    return discounts is not None or (type(lam) is not float and getattr(lam, "ndim", 0) > 0)


class _Scan:
    """The arguments of one call, checked in the order of all scans; arrays [T, N], floats as float64."""

    def __init__(
        self, op: str, rewards: Any, arrays: dict[str, Any], terminated: Any, truncated: Any,
        gamma: Any, discounts: Any, lam: Any, mask: Any, out: Any, dtypes: tuple[str, ...],
        clips: dict[str, Any] | None = None, n: Any = 1, cut: Any = None,
    ) -> None:  # fmt: skip
        if _arrays.is_compiling():
            raise RuntimeError(f"{op}: discounts, an array lam and pg_lam are not for torch.compile(fullgraph=True)")
        if gamma is not None and discounts is not None:
            raise ValueError(f"{op}: gamma must be None where discounts are given, got {gamma!r}")
        self.c = c = _call_for(rewards)(op, "rewards", rewards)
        self.xp = c.xp
        self.arrays = [c.first_array, *(c.floats(name, x) for name, x in arrays.items())]
        term = c.full(False) if terminated is None and discounts is not None else c.flags("terminated", terminated)
        trunc = c.flags("truncated", truncated)
        discount = c.full(c.discount("gamma", gamma)) if discounts is None else self.weights("discounts", discounts)
        trace = self.weights("lam", lam) if getattr(lam, "ndim", 0) else c.full(c.discount("lam", lam))
        self.n = c.window(n)
        cut = c.flags("cut", cut)
        self.clips = [c.number(name, clip, math.inf) for name, clip in (clips or {}).items()]
        self.valid = c.flags("mask", mask, True)
        c.outputs(out, dtypes)
        self.cont = cont = c.steps(term, trunc, self.valid, cut)
        self.discount, self.bootstrap = discount, discount * ~term  # the latter of V'
        self.onward = discount * cont
        self.trace = self.counted(self.onward * trace)

    def weights(self, name: str, x: Any) -> Any:
        """An array of numbers in [0, 1]."""
        c = self.c
        array = c.floats(name, x)
        if not getattr(x, "is_cuda", False):  # that would wait for the device
            bad = np.argwhere(~((array >= 0) & (array <= 1)))
            if len(bad):
                t, n = bad[0]
                at = f"{t}, {n}" if len(c.shape) == 2 else f"{t}"
                raise ValueError(f"{c.op}: {name}[{at}] is {float(array[t, n])!r}, must be in [0, 1]")
        return array

    def counted(self, weight: Any) -> Any:
        """0 where a product of discounts is that in the dtype of the arrays."""
        if self.c.dtype == "float64":
            return weight
        return self.xp.where(self.c.cast(weight, "float32") != 0, weight, 0.0)

    def times(self, weight: Any, x: Any) -> Any:
        return _times(self.xp, weight, x)

    def clipped(self, rho: Any, limit: Any) -> Any:
        return self.xp.where(rho > limit, limit, rho)

    def run(self, compute: Any) -> Any:
        """The results [T, N] that `compute` makes of the arrays, 0 where the mask is."""
        return self.c.run(lambda xp: tuple(xp.where(self.valid, y, 0.0) for y in compute(*self.arrays)))


def _call_for(first: Any) -> type[Call]:
    if getattr(first, "is_cuda", False):
        from fastrl.kernels.scans._torch import TorchCall

        return TorchCall
    return Call


def _scan(a: Any, b: Any) -> Any:
    return backend.of(a).reverse_affine_scan(a, b, None, None)


def _after(x: Any) -> Any:
    """x_{t+1}, and 0 behind the last one."""
    after = x + 0
    after[:-1] = x[1:]
    after[-1:] = 0
    return after


def gae(
    rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any,
    gamma: Any, discounts: Any, lam: Any, mask: Any, out: Any,
) -> Any:  # fmt: skip
    arrays = {"values": values, "next_values": next_values}
    s = _Scan("gae", rewards, arrays, terminated, truncated, gamma, discounts, lam, mask, out, ("", ""))

    def compute(r: Any, v: Any, nv: Any) -> Any:
        advantages = _scan(s.trace, r + s.times(s.bootstrap, nv) - v)
        return advantages, advantages + v

    return s.run(compute)


def lambda_returns(
    op: str, rewards: Any, next_values: Any, terminated: Any, truncated: Any,
    gamma: Any, discounts: Any, lam: Any, mask: Any, out: Any,
) -> Any:  # fmt: skip
    none = next_values is None and op == "discounted_returns"
    arrays = {} if none else {"next_values": next_values}
    s = _Scan(op, rewards, arrays, terminated, truncated, gamma, discounts, lam, mask, out, ("",))

    def compute(r: Any, nv: Any = 0.0) -> Any:
        return (_scan(s.trace, r + s.times(s.bootstrap - s.trace, nv)),)

    return s.run(compute)


def vtrace(
    rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any, log_rhos: Any,
    gamma: Any, discounts: Any, lam: Any, rho_clip: Any, c_clip: Any, pg_rho_clip: Any, mask: Any, out: Any,
    pg_lam: bool,
) -> Any:  # fmt: skip
    arrays = {"values": values, "next_values": next_values, "log_rhos": log_rhos}
    clips = {"rho_clip": rho_clip, "c_clip": c_clip, "pg_rho_clip": pg_rho_clip}
    s = _Scan("vtrace", rewards, arrays, terminated, truncated, gamma, discounts, lam, mask, out, ("", ""), clips)

    def compute(r: Any, v: Any, nv: Any, log_rhos: Any) -> Any:
        rho = s.xp.exp(log_rhos)
        rho_t, c_t, pg_rho_t = (s.clipped(rho, limit) for limit in s.clips)
        delta = r + s.times(s.bootstrap, nv) - v
        e = _scan(s.times(s.trace, c_t), s.times(rho_t, delta))
        return v + e, s.times(pg_rho_t, delta + s.times(s.trace if pg_lam else s.onward, _after(e)))

    return s.run(compute)


def off_policy_returns(
    rewards: Any, q_values: Any, next_state_values: Any, traces: Any, terminated: Any, truncated: Any,
    gamma: Any, discounts: Any, mask: Any, out: Any,
) -> Any:  # fmt: skip
    arrays = {"q_values": q_values, "next_state_values": next_state_values, "traces": traces}
    s = _Scan("off_policy_returns", rewards, arrays, terminated, truncated, gamma, discounts, 1.0, mask, out, ("",))

    def compute(r: Any, q: Any, nv: Any, traces: Any) -> Any:
        a = s.times(s.onward, _after(traces))
        return (_scan(a, r + s.times(s.bootstrap, nv) - s.times(a, _after(q))),)

    return s.run(compute)


def n_step_returns(
    rewards: Any, next_values: Any, terminated: Any, truncated: Any,
    gamma: Any, discounts: Any, n: Any, cut: Any, mask: Any, out: Any,
) -> Any:  # fmt: skip
    arrays = {} if next_values is None else {"next_values": next_values}
    dtypes = "", "", "int64"
    s = _Scan(
        "n_step_returns", rewards, arrays, terminated, truncated, gamma, discounts, 1.0, mask, out, dtypes, n=n, cut=cut
    )
    return s.c.run(lambda xp: _n_step(s, *s.arrays))


def _n_step(s: _Scan, r: Any, nv: Any = None) -> tuple[Any, ...]:
    """All t at once in O(log n) passes, as the reference: the bits of m say which windows of 1, 2, 4, ... make up m."""
    xp, T = s.xp, len(r)
    n = min(s.n, max(T, 1))
    sizes = [1 << j for j in range(n.bit_length())]
    now = xp.cumsum(xp.ones_like(s.valid, dtype=xp.int64), 0) - 1
    column = xp.cumsum(xp.ones_like(s.valid, dtype=xp.int64), 1) - 1
    end = xp.where(s.cont & (s.discount != 0), T, now)  # the last step that can be reached
    for k in sizes:
        end[:-k] = xp.minimum(end[:-k] + 0, end[k:])
    last = xp.where(end - now < n, end, now + (n - 1))
    m = last - now + 1
    returns, taken, sums, weight, product = xp.zeros_like(r), now * 0, r, xp.ones_like(r), s.discount
    for k in sizes:
        takes = (m & k) != 0
        at = xp.where(takes, now + taken, now)
        returns = returns + xp.where(takes, s.times(weight, sums[at, column]), 0.0)
        weight = xp.where(takes, s.counted(weight * product[at, column]), weight)
        taken = taken + k * takes
        longer, further = sums + 0, product + 0
        longer[:-k] = sums[:-k] + s.times(product[:-k], sums[k:])
        further[:-k] = s.counted(product[:-k] * product[k:])
        sums, product = longer, further
    ends = s.bootstrap[last, column] == 0
    weight = xp.where(s.valid & ~ends, weight, 0.0)
    if nv is not None:
        returns = returns + s.times(weight, nv[last, column])
    return xp.where(s.valid, returns, 0.0), weight, last
