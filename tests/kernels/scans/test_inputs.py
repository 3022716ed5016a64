"""What the scans take besides float arrays and bool flags (other flags, None, numbers in arrays), and masked arrays."""

import inspect
import warnings

import numpy as np
import pytest

import fastrl
from fastrl.kernels import scans as public

OPS = (
    "reverse_affine_scan", "gae", "discounted_returns", "lambda_returns", "n_step_returns", "vtrace",
    "off_policy_returns",
)  # fmt: skip
FLAGGED = OPS[1:]
NUMBERS = {"gamma": 0.9, "lam": 0.8, "rho_clip": 1.0, "c_clip": 1.0, "pg_rho_clip": 1.0, "n": 2}
SIGNATURES = {op: list(inspect.signature(getattr(public, op)).parameters) for op in OPS}
FLAGS = {op: [x for x in ("terminated", "truncated", "mask", "cut") if x in SIGNATURES[op]] for op in OPS}
FLOATS = {
    op: [x for x in SIGNATURES[op] if x not in (*FLAGS[op], *NUMBERS, "out", "y_T", "discounts", "layout", "pg_lam")]
    for op in OPS
}
SHAPE = (4, 3)


def good(op, shape=SHAPE):
    kwargs = {name: np.full(shape, 0.5, np.float32) for name in FLOATS[op]}
    kwargs |= {name: np.zeros(shape, bool) for name in FLAGS[op]}
    return kwargs | {name: x for name, x in NUMBERS.items() if name in SIGNATURES[op]}


def new_out(op, shape=SHAPE):
    """Poisoned."""
    outs = [np.full(shape, np.nan, np.float32) for _ in range({"gae": 2, "vtrace": 2, "n_step_returns": 3}.get(op, 1))]
    if op == "n_step_returns":
        outs[2] = np.full(shape, -7)
    return outs


def must_raise(kernels, op, kwargs, error, text, shape=SHAPE):
    """And nothing is written."""
    outs = new_out(op, shape)
    before = [x.tobytes() for x in outs]
    with pytest.raises(error) as caught:
        getattr(kernels.scans, op)(**kwargs, out=tuple(outs) if len(outs) > 1 else outs[0])
    assert (type(caught.value), str(caught.value)) == (error, f"{op}: {text}")
    assert [x.tobytes() for x in outs] == before


DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")


def rollout(op, rng, shape=(7, 5)):
    kwargs = good(op, shape)
    for name in FLOATS[op]:
        kwargs[name] = rng.standard_normal(shape).astype(np.float32)
    for name in FLAGS[op]:
        kwargs[name] = rng.random(shape) < (0.9 if name == "mask" else 0.2)
    return kwargs


def results(found):
    return found if isinstance(found, tuple) else (found,)


