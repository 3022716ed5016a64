"""The backends against the reference one: the same signatures, the same bits, the same errors in the same words."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.kernels import Generator, gather_rows, gather_rows_reference

PUBLIC = [
    "update", "update_from_td_errors", "find", "sample", "sample_weighted", "clear", "state_dict", "load_state_dict",
    "total", "min", "max", "capacity", "dtype", "device", "generator",
]  # fmt: skip


def method_signatures(cls):
    methods = inspect.getmembers(cls, inspect.isfunction)
    return {name: str(inspect.signature(method)) for name, method in methods if name[0] != "_"}


def test_one_signature_everywhere(other, reference):
    assert method_signatures(other.SumTree) == method_signatures(reference.SumTree)
    assert inspect.signature(other.SumTree) == inspect.signature(reference.SumTree)
    for name in PUBLIC:
        assert hasattr(other.SumTree(4, seed=0), name)
    assert inspect.signature(gather_rows) == inspect.signature(gather_rows_reference)


def core_parameters(core, name):
    return [parameter for parameter in inspect.signature(getattr(core, name)).parameters if parameter != "self"]


@pytest.mark.parametrize(
    "name",
    ["update", "get", "find", "sample", "sample_weighted", "load", "priorities", "clear", "update_from_td_errors"],
)
def test_cores_share_argument_names(other, reference, name):
    ours, theirs = (core_parameters(backend.SumTree._core_class, name) for backend in (other, reference))
    assert ours == theirs


def test_documented_keywords(kernels):
    tree = kernels.SumTree(capacity=8, dtype=np.float64, device="cpu", seed=None, generator=Generator(seed=3))
    tree.update(indices=np.arange(8), priorities=np.ones(8))
    tree.find(prefix_sums=np.zeros(2))
    tree.sample(batch_size=2, stratified=True, replacement=True)
    tree.sample_weighted(batch_size=2, beta=0.4, normalize="batch", stratified=False)
    assert (tree.generator.seed, tree.generator.counter) == (3, 4)


def test_the_public_tree_runs_the_chosen_backend():
    from fastrl import _backend

    core = type(fastrl.SumTree(4, seed=0)._core).__name__
    assert core == {"cpp": "SumTreeCore", "numba": "NumbaCore", "reference": "ReferenceCore"}[_backend.CPU_BACKEND]


# ---- bits -------------------------------------------------------------------------------------------------------


def same(ours, theirs):
    if not isinstance(ours, tuple):
        ours, theirs = (ours,), (theirs,)
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b)
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    capacity=st.sampled_from([1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097]) | st.integers(1, 600),
    dtype=st.sampled_from([np.float32, np.float64]),
    spread=st.sampled_from([0, 1, 6, 30]),
    seed=st.integers(0, 2**64 - 1),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["update", "stratified", "iid", "distinct", "weighted", "find", "clear"]),
            st.sampled_from([1, 2, 7, 8, 9, 19, 64, 257]),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_same_seed_same_bits(other, reference, oracle, tolerance, capacity, dtype, spread, seed, steps):
    """One history on two backends: equal indices, probabilities, sums and generator, bit for bit."""
    rng = np.random.default_rng(seed % 2**32)
    trees = [backend.SumTree(capacity, dtype=dtype, seed=seed) for backend in (other, reference)]
    for step, n in [("update", 257), *steps]:
        if step == "update":
            indices = rng.integers(0, capacity, n)
            priorities = (10.0 ** rng.uniform(-spread, spread, n)).astype(dtype) * (rng.random(n) < 0.8)
            priorities[-1] = 1  # never an empty tree
            for tree in trees:
                tree.update(indices, priorities.astype(dtype))
        elif step == "clear":
            for tree in trees:
                tree.clear()
                tree.update(np.array([capacity - 1, 0]), 1.5)
        elif step == "find":
            u = rng.uniform(0, 1, n) * trees[0].total
            same(trees[0].find(u), trees[1].find(u))
        elif step == "weighted":
            normalize = ["batch", "tree"][n % 2]
            (i, w), (j, v) = (tree.sample_weighted(n, 0.6, normalize, stratified=n > 8) for tree in trees)
            same(i, j)
            assert w.dtype == v.dtype == dtype
            np.testing.assert_allclose(w, v, rtol=tolerance(w.dtype)["rtol"], atol=float(np.finfo(dtype).tiny))
        else:
            options = {"stratified": {}, "iid": {"stratified": False}, "distinct": {"replacement": False}}[step]
            if step == "distinct":
                n = min(n, len(trees[0]))
            same(trees[0].sample(n, **options), trees[1].sample(n, **options))
        assert oracle.snapshot(trees[0]) == oracle.snapshot(trees[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_find_at_every_boundary_has_the_same_bits(other, reference, oracle, dtype):
    """At a boundary one rounding more or less, or a fused multiply-add, would show."""
    rng = np.random.default_rng(3)
    for capacity in (16, 17, 300, 4097):
        priorities = rng.choice([0, 0.1, 1 / 3, 1e-17, 1e16, 1.0, 0.7], capacity).astype(dtype)
        priorities[capacity // 2] = 0.1
        trees = [backend.SumTree(capacity, dtype=dtype, seed=0) for backend in (other, reference)]
        for tree in trees:
            tree.update(np.arange(capacity), priorities)
        total = trees[1].total
        assert trees[0].total == total
        ends = np.cumsum(priorities, dtype=np.float64)
        u = np.clip(np.r_[ends, np.nextafter(ends, 0), np.nextafter(ends, np.inf), 0, total], 0, total)
        same(trees[0].find(u), trees[1].find(u))


def test_large_trees_and_batches_have_the_same_bits(other, reference, oracle):
    """A million leaves, and batches long enough for threads."""
    rng = np.random.default_rng(1)
    capacity = 1_000_003
    priorities = oracle.random_priorities(rng, capacity)
    trees = [backend.SumTree(capacity, seed=17) for backend in (other, reference)]
    for tree in trees:
        tree.update(np.arange(capacity), priorities)
        tree.update(rng.integers(0, capacity, 0), 1.0)
    for n, options in ((50_001, {}), (50_001, {"stratified": False}), (300, {"replacement": False})):
        same(trees[0].sample(n, **options), trees[1].sample(n, **options))
    assert oracle.snapshot(trees[0]) == oracle.snapshot(trees[1])


@pytest.mark.parametrize(
    ("setting", "threads"), [("1", 1), ("3,2", 3), (" 5", 5), ("9999", 1024), ("0", None), ("many", None)]
)
def test_openmps_setting_counts_without_torch(setting, threads, tmp_path):
    """In the extension and, as without one, in Python."""
    code = "import fastrl._backend as b; n = b.get_num_threads(); b._C = None; print(n, b.get_num_threads())"
    env = {name: value for name, value in os.environ.items() if name != "FASTRL_NUM_THREADS"}
    env["OMP_NUM_THREADS"] = setting
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert run.stdout.split() == [str(threads or cores)] * 2


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_thread_count_changes_no_bit(other, reference, threads):
    before = fastrl.get_num_threads()
    fastrl.set_num_threads(threads)
    try:
        trees = [backend.SumTree(5000, seed=2) for backend in (other, reference)]
        for tree in trees:
            tree.update(np.arange(5000), np.arange(5000, dtype=np.float32))
        same(trees[0].sample(40_000), trees[1].sample(40_000))
        same(trees[0].sample_weighted(40_000, 0.0), trees[1].sample_weighted(40_000, 0.0))
        u = np.linspace(0, trees[0].total, 40_000)
        same(trees[0].find(u), trees[1].find(u))
        updated = np.random.default_rng(0).integers(0, 5000, 40_000)
        for tree in trees:
            tree.update(updated, np.arange(40_000, dtype=np.float32))
        same(trees[0][np.arange(5000)], trees[1][np.arange(5000)])
        assert trees[0].total == trees[1].total
    finally:
        fastrl.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_update_from_td_errors_agrees(other, reference, tolerance, dtype):
    """To the tolerance of the power; the power's last bit is the one thing that may differ between backends."""
    rng = np.random.default_rng(0)
    trees = [backend.SumTree(3000, dtype=dtype, seed=0) for backend in (other, reference)]
    for n in (1, 7, 256, 5000):
        indices, errors = rng.integers(0, 3000, n), rng.normal(size=n) * 10.0 ** rng.uniform(-9, 9, n)
        largest = [tree.update_from_td_errors(indices, errors, 0.6, 1e-6, keep_zeros=n == 256) for tree in trees]
        rtol = tolerance(np.dtype(dtype))["rtol"]
        assert largest[0] == pytest.approx(largest[1], rel=rtol, abs=0)
        np.testing.assert_allclose(trees[0][np.arange(3000)], trees[1][np.arange(3000)], rtol=rtol, atol=0)


