"""n-step returns of a batch of random items of a full ring of 1e6 transitions, episodes of about 100 steps."""

import numpy as np
from _harness import RTOL, Case, NotApplicable

from fastrl.kernels import n_step_gather, n_step_gather_reference

CAPACITY, GAMMA = 10**6, 0.99
SIZES = [{"batch": b, "n": n} for n in (3, 5, 10) for b in (32, 256, 4096)]


class Ring:
    """The data and lists of items; `gather` of a subclass computes the returns of one list, with no answer kept.

    `rewards` is what the answer is compared with: all of the return, or without the bootstrap.
    """

    bootstraps = True

    def __init__(self, batch, n):
        rng = np.random.default_rng(0)
        self.n = n
        self.rewards = rng.standard_normal(CAPACITY, dtype=np.float32)
        self.terminated = rng.random(CAPACITY) < 0.01
        self.truncated = np.zeros(CAPACITY, np.bool_)
        self.values = rng.standard_normal(CAPACITY, dtype=np.float32)
        self.lists = [rng.integers(0, CAPACITY - 20, batch) for _ in range(64)]
        self.k = 0
        self.build()

    def build(self):
        pass

    def __call__(self):
        self.k = (self.k + 1) % 64
        return self.gather(self.lists[self.k])

    def wanted(self, indices):
        found = []
        for i in indices:
            total, factor = 0.0, 1.0
            for _ in range(self.n):
                total += factor * self.rewards[i]
                factor *= GAMMA
                if self.terminated[i]:
                    break
                i += 1
            else:
                total += factor * self.values[i - 1] if self.bootstraps else 0.0
            found.append(total)
        return np.array(found)

    def answer(self, result):
        return np.asarray(result).reshape(-1)


class Fastrl(Ring):
    function = staticmethod(n_step_gather)

    def build(self):
        self.columns = [self.rewards, self.terminated, self.truncated]

    def gather(self, indices):
        return self.function(*self.columns, indices, 0, CAPACITY, gamma=GAMMA, n=self.n, next_values=self.values)

    def answer(self, result):
        return np.asarray(result[0])


class FastrlOut(Fastrl):
    def gather(self, indices):
        if not hasattr(self, "out"):
            self.out = np.empty(len(indices), np.float32), np.empty(len(indices), np.float32), np.empty_like(indices)
        return n_step_gather(
            *self.columns, indices, 0, CAPACITY, gamma=GAMMA, n=self.n, next_values=self.values, out=self.out
        )


class FastrlRewardPart(Fastrl):
    """What a replay buffer asks for: the bootstrap value comes from a network later; `cut` in its place."""

    bootstraps = False

    def build(self):
        super().build()
        self.cut = np.zeros(CAPACITY, np.bool_)

    def gather(self, indices):
        return n_step_gather(*self.columns, indices, 0, CAPACITY, gamma=GAMMA, n=self.n, cut=self.cut)


class FastrlTorch(Fastrl):
    def build(self):
        import torch

        self.columns = [torch.from_numpy(x) for x in (self.rewards, self.terminated, self.truncated)]
        self.lists = [torch.from_numpy(x) for x in self.lists]
        self.next_values = torch.from_numpy(self.values)

    def gather(self, indices):
        return n_step_gather(*self.columns, indices, 0, CAPACITY, gamma=GAMMA, n=self.n, next_values=self.next_values)


class FastrlReference(Fastrl):
    function = staticmethod(n_step_gather_reference)


class NumbaLoop(Ring):
    """What one writes by hand: one flag, no checks, the return alone."""

    def build(self):
        import numba

        @numba.njit
        def loop(indices, rewards, done, values, n, gamma):
            out = np.empty(len(indices), np.float32)
            for k in range(len(indices)):
                i, total, factor, alive = indices[k], 0.0, 1.0, True
                for j in range(n):
                    total += factor * rewards[i]
                    factor *= gamma
                    if done[i]:
                        alive = False
                        break
                    if j < n - 1:
                        i = i + 1 if i + 1 < len(rewards) else 0
                out[k] = total + (factor * values[i] if alive else 0.0)
            return out

        self.loop = loop

    def gather(self, indices):
        return self.loop(indices, self.rewards, self.terminated, self.values, self.n, GAMMA)


class NumpyVectorised(Ring):
    """A matrix of indices and a cumulative mask of who is alive: the usual formulation."""

    def build(self):
        self.powers = (GAMMA ** np.arange(self.n)).astype(np.float32)

    def gather(self, indices):
        window = (indices[:, None] + np.arange(self.n)) % CAPACITY
        alive = np.ones(window.shape, np.float32)
        np.cumprod(1.0 - self.terminated[window[:, :-1]], axis=1, out=alive[:, 1:])
        returns = (self.rewards[window] * self.powers * alive).sum(1)
        last = (indices + alive.sum(1).astype(np.int64) - 1) % CAPACITY
        return returns + GAMMA**self.n * self.values[last] * ~self.terminated[last]


