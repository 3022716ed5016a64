"""Prioritized sampling: draw indices with their importance weights; write priorities; both in turn.

Every update includes the power (|td| + eps)^alpha, as the peers' own update methods do.
"""

import numpy as np
from _harness import RTOL, Case, NotApplicable

from fastrl import SumTree
from fastrl.kernels import SumTreeReference

ALPHA, BETA = 0.6, 0.4
SIZES = [{"capacity": c, "batch": b} for c in (2**14, 2**17, 2**20, 10**6) for b in (32, 256, 4096)]


def td_errors(n, seed=0):
    return (np.abs(np.random.default_rng(seed).standard_normal(n)) + 1e-3).astype(np.float32)


# Each library below: `__init__` stores td_errors(capacity) everywhere, `sample` gives indices and weights, `update`
# writes (td + eps)^alpha; `convert` makes its kind of array, outside what is timed.


class Fastrl:
    eps = 1e-6
    tree_class = SumTree
    convert = staticmethod(np.asarray)
    normalize = "batch"

    def __init__(self, capacity, batch):
        self.batch = batch
        self.tree = self.tree_class(capacity, seed=0)
        self.update(np.arange(capacity), td_errors(capacity))

    def sample(self):
        return self.tree.sample_weighted(self.batch, BETA, self.normalize)

    def update(self, indices, td):
        self.tree.update_from_td_errors(indices, td, ALPHA, self.eps)


class FastrlPlainUpdate(Fastrl):
    def update(self, indices, td):
        self.tree.update(indices, (td + self.eps) ** ALPHA)


class FastrlTreeMinimum(Fastrl):
    normalize = "tree"


class FastrlTorch(Fastrl):
    def __init__(self, capacity, batch):
        import torch

        self.convert = torch.as_tensor
        self.batch = batch
        self.tree = SumTree(capacity, seed=0, dtype=torch.float32)
        self.update(torch.arange(capacity), torch.from_numpy(td_errors(capacity)))


class FastrlFloat64(Fastrl):
    @staticmethod
    def tree_class(capacity, seed):
        return SumTree(capacity, seed=seed, dtype=np.float64)


class FastrlNumba(Fastrl):
    @staticmethod
    def tree_class(capacity, seed):
        from fastrl.kernels.sum_tree._numba import NumbaCore

        return type("NumbaSumTree", (SumTree,), {"_core_class": NumbaCore})(capacity, seed=seed)


class FastrlReference(Fastrl):
    tree_class = SumTreeReference


class TorchrlTree:
    eps = 1e-6
    convert = staticmethod(np.asarray)

    def __init__(self, capacity, batch):
        from torchrl._torchrl import MinSegmentTreeFp32, SumSegmentTreeFp32

        self.capacity, self.batch = capacity, batch
        self.sums, self.mins = SumSegmentTreeFp32(capacity), MinSegmentTreeFp32(capacity)
        self.rng = np.random.default_rng(0)
        self.update(np.arange(capacity), td_errors(capacity))

    def sample(self):
        u = self.rng.random(self.batch, dtype=np.float32) * np.float32(self.sums.query(0, self.capacity))
        indices = self.sums.scan_lower_bound(u)
        np.minimum(indices, self.capacity - 1, out=indices)
        return indices, (self.sums[indices] / self.mins.query(0, self.capacity)) ** -BETA

    def update(self, indices, td):
        p = (td + self.eps) ** ALPHA
        self.sums.update(indices, p)
        self.mins.update(indices, p)


class TorchrlSampler:
    eps = 1e-8

    def __init__(self, capacity, batch):
        import torch
        from torchrl._torchrl import SumSegmentTreeFp32  # noqa: F401  (the sampler fails late without it)
        from torchrl.data import LazyTensorStorage
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler

        self.batch, self.convert = batch, torch.as_tensor
        torch.manual_seed(0)
        self.sampler = PrioritizedSampler(capacity, alpha=ALPHA, beta=BETA)
        self.storage = LazyTensorStorage(capacity)
        self.storage.set(range(capacity), torch.zeros(capacity, 1))
        self.update = self.sampler.update_priority
        self.update(torch.arange(capacity), torch.from_numpy(td_errors(capacity)))

    def sample(self):
        indices, info = self.sampler.sample(self.storage, self.batch)
        return indices, info["priority_weight"]


