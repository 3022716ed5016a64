"""Kinds of arrays that do not mix, and input that is odd but not plainly wrong."""

import math
from fractions import Fraction

import numpy as np
import pytest

from .bad_input import FLAGS, FLOATS, NUMBERS, OUTS, SHAPE, TE, VE, given, good, like, must_raise, new_out


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
