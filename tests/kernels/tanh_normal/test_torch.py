"""The tanh-Gaussian head in torch: autograd, torch.compile, torch.library.opcheck."""

import math

import numpy as np
import pytest

from fastrl import Generator, tanh_normal_log_prob, tanh_normal_mode, tanh_normal_sample

torch = pytest.importorskip("torch", reason="torch is not installed")
FORMS = ["stable", "epsilon"]


def random(*shape, dtype=torch.float64, grad=True):
    return torch.randn(shape, dtype=dtype).requires_grad_(grad)


def usual_sample(mean, log_std, noise, low, high):
    """What torch makes of the formula."""
    u = mean + log_std.exp() * noise
    scale, bias = (high - low) / 2, (high + low) / 2
    log_slope = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
    log_prob = -(noise**2) / 2 - log_std - 0.5 * math.log(2 * math.pi) - log_slope - torch.as_tensor(scale).log()
    return bias + scale * torch.tanh(u), log_prob.sum(1)


@pytest.mark.parametrize("shared", [True, False], ids=["[A]", "[B, A]"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sample_and_gradients_as_torch(tolerance, dtype, shared):
    mean, noise = random(40, 6, dtype=dtype), random(40, 6, dtype=dtype, grad=False)
    log_std = random(*((6,) if shared else (40, 6)), dtype=dtype)
    low, high = torch.full((6,), -2.0, dtype=dtype), torch.linspace(1, 2, 6, dtype=dtype)
    weights = random(40, 6, dtype=dtype, grad=False), random(40, dtype=dtype, grad=False)
    ours = tanh_normal_sample(mean, log_std, noise=noise, low=low, high=high)
    double = [x.detach().double().requires_grad_(x.requires_grad) for x in (mean, log_std, noise, low, high)]
    theirs = usual_sample(*double)
    grads = torch.autograd.grad(ours, (mean, log_std), weights)
    wanted = torch.autograd.grad(theirs, double[:2], [w.double() for w in weights])
    for a, b in zip((*ours, *grads), (*theirs, *wanted), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        scale = max(1.0, float(b.abs().max()))
        np.testing.assert_allclose(a.detach() / scale, b.detach() / scale, **tolerance(dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [True, False], ids=["[A]", "[B, A]"])
def test_gradcheck(form, shared):
    mean, noise = random(5, 3), random(5, 3, grad=False)
    log_std = (0.3 * torch.randn((3,) if shared else (5, 3), dtype=torch.float64)).requires_grad_()
    options = {"low": torch.tensor([-1.0, -2.0, 0.0]).double(), "high": 3.0, "log_std_min": -0.3, "correction": form}
    assert torch.autograd.gradcheck(lambda m, s: tanh_normal_sample(m, s, noise=noise, **options), (mean, log_std))
    action = tanh_normal_sample(mean, log_std, noise=noise, **options)[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s, a: tanh_normal_log_prob(m, s, a, **options), (mean, log_std, action))
    assert torch.autograd.gradcheck(lambda m: tanh_normal_mode(m, high=3.0), (mean,))


def test_drawn_noise_is_held_fixed():
    """The gradient of what was drawn is that of the same noise given."""
    mean, log_std = random(9, 4), random(4)
    drawn = tanh_normal_sample(mean, log_std, generator=Generator(3))
    zero = torch.zeros(9, 4, dtype=torch.float64)
    noise = tanh_normal_sample(zero, zero[0], generator=Generator(3))[0].atanh()
    given = tanh_normal_sample(mean, log_std, noise=noise)
    for a, b in zip(
        *(torch.autograd.grad(sum(x.sum() for x in r), (mean, log_std)) for r in (drawn, given)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["action", "log_prob"])
def test_one_output_alone(tolerance, which):
    mean, log_std, noise = random(7, 2), random(7, 2), random(7, 2, grad=False)
    index = ["action", "log_prob"].index(which)
    found = torch.autograd.grad(tanh_normal_sample(mean, log_std, noise=noise)[index].sum(), (mean, log_std))
    wanted = torch.autograd.grad(usual_sample(mean, log_std, noise, -1.0, 1.0)[index].sum(), (mean, log_std))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, **tolerance("float64"))


@pytest.mark.parametrize(
    "call",
    [
        lambda m, s: tanh_normal_sample(m, s)[1].sum(),
        lambda m, s: tanh_normal_log_prob(m, s, m.detach().tanh()).sum(),
        lambda m, s: (tanh_normal_mode(m) * s).sum(),
    ],
    ids=["sample", "log_prob", "mode"],
)
def test_second_derivatives_raise(call):
    mean, log_std = random(5, 2), random(5, 2)
    (grad,) = torch.autograd.grad(call(mean, log_std), mean, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()


def test_constants_must_not_require_a_gradient():
    x, bound = random(4, 3), torch.ones(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="tanh_normal_sample: noise must not require a gradient"):
        tanh_normal_sample(x, x, noise=x)
    for name, call in (
        ("tanh_normal_sample", lambda: tanh_normal_sample(x, x, high=bound)),
        ("tanh_normal_log_prob", lambda: tanh_normal_log_prob(x, x, x.detach(), high=bound)),
        ("tanh_normal_mode", lambda: tanh_normal_mode(x, high=bound)),
    ):
        with pytest.raises(ValueError, match=f"{name}: high must not require a gradient"):
            call()


def test_no_grad_and_detached_results():
    x = random(4, 3)
    with torch.no_grad():
        assert not any(r.requires_grad for r in tanh_normal_sample(x, x))
    assert not tanh_normal_mode(x.detach()).requires_grad


# ---- torch.compile ----------------------------------------------------------------------------------------------


def test_opcheck():
    import fastrl.kernels.tanh_normal._torch  # noqa: F401 (registers the ops)

    ops = torch.ops.fastrl
    m, s, e, a = random(5, 3), random(3), random(5, 3, grad=False), (random(5, 3, grad=False) / 4).requires_grad_()
    bounds = (None, torch.full((3,), 2.0, dtype=torch.float64), -1.0, 0.0)
    limits = (-1.0, 1.0, 1e-6)
    torch.library.opcheck(ops.tanh_normal_sample, (m, s, e, *bounds, *limits))
    torch.library.opcheck(ops.tanh_normal_log_prob, (m, s, a, *bounds, *limits))
    torch.library.opcheck(ops.tanh_normal_mode, (m, *bounds))


def test_compiled_step_with_dynamic_shapes(tolerance):
    """fullgraph: draws, both results and their gradients, as in eager mode; the generators agree afterwards."""

    def act(mean, log_std, generator):
        action, log_prob = tanh_normal_sample(
            mean, log_std, generator=generator, low=-2.0, high=1.0, log_std_min=-1.0, correction="epsilon"
        )
        again = tanh_normal_log_prob(mean, log_std, action.detach() / 2)
        return action, log_prob, again, tanh_normal_mode(mean)

    torch._dynamo.reset()
    step = torch.compile(act, fullgraph=True, dynamic=True, backend="aot_eager")
    ours, theirs = Generator(5), Generator(5)
    for rows in (6, 6, 21):
        mean, log_std = random(rows, 3), random(rows, 3)
        found, wanted = step(mean, log_std, ours), act(mean, log_std, theirs)
        assert ours.state_dict() == theirs.state_dict()
        grads = [torch.autograd.grad(sum(x.sum() for x in r), (mean, log_std)) for r in (found, wanted)]
        for a, b in zip((*found, *grads[0]), (*wanted, *grads[1]), strict=True):
            np.testing.assert_allclose(a.detach(), b.detach(), **tolerance("float64"))


def test_second_derivatives_raise_where_only_the_mean_has_a_gradient():
    mean = torch.zeros(2, 3, requires_grad=True)
    action, log_prob = tanh_normal_sample(mean, torch.zeros(3), noise=torch.ones(2, 3))
    (gradient,) = torch.autograd.grad((action.sum(1) + log_prob).sum(), mean, create_graph=True)
    with pytest.raises(RuntimeError, match="second|twice|once"):
        gradient.square().sum().backward()


def test_a_bound_that_is_changed_before_the_backward_pass_is_noticed():
    mean, high = torch.zeros(2, 1, requires_grad=True), torch.ones(1)
    action, _ = tanh_normal_sample(mean, torch.zeros(1), noise=torch.ones(2, 1), high=high)
    high.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        action.sum().backward()
