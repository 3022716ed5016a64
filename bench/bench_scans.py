"""Returns and advantages of one rollout: [T, N] float32, 1 step in 100 terminal, V'_t = V_{t+1}, gamma 0.99, lam 0.95.

Every peer gets the layout and the dtypes that it asks for, made outside the timed call.  A peer that takes longer than
SLOW_MS a call is left out at that size.
"""

import time

import numpy as np
from _harness import RTOL, Case, NotApplicable
from _rollouts import GAMMA, LAM, STEPS, Discounted, Gae, NStep, Vtrace

import fastrl
from fastrl.kernels.scans import reference

SLOW_MS = 60
SIZES = [{"T": 128, "N": 8}, {"T": 128, "N": 1024}]
GAE_SIZES = [{"T": t, "N": n} for t, n in ((128, 8), (2048, 1), (2048, 16), (128, 4096), (1024, 1024))]


# ---- fastrl -----------------------------------------------------------------------------------------------------


class Fastrl:
    def build(self):
        self.function = getattr(fastrl, self.op)
        self.inputs = [self.convert(getattr(self, name)) for name in self.arrays]
        self.parameters = dict(self.numbers)
        if self.op == "discounted_returns":
            self.parameters["next_values"] = self.convert(self.next_values)

    def convert(self, array):
        return array

    def __call__(self):
        return self.function(*self.inputs, **self.parameters)


class FastrlOut(Fastrl):
    def build(self):
        super().build()
        self.parameters["out"] = tuple(np.empty_like(x) for x in self()) if self.op != "discounted_returns" else self()


class FastrlTorch(Fastrl):
    def convert(self, array):
        import torch

        return torch.from_numpy(array)


class FastrlReference(Fastrl):
    def build(self):
        super().build()
        if self.T * self.N > 2048:
            raise NotApplicable("run at the smallest size only")
        self.function = getattr(reference, self.op)
        self.parameters |= {"mask": None, "out": None}
        if self.op == "n_step_returns":
            self.parameters["cut"] = None
        if self.op == "vtrace":
            self.parameters |= dict.fromkeys(("lam", "rho_clip", "c_clip", "pg_rho_clip"), 1.0)


# ---- by hand: one flag, no checks, no masks -----------------------------------------------------------------------


class NumpyLoop:
    """As in CleanRL: one step of all environments at a time."""

    def build(self):
        self.done = self.terminated.astype(np.float32)


class GaeNumpy(NumpyLoop, Gae):
    def __call__(self):
        r, v, nv, done = self.rewards, self.values, self.next_values, self.done
        advantages, last = np.zeros_like(r), 0
        for t in reversed(range(self.T)):
            alive = 1.0 - done[t]
            delta = r[t] + GAMMA * nv[t] * alive - v[t]
            advantages[t] = last = delta + GAMMA * LAM * alive * last
        return advantages, advantages + v


class DiscountedNumpy(NumpyLoop, Discounted):
    def __call__(self):
        returns, last = np.zeros_like(self.rewards), self.next_values[-1]
        for t in reversed(range(self.T)):
            returns[t] = last = self.rewards[t] + GAMMA * (1.0 - self.done[t]) * last
        return returns


class NStepNumpy(NumpyLoop, NStep):
    """Vectorised over time, one shift a step."""

    def __call__(self):
        alive = 1.0 - self.done
        returns = np.concatenate([self.next_values[STEPS - 1 :], np.repeat(self.next_values[-1:], STEPS - 1, 0)])
        for k in reversed(range(STEPS)):  # row t takes the reward of t + k where there is one
            returns[: self.T - k] = self.rewards[k:] + GAMMA * alive[k:] * returns[: self.T - k]
        return returns