def same(got, wanted):
    for x, y in zip(results(got), results(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("op", FLAGGED)
@pytest.mark.parametrize("shape", [(7, 5), (9,), (40, 1), (3, 70)], ids=str)
def test_flags_of_0_and_1_in_any_dtype(kernels, op, shape):
    kwargs = rollout(op, np.random.default_rng(1), shape)
    call = getattr(kernels.scans, op)
    wanted = call(**kwargs)
    for dtype in DTYPES:
        for order in "CF":
            as_numbers = {name: np.asarray(kwargs[name].astype(dtype), order=order) for name in FLAGS[op]}
            same(call(**(kwargs | as_numbers)), wanted)
    wide = {name: np.repeat(kwargs[name].astype(np.float32), 2, -1)[..., ::-2][..., ::-1] for name in FLAGS[op]}
    same(call(**(kwargs | wide)), wanted)
    minus = {name: np.where(kwargs[name], np.float32(1), np.float32(-0.0)) for name in FLAGS[op]}
    same(call(**(kwargs | minus)), wanted)


@pytest.mark.parametrize("op", FLAGGED)
def test_flags_of_0_and_1_in_torch_dtypes(kernels, op, torch):
    kwargs = rollout(op, np.random.default_rng(1))
    tensors = {k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in kwargs.items()}
    call = getattr(kernels.scans, op)
    wanted = call(**tensors)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.int32):
        same(call(**(tensors | {name: tensors[name].to(dtype) for name in FLAGS[op]})), wanted)
        bad = tensors[FLAGS[op][0]].to(dtype)
        bad[1, 2] = 3
        shown = "3.0" if dtype.is_floating_point else "3"
        with pytest.raises(ValueError) as caught:
            call(**(tensors | {FLAGS[op][0]: bad}))
        assert str(caught.value) == f"{op}: {FLAGS[op][0]}[1, 2] is {shown}, must be 0 or 1"


@pytest.mark.parametrize("op", FLAGGED)
def test_truncated_none_is_never(kernels, op):
    kwargs = rollout(op, np.random.default_rng(2))
    call = getattr(kernels.scans, op)
    never = np.zeros_like(kwargs["truncated"])
    same(call(**(kwargs | {"truncated": None})), call(**(kwargs | {"truncated": never})))
    # Of a bad flag the one that was given is named.
    bad = kwargs["terminated"].astype(np.uint8)
    bad[3, 3] = 2
    text = "terminated[3, 3] is 2, must be 0 or 1"
    must_raise(kernels, op, kwargs | {"truncated": None, "terminated": bad}, ValueError, text, (7, 5))


@pytest.mark.parametrize("op", FLAGGED)
def test_numbers_in_arrays_without_dimensions(kernels, op, torch):
    kwargs = rollout(op, np.random.default_rng(3))
    call = getattr(kernels.scans, op)
    numbers = {name: kwargs[name] for name in ("gamma", "lam", "rho_clip", "n") if name in kwargs}
    for name, value in numbers.items():
        kind = np.int64 if name == "n" else np.float64
        wanted = call(**kwargs)
        for given in (
            kind(value),
            np.array(value),
            torch.tensor(value, dtype=torch.int64 if name == "n" else torch.float64),
        ):
            same(call(**(kwargs | {name: given})), wanted)
    text = "gamma must be in [0, 1], got 1.5"
    must_raise(kernels, op, kwargs | {"gamma": np.array(1.5)}, ValueError, text, (7, 5))


@pytest.mark.parametrize("op", FLOATS)
def test_masked_arrays_are_refused(kernels, op):
    for name in (*FLOATS[op], *FLAGS[op]):
        kwargs = good(op)
        kwargs[name] = np.ma.masked_array(kwargs[name], np.eye(4, 3, dtype=bool))
        text = f"{name} must not be a masked array, whose mask would be ignored: give filled(value)"
        must_raise(kernels, op, kwargs, TypeError, text)
    outs = new_out(op)
    outs[0] = np.ma.masked_array(outs[0])
    where = "out[0]" if len(outs) > 1 else "out"
    with pytest.raises(TypeError) as caught:
        getattr(kernels.scans, op)(**good(op), out=tuple(outs) if len(outs) > 1 else outs[0])
    assert (
        str(caught.value)
        == f"{op}: {where} must not be a masked array, whose mask would be ignored: give filled(value)"
    )
    assert np.isnan(outs[0].data).all()


# ---- ratios in place of their logarithms ----------------------------------------------------------------------------


def vtrace(log_rhos):
    kwargs = rollout("vtrace", np.random.default_rng(4), np.shape(log_rhos))
    return fastrl.vtrace(**(kwargs | {"log_rhos": log_rhos}))


@pytest.fixture
def unseen(monkeypatch):
    monkeypatch.setattr(public, "_unseen_log_rhos", 100)


@pytest.mark.usefixtures("unseen")
def test_vtrace_warns_once_of_ratios():
    rhos = np.exp(0.1 * np.random.default_rng(0).standard_normal((8, 4))).astype(np.float32)
    with pytest.warns(UserWarning, match="vtrace: none of the 32 log_rhos is negative: are they ratios") as caught:
        vtrace(rhos)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vtrace(rhos)


@pytest.mark.usefixtures("unseen")
def test_vtrace_does_not_warn_of_logarithms(torch):
    log_rhos = 0.1 * np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vtrace(np.zeros((8, 4), np.float32))  # on policy
        vtrace(np.abs(log_rhos[:3, :1]))  # too few to say
        vtrace(log_rhos)
        vtrace(np.abs(log_rhos))  # they are known to be logarithms by now


@pytest.mark.usefixtures("unseen")
def test_vtrace_warns_of_tensors_too(torch):
    kwargs = rollout("vtrace", np.random.default_rng(4))
    tensors = {k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in kwargs.items()}
    with pytest.warns(UserWarning, match="log_rhos"):
        fastrl.vtrace(**(tensors | {"log_rhos": tensors["log_rhos"].exp()}))
