"""The natural gradient step and the line search."""

import importlib
import math

import numpy as np
import pytest
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fastrl import (
    FisherVectorProduct,
    conjugate_gradient,
    line_search,
    natural_gradient_step,
)

from .helpers import Gaussian, chain, detached, distribution, mean_kl

torch = pytest.importorskip("torch", reason="torch is not installed")
cg, cg_torch, natural_gradient = (
    importlib.import_module(f"fastrl.kernels.{name}")
    for name in ("conjugate_gradient.solve", "conjugate_gradient._torch", "curvature.natural_gradient")
)


def test_step_has_the_length_of_max_kl():
    torch.manual_seed(0)
    policy, obs = Gaussian(chain((5, 7, 3)), 3).double(), torch.randn(60, 5, dtype=torch.float64)
    fisher = FisherVectorProduct(policy, obs, damping=0.1)
    g = torch.randn(fisher.shape[0], dtype=torch.float64)
    for k in (1, 3, 10, 200):
        step, info = natural_gradient_step(fisher, g, max_kl=0.02, max_iter=k, rtol=1e-12)
        assert 0.5 * step @ fisher(step) == pytest.approx(0.02, rel=1e-8)
        x, _ = conjugate_gradient(fisher, g, max_iter=k, rtol=1e-12)
        torch.testing.assert_close(step, info.scale * x, rtol=1e-10, atol=1e-14)
        assert info.curvature == pytest.approx(float(x @ fisher(x)), rel=1e-8)
        assert g @ step > 0
    iterations, norm, status = info
    assert status == "converged" and iterations < 200 and norm < 1e-10


def test_step_takes_no_product_of_its_own():
    calls = []
    fisher = lambda v: calls.append(1) or torch.linspace(1, 50, 40) * v  # noqa: E731
    _, info = natural_gradient_step(fisher, torch.randn(40), max_kl=0.01, max_iter=7, rtol=0.0)
    assert len(calls) == info.iterations == 7


def test_kl_after_a_step():
    torch.manual_seed(0)
    policy, obs = chain((5, 8, 3)).double(), torch.randn(200, 5, dtype=torch.float64)
    old, F = detached(distribution(policy, obs)), FisherVectorProduct(policy, obs, damping=0.0)
    g = F(torch.randn(75, dtype=torch.float64))  # in the range of F, as the gradient of a surrogate is
    step, _ = natural_gradient_step(FisherVectorProduct(policy, obs, damping=1e-4), g, max_kl=1e-6, max_iter=60)
    vector_to_parameters(parameters_to_vector(policy.parameters()).detach() + step, policy.parameters())
    assert mean_kl(policy, obs, old).item() == pytest.approx(0.5 * (step @ F(step)).item(), rel=0.05)
    assert mean_kl(policy, obs, old).item() == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_no_square_root_of_what_is_not_positive(kind):
    """Peers take the root of x^T F x unguarded: NaN parameters (sb3-contrib #38)."""
    vector = (lambda *x: np.array(x)) if kind == "numpy" else (lambda *x: torch.tensor(x, dtype=torch.float64))
    g = vector(1.0, -2.0, 3.0)
    for product, status in (
        (lambda v: -v, "negative_curvature"),
        (lambda v: 0 * v, "negative_curvature"),
        (lambda v: v * math.nan, "breakdown"),
        (lambda v: v * math.inf, "breakdown"),
    ):
        step, info = natural_gradient_step(product, g, max_kl=0.01)
        assert (info.status, info.scale) == (status, 0.0)
        assert not np.asarray(step).any()
    step, info = natural_gradient_step(lambda v: v, 0 * g, max_kl=0.01)
    assert (info.status, info.scale) == ("converged", 0.0) and not np.asarray(step).any()
    step, info = natural_gradient_step(lambda v: v, g * math.nan, max_kl=0.01)
    assert info.status == "breakdown" and not np.asarray(step).any()
    step, info = natural_gradient_step(lambda v: 1e-320 * v, g * 1e-160, max_kl=0.01)
    assert np.isfinite(np.asarray(step)).all()


def test_breakdown_after_good_iterations_still_gives_a_right_step():
    calls, d = [], torch.linspace(1, 9, 6, dtype=torch.float64)

    def product(v):
        calls.append(1)
        return d * v * (math.nan if len(calls) == 4 else 1)

    step, info = natural_gradient_step(product, torch.ones(6, dtype=torch.float64), max_kl=0.01, rtol=0.0)
    assert (info.iterations, info.status) == (3, "breakdown")
    assert 0.5 * step @ (d * step) == pytest.approx(0.01, rel=1e-9)


