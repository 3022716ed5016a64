"""What random calls are drawn with, and how their results are compared with plain float64."""

import numpy as np
import pytest

import fastrl

from ..scans import problems

try:
    import torch
except ImportError:  # what is compared with autograd is skipped
    torch = None

TOL = {"float32": 1e-5, "float64": 1e-12}  # tests/conftest.py's
LAYOUTS = ("C", "batch-major", "unaligned", "every second row", "every second column", "reversed rows")


def size(rng, most):
    """Small as a rule; around powers of two, and now and then large."""
    kind = rng.integers(10)
    return int(
        rng.integers(1, 9) if kind < 6 else rng.choice([15, 16, 17, 31, 33]) if kind < 9 else rng.integers(1, most)
    )


def laid_out(rng, x):
    """The values of x in some layout of memory."""
    x = np.asarray(x)
    if x.ndim == 2:
        return problems.laid_out(x, str(rng.choice(LAYOUTS)))
    return x if rng.integers(2) else np.repeat(x, 2, 0)[::2]


def same(found, wanted, terms=1.0):
    """NaN and infinities where they belong, the rest within rounding of the largest term of the array."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    if found.dtype.kind in "iub":
        np.testing.assert_array_equal(found, wanted)
        return
    limit = np.finfo(found.dtype).max
    with np.errstate(over="ignore"):
        wanted = np.where(np.abs(wanted) > limit, np.copysign(np.inf, wanted), wanted)
    finite = np.isfinite(wanted)
    scale = max(1.0, terms, np.abs(wanted[finite]).max(initial=0.0))
    tolerance = TOL[str(found.dtype)]
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * scale)


def compare(call, wanted, terms=1.0):
    """The function that makes the call and compares all of its results."""

    def check():
        found = call()
        found = found if isinstance(found, (tuple, list)) else (found,)
        assert len(found) == len(wanted)
        for got, right in zip(found, wanted, strict=True):
            same(got.detach() if hasattr(got, "detach") else got, right, terms)

    return check


def with_gradients(call, exact, arrays, shared=(), **options):
    """Results and gradients of `call(*arrays)` against those of `exact(*float64 tensors)`, by autograd.

    The gradients are those of a sum of the results, weighted one by one.
    """

    need_torch()

    def run(function, dtype):
        tensors = [torch.from_numpy(np.array(x)).to(dtype or torch.from_numpy(np.array(x)).dtype) for x in arrays]
        tensors = [t.requires_grad_() for t in tensors]
        results = function(*tensors)
        results = results if isinstance(results, tuple) else (results,)
        loss = sum((r * torch.cos(torch.arange(r.numel(), dtype=r.dtype)).reshape(r.shape)).nansum() for r in results)
        return [r.detach().numpy() for r in results], [g.numpy() for g in torch.autograd.grad(loss, tensors)]

    wanted, gradients = run(exact, torch.float64)
    plain = [laid_out(np.random.default_rng(len(arrays[0])), x) for x in arrays]

    def check():
        compare(lambda: call(*plain), wanted, **options)()
        found, found_gradients = run(call, None)
        compare(lambda: found, wanted, **options)()
        compare(lambda: found_gradients, gradients, **options)()

    return check


def normals(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def drawn_dtype(rng):
    return np.float32 if rng.integers(2) else np.float64


def need_torch():
    if torch is None:
        pytest.skip("torch, with whose gradients this op's are compared, is not installed")


def tensor(x):
    need_torch()
    return torch.from_numpy(np.array(x)).double()


def like(x, other):
    return torch.from_numpy(np.array(x)) if hasattr(other, "detach") else x


def generator_at(rng):
    seed = int(rng.integers(2**64, dtype=np.uint64))
    counter = (0, 3, 0, 5, 2**32 - 2, 2**64 - 2)[rng.integers(6)]

    def make():
        generator = fastrl.Generator(0)
        generator.load_state_dict({"seed": seed, "counter": counter})
        return generator

    return seed, counter, make
