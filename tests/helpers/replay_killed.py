"""Processes that add to a replay buffer until they are killed.

Each transition tells by its action which one it is, so that a reader sees what has been torn.
"""

import os

import numpy as np
import pytest

from fastrl.replay import PrioritizedReplay, ReplayBuffer, SequenceReplay

WIDTH, EPISODE, ENVS = 100, 7, 2
TORN = 255
KINDS = {
    "plain": lambda **options: PrioritizedReplay(40, ((WIDTH,), np.int32), ((), np.int64), ENVS, **options),
    "apart": lambda **options: ReplayBuffer(
        40, ((WIDTH,), np.int32), ((), np.int64), ENVS, store_next_obs=True, **options
    ),
    "stacks": lambda **options: PrioritizedReplay(
        40, ((3, WIDTH), np.int32), ((), np.int64), ENVS, frame_stack=3, n_step=3, **options
    ),
    "sequences": lambda **options: SequenceReplay(
        40, ((WIDTH,), np.int32), ((), np.int64), ENVS, length=3, burn_in=2, **options
    ),
}


def transition(kind, k):
    """Of both environments: obs, action, reward, next_obs, terminated, truncated."""
    first = k - k % EPISODE
    ends = k - first == EPISODE - 1

    def stack(newest):
        frames = np.array([newest]) if kind != "stacks" else np.maximum(newest + np.arange(-2, 1), first)
        frames = np.repeat(frames[:, None], WIDTH, 1) * 2
        return frames if kind == "stacks" else frames[0]

    obs, reached = stack(k), stack(k + 1)
    if ends:
        (reached[-1] if kind == "stacks" else reached)[:] += (
            1  # the final observation: no other transition starts from it
        )
    sign = np.array([1, -1]).reshape(2, *[1] * obs.ndim)  # of the other environment
    return sign * obs, np.full(2, k), np.full(2, float(k)), sign * reached, np.full(2, ends), np.zeros(2, bool)


def forks(test):
    """Of a test that forks."""
    test = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")(test)
    return pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")(test)


def write_and_flush(folder, kind, pipe):
    """Forever; the pipe gets how many transitions of each environment have been flushed, in 8 bytes."""
    buffer = KINDS[kind](storage=folder)
    rng, k = np.random.default_rng(), int(buffer._store.counts[0])
    while True:
        for _ in range(int(rng.integers(1, 30))):
            buffer.add(*transition(kind, k))
            k += 1
        buffer.flush()
        os.write(pipe, k.to_bytes(8, "little"))


def forked(function, *arguments):
    """The pid of a child that calls the function."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*arguments)
    finally:
        os._exit(1)


def write_shared(writer, number, kind, k, pipe):
    """Forever; the pipe gets a byte for each `add` that returned."""
    while True:
        obs, action, reward, next_obs, terminated, truncated = transition(kind, k)
        i = slice(number, number + 1)
        writer.add(obs[i], action[i], reward[i], next_obs[i], terminated[i], truncated[i])
        os.write(pipe, b".")
        k += 1


def add_some(writer, n):
    for k in range(n):
        writer.add(np.full(3, k), 0, k, np.full(3, k + 1), False, False)


def sample_shared(sampler, kind, number, pipe):
    """Forever; the pipe gets a byte for each batch: `number`, or TORN for one that has no such transitions."""
    rng = np.random.default_rng()
    while True:
        batch = sampler.sample()
        obs, action = (batch.obs[:, 0], batch.action[:, 0]) if kind == "sequences" else (batch.obs, batch.action)
        for i, index in enumerate(batch.indices.tolist()):
            wanted = transition(kind, index // ENVS)
            if action[i] != wanted[1][0] or (obs[i] != wanted[0][index % ENVS]).any():
                os.write(pipe, bytes([TORN]))
        if kind != "apart":
            sampler.update_priorities(batch.indices, rng.random((16, 3) if kind == "sequences" else 16))
        os.write(pipe, bytes([number]))


def update_all(sampler, n):
    """Until each of n transitions was drawn and has the priority of its number."""
    seen = set()
    while len(seen) < n:
        indices = sampler.sample().indices
        seen.update(indices.tolist())
        sampler.update_priorities(indices, indices)
