"""A replay buffer as plain lists of episodes, and environments of every kind of observation that it can keep.

Nothing here shares code with fastrl: an observation is a list of arrays, a stack is made anew from single frames.
"""

import math
from typing import NamedTuple

import numpy as np

# Of one frame, by kind: the arrays' shapes and dtypes.
LEAVES = {
    "box": [((2,), np.float32)],
    "discrete": [((), np.int64)],
    "image": [((2, 3), np.uint8)],
    "dict": [((3,), np.uint8), ((1,), np.float64), ((), np.int16)],
    "tuple": [((), np.bool_), ((2, 2), np.float32)],
}


def nest(kind, arrays):
    """Arrays of the leaves as the caller of a buffer has them."""
    if kind == "dict":
        return {"a": arrays[0], "b": {"c": arrays[1], "d": arrays[2]}}
    return tuple(arrays) if kind == "tuple" else arrays[0]


def flat(kind, value):
    if kind == "dict":
        return [np.asarray(x) for x in (value["a"], value["b"]["c"], value["b"]["d"])]
    return [np.asarray(x) for x in value] if kind == "tuple" else [np.asarray(value)]


class Step(NamedTuple):
    number: int
    obs: list
    action: int
    reward: float
    next_obs: list
    terminated: bool
    truncated: bool


class Lists:
    """All that was ever added: per environment its chains of steps."""

    def __init__(self, num_envs, share, n, gamma):
        self.share, self.n, self.gamma = share, n, gamma
        self.chains = [[] for _ in range(num_envs)]
        self.count, self.cleared = [0] * num_envs, [0] * num_envs
        self.cut = [True] * num_envs

    def add(self, env, obs, action, reward, next_obs, terminated, truncated, start=None):
        if not self.chains[env] or (self.cut[env] if start is None else start):
            self.chains[env].append([])
        number = self.count[env] * len(self.count) + env
        self.chains[env][-1].append(Step(number, obs, action, reward, next_obs, terminated, truncated))
        self.cut[env] = terminated or truncated
        self.count[env] += 1

    def clear(self):
        self.cleared = list(self.count)
        self.cut = [True] * len(self.count)

    def held(self):
        """Of every transition held, by its number: the steps that its n-step return has."""
        found = {}
        for env, chains in enumerate(self.chains):
            oldest = max(self.cleared[env], self.count[env] - self.share)
            for chain in chains:
                for t, step in enumerate(chain):
                    if step.number // len(self.count) >= oldest:
                        found[step.number] = self._until_end(chain[t : t + self.n])
        return found

    @staticmethod
    def _until_end(steps):
        for m, step in enumerate(steps):  # an explicit continuation after an end is none for a return
            if step.terminated or step.truncated:
                return steps[: m + 1]
        return steps

    def check(self, batch, kind, n, tolerance):
        """Every item of a batch, bit for bit but for the rounding of sums."""
        held = self.held()
        obs, next_obs = flat(kind, batch.obs), flat(kind, batch.next_obs)
        for b, number in enumerate(np.asarray(batch.indices).tolist()):
            steps = held[number][:n]
            first, last = steps[0], steps[-1]
            for got, wanted in [*zip(obs, first.obs, strict=True), *zip(next_obs, last.next_obs, strict=True)]:
                assert got.dtype == wanted.dtype and got.shape[1:] == wanted.shape
                assert got[b].tobytes() == wanted.tobytes(), (number, got[b], wanted)
            assert np.asarray(batch.action)[b] == first.action
            assert bool(batch.terminated[b]) == last.terminated and bool(batch.truncated[b]) == last.truncated
            reward = math.fsum(self.gamma**k * step.reward for k, step in enumerate(steps))
            np.testing.assert_allclose(batch.reward[b], reward, **tolerance("float32"))
            discount = 0.0 if last.terminated else self.gamma ** len(steps)
            np.testing.assert_allclose(batch.discount[b], discount, **tolerance("float32"))


EVENTS = (*["goes on"] * 6, "terminated", "truncated", "both", "left out", "reset", "differs", "start", "continues")


class Envs:
    """Environments stepped the way a test says, whose frames have so few values that equal ones are met by chance.

    padding: of an episode's first stack: "reset" repeats its frame, "zero" has zeros, "noop" has other frames.
    """

    def __init__(self, kind, num_envs, frames, padding, seed, values=3):
        self.leaves, self.frames, self.padding, self.values = LEAVES[kind], frames, padding, values
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.recent = [self.fresh() for _ in range(num_envs)]

    def frame(self):
        return [self.rng.integers(self.values, size=shape).astype(dtype) for shape, dtype in self.leaves]

    def fresh(self):
        """The frames of an episode's first observation."""
        first = self.frame()
        if self.padding == "reset":
            return [first] * self.frames
        older = [[np.zeros_like(x) for x in first] if self.padding == "zero" else self.frame()]
        return [older[0] if self.padding == "zero" else self.frame() for _ in range(self.frames - 1)] + [first]

    def stacked(self, recent):
        if self.frames == 1:
            return recent[-1]
        return [np.stack(frames) for frames in zip(*recent, strict=True)]

    def step(self, events):
        """(obs, action, reward, next_obs, terminated, truncated, kept, episode_start) of each environment."""
        found = []
        for env, event in enumerate(events):
            if event == "differs":  # another observation than was reached, in the middle of an episode
                self.recent[env] = [self.frame() for _ in range(self.frames)]
            obs = self.recent[env]
            reached = [*obs[1:], self.frame()]
            ends = event in ("terminated", "both"), event in ("truncated", "both")
            start = {"start": True, "continues": False}.get(event)
            self.count += 1
            reward = float(self.rng.integers(-8, 8)) / 4
            found.append(
                (self.stacked(obs), self.count, reward, self.stacked(reached), *ends, event != "left out", start)
            )
            if event != "left out":
                self.recent[env] = self.fresh() if any(ends) or event == "reset" else reached
        return found


def batched(kind, rows):
    """What the environments' steps are for one `add`."""
    obs, action, reward, next_obs, terminated, truncated, kept, start = zip(*rows, strict=True)
    stacked = [nest(kind, [np.stack(leaf) for leaf in zip(*x, strict=True)]) for x in (obs, next_obs)]
    arguments = [stacked[0], np.array(action), np.array(reward), stacked[1], np.array(terminated), np.array(truncated)]
    return arguments, np.array(kept), start
