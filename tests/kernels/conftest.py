"""Fixtures of the kernel tests: the backends, a plain float64 oracle and an independent Philox 4x32-10."""

import importlib
import inspect
import math
import os
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

BACKENDS = ("reference", "numba", "cpp")


class Scans:
    """The scans of one backend, which takes everything by position, by the signatures of the public functions."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, op):
        from fastrl.kernels import scans

        function, signature = getattr(self.backend, op), inspect.signature(getattr(scans, op))

        def call(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(*bound.arguments.values())

        return call


def _load_backend(name):
    """The kernels of one backend; a backend that is not installed skips (a missing C++ one fails if it is required)."""
    from fastrl.kernels import SumTree, SumTreeReference, gather_rows_reference
    from fastrl.kernels.scans import reference

    if name == "reference":
        return SimpleNamespace(
            name=name, SumTree=SumTreeReference, gather_rows=gather_rows_reference, scans=Scans(reference)
        )
    if name == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
        core = importlib.import_module("fastrl.kernels.sum_tree._numba").NumbaCore
        rows = None  # has no Numba version
        scans = Scans(importlib.import_module("fastrl.kernels.scans._numba"))
    else:
        try:
            extension = importlib.import_module("fastrl._C")
        except ImportError as error:
            if os.environ.get("FASTRL_REQUIRE_EXT", "0") not in ("", "0"):
                pytest.fail(f"FASTRL_REQUIRE_EXT is set, but the C++ extension does not import: {error}")
            pytest.skip(f"the C++ extension is not built: {error}")
        core = extension.SumTreeCore
        scans = Scans(extension)

        def rows(arrays, indices, *, out=None):
            return extension.gather_rows(arrays, indices, out)

    tree = type("SumTree", (SumTree,), {"_core_class": core})
    return SimpleNamespace(name=name, SumTree=tree, gather_rows=rows, scans=scans)


@pytest.fixture(scope="session", params=BACKENDS)
def kernels(request):
    return _load_backend(request.param)


@pytest.fixture(scope="session")
def reference():
    return _load_backend("reference")


@pytest.fixture(scope="session", params=[name for name in BACKENDS if name != "reference"])
def other(request):
    """A backend to compare with the reference one."""
    return _load_backend(request.param)


@pytest.fixture(scope="session")
def cpp():
    return _load_backend("cpp")


@pytest.fixture(scope="session", params=["reference", "cpp"])
def loader(request):
    """The backends with a loader of their own: the Python one, which Numba shares, and the C++ one."""
    return _load_backend(request.param)


@pytest.fixture(scope="session", params=["reference", "cpp"])
def gather_rows(request):
    return _load_backend(request.param).gather_rows


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


# ---- oracles ----------------------------------------------------------------------------------------------------


class OracleTree:
    """The priorities as a plain array; sums are exact (math.fsum or fractions), so no rounding is shared with ours."""

    def __init__(self, capacity, dtype=np.float32):
        self.priorities = np.zeros(capacity, dtype)

    def update(self, indices, priorities):
        priorities = np.broadcast_to(priorities, np.shape(indices))
        for index, priority in zip(np.ravel(indices).tolist(), np.ravel(priorities).tolist(), strict=True):
            leaf = self.priorities.dtype.type(priority)  # what is positive is normal
            self.priorities[index] = (
                np.finfo(leaf.dtype).tiny if priority > 0 and leaf < np.finfo(leaf.dtype).tiny else leaf
            )

    @property
    def total(self):
        return math.fsum(self.priorities.astype(np.float64).tolist())

    @property
    def min(self):
        positive = self.priorities[self.priorities > 0]
        return float(positive.min()) if positive.size else math.inf

    @property
    def max(self):
        return float(self.priorities.max(initial=0))

    def __len__(self):
        return int(np.count_nonzero(self.priorities))

    def boundaries(self):
        """The exact prefix sums sum(p[:i]), i = 0..capacity, as fractions."""
        sums = [Fraction(0)]
        for priority in self.priorities.tolist():
            sums.append(sums[-1] + Fraction(priority))
        return sums

    def find_slack(self):
        """How far, absolutely, a rounded search may misplace a boundary.

        A node sum has at most 4 roundings a level and the descent one subtraction a level, each of u = 2^-53 relative
        to at most the total: 5 L u total for L levels. The total that bounds the argument is one of those sums too.
        """
        levels = 1
        while 16**levels < len(self.priorities):
            levels += 1
        return Fraction(5 * levels, 2**53) * Fraction(self.total) * Fraction(1001, 1000)


def philox4x32(counter, key):
    """One block of Philox 4x32-10 (Salmon et al. 2011): 4 counter words and 2 key words in, 4 words out."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniforms(seed, counter, n):
    """The n doubles in [0, 1) that a call takes when its generator stands at (seed, counter)."""
    out = np.empty(n, np.float64)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for i in range(n):
        block = (counter + i) % 2**64
        x0, x1, _, _ = philox4x32((block & 0xFFFFFFFF, block >> 32, 0, 0), key)
        out[i] = (((x1 << 32) | x0) >> 11) * 2.0**-53
    return out