class VtraceNumpy(NumpyLoop, Vtrace):
    def __call__(self):
        r, v, nv = self.rewards, self.values, self.next_values
        rho, discounts = np.minimum(np.exp(self.log_rhos), 1.0), GAMMA * (1.0 - self.done)
        deltas, errors, last = rho * (r + discounts * nv - v), np.zeros_like(r), 0
        for t in reversed(range(self.T)):
            errors[t] = last = deltas[t] + discounts[t] * rho[t] * last
        vs = errors + v
        return vs, rho * (r + discounts * np.concatenate([vs[1:], nv[-1:]]) - v)


class NumbaLoop:
    """Over [T, N] as it lies, without branches on the data, on one thread; sums in float32."""

    def build(self):
        import numba

        self.compiled = numba.njit(fastmath=True)(self.source)
        self.alive = 1 - self.terminated.astype(np.float32)
        self.gamma, self.decay = np.float32(GAMMA), np.float32(GAMMA * LAM)

    def new(self):
        return np.empty_like(self.rewards)


class GaeNumba(NumbaLoop, Gae):
    @staticmethod
    def source(r, v, nv, alive, gamma, decay, advantages, returns):
        T, N = r.shape
        for t in range(T - 1, -1, -1):
            for n in range(N):
                after = advantages[t + 1, n] if t < T - 1 else np.float32(0)
                x = r[t, n] - v[t, n] + alive[t, n] * (gamma * nv[t, n] + decay * after)
                advantages[t, n] = x
                returns[t, n] = x + v[t, n]

    def __call__(self):
        found = self.new(), self.new()
        self.compiled(self.rewards, self.values, self.next_values, self.alive, self.gamma, self.decay, *found)
        return found


class DiscountedNumba(NumbaLoop, Discounted):
    @staticmethod
    def source(r, nv, alive, gamma, returns):
        T, N = r.shape
        for t in range(T - 1, -1, -1):
            for n in range(N):
                after = returns[t + 1, n] if t < T - 1 else nv[t, n]
                returns[t, n] = r[t, n] + gamma * alive[t, n] * after

    def __call__(self):
        returns = self.new()
        self.compiled(self.rewards, self.next_values, self.alive, self.gamma, returns)
        return returns


class NStepNumba(NumbaLoop, NStep):
    @staticmethod
    def source(r, nv, done, gamma, steps, returns):
        T, N = r.shape
        for t in range(T):
            for n in range(N):
                total, factor, k = np.float32(0), np.float32(1), t
                for k in range(t, min(t + steps, T)):
                    total += factor * r[k, n]
                    factor *= gamma
                    if done[k, n]:
                        factor = np.float32(0)
                        break
                returns[t, n] = total + factor * nv[k, n]

    def __call__(self):
        returns = self.new()
        self.compiled(self.rewards, self.next_values, self.terminated, self.gamma, STEPS, returns)
        return returns


class VtraceNumba(NumbaLoop, Vtrace):
    @staticmethod
    def source(r, v, nv, log_rhos, alive, gamma, vs, advantages):
        T, N = r.shape
        for t in range(T - 1, -1, -1):
            for n in range(N):
                rho = min(np.exp(log_rhos[t, n]), np.float32(1))
                error = vs[t + 1, n] - v[t + 1, n] if t < T - 1 else np.float32(0)
                x = rho * (r[t, n] - v[t, n] + gamma * alive[t, n] * (nv[t, n] + error))
                advantages[t, n] = x
                vs[t, n] = v[t, n] + x

    def __call__(self):
        found = self.new(), self.new()
        arrays = self.rewards, self.values, self.next_values, self.log_rhos, self.alive
        self.compiled(*arrays, self.gamma, *found)
        return found


# ---- libraries ----------------------------------------------------------------------------------------------------


