"""The scans' loops in Numba, on the caller's arrays; everything around them is the reference's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import from_dtype, njit, typeof, types

from fastrl.kernels.scans.reference import Call, ReferenceScans


class NumbaCall(Call):
    """Arrays as ``[T, N]`` views of the caller's memory, in the caller's dtype."""

    def wide(self, array: Any) -> Any:
        return array if array.ndim == 2 else array[:, None]

    def cast(self, array: Any, dtype: str) -> Any:
        return array.astype(dtype, copy=False)

    def wide_flags(self, array: Any) -> Any:
        # Its bytes are 0 and 1: `outputs` checks them before they are used.
        return self.wide(array if array.itemsize == 1 else array != 0).view(np.bool_)

    def steps(self, terminated: Any, truncated: Any, valid: Any, cut: Any = None) -> Any:
        cont = np.empty((self.T, self.N), np.bool_)
        cut = self.full(False) if cut is None else cut
        _run(_steps, (terminated, truncated, valid, cut), (cont,))
        return cont

    def full(self, value: Any) -> Any:
        return np.broadcast_to(value, (self.T, self.N))


@njit(inline="always", error_model="numpy")
def _times(weight: Any, x: Any) -> Any:
    """weight * x, but 0 where the weight is 0, whatever x is."""
    return weight * x if weight != 0.0 else 0.0


@njit(inline="always", error_model="numpy")
def _clip(rho: Any, high: Any) -> Any:
    """A NaN ratio stays one."""
    return high if rho > high else rho


def _steps(term: Any, trunc: Any, valid: Any, cut: Any, cont: Any) -> None:
    for t in range(len(term) - 1):
        for i in range(term.shape[1]):
            cont[t, i] = valid[t, i] & valid[t + 1, i] & ~(term[t, i] | trunc[t, i] | cut[t + 1, i])
    cont[len(term) - 1 :] = False


def _affine(a: Any, b: Any, y: Any, out: Any) -> None:
    for t in range(len(b) - 1, -1, -1):
        for i in range(b.shape[1]):
            y[i] = b[t, i] + _times(np.float64(a[t, i]), y[i])
            out[t, i] = y[i]


def _gae(
    r: Any, v: Any, nv: Any, term: Any, cont: Any, valid: Any,
    gamma: Any, lam: Any, state: Any, advantages: Any, returns: Any,
) -> None:  # fmt: skip
    for t in range(len(r) - 1, -1, -1):
        for i in range(r.shape[1]):
            value = np.float64(v[t, i])
            delta = r[t, i] + _times(0.0 if term[t, i] else gamma, np.float64(nv[t, i])) - value
            state[i] = delta + _times(gamma * lam if cont[t, i] else 0.0, state[i])
            advantages[t, i] = state[i] if valid[t, i] else 0.0
            returns[t, i] = state[i] + value if valid[t, i] else 0.0


def _lambda_returns(
    r: Any, nv: Any, term: Any, cont: Any, valid: Any, gamma: Any, lam: Any, state: Any, returns: Any
) -> None:
    for t in range(len(r) - 1, -1, -1):
        for i in range(r.shape[1]):
            trace = gamma * lam if cont[t, i] else 0.0
            weight = (0.0 if term[t, i] else gamma) - trace
            state[i] = r[t, i] + _times(weight, np.float64(nv[t, i])) + _times(trace, state[i])
            returns[t, i] = state[i] if valid[t, i] else 0.0


def _n_step(
    r: Any, nv: Any, term: Any, cont: Any, valid: Any, gamma: Any, n: Any, reach: Any,
    whole: Any, factor: Any, end: Any, rest: Any, ready: Any, power: Any, returns: Any, discounts: Any, last: Any,
    ahead: Any,
) -> None:  # fmt: skip
    """whole: the return up to the last step `end` that can be reached, factor: its discount; with it one pass serves
    every return that is not cut by n.  For the others time is cut, from its end, into blocks of the window's length: a
    window is the rest of the block it begins in, and `ahead`, the beginning of the next one, in the memory of `last`.
    """
    T, window = len(r), min(n, reach)
    longest = n if n < reach else reach - 1  # from more steps on a window is whole
    last_power = gamma**n if n < reach else 0.0
    begin = T  # of the block; ready[i]: the one that column i has been prepared for
    for t in range(T - 1, -1, -1):
        if t < begin:
            begin -= window
        for i in range(r.shape[1]):
            if cont[t, i]:
                whole[i] = r[t, i] + _times(gamma, whole[i])
                factor[i] *= gamma
            else:
                factor[i] = 0.0 if term[t, i] else gamma
                whole[i] = r[t, i] + _times(factor[i], np.float64(nv[t, i]))
                end[i] = t
            is_whole = end[i] - t >= longest
            if is_whole and ready[i] != begin:
                ready[i] = begin
                rest[i] = 0.0
                for s in range(begin + window - 1, t, -1):
                    rest[i] = r[s, i] + _times(gamma, rest[i])
                total = 0.0
                for s in range(begin, t + 1):
                    if s > begin:
                        total += power[s - begin - 1] * r[s + window - 1, i]
                    if s >= 0:
                        weight = power[s - begin] if last_power != 0.0 else 0.0
                        ahead[s, i] = total + _times(weight, np.float64(nv[s + window - 1, i]))
            if ready[i] == begin:
                rest[i] = r[t, i] + _times(gamma, rest[i])
            if not valid[t, i]:
                returns[t, i] = discounts[t, i] = 0.0
                last[t, i] = t
            elif not is_whole:
                returns[t, i], discounts[t, i], last[t, i] = whole[i], factor[i], end[i]
            else:
                total = rest[i] + _times(power[window - (t - begin)], ahead[t, i])
                returns[t, i], discounts[t, i], last[t, i] = total, last_power, min(end[i], t + n - 1)


def _vtrace(
    r: Any, v: Any, nv: Any, log_rhos: Any, term: Any, cont: Any, valid: Any,
    gamma: Any, lam: Any, rho_clip: Any, c_clip: Any, pg_rho_clip: Any, e: Any, vs: Any, pg_advantages: Any,
) -> None:  # fmt: skip
    for t in range(len(r) - 1, -1, -1):
        for i in range(r.shape[1]):
            value = np.float64(v[t, i])
            rho = math.exp(np.float64(log_rhos[t, i]))
            delta = r[t, i] + _times(0.0 if term[t, i] else gamma, np.float64(nv[t, i])) - value
            pg = _times(_clip(rho, pg_rho_clip), delta + _times(gamma if cont[t, i] else 0.0, e[i]))
            trace = _times(gamma * lam, _clip(rho, c_clip)) if cont[t, i] else 0.0
            e[i] = _times(_clip(rho, rho_clip), delta) + _times(trace, e[i])
            vs[t, i] = value + e[i] if valid[t, i] else 0.0
            pg_advantages[t, i] = pg if valid[t, i] else 0.0


def _off_policy(
    r: Any, q: Any, nv: Any, traces: Any, term: Any, cont: Any, valid: Any, gamma: Any, state: Any, returns: Any
) -> None:
    """state: c_{t+1} (y_{t+1} - Q_{t+1})."""
    for t in range(len(r) - 1, -1, -1):
        for i in range(r.shape[1]):
            y = r[t, i] + _times(0.0 if term[t, i] else gamma, np.float64(nv[t, i]))
            y += _times(gamma if cont[t, i] else 0.0, state[i])
            returns[t, i] = y if valid[t, i] else 0.0
            state[i] = _times(np.float64(traces[t, i]), y - q[t, i])


_compiled: dict[Any, Any] = {}


def _run(loop: Any, inputs: tuple[Any, ...], rest: tuple[Any, ...]) -> None:
    """Compiled for inputs of any layout, so that a new one compiles nothing."""
    key = (loop, *[x.dtype for x in inputs])
    if key not in _compiled:
        any_layout = [types.Array(from_dtype(x.dtype), 2, "A", readonly=True, aligned=False) for x in inputs]
        _compiled[key] = njit((*any_layout, *map(typeof, rest)), nogil=True, cache=True, error_model="numpy")(loop)
    _compiled[key](*inputs, *rest)


class NumbaScans(ReferenceScans):
    call = NumbaCall

    @staticmethod
    def _affine(xp: Any, a: Any, b: Any, y: Any) -> tuple[Any, ...]:
        out = np.empty(b.shape, b.dtype)
        _run(_affine, (a, b), (y, out))
        return (out,)

    @staticmethod
    def _gae(
        xp: Any, r: Any, v: Any, nv: Any, term: Any, cont: Any, valid: Any, gamma: float, lam: float
    ) -> tuple[Any, ...]:
        outs = np.empty(r.shape, r.dtype), np.empty(r.shape, r.dtype)
        _run(_gae, (r, v, nv, term, cont, valid), (gamma, lam, np.zeros(r.shape[1]), *outs))
        return outs

    @staticmethod
    def _lambda_returns(
        xp: Any, r: Any, nv: Any, term: Any, cont: Any, valid: Any, gamma: float, lam: float
    ) -> tuple[Any, ...]:
        out = np.empty(r.shape, r.dtype)
        _run(_lambda_returns, (r, nv, term, cont, valid), (gamma, lam, np.zeros(r.shape[1]), out))
        return (out,)

    @staticmethod
    def _n_step(
        xp: Any, r: Any, nv: Any, term: Any, cont: Any, valid: Any, gamma: float, n: int, reach: int
    ) -> tuple[Any, ...]:
        outs = np.empty(r.shape, r.dtype), np.empty(r.shape, r.dtype), np.empty(r.shape, np.int64)
        N = r.shape[1]
        states = np.zeros(N), np.zeros(N), np.zeros(N, np.int64), np.zeros(N), np.full(N, len(r))
        power = float(gamma) ** np.arange(min(n, reach) + 1)
        ahead = outs[2].view(np.float64)
        _run(_n_step, (r, nv, term, cont, valid), (float(gamma), n, reach, *states, power, *outs, ahead))
        return outs

    @staticmethod
    def _vtrace(
        xp: Any, r: Any, v: Any, nv: Any, log_rhos: Any, term: Any, cont: Any, valid: Any,
        gamma: float, lam: float, rho_clip: float, c_clip: float, pg_rho_clip: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        outs = np.empty(r.shape, r.dtype), np.empty(r.shape, r.dtype)
        parameters = (gamma, lam, rho_clip, c_clip, pg_rho_clip)
        _run(_vtrace, (r, v, nv, log_rhos, term, cont, valid), (*parameters, np.zeros(r.shape[1]), *outs))
        return outs

    @staticmethod
    def _off_policy(
        xp: Any, r: Any, q: Any, nv: Any, traces: Any, term: Any, cont: Any, valid: Any, gamma: float
    ) -> tuple[Any, ...]:
        out = np.empty(r.shape, r.dtype)
        _run(_off_policy, (r, q, nv, traces, term, cont, valid), (gamma, np.zeros(r.shape[1]), out))
        return (out,)


_ops = NumbaScans()
reverse_affine_scan = _ops.reverse_affine_scan
gae = _ops.gae
discounted_returns = _ops.discounted_returns
lambda_returns = _ops.lambda_returns
n_step_returns = _ops.n_step_returns
vtrace = _ops.vtrace
off_policy_returns = _ops.off_policy_returns
