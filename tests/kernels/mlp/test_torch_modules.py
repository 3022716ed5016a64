"""Modules of torch that share their parameters' memory with an MLP."""

import numpy as np
import pytest

import fastrl

from .helpers import by_hand

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.mark.parametrize("n", [None, 2])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dueling", [False, True, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "none"])
def test_there_and_back(rng, n, layer_norm, dueling, activation):
    net = fastrl.MLP((3, 20, 17, 2), activation, n=n, layer_norm=layer_norm, dueling=dueling, seed=0)
    module = net.to_torch()
    assert list(module.state_dict()) and set(module.state_dict()) == set(net.parameters())
    x = rng.standard_normal((5, 3), np.float32)

    def outputs():
        with torch.no_grad():
            out = [m(torch.from_numpy(x)) for m in ([module] if n is None else module)]
        return torch.stack(out).numpy() if n else out[0].numpy()

    np.testing.assert_allclose(outputs(), net.forward(x), rtol=1e-5, atol=1e-6)
    net.vector *= 1.5  # NumPy writes, torch sees
    np.testing.assert_allclose(outputs(), net.forward(x), rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = net.vector.copy()
    net.backward(np.ones_like(net.forward_cached(x)))
    optimizer.step()  # torch reads the gradient, writes, and NumPy sees
    np.testing.assert_allclose(net.vector, before - 0.1 * net.grad, rtol=1e-5, atol=1e-6)

    back = fastrl.MLP.from_torch(module)
    assert repr(back) == repr(net)
    np.testing.assert_array_equal(back.forward(x), net.forward(x))
    back.vector.zero_()
    assert not outputs().any()


@pytest.mark.parametrize("n", [None, 2])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dueling", [False, True, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "none"])
def test_the_oracle_is_autograd(rng, n, layer_norm, dueling, activation):
    """What the tests of values compare with."""
    net = fastrl.MLP((3, 20, 17, 6), activation, n=n, layer_norm=layer_norm, dueling=dueling, seed=0)
    x, d_out = rng.standard_normal((9, 3)), rng.standard_normal((9, 6) if n is None else (n, 9, 6))
    inputs, module = torch.from_numpy(x).requires_grad_(), net.to_torch().double()
    out = torch.stack([m(inputs) for m in ([module] if n is None else module)]).reshape(d_out.shape)
    for p in module.parameters():
        p.grad = None
    out.backward(torch.from_numpy(d_out))
    wanted_out, grad, wanted_d_x = by_hand(net, x, d_out)
    found = dict(module.named_parameters())
    for name, wanted in net.parameters(grad).items():
        np.testing.assert_allclose(found[name].grad.numpy(), wanted, rtol=1e-12, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(out.detach().numpy(), wanted_out, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(inputs.grad.numpy(), wanted_d_x, rtol=1e-12, atol=1e-12)


def test_state_dicts_are_torchs():
    plain = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2))
    net = fastrl.MLP((3, 8, 2), "tanh", layer_norm=True)
    net.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3)
    torch.testing.assert_close(net.forward(x), plain(x).detach())
    net.reset(5)
    plain.load_state_dict({name: torch.from_numpy(a) for name, a in net.state_dict().items()})
    torch.testing.assert_close(net.forward(x), plain(x).detach())


def test_a_flatten_in_front_is_skipped():
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(5, 2, 3)
    wanted = module(x).detach()
    net = fastrl.MLP.from_torch(module)
    torch.testing.assert_close(net.forward(x.flatten(1)), wanted)
    torch.testing.assert_close(module(x).detach(), wanted)


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (nn.Linear(2, 2), TypeError, "takes a Sequential or a ModuleList of them, got Linear"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), TypeError, "takes Linear layers with a bias"),
        (nn.Sequential(nn.Linear(2, 2, bias=False)), TypeError, "takes Linear layers with a bias"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), TypeError, "takes modules that end with a Linear layer"),
        (nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2)), TypeError, "takes Linear layers with a bias"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(3, 2)), ValueError, "a layer of 3 inputs after 2 outputs"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)),
            TypeError,
            "takes one activation",
        ),
        (nn.Sequential(nn.Linear(2, 2).double()), ValueError, "takes float32 parameters"),
        (
            nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 3))]),
            ValueError,
            "takes networks of one shape",
        ),
        (nn.ModuleList([nn.Sequential(nn.Linear(2, 2))] * 2), ValueError, "share no parameters"),
        (nn.Sequential(), TypeError, "takes modules with at least one Linear layer"),
    ],
)
def test_modules_that_are_no_mlp(module, error, text):
    with pytest.raises(error, match="^MLP: from_torch.*" + text):
        fastrl.MLP.from_torch(module)


@pytest.mark.parametrize("settings", [{}, {"layer_norm": True}, {"dueling": True}, {"dueling": 3}])
@pytest.mark.parametrize("n", [None, 2])
def test_the_torch_core_agrees(rng, n, settings):
    """What serves CUDA tensors, on CPU tensors."""
    from fastrl.kernels.mlp._torch import MlpCore

    net = fastrl.MLP((3, 17, 9, 6), "silu", n=n, seed=0, **settings)
    core = MlpCore([3, 17, 9, 6], "silu", n or 1, n is not None, net.layer_norm, net.dueling)
    x, vector, grad = torch.randn(20, 3), torch.from_numpy(net.vector), torch.zeros(len(net.vector))
    out = net.forward_cached(x)
    torch.testing.assert_close(core.forward(vector, x, n or 1, True), out, rtol=1e-5, atol=1e-5)
    d_out = torch.randn(out.shape)
    d_x = net.backward(d_out, inputs=slice(1, 3))
    torch.testing.assert_close(core.backward(d_out, grad, 1, 3), d_x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, torch.from_numpy(net.grad), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_update_by_torch_alone(monkeypatch, device):
    """The calls of an update, by what serves CUDA tensors, against the same by the CPU's backend."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    from fastrl.kernels.mlp import _torch, backend

    torch.manual_seed(0)
    x, next_x = torch.randn(32, 4), torch.randn(32, 4)
    action, reward, discount = torch.randint(3, (32,)), torch.randn(32), torch.rand(32)

    def update(device):
        batch = [t.to(device) for t in (x, next_x, action, reward, discount)]
        settings = {"layer_norm": True, "dueling": True, "device": device}
        net, target = (fastrl.MLP((4, 16, 16, 3), seed=seed, **settings) for seed in (0, 1))
        adam = fastrl.FlatAdam(net.vector, net.grad, lr=0.01)
        for _ in range(3):
            next_q, online = target.forward(batch[1]), net.forward(batch[1])
            found = fastrl.q_learning_loss(
                net.forward_cached(batch[0]), *batch[2:], next_q, next_q_online=online, loss="huber"
            )
            net.backward(found.d_q)
            adam.step(max_grad_norm=0.3, target=target.vector, tau=0.5)
        vectors = [torch.as_tensor(vector).cpu() for vector in (net.vector, target.vector)]
        return [*vectors, torch.as_tensor(float(found.loss))]

    wanted = update("cpu")
    if device == "cpu":
        monkeypatch.setattr(backend, "cpu", _torch)
    found = update(device)
    for a, b in zip(found, wanted, strict=True):  # Adam divides by |g|, which magnifies the rounding of small ones
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