class StableBaselines3(Gae):
    """Its flags say which step starts an episode, one step later."""

    def build(self):
        import gymnasium as gym
        import torch
        from stable_baselines3.common.buffers import RolloutBuffer

        box = gym.spaces.Box(-1, 1, (1,))
        self.buffer = RolloutBuffer(self.T, box, box, device="cpu", gae_lambda=LAM, gamma=GAMMA, n_envs=self.N)
        self.buffer.values[:], self.buffer.rewards[:] = self.values, self.rewards
        self.buffer.episode_starts[1:] = self.terminated[:-1]
        self.last = torch.from_numpy(self.next_values[-1].copy()), self.terminated[-1]

    def __call__(self):
        self.buffer.compute_returns_and_advantage(*self.last)
        return self.buffer.advantages, self.buffer.returns


class Tianshou(Gae):
    """One array of all environments, one after another; rewards in float64, as its buffer keeps them."""

    def build(self):
        from tianshou.algorithm.algorithm_base import _gae

        self.gae = _gae
        ends = self.terminated.copy()
        ends[-1] = True
        flat = (self.values, self.next_values * ~self.terminated, self.rewards.astype(np.float64), ends)
        self.flat = [np.ascontiguousarray(x.T).ravel() for x in flat]

    def __call__(self):
        advantages = self.gae(*self.flat, GAMMA, LAM)
        return advantages, advantages + self.flat[0]

    def answer(self, result):
        return tuple(x.reshape(self.N, self.T).T for x in result)


class Torchrl:
    """[N, T, 1] tensors."""

    def build(self):
        import torch
        from torchrl.objectives.value import functional

        self.torch, self.functional = torch, functional
        r, v, nv, done, rho = (
            torch.from_numpy(np.ascontiguousarray(x.T)[:, :, None])
            for x in (self.rewards, self.values, self.next_values, self.terminated, self.log_rhos)
        )
        self.tensors, self.rho = (v, nv, r, done, done), (rho, torch.zeros_like(rho))

    def __call__(self):
        with self.torch.no_grad():
            return self.call()

    def answer(self, result):
        return tuple(x[..., 0].T.numpy() for x in result)


class GaeTorchrlLoop(Torchrl, Gae):
    def call(self):
        return self.functional.generalized_advantage_estimate(GAMMA, LAM, *self.tensors)


class GaeTorchrlVec(Torchrl, Gae):
    def call(self):
        return self.functional.vec_generalized_advantage_estimate(GAMMA, LAM, *self.tensors)


class VtraceTorchrl(Torchrl, Vtrace):
    def call(self):
        return self.functional.vtrace_advantage_estimate(GAMMA, *self.rho, *self.tensors)[::-1]


class Jax:
    """`function` of the arrays under jax.jit, on arrays that are JAX's already."""

    def build(self):
        import jax

        self.jax, self.jnp = jax, jax.numpy
        arrays = (self.rewards, self.values, self.next_values, self.log_rhos, 1.0 - self.terminated)
        self.inputs = [self.jnp.asarray(x, self.jnp.float32) for x in arrays]
        self.compiled = jax.jit(self.function)

    def __call__(self):
        return self.jax.block_until_ready(self.compiled(*self.inputs))

    def answer(self, result):
        return tuple(np.asarray(x) for x in super().answer(result))


class GaeJax(Jax, Gae):
    def function(self, r, v, nv, _, alive):
        def step(last, x):
            last = x[0] + GAMMA * LAM * x[1] * last
            return last, last

        deltas = r + GAMMA * alive * nv - v
        _, advantages = self.jax.lax.scan(step, self.jnp.zeros_like(r[0]), (deltas, alive), reverse=True)
        return advantages, advantages + v


class FastrlJax(Jax):
    """`fastrl.jax` in a program."""

    def build(self):
        import fastrl.jax

        self.ops = fastrl.jax
        super().build()
        self.inputs[-1] = self.jnp.asarray(self.terminated, self.jnp.bool_)


class GaeFastrlJax(FastrlJax, Gae):
    def function(self, r, v, nv, _, terminated):
        return self.ops.gae(r, v, nv, terminated, None, gamma=GAMMA, lam=LAM)