class Tianshou:
    eps = float(np.finfo(np.float32).eps)
    convert = staticmethod(np.asarray)

    def __init__(self, capacity, batch):
        from tianshou.data import Batch, PrioritizedReplayBuffer

        np.random.seed(0)  # noqa: NPY002  (the generator that tianshou draws from)
        self.batch = batch
        self.buffer = PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta=BETA)
        x, no = np.zeros((capacity, 1), np.float32), np.zeros(capacity, bool)
        flags = {"terminated": no, "truncated": no.copy(), "done": no.copy()}
        self.buffer.set_batch(Batch(obs=x, act=x[:, 0], rew=x[:, 0], **flags, info=Batch()))
        self.buffer._size = capacity
        self.update = self.buffer.update_weight
        self.update(np.arange(capacity), td_errors(capacity))

    def sample(self):
        indices = self.buffer.sample_indices(self.batch)
        weights = self.buffer.get_weight(indices)
        return indices, weights / np.max(weights)


class Cpprb:
    eps = 1e-4
    convert = staticmethod(np.asarray)

    def __init__(self, capacity, batch):
        from cpprb import PrioritizedReplayBuffer

        self.batch = batch
        # It cannot sample without gathering: one float column is the least.
        self.buffer = PrioritizedReplayBuffer(capacity, {"r": {"shape": 1}}, alpha=ALPHA, eps=self.eps)
        self.buffer.add(r=np.zeros((capacity, 1), np.float32), priorities=td_errors(capacity))
        self.update = self.buffer.update_priorities

    def sample(self):
        found = self.buffer.sample(self.batch, BETA)
        return found["indexes"], found["weights"]


class Jax:
    """`eps`, and of a subclass `first(p)`, `draw(state, key)` and `write(state, indices, p)`."""

    eps = 1e-6

    def __init__(self, capacity, batch):
        import jax
        import jax.numpy as jnp

        self.jax, self.key, self.convert, self.batch = jax, jax.random.PRNGKey(0), jnp.asarray, batch

        def sample(state, key):
            key, used = jax.random.split(key)
            indices, p = self.draw(state, used)
            weights = p**-BETA
            return key, indices, weights / weights.max()

        def update(state, indices, td):
            return self.write(state, indices, (td + self.eps) ** ALPHA)

        self._sample, self._update = jax.jit(sample), jax.jit(update, donate_argnums=0)
        self.state = self.first(jnp.asarray((td_errors(capacity) + self.eps) ** ALPHA))

    def sample(self):
        self.key, indices, weights = self._sample(self.state, self.key)
        return self.jax.block_until_ready((indices, weights))

    def update(self, indices, td):
        self.state = self.jax.block_until_ready(self._update(self.state, indices, td))


class Flashbax(Jax):
    def __init__(self, capacity, batch):
        from flashbax.buffers import sum_tree

        self.tree = sum_tree
        super().__init__(capacity, batch)

    def first(self, p):
        write = self.jax.jit(self.tree.set_batch_bincount)
        return write(self.tree.init(len(p)), self.convert(np.arange(len(p))), p)

    def draw(self, state, key):
        indices = self.tree.stratified_sample(state, self.batch, key)
        return indices, self.tree.get_batch(state, indices)

    def write(self, state, indices, p):
        write = self.tree.set_batch_bincount if self.batch > 256 else self.tree.set_batch_scan
        return write(state, indices, p)


class FastrlJax(Jax):
    def first(self, p):
        import fastrl.jax

        return fastrl.jax.SumTree(len(p)).update(np.arange(len(p)), p)

    def draw(self, state, key):
        return state.sample(key, self.batch)

    def write(self, state, indices, p):
        return state.update(indices, p)


class JaxCumsum(Jax):
    """No tree: what a user of JAX writes first."""

    def first(self, p):
        return p

    def draw(self, state, key):
        import jax.numpy as jnp

        sums = jnp.cumsum(state)
        u = (jnp.arange(self.batch) + self.jax.random.uniform(key, (self.batch,))) / self.batch
        indices = jnp.minimum(jnp.searchsorted(sums, u * sums[-1], side="right"), len(state) - 1)
        return indices, state[indices]

    def write(self, state, indices, p):
        return state.at[indices].set(p)


class NumpyChoice:
    """No tree: what a user writes first."""

    eps = 1e-6
    convert = staticmethod(np.asarray)

    def __init__(self, capacity, batch):
        self.batch, self.rng = batch, np.random.default_rng(0)
        self.p = (td_errors(capacity) + self.eps) ** ALPHA

    def sample(self):
        p = self.p.astype(np.float64)
        indices = self.rng.choice(len(p), self.batch, p=p / p.sum())
        weights = p[indices] ** -BETA
        return indices, weights / weights.max()

    def update(self, indices, td):
        self.p[indices] = (td + self.eps) ** ALPHA


