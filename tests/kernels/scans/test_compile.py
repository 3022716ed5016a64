"""The scans inside torch.compile: registered ops with fake kernels, and the gradient of the affine scan."""

import numpy as np
import pytest

import fastrl

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's own compiler


def rollout(T=7, N=3, dtype=None):
    rng = np.random.default_rng(T + N)
    floats = [torch.from_numpy(rng.standard_normal((T, N))).to(dtype or torch.float32) for _ in range(4)]
    flags = [torch.from_numpy(rng.random((T, N)) < 0.2) for _ in range(3)]
    return floats, flags


def calls(floats, flags):
    (_, v, nv, x), (terminated, truncated, cut) = floats, flags
    ends = (terminated, truncated)
    return {
        "gae": lambda r: fastrl.gae(r, v, nv, *ends, gamma=0.9, lam=0.8, mask=~cut),
        "discounted_returns": lambda r: fastrl.discounted_returns(r, *ends, gamma=0.9, next_values=nv),
        "lambda_returns": lambda r: fastrl.lambda_returns(r, nv, *ends, gamma=0.9, lam=0.5),
        "n_step_returns": lambda r: fastrl.n_step_returns(r, None, *ends, gamma=0.9, n=3, cut=cut),
        "vtrace": lambda r: fastrl.vtrace(r, v, nv, *ends, x, gamma=0.9),
        "off_policy_returns": lambda r: fastrl.off_policy_returns(r, v, nv, x.abs(), *ends, gamma=0.9),
        "reverse_affine_scan": lambda r: fastrl.reverse_affine_scan(r, v, 1.5),
        "reverse_affine_scan from an array": lambda r: fastrl.reverse_affine_scan(r, v, nv[0]),
    }


def equal(got, wanted):
    got, wanted = (x if isinstance(x, tuple) else (x,) for x in (got, wanted))
    assert len(got) == len(wanted)
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    """All of them in one: a compilation is slow. `fullgraph` names the op that breaks it."""
    torch._dynamo.reset()
    floats, flags = rollout()
    functions = calls(floats, flags)

    def fn(r):
        return [f(2 * r) for f in functions.values()]

    results = torch.compile(fn, backend="aot_eager", fullgraph=True, dynamic=dynamic)(floats[0])
    for op, got in zip(functions, results, strict=True):
        assert equal(got, functions[op](2 * floats[0])), op


def test_out_is_written_in_a_compiled_call():
    torch._dynamo.reset()
    floats, flags = rollout()
    out = [torch.full_like(floats[0], np.nan) for _ in range(2)]

    def fn(r, first, second):
        return fastrl.gae(r, *floats[1:3], *flags[:2], gamma=0.9, lam=0.8, out=(first, second))

    torch.compile(fn, backend="aot_eager", fullgraph=True)(floats[0], *out)
    assert equal(tuple(out), fastrl.gae(*floats[:3], *flags[:2], gamma=0.9, lam=0.8))


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize(
    ("out", "text"),
    [
        (
            (torch.full((7, 3), -1.0), torch.full((2, 7, 3), -1.0)),
            r"out\[1\] must have shape \(7, 3\) like rewards, got",
        ),
        ((torch.full((7, 3), -1.0), torch.full((7, 3), -1)), r"out\[1\] must have dtype float32.*, got int64"),
        ((torch.full((7, 3), -1.0),), "out must be 2 arrays, got 1 arrays"),
    ],
    ids=["shape", "dtype", "count"],
)
def test_out_is_checked_in_a_compiled_call(fullgraph, out, text):
    torch._dynamo.reset()
    floats, flags = rollout()

    def fn(r, *out):
        return fastrl.gae(r, *floats[1:3], *flags[:2], gamma=0.9, lam=0.8, out=out)

    with pytest.raises(Exception, match=f"gae: {text}"):
        torch.compile(fn, backend="eager", fullgraph=fullgraph)(floats[0], *out)
    assert all((x == -1).all() for x in out)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_arrays_that_want_a_gradient_are_constants(backend):
    """As in eager mode: the loss has the gradient of what does not go through the scans."""
    torch._dynamo.reset()
    floats, flags = rollout(dtype=torch.float64)
    functions = [f for op, f in calls(floats, flags).items() if not op.startswith("reverse")]
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def loss(w):
        v = floats[1] * w
        found = [fastrl.gae(v, v, v, *flags[:2], gamma=0.9, lam=0.8)] + [f(v) for f in functions]
        return sum(
            ((x - v) ** 2).mean() for result in found for x in (result if isinstance(result, tuple) else [result])
        )

    (wanted,) = torch.autograd.grad(loss(w), w)
    (found,) = torch.autograd.grad(torch.compile(loss, backend=backend, fullgraph=True)(w), w)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def op_calls():
    import fastrl.kernels.scans._torch  # noqa: F401 (registers the ops)

    (r, v, nv, x), (terminated, truncated, mask) = rollout(dtype=torch.float64)
    ends, ops = (terminated, truncated), torch.ops.fastrl
    wants = [y.clone().requires_grad_() for y in (r, v, nv[0])]
    return [
        (ops.gae, (r, v, nv, *ends, 0.9, 0.8, mask)),
        (ops.discounted_returns, (r, *ends, 0.9, None, None)),
        (ops.lambda_returns, (r, nv, *ends, 0.9, 0.5, mask)),
        (ops.n_step_returns, (r, None, *ends, 0.9, 3, None, None)),
        (ops.vtrace, (r, v, nv, *ends, x, 0.9, 1.0, 1.0, 1.0, 1.0, None)),
        (ops.off_policy_returns, (r, v, nv, x, *ends, 0.9, None)),
        (ops.reverse_affine_scan, (*wants, 0.0)),
        (ops.reverse_affine_scan, (wants[0], v, None, 0.5)),
    ]


def test_opcheck():
    for op, args in op_calls():
        results = torch.library.opcheck(op, args)
        assert set(results.values()) == {"SUCCESS"}, (op, results)


def test_gradient_of_a_compiled_affine_scan():
    torch._dynamo.reset()
    (a, b, *_), _ = rollout(dtype=torch.float64)

    def loss(x):
        return (fastrl.reverse_affine_scan(2 * x, b, 1.0) ** 2).sum()

    x, y = (a.clone().requires_grad_() for _ in range(2))
    torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)(x).backward()
    loss(y).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)