def chi_square_tail(observed, expected):
    """P(chi-square >= the statistic)."""
    assert np.min(expected) >= 5, "too few expected counts for a chi-square test"
    return scipy.stats.chisquare(observed, np.asarray(expected, np.float64)).pvalue


def random_priorities(rng, capacity, dtype=np.float32, zeros=0.3):
    """Log-uniform over six decades, a share of them zero."""
    priorities = (10.0 ** rng.uniform(-3, 3, capacity)).astype(dtype)
    priorities[rng.random(capacity) < zeros] = 0
    return priorities


def snapshot(tree):
    """Everything that state_dict holds, as comparable bytes."""
    state = tree.state_dict()
    priorities = np.asarray(state["priorities"])
    return (
        state["capacity"],
        state["dtype"],
        priorities.dtype.str,
        priorities.tobytes(),
        dict(state["generator"]),
        tree.total,
        tree.min,
        tree.max,
        len(tree),
    )


def outcome(call, *args):
    """What a call did, as a comparable value: ("returned", bits ...) or ("raised", type, text)."""
    try:
        result = call(*args)
    except Exception as error:
        return ("raised", type(error), str(error))
    return ("returned", *_bits(result))


def _bits(result):
    if result is None or isinstance(result, (bool, int, float, str)):
        return (type(result).__name__, repr(result))
    if isinstance(result, (tuple, list)):
        return (type(result).__name__, *(_bits(item) for item in result))
    kind = "tensor" if type(result).__module__.startswith("torch") else type(result).__name__
    array = result.detach().numpy() if kind == "tensor" else np.asarray(result)
    return (kind, array.dtype.str, array.shape, array.tobytes())


@pytest.fixture(scope="session")
def oracle():
    return SimpleNamespace(
        Tree=OracleTree,
        philox4x32=philox4x32,
        uniforms=uniforms,
        chi_square_tail=chi_square_tail,
        random_priorities=random_priorities,
        snapshot=snapshot,
        outcome=outcome,
    )


# ---- bad input --------------------------------------------------------------------------------------------------
# Calls on a tree of 16 leaves (float32, some zero). Each must raise what stands beside it and leave the tree as it was.

i64, f32 = (lambda *x: np.array(x, np.int64)), (lambda *x: np.array(x, np.float32))
IE, TE, VE = IndexError, TypeError, ValueError
NOT_INDICES = (
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint32",
    "uint64",
    "float32",
    "complex64",
    "object",
    "S1",
    "U1",
    "m8[s]",
)
NOT_PRIORITIES = ("bool", "int32", "int64", "uint8", "float16", "complex64", "object", "S1", "U1", "M8[s]")
FINITE = "must be finite and >= 0"

