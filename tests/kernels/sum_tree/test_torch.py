"""The tree on torch operations, which serves CUDA tensors where the extension is missing: here on the CPU, bit for bit
against the NumPy core; and what of the CUDA core runs without a GPU."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from fastrl.kernels import SumTree, SumTreeReference

torch = pytest.importorskip("torch", reason="torch is not installed")
sum_tree = pytest.importorskip("fastrl.kernels.sum_tree._cuda")

CAPACITIES = [1, 2, 15, 16, 17, 255, 256, 257, 1000, 65537]


class TorchTree(SumTree):
    """`SumTree` on `TorchCore`; the generator's NumPy state and the core's tensor are the same memory."""

    @staticmethod
    def _core_class(capacity, dtype, state, tensor_type):
        return sum_tree.TorchCore(capacity, dtype, torch.from_numpy(state.view(np.int64)), tensor_type)


def pair(capacity, dtype, seed=0):
    return TorchTree(capacity, dtype=dtype, seed=seed), SumTreeReference(capacity, dtype=dtype, seed=seed)


def same(ours, theirs):
    assert isinstance(ours, torch.Tensor)
    assert ours.numpy().dtype == theirs.dtype
    np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_same_bits_as_the_reference(oracle, tolerance, capacity, dtype):
    rng = np.random.default_rng(capacity)
    ours, theirs = pair(capacity, dtype, seed=2**63 + 11)
    for tree in (ours, theirs):
        tree.generator.load_state_dict({"seed": 2**63 + 11, "counter": 2**64 - 100})  # the counter wraps
    for n in (1, 19, 256):
        indices = rng.integers(0, capacity, n)  # duplicates: the last wins
        values = (10.0 ** rng.uniform(-30, 30, n)).astype(dtype)
        values[rng.random(n) < 0.3] = 0
        values[-1] = 1
        ours.update(torch.from_numpy(indices), torch.from_numpy(values))
        theirs.update(indices, values)
        assert oracle.snapshot(ours) == oracle.snapshot(theirs)
        for options in ({}, {"stratified": False}, {"replacement": False}):
            k = min(n, len(theirs), 64) if options.get("replacement") is False else n
            for a, b in zip(ours.sample(k, **options), theirs.sample(k, **options), strict=True):
                same(a, b)
        for normalize in ("batch", "tree"):
            (i, w), (j, v) = (tree.sample_weighted(n, 0.6, normalize) for tree in (ours, theirs))
            same(i, j)
            assert w.numpy().dtype == dtype
            np.testing.assert_allclose(w.numpy(), v, rtol=tolerance(v.dtype)["rtol"], atol=float(np.finfo(dtype).tiny))
        u = np.r_[0.0, theirs.total, rng.uniform(0, 1, 99) * theirs.total]
        same(ours.find(torch.from_numpy(u)), theirs.find(u))
        same(ours[torch.arange(capacity)], theirs[np.arange(capacity)])
        assert oracle.snapshot(ours) == oracle.snapshot(theirs)


def test_find_at_every_boundary():
    rng = np.random.default_rng(3)
    for capacity in (16, 17, 300, 4097):
        priorities = rng.choice([0, 0.1, 1 / 3, 1e-17, 1e16, 1.0, 0.7], capacity)
        priorities[capacity // 2] = 0.1
        ours, theirs = pair(capacity, np.float64)
        ours.update(torch.arange(capacity), torch.from_numpy(priorities))
        theirs.update(np.arange(capacity), priorities)
        total, ends = theirs.total, np.cumsum(priorities)
        u = np.clip(np.r_[ends, np.nextafter(ends, 0), np.nextafter(ends, np.inf), 0, total], 0, total)
        same(ours.find(torch.from_numpy(u)), theirs.find(u))


def test_many_duplicates_the_last_wins():
    ours, theirs = pair(40, np.float32)
    indices = np.random.default_rng(1).integers(0, 40, 10_000)
    ours.update(torch.from_numpy(indices), torch.arange(10_000, dtype=torch.float32))
    theirs.update(indices, np.arange(10_000, dtype=np.float32))
    same(ours[torch.arange(40)], theirs[np.arange(40)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("keep_zeros", [False, True])
def test_update_from_td_errors(tolerance, dtype, keep_zeros):
    rng = np.random.default_rng(0)
    ours, theirs = pair(300, dtype)
    for tree, array in ((ours, torch.from_numpy), (theirs, lambda x: x)):
        tree.update(array(np.arange(0, 300, 2)), 1.0)
    for n in (0, 1, 99):
        indices, errors = rng.permutation(300)[:n], rng.normal(size=n).astype(np.float32)
        got = ours.update_from_td_errors(
            torch.from_numpy(indices), torch.from_numpy(errors), 0.6, 1e-6, keep_zeros=keep_zeros
        )
        want = theirs.update_from_td_errors(indices, errors, 0.6, 1e-6, keep_zeros=keep_zeros)
        assert isinstance(got, torch.Tensor) and got.shape == () and got.dtype == torch.float64
        assert type(want) is float
        close = tolerance(np.dtype(dtype))
        np.testing.assert_allclose(float(got), want, **close)
        np.testing.assert_allclose(ours[torch.arange(300)].numpy(), theirs[np.arange(300)], **close)
        assert len(ours) == len(theirs)


def test_no_tensor_is_divided_by_a_number():
    """On a GPU torch multiplies by the number's reciprocal instead, which has other bits."""
    from torch.overrides import TorchFunctionMode

    divided = []

    class Watched(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if "div" in func.__name__ and not func.__name__.strip("_").startswith("floor"):
                divided.extend(type(x) for x in args[:2])
            return func(*args, **(kwargs or {}))

    for priority in (0.3, 2.0**-1022):  # of the latter a slice is no normal number
        ours, theirs = pair(23, np.float64, seed=5)
        ours.update(torch.arange(0, 23, 3), priority)
        theirs.update(np.arange(0, 23, 3), priority)
        for stratified in (True, False):
            with Watched():
                drawn = ours.sample(9, stratified=stratified)
            for a, b in zip(drawn, theirs.sample(9, stratified=stratified), strict=True):
                same(a, b)
    assert len(divided) == 2 * 5 and set(divided) == {torch.Tensor}


def test_state_moves(oracle):
    ours, theirs = pair(257, np.float32, seed=8)
    ours.update(torch.arange(257), torch.from_numpy(oracle.random_priorities(np.random.default_rng(0), 257)))
    ours.sample(5)
    state = ours.state_dict()
    assert type(state["priorities"]) is np.ndarray
    theirs.load_state_dict(state)
    fresh = TorchTree(257, seed=1)
    fresh.load_state_dict(theirs.state_dict())
    assert oracle.snapshot(ours) == oracle.snapshot(theirs) == oracle.snapshot(fresh)
    same(fresh.sample(50)[0], theirs.sample(50)[0])
    ours.clear()
    assert (len(ours), ours.total, ours.min, ours.max) == (0, 0.0, math.inf, 0.0)
    assert state["priorities"].any(), "state_dict is a copy"
    before = oracle.snapshot(fresh)
    with pytest.raises(ValueError, match="priorities"):
        fresh.load_state_dict({**state, "priorities": np.full(257, np.nan, np.float32)})
    assert oracle.snapshot(fresh) == before


def test_scalar_forms():
    tree = TorchTree(20, seed=0)
    tree[3] = 2.5
    tree[torch.tensor([4, 5])] = 1.5
    assert (tree[3], tree.total, tree.find(3.0), type(tree.find(3.0))) == (2.5, 5.5, 4, int)


def test_strides_and_dtypes():
    tree = TorchTree(100, seed=0)
    wide = torch.arange(75, dtype=torch.float64).reshape(25, 3).requires_grad_()
    tree.update(torch.arange(100, dtype=torch.int32)[::4], wide[:, 1])
    same(tree[torch.arange(0, 100, 4)], np.arange(1, 75, 3, dtype=np.float32))


t64, t32 = (lambda *x: torch.tensor(x, dtype=torch.int64)), (lambda *x: torch.tensor(x, dtype=torch.float32))

BAD_CALLS = {
    "index too large": lambda t: t.update(t64(1, 2, 3, 17), torch.ones(4)),
    "index negative": lambda t: t.update(t64(1, -1), t32(1, 1)),
    "scalar index": lambda t: t.update(10**30, 1.0),
    "getitem": lambda t: t[t64(0, 16)],
    "priority nan": lambda t: t.update(t64(1, 2, 3), t32(1, 2, math.nan)),
    "priority negative": lambda t: t.update(t64(1, 2), t32(1, -1)),
    "priority too large": lambda t: t.update(t64(1), torch.tensor([1e39], dtype=torch.float64)),
    "scalar priority": lambda t: t.update(t64(1, 2), math.inf),
    "too short": lambda t: t.update(t64(1, 2), t32(1)),
    "index dtype": lambda t: t.update(torch.ones(2, dtype=torch.uint8), t32(1, 1)),
    "priority dtype": lambda t: t.update(t64(1, 2), t64(1, 1)),
    "rank 2": lambda t: t.update(torch.ones((2, 2), dtype=torch.int64), 1.0),
    "sparse": lambda t: t.update(t64(1, 2), t32(1, 1).to_sparse()),
    "td nan": lambda t: t.update_from_td_errors(t64(1, 2), t32(1, math.nan), 0.6, 0.0),
    "td index": lambda t: t.update_from_td_errors(t64(1, 99), t32(1, 1), 0.6, 0.0),
    "td alpha": lambda t: t.update_from_td_errors(t64(1, 9), t32(1, 1), -0.6, 0.0),
    "find above": lambda t: t.find(torch.tensor([0.0, 1e9])),
    "find nan": lambda t: t.find(t32(math.nan)),
    "batch 0": lambda t: t.sample(0),
    "batch 1.5": lambda t: t.sample(1.5),
    "without replacement": lambda t: t.sample(17, replacement=False),
    "beta": lambda t: t.sample_weighted(4, math.nan),
    "normalize": lambda t: t.sample_weighted(4, 0.4, "x"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_same_error_as_the_reference(oracle, name):
    """In the same words, and nothing has changed."""
    trees = pair(16, np.float32)
    for tree in trees:
        tree.update(torch.arange(0, 16, 2), torch.arange(1, 9) / 8)
    before = oracle.snapshot(trees[0])
    ours, theirs = (oracle.outcome(BAD_CALLS[name], tree) for tree in trees)
    assert ours == theirs and ours[0] == "raised"
    assert oracle.snapshot(trees[0]) == before


def test_an_empty_tree():
    tree = TorchTree(16, seed=0)
    for call in (lambda: tree.sample(3), lambda: tree.sample_weighted(3, 0.4), lambda: tree.find(torch.zeros(2))):
        with pytest.raises(ValueError, match="the total priority is 0: nothing to sample"):
            call()
    tree.update(t64(), t32())
    assert tree[t64()].shape == (0,) and tree.generator.counter == 0


def test_other_kinds_of_arrays_are_refused():
    tree = TorchTree(16, seed=0)
    for error, text, call in (
        (
            TypeError,
            "sum_tree.update: indices must be a torch tensor on cpu, got ndarray",
            lambda i: (np.array([1]), 1.0),
        ),
        (TypeError, "sum_tree.update: priorities must be a torch tensor on cpu, got list", lambda i: (i, [1.0])),
        (ValueError, "sum_tree.update: indices must be on cpu like the tree, got meta", lambda i: (i.to("meta"), 1.0)),
    ):
        with pytest.raises(error, match=text):
            tree.update(*call(t64(1)))


# ---- the CUDA core, as far as it runs without a GPU -------------------------------------------------------------


@pytest.fixture
def cuda_core(monkeypatch):
    """A `CudaCore` of 17 leaves whose buffers are in host memory and whose kernels only note what they were given."""
    given = []

    class Kernels:
        def __init__(self, *buffers):
            given.append(buffers)

        def __getattr__(self, name):
            return lambda *args: given.append((name, *args))

    monkeypatch.setattr(sum_tree._backend, "_C_cuda", SimpleNamespace(SumTreeCore=Kernels))
    core = sum_tree.CudaCore(17, "float32", torch.zeros(2, dtype=torch.int64))
    core.given = given
    return core


def test_cuda_buffers(cuda_core):
    capacity, widths, leaves, sums, mins, maxs, winner, flag, smallest, state = cuda_core.given[0]
    assert (capacity, widths) == (17, [32, 16, 1])
    assert [len(x) for x in (leaves, sums, mins, maxs, winner)] == [32, 17, 17, 17, 32]
    assert (winner == -1).all() and (flag, smallest) == (-1, -1) and state is cuda_core._state
    cuda_core.load(np.arange(17, dtype=np.float32))
    assert (cuda_core.total, cuda_core.min, cuda_core.max, len(cuda_core)) == (136.0, 1.0, 16.0, 16)
    assert (sums[:2].tolist(), float(sums[-1]), float(mins[-1]), float(maxs[-1])) == ([120.0, 16.0], 136.0, 1.0, 16.0)
    cuda_core.clear()
    assert not sums.any() and not leaves.any() and torch.isinf(mins).all()


FLAGS = [
    (IndexError, "sum_tree.update: indices[5] is outside [0, 17)"),
    (ValueError, "sum_tree.update: priorities[5] must be finite and >= 0"),
    (ValueError, "sum_tree.update: priorities[5] must be at most 3.4028234663852886e+38 in a float32 tree"),
    (IndexError, "sum_tree.update_from_td_errors: indices[5] is outside [0, 17)"),
    (ValueError, "sum_tree.update_from_td_errors: td_errors[5] must be finite"),
    (IndexError, "sum_tree.get: indices[5] is outside [0, 17)"),
    (ValueError, "sum_tree.find: prefix_sums[5] must be in [0, total]"),
    (ValueError, "sum_tree.find: the total priority is 0: nothing to sample"),
    (ValueError, "sum_tree.sample: the total priority is 0: nothing to sample"),
    (ValueError, "sum_tree.sample: batch_size must be at most the number of positive priorities, without replacement"),
    (ValueError, "sum_tree.sample_weighted: the total priority is 0: nothing to sample"),
]


def test_cuda_flags(cuda_core):
    """Whatever reads a number raises what was flagged, once."""
    reads = [
        cuda_core.check, lambda: cuda_core.total, lambda: cuda_core.min, lambda: cuda_core.max, lambda: len(cuda_core),
        cuda_core.priorities, lambda: cuda_core.get(3), lambda: cuda_core.find(0.0),
    ]  # fmt: skip
    assert len(FLAGS) == len(sum_tree._FLAGS)
    for kind, (error, text) in enumerate(FLAGS):
        cuda_core._flag.fill_(5 << 4 | kind)
        with pytest.raises(error) as caught:
            reads[kind % len(reads)]()
        assert str(caught.value) == text
        cuda_core.check()


def test_cuda_numbers_are_checked_at_once(cuda_core):
    for error, text, call in (
        (IndexError, "sum_tree.update: indices[0] is 17, outside [0, 17)", lambda c: c.update(17, 1.0)),
        (ValueError, "sum_tree.update: priorities[0] is nan, must be finite", lambda c: c.update(t64(1), math.nan)),
        (ValueError, "sum_tree.update: priorities[0] is 1e+39, must be at most", lambda c: c.update(1, 1e39)),
        (ValueError, "alpha must be finite", lambda c: c.update_from_td_errors(t64(1), t32(1), math.inf, 0.0, False)),
        (ValueError, "batch_size must be in [1, ", lambda c: c.sample(0, True, True)),
        (ValueError, "batch_size must be at most 17, the capacity", lambda c: c.sample(18, True, False)),
        (ValueError, "beta must be finite and >= 0", lambda c: c.sample_weighted(4, -1.0, "tree", True)),
        (TypeError, "normalize must be a str", lambda c: c.sample_weighted(4, 1.0, None, True)),
    ):
        with pytest.raises(error) as caught:
            call(cuda_core)
        assert text in str(caught.value)
    assert len(cuda_core.given) == 1
    cuda_core.update(np.int64(3), np.float32(2))
    assert cuda_core.given[1] == ("update", 3, 2.0) and type(cuda_core.given[1][1]) is int


def test_cuda_devices_without_a_gpu():
    """The extension imports and answers without a GPU and without a driver."""
    extension = pytest.importorskip("fastrl._C_cuda", reason="fastrl._C_cuda is not built", exc_type=ImportError)
    devices = extension.devices()
    assert isinstance(devices, list) and all(isinstance(name, str) for name in devices)
    assert bool(devices) == torch.cuda.is_available()
