"""The tanh-Gaussian head on a GPU against the reference; skipped without one."""

import functools
import itertools
import math

import numpy as np
import pytest
from cuda_graphs import captured

from fastrl import Generator, _backend, tanh_normal_log_prob, tanh_normal_sample
from fastrl.kernels.tanh_normal import reference

torch = pytest.importorskip("torch", reason="CUDA tensors need torch, which is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if _backend.cuda_backend()[0] != "cuda":
    pytest.skip(_backend.cuda_backend()[1], allow_module_level=True)

kernels = _backend._C_cuda
LIMITS = (-math.inf, math.inf, 0.0)
SEED, COUNTER = 2**40 + 7, 2**33 - 2


def put(x):
    return None if x is None else torch.from_numpy(x.copy()).cuda()


def same(found, wanted, close):
    for got, want in zip(found, wanted, strict=True):
        if want is None:
            assert got is None
            continue
        got = got.cpu().numpy()
        assert got.dtype == want.dtype and got.shape == want.shape
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(got / scale, want / scale, **close)


@pytest.mark.parametrize(
    ("dtype", "ulp"),
    [(torch.float64, 2**-52), (torch.float32, 2**-23), (torch.float16, 2**-10), (torch.bfloat16, 2**-7)],
    ids=str,
)
def test_bounds_need_a_number_of_the_dtype_between_them(dtype, ulp):
    mean = torch.zeros(3, 1, dtype=dtype, device="cuda")
    draw = functools.partial(tanh_normal_sample, mean, mean, noise=torch.zeros_like(mean))
    with pytest.raises(ValueError, match=r"must have a number of their dtype between them, got 1\.0 and 1\.\d+ in"):
        draw(low=1.0, high=1 + ulp)
    action, _ = draw(low=1.0, high=1 + 2 * ulp)
    assert action.flatten().tolist() == [1 + ulp] * 3
    bounds = (torch.tensor([x], dtype=dtype, device="cuda") for x in (1.0, 1 + ulp))
    assert all(part.isnan().all() for part in draw(low=next(bounds), high=next(bounds)))


def test_half_precision_bounds_are_rounded_before_they_are_compared():
    mean = torch.zeros(3, 1, dtype=torch.float16, device="cuda")
    with pytest.raises(ValueError, match=r"low must be finite and below high, got 1\.0 and 1\.0 in"):
        tanh_normal_sample(mean, mean, low=1.0, high=1 + 2**-12)
    with pytest.raises(ValueError, match="low must be finite and below high, got 0.0 and inf in"):
        tanh_normal_sample(mean, mean, low=0.0, high=65520.0)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["mean", "log_std", "noise", "low", "high"])
def test_what_is_not_finite_is_nan_where_the_reference_says_so(what, bad, epsilon):
    """Bounds, too, which nobody looks at on the host."""
    arrays = {
        "mean": np.zeros((2, 2)), "log_std": np.zeros((2, 2)), "noise": np.zeros((2, 2)), "action": np.zeros((2, 2)),
        "low": np.full(2, -1.0), "high": np.ones(2),
    }  # fmt: skip
    arrays[what][..., 0] = bad
    mean, log_std, noise, action, low, high = map(put, arrays.values())
    arguments = (low, high, -math.inf, math.inf, epsilon)
    for op, given, wants in (
        ("tanh_normal_sample", (mean, log_std, noise, None), (True,)),
        ("tanh_normal_log_prob", (mean, log_std, action), ()),
        ("tanh_normal_log_prob_backward", (mean, log_std, action, mean[:, 1] + 1), (True, True, True)),
    ):
        results = [getattr(backend, op)(*given, *arguments, *wants) for backend in (kernels, reference)]
        for got, wanted in zip(*(r if wants else (r,) for r in results), strict=True):
            torch.testing.assert_close(got, wanted, equal_nan=True, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflow_of_sigma(tolerance, dtype, epsilon):
    """e^log_std eps beyond the dtype, or 0 times it, and a huge mean that it outweighs."""
    largest = np.finfo(dtype).max
    mean = np.array([[0.5], [-3.0], [0.25], [-largest], [largest]], dtype)
    noise = np.array([[1.0], [-2.5], [0.0], [20.0], [-20.0]], dtype)
    log_std = np.full((5, 1), math.floor(math.log(largest)), dtype)
    arguments = (mean, log_std, noise)
    options = (-1.0, 1.0, -math.inf, math.inf, epsilon, True)
    wanted = reference.tanh_normal_sample(*arguments, None, *options)
    found = kernels.tanh_normal_sample(*map(put, arguments), None, *options)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got.cpu().numpy(), want, **tolerance(want.dtype))


