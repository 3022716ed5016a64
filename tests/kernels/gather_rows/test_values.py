"""gather_rows on every backend against np.take: all dtypes and layouts, out=, errors that write nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.kernels import gather_rows as public_gather_rows

DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip


def make(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return rng.integers(0, 120, size, dtype=np.uint8).view(dtype).reshape(shape).copy()  # no NaN bit pattern


def layouts(array):
    """The same values in every memory layout that NumPy has."""
    yield "C", array
    yield "Fortran", np.asfortranarray(array)
    yield "reversed", np.ascontiguousarray(array[::-1])[::-1]
    yield "stepped", np.repeat(array, 3, axis=0)[1::3]
    if array.ndim > 1:
        yield "last axis reversed", np.ascontiguousarray(array[..., ::-1])[..., ::-1]
        yield "last axis stepped", np.repeat(array, 2, axis=-1)[..., ::2]
        yield "column block", np.concatenate([array, array], axis=1)[:, : array.shape[1]]
        yield "transposed", np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0)
    readonly = array.copy()
    readonly.flags.writeable = False
    yield "read-only", readonly


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(11,), (11, 1), (11, 5), (11, 3, 4), (11, 2, 3, 5)], ids=str)
def test_dtypes_and_layouts(gather_rows, dtype, shape):
    array = make(shape, dtype)
    indices = np.array([0, 10, 3, 3, 7, 1, 10], np.int64)
    wanted = np.take(array, indices, axis=0)
    for name, view in layouts(array):
        np.testing.assert_array_equal(view, array)
        got = gather_rows(view, indices)
        assert type(got) is np.ndarray and got.dtype == array.dtype and got.shape == wanted.shape, name
        assert got.tobytes() == wanted.tobytes(), name
        assert got.flags.writeable and not np.shares_memory(got, view)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    rows=st.integers(1, 40),
    batch=st.sampled_from([0, 1, 2, 19, 99]),
    trailing=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from(DTYPES),
    wide=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_against_take(gather_rows, rows, batch, trailing, dtype, wide, seed):
    rng = np.random.default_rng(seed)
    array = make((rows, *trailing), dtype, seed)
    indices = rng.integers(0, rows, batch).astype(np.int64 if wide else np.int32)
    step = int(rng.choice([-2, -1, 1, 2]))
    view, expected = array[::step], np.take(array[::step], indices % len(array[::step]), axis=0)
    indices = (indices % len(view)).astype(indices.dtype)
    before = indices.copy()
    np.testing.assert_array_equal(gather_rows(view, indices), expected)
    np.testing.assert_array_equal(indices, before)


def test_several_arrays_in_one_call(gather_rows):
    """Each array has its own dtype, row shape and length."""
    arrays = [
        make((50, 17), "float32"),
        make((51, 17), "float32")[1:],
        make((60,), "int64"),
        make((50, 4, 84, 84), "uint8"),
        make((50,), "bool"),
        make((50, 3), "float64")[:, ::2],
        make((50, 0), "float32"),
    ]
    indices = np.random.default_rng(0).integers(0, 50, 33)
    for given_as in (list, tuple):
        got = gather_rows(given_as(arrays), indices)
        assert type(got) is list and len(got) == len(arrays)
        for ours, array in zip(got, arrays, strict=True):
            assert ours.dtype == array.dtype
            np.testing.assert_array_equal(ours, array[indices])
    one = gather_rows([arrays[0]], indices)
    assert type(one) is list and len(one) == 1
    assert gather_rows([], indices) == []


def test_strided_and_small_indices(gather_rows):
    array = make((30, 2), "float32")
    wide = np.arange(30).repeat(2)
    for indices in (wide[::2], wide[::-3], np.arange(30, dtype=np.int32)[::-1], np.broadcast_to(np.int64(7), 4)):
        np.testing.assert_array_equal(gather_rows(array, indices), array[indices])


def test_broadcast_and_overlapping_sources(gather_rows):
    same = np.broadcast_to(np.arange(3, dtype=np.float32), (9, 3))
    np.testing.assert_array_equal(gather_rows(same, np.array([0, 8])), same[:2])
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(20.0), 4)
    indices = np.array([16, 0, 5])
    np.testing.assert_array_equal(gather_rows(windows, indices), windows[indices])


def test_empty(gather_rows):
    none = np.zeros(0, np.int64)
    assert gather_rows(make((5, 3), "float32"), none).shape == (0, 3)
    assert gather_rows(make((0, 3), "float32"), none).shape == (0, 3)
    assert gather_rows(make((5, 0, 2), "float32"), np.array([1, 1])).shape == (2, 0, 2)
    out = np.empty((0, 3), np.float32)
    assert gather_rows(make((5, 3), "float32"), none, out=out) is out
    with pytest.raises(IndexError, match=r"gather_rows: indices\[0\] is 0, outside \[0, 0\)"):
        gather_rows(make((0, 3), "float32"), np.array([0]))


def test_memory_mapped(gather_rows, tmp_path):
    mapped = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(100, 5))
    mapped[:] = make((100, 5), "float32")
    indices = np.array([99, 0, 50])
    frozen = np.memmap(tmp_path / "rows", np.float32, "r", shape=(100, 5))
    for source in (mapped, frozen):
        got = gather_rows(source, indices)
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, np.asarray(mapped)[indices])


# ---- out= -------------------------------------------------------------------------------------------------------


def poisoned(shape, dtype):
    out = np.empty(shape, dtype)
    out.view(np.uint8).reshape(-1)[:] = 0xAB if dtype != "bool" else 1
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)], ids=str)
def test_out(gather_rows, dtype, trailing):
    array = make((11, *trailing), dtype)
    indices = np.array([10, 0, 4, 4])
    out = poisoned((4, *trailing), dtype)
    assert gather_rows(array, indices, out=out) is out
    assert out.tobytes() == array[indices].tobytes()


def test_out_of_several(gather_rows):
    arrays = [make((20, 3), "float32"), make((20,), "uint8"), make((20, 2, 2), "float64").transpose(0, 2, 1)]
    indices = np.arange(19, -1, -1)
    out = [poisoned((20, *array.shape[1:]), array.dtype.name) for array in arrays]
    got = gather_rows(arrays, indices, out=out)
    for ours, given_out, array in zip(got, out, arrays, strict=True):
        assert ours is given_out
        np.testing.assert_array_equal(ours, array[indices])
    big = poisoned((40, 3), "float32")  # a slice of a larger buffer: what lies beside it is not touched
    poison = big.copy()
    gather_rows(arrays[0], indices, out=big[10:30])
    np.testing.assert_array_equal(big[10:30], arrays[0][indices])
    np.testing.assert_array_equal(big[:10].view(np.uint8), poison[:10].view(np.uint8))
    np.testing.assert_array_equal(big[30:].view(np.uint8), poison[30:].view(np.uint8))


def frozen(array):
    array.flags.writeable = False
    return array


BAD_OUTS = {
    "too few rows": (ValueError, lambda: poisoned((3, 3), "float32")),
    "too many rows": (ValueError, lambda: poisoned((5, 3), "float32")),
    "wrong row": (ValueError, lambda: poisoned((4, 2), "float32")),
    "wrong rank": (ValueError, lambda: poisoned((12,), "float32")),
    "wrong dtype": (ValueError, lambda: poisoned((4, 3), "float64")),
    "same size dtype": (ValueError, lambda: poisoned((4, 3), "int32")),
    "read-only": (ValueError, lambda: frozen(poisoned((4, 3), "float32"))),
    "strided": (ValueError, lambda: poisoned((4, 6), "float32")[:, ::2]),
    "reversed": (ValueError, lambda: poisoned((4, 3), "float32")[::-1]),
    "Fortran": (ValueError, lambda: np.asfortranarray(poisoned((4, 3), "float32"))),
    "broadcast": (ValueError, lambda: np.broadcast_to(np.float32(0), (4, 3))),
    "nested list": (TypeError, lambda: [[0.0] * 3] * 4),
    "list of one": ((TypeError, ValueError), lambda: [poisoned((4, 3), "float32")]),
    "str": (TypeError, lambda: "out"),
    "int": (TypeError, lambda: 3),
}


@pytest.mark.parametrize(("error", "build"), [pytest.param(*case, id=name) for name, case in BAD_OUTS.items()])
def test_bad_out(gather_rows, error, build):
    out = build()
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises((TypeError, ValueError) if error is TypeError else error, match=r"^gather_rows: out"):
        gather_rows(make((11, 3), "float32"), np.array([1, 2, 3, 4]), out=out)
    if before is not None:
        assert out.tobytes() == before.tobytes()


def test_bad_out_of_several(gather_rows):
    arrays = [make((11, 3), "float32"), make((11,), "uint8")]
    indices = np.array([1, 2])
    good, bad = poisoned((2, 3), "float32"), poisoned((3,), "uint8")
    before = good.copy()
    for out in ([good, bad], [good], [good, None], good, [good, poisoned((2,), "uint8"), good], None):
        if out is None:
            continue
        with pytest.raises((TypeError, ValueError), match=r"^gather_rows: out"):
            gather_rows(arrays, indices, out=out)
        np.testing.assert_array_equal(good.view(np.uint8), before.view(np.uint8))


def test_out_that_is_the_source(gather_rows):
    """Either refused or as if there were no overlap; never rows that were already overwritten."""
    array = np.arange(20, dtype=np.float32).reshape(10, 2)
    wanted = array[::-1].copy()
    indices = np.arange(9, -1, -1)
    try:
        gather_rows(array, indices, out=array)
    except ValueError as error:
        assert str(error).startswith("gather_rows: out")
        np.testing.assert_array_equal(array, wanted[::-1])
    else:
        np.testing.assert_array_equal(array, wanted)


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        (np.array([1, 2, 3, 17]), "indices[3] is 17, outside [0, 16)"),
        (np.array([-1]), "indices[0] is -1, outside [0, 16)"),
        (np.array([0, 16, -5]), "indices[1] is 16, outside [0, 16)"),
        (np.array([2**63 - 1]), "indices[0] is 9223372036854775807, outside [0, 16)"),
        (np.array([-(2**63)]), "indices[0] is -9223372036854775808, outside [0, 16)"),
        (np.array([3, 2**32 + 3]), "indices[1] is 4294967299, outside [0, 16)"),
        (np.array([5, 99], np.int32), "indices[1] is 99, outside [0, 16)"),
    ],
)
def test_index_errors_write_nothing(gather_rows, indices, text):
    array = make((16, 3), "float32")
    out = poisoned((len(indices), 3), "float32")
    before = out.tobytes()
    for call in (
        lambda: gather_rows(array, indices),
        lambda: gather_rows(array, indices, out=out),
        lambda: gather_rows([make((99, 3), "float32"), array], indices, out=[out, out.copy()]),
    ):
        with pytest.raises(IndexError) as caught:
            call()
        assert str(caught.value) == f"gather_rows: {text}"
    assert out.tobytes() == before


def test_late_index_error_writes_nothing(gather_rows):
    """Large enough for threads, and the bad index is the last."""
    array = make((1000, 64), "float64")
    indices = np.random.default_rng(0).integers(0, 1000, 50_000)
    indices[-1] = 1000
    out = poisoned((50_000, 64), "float64")
    before = out.copy()
    with pytest.raises(IndexError, match=r"indices\[49999\] is 1000, outside \[0, 1000\)"):
        gather_rows(array, indices, out=out)
    assert (out.view(np.uint8) == before.view(np.uint8)).all()


ARRAY = np.ones((16, 3), np.float32)
BAD_INPUTS = {
    "indices list": (TypeError, "indices", ARRAY, [1, 2]),
    "indices None": (TypeError, "indices", ARRAY, None),
    "indices int": ((TypeError, ValueError), "indices", ARRAY, 3),
    "indices slice": (TypeError, "indices", ARRAY, slice(0, 2)),
    "indices float": (ValueError, "indices", ARRAY, np.ones(2)),
    "indices bool": (ValueError, "indices", ARRAY, np.ones(16, bool)),
    "indices uint8": (ValueError, "indices", ARRAY, np.ones(2, np.uint8)),
    "indices uint64": (ValueError, "indices", ARRAY, np.ones(2, np.uint64)),
    "indices object": (ValueError, "indices", ARRAY, np.array([1, 2], object)),
    "indices rank 2": (ValueError, "indices", ARRAY, np.ones((2, 2), np.int64)),
    "indices rank 0": (ValueError, "indices", ARRAY, np.array(1)),
    "indices matrix": (ValueError, "indices", ARRAY, np.ones((1, 2), np.int64).view(np.matrix)),
    "indices big endian": (ValueError, "indices", ARRAY, np.array([1, 2], ">i8")),
    "arrays None": (TypeError, "arrays", None, np.array([1])),
    "arrays int": (TypeError, "arrays", 3, np.array([1])),
    "arrays str": (TypeError, "arrays", "abc", np.array([1])),
    "arrays dict": (TypeError, "arrays", {"a": ARRAY}, np.array([1])),
    "arrays generator": (TypeError, "arrays", (a for a in [ARRAY]), np.array([1])),
    "arrays nested": (TypeError, "arrays[1]", [ARRAY, [ARRAY]], np.array([1])),
    "arrays with None": (TypeError, "arrays[1]", [ARRAY, None], np.array([1])),
    "arrays of floats": (TypeError, "arrays[0]", [1.0, 2.0], np.array([1])),
    "array rank 0": (ValueError, "arrays", np.array(1.0), np.array([0])),
    "array of objects": (ValueError, "arrays", np.array([None, 1], object), np.array([0])),
    "array of records with objects": (ValueError, "arrays[0]", [np.zeros(2, [("a", "O")])], np.array([0])),
    "keyword": (TypeError, "", ARRAY, "keyword"),
}


@pytest.mark.parametrize(
    ("error", "text", "arrays", "indices"), [pytest.param(*case, id=name) for name, case in BAD_INPUTS.items()]
)
def test_bad_input(gather_rows, error, text, arrays, indices):
    with pytest.raises(error) as caught:
        if isinstance(indices, str):
            gather_rows(arrays, np.array([1]), axis=0)
        else:
            gather_rows(arrays, indices)
    assert text in str(caught.value)
    assert isinstance(indices, str) or str(caught.value).startswith("gather_rows: ")


ODD_ARRAYS = {
    "structured": np.array([(1, 2.5), (3, 4.5), (5, 6.5)], [("a", "i2"), ("b", "f8")]),
    "aligned struct": np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "datetime": np.array(["2020-01-01", "2021-01-01", "NaT"], "M8[D]"),
    "timedelta": np.array([1, 2, 3], "m8[s]"),
    "bytes": np.array([b"a", b"bcd", b""]),
    "unicode": np.array(["a", "bcd", ""]),
    "void": np.array([b"ab", b"cd", b"ef"], "V2"),
    "big endian": np.array([1, 2, 3], ">i4"),
    "big-endian float": np.array([1, 2, 3], ">f8"),
    "longdouble": np.array([1, 2, 3], np.longdouble),
    "matrix": np.arange(6.0).reshape(3, 2).view(np.matrix),
    "masked": np.ma.masked_array(np.arange(3.0), [True, False, False]),
    "unaligned": np.zeros(25, np.uint8)[1:].view(np.float64),
    "field of records": np.array([(1, 2.5), (3, 4.5), (5, 6.5)], [("a", "i1"), ("b", "f8")])["b"],
    "zero itemsize": np.zeros(3, "V0"),
}


@pytest.mark.parametrize("kind", ODD_ARRAYS)
def test_odd_arrays(gather_rows, kind):
    """The right rows, or a clear error."""
    array, indices = ODD_ARRAYS[kind], np.array([2, 0, 1, 2])
    try:
        got = gather_rows(array, indices)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("gather_rows: arrays")
    else:
        wanted = np.take(np.asarray(array), indices, axis=0)
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype and got.shape == wanted.shape


# ---- threads ----------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = fastrl.get_num_threads()
    yield fastrl.set_num_threads
    fastrl.set_num_threads(before)


def test_thread_count_changes_nothing(gather_rows, threads):
    rng = np.random.default_rng(0)
    arrays = [make((5000, 80), "float32"), make((5000, 17), "float64")[:, ::2], make((5000, 333), "uint8")]
    indices = rng.integers(0, 5000, 20_011)  # about 6 MB, 1.4 MB and 6 MB
    wanted = [array[indices] for array in arrays]
    for n in (1, 2, 3, 16):
        threads(n)
        for _ in range(3):
            for ours, theirs in zip(gather_rows(arrays, indices), wanted, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        out = [np.full_like(array, 7) for array in wanted]
        gather_rows(arrays, indices, out=out)
        for ours, theirs in zip(out, wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_set_num_threads(threads):
    threads(2)
    assert fastrl.get_num_threads() == 2
    threads(0)
    assert fastrl.get_num_threads() >= 1
    for bad, error in ((-1, ValueError), (10**6, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)):
        with pytest.raises(error, match="set_num_threads: n must be"):
            fastrl.set_num_threads(bad)


# ---- torch ------------------------------------------------------------------------------------------------------


def test_torch_dtypes_and_layouts(gather_rows, torch):
    indices = torch.tensor([4, 0, 4, 2])
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.complex64, torch.complex128,
    ):  # fmt: skip
        array = torch.arange(30).reshape(5, 3, 2).to(dtype)
        for view in (array, array.transpose(1, 2), array[:, ::2], array[:, 1]):
            got = gather_rows(view, indices)
            assert isinstance(got, torch.Tensor) and got.dtype == dtype
            assert torch.equal(got, view[indices])
    several = [torch.arange(12.0).reshape(6, 2), torch.arange(6)]
    got = gather_rows(several, indices.int())
    assert all(torch.equal(ours, array[indices]) for ours, array in zip(got, several, strict=True))
    out = torch.full((4, 2), torch.nan)
    assert gather_rows(several[0], indices, out=out) is out
    assert torch.equal(out, several[0][indices])


def test_torch_and_numpy_in_one_call(gather_rows, torch):
    """Each result is of the kind of its source; indices and out may be of either kind."""
    array, tensor = np.arange(12.0).reshape(6, 2), torch.arange(6)
    for indices in (np.array([5, 1]), torch.tensor([5, 1])):
        first, second = gather_rows([array, tensor], indices)
        assert type(first) is np.ndarray and isinstance(second, torch.Tensor)
        np.testing.assert_array_equal(first, array[[5, 1]])
        assert second.tolist() == [5, 1]
        out = torch.zeros(2, 2, dtype=torch.float64)
        assert gather_rows(array, indices, out=out) is out
        np.testing.assert_array_equal(out.numpy(), array[[5, 1]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["fake", "meta", "sparse", "negative bit", "conj", "quantized", "nested"])
def test_odd_tensors(gather_rows, torch, kind):
    from torch._subclasses.fake_tensor import FakeTensorMode

    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with FakeTensorMode():
        fake = torch.ones(2, 2)
    tensor, wanted = {
        "fake": (fake, None),
        "meta": (torch.ones(2, 2, device="meta"), None),
        "sparse": (values.to_sparse(), None),
        "negative bit": (torch._neg_view(-values), values),
        "conj": (torch.complex(values, values).conj(), torch.complex(values, -values)),
        "quantized": (torch.quantize_per_tensor(values, 1.0, 0, torch.quint8), None),
        "nested": (torch.nested.nested_tensor([values[0], values[1]]), None),
    }[kind]
    try:
        got = gather_rows(tensor, np.array([1, 0]))
    except (TypeError, ValueError) as error:
        assert str(error).startswith("gather_rows: arrays")
    else:
        assert wanted is not None, f"a {kind} tensor was accepted"
        assert torch.equal(got.resolve_conj(), wanted[[1, 0]])
    target = poisoned((2, 2), "float32")
    before = target.tobytes()
    if kind in ("fake", "meta", "sparse", "negative bit"):
        with pytest.raises((TypeError, ValueError), match=r"^gather_rows: out"):
            gather_rows(values, np.array([1, 0]), out=tensor)
    assert target.tobytes() == before


def test_grad(gather_rows, torch):
    """A tensor that requires grad is read (the result is detached), or refused; as out it is refused or written."""
    tensor = torch.arange(6.0).reshape(3, 2).requires_grad_()
    try:
        got = gather_rows(tensor, np.array([2, 0]))
    except (TypeError, ValueError) as error:
        assert str(error).startswith("gather_rows: arrays")
    else:
        assert not got.requires_grad and got.tolist() == [[4, 5], [0, 1]]


def test_out_tells_autograd(torch):
    """A backward pass that kept what `out` held raises, as with torch's own operations in place."""
    w, out = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3)
    loss = (w * out).sum()
    public_gather_rows([torch.zeros(4, 3)], torch.tensor([1, 3]), out=[out])
    assert out._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_public_function():
    """Whatever backend it chose."""
    assert fastrl.gather_rows is public_gather_rows
    array = make((10, 3), "float32")
    indices = np.array([9, 0])
    out = poisoned((2, 3), "float32")
    assert public_gather_rows(array, indices, out=out) is out
    np.testing.assert_array_equal(out, array[indices])
    np.testing.assert_array_equal(public_gather_rows(arrays=[array], indices=indices)[0], array[indices])
    with pytest.raises(TypeError):
        public_gather_rows(array, indices, out)


class Lying(list):
    """A list that says it has two items."""

    def __len__(self):
        return 2


def test_out_that_is_shorter_than_it_says(cpp):
    array, index = np.arange(6.0), np.array([1, 2])
    with pytest.raises(IndexError):
        cpp.gather_rows([array, array], index, out=Lying([np.zeros(2)]))
