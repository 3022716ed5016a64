"""adam_step on every backend: plain loops and torch.optim.Adam as oracles, layouts, refusals."""

import importlib
import itertools
import math

import numpy as np
import pytest

import fastrl
from fastrl.kernels import adam

SHAPES = [(3, 17), (), (0, 4), (1,), (2, 5, 3), (64, 33), (1003,)]
HYPERPARAMETERS = [
    {},
    {"lr": 0.1, "beta1": 0.0, "beta2": 0.0},
    {"beta1": 0.5, "beta2": 0.99, "eps": 1e-3},
    {"beta1": 0.3, "weight_decay": 0.1},
    {"lr": 0.0, "weight_decay": 0.01},
]


@pytest.fixture(scope="module", params=["reference", "numba", "cpp"])
def step(request):
    """`adam_step` of a backend, with the keywords of the public function."""
    if request.param == "reference":
        return adam.adam_step_reference
    if request.param == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
        backend = importlib.import_module("fastrl.kernels.adam._numba")
    else:
        backend = pytest.importorskip("fastrl._C", reason="the C++ extension is not built")

    def adam_step(*lists, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        return backend.adam_step(*lists, lr, beta1, beta2, eps, weight_decay)

    return adam_step


def gaps(x):
    """A view of every second item, backwards, of a poisoned array."""
    wide = np.full([2 * n + 1 for n in x.shape], np.nan, x.dtype)
    view = wide[(..., *(slice(2 * n - 1, None, -2) if n else slice(0, 0) for n in x.shape))]
    view[...] = x
    return view


LAYOUTS = {
    "C": lambda x: x.copy(),
    "Fortran": lambda x: np.asarray(x.copy(order="F")),
    "middle first": lambda x: np.ascontiguousarray(np.moveaxis(x, 1, 0)).swapaxes(0, 1) if x.ndim > 1 else x.copy(),
    "gaps": gaps,
}


def arrays(rng, dtype="float32", shapes=SHAPES):
    return [np.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def zeros_like(like):
    return [np.zeros(x.shape, x.dtype) for x in like]


def state_of(params):
    return zeros_like(params), zeros_like(params), [np.zeros((), np.float32) for _ in params]


def adam_oracle(p, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """One number's step, by the equations of the paper in Python floats; t counts from 1."""
    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return p - lr * m_hat / (math.sqrt(v_hat) + eps), m, v


def close(found, wanted, tolerance):
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, **tolerance(x.dtype))


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_step_is_that_of_the_paper(step, dtype, layout, rng, tolerance):
    for keywords in HYPERPARAMETERS:
        keywords = {"lr": 1e-3, **keywords}
        start = arrays(rng, dtype)
        params, (exp_avgs, exp_avg_sqs, steps) = [LAYOUTS[layout](x) for x in start], state_of(start)
        exp_avg_sqs = [LAYOUTS[layout](x) for x in exp_avg_sqs]
        expected = [[(float(x), 0.0, 0.0) for x in p.ravel()] for p in start]
        for t in range(1, 4):
            grads = arrays(rng, dtype)
            kept = [g.copy() for g in grads]
            step(params, grads, exp_avgs, exp_avg_sqs, steps, **keywords)
            for numbers, grad in zip(expected, kept, strict=True):
                for j, g in enumerate(grad.ravel()):
                    p, m, v = numbers[j]
                    numbers[j] = adam_oracle(p, float(g), m, v, t, **keywords)
            for grad, copy in zip(grads, kept, strict=True):
                np.testing.assert_array_equal(grad, copy)
            assert [float(s) for s in steps] == [t] * len(SHAPES)
        for k, found in enumerate((params, exp_avgs, exp_avg_sqs)):
            wanted = [np.array([n[k] for n in e]).reshape(p.shape) for e, p in zip(expected, start, strict=True)]
            close(found, wanted, tolerance)


def test_layouts_agree_to_the_bit(step, rng):
    """And do not write between the items of a view."""
    start, grads = arrays(rng), arrays(rng)
    results = []
    for layout in LAYOUTS.values():
        params, (m, v, steps) = [layout(x) for x in start], state_of(start)
        step(params, [layout(g) for g in grads], m, [layout(x) for x in v], steps, lr=0.1)
        results.append(params)
        for p in params:
            if layout is gaps and p.base is not None:
                assert np.isnan(p.base).sum() == p.base.size - p.size
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(x, y)


def test_float64_steps_and_mixed_dtypes(step, rng, tolerance):
    params = [*arrays(rng, "float32", [(5,)]), *arrays(rng, "float64", [(5,)])]
    params[1][:] = params[0]
    grads = [np.ones_like(p) for p in params]
    m, v, _ = state_of(params)
    steps = [np.array(3.0), np.array(3.0, np.float32)]
    step(params, grads, m, v, steps, lr=0.5)
    assert [float(s) for s in steps] == [4, 4] and m[1].dtype == np.float64
    np.testing.assert_allclose(params[0], params[1], **tolerance("float32"))


def test_empty_lists(step):
    step([], [], [], [], [], lr=0.1)


def test_nan_stays_where_it_is(step, rng):
    params = arrays(rng, shapes=[(40,)])
    grads, (m, v, steps) = arrays(rng, shapes=[(40,)]), state_of(params)
    grads[0][7] = np.nan
    step(params, grads, m, v, steps, lr=0.1)
    for x in (params[0], m[0], v[0]):
        assert np.flatnonzero(np.isnan(x)).tolist() == [7]


def test_results_do_not_depend_on_the_number_of_threads(rng):
    """Above the size at which other threads are asked."""
    start, grads = (arrays(rng, shapes=[(700_003,), (300_001,), (5,)]) for _ in range(2))
    before, results = fastrl.get_num_threads(), []
    try:
        for threads in (1, 3):
            fastrl.set_num_threads(threads)
            params, state = [x.copy() for x in start], state_of(start)
            fastrl.adam_step(params, grads, *state, lr=0.1)
            results.append(params)
    finally:
        fastrl.set_num_threads(before)
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)


# ---- refusals ----------------------------------------------------------------------------------------------------


def adam_lists():
    f = np.float32
    return {
        "params": [np.ones((2, 3), f), np.ones(4, f)],
        "grads": [np.full((2, 3), 2, f), np.full(4, 2, f)],
        "exp_avgs": [np.full((2, 3), 3, f), np.full(4, 3, f)],
        "exp_avg_sqs": [np.full((2, 3), 4, f), np.full(4, 4, f)],
        "steps": [np.array(5, f), np.array(6, f)],
    }


def read_only(x):
    x.flags.writeable = False
    return x


def unaligned(shape):
    return np.zeros(4 * math.prod(shape) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def put(name, i, make):
    """Replaces one array of the call; `make` is given the lists."""

    def change(lists, keywords):
        lists[name] = [*lists[name]]
        lists[name][i] = make(lists)

    return change


def number(name, value):
    def change(lists, keywords):
        keywords[name] = value

    return change


def whole(name, make):
    def change(lists, keywords):
        lists[name] = make(lists[name])

    return change


REFUSED = [
    (whole("params", lambda x: x[0]), TypeError, "params must be a list or tuple of arrays, got ndarray"),
    (whole("grads", lambda x: None), TypeError, "grads must be a list or tuple of arrays, got NoneType"),
    (whole("grads", iter), TypeError, "grads must be a list or tuple of arrays, got list_iterator"),
    (whole("grads", lambda x: x[:1]), ValueError, "grads must have 2 arrays like params, got 1"),
    (whole("steps", lambda x: [*x, x[0]]), ValueError, "steps must have 2 arrays like params, got 3"),
    (put("grads", 1, lambda _: None), TypeError, "grads[1] must be an array, got NoneType"),
    (put("params", 0, lambda _: [1.0]), TypeError, "params[0] must be an array, got list"),
    (put("steps", 1, lambda _: 3.0), TypeError, "steps[1] must be an array, got float"),
    (
        put("exp_avgs", 1, lambda _: np.zeros(4)),
        ValueError,
        "exp_avgs[1] must have dtype float32 like params[1], got float64",
    ),
    (
        put("params", 1, lambda _: np.zeros(4, np.float16)),
        ValueError,
        "params[1] must have dtype float32 or float64, got float16",
    ),
    (
        put("steps", 0, lambda _: np.array(3)),
        ValueError,
        "steps[0] must have dtype float32 or float64, got int64",
    ),
    (
        put("exp_avg_sqs", 0, lambda _: np.zeros((3, 2), np.float32)),
        ValueError,
        "exp_avg_sqs[0] must have shape (2, 3) like params[0], got (3, 2)",
    ),
    (
        put("grads", 1, lambda _: np.zeros(1, np.float32)),
        ValueError,
        "grads[1] must have shape (4,) like params[1], got (1,)",
    ),
    (put("steps", 0, lambda _: np.zeros(1, np.float32)), ValueError, "steps[0] must have shape (), got (1,)"),
    (put("params", 1, lambda _: read_only(np.zeros(4, np.float32))), ValueError, "params[1] must be writable"),
    (put("steps", 1, lambda _: read_only(np.zeros((), np.float32))), ValueError, "steps[1] must be writable"),
    (put("grads", 1, lambda _: unaligned((4,))), ValueError, "grads[1] must be aligned"),
    (
        put("exp_avgs", 1, lambda _: np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (4,), (0,))),
        ValueError,
        "exp_avgs[1] must not overlap itself",
    ),
    *(
        (
            put(name, 0, lambda _, s=strides: np.lib.stride_tricks.as_strided(np.zeros(9, np.float32), (2, 3), s)),
            ValueError,
            f"{name}[0] must not overlap itself",
        )
        for name, strides in (
            ("params", (4, 4)),  # a sliding window
            ("params", (0, 4)),
            ("exp_avgs", (8, 4)),
            ("exp_avg_sqs", (12, 8)),  # whose items only interleave
        )
    ),
    (
        put("exp_avgs", 0, lambda lists: lists["params"][0]),
        ValueError,
        "exp_avgs[0] must not share memory with params[0]",
    ),
    (
        put("grads", 1, lambda lists: lists["params"][1][::-1]),
        ValueError,
        "grads[1] must not share memory with params[1]",
    ),
    (
        put("exp_avgs", 1, lambda lists: lists["params"][0].reshape(-1)[2:]),
        ValueError,
        "exp_avgs[1] must not share memory with params[0]",
    ),
    (
        put("steps", 1, lambda lists: lists["steps"][0]),
        ValueError,
        "steps[1] must not share memory with steps[0]",
    ),
    (
        put("steps", 0, lambda lists: lists["exp_avg_sqs"][1][3:].reshape(())),
        ValueError,
        "exp_avg_sqs[1] must not share memory with steps[0]",
    ),
    (number("lr", "fast"), TypeError, "lr must be a float, got str"),
    (number("lr", True), TypeError, "lr must be a float, got bool"),
    (number("lr", -0.1), ValueError, "lr must be finite and >= 0, got -0.1"),
    (number("lr", 10**400), ValueError, "lr must be finite and >= 0, got inf"),
    (number("lr", math.nan), ValueError, "lr must be finite and >= 0, got nan"),
    (number("beta1", 1), ValueError, "beta1 must be in [0, 1), got 1.0"),
    (number("beta2", -1e-9), ValueError, "beta2 must be in [0, 1), got -1e-09"),
    (number("beta2", None), TypeError, "beta2 must be a float, got NoneType"),
    (number("eps", -1e-8), ValueError, "eps must be finite and >= 0, got -1e-08"),
    (number("weight_decay", math.inf), ValueError, "weight_decay must be finite and >= 0, got inf"),
    (put("steps", 1, lambda _: np.array(-1, np.float32)), ValueError, "steps[1] must be >= 0, got -1.0"),
    (put("steps", 1, lambda _: np.array(np.nan)), ValueError, "steps[1] must be >= 0, got nan"),
]


@pytest.mark.parametrize(("change", "error", "text"), REFUSED, ids=[r[2] for r in REFUSED])
def test_adam_step_refuses(step, change, error, text):
    lists, keywords = adam_lists(), {"lr": 0.1}
    originals = adam_lists(), lists.copy()
    change(lists, keywords)
    with pytest.raises(error) as caught:
        step(*lists.values(), **keywords)
    assert str(caught.value) == f"adam_step: {text}"
    for name, wanted in originals[0].items():  # nothing was written
        for x, y in zip(originals[1][name], wanted, strict=True):
            np.testing.assert_array_equal(x, y)


def test_memory_that_is_only_read_may_be_shared(step):
    lists = adam_lists()
    lists["params"][0], lists["exp_avgs"][0], lists["exp_avg_sqs"][0] = (np.zeros(4, np.float32) for _ in range(3))
    gradient = np.ones(1, np.float32)
    lists["grads"] = [np.broadcast_to(gradient, 4)] * 2
    step(*lists.values(), lr=0.1)
    assert np.all(lists["exp_avgs"][0] == lists["exp_avgs"][0][0]) and gradient[0] == 1


def test_columns_of_a_matrix_count_as_sharing(step):
    matrix, lists = np.zeros((4, 2), np.float32), adam_lists()
    lists["params"][1], lists["grads"][1] = matrix.T
    with pytest.raises(ValueError, match=r"^adam_step: grads\[1\] must not share memory with params\[1\]"):
        step(*lists.values(), lr=0.1)


# ---- torch -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def networks(torch, n, dtype=None):
    """Equal networks, one with a weight whose dimensions are in another order."""
    nets = []
    for _ in range(n):
        torch.manual_seed(3)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(2, 5, 3), torch.nn.Flatten(), torch.nn.Linear(20, 33), torch.nn.Tanh(),
            torch.nn.Linear(33, 1),
        ).to(dtype or torch.float32, memory_format=torch.channels_last)  # fmt: skip
        nets.append(net)
    return nets