def step_on_device(product, g, **options):
    """`natural_gradient_step` by the loop for GPUs with its torch reference, on CPU tensors."""
    o = {"max_iter": 10, "rtol": 1e-5, "atol": 0.0, "damping": 0.0} | options
    solve = (g, None, o["max_iter"], o["rtol"], o["atol"], o["damping"], None, None)
    x, info, r = cg._solve_on_device(cg_torch.fallback, product, *solve)
    return natural_gradient._scaled_on_device(x, g - r, info, o["max_kl"])


@pytest.mark.parametrize("end", ["max_iter", "negative_curvature", "not finite", "overflow"])
@pytest.mark.parametrize("loop", ["host", "device", "cuda"])
def test_step_is_made_of_the_last_finished_iteration(loop, end):
    """Whatever the fourth product does, the step is that of three iterations, and takes no further product."""
    if loop == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    d, calls = torch.linspace(0.1, 0.9, 6), []
    g = torch.tensor([1.0, -2.0, 3.0, 1.0, 0.5, 0.1])
    if loop == "cuda":
        d, g = d.cuda(), g.cuda()

    def product(v):
        calls.append(1)
        z = d * v
        if len(calls) == 4 and end != "max_iter":
            across = torch.stack([v[1], -v[0], *(0 * v[2:])])  # which leaves v . z as it is
            ends = {
                "negative_curvature": -2 * z,
                "not finite": z * math.inf,
                "overflow": 3e38 / across.abs().max() * across,
            }
            return z + ends[end]
        return z

    step_of = step_on_device if loop == "device" else natural_gradient_step
    step, info = step_of(product, g, max_kl=0.01, rtol=0.0, max_iter=3 if end == "max_iter" else 4)
    status = end if end in ("max_iter", "negative_curvature") else "breakdown"
    assert (info.iterations, info.status) == (3, status)
    assert len(calls) == (3 if end == "max_iter" else 4)
    x, _ = conjugate_gradient(lambda v: d * v, g, max_iter=3, rtol=0.0)
    scale = math.sqrt(0.02 / (x.double() @ (d * x).double()))
    assert info.scale == pytest.approx(scale, rel=1e-5)
    torch.testing.assert_close(step, scale * x, rtol=1e-5, atol=0)


def test_info_of_a_step_waits_for_its_stream(streams):
    _, info = step_on_device(lambda v: 2 * v, torch.ones(3), max_kl=0.01)
    streams.current = "second"
    assert info.scale > 0 and info.status == "converged"
    assert streams.waited == ["first", "first"]  # of the step and of the solve


