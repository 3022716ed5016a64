"""Bad input of the scans: one text on every backend, and nothing written."""

import math
import re

import numpy as np
import pytest

from .bad_input import FLAGS, FLOATS, NUMBERS, OUTS, SHAPE, TE, VE, given, good, like, must_raise, new_out


def strided(buffer, steps):
    """A view from the middle of `buffer` on, with steps in items."""
    return np.lib.stride_tricks.as_strided(buffer[8:], SHAPE, [s * buffer.itemsize for s in steps])


def no_array(value):
    return TE, f"must be an array, got {type(value).__name__}", value


FLOAT_CASES = {
    "list": lambda first: no_array([[0.5] * 3] * 4),
    "tuple": lambda first: no_array(((0.5,) * 3,) * 4),
    "None": lambda first: no_array(None),
    "number": lambda first: no_array(1.0),
    "str": lambda first: no_array("rewards"),
    "class": lambda first: (TE, "must be an array, got type", np.ndarray),
    "float16": lambda first: (VE, "must have dtype float32 or float64, got float16", np.ones(SHAPE, np.float16)),
    "int64": lambda first: (VE, "must have dtype float32 or float64, got int64", np.ones(SHAPE, np.int64)),
    "bool": lambda first: (VE, "must have dtype float32 or float64, got bool", np.ones(SHAPE, bool)),
    "complex": lambda first: (VE, "must have dtype float32 or float64, got complex64", np.ones(SHAPE, np.complex64)),
}
LIKE_CASES = {
    "float64": lambda first: (VE, f"must have dtype float32 like {first}, got float64", np.ones(SHAPE)),
    "T + 1": lambda first: (VE, f"{like(SHAPE, first)}, got (5, 3)", np.ones((5, 3), np.float32)),
    "N + 1": lambda first: (VE, f"{like(SHAPE, first)}, got (4, 4)", np.ones((4, 4), np.float32)),
    "N = 1": lambda first: (VE, f"{like(SHAPE, first)}, got (4, 1)", np.ones((4, 1), np.float32)),
    "turned": lambda first: (VE, f"{like(SHAPE, first)}, got (3, 4)", np.ones((3, 4), np.float32)),
    "rank 0": lambda first: (VE, f"{like(SHAPE, first)}, got ()", np.ones((), np.float32)),
    "rank 1": lambda first: (VE, f"{like(SHAPE, first)}, got (4,)", np.ones(4, np.float32)),
    "rank 3": lambda first: (VE, f"{like(SHAPE, first)}, got (4, 3, 1)", np.ones((4, 3, 1), np.float32)),
}
FIRST_CASES = {
    "rank 0": (VE, "must have shape [T] or [T, N], got ()", np.ones((), np.float32)),
    "rank 3": (VE, "must have shape [T] or [T, N], got (4, 3, 1)", np.ones((4, 3, 1), np.float32)),
}


@pytest.mark.parametrize("op", FLOATS)
def test_arrays(kernels, op):
    first = FLOATS[op][0]
    for name in FLOATS[op]:
        cases = FLOAT_CASES | ({} if name == first else LIKE_CASES)
        for case, build in cases.items():
            if case == "None" and name == "next_values" and op in ("discounted_returns", "n_step_returns"):
                continue
            error, text, value = build(first)
            must_raise(kernels, op, good(op) | {name: value}, error, f"{name} {text}")
    for error, text, value in FIRST_CASES.values():
        must_raise(kernels, op, good(op) | {first: value}, error, f"{first} {text}")
    one_dim = good(op, (4,))
    one_dim[FLOATS[op][1]] = np.ones(5, np.float32)
    must_raise(kernels, op, one_dim, VE, f"{FLOATS[op][1]} {like((4,), first)}, got (5,)", new_out(op, (4,)))


@pytest.mark.parametrize("op", list(FLOATS)[1:])
def test_flags(kernels, op):
    first = FLOATS[op][0]
    for name in FLAGS[op]:
        for value in ([[False] * 3] * 4, False, 1, "mask", *([None] if name == "terminated" else [])):
            error, text, _ = no_array(value)
            must_raise(kernels, op, good(op) | {name: value}, error, f"{name} {text}")
        for dtype in ("complex64", "datetime64[s]", "<U1", "object"):
            text = f"{name} must have dtype bool, or an integer or float one, got {np.dtype(dtype)}"
            must_raise(kernels, op, good(op) | {name: np.zeros(SHAPE, dtype)}, VE, text)
        for shape in ((5, 3), (4, 4), (3, 4), (4,), (), (4, 3, 1)):
            text = f"{name} {like(SHAPE, first)}, got {shape}"
            must_raise(kernels, op, good(op) | {name: np.zeros(shape, bool)}, VE, text)


