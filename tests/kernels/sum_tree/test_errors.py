"""SumTree's state, bad and odd input, torch tensors, memory."""

import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from .helpers import DTYPES, filled


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_round_trip(kernels, oracle, dtype):
    rng = np.random.default_rng(10)
    tree = kernels.SumTree(777, dtype=dtype, seed=2**64 - 5)
    for _ in range(20):
        tree.update(rng.integers(0, 777, 99), (10.0 ** rng.uniform(-20, 20, 99)).astype(dtype))
        tree.sample(33)
    state = tree.state_dict()
    assert set(state) == {"capacity", "dtype", "priorities", "generator"}
    assert state["capacity"] == 777 and state["dtype"] == np.dtype(dtype).name
    assert type(state["priorities"]) is np.ndarray and state["priorities"].dtype == dtype
    assert state["generator"] == {"seed": 2**64 - 5, "counter": 20 * 33}
    copy = kernels.SumTree(777, dtype=dtype, seed=1)
    copy.update(np.arange(777), 3.0)
    copy.load_state_dict(state)
    assert oracle.snapshot(copy) == oracle.snapshot(tree)
    for options in ({}, {"stratified": False}, {"replacement": False}):
        for ours, theirs in zip(copy.sample(50, **options), tree.sample(50, **options), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    tree.update(np.arange(777), 1.0)
    assert not (state["priorities"] == 1).all(), "the state is a copy"


BAD_STATES = {
    "not a dict": lambda s: None,
    "list": lambda s: list(s.items()),
    "empty": lambda s: {},
    "wrong capacity": lambda s: s | {"capacity": 15},
    "capacity 16.0": lambda s: s | {"capacity": "16"},
    "wrong dtype": lambda s: s | {"dtype": "float64"},
    "other tree": lambda s: s | {"dtype": "float64", "priorities": s["priorities"].astype(np.float64)},
    "float64 array": lambda s: s | {"priorities": s["priorities"].astype(np.float64)},
    "int array": lambda s: s | {"priorities": s["priorities"].astype(np.int64)},
    "list of priorities": lambda s: s | {"priorities": s["priorities"].tolist()},
    "None for priorities": lambda s: s | {"priorities": None},
    "too short": lambda s: s | {"priorities": s["priorities"][:-1]},
    "too long": lambda s: s | {"priorities": np.r_[s["priorities"], s["priorities"]]},
    "rank 2": lambda s: s | {"priorities": s["priorities"].reshape(4, 4)},
    "nan": lambda s: s | {"priorities": np.where(np.arange(16) == 9, np.nan, s["priorities"]).astype(np.float32)},
    "inf": lambda s: s | {"priorities": np.where(np.arange(16) == 9, np.inf, s["priorities"]).astype(np.float32)},
    "negative": lambda s: s | {"priorities": np.where(np.arange(16) == 9, -1, s["priorities"]).astype(np.float32)},
    "no generator": lambda s: {k: v for k, v in s.items() if k != "generator"},
    "no priorities": lambda s: {k: v for k, v in s.items() if k != "priorities"},
    "generator None": lambda s: s | {"generator": None},
    "generator without seed": lambda s: s | {"generator": {"counter": 3}},
    "counter negative": lambda s: s | {"generator": {"seed": 1, "counter": -3}},
    "counter too large": lambda s: s | {"generator": {"seed": 1, "counter": 2**64}},
    "seed float": lambda s: s | {"generator": {"seed": 1.5, "counter": 3}},
    "new priorities, bad generator": lambda s: (
        s | {"priorities": np.ones(16, np.float32), "generator": {"seed": 1.5, "counter": 3}}
    ),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in BAD_STATES.items()])
def test_bad_state_changes_nothing(kernels, oracle, sixteen, change):
    tree = sixteen(kernels.SumTree)
    before, state = oracle.snapshot(tree), tree.state_dict()
    state["generator"] = {"seed": 99, "counter": 99}
    state["priorities"] = state["priorities"][::-1].copy()
    with pytest.raises((TypeError, ValueError, KeyError)):
        tree.load_state_dict(change(state))
    assert oracle.snapshot(tree) == before
    tree.load_state_dict(state)
    assert tree.generator.state_dict() == {"seed": 99, "counter": 99}


def test_bad_call_changes_nothing(kernels, oracle, sixteen, bad_call):
    error, text, call = bad_call
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    with pytest.raises(error) as caught:
        call(tree)
    assert text in str(caught.value)
    assert oracle.snapshot(tree) == before, "all or nothing"
    tree.update(np.array([1]), 1.0)  # and it still works
    assert tree.sample(3)[0].shape == (3,)


def test_bad_construction(kernels, bad_construction):
    error, text, build = bad_construction
    with pytest.raises(error) as caught:
        build(kernels.SumTree)
    assert text in str(caught.value)