def test_state_moves_between_backends(other, reference, oracle):
    ours, theirs = other.SumTree(300, seed=4), reference.SumTree(300, seed=5)
    ours.update(np.arange(300), np.arange(300, dtype=np.float32) / 7)
    ours.sample(9)
    theirs.load_state_dict(ours.state_dict())
    assert oracle.snapshot(ours) == oracle.snapshot(theirs)
    same(ours.sample(50), theirs.sample(50))
    ours.load_state_dict(theirs.state_dict())
    same(ours.sample(50), theirs.sample(50))


# ---- errors -----------------------------------------------------------------------------------------------------


def test_same_error_for_a_bad_call(other, reference, oracle, sixteen, bad_call):
    _, _, call = bad_call
    ours, theirs = (oracle.outcome(call, sixteen(backend.SumTree)) for backend in (other, reference))
    assert ours == theirs
    assert ours[0] == "raised"


def test_same_outcome_of_an_odd_call(other, reference, oracle, sixteen, odd_call):
    outcomes = []
    for backend in (other, reference):
        tree = sixteen(backend.SumTree)
        outcomes.append((oracle.outcome(odd_call, tree), oracle.snapshot(tree)))
    assert outcomes[0] == outcomes[1]


def test_same_error_for_a_bad_construction(other, reference, oracle, bad_construction):
    _, _, build = bad_construction
    assert oracle.outcome(build, other.SumTree) == oracle.outcome(build, reference.SumTree)


