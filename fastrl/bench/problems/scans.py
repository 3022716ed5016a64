"""GAE of a whole rollout."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastrl
from fastrl.bench.timing import OURS, Call, Kernel, Problem, close, library

GAMMA, LAM = 0.99, 0.95


class Rollout(NamedTuple):
    """What every contender gets, [T, N] each."""

    r: NDArray[np.float32]
    v: NDArray[np.float32]
    nv: NDArray[np.float32]
    ends: NDArray[np.bool_]
    alive: NDArray[np.float32]


def _loop(r: Any, v: Any, nv: Any, alive: Any) -> tuple[Any, Any]:
    advantages, last = np.empty_like(r), 0.0
    for t in reversed(range(len(r))):
        advantages[t] = last = r[t] + GAMMA * nv[t] * alive[t] - v[t] + GAMMA * LAM * alive[t] * last
    return advantages, advantages + v


def _numba(x: Rollout) -> Call:
    r, v, nv, _, alive = x

    def source(r, v, nv, alive, gamma, decay, advantages, returns):  # type: ignore[no-untyped-def]
        T, N = r.shape
        for t in range(T - 1, -1, -1):
            for n in range(N):
                after = advantages[t + 1, n] if t < T - 1 else np.float32(0)
                x = r[t, n] - v[t, n] + alive[t, n] * (gamma * nv[t, n] + decay * after)
                advantages[t, n] = x
                returns[t, n] = x + v[t, n]

    compiled, factors = library("numba").njit(fastmath=True)(source), (np.float32(GAMMA), np.float32(GAMMA * LAM))

    def call() -> Any:
        found = np.empty_like(r), np.empty_like(r)
        compiled(r, v, nv, alive, *factors, *found)
        return found

    return call


def _tianshou(x: Rollout) -> Call:  # one array of all environments, one after another
    r, v, nv, ends, alive = x
    T, N = r.shape

    gae = library("tianshou.algorithm.algorithm_base")._gae
    last = ends.copy()
    last[-1] = True
    flat = [np.ascontiguousarray(x.T).ravel() for x in (v, nv * alive, r.astype(np.float64), last)]

    def call() -> Any:
        advantages = gae(*flat, GAMMA, LAM)
        return tuple(x.reshape(N, T).T for x in (advantages, advantages + flat[0]))

    return call


def _stable_baselines3(x: Rollout) -> Call:
    r, v, nv, ends, _ = x
    T, N = r.shape

    gym, torch = library("gymnasium"), library("torch")
    box = gym.spaces.Box(-1, 1, (1,))
    make = library("stable_baselines3.common.buffers").RolloutBuffer
    buffer = make(T, box, box, device="cpu", gae_lambda=LAM, gamma=GAMMA, n_envs=N)
    buffer.values[:], buffer.rewards[:], buffer.episode_starts[1:] = v, r, ends[:-1]
    last = torch.from_numpy(nv[-1].copy()), ends[-1]

    def call() -> Any:
        buffer.compute_returns_and_advantage(*last)
        return buffer.advantages, buffer.returns

    return call


def _torchrl(x: Rollout) -> Call:  # [N, T, 1] tensors
    r, v, nv, ends, _ = x

    torch, functional = library("torch"), library("torchrl.objectives.value.functional")
    tensors = [torch.from_numpy(np.ascontiguousarray(x.T)[:, :, None]) for x in (v, nv, r, ends, ends)]

    def call() -> Any:
        with torch.no_grad():
            found = functional.generalized_advantage_estimate(GAMMA, LAM, *tensors)
        return tuple(x[..., 0].T for x in found)

    return call


def _jax(x: Rollout) -> Call:
    r, v, nv, _, alive = x

    jax = library("jax")
    jnp = jax.numpy

    @jax.jit  # type: ignore[untyped-decorator]
    def gae(r: Any, v: Any, nv: Any, alive: Any) -> Any:
        def step(last: Any, x: Any) -> Any:
            last = x[0] + GAMMA * LAM * x[1] * last
            return last, last

        deltas = r + GAMMA * alive * nv - v
        _, advantages = jax.lax.scan(step, jnp.zeros_like(r[0]), (deltas, alive), reverse=True)
        return advantages, advantages + v

    arrays = [jnp.asarray(x) for x in (r, v, nv, alive)]
    return lambda: jax.block_until_ready(gae(*arrays))


def _gae(T: int, N: int) -> Problem:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((T, N), np.float32)
    values = rng.standard_normal((T + 1, N), np.float32)
    v, nv = values[:-1], values[1:]
    ends, cuts = rng.random((T, N)) < 0.01, np.zeros((T, N), np.bool_)
    alive = 1 - ends.astype(np.float32)
    x = Rollout(r, v, nv, ends, alive)
    exact = _loop(*(a.astype(np.float64) for a in (r, v, nv, alive)))
    return Problem(
        {
            OURS: lambda: lambda: fastrl.gae(r, v, nv, ends, cuts, gamma=GAMMA, lam=LAM),
            "reference: NumPy": lambda: lambda: _loop(r, v, nv, alive),
            "Numba loop": lambda: _numba(x),
            "tianshou": lambda: _tianshou(x),
            "Stable-Baselines3": lambda: _stable_baselines3(x),
            "torchrl": lambda: _torchrl(x),
            "JAX lax.scan": lambda: _jax(x),
        },
        lambda found: close(found, exact),
    )


KERNELS = {
    "gae": Kernel(_gae, [{"T": 128, "N": 8}, {"T": 2048, "N": 16}], {"T": 33, "N": 3}),
}
