"""Gather a replay batch: the same random rows of obs, next_obs, action, reward and done."""

import numpy as np
from _harness import Case

from fastrl import gather_rows
from fastrl.kernels import gather_rows_reference

FLOATS = {"obs": ((17,), np.float32), "action": ((6,), np.float32)}
FRAMES = {"obs": ((84, 84, 4), np.uint8), "action": ((), np.int64)}
SPACES = {"17 floats": FLOATS, "84x84x4 bytes": FRAMES}
SIZES = [{"rows": n, "batch": b, "obs": "17 floats"} for n in (2**17, 10**6) for b in (32, 256, 4096)]
SIZES += [{"rows": 2**14, "batch": b, "obs": "84x84x4 bytes"} for b in (32, 256)]


def random_array(rng, n, shape, dtype):
    if dtype == np.float32:
        return rng.standard_normal((n, *shape), dtype=np.float32)
    return rng.integers(0, 256, (n, *shape), dtype=dtype)


class Columns:
    """Ready-made arrays and lists of rows; `__call__` of a subclass gathers one list, with no answer kept."""

    def __init__(self, rows, batch, obs):
        rng = np.random.default_rng(0)
        obs = random_array(rng, rows + 1, *SPACES[obs]["obs"])
        # next_obs is the row after, as in fastrl's replay: a peer that stores it again touches more memory.
        self.columns = [obs[:-1], obs[1:], rng.random((rows, 6), np.float32), rng.random((rows, 1), np.float32)]
        self.columns.append((rng.random((rows, 1)) < 0.01).astype(np.float32))
        self.out = [np.empty((batch, *c.shape[1:]), c.dtype) for c in self.columns]
        self.lists = [rng.integers(0, rows, batch) for _ in range(64)]
        self.convert()
        self.k = 0

    def convert(self):
        pass

    def __call__(self):
        self.k = (self.k + 1) % 64
        return self.gather(self.lists[self.k])


class Fastrl(Columns):
    def gather(self, indices):
        return gather_rows(self.columns, indices)


class FastrlOut(Columns):
    def gather(self, indices):
        return gather_rows(self.columns, indices, out=self.out)


class FastrlTorch(Fastrl):
    def convert(self):
        import torch

        self.columns = [torch.from_numpy(c) for c in self.columns]
        self.lists = [torch.from_numpy(i) for i in self.lists]


class FastrlReference(Columns):
    def gather(self, indices):
        return gather_rows_reference(self.columns, indices)


class NumpyIndex(Columns):
    def gather(self, indices):
        return [c[indices] for c in self.columns]


class NumpyTakeOut(Columns):
    def gather(self, indices):
        for column, out in zip(self.columns, self.out, strict=True):
            np.take(column, indices, axis=0, out=out, mode="clip")
        return self.out


class TorchIndexSelect(FastrlTorch):
    def gather(self, indices):
        return [c.index_select(0, indices) for c in self.columns]


def checked(contender_class):
    def build(rows, batch, obs):
        contender = contender_class(rows, batch, obs)
        indices = contender.lists[1]
        for found, column in zip(contender(), contender.columns, strict=True):
            np.testing.assert_array_equal(np.asarray(found), np.asarray(column)[np.asarray(indices)])
        return contender

    return build


CONTENDERS = {
    "fastrl": Fastrl,
    "fastrl, out=": FastrlOut,
    "fastrl, torch tensors": FastrlTorch,
    "fastrl, reference": FastrlReference,
    "NumPy array[indices]": NumpyIndex,
    "np.take, out=": NumpyTakeOut,
    "torch.index_select": TorchIndexSelect,
}
CASES = [Case("gather_rows", SIZES, {name: checked(c) for name, c in CONTENDERS.items()})]


def test_gather_rows(contender):
    contender()
