"""The array loader, through gather_rows and SumTree: DLPack producers, older and other torch tensors, ownership."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest

import fastrl

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
INDICES = np.array([3, 0, 3], np.int64)


class Producer:
    """Nothing but the DLPack protocol."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OldProducer(Producer):
    """From before DLPack 1.0: no keywords but stream, and an unversioned capsule."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


class NamespaceProducer(Producer):
    """A library of the array API standard: results come back through its from_dlpack."""

    @classmethod
    def from_dlpack(cls, array):
        return cls(np.from_dlpack(array))

    def __array_namespace__(self):
        return type(self)


@pytest.mark.parametrize("producer", [Producer, OldProducer])
def test_dlpack_producers_in(loader, producer):
    got = loader.gather_rows(producer(ROWS), producer(INDICES))
    np.testing.assert_array_equal(got, ROWS[INDICES])
    got = loader.gather_rows([producer(ROWS[:, ::2]), producer(ROWS.T)], producer(np.array([2, 0], np.int32)))
    np.testing.assert_array_equal(got[0], ROWS[[2, 0], ::2])
    np.testing.assert_array_equal(got[1], ROWS.T[[2, 0]])
    tree = loader.SumTree(8, seed=0)
    tree.update(producer(np.arange(8)[::2]), producer(np.arange(8.0)[1::2]))
    np.testing.assert_array_equal(tree[np.arange(8)], np.array([1, 0, 3, 0, 5, 0, 7, 0], np.float32))
    np.testing.assert_array_equal(np.asarray(tree.find(producer(np.array([0.5, 15.5])))), [0, 6])
    np.testing.assert_array_equal(np.asarray(tree[producer(np.array([6]))]), [7])
    tree[producer(np.array([1]))] = 2.0
    assert tree[1] == 2.0


def test_dlpack_producer_as_out(loader):
    target = np.full((3, 3), np.nan, np.float32)
    out = Producer(target)
    assert loader.gather_rows(ROWS, INDICES, out=out) is out
    np.testing.assert_array_equal(target, ROWS[INDICES])


def test_an_unversioned_capsule_is_not_written_to(loader):
    """It cannot say that it must not be; NumPy's own reader takes it as read-only too."""
    target = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match="gather_rows: out"):
        loader.gather_rows(ROWS, INDICES, out=OldProducer(target))
    assert not target.any()


def test_read_only_dlpack_producer_as_out(loader):
    target = np.zeros((3, 3), np.float32)
    target.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match="out"):
        loader.gather_rows(ROWS, INDICES, out=Producer(target))
    assert not target.any()
    assert loader.gather_rows(Producer(target), INDICES - INDICES).shape == (3, 3)  # as an input it is fine


def test_results_come_back_through_the_array_namespace(loader):
    got = loader.gather_rows(NamespaceProducer(ROWS), INDICES)
    assert type(got) is NamespaceProducer
    np.testing.assert_array_equal(got.array, ROWS[INDICES])
    tree = loader.SumTree(4, seed=0)
    tree.update(NamespaceProducer(INDICES), NamespaceProducer(np.ones(3)))
    assert type(tree[NamespaceProducer(INDICES)]) is NamespaceProducer
    assert type(tree.find(NamespaceProducer(np.array([0.0])))) is NamespaceProducer


def test_jax_arrays(loader):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    got = loader.gather_rows(jax.numpy.asarray(ROWS), INDICES)
    assert isinstance(got, jax.Array)
    np.testing.assert_array_equal(np.asarray(got), ROWS[INDICES])
    tree = loader.SumTree(4, seed=0)
    tree.update(jax.numpy.asarray([1, 3], jax.numpy.int32), jax.numpy.asarray([1.0, 2.0]))
    assert tree.total == 3
    target = jax.numpy.zeros((3, 3))  # immutable, which its capsule does not say
    with pytest.raises(ValueError, match=r"gather_rows: out\S* must be C-contiguous and writable"):
        loader.gather_rows(ROWS, INDICES, out=target)
    assert not np.asarray(target).any()


def device(kind, number=0):
    class Elsewhere(Producer):
        def __dlpack_device__(self):
            return (kind, number)

        def __dlpack__(self, **kwargs):
            raise AssertionError("a producer on another device must not be exported")

    return Elsewhere(INDICES)


