"""What the tests of the replay buffers share: unique transitions, and what must be held of them, in plain lists."""

from collections import namedtuple
from unittest import mock

import numpy as np
import pytest
from replay_oracle import LEAVES

from fastrl import _backend
from fastrl.replay import PrioritizedReplay, ReplayBuffer
from fastrl.replay.ring import ReplayRing, ring_class

Item = namedtuple("Item", "obs action reward next_obs terminated truncated")

OBS = ((3,), np.float32)
ACTION = ((), np.int64)


class Oracle:
    """The last transitions of each environment, in plain lists."""

    def __init__(self, capacity, num_envs):
        self.share = -(-capacity // num_envs)
        self.items = [[] for _ in range(num_envs)]

    def add(self, env, item):
        self.items[env].append(item)

    def contents(self):
        """The transitions that can be drawn, by their reward (the tests make it unique)."""
        return {item.reward: item for items in self.items for item in items[-self.share :]}


def items_of(batch):
    return [Item(*(np.asarray(column)[i] for column in batch[:6])) for i in range(len(batch.reward))]


def assert_same(item, wanted):
    for name, a, b in zip(Item._fields, item, wanted, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def contents(buffer):
    """All transitions of a PrioritizedReplay whose priorities are equal, by their reward.

    2 n strata over n equal priorities: each transition has one stratum for itself, so none is missed.
    """
    if len(buffer) == 0:
        return {}
    return {float(item.reward): item for item in items_of(buffer.sample(2 * len(buffer)))}


def fill(buffer, n, rng=0, end_every=7):
    """Add n steps of unique transitions to a buffer over OBS and ACTION; every end_every-th step ends an episode."""
    rng = np.random.default_rng(rng)
    envs = buffer.num_envs
    obs = rng.standard_normal((envs, 3), np.float32)
    for t in range(n):
        next_obs = rng.standard_normal((envs, 3), np.float32)
        end = np.full(envs, t % end_every == end_every - 1)
        terminated = end & (rng.random(envs) < 0.5)
        buffer.add(obs, rng.integers(4, size=envs), rng.standard_normal(envs), next_obs, terminated, end & ~terminated)
        obs = rng.standard_normal((envs, 3), np.float32) if end[0] else next_obs
    return buffer


RINGS = {"plain": ReplayRing}
if _backend.CPU_BACKEND == "cpp":
    RINGS["C++"] = ring_class()


class Tuple:
    """What is asked of Gymnasium's Tuple space."""

    def __init__(self, spaces):
        self.spaces = tuple(spaces)


def space_of(kind, frames):
    """What a buffer is told of these observations."""
    lead = (frames,) if frames > 1 else ()
    spaces = [((*lead, *shape), dtype) for shape, dtype in LEAVES[kind]]
    if kind == "dict":
        return {"a": spaces[0], "b": {"c": spaces[1], "d": spaces[2]}}
    if kind == "tuple":
        return Tuple(spaces)
    return spaces[0]


def with_ring(name):
    """Buffers made in this context keep their transitions in that ring."""
    return mock.patch("fastrl.replay.store.ring_class", lambda: RINGS[name])


BOTH = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay])


class World:
    """Environments whose every transition is unique, stepped the way a test says."""

    def __init__(self, num_envs, constant=False):
        self.constant = constant  # all observations equal
        self.count = 0
        self.obs = [self.fresh() for _ in range(num_envs)]

    def fresh(self):
        self.count += 1
        return np.zeros(3, np.float32) if self.constant else np.array([self.count, -self.count, np.nan], np.float32)

    def step(self, events):
        items = []
        for env, event in enumerate(events):
            item = Item(
                self.obs[env],
                np.int64(self.count),
                float(self.count),
                self.fresh(),
                event in ("terminated", "both"),
                event in ("truncated", "both"),
            )
            items.append(item)
            if event != "masked":
                self.obs[env] = item.next_obs if event == "goes on" else self.fresh()
        return items


EVENTS = ["goes on"] * 6 + ["terminated", "truncated", "both", "masked", "reset"]

# What `add` takes of two environments.
GOOD = {
    "obs": np.zeros((2, 3), np.float32),
    "action": np.array([0, 1]),
    "reward": np.array([0.0, 1.0]),
    "next_obs": np.ones((2, 3), np.float32),
    "terminated": np.array([False, True]),
    "truncated": np.array([False, False]),
    "mask": np.array([True, True]),
}