@pytest.mark.parametrize("shared", [True, False], ids=["log_std [A]", "log_std [B, A]"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "columns"), list(itertools.product([0, 1, 31, 99, 1030], [0, 1, 3, 6, 17, 200])))
def test_agrees_with_the_reference(tolerance, rows, columns, dtype, shared):
    rng, close = np.random.default_rng(rows + columns), tolerance(np.dtype(dtype))
    mean, noise, ga = rng.normal(size=(3, rows, columns)).astype(dtype)
    log_std = rng.normal(size=(columns,) if shared else (rows, columns)).astype(dtype)
    gl = rng.normal(size=rows).astype(dtype)
    low, high = np.full(columns, -2, dtype), np.linspace(1, 3, columns).astype(dtype)
    for options in ((low, high, -0.5, 1.0, 1e-6), (-1.0, 1.0, *LIMITS)):
        on_device = [put(x) if isinstance(x, np.ndarray) else x for x in options]
        wanted = reference.tanh_normal_sample(mean, log_std, noise, None, *options, True)
        found = kernels.tanh_normal_sample(put(mean), put(log_std), put(noise), None, *on_device, True)
        same(found, wanted, close)
        states = torch.tensor([SEED, COUNTER, 0], device="cuda"), np.array([SEED, COUNTER], np.uint64)
        drawn = kernels.tanh_normal_sample(put(mean), put(log_std), None, states[0], *on_device, False)
        same(drawn, reference.tanh_normal_sample(mean, log_std, None, states[1], *options, False), close)
        assert states[0].tolist() == [*states[1].tolist(), 0] == [SEED, COUNTER + (rows * columns + 3) // 4, 0]
        for a, g, want in ((ga, gl, (True, True)), (None, gl, (False, True)), (ga, None, (True, False))):
            same(
                kernels.tanh_normal_sample_backward(put(wanted[2]), put(log_std), put(a), put(g), *on_device, *want),
                reference.tanh_normal_sample_backward(wanted[2], log_std, a, g, *options, *want),
                close,
            )
        x = wanted[0]
        same(
            (kernels.tanh_normal_log_prob(put(mean), put(log_std), put(x), *on_device),),
            (reference.tanh_normal_log_prob(mean, log_std, x, *options),),
            close,
        )
        same(
            kernels.tanh_normal_log_prob_backward(
                put(mean), put(log_std), put(x), put(gl), *on_device, True, True, True
            ),
            reference.tanh_normal_log_prob_backward(mean, log_std, x, gl, *options, True, True, True),
            close,
        )
        same(
            (kernels.tanh_normal_mode(put(mean), *on_device[:2]),),
            (reference.tanh_normal_mode(mean, *options[:2]),),
            close,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_worked_on_in_float32(dtype):
    """As the reference, in float64, on the same numbers: equal to the rounding of the result."""
    mean, log_std, noise = (torch.randn(64, 5).to(dtype).cuda() for _ in range(3))
    found = kernels.tanh_normal_sample(mean, log_std, noise, None, -1.0, 1.0, *LIMITS, True)
    wanted = reference.tanh_normal_sample(mean, log_std, noise, None, -1.0, 1.0, *LIMITS, True)
    assert found[0].dtype == found[1].dtype == dtype and found[2].dtype == torch.float32
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.float().cpu(), b.float().cpu(), rtol=2**-7, atol=2**-9)
    edge = torch.tensor([[1.0], [-1.0], [2.0]], dtype=dtype, device="cuda")
    zero = torch.zeros(1, dtype=dtype, device="cuda")
    for kind in (kernels, reference):
        assert kind.tanh_normal_log_prob(edge * 0, zero, edge, -1.0, 1.0, *LIMITS).isfinite().all()


def test_autograd_on_the_gpu(tolerance):
    mean, log_std = (torch.randn(33, 4, dtype=torch.float64, device="cuda", requires_grad=True) for _ in range(2))
    noise = torch.randn(33, 4, dtype=torch.float64, device="cuda")
    assert torch.autograd.gradcheck(lambda m, s: tanh_normal_sample(m, s, noise=noise), (mean, log_std))
    action = torch.rand(33, 4, dtype=torch.float64, device="cuda") - 0.5
    assert torch.autograd.gradcheck(lambda m, s: tanh_normal_log_prob(m, s, action), (mean, log_std))


def test_a_captured_graph_draws_anew():
    generator, twin = Generator(3, "cuda"), Generator(3, "cuda")
    mean, log_std = torch.zeros(16, 3, device="cuda"), torch.zeros(3, device="cuda")
    graph, (drawn, _) = captured(lambda: tanh_normal_sample(mean, log_std, generator=generator))
    generator.manual_seed(3)
    for _ in range(3):
        graph.replay()
        assert torch.equal(drawn, tanh_normal_sample(mean, log_std, generator=twin)[0])
