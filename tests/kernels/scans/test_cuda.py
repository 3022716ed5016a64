"""The scans of CUDA tensors against the CPU reference, both ways to run them, graph capture; their torch version."""

import itertools

import numpy as np
import pytest
from cuda_graphs import captured

from fastrl import _backend
from fastrl.kernels import scans
from fastrl.kernels.scans.reference import ReferenceScans

torch = pytest.importorskip("torch", reason="CUDA tensors need torch, which is not installed")

DEVICE = "cuda"  # of the compiled kernels
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Narrow and long ones are scanned along time by a block, the others by a thread each.
SHAPES = [(0, 3), (3, 0), (1, 1), (5, 3), (7,), (8, 40), (9, 33), (63, 5), (64, 2), (130,), (600, 2), (1100, 1)]
SHAPES += [(17, 300), (64, 1030)]


@pytest.fixture(params=["cuda kernels", "torch on cuda", "torch on cpu"])
def served(request):
    """(backend, device); the torch version needs no GPU."""
    from fastrl.kernels.scans._torch import TorchScans

    if request.param == "torch on cpu":
        return TorchScans(), "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if request.param == "torch on cuda":
        return TorchScans(), "cuda"
    if _backend.cuda_backend()[0] != "cuda":
        pytest.skip(_backend.cuda_backend()[1])
    return _backend._C_cuda, DEVICE


def put(x, device, layout=0):
    """`x` on the device: contiguous, batch-major, or every third item of a larger tensor; None and numbers as is."""
    if not isinstance(x, np.ndarray):
        return x
    tensor = torch.from_numpy(x.copy()).to(device)
    if layout == 1 and x.ndim == 2:
        return tensor.t().contiguous().t()
    if layout == 2:
        wide = torch.zeros([3 * s for s in x.shape], dtype=tensor.dtype, device=device)
        view = wide[tuple(slice(1, None, 3) for _ in x.shape)]
        view.copy_(tensor)
        return view
    return tensor


def calls(rng, shape, dtype, masked=False, flag_dtype=bool):
    """(op, its positional arguments without `out`) for every op, with NaN wherever nothing may be read."""

    def floats(scale=1.0):
        return (rng.normal(size=shape) * scale).astype(dtype)

    def flags(p):
        return (rng.random(shape) < p).astype(flag_dtype)

    rewards, values, next_values, log_rhos = floats(), floats(), floats(), floats(0.3) - dtype(0.2)
    terminated, truncated, cut = flags(0.05), flags(0.05), flags(0.1)
    mask = None
    if masked:
        mask = flags(0.9)
        for x in (rewards, values, next_values, log_rhos):
            x[mask == 0] = np.nan
    next_values[terminated != 0] = np.nan
    ends, traces = (terminated, truncated), rng.random(shape).astype(dtype)
    yield "gae", (rewards, values, next_values, *ends, 0.97, 0.9, mask)
    yield "gae", (rewards, values, next_values, *ends, 0.97, 0.0, mask)
    yield "discounted_returns", (rewards, *ends, 0.97, next_values, mask)
    yield "discounted_returns", (rewards, *ends, 0.97, None, mask)
    yield "discounted_returns", (rewards, *ends, 0, None, mask)
    yield "lambda_returns", (rewards, next_values, *ends, 0.97, 0.8, mask)
    yield "lambda_returns", (rewards, next_values, terminated, None, 0.97, 0.8, mask)
    numbers = [x.astype(kind) for x, kind in zip(ends, (np.float32, np.int64), strict=True)]
    yield "gae", (rewards, values, next_values, *numbers, 0.97, 0.9, None if mask is None else mask.astype(np.float16))
    yield "lambda_returns", (rewards, next_values, *ends, 0.97, 1, mask)
    yield "vtrace", (rewards, values, next_values, *ends, log_rhos, 0.97, 0.9, 1.0, 0.9, float("inf"), mask)
    yield "off_policy_returns", (rewards, values, next_values, traces, *ends, 0.97, mask)
    if rewards.size < 3000:
        for n in (1, 3, 70, 200, 10**9):  # up to 64 and beyond: two ways to sum
            yield "n_step_returns", (rewards, next_values, *ends, 0.97, n, cut if n != 3 else None, mask)
        yield "n_step_returns", (rewards, None, *ends, 0.9, 5, None, mask)
        for n in (30, 100):  # 0.01^23 is 0 in float32
            yield "n_step_returns", (rewards, next_values, *ends, 0.01, n, None, mask)
    a = np.where(rng.random(shape) < 0.1, 0, rng.uniform(-0.9, 0.9, shape)).astype(dtype)
    b = floats()
    for y_T in (None, 1.5, floats()[0]) if shape[0] else (None,):
        yield "reverse_affine_scan", (a, b, y_T if y_T is None or isinstance(y_T, float) else np.asarray(y_T))


