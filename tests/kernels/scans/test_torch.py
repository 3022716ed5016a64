"""Gradients of reverse_affine_scan, tensors, and other kinds of arrays."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fastrl.kernels import scans as public

from .problems import FLAGGED, FLOATS, OPS, as_tuple, call, dtypes_of, problem, same_bits, to_torch, weights


@pytest.mark.parametrize("dims", [(1,), (5,), (4, 3), (70, 1)], ids=str)
@pytest.mark.parametrize("last", ["none", "number", "array"])
def test_gradients(torch, dims, last):
    a, b = weights(torch, *dims), weights(torch, *dims)
    if last == "array":
        y_T = weights(torch, *dims[1:], 1)[..., 0].detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(public.reverse_affine_scan, (a, b, y_T))
    else:
        y_T = None if last == "none" else 0.5
        assert torch.autograd.gradcheck(lambda a, b: public.reverse_affine_scan(a, b, y_T), (a, b))


@pytest.mark.parametrize("dims", [(0, 3), (3, 0)], ids=str)
def test_gradients_of_empty_arrays(torch, dims):  # which gradcheck does not take
    a, b, y_T = weights(torch, *dims), weights(torch, *dims), weights(torch, *dims[1:])
    public.reverse_affine_scan(a, b, y_T).sum().backward()
    assert a.grad.shape == b.grad.shape == dims
    assert y_T.grad.tolist() == [0.0] * dims[1]


@pytest.mark.parametrize("wants", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_of_one_input(torch, wants):
    dims = ((5, 2), (5, 2), (2,))
    a, b, y_T = (weights(torch, *d).detach().requires_grad_(w) for d, w in zip(dims, wants, strict=True))
    assert torch.autograd.gradcheck(public.reverse_affine_scan, (a, b, y_T))
    public.reverse_affine_scan(a, b, y_T).sum().backward()
    assert [x.grad is not None for x in (a, b, y_T)] == list(wants)


def test_gradients_of_views_and_long_arrays(torch):
    a, b = weights(torch, 3, 8), weights(torch, 8, 6)
    assert torch.autograd.gradcheck(lambda a, b: public.reverse_affine_scan(a.T, b[:, ::2]), (a, b))
    for dims in ((1030, 1), (3, 300)):
        a, b, g = (weights(torch, *dims).detach() for _ in range(3))
        y_T = torch.zeros(dims[1:], dtype=torch.float64)
        ours = [x.clone().requires_grad_() for x in (a, b, y_T)]
        public.reverse_affine_scan(*ours).backward(g)
        theirs = [x.clone().requires_grad_() for x in (a, b, y_T)]
        y, rows = theirs[2], []
        for t in reversed(range(dims[0])):
            y = theirs[1][t] + theirs[0][t] * y
            rows.append(y)
        torch.stack(rows[::-1]).backward(g)
        for x, z in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x.grad, z.grad, rtol=1e-12, atol=1e-12)


def test_gradients_in_float32(torch):
    a, b = (weights(torch, 6, 2).detach().float().requires_grad_() for _ in range(2))
    public.reverse_affine_scan(a, b).sum().backward()
    assert a.grad.dtype == b.grad.dtype == torch.float32


def test_nan_behind_a_cut_has_no_gradient(torch):
    a, b = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64), torch.tensor([1.0, 2.0, np.nan], dtype=torch.float64)
    a.requires_grad_(), b.requires_grad_()
    y = public.reverse_affine_scan(a, b)
    y[:2].sum().backward()
    assert y[:2].tolist() == [2.0, 2.0]
    assert a.grad[0] == 2.0 and b.grad[:2].tolist() == [1.0, 1.5] and b.grad[2] == 0.0


def test_double_backward_raises(torch):
    a, b = weights(torch, 4), weights(torch, 4)
    (grad,) = torch.autograd.grad(public.reverse_affine_scan(a, b).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_the_end_where_a_gradient_is_wanted(torch):
    a, b = weights(torch, 4), weights(torch, 4)
    for y_T, kind in ((np.ones(()), "a torch.Tensor like a, got a numpy.ndarray"), ([1.0], "an array, got list")):
        for x in (a, a.detach()):
            with pytest.raises(TypeError) as caught:
                public.reverse_affine_scan(x, b.detach(), y_T)
            assert str(caught.value) == f"reverse_affine_scan: y_T must be {kind}"


def test_out_and_gradients(torch):
    a, b = weights(torch, 4), weights(torch, 4)
    out = torch.full((4,), torch.nan, dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError), match="out"):
        public.reverse_affine_scan(a, b, out=out)
    assert out.isnan().all()
    with torch.no_grad():
        assert public.reverse_affine_scan(a, b, out=out) is out
        assert torch.equal(out, public.reverse_affine_scan(a, b))


@pytest.mark.parametrize("op", OPS)
def test_out_tells_autograd(torch, op):
    """A backward pass that kept what `out` held raises, as with torch's own operations in place."""
    p = problem(op, 6, 2, seed=1)
    out = tuple(torch.ones(6, 2, dtype=getattr(torch, name)) for name in dtypes_of(op, "float32"))
    w = torch.ones(6, 2, requires_grad=True)
    loss = (w * out[0]).sum()
    getattr(public, op)(**to_torch(torch, p.kwargs), out=out if len(out) > 1 else out[0])
    assert all(x._version == 1 for x in out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():  # whose tensors have no version
        frozen = tuple(torch.ones_like(x) for x in out)
        getattr(public, op)(**to_torch(torch, p.kwargs), out=frozen if len(out) > 1 else frozen[0])
    same_bits(frozen, out)


@pytest.mark.parametrize("op", FLAGGED)
def test_no_gradient_flows_through_the_others(torch, op):
    kwargs = to_torch(torch, problem(op, 6, 2, seed=1).kwargs)
    wanted = getattr(public, op)(**kwargs)
    for name in FLOATS[op]:
        if kwargs.get(name) is not None:
            kwargs[name] = kwargs[name].clone().requires_grad_()
    got = getattr(public, op)(**kwargs)
    assert not any(x.requires_grad for x in as_tuple(got))
    same_bits(got, wanted)


class Producer:
    """Nothing but the DLPack protocol."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class NamespaceProducer(Producer):
    """A library of the array API standard: results come back through its from_dlpack."""

    @classmethod
    def from_dlpack(cls, array):
        return cls(np.from_dlpack(array))

    def __array_namespace__(self):
        return type(self)


@pytest.mark.parametrize("op", OPS)
def test_dlpack_producers(kernels, op):
    p = problem(op, 9, 4, seed=8)
    wanted = as_tuple(call(kernels, op, p.kwargs))
    for kind in (Producer, NamespaceProducer):
        kwargs = {name: kind(x) if isinstance(x, np.ndarray) else x for name, x in p.kwargs.items()}
        got = as_tuple(call(kernels, op, kwargs))
        assert all(type(x) is (NamespaceProducer if kind is NamespaceProducer else np.ndarray) for x in got)
        same_bits(tuple(getattr(x, "array", x) for x in got), wanted)
        targets = [np.full_like(x, -7) for x in wanted]
        out = tuple(kind(x) for x in targets)
        out = out if len(out) > 1 else out[0]
        assert call(kernels, op, kwargs, out=out) is out
        same_bits(tuple(targets), wanted)


def test_jax_arrays(kernels):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    p = problem("gae", 9, 4, seed=8)
    kwargs = {name: jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x for name, x in p.kwargs.items()}
    got = call(kernels, "gae", kwargs)
    assert all(isinstance(x, jax.Array) for x in got)
    same_bits(got, call(kernels, "gae", p.kwargs))
    out = jax.numpy.zeros((2, 9, 4))
    with pytest.raises(ValueError, match=r"gae: out\[0\] must be writable"):
        call(kernels, "gae", kwargs, out=(out[0], out[1]))
    assert not np.asarray(out).any()


@pytest.mark.parametrize("op", OPS)
def test_no_reference_is_kept_or_lost(kernels, op):
    """Also on the error paths."""
    p = problem(op, 9, 4, seed=8)
    arrays = [x for x in p.kwargs.values() if isinstance(x, np.ndarray)]
    out = tuple(np.empty(p.shape, name) for name in dtypes_of(op, "float32"))
    out = out if len(out) > 1 else out[0]
    arrays += as_tuple(out)
    bad = dict(p.kwargs)
    bad[FLOATS[op][1]] = np.zeros(3, np.float32)

    def calls():
        call(kernels, op, p.kwargs)
        call(kernels, op, p.kwargs, out=out)
        with pytest.raises(ValueError):
            call(kernels, op, bad)
        with pytest.raises((TypeError, ValueError)):
            call(kernels, op, p.kwargs, out=[None])

    calls()
    before = [sys.getrefcount(x) for x in arrays]
    for _ in range(20):
        calls()
    assert [sys.getrefcount(x) for x in arrays] == before


NUMPY_ONLY = """
    import sys
    import numpy as np
    from fastrl.kernels import gae, reverse_affine_scan
    x, none = np.ones(5), np.zeros(5, bool)
    gae(x, x, x, none, none, gamma=0.9, lam=0.9)
    reverse_affine_scan(x, x, 1.0)
    try:
        gae([1.0], x, x, none, none, gamma=0.9, lam=0.9)
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
