"""Arrays of every kind into the loaders: DLPack producers, tensors, layouts."""

import gc
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from .helpers import INDICES, ROWS, CapsuleOnly, OldProducer, Producer


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
    if fastrl._backend.CPU_BACKEND == "cpp":  # Numba's and the reference's take torch's own operation
        try:
            gather_rows(rows.to(torch.bfloat16), indices)
        except ValueError as error:
            assert "arrays must have a NumPy dtype, got bfloat16" in str(error), error
        else:
            raise AssertionError("no error")
    out = torch.zeros(3, 3, dtype=torch.bfloat16)
    assert torch.equal(gather_rows(rows.to(torch.bfloat16), indices, out=out), rows[indices].to(torch.bfloat16))
    for bad in (torch._neg_view(rows), torch.ones(2, 2, device="meta"), rows.to_sparse()):
        try:
            got = gather_rows(bad, torch.tensor([1, 0]))
        except (TypeError, ValueError) as error:
            assert str(error).startswith("gather_rows: arrays")
        else:
            assert torch.equal(got, bad[[1, 0]])
    fastrl._backend._C_cuda = fastrl
    kind, why = fastrl._backend.cuda_backend()
    assert kind == "reference" and why.startswith("fastrl._C_cuda needs torch 2.10, this is "), why
    print("fine")
"""


def test_torch_without_the_c_exchange_api(torch):
    """Torch before 2.10 comes in through the DLPack capsule; hiding the exchange API is as if it were older."""
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