class Raising(Producer):
    def __dlpack__(self, **kwargs):
        raise RuntimeError("cannot export")


class NoCapsule(Producer):
    def __dlpack__(self, **kwargs):
        return 3


class Used(Producer):
    def __dlpack__(self, **kwargs):
        capsule = self.array.__dlpack__()
        np.from_dlpack(CapsuleOnly(capsule))  # consumes it: its name is now used_dltensor
        return capsule


class CapsuleOnly:
    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **kwargs):
        return self.capsule

    def __dlpack_device__(self):
        return (1, 0)


class BadDevice(Producer):
    def __dlpack_device__(self):
        return "cpu"


class RaisingDevice(Producer):
    def __dlpack_device__(self):
        raise RuntimeError("no device")


class NoDevice:
    def __dlpack__(self, **kwargs):
        return INDICES.__dlpack__()


BROKEN = {
    "cuda": lambda: device(2),
    "cuda managed": lambda: device(13),
    "metal": lambda: device(8),
    "unknown device": lambda: device(12345, 7),
    "raises": lambda: Raising(INDICES),
    "not a capsule": lambda: NoCapsule(INDICES),
    "used capsule": lambda: Used(INDICES),
    "other capsule": lambda: CapsuleOnly(__import__("datetime").datetime_CAPI),
    "bad device": lambda: BadDevice(INDICES),
    "device raises": lambda: RaisingDevice(INDICES),
    "no device": lambda: NoDevice(),
    "the class": lambda: Producer,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_producers(loader, oracle, sixteen, kind):
    """A clear error that names the argument; never a crash, and nothing changes."""
    tree = sixteen(loader.SumTree)
    before = oracle.snapshot(tree)
    calls = {
        "gather_rows: indices": lambda x: loader.gather_rows(ROWS, x),
        "gather_rows: arrays[1]": lambda x: loader.gather_rows([ROWS, x], INDICES),
        "gather_rows: out": lambda x: loader.gather_rows(ROWS, INDICES, out=x),
        "sum_tree.update: indices": lambda x: tree.update(x, 1.0),
        "sum_tree.update: priorities": lambda x: tree.update(INDICES, x),
        "sum_tree.find: prefix_sums": lambda x: tree.find(x),
    }
    for text, call in calls.items():
        with pytest.raises((TypeError, ValueError)) as caught:
            call(BROKEN[kind]())
        assert str(caught.value).startswith(text)
    assert oracle.snapshot(tree) == before


@pytest.mark.parametrize("wrong", ["rank", "dtype"])
def test_checks_hold_for_producers(loader, wrong):
    bad = Producer(np.ones((2, 2), np.int64) if wrong == "rank" else np.ones(2, np.int16))
    with pytest.raises(ValueError, match="gather_rows: indices must have"):
        loader.gather_rows(ROWS, bad)
    with pytest.raises(ValueError, match=r"sum_tree\.update: indices must have"):
        loader.SumTree(4, seed=0).update(bad, 1.0)


# ---- torch ------------------------------------------------------------------------------------------------------


def test_torch_parameter_and_subclass(loader, torch):
    class Sub(torch.Tensor):
        pass

    parameter = torch.nn.Parameter(torch.from_numpy(ROWS.copy()))
    for tensor in (parameter, torch.from_numpy(ROWS.copy()).as_subclass(Sub)):
        got = loader.gather_rows(tensor, torch.from_numpy(INDICES))
        assert isinstance(got, torch.Tensor) and not got.requires_grad
        np.testing.assert_array_equal(got.numpy(), ROWS[INDICES])
    tree = loader.SumTree(4, seed=0)
    tree.update(torch.from_numpy(INDICES).as_subclass(Sub), torch.nn.Parameter(torch.tensor([1.0, 2.0, 4.0])))
    assert (tree[3], tree[0]) == (4.0, 2.0)


def test_many_tensor_types(loader, torch):
    """More types than any per-type cache holds, and types that die."""
    for i in range(50):
        kind = type(f"Sub{i}", (torch.Tensor,), {})
        got = loader.gather_rows(torch.from_numpy(ROWS).as_subclass(kind), INDICES)
        np.testing.assert_array_equal(np.asarray(got), ROWS[INDICES])
        with pytest.raises(TypeError, match="must be an array, got Dead"):
            loader.gather_rows(type(f"Dead{i}", (), {})(), INDICES)
        del kind
        if i % 10 == 0:
            gc.collect()


WITHOUT_EXCHANGE_API = """
    import numpy as np, torch
    for cls in torch.Tensor.__mro__:
        if "__dlpack_c_exchange_api__" in vars(cls):
            delattr(cls, "__dlpack_c_exchange_api__")
    assert not hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    import fastrl
    from fastrl.kernels import SumTree, gather_rows
    rows, indices = torch.arange(12.0).reshape(4, 3), torch.tensor([3, 0, 3])
    got = gather_rows(rows, indices)
    assert isinstance(got, torch.Tensor) and torch.equal(got, rows[indices])
    assert torch.equal(gather_rows(rows.T, indices[1:2]), rows.T[[0]])
    out = torch.full((3, 3), torch.nan)
    assert gather_rows(rows, indices, out=out) is out and torch.equal(out, rows[indices])
    assert torch.equal(gather_rows(rows.clone().requires_grad_(), indices), rows[indices])
    tree, plain = SumTree(99, dtype=torch.float32, seed=3), SumTree(99, seed=3)
    tree.update(torch.arange(99), torch.arange(99.0))
    plain.update(np.arange(99), np.arange(99.0))
    for a, b in zip(tree.sample(20) + tree.sample_weighted(9, 0.5), plain.sample(20) + plain.sample_weighted(9, 0.5)):
        assert isinstance(a, torch.Tensor) and a.numpy().tobytes() == b.tobytes()
    assert isinstance(tree[torch.tensor([3])], torch.Tensor)
    assert isinstance(tree.find(torch.tensor([3.0])), torch.Tensor)
    for bad in (torch._neg_view(rows), torch.ones(2, 2, device="meta"), rows.to_sparse()):
        try:
            got = gather_rows(bad, torch.tensor([1, 0]))
        except (TypeError, ValueError) as error:
            assert str(error).startswith("gather_rows: arrays")
        else:
            assert torch.equal(got, bad[[1, 0]])
    print("fine")
"""


def test_torch_without_the_c_exchange_api(torch):
    """Torch before 2.9 comes in through the DLPack capsule; hiding the exchange API is as if it were older."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_EXCHANGE_API)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "fine"


NUMPY_ONLY = """
    import sys
    import numpy as np
    from fastrl.kernels import SumTree, gather_rows
    tree = SumTree(100, seed=0)
    tree.update(np.arange(100), np.ones(100))
    tree.sample(5), tree.sample_weighted(5, 0.4), tree.find(np.zeros(3)), tree.state_dict()
    gather_rows(np.ones((5, 2)), np.array([1]))
    try:
        tree.update([1], 1.0)
    except TypeError:
        pass
    assert "torch" not in sys.modules
    print("fine")
"""


def test_numpy_calls_do_not_import_torch():
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NUMPY_ONLY)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "fine"


# ---- ownership --------------------------------------------------------------------------------------------------


def test_no_reference_is_kept_or_lost(loader):
    """Also on the error paths: 100 calls leave every reference count as it was."""
    tree = loader.SumTree(4, seed=0)
    priorities, u = np.ones(3, np.float32), np.zeros(3)
    out, bad = np.zeros((3, 3), np.float32), np.array([9, 9, 9])
    values = (ROWS, INDICES, priorities, u, out, bad, np.dtype(np.float32), np.dtype(np.int64), None)

    def calls():
        tree.update(INDICES, priorities)
        tree.find(u)
        tree[INDICES]
        tree.sample(3)
        tree.sample_weighted(3, 0.5)
        loader.gather_rows(ROWS, INDICES)
        loader.gather_rows(ROWS, INDICES, out=out)
        loader.gather_rows([ROWS, ROWS], INDICES)
        for call in (
            lambda: tree.update(bad, priorities),
            lambda: tree.update(priorities, priorities),
            lambda: tree.update(INDICES, u[:2]),
            lambda: loader.gather_rows(ROWS, bad, out=out),
            lambda: loader.gather_rows([ROWS, None], INDICES),
            lambda: loader.gather_rows(ROWS, INDICES, out=u),
        ):
            with pytest.raises((TypeError, ValueError, IndexError)):
                call()

    calls()
    gc.collect()
    before = [sys.getrefcount(value) for value in values]
    for _ in range(100):
        calls()
    gc.collect()
    after = [sys.getrefcount(value) for value in values]
    for count, later in zip(before[:6], after[:6], strict=True):
        assert later == count
    for count, later in zip(before[6:], after[6:], strict=True):  # shared with the rest of the process
        assert abs(later - count) < 50


@pytest.mark.parametrize("producer", [Producer, OldProducer, CapsuleOnly])
def test_producers_memory_is_given_back(loader, producer):
    class Owner(np.ndarray):
        pass

    array = ROWS.copy().view(Owner)
    alive = weakref.ref(array)
    source = producer(array.__dlpack__()) if producer is CapsuleOnly else producer(array)
    got = loader.gather_rows(source, INDICES)
    np.testing.assert_array_equal(got, ROWS[INDICES])
    with pytest.raises(IndexError):
        loader.gather_rows(producer(array.__dlpack__()) if producer is CapsuleOnly else source, np.array([99]))
    del array, source
    gc.collect()
    assert alive() is None


def test_tensor_memory_is_given_back(loader, torch):
    tensor = torch.arange(12.0).reshape(4, 3)
    alive = weakref.ref(tensor)
    result = loader.gather_rows(tensor, INDICES)
    del tensor
    assert alive() is None
    kept = weakref.ref(result)
    del result
    assert kept() is None
    tree = loader.SumTree(16, dtype=torch.float32, seed=0)
    tree.update(torch.arange(16), 1.0)
    drawn = tree.sample(4)
    refs = [weakref.ref(tensor) for tensor in drawn]
    del drawn
    assert all(ref() is None for ref in refs)


def test_a_tree_can_be_collected(loader):
    tree = loader.SumTree(16, seed=0)
    generator, alive = tree.generator, weakref.ref(tree)
    tree.update(np.arange(16), 1.0)
    tree.sample(4)
    del tree
    gc.collect()
    assert alive() is None and generator.counter == 4


# ---- masked arrays ------------------------------------------------------------------------------------------------

MASKED = {
    "gather_rows: arrays": lambda m, x, i: fastrl.gather_rows(m(x), i),
    "gather_rows: arrays[1]": lambda m, x, i: fastrl.gather_rows([x, m(x)], i),
    "gather_rows: indices": lambda m, x, i: fastrl.gather_rows(x, m(i)),
    "gather_rows: out": lambda m, x, i: fastrl.gather_rows(x, i, out=m(x)),
    "sum_tree.update: indices": lambda m, x, i: fastrl.SumTree(8).update(m(i), x),
    "sum_tree.update: priorities": lambda m, x, i: fastrl.SumTree(8).update(i, m(x)),
    "sum_tree.find: prefix_sums": lambda m, x, i: fastrl.SumTree(8).find(m(x.astype(float))),
    "sum_tree.get: indices": lambda m, x, i: fastrl.SumTree(8)[m(i)],
    "conjugate_gradient: b": lambda m, x, i: fastrl.conjugate_gradient(lambda v: v, m(x)),
    "conjugate_gradient: x0": lambda m, x, i: fastrl.conjugate_gradient(lambda v: v, x, x0=m(x)),
    "conjugate_gradient: the result of matvec": lambda m, x, i: fastrl.conjugate_gradient(m, x),
    "conjugate_gradient: preconditioner": lambda m, x, i: fastrl.conjugate_gradient(np.eye(2), x, preconditioner=m(x)),
    "adam_step: params[0]": lambda m, x, i: adam([m(x)], [x]),
    "adam_step: grads[0]": lambda m, x, i: adam([x], [m(x)]),
    "categorical_log_prob_entropy: logits": lambda m, x, i: fastrl.categorical_log_prob_entropy(m(x[None]), i[:1]),
    "categorical_log_prob_entropy: action": lambda m, x, i: fastrl.categorical_log_prob_entropy(x[None], m(i[:1])),
    "normal_sample: mean": lambda m, x, i: fastrl.normal_sample(m(x[None]), x),
    "tanh_normal_sample: low": lambda m, x, i: fastrl.tanh_normal_sample(x[None], x, low=m(-x)),
    "n_step_gather: rewards": lambda m, x, i: fastrl.n_step_gather(m(x), x > 9, x > 9, i, 0, 2, gamma=1.0, n=1),
    "n_step_gather: terminated": lambda m, x, i: fastrl.n_step_gather(x, m(x > 9), x > 9, i, 0, 2, gamma=1.0, n=1),
    "replay.add: obs": lambda m, x, i: replay().add(m(x), 0, 0.0, x, False, False),
    "replay.add: reward": lambda m, x, i: replay().add(x, 0, np.ma.masked, x, False, False),
}


def adam(params, grads):
    fastrl.adam_step(params, grads, [np.zeros(2, "f4")], [np.zeros(2, "f4")], [np.zeros((), "f4")], lr=0.1)


def replay():
    return fastrl.ReplayBuffer(8, ((2,), np.float32), ((), np.int64))


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_masked_arrays_are_refused_everywhere(backend):
    """In a process of its own, which has that backend from its start."""
    if backend == "cpp":
        pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    if backend == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
    code = f"""
        import importlib.util, numpy as np
        spec = importlib.util.spec_from_file_location("cases", {__file__!r})
        cases = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cases)
        for where, call in cases.MASKED.items():
            x, i = np.array([1.0, 2.0], np.float32), np.array([0, 1])
            try:
                call(lambda a: np.ma.masked_array(a, np.arange(a.size).reshape(a.shape) % 2), x, i)
            except TypeError as error:
                wanted = f"{{where}} must not be a masked array, whose mask would be ignored: give filled(value)"
                assert str(error) == wanted, (str(error), wanted)
            else:
                raise AssertionError(where)
            assert x.tolist() == [1, 2] and i.tolist() == [0, 1], where
    """
    environment = {**os.environ, "FASTRL_BACKEND": backend}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, env=environment, timeout=300
    )


# ---- a torch that is not there yet --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_kernels_work_while_another_thread_imports_torch(backend):
    """sys.modules then holds a torch without most of its names; one that somebody has put there for it may stay so."""
    if backend == "cpp":
        pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    if backend == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
    code = """
        import sys, types
        import numpy as np, fastrl
        x, no, i = np.ones((4, 2), np.float32), np.zeros((4, 2), bool), np.array([0, 1])
        def calls():
            fastrl.gae(x, x, x, no, no, gamma=0.9, lam=0.9, out=(x.copy(), x.copy()))
            fastrl.reverse_affine_scan(x, x)
            fastrl.vtrace(x, x, x, no, no, -x, gamma=0.9)
            fastrl.n_step_gather(x, no, no, i, 0, 4, gamma=0.9, n=2)
            fastrl.gather_rows(x, i)
            fastrl.categorical_sample(x)
            fastrl.normal_log_prob_entropy(x, x, x)
            fastrl.tanh_normal_sample(x, x, low=[-1, -1], high=1)
            fastrl.conjugate_gradient(np.eye(2), np.ones(2))
            fastrl.adam_step([x.copy()], [x], [x.copy()], [x.copy()], [np.zeros((), np.float32)], lr=0.1)
            fastrl.SumTree(8).update(i, np.ones(2))
            fastrl.get_num_threads()
            fastrl.line_search(lambda p: (1.0, 0.0), np.zeros(2), np.ones(2), expected_improvement=1.0, max_kl=1.0)
        assert "torch" not in sys.modules
        sys.modules["torch"] = types.ModuleType("torch")
        calls()
        sys.modules["torch"].compiler = types.ModuleType("torch.compiler")
        calls()
    """
    environment = {**os.environ, "FASTRL_BACKEND": backend}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, env=environment, timeout=300
    )


def test_kernels_work_during_the_import_of_torch(torch):
    code = """
        import sys, threading
        import numpy as np, fastrl
        x, no = np.ones((4, 2), np.float32), np.zeros((4, 2), bool)
        thread = threading.Thread(target=__import__, args=("torch",))
        thread.start()
        while thread.is_alive():
            fastrl.gae(x, x, x, no, no, gamma=0.9, lam=0.9)
            fastrl.tanh_normal_mode(x, low=-1, high=np.ones(2))
        thread.join()
        assert hasattr(sys.modules["torch"], "compiler")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)
