"""Replay of frame stacks and of sequences: batches beside those of other libraries and beside plain copies.

`replay.stacks`: 256 transitions of 4 x 84 x 84 from single frames.  "whole stacks" keeps and copies the same bytes of
stored stacks, 4 times the memory: what gathering from single frames is to be measured by.
`replay.sequences`: windows of 80 steps of 17 floats, episodes of 500 steps.
"""

import numpy as np
from _harness import Case

from fastrl.kernels import gather_rows
from fastrl.replay import ReplayBuffer, SequenceReplay

STACK, IMAGE = 4, (84, 84)
EPISODE = 500
STACKS = [{"capacity": 20_000, "batch": 256}]
SEQUENCES = [{"capacity": 100_000, "batch": 64, "steps": 80}]


def frames_of(capacity):
    """Frames of episodes of 500 steps, numbered in their first bytes: [episodes, 501, 84, 84]."""
    count = capacity // EPISODE * (EPISODE + 1)
    frames = np.random.default_rng(0).integers(256, size=(count, *IMAGE), dtype=np.uint8)
    frames[:, 0, :4] = np.arange(count, dtype=np.uint32)[:, None].view(np.uint8)
    return frames.reshape(-1, EPISODE + 1, *IMAGE)


def stacked(episode):
    """Every stack of an episode, its first ones padded with its first frame: [501, 4, 84, 84]."""
    padded = np.concatenate((np.repeat(episode[:1], STACK - 1, 0), episode))
    return np.lib.stride_tricks.sliding_window_view(padded, STACK, axis=0).transpose(0, 3, 1, 2)


class Stacks:
    def __init__(self, capacity, batch):
        self.capacity, self.batch = capacity, batch
        self.frames = frames_of(capacity)
        self.build()
        self.check(*self())

    def check(self, obs, next_obs):
        """Each stack is the one of the frame that it ends with."""
        assert obs.shape == next_obs.shape == (self.batch, STACK, *IMAGE)
        flat = self.frames.reshape(-1, *IMAGE)
        for found in (np.asarray(obs), np.asarray(next_obs)):
            newest = np.ascontiguousarray(found[:, -1, 0, :4]).view(np.uint32)[:, 0].astype(np.int64)
            first = newest // (EPISODE + 1) * (EPISODE + 1)
            for age in range(STACK):
                np.testing.assert_array_equal(found[:, STACK - 1 - age], flat[np.maximum(newest - age, first)])
        assert len(np.unique(newest)) > self.batch // 2


class FastrlStacks(Stacks):
    def build(self):
        self.buffer = ReplayBuffer(
            self.capacity, ((STACK, *IMAGE), np.uint8), ((), np.int64), frame_stack=STACK, seed=0
        )
        ends = np.arange(EPISODE) == EPISODE - 1
        zeros = np.zeros(EPISODE)
        for episode in self.frames:
            whole = stacked(episode)
            self.buffer.extend(whole[:-1], zeros.astype(int), zeros, whole[1:], ends, zeros.astype(bool))

    def __call__(self):
        found = self.buffer.sample(self.batch)
        return found.obs, found.next_obs


class WholeStacks(Stacks):
    """Stored stacks [N, 4, 84, 84] and rows drawn before: gathers alone."""

    def build(self):
        self.obs = np.concatenate([stacked(episode)[:-1] for episode in self.frames])
        self.next_obs = np.concatenate([stacked(episode)[1:] for episode in self.frames])
        rng = np.random.default_rng(0)
        self.rows = [rng.integers(len(self.obs), size=self.batch) for _ in range(16)]
        self.k = 0

    def __call__(self):
        self.k = (self.k + 1) % len(self.rows)
        return gather_rows([self.obs, self.next_obs], self.rows[self.k])


class CpprbStacks(Stacks):
    def build(self):
        from cpprb import ReplayBuffer as Cpprb

        fields = {"obs": {"shape": (*IMAGE, STACK), "dtype": np.uint8}, "action": {}, "rew": {}, "done": {}}
        self.buffer = Cpprb(self.capacity, fields, next_of="obs", stack_compress="obs")
        for episode in self.frames:
            whole = stacked(episode).transpose(0, 2, 3, 1)  # it stacks along the last axis
            for t in range(EPISODE):
                self.buffer.add(obs=whole[t], next_obs=whole[t + 1], action=0, rew=0, done=t == EPISODE - 1)
            self.buffer.on_episode_end()

    def __call__(self):
        found = self.buffer.sample(self.batch)
        return found["obs"].transpose(0, 3, 1, 2), found["next_obs"].transpose(0, 3, 1, 2)