class VtraceFastrlJax(FastrlJax, Vtrace):
    def function(self, r, v, nv, log_rhos, terminated):
        return self.ops.vtrace(r, v, nv, terminated, None, log_rhos, gamma=GAMMA)


class Rlax(Jax):
    """Written for one environment; vmap does the others."""

    def build(self):
        import rlax

        self.rlax = rlax
        super().build()

    def columns(self, function, *arrays):
        return self.jax.vmap(function, 1, 1)(*arrays)


class DiscountedRlax(Rlax, Discounted):
    def function(self, r, v, nv, _, alive):
        return self.columns(self.rlax.discounted_returns, r, GAMMA * alive, nv)


class NStepRlax(Rlax, NStep):
    def function(self, r, v, nv, _, alive):
        return self.columns(lambda *x: self.rlax.n_step_bootstrapped_returns(*x, n=STEPS), r, GAMMA * alive, nv)


class VtraceRlax(Rlax, Vtrace):
    def function(self, r, v, nv, log_rhos, alive):
        found = self.columns(self.rlax.vtrace_td_error_and_advantage, v, nv, r, GAMMA * alive, self.jnp.exp(log_rhos))
        return found.errors + v, found.pg_advantage


class Streaming(Gae):
    """Memory traffic as of GAE, without its sums: a floor for arrays beyond the caches, no peer."""

    def __call__(self):
        copy = np.empty_like(self.rewards)
        np.copyto(copy, self.next_values)
        return self.rewards + self.values, copy

    def exact(self):
        return self.rewards + self.values, self.next_values


def checked(contender_class):
    def build(T, N):
        contender = contender_class(T, N)
        found, wanted = contender.answer(contender()), contender.exact()
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(np.asarray(x), y, rtol=RTOL, atol=RTOL * np.abs(y).max())
        if not isinstance(contender, Fastrl):
            milliseconds = []
            for _ in range(3):
                start = time.perf_counter()
                contender()
                milliseconds.append(1e3 * (time.perf_counter() - start))
            if min(milliseconds) > SLOW_MS:
                raise NotApplicable(f"more than {SLOW_MS} ms a call")
        return contender

    return build


def case(op, sizes, **contenders):
    """The contenders of an op; fastrl's own are mixed with it."""
    ours = {
        "fastrl": Fastrl,
        "fastrl, out=": FastrlOut,
        "fastrl, torch tensors": FastrlTorch,
        "fastrl, reference": FastrlReference,
    }
    classes = {name: type(c.__name__, (c, op), {}) for name, c in ours.items()} | contenders
    return Case(op.op, sizes, {name: checked(c) for name, c in classes.items()})


CASES = [
    case(
        Gae,
        GAE_SIZES,
        **{
            "Numba loop by hand": GaeNumba,
            "NumPy loop, as in CleanRL": GaeNumpy,
            "Stable-Baselines3 RolloutBuffer": StableBaselines3,
            "tianshou _gae": Tianshou,
            "torchrl, loop": GaeTorchrlLoop,
            "torchrl, vectorised": GaeTorchrlVec,
            "fastrl.jax": GaeFastrlJax,
            "JAX lax.scan": GaeJax,
            "(no GAE) streaming: NumPy, 3 reads 2 writes": Streaming,
        },
    ),
    case(
        Discounted,
        SIZES,
        **{"Numba loop by hand": DiscountedNumba, "NumPy loop by hand": DiscountedNumpy, "rlax": DiscountedRlax},
    ),
    case(NStep, SIZES, **{"Numba loop by hand": NStepNumba, "NumPy by hand": NStepNumpy, "rlax": NStepRlax}),
    case(
        Vtrace,
        SIZES,
        **{
            "Numba loop by hand": VtraceNumba,
            "NumPy loop by hand": VtraceNumpy,
            "fastrl.jax": VtraceFastrlJax,
            "rlax": VtraceRlax,
            "torchrl": VtraceTorchrl,
        },
    ),
]


def test_scans(contender):
    contender()