class TorchMultinomial(NumpyChoice):
    def __init__(self, capacity, batch):
        import torch

        if capacity > 2**24:
            raise NotApplicable("torch.multinomial takes at most 2^24 categories")
        self.torch, self.batch, self.convert = torch, batch, torch.as_tensor
        torch.manual_seed(0)
        self.p = torch.from_numpy((td_errors(capacity) + self.eps) ** ALPHA)

    def sample(self):
        indices = self.torch.multinomial(self.p, self.batch, replacement=True)
        weights = self.p[indices] ** -BETA
        return indices, weights / weights.max()


LIBRARIES = {
    "fastrl": Fastrl,
    "fastrl, torch tensors": FastrlTorch,
    "fastrl, float64 leaves": FastrlFloat64,
    "fastrl.jax (jit)": FastrlJax,
    "fastrl, Numba backend": FastrlNumba,
    "fastrl, reference": FastrlReference,
    "torchrl segment trees": TorchrlTree,
    "torchrl PrioritizedSampler": TorchrlSampler,
    "tianshou": Tianshou,
    "cpprb": Cpprb,
    "flashbax (jit)": Flashbax,
    "jnp.cumsum, searchsorted (jit)": JaxCumsum,
    "np.random.choice": NumpyChoice,
    "torch.multinomial": TorchMultinomial,
}


class Inputs:
    """61 batches of priorities against 64 of indices: a value written always differs from the one stored (cpprb stops
    its walk at a node that did not change)."""

    def __init__(self, capacity, batch, convert):
        rng = np.random.default_rng(1)
        self.indices = [convert(rng.integers(0, capacity, batch)) for _ in range(64)]
        self.td = [convert(td_errors(batch, seed)) for seed in range(2, 63)]
        self.k = 0

    def next(self):
        self.k += 1
        return self.indices[self.k % 64], self.td[self.k % 61]


def assert_draws(library, td, blocks=64, chi_square_limit=131.4):
    """The weights are (p_min / p)^beta, and draws fall on `blocks` stretches of the tree in proportion to p (chi-square
    with blocks - 1 degrees of freedom; the limit is passed by chance once in 1e6)."""
    p = (td.astype(np.float64) + library.eps) ** ALPHA
    edges = np.arange(blocks + 1) * len(p) // blocks
    share = np.add.reduceat(p, edges[:-1]) / p.sum()
    counts, drawn = np.zeros(blocks), 0
    while drawn < 10_000:
        indices, weights = (np.asarray(x) for x in library.sample())
        assert indices.shape == weights.shape and indices.min() >= 0 and indices.max() < len(p)
        scaled = weights * p[indices] ** BETA
        np.testing.assert_allclose(scaled, scaled[0], rtol=RTOL)
        assert weights.max() <= 1 + RTOL
        counts += np.histogram(indices, edges)[0]
        drawn += len(indices)
    chi_square = np.sum((counts - drawn * share) ** 2 / (drawn * share))
    assert chi_square < chi_square_limit, f"chi-square {chi_square:.1f} of the draws"


def build_checked(library_class, capacity, batch):
    """The library after a few updates, its draws checked against the priorities that it should hold."""
    library = library_class(capacity, batch)
    inputs = Inputs(capacity, batch, library.convert)
    td = td_errors(capacity)
    for _ in range(3):
        indices, new = inputs.next()
        # Which of equal indices wins is not the same in all peers (in fastrl the last): write each index once here.
        indices, first = np.unique(np.asarray(indices), return_index=True)
        order = np.resize(np.arange(len(indices)), batch)  # same shape for the jit
        indices, new = indices[order], np.asarray(new)[first][order]
        library.update(library.convert(indices), library.convert(new))
        td[indices] = new
    assert_draws(library, td)
    return library, inputs


def sample(library_class):
    def build(capacity, batch):
        return build_checked(library_class, capacity, batch)[0].sample

    return build


def update(library_class):
    def build(capacity, batch):
        library, inputs = build_checked(library_class, capacity, batch)
        return lambda: library.update(*inputs.next())

    return build


def sample_update(library_class):
    def build(capacity, batch):
        library, inputs = build_checked(library_class, capacity, batch)

        def step():
            indices, weights = library.sample()
            library.update(indices, inputs.next()[1])
            return weights

        return step

    return build


# What differs in one of the cases only.
TREE = {"fastrl, normalize=tree": FastrlTreeMinimum}
POWER = {"fastrl, power by NumPy": FastrlPlainUpdate}


def case(name, make, libraries):
    return Case(f"sum_tree.{name}", SIZES, {library: make(class_) for library, class_ in libraries.items()})


CASES = [
    case("sample_weighted", sample, LIBRARIES | TREE),
    case("update", update, LIBRARIES | POWER),
    case("sample_then_update", sample_update, LIBRARIES | TREE),
]


def test_sum_tree(contender):
    contender()