def test_odd_call_works_or_changes_nothing(kernels, oracle, sixteen, odd_call):
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    try:
        odd_call(tree)
    except (TypeError, ValueError, IndexError):
        assert oracle.snapshot(tree) == before
    leaves = tree[np.arange(16)].astype(np.float64)
    assert (leaves >= 0).all() and tree.total == math.fsum(leaves.tolist())
    for index in (3, 4):  # what an odd call may have written is what it said
        assert leaves[index] in (np.float32((index % 2 == 0) * (index // 2 + 1) / 8), 1.0, 2.0, 2.0**-126)


@pytest.mark.parametrize("length", [100_000, 3])
def test_late_error_in_a_long_batch_changes_nothing(kernels, oracle, length):
    """The bad element comes last, after everything else has been looked at."""
    tree = filled(kernels, np.ones(4096, np.float32))
    before = oracle.snapshot(tree)
    indices = np.random.default_rng(0).integers(0, 4096, length)
    priorities = np.full(length, 2, np.float32)
    priorities[-1] = np.nan
    with pytest.raises(ValueError, match=rf"priorities\[{length - 1}\] is nan"):
        tree.update(indices, priorities)
    assert oracle.snapshot(tree) == before
    priorities[-1], indices[-1] = 2, 4096
    with pytest.raises(IndexError, match=rf"indices\[{length - 1}\] is 4096, outside \[0, 4096\)"):
        tree.update(indices, priorities)
    assert oracle.snapshot(tree) == before


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_tree_equals_the_numpy_tree(kernels, torch, oracle, dtype):
    """Results are tensors, and the same bits."""
    leaves = oracle.random_priorities(np.random.default_rng(1), 500, dtype)
    ours = kernels.SumTree(500, dtype=getattr(torch, dtype), seed=6)
    ours.update(torch.arange(500), torch.from_numpy(leaves))
    plain = filled(kernels, leaves, seed=6)
    assert ours.total == plain.total
    index = torch.tensor([4, 4, 9])
    assert torch.equal(ours[index], torch.from_numpy(plain[index.numpy()]))
    u = torch.linspace(0, ours.total, 33, dtype=torch.float64)
    u[-1] = ours.total
    assert torch.equal(ours.find(u), torch.from_numpy(plain.find(u.numpy())))
    for options in ({}, {"stratified": False}, {"replacement": False}):
        for a, b in zip(ours.sample(40, **options), plain.sample(40, **options), strict=True):
            assert isinstance(a, torch.Tensor) and torch.equal(a, torch.from_numpy(b))
    for a, b in zip(ours.sample_weighted(40, 0.4), plain.sample_weighted(40, 0.4), strict=True):
        assert isinstance(a, torch.Tensor) and torch.equal(a, torch.from_numpy(b))
    assert isinstance(ours[3], float) and isinstance(ours.find(0.0), int)
    state = ours.state_dict()
    assert type(state["priorities"]) is np.ndarray and state["dtype"] == dtype
    plain.load_state_dict(state)
    assert oracle.snapshot(plain) == oracle.snapshot(ours)


def test_torch_inputs_of_a_numpy_tree(kernels, torch):
    """Tensors may be given to any tree, in any layout; they are not modified."""
    tree = kernels.SumTree(64, seed=0)
    wide = torch.arange(24, dtype=torch.float64).reshape(8, 3)
    indices = torch.arange(16)[::2]
    tree.update(indices, wide[:, 1])
    np.testing.assert_array_equal(tree[np.arange(0, 16, 2)], np.arange(8, dtype=np.float32) * 3 + 1)
    tree.update(indices.int(), wide[:, 2].float())
    np.testing.assert_array_equal(np.asarray(tree[indices]), np.arange(8, dtype=np.float32) * 3 + 2)
    tree[torch.tensor([63])] = torch.tensor([5.0])
    assert tree[63] == 5.0
    assert torch.equal(indices, torch.arange(16)[::2]) and torch.equal(wide.flatten(), torch.arange(24.0).double())
    np.testing.assert_array_equal(np.asarray(tree.find(torch.tensor([0.0, 2.0]))), tree.find(np.array([0.0, 2.0])))


def odd_tensors(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2)
    values = torch.tensor([1.0, 2.0])
    return {
        "fake": (fake, None),
        "meta": (torch.ones(2, device="meta"), None),
        "sparse": (values.to_sparse(), None),
        "quantized": (torch.quantize_per_tensor(values, 1.0, 0, torch.quint8), None),
        "bfloat16": (values.bfloat16(), None),
        "complex": (values.to(torch.complex64), None),
        "requires grad": (values.clone().requires_grad_(), values),
        "graph": (values.clone().requires_grad_() * 2, values * 2),
        "parameter": (torch.nn.Parameter(values), values),
        "negative bit": (torch._neg_view(-values), values),
        "conj imag": (torch.complex(values, -values).conj().imag, values),
        "expanded": (torch.tensor([3.0]).expand(2), torch.tensor([3.0, 3.0])),
        "0-d": (torch.tensor(1.0), None),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [
        "fake", "meta", "sparse", "quantized", "bfloat16", "complex", "requires grad", "graph", "parameter",
        "negative bit", "conj imag", "expanded", "0-d",
    ],
)  # fmt: skip
def test_odd_tensors(kernels, torch, oracle, sixteen, kind):
    """Right, or a clear error that leaves the tree as it was. Never a crash, never wrong numbers."""
    tensor, wanted = odd_tensors(torch)[kind]
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    try:
        tree.update(np.array([3, 5]), tensor)
    except (TypeError, ValueError) as error:
        assert "priorities" in str(error)
        assert oracle.snapshot(tree) == before
    else:
        wanted = torch.ones(2) if kind == "0-d" else wanted
        assert wanted is not None, f"a {kind} tensor was accepted"
        np.testing.assert_array_equal(tree[np.array([3, 5])], wanted.numpy())
    tree = sixteen(kernels.SumTree)
    try:
        found = tree.find(tensor)
    except (TypeError, ValueError) as error:
        assert "prefix_sums" in str(error) and oracle.snapshot(tree) == before
    else:
        expected = tree.find(1.0) if kind == "0-d" else tree.find(wanted.numpy())
        np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("kind", ["fake", "meta", "sparse", "bool", "uint8", "float", "rank 2", "0-d"])
def test_odd_index_tensors(kernels, torch, oracle, sixteen, kind):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2, dtype=torch.int64)
    tensor = {
        "fake": fake,
        "meta": torch.ones(2, dtype=torch.int64, device="meta"),
        "sparse": torch.tensor([1, 2]).to_sparse(),
        "bool": torch.tensor([True, False]),
        "uint8": torch.tensor([1, 2], dtype=torch.uint8),
        "float": torch.tensor([1.0, 2.0]),
        "rank 2": torch.ones(2, 2, dtype=torch.int64),
        "0-d": torch.tensor(3),
    }[kind]
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    for call in (lambda: tree.update(tensor, 1.0), lambda: tree[tensor]):
        try:
            call()
        except (TypeError, ValueError) as error:
            assert "indices" in str(error) and oracle.snapshot(tree) == before
        else:
            assert kind == "0-d" and tree[3] == 1.0


def test_cuda_tensor_into_a_cpu_tree(kernels, torch, oracle, sixteen):
    """torchrl #2205 crashed here."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tree = sixteen(kernels.SumTree)
    before = oracle.snapshot(tree)
    for call in (
        lambda: tree.update(torch.tensor([1], device="cuda"), 1.0),
        lambda: tree.update(torch.tensor([1]), torch.ones(1, device="cuda")),
        lambda: tree[torch.tensor([1], device="cuda")],
        lambda: tree.find(torch.zeros(1, device="cuda")),
    ):
        with pytest.raises(ValueError, match="device|cuda"):
            call()
    assert oracle.snapshot(tree) == before


def test_cuda_tree_without_cuda(kernels, torch):
    """A clear RuntimeError, not a tree on the host."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RuntimeError, match="sum_tree: device is cuda, but torch finds no such CUDA device"):
        kernels.SumTree(16, dtype=torch.float32, device="cuda", seed=0)


def test_no_memory_is_said(kernels, monkeypatch):
    def none(*args):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(kernels.SumTree, "_core_class", none)
    with pytest.raises(MemoryError, match=r"^sum_tree: no memory for a tree of 2147483647 float64 priorities$"):
        kernels.SumTree(2**31 - 1, dtype=np.float64)


def test_core_that_was_never_made(cpp):
    core = cpp.SumTree._core_class
    for name in ("total", "min", "max"):
        with pytest.raises(TypeError):
            getattr(core.__new__(core), name)
    with pytest.raises(TypeError):
        core.__new__(core).sample(3, True, True)
    for capacity in (-5, 0, 2**31):
        with pytest.raises(ValueError, match=rf"sum_tree: capacity must be in \[1, 2147483647\], got {capacity}"):
            core(capacity, "float32", np.zeros(2, np.uint64))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux says of the process's memory")
@pytest.mark.skipif("lib" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has memory of its own")
def test_memory_of_a_large_tree(cpp):
    """A new tree costs next to nothing before it is used; a load needs one copy of the priorities."""
    code = """
        import sys, resource, numpy as np
        from fastrl import SumTree
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
        def peak():
            return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 2**10
        n, before = 16_000_000, resident()  # 64 MB of priorities
        tree = SumTree(n, seed=0)
        new = resident() - before
        state = tree.state_dict()
        state["priorities"][:] = 1
        before = resident()
        tree.load_state_dict(state)
        assert tree.total == n and len(tree) == n
        print(new, peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "FASTRL_BACKEND": "cpp"},
    )
    assert run.returncode == 0, run.stderr
    new, load = map(float, run.stdout.split())
    assert new < 16, new  # of 92
    assert load < 92 + 64 + 24, load  # the tree's own pages, the copy, and a leaf of each node
