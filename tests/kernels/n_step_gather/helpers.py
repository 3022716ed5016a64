"""What the tests of this op share."""

import math
from typing import NamedTuple

import numpy as np


def with_keywords(gather):
    def call(
        rewards, terminated, truncated, indices, cursor, size, *, gamma, n, next_values=None, cut=None, out=None
    ):  # fmt: skip
        return gather(rewards, terminated, truncated, indices, cursor, size, gamma, n, next_values, cut, out)

    return call


class Item(NamedTuple):
    reward: float
    value: float = 0.0
    terminated: int = 0
    truncated: int = 0
    cut: int = 0


def oracle(history, t, gamma, n, values, cuts):
    """The return of item t of one environment's whole history: no ring, no modulo."""
    terms, k = [], 0
    while True:
        item = history[t + k]
        terms.append(gamma**k * item.reward)
        k += 1
        if item.terminated or item.truncated or k == n or t + k == len(history) or (cuts and history[t + k].cut):
            break
    discount = 0.0 if item.terminated else gamma**k
    if values and discount:
        terms.append(discount * item.value)
    return math.fsum(terms), discount, t + k - 1


class Ring:
    """Histories of N environments written into rings of C slots; what is not written is poison."""

    def __init__(self, histories, slots, *, first=0, dtype="float32", flags="bool", one=False):
        self.histories, self.slots, self.first, self.one = histories, slots, first, one
        envs = len(histories)
        self.rewards = np.full((slots, envs), np.nan, dtype)
        self.values = np.full((slots, envs), np.nan, dtype)
        self.terminated, self.truncated, self.cut = (np.full((slots, envs), 1, flags) for _ in range(3))
        for env, history in enumerate(histories):
            for t, item in enumerate(history):
                at = (first + t) % slots, env
                self.rewards[at] = item.reward
                self.values[at] = np.nan if item.terminated else item.value
                self.terminated[at], self.truncated[at], self.cut[at] = item.terminated, item.truncated, item.cut
        self.cursor = np.array([(first + len(h)) % slots for h in histories])
        self.size = np.array([min(len(h), slots) for h in histories])
        if one:  # [C] instead of [C, 1]
            for name in ("rewards", "values", "terminated", "truncated", "cut"):
                setattr(self, name, getattr(self, name)[:, 0])
            self.cursor, self.size = int(self.cursor[0]), int(self.size[0])

    def index(self, env, t):
        return (self.first + t) % self.slots * len(self.histories) + env

    def all_items(self):
        return [
            (env, t)
            for env, history in enumerate(self.histories)
            for t in range(max(0, len(history) - self.slots), len(history))
        ]

    def call(self, gather, indices, gamma, n, values=False, cuts=False, view=lambda x: x, **keywords):
        return gather(
            view(self.rewards), view(self.terminated), view(self.truncated), indices, self.cursor, self.size,
            gamma=gamma, n=n, next_values=view(self.values) if values else None,
            cut=view(self.cut) if cuts else None, **keywords,
        )  # fmt: skip

    def check(self, gather, tolerance, gamma, n, values=False, cuts=False, view=lambda x: x, items=None):
        items = self.all_items() if items is None else items
        indices = np.array([self.index(*item) for item in items], np.int64)
        returns, discounts, last = self.call(gather, indices, gamma, n, values, cuts, view)
        assert returns.dtype == discounts.dtype == self.rewards.dtype and last.dtype == np.int64
        wanted = [oracle(self.histories[env], t, gamma, n, values, cuts) for env, t in items]
        for b, (env, _) in enumerate(items):
            assert last[b] == self.index(env, wanted[b][2])
        close = tolerance(self.rewards.dtype)
        np.testing.assert_allclose(returns, np.array([w[0] for w in wanted]), **close)
        np.testing.assert_allclose(discounts, np.array([w[1] for w in wanted]), **close)


def histories(lengths, seed, end=0.2, cut=0.0):
    rng = np.random.default_rng(seed)

    def item():
        ends = rng.random() < end
        kind = rng.integers(3) if ends else -1  # terminated, truncated or both
        reward, value = (float(x) for x in rng.integers(-8, 9, 2) / 4)
        return Item(reward, value, int(kind in (0, 2)), int(kind in (1, 2)), int(rng.random() < cut))

    return [[item() for _ in range(length)] for length in lengths]


def poisoned(batch, dtype="float32", step=1):
    outs = []
    for name in (dtype, dtype, "int64"):
        array = np.full(batch * abs(step), 77, name)
        outs.append(array[::step])
    return tuple(outs)


C, N = 6, 2


def arguments():
    return {
        "rewards": np.ones((C, N), np.float32),
        "terminated": np.zeros((C, N), bool),
        "truncated": np.zeros((C, N), np.uint8),
        "indices": np.array([0, 5, 2]),
        "cursor": 4,
        "size": np.array([4, 3]),
        "gamma": 0.9,
        "n": 3,
        "next_values": np.ones((C, N), np.float32),
        "cut": np.zeros((C, N), bool),
        "out": poisoned(3),
    }


def frozen(array):
    array.flags.writeable = False
    return array


def changed(name, at, value):
    array = arguments()[name].astype(np.uint8)
    array[at] = value
    return array