def gradients(net, x):
    net.zero_grad()
    (net(x) ** 2).mean().backward()


def state_lists(params, optimizer):
    states = [optimizer.state[p] for p in params]
    return [[s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step")]


def ours(step, optimizer, **keywords):
    """A step by ours on an optimizer of torch and its state."""
    params = optimizer.param_groups[0]["params"]
    step(params, [p.grad for p in params], *state_lists(params, optimizer), **keywords)


@pytest.mark.parametrize(("dtype", "weight_decay"), [("float32", 0.0), ("float64", 0.01)])
def test_hundreds_of_steps_end_where_those_of_torch_do(step, torch, tolerance, dtype, weight_decay):
    """200 steps of fused and of foreach Adam and of ours, on the same gradients."""
    keywords = {"lr": 1e-3, "weight_decay": weight_decay}
    nets = networks(torch, 3, getattr(torch, dtype))
    optimizers = [
        torch.optim.Adam(net.parameters(), **keywords, **how)
        for net, how in zip(nets, ({"fused": True}, {"foreach": True}, {}), strict=True)
    ]
    for p in nets[2].parameters():
        optimizers[2].state[p] = {
            "step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p),
        }  # fmt: skip
    for _ in range(200):
        grads = [torch.randn_like(p) for p in nets[0].parameters()]
        for net in nets:
            for p, g in zip(net.parameters(), grads, strict=True):
                p.grad = g.clone()
        optimizers[0].step()
        optimizers[1].step()
        ours(step, optimizers[2], **keywords)

    def everything(net, optimizer):
        params = list(net.parameters())
        return [p.detach().numpy() for p in params], *([x.numpy() for x in s] for s in state_lists(params, optimizer))

    found = everything(nets[2], optimizers[2])
    for net, optimizer in zip(nets[:2], optimizers[:2], strict=True):
        for mine, theirs in zip(found, everything(net, optimizer), strict=True):
            close(mine, theirs, tolerance)


def test_torch_goes_on_where_ours_stopped_and_back(step, torch, tolerance):
    """Through a state_dict both ways."""
    (reference,), (net,) = networks(torch, 1), networks(torch, 1)
    x = torch.randn(8, 2, 4, 4)
    wanted = torch.optim.Adam(reference.parameters(), lr=1e-3, fused=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    for k in range(60):
        gradients(reference, x)
        wanted.step()
        gradients(net, x)
        if k // 20 == 1:
            ours(step, optimizer, lr=1e-3)
        else:
            optimizer.step()
        if k % 20 == 19:
            state = optimizer.state_dict()
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
            optimizer.load_state_dict(state)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), **tolerance("float32"))
        assert optimizer.state[p]["step"] == wanted.state[q]["step"] == 60


def test_torch_is_told_of_the_change(torch):
    """As with torch's own: no graph is recorded, and a backward pass through the old values raises."""
    w, x = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    state = [torch.zeros(3)], [torch.zeros(3)], [torch.tensor(0.0)]
    loss = (w * x).sum()
    fastrl.adam_step([w], [torch.ones(3)], *state, lr=0.1)
    assert w.is_leaf and w.grad_fn is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_refusals_of_torch_tensors(step, torch):
    for name, make, error, text in (
        ("grads", lambda x: x.numpy(), TypeError, "must be a torch.Tensor like params[0], got a numpy.ndarray"),
        ("grads", lambda x: x.to("meta"), ValueError, None),
        ("exp_avgs", lambda x: x.to_sparse(), ValueError, None),
        ("exp_avgs", lambda x: x[:1].expand(4), ValueError, "must not overlap itself"),
        ("params", lambda x: x.bfloat16(), ValueError, "must have dtype float32 or float64, got bfloat16"),
        ("steps", lambda x: x.reshape(1), ValueError, "must have shape (), got (1,)"),
    ):
        lists = {key: [torch.from_numpy(x) for x in arrays] for key, arrays in adam_lists().items()}
        lists[name][1] = make(lists[name][1])
        with pytest.raises(error) as caught:
            step(*lists.values(), lr=0.1)
        assert str(caught.value).startswith(f"adam_step: {name}[1] ")
        assert text is None or str(caught.value) == f"adam_step: {name}[1] {text}"
        assert lists["params"][0].tolist() == [[1.0] * 3] * 2 and lists["steps"][0] == 5


# What serves CUDA tensors runs on any device of torch.


def test_the_path_of_cuda_tensors(torch, tolerance):
    backend = importlib.import_module("fastrl.kernels.adam._torch").fallback
    rng = np.random.default_rng(5)
    start, grads = (arrays(rng) + arrays(rng, "float64", [(7,), (3, 2)]) for _ in range(2))
    for lr in (2**-7, torch.tensor(2**-7)):
        found, wanted = [], []
        for lists, make in ((found, torch.from_numpy), (wanted, np.copy)):
            for x in (start, grads, *state_of(start)):
                lists.append([make(np.copy(a)) for a in x])
        for _ in range(3):
            backend.adam_step(*found, lr, 0.9, 0.999, 1e-8, 0.01)
            adam.adam_step_reference(*wanted, lr=2**-7, weight_decay=0.01)
        for x, y in zip(itertools.chain(*found), itertools.chain(*wanted), strict=True):
            np.testing.assert_allclose(x.numpy(), y, **tolerance(y.dtype))
    matrix, row, zero = torch.zeros(4, 4), [torch.zeros(4)], [torch.tensor(0.0)]
    with pytest.raises(ValueError, match=r"^adam_step: params\[0\] must have no gaps on CUDA"):
        backend.adam_step([matrix[:, 1]], row, row, row, zero, 0.1, 0.9, 0.9, 0, 0)
    with pytest.raises(ValueError, match=r"^adam_step: exp_avgs\[0\] must not share memory with grads\[0\]"):
        backend.adam_step([matrix[0]], row, row, [matrix[1]], zero, 0.1, 0.9, 0.9, 0, 0)
    with pytest.raises(ValueError, match=r"^adam_step: steps\[0\] must have dtype float32, got float64"):
        backend.adam_step(*(x[:1] for x in found[:4]), [torch.zeros((), dtype=torch.float64)], 0.1, 0.9, 0.9, 0, 0)


def test_cuda_tensors(torch, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rng = np.random.default_rng(5)
    start, grads = arrays(rng), arrays(rng)
    state = state_of(start)
    found = [[torch.from_numpy(np.copy(a)).cuda() for a in x] for x in (start, grads, *state)]
    fastrl.adam_step(*found, lr=0.01)
    adam.adam_step_reference(start, grads, *state, lr=0.01)
    for x, y in zip(found[0], start, strict=True):
        np.testing.assert_allclose(x.cpu().numpy(), y, **tolerance("float32"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eps_0_divides_by_0_as_everywhere(dtype):
    """An item without a gradient is 0 / 0, NaN, on every backend; the others are updated all the same."""
    import importlib

    backends = {"reference": importlib.import_module("fastrl.kernels.adam").reference}
    if importlib.util.find_spec("numba"):
        backends["numba"] = importlib.import_module("fastrl.kernels.adam._numba")
    if importlib.util.find_spec("fastrl._C"):
        backends["cpp"] = importlib.import_module("fastrl._C")
    for name, kernels in backends.items():
        p, g, m, v = (np.array(x, dtype) for x in ([1, 1, 1], [1, 0, -2], [0, 0, 0], [0, 0, 0]))
        step = np.array(0.0, np.float32)
        kernels.adam_step([p], [g], [m], [v], [step], 0.1, 0.9, 0.999, 0.0, 0.0)
        np.testing.assert_allclose(p, [0.9, np.nan, 1.1], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(m, [0.1, 0, -0.2], rtol=1e-6, err_msg=name)
        assert step == 1 and np.isfinite(v).all()
