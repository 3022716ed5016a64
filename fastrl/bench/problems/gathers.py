"""Rows of several arrays, and n-step returns of sampled items of a ring buffer."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrl
from fastrl.bench.timing import OURS, Call, Kernel, Problem, close, library

GAMMA = 0.99


def _gather_rows(rows: int, batch: int) -> Problem:
    """A replay batch: obs, next_obs (the row after), action, reward."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((rows + 1, 17), np.float32)
    columns = [obs[:-1], obs[1:], rng.random((rows, 6), np.float32), rng.random((rows, 1), np.float32)]
    indices = rng.integers(0, rows, batch)

    def index_select() -> Call:
        torch = library("torch")
        tensors, i = [torch.from_numpy(x) for x in columns], torch.from_numpy(indices)
        return lambda: [x.index_select(0, i) for x in tensors]

    return Problem(
        {
            OURS: lambda: lambda: fastrl.gather_rows(columns, indices),
            "reference: NumPy": lambda: lambda: [x[indices] for x in columns],
            "torch.index_select": index_select,
        },
        lambda found: close(found, [x[indices] for x in columns], 0.0),
    )


def _n_step_gather(capacity: int, envs: int, batch: int, n: int) -> Problem:
    """n-step returns of sampled items of a full ring buffer."""
    rng = np.random.default_rng(0)
    rewards = rng.random((capacity, envs), np.float32)
    ends, cuts = rng.random((2, capacity, envs)) < 0.01
    indices, cursor = rng.integers(0, capacity * envs, batch), 10

    def by_hand() -> Any:  # a step of all items at a time
        t, env = np.divmod(indices, envs)
        returns, discounts = np.zeros(batch, np.float32), np.ones(batch, np.float32)
        going, last = np.ones(batch, bool), indices
        for _ in range(n):
            i = t % capacity
            returns += np.where(going, discounts * rewards[i, env], 0)
            discounts = np.where(going, discounts * GAMMA, discounts)
            last = np.where(going, i * envs + env, last)
            going = going & ~(ends[i, env] | cuts[i, env]) & ((i + 1) % capacity != cursor)
            t = t + 1
        return returns, discounts * ~ends.reshape(-1)[last], last

    exact = fastrl.kernels.n_step_gather_reference(rewards, ends, cuts, indices, cursor, capacity, gamma=GAMMA, n=n)
    return Problem(
        {
            OURS: lambda: (
                lambda: fastrl.n_step_gather(rewards, ends, cuts, indices, cursor, capacity, gamma=GAMMA, n=n)
            ),
            "reference: NumPy": lambda: by_hand,
        },
        lambda found: close(found, [np.asarray(x) for x in exact]),
    )


KERNELS = {
    "gather_rows": Kernel(_gather_rows, [{"rows": 2**17, "batch": 256}], {"rows": 1000, "batch": 32}),
    "n_step_gather": Kernel(
        _n_step_gather,
        [{"capacity": 2**16, "envs": 4, "batch": 256, "n": 5}],
        {"capacity": 100, "envs": 2, "batch": 32, "n": 3},
    ),
}
