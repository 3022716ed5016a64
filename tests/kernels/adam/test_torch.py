"""adam_step of tensors against torch.optim.Adam, and the path of CUDA tensors."""

import importlib
import itertools

import numpy as np
import pytest

import fastrl
from fastrl.kernels import adam

from .helpers import adam_lists, arrays, close, state_of


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
