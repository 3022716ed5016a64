"""The policy heads: half precision on a CPU, bounds of other kinds, and transforms that they do not support."""

import numpy as np
import pytest

import fastrl
from fastrl import Generator

torch = pytest.importorskip("torch", reason="torch is not installed")

HALVES = (torch.bfloat16, torch.float16)
MEAN, LOG_STD, NOISE = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0))
NOISE = (8 * NOISE).round() / 8  # numbers of every dtype
ACTION = torch.tanh(NOISE)
LOGITS, CHOICE = 3 * NOISE, torch.tensor([0, 1, 0, 0, 1, 1])
BOUNDS = {"low": -2.0, "high": torch.tensor([1.0, 3.0])}

# What each head gives: a function of its float arguments.
HEADS = {
    "categorical_sample": (lambda z: fastrl.categorical_sample(z, generator=Generator(1))[1:], (LOGITS,)),
    "categorical_log_prob_entropy": (lambda z: fastrl.categorical_log_prob_entropy(z, CHOICE), (LOGITS,)),
    "normal_sample": (lambda m, s: fastrl.normal_sample(m, s, generator=Generator(1)), (MEAN, LOG_STD)),
    "normal_sample given noise": (lambda m, s: fastrl.normal_sample(m, s, noise=NOISE.to(m.dtype)), (MEAN, LOG_STD[0])),
    "normal_log_prob_entropy": (fastrl.normal_log_prob_entropy, (MEAN, LOG_STD[0], NOISE)),
    "tanh_normal_sample": (
        lambda m, s: fastrl.tanh_normal_sample(m, s, generator=Generator(1), **BOUNDS, log_std_min=-1, log_std_max=1),
        (MEAN, LOG_STD),
    ),
    "tanh_normal_log_prob": (
        lambda m, s, a: (fastrl.tanh_normal_log_prob(m, s, a, **BOUNDS),),
        (MEAN, LOG_STD, ACTION),
    ),
    "tanh_normal_mode": (lambda m: (fastrl.tanh_normal_mode(m, **BOUNDS),), (MEAN,)),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_half_precision_is_float32_inside(name, dtype):
    head, arguments = HEADS[name]
    halves = [x.to(dtype).requires_grad_() for x in arguments]
    floats = [x.detach().float().requires_grad_() for x in halves]
    got, wanted = head(*halves), head(*floats)
    for x, y in zip(got, wanted, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x, y.to(dtype), rtol=0, atol=0)
    with torch.no_grad():
        for x, y in zip(head(*halves), got, strict=True):
            torch.testing.assert_close(x, y.detach(), rtol=0, atol=0)
    sum(x.float().sum() for x in got).backward()
    sum(x.sum() for x in wanted).backward()
    for x, y in zip(halves, floats, strict=True):
        assert x.grad.dtype == dtype
        torch.testing.assert_close(x.grad, y.grad.to(dtype), rtol=0, atol=0)


def test_a_float32_log_std_beside_a_mean_of_autocast():
    layer, log_std = torch.nn.Linear(3, 2), torch.zeros(2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = layer(torch.ones(4, 3))
        assert mean.dtype == torch.bfloat16
        action, log_prob = fastrl.tanh_normal_sample(mean, log_std, low=np.array([-1.0, -2.0]), high=1.5)
        other, entropy = fastrl.normal_log_prob_entropy(mean, log_std, action.float())
    assert {x.dtype for x in (action, log_prob, other, entropy)} == {torch.bfloat16}
    (log_prob.sum() + other.sum()).backward()
    assert log_std.grad.dtype == torch.float32 and torch.isfinite(log_std.grad).all()
    assert torch.isfinite(layer.weight.grad).all()


def test_a_bound_that_bfloat16_rounds_holds_the_action():
    mean, log_std = torch.tensor([[50.0, -50.0]], dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)
    for low, high in ((-0.3, 0.3), (np.array([-0.3, -0.3]), torch.tensor([0.3, 0.3]))):
        action, log_prob = fastrl.tanh_normal_sample(mean, log_std, low=low, high=high)
        wanted = torch.tensor([[0.3, -0.3]]).bfloat16()
        torch.testing.assert_close(action, wanted, rtol=0, atol=0)
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(fastrl.tanh_normal_log_prob(mean, log_std, action, low=low, high=high)).all()


@pytest.mark.parametrize("dtype", [np.float16])
def test_half_precision_of_numpy(dtype):
    mean, log_std = MEAN.numpy().astype(dtype), LOG_STD.numpy().astype(dtype)
    got = fastrl.normal_log_prob_entropy(mean, log_std, mean)
    wanted = fastrl.normal_log_prob_entropy(*(x.astype(np.float32) for x in (mean, log_std, mean)))
    for x, y in zip(got, wanted, strict=True):
        assert isinstance(x, np.ndarray) and x.dtype == dtype
        np.testing.assert_array_equal(x, y.astype(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_under_compile(dtype):
    call = torch.compile(fastrl.normal_log_prob_entropy, fullgraph=True, backend="aot_eager")
    arrays = [x.to(dtype) for x in (MEAN, LOG_STD, NOISE)]
    for x, y in zip(call(*arrays), fastrl.normal_log_prob_entropy(*arrays), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


# ---- bounds -----------------------------------------------------------------------------------------------------

LOW, HIGH = (-1.0, -0.5), (2.0, 0.25)


def bounds_of(kind, x):
    return {
        "list": list, "tuple": tuple, "float32": lambda x: np.array(x, np.float32), "float64": np.array,
        "torch": torch.tensor, "torch float64": lambda x: torch.tensor(x, dtype=torch.float64),
        "read-only": lambda x: np.broadcast_to(np.array(x), 2), "strided": lambda x: np.repeat(np.array(x), 2)[::2],
    }[kind](x)  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["list", "tuple", "float32", "float64", "torch", "torch float64", "read-only", "strided"]
)
@pytest.mark.parametrize("mean_kind", ["torch", "torch float64", "numpy", "numpy float64", "with a gradient"])
def test_bounds_of_any_kind(kind, mean_kind):
    arrays = [x.double() if "64" in mean_kind else x.clone() for x in (MEAN, LOG_STD, NOISE, ACTION)]
    dtype = arrays[0].dtype
    if mean_kind.startswith("numpy"):
        arrays = [x.numpy() for x in arrays]
    elif mean_kind == "with a gradient":
        arrays[0].requires_grad_()
    mean, log_std, noise, action = arrays
    like = [torch.tensor(x, dtype=dtype) for x in (LOW, HIGH)]
    own = [x.numpy() if isinstance(mean, np.ndarray) else x for x in like]
    given = [bounds_of(kind, x) for x in (LOW, HIGH)]

    def results(low, high):
        sampled = fastrl.tanh_normal_sample(mean, log_std, noise=noise, low=low, high=high)
        log_prob = fastrl.tanh_normal_log_prob(mean, log_std, 0.2 * action, low=low, high=high)
        return *sampled, log_prob, fastrl.tanh_normal_mode(mean, low=low, high=high)

    for x, y in zip(results(*given), results(*own), strict=True):
        assert type(x) is type(y) and x.dtype == y.dtype
        np.testing.assert_array_equal(*(t.detach().numpy() if isinstance(t, torch.Tensor) else t for t in (x, y)))


def test_bounds_of_a_box_space():
    spaces = pytest.importorskip("gymnasium.spaces", reason="gymnasium is not installed")
    box = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    action, _ = fastrl.tanh_normal_sample(MEAN, LOG_STD, low=box.low, high=box.high)
    assert all(box.contains(a) for a in action.numpy())


@pytest.mark.parametrize("number", [np.array(2.0), np.array(2), torch.tensor(2.0), np.float32(2), 2], ids=repr)
def test_a_bound_in_an_array_without_dimensions(number):
    wanted = fastrl.tanh_normal_mode(MEAN, low=-1.0, high=2.0)
    torch.testing.assert_close(fastrl.tanh_normal_mode(MEAN, low=-1.0, high=number), wanted, rtol=0, atol=0)


def test_bounds_under_compile():
    low, high = np.array(LOW, np.float32), torch.tensor(HIGH)
    call = torch.compile(lambda m: fastrl.tanh_normal_mode(m, low=low, high=high), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(MEAN), fastrl.tanh_normal_mode(MEAN, low=low, high=high))


# ---- transforms that the kernels do not support -------------------------------------------------------------------

CALLS = {
    "normal": lambda m: fastrl.normal_log_prob_entropy(m, LOG_STD, NOISE)[0],
    "normal_sample": lambda m: fastrl.normal_sample(m, LOG_STD)[1],
    "tanh_normal": lambda m: fastrl.tanh_normal_log_prob(m, LOG_STD, ACTION),
    "tanh_normal_sample": lambda m: fastrl.tanh_normal_sample(m, LOG_STD)[1],
    "tanh_normal_mode": fastrl.tanh_normal_mode,
    "categorical": lambda m: fastrl.categorical_log_prob_entropy(m, CHOICE)[0],
    "categorical_sample": lambda m: fastrl.categorical_sample(m)[1],
    "reverse_affine_scan": lambda m: fastrl.reverse_affine_scan(m, LOG_STD),
    "half": lambda m: fastrl.tanh_normal_mode(m.bfloat16()),
}
TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda m: f(m).sum())(MEAN),
    "jacrev": lambda f: torch.func.jacrev(f)(MEAN),
    "jacfwd": lambda f: torch.func.jacfwd(f)(MEAN),
    "jvp": lambda f: torch.func.jvp(f, (MEAN,), (MEAN,)),
    "vmap": lambda f: torch.vmap(f)(MEAN[None]),
    "vmap of what wants a gradient": lambda f: torch.vmap(f)(MEAN[None].clone().requires_grad_()),
    "hessian": lambda f: torch.func.hessian(lambda m: f(m).sum())(MEAN),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_torch_func_say_that_they_do_not_work(call, transform):
    wanted = r"torch\.func .*call them outside it, on the whole batch, with torch\.autograd\.grad|forward-mode"
    with pytest.raises(RuntimeError, match=wanted):
        TRANSFORMS[transform](CALLS[call])


@pytest.mark.parametrize("op", ["gae", "vtrace"])
def test_vmap_of_a_scan_says_that_it_does_not_work(op):
    no = torch.zeros(6, 2, dtype=torch.bool)
    arguments = {"gae": lambda m: fastrl.gae(m, m, m, no, no, gamma=0.9, lam=0.9),
                 "vtrace": lambda m: fastrl.vtrace(MEAN, m, m, no, no, m, gamma=0.9)}  # fmt: skip
    with pytest.raises(RuntimeError, match=f"^{op}: .* is inside a transform of torch.func"):
        torch.vmap(arguments[op])(MEAN[None])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("with_grad", [False, True])
def test_a_dual_tensor_does_not_lose_its_tangent(call, with_grad):
    with torch.autograd.forward_ad.dual_level():
        mean = MEAN.clone().requires_grad_() if with_grad else MEAN
        dual = torch.autograd.forward_ad.make_dual(mean, torch.ones_like(mean))
        with pytest.raises(RuntimeError, match="forward-mode derivatives.*reverse mode"):
            CALLS[call](dual)
        CALLS[call](MEAN)  # which has none
        CALLS[call](dual.detach() if not with_grad else MEAN)
