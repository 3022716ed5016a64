"""The loop of n_step_gather in Numba; the checks around it are the reference's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fastrl.kernels.n_step_gather.reference import ReferenceGather


@njit(nogil=True, cache=True, error_model="numpy")
def _items(
    rewards: Any, terminated: Any, truncated: Any, slot: Any, env: Any, limit: Any, gamma: float, reach: int,
    next_values: Any, bootstrap: bool, cut: Any, cuts: bool, returns: Any, discounts: Any, last: Any, bad: Any,
) -> None:  # fmt: skip
    slots = len(rewards)
    for i in range(len(slot)):
        s, e = slot[i], env[i]
        total, factor, m = 0.0, 1.0, 1
        while True:
            if factor != 0.0:
                total += factor * rewards[s, e]
            factor = factor * gamma if m < reach else 0.0
            if terminated[s, e] or truncated[s, e]:
                if truncated[s, e] > 1:
                    bad[i] = 2
                if terminated[s, e] > 1:
                    bad[i] = 1
                break
            if m == limit[i]:
                break
            after = s + 1 if s + 1 < slots else 0
            if cuts and cut[after, e]:
                if cut[after, e] > 1:
                    bad[i], s = 3, after
                break
            s = after
            m += 1
        if terminated[s, e]:
            factor = 0.0
        if bootstrap and factor != 0:
            total += factor * next_values[s, e]
        returns[i], discounts[i], last[i] = total, factor, s


class _NumbaGather(ReferenceGather):
    def _walk(
        self, rewards: Any, terminated: Any, truncated: Any, slot: Any, env: Any, limit: Any, gamma: float,
        reach: int, next_values: Any, cut: Any,
    ) -> tuple[Any, Any, Any, Any]:  # fmt: skip
        returns, discounts = np.empty(len(slot)), np.empty(len(slot))
        last, bad = np.empty(len(slot), np.int64), np.zeros(len(slot), np.int64)
        # Few combinations of types, because each is compiled anew: flags as bytes, and an array in place of None.
        terminated, truncated = terminated.view(np.uint8), truncated.view(np.uint8)
        _items(
            rewards, terminated, truncated, slot, env, limit, gamma, reach,
            rewards if next_values is None else next_values, next_values is not None,
            terminated if cut is None else cut.view(np.uint8), cut is not None,
            returns, discounts, last, bad,
        )  # fmt: skip
        return returns, discounts, last, bad


n_step_gather = _NumbaGather()