BAD_CALLS = {
    # indices
    "index too large": (IE, "indices[3] is 17, outside [0, 16)", lambda t: t.update(i64(1, 2, 3, 17), np.ones(4))),
    "index negative": (IE, "indices[1] is -1, outside [0, 16)", lambda t: t.update(i64(1, -1), f32(1, 1))),
    "index at capacity": (IE, "indices[0] is 16, outside [0, 16)", lambda t: t.update(i64(16), f32(1))),
    "index int64 max": (IE, "indices[0] is 9223372036854775807,", lambda t: t.update(i64(2**63 - 1), f32(1))),
    "index int64 min": (IE, "indices[0] is -9223372036854775808,", lambda t: t.update(i64(-(2**63)), f32(1))),
    "index wraps in int32": (IE, "indices[0] is 4294967297,", lambda t: t.update(i64(2**32 + 1), f32(1))),
    "index int32 too large": (IE, "indices[1] is 99", lambda t: t.update(np.array([1, 99], np.int32), f32(1, 1))),
    "first bad index is named": (IE, "indices[1] is 20", lambda t: t.update(i64(0, 20, -5, 30), f32(1, 1, 1, 1))),
    "last of many": (IE, "indices[4999] is 16", lambda t: t.update(np.r_[np.zeros(4999, np.int64), 16], 1.0)),
    "scalar index too large": (IE, "outside [0, 16)", lambda t: t.update(16, 1.0)),
    "scalar index negative": (IE, "outside [0, 16)", lambda t: t.update(-1, 1.0)),
    "scalar index huge": (IE, "", lambda t: t.update(10**30, 1.0)),
    "setitem index": (IE, "indices[1] is 16", lambda t: t.__setitem__(i64(0, 16), f32(1, 1))),
    "getitem index": (IE, "indices[1] is 16, outside [0, 16)", lambda t: t[i64(0, 16)]),
    "getitem negative": (IE, "indices[0] is -1, outside [0, 16)", lambda t: t[i64(-1)]),
    "getitem scalar": (IE, "outside [0, 16)", lambda t: t[16]),
    "getitem scalar negative": (IE, "outside [0, 16)", lambda t: t[-1]),
    "index list": (TE, "indices", lambda t: t.update([1, 2], f32(1, 1))),
    "index tuple": (TE, "indices", lambda t: t.update((1, 2), f32(1, 1))),
    "index None": (TE, "indices", lambda t: t.update(None, f32(1, 1))),
    "index str": (TE, "indices", lambda t: t.update("1", 1.0)),
    "index dict": (TE, "indices", lambda t: t.update({}, 1.0)),
    "index float": (TE, "indices", lambda t: t.update(1.0, 1.0)),
    "index set": (TE, "indices", lambda t: t.update({1}, 1.0)),
    "index range": (TE, "indices", lambda t: t.update(range(2), 1.0)),
    "index bytes": (TE, "indices", lambda t: t.update(b"12", 1.0)),
    "index class": (TE, "indices", lambda t: t.update(np.ndarray, 1.0)),
    "getitem list": (TE, "indices", lambda t: t[[1, 2]]),
    "getitem slice": (TE, "indices", lambda t: t[1:3]),
    "getitem tuple": (TE, "indices", lambda t: t[1, 2]),
    "getitem None": (TE, "indices", lambda t: t[None]),
    "getitem Ellipsis": (TE, "indices", lambda t: t[...]),
    "getitem float": (TE, "indices", lambda t: t[1.0]),
    "setitem slice": (TE, "indices", lambda t: t.__setitem__(slice(None), 1.0)),
    **{
        f"index dtype {dtype}": (VE, "indices", lambda t, dtype=dtype: t.update(np.ones(2, dtype), f32(1, 1)))
        for dtype in NOT_INDICES
    },
    "getitem dtype bool": (VE, "indices", lambda t: t[np.ones(16, bool)]),
    "getitem dtype float": (VE, "indices", lambda t: t[f32(1)]),
    "index rank 2": (VE, "indices", lambda t: t.update(np.ones((2, 2), np.int64), np.ones((2, 2), np.float32))),
    "index matrix": (VE, "indices", lambda t: t.update(i64([1, 2]).view(np.matrix), f32(1, 1))),
    "getitem rank 2": (VE, "indices", lambda t: t[np.ones((2, 2), np.int64)]),
    # priorities
    "priority nan": (VE, f"priorities[2] is nan, {FINITE}", lambda t: t.update(i64(1, 2, 3), f32(1, 2, np.nan))),
    "priority inf": (VE, f"priorities[0] is inf, {FINITE}", lambda t: t.update(i64(1, 2), f32(np.inf, 2))),
    "priority -inf": (VE, f"priorities[1] is -inf, {FINITE}", lambda t: t.update(i64(1, 2), f32(1, -np.inf))),
    "priority negative": (VE, f"priorities[1] is -1.0, {FINITE}", lambda t: t.update(i64(1, 2), f32(1, -1))),
    "priority tiny negative": (VE, "priorities[0] is -", lambda t: t.update(i64(1), np.array([-5e-324]))),
    "priority overflows float32": (VE, "priorities[0] is", lambda t: t.update(i64(1), np.array([1e39]))),
    "priority rounds to inf": (VE, "priorities[0] is", lambda t: t.update(i64(1), np.array([3.4028235677973366e38]))),
    "first bad priority is named": (VE, "priorities[1] is nan", lambda t: t.update(i64(0, 1, 2), f32(1, np.nan, -1))),
    "duplicate overwritten by a good one": (VE, "priorities[0] is nan", lambda t: t.update(i64(3, 3), f32(np.nan, 1))),
    "scalar priority nan": (VE, f"nan, {FINITE}", lambda t: t.update(3, float("nan"))),
    "scalar priority inf": (VE, f"inf, {FINITE}", lambda t: t.update(3, float("inf"))),
    "scalar priority negative": (VE, f"-1.0, {FINITE}", lambda t: t.update(3, -1.0)),
    "scalar priority overflows": (VE, "priorities", lambda t: t.update(3, 1e39)),
    "broadcast priority nan": (VE, "nan", lambda t: t.update(i64(1, 2), float("nan"))),
    "setitem priority": (VE, "priorities[1] is -2.0", lambda t: t.__setitem__(i64(0, 1), f32(1, -2))),
    "priority list": (TE, "priorities", lambda t: t.update(i64(1, 2), [1.0, 2.0])),
    "priority tuple": (TE, "priorities", lambda t: t.update(i64(1, 2), (1.0, 2.0))),
    "priority None": (TE, "priorities", lambda t: t.update(i64(1, 2), None)),
    "priority str": (TE, "priorities", lambda t: t.update(i64(1, 2), "1")),
    "priority complex": (TE, "priorities", lambda t: t.update(i64(1, 2), 1j)),
    **{
        f"priority dtype {dtype}": (VE, "priorities", lambda t, dtype=dtype: t.update(i64(1, 2), np.ones(2, dtype)))
        for dtype in NOT_PRIORITIES
    },
    "priority rank 2": (VE, "priorities", lambda t: t.update(i64(1, 2), np.ones((2, 1), np.float32))),
    "priority too short": (VE, "priorities", lambda t: t.update(i64(1, 2, 3), f32(1, 2))),
    "priority too long": (VE, "priorities", lambda t: t.update(i64(1, 2), f32(1, 2, 3))),
    "priorities but no indices": (VE, "priorities", lambda t: t.update(i64(), f32(1))),
    "update without priorities": (TE, "", lambda t: t.update(i64(1))),
    # update_from_td_errors
    "td index": (IE, "indices[1] is 16, outside [0, 16)", lambda t: td(t, i64(0, 16), f32(1, 1))),
    "td index negative": (IE, "indices[0] is -1, outside [0, 16)", lambda t: td(t, i64(-1, 99), f32(1, 1))),
    "td index and nan": (IE, "indices[0] is 99", lambda t: td(t, i64(99, 1), f32(1, np.nan))),
    "td index list": (TE, "indices", lambda t: td(t, [1], f32(1))),
    "td index scalar": (TE, "indices", lambda t: td(t, 1, f32(1))),
    "td index dtype": (VE, "indices", lambda t: td(t, f32(1), f32(1))),
    "td index rank": (VE, "indices", lambda t: td(t, i64([1]), f32(1))),
    "td nan": (VE, "td_errors[1] is nan, must be finite", lambda t: td(t, i64(2, 1, 0), f32(1, np.nan, np.inf))),
    "td inf": (VE, "td_errors[0] is inf, must be finite", lambda t: td(t, i64(2, 1), f32(np.inf, 1))),
    "td -inf": (VE, "td_errors[0] is -inf, must be finite", lambda t: td(t, i64(2, 1), np.array([-np.inf, 1]))),
    "td nan, overwritten": (VE, "td_errors[0] is nan", lambda t: td(t, i64(2, 2), f32(np.nan, 1))),
    "td list": (TE, "td_errors", lambda t: td(t, i64(1), [1.0])),
    "td None": (TE, "td_errors", lambda t: td(t, i64(1), None)),
    "td dtype int": (VE, "td_errors", lambda t: td(t, i64(1), i64(1))),
    "td dtype half": (VE, "td_errors", lambda t: td(t, i64(1), np.ones(1, np.float16))),
    "td rank": (VE, "td_errors", lambda t: td(t, i64(1), f32([1]))),
    "td too long": (VE, "td_errors", lambda t: td(t, i64(1), f32(1, 2))),
    "alpha nan": (VE, "alpha", lambda t: td(t, i64(1), f32(1), float("nan"))),
    "alpha inf": (VE, "alpha", lambda t: td(t, i64(1), f32(1), float("inf"))),
    "alpha negative": (VE, "alpha", lambda t: td(t, i64(1), f32(1), -0.5)),
    "alpha str": (TE, "alpha", lambda t: td(t, i64(1), f32(1), "0.6")),
    "alpha None": (TE, "alpha", lambda t: td(t, i64(1), f32(1), None)),
    "alpha array": (TE, "alpha", lambda t: td(t, i64(1), f32(1), f32(1))),
    "eps nan": (VE, "eps", lambda t: td(t, i64(1), f32(1), 0.6, float("nan"))),
    "eps negative": (VE, "eps", lambda t: td(t, i64(1), f32(1), 0.6, -1e-6)),
    "eps str": (TE, "eps", lambda t: td(t, i64(1), f32(1), 0.6, "0")),
    "td without alpha": (TE, "", lambda t: t.update_from_td_errors(i64(1), f32(1))),
    # find
    "find above total": (VE, "prefix_sums[1] is", lambda t: t.find(np.r_[0.0, np.nextafter(t.total, np.inf)])),
    "find negative": (VE, "prefix_sums[0] is -1.0", lambda t: t.find(np.array([-1.0, 0.0]))),
    "find nan": (VE, "prefix_sums[2] is nan", lambda t: t.find(np.array([0.0, 0.0, np.nan]))),
    "find inf": (VE, "prefix_sums[0] is inf", lambda t: t.find(np.array([np.inf]))),
    "find first bad is named": (VE, "prefix_sums[1] is nan", lambda t: t.find(np.array([0.0, np.nan, -1.0]))),
    "find scalar above": (VE, "", lambda t: t.find(t.total * 2)),
    "find scalar negative": (VE, "", lambda t: t.find(-1e-300)),
    "find scalar nan": (VE, "nan", lambda t: t.find(float("nan"))),
    "find list": (TE, "prefix_sums", lambda t: t.find([0.5])),
    "find None": (TE, "prefix_sums", lambda t: t.find(None)),
    "find str": (TE, "prefix_sums", lambda t: t.find("0")),
    "find dtype float16": (VE, "prefix_sums", lambda t: t.find(np.zeros(2, np.float16))),
    "find dtype int64": (VE, "prefix_sums", lambda t: t.find(np.zeros(2, np.int64))),
    "find dtype bool": (VE, "prefix_sums", lambda t: t.find(np.zeros(2, bool))),
    "find rank 2": (VE, "prefix_sums", lambda t: t.find(np.zeros((2, 2)))),
    # sampling
    "batch 0": (VE, "batch_size", lambda t: t.sample(0)),
    "batch -1": (VE, "batch_size", lambda t: t.sample(-1)),
    "batch 1.5": (TE, "batch_size", lambda t: t.sample(1.5)),
    "batch 2.0": (TE, "batch_size", lambda t: t.sample(2.0)),
    "batch str": (TE, "batch_size", lambda t: t.sample("4")),
    "batch None": (TE, "batch_size", lambda t: t.sample(None)),
    "batch array": (TE, "batch_size", lambda t: t.sample(i64(1, 2))),
    "batch huge": ((VE, MemoryError), "", lambda t: t.sample(2**62)),
    "batch beyond int64": ((VE, MemoryError), "", lambda t: t.sample(10**30)),
    "batch missing": (TE, "", lambda t: t.sample()),
    "without replacement, too many": (VE, "", lambda t: t.sample(len(t) + 1, replacement=False)),
    "without replacement, far too many": (VE, "", lambda t: t.sample(10**6, replacement=False)),
    "positional stratified": (TE, "", lambda t: t.sample(4, True)),
    "unknown keyword": (TE, "", lambda t: t.sample(4, replace=False)),
    "weighted batch 0": (VE, "batch_size", lambda t: t.sample_weighted(0, 0.4)),
    "weighted batch 1.5": (TE, "batch_size", lambda t: t.sample_weighted(1.5, 0.4)),
    "weighted batch huge": ((VE, MemoryError), "", lambda t: t.sample_weighted(2**62, 0.4)),
    "beta nan": (VE, "beta", lambda t: t.sample_weighted(4, float("nan"))),
    "beta inf": (VE, "beta", lambda t: t.sample_weighted(4, float("inf"))),
    "beta negative": (VE, "beta", lambda t: t.sample_weighted(4, -0.1)),
    "beta str": (TE, "beta", lambda t: t.sample_weighted(4, "0.4")),
    "beta None": (TE, "beta", lambda t: t.sample_weighted(4, None)),
    "beta complex": (TE, "beta", lambda t: t.sample_weighted(4, 1j)),
    "beta missing": (TE, "", lambda t: t.sample_weighted(4)),
    "normalize x": (VE, "normalize", lambda t: t.sample_weighted(4, 0.4, "x")),
    "normalize empty": (VE, "normalize", lambda t: t.sample_weighted(4, 0.4, normalize="")),
    "normalize None": (TE, "normalize", lambda t: t.sample_weighted(4, 0.4, None)),
    "normalize int": (TE, "normalize", lambda t: t.sample_weighted(4, 0.4, 1)),
}  # fmt: skip