def test_natural_gradient_errors():
    g = torch.ones(3)
    for options, text in (
        ({"max_kl": 0.0}, "max_kl must be > 0, got 0.0"),
        ({"max_kl": -1.0}, "max_kl must be finite and >= 0, got -1.0"),
        ({"max_kl": 0.1, "max_iter": -1}, "max_iter must be >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=f"natural_gradient_step: {text}"):
            natural_gradient_step(lambda v: v, g, **options)


@pytest.fixture(params=["numpy", "torch"])
def vector(request):
    if request.param == "numpy":
        return lambda *x: np.array(x, np.float64)
    return lambda *x: torch.tensor(x, dtype=torch.float64)


def bits(x):
    return np.asarray(x).tobytes()


def test_accepts_the_first_that_is_better_and_near(vector):
    """surrogate = x - x^2 from 0, kl = x^2 / 2: x = 1 is no better, 0.8 and 0.64 are too far, 0.512 fits."""
    seen = []

    def evaluate(x):
        seen.append(float(x[0]))
        return x[0] - x[0] ** 2, 0.5 * x[0] ** 2

    start = vector(0.0)
    found = line_search(evaluate, start, vector(1.0), expected_improvement=1.0, max_kl=0.14, backtrack=0.8)
    assert found.accepted and found.evaluations == 5
    np.testing.assert_allclose(seen, [0, 1, 0.8, 0.64, 0.512], rtol=1e-12)
    assert found.fraction == pytest.approx(0.512)
    assert found.kl == pytest.approx(0.131072) and found.improvement == pytest.approx(0.512 - 0.262144)
    np.testing.assert_allclose(np.asarray(found.params), [0.512])
    assert float(start[0]) == 0.0
    known = line_search(
        evaluate, start, vector(1.0), expected_improvement=1.0, max_kl=0.14, backtrack=0.8, surrogate=0.0
    )
    assert known[:4] == found[:4] and known.evaluations == 4


def test_none_accepted_leaves_every_bit(vector):
    """Also where evaluate writes to the vector it was given, as it does for a live view of a model."""
    live = vector(1.0, -0.0, 1e-310, 2.0)
    before = bits(live)

    def evaluate(x):
        if x is not live:
            live[:] = x
        return -1.0 if x is not live else 0.0, 0.0

    found = line_search(evaluate, live, vector(1.0, 1.0, 1.0, 1.0), expected_improvement=1.0, max_kl=1.0)
    assert not found.accepted and found.fraction == found.improvement == 0
    assert found.params is live and bits(live) == before
    assert found.evaluations == 12  # before, the whole step, ten shorter ones


def test_an_error_restores_the_parameters(vector):
    live = vector(1.0, 2.0)

    def evaluate(x):
        if x is live:
            return 0.0, 0.0
        live[:] = x
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        line_search(evaluate, live, vector(1.0, 1.0), expected_improvement=1.0, max_kl=1.0)
    np.testing.assert_array_equal(np.asarray(live), [1.0, 2.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["surrogate", "kl"])
def test_not_finite_is_refused(vector, bad, which):
    def evaluate(x):
        good = (float(x[0]), 0.0)
        if float(x[0]) < 0.7:
            return good
        return (bad, 0.0) if which == "surrogate" else (good[0], bad)

    found = line_search(evaluate, vector(0.0), vector(1.0), expected_improvement=1.0, max_kl=1.0)
    if which == "kl" and bad == -math.inf:
        assert found.accepted  # refused too: the first finite one is taken
    assert found.fraction == pytest.approx(0.64)
    always = line_search(lambda x: (bad, 0.0), vector(0.0), vector(1.0), expected_improvement=1.0, max_kl=1.0)
    assert not always.accepted


def test_expected_improvement_does_not_compound(vector):
    """skrl multiplies the expected improvement by the factor at every backtrack, and then by the factor's power again.

    Candidates are 1, 1/2, 1/4, 1/8; the improvement is 0.3 of the linear prediction at 1/8, and 0 above.
    """

    def evaluate(x):
        f = float(x[0])
        return (0.3 * f if f < 0.2 else 0.0), 0.0

    options = {"expected_improvement": 1.0, "max_kl": 1.0, "backtrack": 0.5}
    found = line_search(evaluate, vector(0.0), vector(1.0), accept_ratio=0.25, **options)
    assert found.accepted and found.fraction == 0.125
    # Compounded, the bar would be 0.9 / 8 / 8 and so on: any improvement would do.
    assert not line_search(evaluate, vector(0.0), vector(1.0), accept_ratio=0.9, **options).accepted


def test_zero_and_not_finite_steps(vector):
    calls = []

    def evaluate(x):
        calls.append(1)
        return 1.0, 0.0

    assert not line_search(evaluate, vector(1.0), vector(0.0), expected_improvement=0.0, max_kl=1.0).accepted
    calls.clear()
    found = line_search(evaluate, vector(1.0), vector(math.nan), expected_improvement=math.nan, max_kl=1.0)
    assert not found.accepted and len(calls) == 1


def test_accepted_live_parameters_stay(vector):
    live = vector(0.0)

    def evaluate(x):
        live[:] = x
        return live[0], 0.0

    found = line_search(evaluate, live, vector(1.0), expected_improvement=1.0, max_kl=1.0)
    assert found.accepted and float(live[0]) == 1.0


def test_line_search_errors(vector):
    x = vector(1.0)
    good = {"expected_improvement": 1.0, "max_kl": 1.0}
    for args, options, kind, text in (
        (([1.0], x), good, TypeError, "params_vector must be a numpy.ndarray or a torch.Tensor, got list"),
        ((x, [1.0]), good, TypeError, "step must be a .* like params_vector, got list"),
        ((x, vector(1.0, 2.0)), good, ValueError, r"must have one shape \[n\], got \(1,\) and \(2,\)"),
        ((x, x), {**good, "max_kl": -1.0}, ValueError, "max_kl must be finite and >= 0, got -1.0"),
        ((x, x), {**good, "backtrack": 1.0}, ValueError, r"backtrack must be in \(0, 1\), got 1.0"),
        ((x, x), {**good, "max_backtracks": -1}, ValueError, "max_backtracks must be >= 0, got -1"),
        ((x, x), {**good, "accept_ratio": math.nan}, ValueError, "accept_ratio must be finite and >= 0, got nan"),
    ):
        with pytest.raises(kind, match=text):
            line_search(lambda p: (0.0, 0.0), *args, **options)


def test_line_search_of_read_only_parameters():
    params = np.zeros(2)
    params.flags.writeable = False
    found = line_search(lambda p: (-1.0, 0.0), params, np.ones(2), expected_improvement=1.0, max_kl=1.0, surrogate=0.0)
    assert not found.accepted and found.params is params
    for wrong, error in (("1", TypeError), (math.nan, ValueError)):
        with pytest.raises(error, match="line_search: expected_improvement must be"):
            line_search(
                lambda p: (1.0, 0.0), params, np.ones(2), expected_improvement=wrong, max_kl=1.0, accept_ratio=0.1
            )
    with pytest.raises(ValueError, match="params_vector must have dtype float32 or float64, got int64"):
        line_search(
            lambda p: (1.0, 0.0), np.zeros(2, np.int64), np.ones(2, np.int64), expected_improvement=1.0, max_kl=1.0
        )
