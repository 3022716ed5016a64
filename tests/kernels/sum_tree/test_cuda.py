"""SumTree and gather_rows on a CUDA device against the CPU reference: the same draws, graph capture, late errors."""

import math

import numpy as np
import pytest
from cuda_graphs import captured

import fastrl
from fastrl.kernels import Generator, SumTree, SumTreeReference, gather_rows

torch = pytest.importorskip("torch", reason="CUDA trees need torch, which is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

CAPACITIES = [1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 1_000_003]


@pytest.fixture(params=["cuda kernels", "torch reference"])
def tree_class(request):
    """The compiled kernels, and what serves on the GPU where they are not built."""
    from fastrl import _backend
    from fastrl.kernels.sum_tree import _cuda, _torch

    if request.param == "cuda kernels":
        if _backend.cuda_backend()[0] != "cuda":
            pytest.skip(_backend.cuda_backend()[1])
        return type("SumTree", (SumTree,), {"_core_class": _cuda.CudaCore})
    return type("SumTree", (SumTree,), {"_core_class": _torch.TorchCore})


def pair(tree_class, priorities, seed=0):
    """The same tree on the GPU and on the CPU."""
    dtype = getattr(torch, priorities.dtype.name)
    ours = tree_class(len(priorities), dtype=dtype, device="cuda", seed=seed)
    ours.update(torch.arange(len(priorities), device="cuda"), torch.from_numpy(priorities).cuda())
    theirs = SumTreeReference(len(priorities), dtype=priorities.dtype.type, seed=seed)
    theirs.update(np.arange(len(priorities)), priorities)
    return ours, theirs


def same(ours, theirs):
    assert isinstance(ours, torch.Tensor) and ours.is_cuda
    ours = ours.cpu().numpy()
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_same_bits_as_the_reference(tree_class, oracle, tolerance, capacity, dtype):
    rng = np.random.default_rng(capacity)
    priorities = oracle.random_priorities(rng, capacity, dtype)
    priorities[capacity // 2] = 1
    ours, theirs = pair(tree_class, priorities, seed=2**63 + 11)
    for n in (1, 19, 256, 4097):
        indices = rng.integers(0, capacity, n)  # many duplicates: the last wins
        values = (10.0 ** rng.uniform(-30, 30, n)).astype(dtype)
        values[rng.random(n) < 0.3] = 0
        values[-1] = 1
        ours.update(torch.from_numpy(indices).cuda(), torch.from_numpy(values).cuda())
        theirs.update(indices, values)
        same(ours[torch.arange(capacity, device="cuda")], theirs[np.arange(capacity)])
        assert (ours.total, ours.min, ours.max, len(ours)) == (theirs.total, theirs.min, theirs.max, len(theirs))
        for options in ({}, {"stratified": False}):
            for a, b in zip(ours.sample(n, **options), theirs.sample(n, **options), strict=True):
                same(a, b)
        k = min(n, len(theirs), 64)
        for a, b in zip(ours.sample(k, replacement=False), theirs.sample(k, replacement=False), strict=True):
            same(a, b)
        for normalize in ("batch", "tree"):
            (i, w), (j, v) = (tree.sample_weighted(n, 0.6, normalize) for tree in (ours, theirs))
            same(i, j)
            np.testing.assert_allclose(
                w.cpu().numpy(), v, rtol=tolerance(np.dtype(dtype))["rtol"], atol=float(np.finfo(dtype).tiny)
            )
        u = np.r_[0.0, theirs.total, rng.uniform(0, 1, 99) * theirs.total]
        same(ours.find(torch.from_numpy(u).cuda()), theirs.find(u))
        assert ours.generator.state_dict() == theirs.generator.state_dict()


def test_find_at_every_boundary(tree_class):
    rng = np.random.default_rng(3)
    for capacity in (16, 17, 300, 4097):
        priorities = rng.choice([0, 0.1, 1 / 3, 1e-17, 1e16, 1.0, 0.7], capacity)
        priorities[capacity // 2] = 0.1
        ours, theirs = pair(tree_class, priorities)
        total = theirs.total
        ends = np.cumsum(priorities)
        u = np.clip(np.r_[ends, np.nextafter(ends, 0), np.nextafter(ends, np.inf), 0, total], 0, total)
        found = ours.find(torch.from_numpy(u).cuda())
        same(found, theirs.find(u))
        assert (priorities[found.cpu().numpy()] > 0).all()


def test_many_duplicates_in_one_batch(tree_class):
    """Deterministic, whatever order the threads run in."""
    for _ in range(5):
        tree = tree_class(40, dtype=torch.float32, device="cuda", seed=0)
        indices = torch.from_numpy(np.random.default_rng(1).integers(0, 40, 100_000)).cuda()
        tree.update(indices, torch.arange(100_000, device="cuda", dtype=torch.float32))
        last = np.zeros(40, np.float32)
        last[indices.cpu().numpy()] = np.arange(100_000)
        same(tree[torch.arange(40, device="cuda")], last)


def test_state_moves_between_devices(tree_class, oracle):
    priorities = oracle.random_priorities(np.random.default_rng(0), 500)
    ours, theirs = pair(tree_class, priorities, seed=8)
    ours.sample(5)
    theirs.load_state_dict(ours.state_dict())
    assert oracle.snapshot(theirs) == oracle.snapshot(ours)
    same(ours.sample(50)[0], theirs.sample(50)[0])
    fresh = tree_class(500, dtype=torch.float32, device="cuda", seed=1)
    fresh.load_state_dict(theirs.state_dict())
    assert oracle.snapshot(fresh) == oracle.snapshot(theirs)
    fresh.clear()
    assert (len(fresh), fresh.total, fresh.min, fresh.max) == (0, 0.0, math.inf, 0.0)


def test_scalar_forms(tree_class):
    tree = tree_class(20, dtype=torch.float32, device="cuda", seed=0)
    tree[3] = 2.5
    tree[torch.tensor([4, 5], device="cuda")] = 1.5
    assert (tree[3], tree.total, tree.find(3.0), type(tree.find(3.0))) == (2.5, 5.5, 4, int)


def test_other_streams_and_strides(tree_class):
    """The kernels run on the caller's current stream, and take any strides."""
    priorities = np.arange(100, dtype=np.float32)
    ours, theirs = pair(tree_class, priorities, seed=4)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        wide = torch.arange(300, device="cuda", dtype=torch.float64).reshape(100, 3)
        ours.update(torch.arange(200, device="cuda", dtype=torch.int32)[::2][:50], wide[:50, 1])
        drawn = ours.sample(50)[0]
    stream.synchronize()
    theirs.update(np.arange(0, 100, 2)[:50], np.arange(300.0).reshape(100, 3)[:50, 1])
    same(drawn, theirs.sample(50)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_update_from_td_errors(tree_class, tolerance, dtype):
    """Powers may differ in the last bits between backends, so within the tolerance; the result stays on the device."""
    rng = np.random.default_rng(0)
    close = tolerance(np.dtype(dtype))
    for keep_zeros in (False, True):
        priorities = np.ones(300, dtype)
        priorities[::2] = 0
        ours, theirs = pair(tree_class, priorities)
        for n in (0, 1, 99, 5000):
            indices = rng.integers(0, 300, n)
            errors = rng.normal(size=n).astype(np.float32)
            got = ours.update_from_td_errors(
                torch.from_numpy(indices).cuda(), torch.from_numpy(errors).cuda(), 0.6, 1e-6, keep_zeros=keep_zeros
            )
            want = theirs.update_from_td_errors(indices, errors, 0.6, 1e-6, keep_zeros=keep_zeros)
            assert got.is_cuda and got.shape == () and got.dtype == torch.float64
            np.testing.assert_allclose(float(got), want, **close)
            np.testing.assert_allclose(
                ours[torch.arange(300, device="cuda")].cpu().numpy(), theirs[np.arange(300)], **close
            )
            assert len(ours) == len(theirs)
        extreme = torch.tensor([0.0, 1e-300, -1e300], device="cuda", dtype=torch.float64)
        ours.update_from_td_errors(cuda(1, 3, 5), extreme, 1.0, 0.0)
        info = np.finfo(dtype)
        limit = float(info.max) if dtype == np.float32 else 2.0**960
        np.testing.assert_allclose([ours[1], ours[3], ours[5]], [0, max(float(info.tiny), 1e-300), limit], rtol=1e-12)


# ---- errors -----------------------------------------------------------------------------------------------------


def cuda(*values, dtype=torch.int64):
    return torch.tensor(values, device="cuda", dtype=dtype)


def test_invalid_items_are_flagged_and_skipped(tree_class):
    """No wait for the device: the call returns, the bad item is skipped, and check() or the next read raises once."""
    for indices, priorities, error, text in (
        (cuda(1, 17), cuda(2, 2, dtype=torch.float32), IndexError, "indices"),
        (cuda(-1, 1), cuda(2, 2, dtype=torch.float32), IndexError, "indices"),
        (cuda(1, 2), cuda(2, math.nan, dtype=torch.float32), ValueError, "priorities"),
        (cuda(1, 2), cuda(2, -1, dtype=torch.float32), ValueError, "priorities"),
        (cuda(1, 2), cuda(2, math.inf, dtype=torch.float32), ValueError, "priorities"),
    ):
        for read in (lambda t: t.check(), lambda t: t.total, lambda t: t.state_dict()):
            tree = tree_class(16, dtype=torch.float32, device="cuda", seed=0)
            tree.update(cuda(5), cuda(1, dtype=torch.float32))
            try:
                tree.update(indices, priorities)
            except (IndexError, ValueError) as caught:  # a backend that checks on the host may raise at once
                assert isinstance(caught, error) and text in str(caught)
                assert tree.total == 1
                continue
            with pytest.raises(error, match=text):
                read(tree)
            tree.check()  # raised once
            assert tree.total in (1, 3), "nothing but valid items was written"


@pytest.mark.usefixtures("compiled")
def test_a_flag_names_the_first_bad_position():
    tree = SumTree(16, dtype=torch.float32, device="cuda", seed=0)
    tree.update(torch.arange(16, device="cuda"), torch.ones(16, device="cuda"))
    ones = torch.ones(5000, device="cuda")
    bad = torch.zeros(5000, device="cuda", dtype=torch.int64)
    bad[[71, 4000]] = 16
    nan = ones.clone()
    nan[[33, 34]] = torch.nan
    above = torch.zeros(5000, device="cuda")
    above[7] = 17.0
    for error, text, call in (
        (IndexError, "sum_tree.update: indices[71] is outside [0, 16)", lambda: tree.update(bad, ones)),
        (ValueError, "sum_tree.update: priorities[33] must be finite", lambda: tree.update(0 * bad, nan)),
        (ValueError, "td_errors[33] must be finite", lambda: tree.update_from_td_errors(0 * bad, nan, 0.5, 0.1)),
        (IndexError, "td_errors: indices[71]", lambda: tree.update_from_td_errors(bad, ones, 0.5, 0.1)),
        (IndexError, "sum_tree.get: indices[71]", lambda: tree[bad]),
        (ValueError, "sum_tree.find: prefix_sums[7] must be in [0, total]", lambda: tree.find(above)),
    ):
        call()
        with pytest.raises(error) as caught:
            tree.check()
        assert text in str(caught.value)
        tree.check()
    found = tree.find(above)
    assert int(found[7]) == 15, "clamped to the total"
    with pytest.raises(ValueError, match="prefix_sums"):
        tree.check()


@pytest.mark.usefixtures("compiled")
def test_nothing_to_sample_is_flagged():
    """The results are zeros, and the generator has not moved."""
    tree = SumTree(16, dtype=torch.float32, device="cuda", seed=0)
    for text, call in (
        ("sum_tree.sample: the total priority is 0", lambda: tree.sample(3)),
        ("sum_tree.sample: the total priority is 0", lambda: tree.sample(3, replacement=False)),
        ("sum_tree.sample_weighted: the total priority is 0", lambda: tree.sample_weighted(3, 0.4)),
    ):
        for result in call():
            assert result.tolist() == [0, 0, 0]
        with pytest.raises(ValueError, match=text):
            tree.check()
    tree.update(cuda(3, 5), 1.0)
    indices, probabilities = tree.sample(4, replacement=False)
    with pytest.raises(ValueError, match="batch_size must be at most the number of positive priorities"):
        tree.check()
    assert sorted(indices[:2].tolist()) == [3, 5] and probabilities.tolist() == [0.5, 0.5, 0, 0]
    assert (tree.total, len(tree), tree.generator.counter) == (2.0, 2, 0)


def test_cpu_tensors_are_refused(tree_class):
    tree = tree_class(16, dtype=torch.float32, device="cuda", seed=0)
    for call in (
        lambda: tree.update(torch.tensor([1]), cuda(1, dtype=torch.float32)),
        lambda: tree.update(cuda(1), torch.tensor([1.0])),
        lambda: tree.find(torch.tensor([0.0])),
        lambda: tree[torch.tensor([1])],
        lambda: tree.update(np.array([1]), 1.0),
    ):
        with pytest.raises((TypeError, ValueError), match="cuda"):
            call()
    assert tree.total == 0


def test_host_side_checks_are_the_cpu_ones(tree_class, sixteen):
    """What needs no data is checked as on the CPU, with the same type of error."""
    tree = tree_class(16, dtype=torch.float32, device="cuda", seed=0)
    tree.update(cuda(1, 2), cuda(1, 1, dtype=torch.float32))
    for error, call in (
        (TypeError, lambda: tree.update([1], 1.0)),
        (TypeError, lambda: tree.update(None, 1.0)),
        (ValueError, lambda: tree.update(cuda(1, dtype=torch.uint8), 1.0)),
        (ValueError, lambda: tree.update(cuda(1), cuda(1))),
        (ValueError, lambda: tree.update(cuda(1, 2), cuda(1, dtype=torch.float32))),
        (TypeError, lambda: tree.sample(1.5)),
        (ValueError, lambda: tree.sample(0)),
        (ValueError, lambda: tree.sample_weighted(4, -1.0)),
        (ValueError, lambda: tree.sample_weighted(4, 0.5, "x")),
    ):
        with pytest.raises(error, match="sum_tree"):
            call()
    assert tree.total == 2 and tree.generator.counter == 0
    with pytest.raises(ValueError, match="generator must be on"):
        tree_class(16, dtype=torch.float32, device="cuda", generator=Generator(0))


# ---- graphs -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("options", [{}, {"stratified": False}], ids=["stratified", "iid"])
def test_a_captured_sample_draws_anew(oracle, options):
    """Replay k gives what the k-th eager call gives: the counter lives, and advances, in device memory."""
    priorities = oracle.random_priorities(np.random.default_rng(2), 3000)
    ours, theirs = pair(SumTree, priorities, seed=6)
    graph, (indices, probabilities) = captured(lambda: ours.sample(128, **options))
    ours.generator.manual_seed(6)
    seen = set()
    for _ in range(5):
        graph.replay()
        wanted_indices, wanted_probabilities = theirs.sample(128, **options)
        same(indices, wanted_indices)
        same(probabilities, wanted_probabilities)
        seen.add(tuple(indices.tolist()))
    assert len(seen) == 5
    assert ours.generator.state_dict() == theirs.generator.state_dict() == {"seed": 6, "counter": 5 * 128}


@pytest.mark.usefixtures("compiled")
def test_a_captured_training_step(oracle, tolerance):
    """sample_weighted, then update of what was drawn, as one graph."""
    priorities = oracle.random_priorities(np.random.default_rng(3), 2000, zeros=0)
    ours, theirs = pair(SumTree, priorities, seed=1)

    def step():
        indices, weights = ours.sample_weighted(64, 0.5, "tree")
        ours.update(indices, ours[indices] * 0.5 + 0.25)
        return indices, weights

    graph, (indices, weights) = captured(step)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(20):
        graph.replay()
        wanted, wanted_weights = theirs.sample_weighted(64, 0.5, "tree")
        same(indices, wanted)
        np.testing.assert_allclose(
            weights.cpu().numpy(), wanted_weights, rtol=tolerance(np.dtype(np.float32))["rtol"], atol=1e-37
        )
        theirs.update(wanted, theirs[wanted] * np.float32(0.5) + np.float32(0.25))
    assert oracle.snapshot(ours) == oracle.snapshot(theirs)


@pytest.mark.usefixtures("compiled")
def test_captured_errors_are_flagged():
    tree = SumTree(16, dtype=torch.float32, device="cuda", seed=0)
    indices, priorities = cuda(1, 2), cuda(1, 1, dtype=torch.float32)
    graph, _ = captured(lambda: tree.update(indices, priorities))
    graph.replay()
    tree.check()
    indices.copy_(cuda(1, 99))
    graph.replay()
    with pytest.raises(IndexError, match="indices"):
        tree.check()
    indices.copy_(cuda(3, 4))
    graph.replay()
    tree.check()
    assert tree.total == 4


@pytest.mark.usefixtures("compiled")
def test_nothing_waits_for_the_device():
    """torch's own detector of synchronising calls stays silent."""
    tree = SumTree(10_000, dtype=torch.float32, device="cuda", seed=0)
    indices = torch.randint(0, 10_000, (256,), device="cuda")
    priorities = torch.rand(256, device="cuda")
    tree.update(indices, priorities)
    u = torch.zeros(4, device="cuda", dtype=torch.float64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            tree.update(indices, priorities)
            drawn, _ = tree.sample(256)
            tree.sample_weighted(256, 0.4)
            tree.find(u)
            tree.update(drawn, tree[drawn])
            tree.sample(4, replacement=False)
            tree.update_from_td_errors(drawn, priorities, 0.6, 1e-6)
            tree.clear()
            tree.update(indices, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("compiled")
def test_a_captured_sample_without_replacement(oracle):
    """Distinct draws, whose leaves are then updated."""
    priorities = oracle.random_priorities(np.random.default_rng(5), 700, np.float64)
    ours, theirs = pair(SumTree, priorities, seed=3)
    before = theirs.state_dict()
    values = torch.rand(32, device="cuda", dtype=torch.float64)

    def step():
        indices, _ = ours.sample(32, replacement=False)
        ours.update(indices, values)
        return indices

    graph, indices = captured(step)
    ours.load_state_dict(before)
    for _ in range(5):
        graph.replay()
        wanted, _ = theirs.sample(32, replacement=False)
        same(indices, wanted)
        theirs.update(wanted, values.cpu().numpy())
    assert oracle.snapshot(ours) == oracle.snapshot(theirs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_device(tree_class):
    """The tree's device, not the current one, runs the kernels."""
    assert torch.cuda.current_device() == 0
    tree = tree_class(100, dtype=torch.float32, device="cuda:1", seed=0)
    every = torch.arange(100, device="cuda:1")
    tree.update(every, torch.ones(100, device="cuda:1"))
    assert tree.total == 100 and torch.cuda.current_device() == 0
    indices, _ = tree.sample(50)
    assert indices.device == torch.device("cuda:1")
    theirs = SumTreeReference(100, seed=0)
    theirs.update(np.arange(100), 1.0)
    same(indices, theirs.sample(50)[0])
    with pytest.raises(ValueError, match="must be on cuda:1 like the tree, got cuda:0"):
        tree.update(every.to("cuda:0"), 1.0)


# ---- the rest ---------------------------------------------------------------------------------------------------


def test_default_generator_of_the_device(tree_class):
    def draw():
        tree = tree_class(100, dtype=torch.float32, device="cuda")
        tree.update(torch.arange(100, device="cuda"), torch.ones(100, device="cuda"))
        return [tree.sample(5)[0].tolist() for _ in range(2)]

    fastrl.manual_seed(11)
    first = draw()
    fastrl.manual_seed(11)
    assert draw() == first


def test_gather_rows():
    array = torch.arange(60, device="cuda", dtype=torch.float32).reshape(10, 6)
    indices = cuda(9, 0, 9)
    assert torch.equal(gather_rows(array, indices), array[indices])
    got = gather_rows([array, array[:, ::2], array[:, 0].to(torch.uint8)], indices.int())
    assert [tuple(a.shape) for a in got] == [(3, 6), (3, 3), (3,)] and all(a.is_cuda for a in got)
    assert torch.equal(got[1], array[indices, ::2])
    out = torch.full((3, 6), torch.nan, device="cuda")
    assert gather_rows(array, indices, out=out) is out and torch.equal(out, array[indices])
    with pytest.raises((ValueError, RuntimeError)):
        gather_rows([array, array.cpu()], indices)


def test_a_captured_gather_rows():
    """Without the check of the indices, which waits for the device."""
    array, indices = torch.arange(60, device="cuda", dtype=torch.float32).reshape(10, 6), cuda(9, 0, 9)
    out = torch.zeros(3, 6, device="cuda")
    graph, (rows, flags) = captured(lambda: gather_rows([array, array > 30], indices))
    other, _ = captured(lambda: gather_rows(array, indices, out=out))
    for new in (cuda(1, 2, 3), cuda(0, 0, 8)):
        indices.copy_(new)
        graph.replay()
        other.replay()
        assert torch.equal(rows, array[new]) and torch.equal(out, rows) and torch.equal(flags, rows > 30)