def td(tree, indices, errors, alpha=0.6, eps=1e-6):
    return tree.update_from_td_errors(indices, errors, alpha, eps)


BAD_CONSTRUCTIONS = {
    "capacity 0": (VE, "capacity", lambda cls: cls(0)),
    "capacity -1": (VE, "capacity", lambda cls: cls(-1)),
    "capacity 2^31": (VE, "capacity", lambda cls: cls(2**31)),
    "capacity 2^64": (VE, "capacity", lambda cls: cls(2**64)),
    "capacity 1.5": (TE, "capacity", lambda cls: cls(1.5)),
    "capacity 16.0": (TE, "capacity", lambda cls: cls(16.0)),
    "capacity True": (TE, "capacity", lambda cls: cls(True)),
    "capacity str": (TE, "capacity", lambda cls: cls("16")),
    "capacity None": (TE, "capacity", lambda cls: cls(None)),
    "capacity list": (TE, "capacity", lambda cls: cls([16])),
    "capacity missing": (TE, "capacity", lambda cls: cls()),
    "dtype float16": (VE, "dtype", lambda cls: cls(16, dtype=np.float16)),
    "dtype int64": (VE, "dtype", lambda cls: cls(16, dtype=np.int64)),
    "dtype bool": (VE, "dtype", lambda cls: cls(16, dtype=np.bool_)),
    "dtype complex": (VE, "dtype", lambda cls: cls(16, dtype=np.complex64)),
    "dtype object": (VE, "dtype", lambda cls: cls(16, dtype=np.object_)),
    "dtype nonsense": ((TE, VE), "dtype", lambda cls: cls(16, dtype="nonsense")),
    "dtype 3": ((TE, VE), "dtype", lambda cls: cls(16, dtype=3)),
    "device nonsense": (VE, "device", lambda cls: cls(16, device="nonsense")),
    "device int": (TE, "device", lambda cls: cls(16, device=3)),
    "seed and generator": (VE, "generator", lambda cls: cls(16, seed=1, generator=_generator())),
    "generator wrong type": (TE, "generator", lambda cls: cls(16, generator=np.random.default_rng(0))),
    "seed negative": (VE, "seed", lambda cls: cls(16, seed=-1)),
    "seed 2^64": (VE, "seed", lambda cls: cls(16, seed=2**64)),
    "seed float": (TE, "seed", lambda cls: cls(16, seed=1.0)),
    "seed str": (TE, "seed", lambda cls: cls(16, seed="1")),
    "positional dtype": (TE, "", lambda cls: cls(16, np.float32)),
}  # fmt: skip