class Sequences:
    """Transition t of the buffer has reward t and observation [t, ...]."""

    episode = EPISODE

    def __init__(self, capacity, batch, steps):
        self.capacity, self.batch, self.steps = capacity, batch, steps
        self.number = np.arange(capacity, dtype=np.float32)
        self.obs = np.repeat(self.number[:, None], 17, 1)
        self.ends = np.arange(capacity) % self.episode == self.episode - 1
        self.build()
        obs, next_obs, reward = map(np.asarray, self())
        shape = (batch, steps)
        reward = reward.reshape(shape)
        np.testing.assert_array_equal(obs.reshape(*shape, 17), np.repeat(reward[..., None], 17, 2))
        np.testing.assert_array_equal(next_obs.reshape(*shape, 17), obs.reshape(*shape, 17) + 1)
        assert (np.diff(reward) == 1).all() and (reward[:, 0] // self.episode == reward[:, -1] // self.episode).all()
        assert len(np.unique(reward[:, 0])) > batch // 2


class FastrlSequences(Sequences):
    alpha = 0.0

    def build(self):
        space = ((17,), np.float32), ((), np.int64)
        # As torchrl's slices, windows may start anywhere.
        self.buffer = SequenceReplay(
            self.capacity, *space, length=self.steps, overlap=self.steps - 1, alpha=self.alpha, seed=0
        )
        no = np.zeros(self.capacity, bool)
        self.buffer.extend(self.obs, no.astype(int), self.number, self.obs + 1, self.ends, no)

    def __call__(self):
        found = self.buffer.sample(self.batch)
        return found.obs, found.next_obs, found.reward


class FastrlPrioritizedSequences(FastrlSequences):
    alpha = 0.9


class TorchrlSequences(Sequences):
    def build(self):
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        from torchrl.data.replay_buffers.samplers import SliceSampler

        torch.manual_seed(0)
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(self.capacity),
            sampler=SliceSampler(slice_len=self.steps, end_key="end", cache_values=True),
            batch_size=self.batch * self.steps,
        )
        columns = {"obs": self.obs, "next_obs": self.obs + 1, "reward": self.number, "end": self.ends}
        columns["action"] = np.zeros(self.capacity, np.int64)
        tensors = {name: torch.from_numpy(x) for name, x in columns.items()}
        self.buffer.extend(TensorDict(tensors, batch_size=[self.capacity]))

    def __call__(self):
        found = self.buffer.sample()
        return found["obs"], found["next_obs"], found["reward"]


class FlashbaxSequences(Sequences):
    """Jitted; its windows go on over episodes' ends, so here there is one episode."""

    episode = 10**9

    def build(self):
        import flashbax
        import jax

        buffer = flashbax.make_trajectory_buffer(
            add_batch_size=1, sample_batch_size=self.batch, sample_sequence_length=self.steps, period=1,
            min_length_time_axis=self.steps, max_length_time_axis=self.capacity,
        )  # fmt: skip
        columns = {"obs": self.obs, "next_obs": self.obs + 1, "reward": self.number, "action": self.number.astype(int)}
        state = buffer.init({name: x[0] for name, x in columns.items()})
        self.state = jax.jit(buffer.add, donate_argnums=0)(state, {name: x[None] for name, x in columns.items()})
        self.draw = jax.jit(buffer.sample)
        self.keys = list(jax.random.split(jax.random.key(0), 64))
        self.k = 0

    def __call__(self):
        self.k = (self.k + 1) % 64
        found = self.draw(self.state, self.keys[self.k]).experience
        return found["obs"].block_until_ready(), found["next_obs"], found["reward"]


CASES = [
    Case("replay.stacks", STACKS, {"fastrl": FastrlStacks, "whole stacks": WholeStacks, "cpprb": CpprbStacks}),
    Case(
        "replay.sequences",
        SEQUENCES,
        {
            "fastrl": FastrlSequences,
            "fastrl, prioritized": FastrlPrioritizedSequences,
            "torchrl": TorchrlSequences,
            "flashbax": FlashbaxSequences,
        },
    ),
]


def test_replay_stacks(contender):
    contender()