@pytest.mark.parametrize("op", list(FLOATS)[1:])
def test_flags_that_are_neither_0_nor_1(kernels, op):
    for name in FLAGS[op]:
        for t, n, value in ((0, 0, 2), (1, 2, 3), (3, 1, 255)):
            for place in (
                np.zeros(SHAPE, np.uint8),
                np.zeros((3, 4), np.uint8).T,
                np.zeros((8, 6), np.uint8)[::2, ::2],
            ):
                place[t, n] = value
                place[3, 2] = 7  # a later one
                text = f"{name}[{t}, {n}] is {value}, must be 0 or 1"
                must_raise(kernels, op, good(op) | {name: place}, VE, text)
        flat = np.array([0, 1, 0, 128], np.uint8)
        must_raise(
            kernels, op, good(op, (4,)) | {name: flat}, VE, f"{name}[3] is 128, must be 0 or 1", new_out(op, (4,))
        )
        for dtype in ("int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "float32", "float64"):
            values = (0.5, -1.0, np.inf, np.nan, 1.5) if dtype.startswith("float") else (2, np.iinfo(dtype).max)
            for value in values:
                flags = np.ones(SHAPE, dtype)
                flags[1, 2] = value
                flags[3, 0] = 3
                for place in (flags, np.asfortranarray(flags)):
                    text = f"{name}[1, 2] is {value!r}, must be 0 or 1".replace("np.", "")
                    must_raise(kernels, op, good(op) | {name: place}, VE, text)
        large = np.zeros((3, 300), np.uint8)
        large[2, 299] = 2
        text = f"{name}[2, 299] is 2, must be 0 or 1"
        must_raise(kernels, op, good(op, (3, 300)) | {name: large}, VE, text, new_out(op, (3, 300)))


@pytest.mark.parametrize("op", list(FLOATS)[1:])
def test_numbers(kernels, op):
    for name in NUMBERS[op]:
        for value in ("0.9", None, True, 1j, [0.9], np.ones(1), b"1", np.bool_(True), np.array(True)):
            got = "bool" if isinstance(value, np.ndarray) and value.ndim == 0 else type(value).__name__
            text = f"{name} must be a float, got {got}"
            must_raise(kernels, op, good(op) | {name: value}, TE, text)
        clip = name.endswith("clip")
        wanted = ">= 0" if clip else "in [0, 1]"
        for value in (-0.1, math.nan, -math.inf, *(() if clip else (1.0000001, math.inf, 2, 10**400))):
            shown = repr(math.inf if value == 10**400 else float(value))
            must_raise(kernels, op, good(op) | {name: value}, VE, f"{name} must be {wanted}, got {shown}")


def test_n(kernels):
    op = "n_step_returns"
    for value in (1.5, 2.0, "3", None, True, np.float64(3), np.array(3.0), [3], math.nan):
        got = "float" if isinstance(value, np.ndarray) else type(value).__name__
        must_raise(kernels, op, good(op) | {"n": value}, TE, f"n must be an int, got {got}")
    for value in (0, -1, -(10**30), np.int64(0)):
        must_raise(kernels, op, good(op) | {"n": value}, VE, f"n must be >= 1, got {value}")


def test_y_T(kernels):
    op = "reverse_affine_scan"
    for value in ("1", True, [1.0, 2.0, 3.0], 1j):
        must_raise(kernels, op, good(op) | {"y_T": value}, TE, f"y_T must be an array, got {type(value).__name__}")
    for shape in ((4,), (), (1,), (3, 1), (1, 3), SHAPE):
        text = f"y_T must have shape (3,) like a[0], got {shape}"
        must_raise(kernels, op, good(op) | {"y_T": np.zeros(shape, np.float32)}, VE, text)
    text = "y_T must have shape () like a[0], got (1,)"
    must_raise(kernels, op, good(op, (4,)) | {"y_T": np.zeros(1, np.float32)}, VE, text, new_out(op, (4,)))
    text = "y_T must have dtype float32 like a, got float64"
    must_raise(kernels, op, good(op) | {"y_T": np.zeros(3)}, VE, text)
    text = "y_T must have dtype float32 or float64, got int64"
    must_raise(kernels, op, good(op) | {"y_T": np.zeros(3, int)}, VE, text)


def bad_out(kernels, op, i, build, error, text, shape=SHAPE):
    """`build` makes out i of the op's; the others are good, and stay as they are."""
    kwargs, outs = good(op, shape), new_out(op, shape)
    outs[i] = build(kwargs, outs)
    before = [x.tobytes() if isinstance(x, np.ndarray) else None for x in outs]
    inputs = {name: x.tobytes() for name, x in kwargs.items() if isinstance(x, np.ndarray)}
    with pytest.raises(error) as caught:
        getattr(kernels.scans, op)(**kwargs, out=given(outs))
    assert str(caught.value) == f"{op}: {text}"
    assert [x.tobytes() if isinstance(x, np.ndarray) else None for x in outs] == before
    assert {name: x.tobytes() for name, x in kwargs.items() if isinstance(x, np.ndarray)} == inputs


def frozen(x):
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("op", FLOATS)
def test_out(kernels, op):
    first = FLOATS[op][0]
    for i in range(OUTS.get(op, 1)):
        name = f"out[{i}]" if op in OUTS else "out"
        last = op == "n_step_returns" and i == 2
        dtype = np.int64 if last else np.float32

        def fails(build, error, text, i=i, name=name):
            bad_out(kernels, op, i, build, error, f"{name} {text}")

        for shape in ((5, 3), (4, 4), (3, 4), (4,), (4, 3, 1), ()):
            fails(lambda k, o, s=shape, d=dtype: np.ones(s, d), VE, f"{like(SHAPE, first)}, got {shape}")
        for wrong in ("bool", "int32", "float16", "uint8", *(("float32", "float64") if last else ("int64",))):
            wanted = "int64" if last else "float32 or float64"
            fails(lambda k, o, w=wrong: np.ones(SHAPE, w), VE, f"must have dtype {wanted}, got {wrong}")
        if not last:
            fails(lambda k, o: np.ones(SHAPE), VE, f"must have dtype float32 like {first}, got float64")
        fails(lambda k, o, d=dtype: frozen(np.ones(SHAPE, d)), VE, "must be writable")
        for wrong in ([[0.0] * 3] * 4, "out", 3, *([None] if op in OUTS else [])):
            fails(lambda k, o, w=wrong: w, TE, f"must be an array, got {type(wrong).__name__}")
        for strides in ((0, 1), (1, 0), (0, 0), (1, 1), (2, 1), (1, 3), (1, -1)):
            fails(
                lambda k, o, s=strides, d=dtype: strided(np.zeros(20, d), s),
                VE,
                "must not overlap itself",
            )
        if i > 0 and not last:
            fails(lambda k, o: o[0], VE, "must not share memory with out[0]")
        for other in FLOATS[op] if not last else ():
            fails(lambda k, o, n=other: k[n], VE, f"must not share memory with {other}")


@pytest.mark.parametrize("op", FLOATS)
def test_out_that_shares_some_memory(kernels, op):
    """A view one step on, as values[1:] of values; and out that overlap each other by a row."""
    buffer = np.full((6, 3), 0.5, np.float32)
    name = FLOATS[op][1]
    outs = new_out(op)
    outs[0] = buffer[1:5]
    before = buffer.tobytes()
    for view in (buffer[:4], buffer[2:], buffer[3:0:-1]):
        if len(view) < 4:
            view = buffer[4:0:-1]
        with pytest.raises(ValueError) as caught:
            getattr(kernels.scans, op)(**(good(op) | {name: view}), out=given(outs))
        where = "out[0]" if op in OUTS else "out"
        assert str(caught.value) == f"{op}: {where} must not share memory with {name}"
    if op in OUTS:
        outs[1] = buffer[:4]
        with pytest.raises(ValueError, match=re.escape(f"{op}: out[1] must not share memory with out[0]")):
            getattr(kernels.scans, op)(**good(op), out=given(outs))
    assert buffer.tobytes() == before
    # Neighbours that do not touch are fine.
    outs = new_out(op)
    both = np.full((8, 3), 0.5, np.float32)
    outs[0] = both[4:]
    wanted = getattr(kernels.scans, op)(**(good(op) | {name: both[:4].copy()}))
    getattr(kernels.scans, op)(**(good(op) | {name: both[:4]}), out=given(outs))
    np.testing.assert_array_equal(both[4:], wanted[0] if op in OUTS else wanted)


@pytest.mark.parametrize("op", FLOATS)
def test_out_of_a_wrong_count(kernels, op):
    outs = new_out(op)
    before = [x.tobytes() for x in outs]
    if op in OUTS:
        count = OUTS[op]
        wrong = {"1 arrays": outs[:1], "0 arrays": [], f"{count + 1} arrays": [*outs, outs[0]], "ndarray": outs[0],
                 "str": "xy", "dict": {}}  # fmt: skip
        for got, out in wrong.items():
            with pytest.raises(ValueError) as caught:
                getattr(kernels.scans, op)(**good(op), out=out)
            assert str(caught.value) == f"{op}: out must be {count} arrays, got {got}"
        ours = list(new_out(op))  # a list is as good as a tuple
        assert getattr(kernels.scans, op)(**good(op), out=ours) is ours
        assert not any(np.isnan(x).any() for x in ours)
    else:
        for kind in (tuple, list):
            with pytest.raises(TypeError) as caught:
                getattr(kernels.scans, op)(**good(op), out=kind(outs))
            assert str(caught.value) == f"{op}: out must be an array, got {kind.__name__}"
    assert [x.tobytes() for x in outs] == before
