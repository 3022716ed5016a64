"""Fixtures of the kernel tests: the backends, a plain float64 oracle and an independent Philox 4x32-10."""

import importlib.util
import inspect
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from fastrl.kernels._core.backends import choose

from .backends import BACKENDS, check_installed, load_kernels
from .tree_calls import BAD_CALLS, BAD_CONSTRUCTIONS, ODD_CALLS

collect_ignore = [] if importlib.util.find_spec("torch") else ["test_cuda_heads.py"]


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
            for name in ("discounts", "layout", "pg_lam"):  # which the public functions take care of
                bound.arguments.pop(name, None)
            return function(*bound.arguments.values())

        return call


def _load_backend(name):
    """The tree, gather_rows and the scans by one backend."""
    from fastrl.kernels import SumTree, SumTreeReference, gather_rows_reference

    tree = type("SumTree", (SumTree,), {"_core_class": load_kernels("sum_tree", name).SumTreeCore})
    rows = None  # has no Numba version
    if name == "cpp":
        extension = load_kernels("gather_rows", name)

        def rows(arrays, indices, *, out=None):
            return extension.gather_rows(arrays, indices, out)

    elif name == "reference":
        tree, rows = SumTreeReference, gather_rows_reference
    return SimpleNamespace(name=name, SumTree=tree, gather_rows=rows, scans=Scans(load_kernels("scans", name)))


@pytest.fixture(scope="session", params=BACKENDS)
def backend_name(request):
    check_installed(request.param)
    return request.param


@pytest.fixture
def backend(request, backend_name, monkeypatch):
    """The kernels of one backend, which the public functions of the op of the test's folder call meanwhile."""
    served = choose(f"fastrl.kernels.{request.path.parent.name}")
    kernels = served.named(backend_name)
    monkeypatch.setattr(served, "cpu", kernels)
    return kernels


@pytest.fixture(scope="session")
def close(tolerance):
    """Sums of many float32 terms are compared with the largest of their array: rounding is relative to that."""

    def check(found, wanted):
        found, wanted = np.asarray(found), np.asarray(wanted)
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        t, scale = tolerance(found.dtype), max(1.0, np.abs(wanted).max(initial=0))
        np.testing.assert_allclose(found, wanted, rtol=t["rtol"], atol=t["rtol"] * scale)

    return check


@pytest.fixture(scope="session")
def kernels(backend_name):
    return _load_backend(backend_name)


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


@pytest.fixture
def compiled(torch):
    """`fastrl._C_cuda`, where it serves."""
    from fastrl import _backend

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if _backend.cuda_backend()[0] != "cuda":
        pytest.skip(_backend.cuda_backend()[1])
    return _backend._C_cuda


@pytest.fixture
def streams(torch, monkeypatch):
    """CPU tensors say that they are on a GPU, with this current stream; and which streams were waited for."""
    from torch.overrides import TorchFunctionMode

    class OnAGpu(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__self__", None) is torch.Tensor.is_cuda:
                return True
            return func(*args, **(kwargs or {}))

    seen = SimpleNamespace(current="first", captures=False, waited=[])

    def current_stream(device):
        name = seen.current
        return SimpleNamespace(synchronize=lambda: seen.waited.append(name))

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: seen.captures)
    with OnAGpu():
        yield seen


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