class Tianshou(Ring):
    def build(self):
        import torch
        from tianshou.algorithm.algorithm_base import Algorithm
        from tianshou.data import Batch, ReplayBuffer

        self.buffer = ReplayBuffer(CAPACITY)
        zeros = np.zeros(CAPACITY, np.float32)
        flags = {"terminated": self.terminated, "truncated": self.truncated, "done": self.terminated.copy()}
        self.buffer.set_batch(
            Batch(obs=zeros[:, None], act=zeros, rew=self.rewards.astype(np.float64), **flags, info=Batch())
        )
        self.buffer._size = CAPACITY
        values = torch.from_numpy(self.values)
        self.batch_class, self.compute = Batch, Algorithm.compute_nstep_return
        self.target_q = lambda buffer, indices: values[torch.from_numpy(indices)]

    def gather(self, indices):
        batch = self.batch_class(rew=self.buffer.rew[indices])
        return self.compute(batch, self.buffer, indices, self.target_q, GAMMA, self.n)

    def answer(self, result):
        return np.asarray(result.returns).reshape(-1)


class StableBaselines3(Ring):
    """Gathers observations of one number too, which its path cannot leave out; the bootstrap comes later."""

    bootstraps = False

    def build(self):
        import gymnasium as gym
        from stable_baselines3.common.buffers import NStepReplayBuffer

        space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.buffer = NStepReplayBuffer(CAPACITY, space, space, device="cpu", n_steps=self.n, gamma=GAMMA)
        self.buffer.rewards[:, 0], self.buffer.dones[:, 0] = self.rewards, self.terminated
        self.buffer.full, self.buffer.pos = True, 0

    def gather(self, indices):
        return self.buffer._get_samples(indices)

    def answer(self, result):
        return np.asarray(result.rewards).reshape(-1)


class TorchrlMultiStep(Ring):
    """A post-processor of rollouts, no reader of a ring: it is given the batch as rows of 64 steps."""

    bootstraps = False

    def build(self):
        import torch
        from tensordict import TensorDict
        from torchrl.data import MultiStep

        batch = len(self.lists[0])
        if batch < 64:
            raise NotApplicable("needs a row of 64 steps")
        shape = (batch // 64, 64, 1)

        def rows(x):
            return torch.from_numpy(x[:batch].reshape(shape).copy())

        self.rollout = TensorDict(
            {
                "obs": torch.zeros(shape),
                "action": torch.zeros(shape),
                "done": torch.zeros(shape, dtype=torch.bool),
                "next": {
                    "obs": torch.zeros(shape),
                    "reward": rows(self.rewards),
                    "done": rows(self.terminated),
                    "terminated": rows(self.terminated),
                },
                "collector": {"mask": torch.ones(shape[:2], dtype=torch.bool)},
            },
            batch_size=shape[:2],
        )
        self.multi_step = MultiStep(GAMMA, self.n)

    def gather(self, indices):
        return self.multi_step(self.rollout.copy())

    def wanted(self, indices):
        return super().wanted(range(len(self.lists[0])))

    def answer(self, result):
        # The last steps of a row are cut short by its end: of them the answer is another one.
        reward = np.asarray(result["next", "reward"]).reshape(-1, 64)
        found = super().wanted(range(reward.size)).reshape(-1, 64)
        found[:, : 64 - self.n] = reward[:, : 64 - self.n]
        return found.reshape(-1)


def checked(contender_class):
    def build(batch, n):
        contender = contender_class(batch, n)
        found = contender.answer(contender())
        np.testing.assert_allclose(found, contender.wanted(contender.lists[1].tolist()), rtol=RTOL, atol=RTOL)
        return contender

    return build


CONTENDERS = {
    "fastrl": Fastrl,
    "fastrl, out=": FastrlOut,
    "fastrl, reward part and cut": FastrlRewardPart,
    "fastrl, torch tensors": FastrlTorch,
    "fastrl, reference": FastrlReference,
    "Numba loop by hand": NumbaLoop,
    "NumPy by hand": NumpyVectorised,
    "tianshou": Tianshou,
    "Stable-Baselines3": StableBaselines3,
    "torchrl MultiStep": TorchrlMultiStep,
}
CASES = [Case("n_step_gather", SIZES, {name: checked(c) for name, c in CONTENDERS.items()})]


def test_n_step_gather(contender):
    contender()