EMPTY_TREE_CALLS = {
    "sample": lambda t: t.sample(3),
    "sample, no replacement": lambda t: t.sample(3, replacement=False),
    "sample_weighted": lambda t: t.sample_weighted(3, 0.4),
    "find": lambda t: t.find(np.zeros(2)),
    "find scalar": lambda t: t.find(0.0),
    "find nothing": lambda t: t.find(np.zeros(0)),
    "find nan": lambda t: t.find(float("nan")),
    "bad batch": lambda t: t.sample(0),
    "bad beta": lambda t: t.sample_weighted(3, -1.0),
    "getitem": lambda t: t[np.arange(16)],
}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in EMPTY_TREE_CALLS.items()])
def test_same_outcome_on_an_empty_tree(other, reference, oracle, call):
    ours, theirs = (oracle.outcome(call, backend.SumTree(16, seed=0)) for backend in (other, reference))
    assert ours == theirs


FLOAT64_CALLS = {
    "above the largest": lambda t: t.update(np.array([1]), np.array([2.0**961])),
    "scalar above the largest": lambda t: t.update(1, 2.0**961),
    "largest": lambda t: t.update(np.array([1]), np.array([2.0**960])),
    "inf": lambda t: t.update(np.array([1]), np.array([np.inf])),
    "nan in float32": lambda t: t.update(np.array([1]), np.array([np.nan], np.float32)),
    "float32 priority": lambda t: t.update(np.array([1]), np.array([0.1], np.float32)),
    "subnormal": lambda t: t.update(np.array([1]), np.array([5e-324])),
    "find": lambda t: t.find(np.array([t.total * 2])),
}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in FLOAT64_CALLS.items()])
def test_same_outcome_on_a_float64_tree(other, reference, oracle, sixteen, call):
    outcomes = []
    for backend in (other, reference):
        tree = sixteen(backend.SumTree, np.float64)
        outcomes.append((oracle.outcome(call, tree), oracle.snapshot(tree)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.filterwarnings("ignore")
def test_same_outcome_for_tensors(other, reference, oracle, torch, sixteen):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2)
    two = torch.tensor([1.0, 2.0])
    tensors = {
        "fake": fake,
        "meta": torch.ones(2, device="meta"),
        "sparse": two.to_sparse(),
        "bfloat16": two.bfloat16(),
        "half": two.half(),
        "int": two.int(),
        "bool": two.bool(),
        "grad": two.clone().requires_grad_(),
        "negative bit": torch._neg_view(-two),
        "0-d": torch.tensor(1.0),
        "rank 2": torch.ones(2, 2),
        "too long": torch.ones(3),
        "nan": torch.tensor([1.0, torch.nan]),
        "negative": torch.tensor([-1.0, 1.0]),
        "strided": torch.arange(4.0)[::2],
    }
    for name, tensor in tensors.items():
        for call in (
            lambda t, x=tensor: t.update(torch.tensor([3, 5]), x),
            lambda t, x=tensor: t.find(x),
            lambda t, x=tensor: t[x],
        ):
            ours, theirs = (oracle.outcome(call, sixteen(backend.SumTree)) for backend in (other, reference))
            assert ours == theirs, name


GATHER_CALLS = {
    "index": lambda g: g(np.ones((16, 3)), np.array([1, 2, 3, 17])),
    "index of several": lambda g: g([np.ones((16, 3)), np.ones(9)], np.array([1, 9])),
    "empty source": lambda g: g(np.ones((0, 3)), np.array([0])),
    "indices list": lambda g: g(np.ones(4), [1]),
    "indices dtype": lambda g: g(np.ones(4), np.ones(2, np.uint8)),
    "indices rank": lambda g: g(np.ones(4), np.ones((2, 2), np.int64)),
    "indices 0-d": lambda g: g(np.ones(4), np.array(1)),
    "indices big endian": lambda g: g(np.ones(4), np.array([1], ">i8")),
    "array None": lambda g: g(None, np.array([1])),
    "array in list": lambda g: g([np.ones(4), "x"], np.array([1])),
    "array 0-d": lambda g: g(np.array(1.0), np.array([0])),
    "array 0-d in list": lambda g: g([np.array(1.0)], np.array([0])),
    "objects": lambda g: g(np.array([None]), np.array([0])),
    "nothing": lambda g: g([], np.array([0])),
    "nothing with out": lambda g: g([], np.array([0]), out=[]),
    "out dtype": lambda g: g(np.ones(4), np.array([1]), out=np.zeros(1, np.float32)),
    "out shape": lambda g: g(np.ones((4, 2)), np.array([1]), out=np.zeros((1, 3))),
    "out rank": lambda g: g(np.ones((4, 2)), np.array([1]), out=np.zeros(2)),
    "out strided": lambda g: g(np.ones((4, 2)), np.array([1, 2]), out=np.zeros((2, 4))[:, ::2]),
    "out read-only": lambda g: g(np.ones(4), np.array([1]), out=np.broadcast_to(1.0, 1)),
    "out list": lambda g: g(np.ones(4), np.array([1]), out=[np.zeros(1)]),
    "out not a list": lambda g: g([np.ones(4)], np.array([1]), out=np.zeros(1)),
    "out too short": lambda g: g([np.ones(4), np.ones(4)], np.array([1]), out=[np.zeros(1)]),
    "out None in list": lambda g: g([np.ones(4)], np.array([1]), out=[None]),
    "out int": lambda g: g(np.ones(4), np.array([1]), out=3),
    "out dtype in list": lambda g: g([np.ones(4)], np.array([1]), out=[np.zeros(1, int)]),
    "bad index and bad out": lambda g: g(np.ones(4), np.array([9]), out=np.zeros(1, int)),
    "strings": lambda g: g(np.array(["a", "bcd"]), np.array([1, 0])),
    "big endian": lambda g: g(np.array([1, 2], ">i4"), np.array([1, 0])),
    "structured": lambda g: g(np.array([(1, 2.0)], [("a", "i2"), ("b", "f8")]), np.array([0])),
    "9 dimensions": lambda g: g(np.ones((2,) * 9), np.array([0])),
}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in GATHER_CALLS.items()])
def test_same_outcome_of_gather_rows(cpp, reference, oracle, call):
    assert oracle.outcome(call, cpp.gather_rows) == oracle.outcome(call, reference.gather_rows)
