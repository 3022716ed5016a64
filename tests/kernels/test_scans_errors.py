"""Bad input to the scans: the same text on every backend, and nothing written to out."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

SHAPE = (4, 3)
FLOATS = {
    "reverse_affine_scan": ("a", "b"),
    "gae": ("rewards", "values", "next_values"),
    "discounted_returns": ("rewards", "next_values"),
    "lambda_returns": ("rewards", "next_values"),
    "n_step_returns": ("rewards", "next_values"),
    "vtrace": ("rewards", "values", "next_values", "log_rhos"),
    "off_policy_returns": ("rewards", "q_values", "next_state_values", "traces"),
}
FLAGS = dict.fromkeys(FLOATS, ("terminated", "truncated", "mask")) | {
    "reverse_affine_scan": (),
    "n_step_returns": ("terminated", "truncated", "cut", "mask"),
}
NUMBERS = {op: {"gamma": 0.9} for op in FLOATS} | {
    "reverse_affine_scan": {},
    "gae": {"gamma": 0.9, "lam": 0.8},
    "lambda_returns": {"gamma": 0.9, "lam": 0.8},
    "vtrace": {"gamma": 0.9, "lam": 0.8, "rho_clip": 1.0, "c_clip": 1.0, "pg_rho_clip": 1.0},
}
OUTS = {"gae": 2, "vtrace": 2, "n_step_returns": 3}
TE, VE = TypeError, ValueError


def good(op, shape=SHAPE):
    kwargs = {name: np.full(shape, 0.5, np.float32) for name in FLOATS[op]}
    kwargs |= {name: np.zeros(shape, bool) for name in FLAGS[op]}
    kwargs |= NUMBERS[op]
    return kwargs | ({"n": 2} if op == "n_step_returns" else {})


def new_out(op, shape=SHAPE, dtype=np.float32):
    """A list, of poisoned arrays."""
    outs = [np.full(shape, np.nan, dtype) for _ in range(OUTS.get(op, 1))]
    if op == "n_step_returns":
        outs[2] = np.full(shape, -7)
    return outs


def given(outs):
    return tuple(outs) if len(outs) > 1 else outs[0]


def strided(buffer, steps):
    """A view from the middle of `buffer` on, with steps in items."""
    return np.lib.stride_tricks.as_strided(buffer[8:], SHAPE, [s * buffer.itemsize for s in steps])


def must_raise(kernels, op, kwargs, error, text, outs=None):
    """Without out and with it, and then not a byte of it changes."""
    for targets in (None, outs if outs is not None else new_out(op)):
        arrays = [x for x in targets or () if isinstance(x, np.ndarray)]
        before = [x.tobytes() for x in arrays]
        with pytest.raises(error) as caught:
            getattr(kernels.scans, op)(**kwargs, **({} if targets is None else {"out": given(targets)}))
        assert str(caught.value) == f"{op}: {text}"
        assert type(caught.value) is error
        assert [x.tobytes() for x in arrays] == before


def like(shape, first):
    return f"must have shape {shape} like {first}"


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


# ---- out --------------------------------------------------------------------------------------------------------


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


# ---- torch, and kinds that do not mix -----------------------------------------------------------------------------


def tensors(torch, kwargs):
    return {name: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x for name, x in kwargs.items()}


@pytest.mark.parametrize("op", FLOATS)
def test_kinds_do_not_mix(kernels, torch, op):
    first, names = FLOATS[op][0], [*FLOATS[op][1:], *FLAGS[op]]
    for name in names:
        text = f"{name} must be a numpy.ndarray like {first}, got a torch.Tensor"
        must_raise(kernels, op, good(op) | {name: tensors(torch, good(op))[name]}, TE, text)
        text = f"{name} must be a torch.Tensor like {first}, got a numpy.ndarray"
        outs = [torch.from_numpy(x) for x in new_out(op)]
        must_raise(kernels, op, tensors(torch, good(op)) | {name: good(op)[name]}, TE, text, outs)
    for i in range(OUTS.get(op, 1)):
        where = f"out[{i}]" if op in OUTS else "out"
        outs = new_out(op)
        poison = [x.tobytes() for x in outs]
        mixed = [torch.from_numpy(x) if k == i else x for k, x in enumerate(outs)]
        with pytest.raises(TypeError) as caught:
            getattr(kernels.scans, op)(**good(op), out=given(mixed))
        assert str(caught.value) == f"{op}: {where} must be a numpy.ndarray like {first}, got a torch.Tensor"
        assert [x.tobytes() for x in outs] == poison
    if op == "reverse_affine_scan":
        text = "y_T must be a numpy.ndarray like a, got a torch.Tensor"
        must_raise(kernels, op, good(op) | {"y_T": torch.ones(3)}, TE, text)


@pytest.mark.parametrize("op", FLOATS)
def test_tensors(kernels, torch, op):
    from torch._subclasses.fake_tensor import FakeTensorMode

    first = FLOATS[op][0]
    with FakeTensorMode():
        fake = torch.ones(SHAPE)
    floats = "must have dtype float32 or float64, got"
    for name in FLOATS[op]:
        kwargs = tensors(torch, good(op))
        cases = [
            (f"{floats} float16", torch.ones(SHAPE, dtype=torch.float16)),
            (f"{floats} bfloat16", torch.ones(SHAPE, dtype=torch.bfloat16)),
            (f"{floats} int64", torch.ones(SHAPE, dtype=torch.int64)),
            ("has no data (a fake, meta or sparse tensor?)", fake),
            ("has no data (a fake, meta or sparse tensor?)", torch.ones(SHAPE).to_sparse()),
            (
                "must not be a lazily negated or conjugated view: call resolve_neg() / resolve_conj()",
                torch._neg_view(torch.ones(SHAPE)),
            ),
        ]
        if name != first:
            cases.append((f"must have dtype float32 like {first}, got float64", torch.ones(SHAPE).double()))
            cases.append((f"{like(SHAPE, first)}, got (3, 4)", torch.ones(3, 4)))
        for text, value in cases:
            outs = [torch.from_numpy(x) for x in new_out(op)]
            before = [x.numpy().tobytes() for x in outs]
            must_raise(kernels, op, kwargs | {name: value}, VE, f"{name} {text}", outs)
            assert [x.numpy().tobytes() for x in outs] == before
        # A meta tensor has no data, or is not on the CPU; either way the argument is named.
        with pytest.raises(ValueError, match=rf"^{op}: {name} "):
            getattr(kernels.scans, op)(**(kwargs | {name: torch.ones(SHAPE, device="meta")}))
    for name in FLAGS[op]:
        flags = torch.zeros(SHAPE, dtype=torch.uint8)
        flags[2, 1] = 5
        text = f"{name}[2, 1] is 5, must be 0 or 1"
        outs = [torch.from_numpy(x) for x in new_out(op)]
        must_raise(kernels, op, tensors(torch, good(op)) | {name: flags}, VE, text, outs)
        assert all((x == -7).all() if x.dtype == torch.int64 else x.isnan().all() for x in outs)


def test_producers_do_not_mix(kernels):
    class Producer:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    class Elsewhere(Producer):
        def __dlpack_device__(self):
            return (2, 0)

    class Broken(Producer):
        def __dlpack__(self, **kwargs):
            raise RuntimeError("cannot export")

    kwargs = good("gae")
    values = kwargs["values"]
    for value, error, text in (
        (Producer(values), TE, "must be a numpy.ndarray like rewards, got a Producer"),
        (Elsewhere(values), VE, "must be on cpu, got DLPack device 2:0"),
        (Broken(values), VE, "could not be read through DLPack (Broken)"),
    ):
        must_raise(kernels, "gae", kwargs | {"values": value}, error, f"values {text}")


# ---- odd but not plainly wrong: a right answer or a clear error, the same on every backend --------------------------

ONE = np.ones(SHAPE, np.float32)
BAD_FLAGS = np.full(SHAPE, 2, np.uint8)
ODD = {
    "gamma int": ("gae", {"gamma": 1}),
    "gamma np.float32": ("gae", {"gamma": np.float32(0.9)}),
    "gamma np.float16": ("gae", {"gamma": np.float16(0.9)}),
    "gamma np.int8": ("gae", {"gamma": np.int8(1)}),
    "gamma Fraction": ("gae", {"gamma": Fraction(9, 10)}),
    "gamma -0.0": ("gae", {"gamma": -0.0}),
    "lam tiny": ("gae", {"lam": 5e-324}),
    "rho_clip huge": ("vtrace", {"rho_clip": 10**400}),
    "c_clip inf": ("vtrace", {"c_clip": math.inf}),
    "pg_rho_clip 0": ("vtrace", {"pg_rho_clip": 0}),
    "n np.int64": ("n_step_returns", {"n": np.int64(3)}),
    "n np.uint8": ("n_step_returns", {"n": np.uint8(3)}),
    "n huge": ("n_step_returns", {"n": 10**30}),
    "y_T int": ("reverse_affine_scan", {"y_T": 3}),
    "y_T nan": ("reverse_affine_scan", {"y_T": math.nan}),
    "y_T huge": ("reverse_affine_scan", {"y_T": 10**400}),
    "y_T minus huge": ("reverse_affine_scan", {"y_T": -(10**400)}),
    "y_T np.float64": ("reverse_affine_scan", {"y_T": np.float64(0.1)}),
    "y_T strided": ("reverse_affine_scan", {"y_T": np.arange(9, dtype=np.float32)[::-3]}),
    "y_T broadcast": ("reverse_affine_scan", {"y_T": np.broadcast_to(np.float32(2), 3)}),
    "big endian": ("gae", {"values": ONE.astype(">f4")}),
    "masked array": ("gae", {"values": np.ma.masked_array(ONE, ONE > 0)}),
    "matrix": ("gae", {"values": ONE.view(np.matrix)}),
    "record field": ("gae", {"values": np.zeros(SHAPE, [("x", "i1"), ("y", "f4")])["y"]}),
    "longdouble": ("gae", {"values": np.ones(SHAPE, np.longdouble)}),
    "object": ("gae", {"values": np.ones(SHAPE, object)}),
    "str array": ("gae", {"values": np.full(SHAPE, "a")}),
    "17 dimensions": ("gae", {"values": np.ones((1,) * 17, np.float32)}),
    "17 dimensions first": ("gae", {"rewards": np.ones((1,) * 17, np.float32)}),
    "same array twice": ("gae", {"values": ONE, "next_values": ONE}),
    "flags of another byte order": ("gae", {"terminated": np.zeros(SHAPE, ">u2")}),
    # Several at once: the first in the order of the checks.
    "two bad dtypes": ("gae", {"values": np.ones(SHAPE), "next_values": np.ones(SHAPE, int)}),
    "dtype and shape": ("gae", {"values": np.ones((2, 2))}),
    "flags and gamma": ("gae", {"terminated": BAD_FLAGS, "gamma": 2.0}),
    "flags, mask and cut": ("n_step_returns", {"truncated": BAD_FLAGS, "mask": BAD_FLAGS, "cut": BAD_FLAGS}),
    "mask and cut": ("n_step_returns", {"mask": BAD_FLAGS, "cut": BAD_FLAGS}),
    "gamma and mask": ("gae", {"gamma": -1, "mask": [1]}),
    "lam and truncated": ("gae", {"lam": -1, "truncated": [1]}),
    "next_values and gamma": ("discounted_returns", {"gamma": -1, "next_values": [1]}),
    "n and cut": ("n_step_returns", {"n": 0, "cut": [1]}),
    "log_rhos and flags": ("vtrace", {"log_rhos": [1], "terminated": [1]}),
    "clips": ("vtrace", {"pg_rho_clip": -1, "rho_clip": -1, "c_clip": "x", "mask": [1]}),
    "traces and terminated": ("off_policy_returns", {"traces": [1], "terminated": [1]}),
    "flag of value 2 and bad out": ("gae", {"terminated": BAD_FLAGS, "out": (ONE, ONE)}),
    "every second column": ("gae", {"rewards": np.ones((4, 6), np.float32)[:, ::2]}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_input(other, reference, oracle, tolerance, case):
    op, changes = ODD[case]

    def run(backend):
        try:
            result = getattr(backend.scans, op)(**(good(op) | changes))
        except Exception as error:
            return type(error), str(error)
        return result

    theirs, ours = run(reference), run(other)
    if isinstance(theirs, tuple) and isinstance(theirs[0], type):
        assert ours == theirs
        return
    for x, y in zip(*[r if isinstance(r, tuple) else (r,) for r in (ours, theirs)], strict=True):
        assert x.dtype == y.dtype and type(x) is type(y)
        np.testing.assert_allclose(x, y, **({} if x.dtype == np.int64 else tolerance(x.dtype)))


def test_out_interleaved_with_an_input(other, reference):
    """No item is shared, though their ranges overlap: taken or refused alike."""
    found = []
    for backend in (reference, other):
        buffer = np.full((4, 6), 0.5, np.float32)
        kwargs = good("discounted_returns") | {"rewards": buffer[:, ::2]}
        try:
            backend.scans.discounted_returns(**kwargs, out=buffer[:, 1::2])
            found.append(buffer.tobytes())
        except ValueError as error:
            found.append(str(error))
    assert found[0] == found[1]


@pytest.mark.parametrize("op", FLOATS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 0)], ids=str)
def test_empty_arrays_are_checked_too(kernels, op, shape):
    result = getattr(kernels.scans, op)(**good(op, shape))
    assert all(x.shape == shape for x in (result if op in OUTS else (result,)))
    outs = new_out(op, shape)
    assert getattr(kernels.scans, op)(**good(op, shape), out=given(outs)) is not None
    bad = np.zeros((1, *shape[1:]), np.float32)
    text = f"{FLOATS[op][1]} {like(shape, FLOATS[op][0])}, got {bad.shape}"
    must_raise(kernels, op, good(op, shape) | {FLOATS[op][1]: bad}, VE, text, outs)
    if "gamma" in NUMBERS[op]:
        must_raise(kernels, op, good(op, shape) | {"gamma": 2.0}, VE, "gamma must be in [0, 1], got 2.0", outs)