def pair(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_cpu_reference(served, tolerance, shape, dtype):
    backend, device = served
    if device == "cpu" and (shape[0] > 200 or shape[-1] > 200):
        pytest.skip("slow without a GPU")
    rng = np.random.default_rng(len(shape) * 1000 + sum(shape))
    reference, close = ReferenceScans(), tolerance(np.dtype(dtype))
    layouts = itertools.cycle([0, 0, 1, 2, 1, 0, 2])  # mixed within a call
    for masked, flag_dtype in ((False, bool), (True, np.uint8)):
        for op, arguments in calls(rng, shape, dtype, masked, flag_dtype):
            wanted = pair(getattr(reference, op)(*arguments, None))
            moved = [put(x, device, next(layouts)) for x in arguments]
            found = pair(getattr(backend, op)(*moved, None))
            outs = [put(np.full(w.shape, 99, w.dtype), device, next(layouts)) for w in wanted]
            given = tuple(outs) if len(outs) > 1 else outs[0]
            assert getattr(backend, op)(*moved, given) is given
            for got, out, w in zip(found, outs, wanted, strict=True):
                assert got.device.type == torch.device(device).type and got.is_contiguous()
                got = got.cpu().numpy()
                assert got.dtype == w.dtype and got.shape == w.shape
                np.testing.assert_allclose(got, w, **close, err_msg=op)
                np.testing.assert_array_equal(out.cpu().numpy(), got, err_msg=op)


@pytest.mark.parametrize("shape", [(12, 3), (100, 2)], ids=["serial", "along time"])
def test_a_zero_cuts(served, shape):
    """NaN and infinity behind a factor of 0 reach nothing; products of factors that overflow do not make a NaN of 0."""
    backend, device = served
    T = shape[0]
    a, b = np.full(shape, 0.5), np.ones(shape)
    a[T // 2] = 0
    a[T // 2 + 1], b[T // 2 + 1], b[-1] = np.nan, np.inf, np.nan
    y = backend.reverse_affine_scan(put(a, device), put(b, device), None, None).cpu().numpy()
    assert np.isnan(y[T // 2 + 1]).all() and np.isfinite(y[: T // 2 + 1]).all() and (y[T // 2] == 1).all()
    y = backend.reverse_affine_scan(put(np.full(shape, 1e30), device), put(np.zeros(shape), device), None, None)
    assert (y == 0).all()


@pytest.mark.parametrize("T", [64, 500, 1100])
def test_coefficients_that_do_not_compose(served, T):
    """Products that overflow, underflow or are NaN: what they would multiply counts, as in one step after the other."""
    backend, device = served
    a, b = np.ones(T), np.zeros(T)
    a[8:11], b[31] = (1e200, 1e200, 0), 1
    y = backend.reverse_affine_scan(put(a, device), put(b, device), None, None).cpu().numpy()
    np.testing.assert_array_equal(y, np.where((np.arange(T) > 10) & (np.arange(T) < 32), 1.0, 0.0))
    a = np.full(T, 0.5)
    a[-1] = np.nan
    assert backend.reverse_affine_scan(put(a, device), put(np.ones(T), device), None, None).isnan().all()
    a = np.ones(T)
    a[T // 2 : T // 2 + 4] = 1e200, 1e200, 1e-200, 1e-200
    y = backend.reverse_affine_scan(put(a, device), put(np.zeros(T), device), 1e300, None).cpu().numpy()
    np.testing.assert_allclose(y[[0, -1]], 1e300)


@pytest.mark.parametrize("shape", [(5000, 1), (2000, 1030)], ids=["along time", "serial"])
def test_float32_errors_do_not_add_up_over_a_long_horizon(served, shape):
    """As on the CPU (test_scans.py)."""
    backend, device = served
    if device == "cpu" and shape[1] > 1:
        pytest.skip("slow without a GPU")
    values = (1000 + np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    arrays, none = (np.full(shape, 0.1, np.float32), values, np.roll(values, -1, axis=0)), np.zeros(shape, bool)
    wanted = ReferenceScans().gae(*(x.astype(np.float64) for x in arrays), none, none, 0.999, 1.0, None, None)
    moved, none = [put(x, device) for x in arrays], put(none, device)
    found = backend.gae(*moved, none, none, 0.999, 1.0, None, None)
    np.testing.assert_allclose(found[0].cpu(), wanted[0], rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(found[1].cpu(), wanted[1], rtol=1e-5)
    returns = backend.lambda_returns(moved[0], moved[2], none, none, 0.999, 1.0, None, None)
    np.testing.assert_allclose(returns.cpu(), wanted[1], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(40, 3), (200, 3)], ids=["serial", "along time"])
def test_half_precision(served, shape, dtype):
    """Numbers of 16 bits in and out: right to the rounding of the result."""
    backend, device = served
    arrays = [torch.randn(shape).to(dtype) for _ in range(3)]
    ends = [torch.rand(shape) < 0.05 for _ in range(2)]
    wanted = ReferenceScans().gae(
        *(x.double().numpy() for x in arrays), *(x.numpy() for x in ends), 0.97, 0.9, None, None
    )
    found = backend.gae(*(x.to(device) for x in (*arrays, *ends)), 0.97, 0.9, None, None)
    for got, w in zip(found, wanted, strict=True):
        assert got.dtype == dtype
        # A float32 sum beside a tie may round to the other neighbour: a hundredth of a rounding more.
        np.testing.assert_allclose(got.cpu().double().numpy(), w, rtol=1.01 * torch.finfo(dtype).eps / 2, atol=1e-6)


def test_any_byte_but_0_is_a_flag(compiled):
    """Without waiting for the device nothing can be raised."""
    x = torch.ones(4, 2, device=DEVICE)
    ends, none = torch.zeros(4, 2, dtype=torch.uint8, device=DEVICE), torch.zeros(4, 2, dtype=torch.bool, device=DEVICE)
    ends[1] = 7
    got = compiled.discounted_returns(x, ends, none, 0.5, None, None, None)
    want = compiled.discounted_returns(x, ends != 0, none, 0.5, None, None, None)
    assert torch.equal(got, want)


def test_errors_are_those_of_the_cpu(served):
    backend, device = served
    x, flags = torch.zeros(4, 3, device=device), torch.zeros(4, 3, dtype=torch.bool, device=device)
    good = [x, x, x, flags, flags, 0.9, 0.9, None, None]
    reference = ReferenceScans()

    def on_cpu(value):
        return value.cpu() if isinstance(value, torch.Tensor) else value

    for position, value in (
        (0, torch.zeros(1, 2, 3, device=device)),
        (1, [1]),
        (1, np.zeros((4, 3), np.float32)),
        (1, x.double()),
        (1, x[:3]),
        (1, torch.zeros(4, 3, device="meta")),
        (3, x.to(torch.complex64)),
        (3, flags[:2]),
        (5, 2.0),
        (5, "a"),
        (5, True),
        (6, -1),
        (7, [1]),
        (8, x),
        (8, (x,)),
        (8, (x.double(), x)),
        (8, (x.clone(), x[:1].clone().expand(4, 3))),
    ):
        arguments = [*good]
        arguments[position] = value
        with pytest.raises((TypeError, ValueError)) as wanted:
            meta = isinstance(value, torch.Tensor) and value.is_meta
            values = [on_cpu(a) if not (meta and a is value) else a for a in arguments]
            if position == 8:
                values[8] = tuple(map(on_cpu, value)) if isinstance(value, tuple) else on_cpu(value)
            reference.gae(*values)
        with pytest.raises(type(wanted.value)) as caught:
            backend.gae(*arguments)
        assert str(caught.value) == str(wanted.value)
    with pytest.raises(ValueError, match=r"out\[0\] must not share memory with values"):
        backend.gae(x, y := x.clone(), x, flags, flags, 0.9, 0.9, None, (y, x.clone()))
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        backend.n_step_returns(x, x, flags, flags, 0.9, 0, None, None, None)


@needs_gpu
@pytest.mark.parametrize("op", ["gae", "n_step_returns", "reverse_affine_scan"])
def test_mixed_devices_are_refused(op):
    x, flags = torch.zeros(4, 3, device=DEVICE), torch.zeros(4, 3, dtype=torch.bool, device=DEVICE)
    call = {
        "gae": lambda y: scans.gae(x, y, x, flags, flags, gamma=0.9, lam=0.9),
        "n_step_returns": lambda y: scans.n_step_returns(x, y, flags, flags, gamma=0.9, n=2),
        "reverse_affine_scan": scans.reverse_affine_scan if op == "reverse_affine_scan" else None,
    }[op]
    name = {"gae": "values", "n_step_returns": "next_values", "reverse_affine_scan": "b"}[op]
    first = "a" if op == "reverse_affine_scan" else "rewards"
    with pytest.raises(ValueError, match=f"{op}: {name} must be on cuda:0 like {first}, got cpu"):
        call(x, x.cpu()) if op == "reverse_affine_scan" else call(x.cpu())
    with pytest.raises(TypeError, match=f"{op}: {name} must be a torch.Tensor like {first}, got a numpy.ndarray"):
        call(x, x.cpu().numpy()) if op == "reverse_affine_scan" else call(x.cpu().numpy())


@needs_gpu
def test_the_public_functions_stay_on_the_device(tolerance):
    x = [torch.randn(20, 4, device=DEVICE, dtype=torch.float64) for _ in range(3)]
    flags = [torch.rand(20, 4, device=DEVICE) < 0.1 for _ in range(2)]
    found = scans.gae(*x, *flags, gamma=0.97, lam=0.9)
    wanted = scans.gae(*(a.cpu().numpy() for a in (*x, *flags)), gamma=0.97, lam=0.9)
    for got, want in zip(found, wanted, strict=True):
        assert got.is_cuda
        np.testing.assert_allclose(got.cpu().numpy(), want, **tolerance(np.dtype(np.float64)))


@needs_gpu
@pytest.mark.parametrize("shape", [(16, 200), (300, 3)], ids=["serial", "along time"])
def test_captured_in_a_graph(compiled, shape):
    """Every op in one graph, replayed with other inputs: the results are those of eager calls."""
    rng = np.random.default_rng(0)

    def inputs():
        return list(calls(rng, shape, np.float64))

    first = [(op, [put(x, DEVICE) for x in arguments]) for op, arguments in inputs()]
    graph, results = captured(lambda: [pair(getattr(compiled, op)(*arguments, None)) for op, arguments in first])
    for _ in range(3):
        second = inputs()
        for (_, arguments), (_, others) in zip(first, second, strict=True):
            for x, other in zip(arguments, others, strict=True):
                if isinstance(x, torch.Tensor):
                    x.copy_(torch.from_numpy(np.array(other)))
        graph.replay()
        for (op, arguments), result in zip(first, results, strict=True):
            for got, want in zip(result, pair(getattr(compiled, op)(*arguments, None)), strict=True):
                assert torch.equal(got, want), op


@needs_gpu
def test_the_callers_stream_and_no_waiting(compiled):
    """On a side stream after work that takes long: a launch on another stream would read what is not yet there."""
    x = torch.zeros(512, 300, device=DEVICE)
    flags = torch.zeros(512, 300, dtype=torch.bool, device=DEVICE)
    compiled.gae(x, x, x, flags, flags, 0.9, 0.9, None, None)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.cuda._sleep(50_000_000)
            x.fill_(1.0)
            returns = compiled.discounted_returns(x, flags, flags, 0.5, None, None, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert float(returns[-1, 0]) == 1 and float(returns[0, 0]) == pytest.approx(2.0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_device(compiled):
    x = torch.ones(10, 3, device="cuda:1")
    flags = torch.zeros(10, 3, dtype=torch.bool, device="cuda:1")
    returns = compiled.discounted_returns(x, flags, flags, 0.5, None, None, None)
    assert returns.device == torch.device("cuda:1") and float(returns[-1, 0]) == 1
    with pytest.raises(ValueError, match="truncated must be on cuda:1 like rewards, got cuda:0"):
        compiled.discounted_returns(x, flags, flags.to("cuda:0"), 0.5, None, None, None)