BAD = [
    ("rewards", None, TypeError, "must be an array, got NoneType"),
    ("rewards", [[1.0] * N] * C, TypeError, "must be an array, got list"),
    ("rewards", np.ones((C, N), np.float16), ValueError, "must have dtype float32 or float64, got float16"),
    ("rewards", np.ones((C, N), np.int64), ValueError, "must have dtype float32 or float64, got int64"),
    ("rewards", np.ones((C, N, 1), np.float32), ValueError, "must have shape [C] or [C, N], got (6, 2, 1)"),
    ("rewards", np.ones((), np.float32), ValueError, "must have shape [C] or [C, N], got ()"),
    ("terminated", np.zeros((C, N)), ValueError, "must have dtype bool or uint8, got float64"),
    ("terminated", np.zeros((C, N + 1), bool), ValueError, "must have shape (6, 2) like rewards, got (6, 3)"),
    ("terminated", np.zeros(C, bool), ValueError, "must have shape (6, 2) like rewards, got (6,)"),
    ("terminated", None, TypeError, "must be an array, got NoneType"),
    ("terminated", changed("terminated", (0, 0), 2), ValueError, "[0, 0] is 2, must be 0 or 1"),
    ("truncated", np.zeros((C + 1, N), bool), ValueError, "must have shape (6, 2) like rewards, got (7, 2)"),
    ("truncated", np.zeros((C, N), np.int8), ValueError, "must have dtype bool or uint8, got int8"),
    ("truncated", changed("truncated", (2, 1), 255), ValueError, "[2, 1] is 255, must be 0 or 1"),
    ("next_values", np.ones((C, N)), ValueError, "must have dtype float32 like rewards, got float64"),
    ("next_values", np.ones((C, N), np.int32), ValueError, "must have dtype float32 or float64, got int32"),
    ("next_values", np.ones(3, np.float32), ValueError, "must have shape (6, 2) like rewards, got (3,)"),
    ("cut", np.zeros((C, N), np.float32), ValueError, "must have dtype bool or uint8, got float32"),
    ("cut", np.zeros((N, C), bool), ValueError, "must have shape (6, 2) like rewards, got (2, 6)"),
    ("cut", changed("cut", (1, 0), 3), ValueError, "[1, 0] is 3, must be 0 or 1"),
    ("indices", [0, 1, 2], TypeError, "must be an array, got list"),
    ("indices", np.array([0.0, 1, 2]), ValueError, "must have dtype int64 or int32, got float64"),
    ("indices", np.array([True, False, True]), ValueError, "must have dtype int64 or int32, got bool"),
    ("indices", np.array([[0, 1, 2]]), ValueError, "must have shape [B], got (1, 3)"),
    ("indices", np.array([0, -1, 12]), IndexError, "[1] is -1, outside [0, 12)"),
    ("indices", np.array([0, 1 << 40, 2]), IndexError, "[1] is 1099511627776, outside [0, 12)"),
    ("indices", np.array([0, 2, 12], np.int32), IndexError, "[2] is 12, outside [0, 12)"),
    ("indices", np.array([0, 1, 99]), IndexError, "[1] is 1, a slot that holds no item (cursor 4, size 3)"),
    ("indices", np.array([7, 8, 2]), IndexError, "[1] is 8, a slot that holds no item (cursor 4, size 4)"),
    ("cursor", 6, ValueError, "must be in [0, 5], got 6"),
    ("cursor", -1, ValueError, "must be in [0, 5], got -1"),
    ("cursor", 2**70, ValueError, "must be in [0, 5], got 1180591620717411303424"),
    ("cursor", np.array([4, 6]), ValueError, "[1] must be in [0, 5], got 6"),
    ("cursor", np.array([4, 4, 4]), ValueError, "must have shape (2,), got (3,)"),
    ("cursor", np.array([4.0, 4.0]), ValueError, "must have dtype int64 or int32, got float64"),
    ("cursor", 4.0, TypeError, "must be an array, got float"),
    ("cursor", True, TypeError, "must be an array, got bool"),
    ("cursor", None, TypeError, "must be an array, got NoneType"),
    ("size", 7, ValueError, "must be in [0, 6], got 7"),
    ("size", np.array([-1, 3]), ValueError, "[0] must be in [0, 6], got -1"),
    ("size", np.array([[4, 3]]), ValueError, "must have shape (2,), got (1, 2)"),
    ("gamma", 1.5, ValueError, "must be in [0, 1], got 1.5"),
    ("gamma", -0.1, ValueError, "must be in [0, 1], got -0.1"),
    ("gamma", math.nan, ValueError, "must be in [0, 1], got nan"),
    ("gamma", 10**400, ValueError, "must be in [0, 1], got inf"),
    ("gamma", "0.9", TypeError, "must be a float, got str"),
    ("gamma", True, TypeError, "must be a float, got bool"),
    ("n", 0, ValueError, "must be >= 1, got 0"),
    ("n", -(2**70), ValueError, "must be >= 1, got -1180591620717411303424"),
    ("n", 3.0, TypeError, "must be an int, got float"),
    ("n", True, TypeError, "must be an int, got bool"),
    ("out", poisoned(3)[:2], ValueError, "must be 3 arrays, got 2 arrays"),
    ("out", poisoned(3)[0], ValueError, "must be 3 arrays, got ndarray"),
    ("out", poisoned(4), ValueError, "[0] must have shape (3,), got (4,)"),
    ("out", poisoned(3, "float64"), ValueError, "[0] must have dtype float32, got float64"),
    ("out", (*poisoned(3)[:2], np.zeros(3, np.int32)), ValueError, "[2] must have dtype int64, got int32"),
    ("out", (*poisoned(3)[:2], None), TypeError, "[2] must be an array, got NoneType"),
    ("out", (frozen(poisoned(3)[0]), *poisoned(3)[1:]), ValueError, "[0] must be writable"),
    ("out", (np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (3,), (0,)), *poisoned(3)[1:]), ValueError,
     "[0] must not overlap itself"),
]  # fmt: skip