def _generator():
    from fastrl.kernels import Generator

    return Generator(1)


# Odd but not plainly wrong: a right answer or a clear error, the same on every backend.
ODD_CALLS = {
    "index 0-d": lambda t: t.update(np.array(3), 1.0),
    "index np.int64": lambda t: t.update(np.int64(3), 1.0),
    "index np.uint8": lambda t: t.update(np.uint8(3), 1.0),
    "index True": lambda t: t.update(True, 1.0),
    "getitem 0-d": lambda t: t[np.array(3)],
    "getitem np.int32": lambda t: t[np.int32(3)],
    "getitem True": lambda t: t[True],
    "priority 0-d": lambda t: t.update(3, np.array(2.0)),
    "priority 0-d for many": lambda t: t.update(i64(3, 4), np.array(2.0)),
    "priority int": lambda t: t.update(3, 2),
    "priority True": lambda t: t.update(3, True),
    "priority np.float32": lambda t: t.update(3, np.float32(2.0)),
    "priority np.float16": lambda t: t.update(3, np.float16(2.0)),
    "priority huge int": lambda t: t.update(3, 10**400),
    "priority one-element array for many": lambda t: t.update(i64(3, 4), f32(2)),
    "scalar index, array priority": lambda t: t.update(3, f32(2)),
    "scalar index, two priorities": lambda t: t.update(3, f32(2, 3)),
    "priority -0.0": lambda t: t.update(i64(3), f32(-0.0)),
    "priority underflows": lambda t: t.update(i64(3), np.array([1e-60])),
    "big-endian indices": lambda t: t.update(np.array([3, 4], ">i8"), f32(1, 2)),
    "big-endian priorities": lambda t: t.update(i64(3, 4), np.array([1, 2], ">f4")),
    "big-endian find": lambda t: t.find(np.array([0.0, 1.0], ">f8")),
    "masked array": lambda t: t.update(np.ma.masked_array(i64(3, 4), [True, False]), f32(1, 2)),
    "unaligned indices": lambda t: t.update(_unaligned(i64(3, 4)), f32(1, 2)),
    "unaligned priorities": lambda t: t.update(i64(3, 4), _unaligned(f32(1, 2))),
    "unaligned find": lambda t: t.find(_unaligned(np.array([0.0, 1.0]))),
    "longdouble priorities": lambda t: t.update(i64(3, 4), np.ones(2, np.longdouble)),
    "record array": lambda t: t.update(np.zeros(2, [("a", "i8")]), f32(1, 2)),
    "recarray field": lambda t: t.update(np.rec.array(np.zeros(2, [("b", "i4"), ("a", "i8")])).a, f32(1, 2)),
    "find int": lambda t: t.find(0),
    "find -0.0": lambda t: t.find(-0.0),
    "find np.float32": lambda t: t.find(np.float32(0.5)),
    "find 0-d": lambda t: t.find(np.array(0.5)),
    "find empty": lambda t: t.find(np.zeros(0)),
    "batch True": lambda t: t.sample(True),
    "batch np.int64": lambda t: t.sample(np.int64(4)),
    "batch 0-d": lambda t: t.sample(np.array(4)),
    "beta int": lambda t: t.sample_weighted(4, 1),
    "beta True": lambda t: t.sample_weighted(4, True),
    "beta np.float32": lambda t: t.sample_weighted(4, np.float32(1)),
    "stratified int": lambda t: t.sample(4, stratified=1),
    "stratified None": lambda t: t.sample(4, stratified=None),
    "replacement str": lambda t: t.sample(4, replacement="no"),
    "stratified without replacement": lambda t: t.sample(4, stratified=False, replacement=False),
    "td empty": lambda t: td(t, i64(), f32()),
    "td alpha int": lambda t: td(t, i64(3), f32(1), 1, 0),
    "td alpha 0": lambda t: td(t, i64(3, 4), f32(0, 5), 0.0, 0.0),
    "td alpha True": lambda t: td(t, i64(3), f32(1), True, 0.0),
    "td eps huge int": lambda t: td(t, i64(3), f32(1), 0.0, 10**400),
    "td zero": lambda t: td(t, i64(3), f32(0), 1.0, 0.0),
    "td unaligned": lambda t: td(t, _unaligned(i64(3, 4)), _unaligned(f32(1, 2)), 1.0, 0.0),
    "td keep_zeros int": lambda t: t.update_from_td_errors(i64(3), f32(1), 1.0, 0.0, keep_zeros=1),
    "getitem empty": lambda t: t[i64()],
    "update empty": lambda t: t.update(i64(), f32()),
    "update empty with a bad scalar": lambda t: t.update(i64(), float("nan")),
    "bad index and bad priority": lambda t: t.update(i64(1, 99), f32(np.nan, 1)),
    "bad index after bad priority": lambda t: t.update(i64(1, 2, 99), f32(1, np.nan, 1)),
    "two bad dtypes": lambda t: t.update(np.ones(2), np.ones(2, bool)),
}  # fmt: skip


def _unaligned(array):
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype)
    view[:] = array
    assert not view.flags.aligned
    return view


def _params(table):
    return [pytest.param(entry, id=name) for name, entry in table.items()]


@pytest.fixture(params=_params(BAD_CALLS))
def bad_call(request):
    return request.param


@pytest.fixture(params=_params(BAD_CONSTRUCTIONS))
def bad_construction(request):
    return request.param


@pytest.fixture(params=_params(ODD_CALLS))
def odd_call(request):
    return request.param


@pytest.fixture
def sixteen():
    """Builds the tree that the bad calls are made on."""

    def build(cls, dtype=np.float32):
        tree = cls(16, dtype=dtype, seed=5)
        tree.update(np.arange(0, 16, 2), np.arange(1, 9, dtype=np.float32) / 8)
        return tree

    return build
