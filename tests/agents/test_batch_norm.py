"""Networks with batch renormalisation against torch: values, gradients, running statistics."""

import copy
import pickle

import numpy as np
import pytest
import torch
from batch_norm_oracle import batch_norm_oracle

from fastrl.agents import CrossQ, InputError
from fastrl.agents.batch_norm import BatchNormMLP

SIZES, B = (5, 17, 9, 2), 24


def outputs(net, module, x):
    return module(x) if net.n is None else torch.stack([one(x) for one in module])


def make(rng, n, warmup, **settings):
    net = BatchNormMLP(SIZES, n=n, momentum=0.2, warmup=warmup, seed=3, **settings)
    net.vector += 0.2 * rng.standard_normal(len(net.vector), np.float32)
    for _ in range(3):
        net.forward_batch(1 + 2 * rng.standard_normal((B, 5), np.float32))
    return net


def assert_close(got, wanted):
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("n", [None, 1, 2])
@pytest.mark.parametrize("how", ["running", "batch", "renormalised"])
def test_values_and_gradients_against_autograd(rng, n, how):
    net = make(rng, n, warmup=100 if how == "batch" else 2)
    module = batch_norm_oracle(net).train(how != "running")
    # Statistics of their own, so that r and d are used and some of them clipped.
    obs, action = (
        scale + rng.standard_normal((B, k), np.float32) * size for k, scale, size in ((3, 9, 9), (2, 0, 0.02))
    )
    x = torch.from_numpy(np.concatenate((obs, action), 1)).double().requires_grad_()
    wanted = outputs(net, module, x)
    out = net.forward_cached((obs, action)) if how == "running" else net.forward_batch((obs, action))
    assert out.dtype == np.float32
    assert_close(out, wanted)
    if how == "renormalised":
        first = (module if n is None else module[0])[0]
        assert net.steps == 4 and first.num_batches_tracked == 4
        np.testing.assert_allclose(net._layers[0][0].mean, first.running_mean, rtol=1e-4, atol=1e-6)

    d = rng.standard_normal(out.shape, np.float32)
    net.grad[:] = np.nan
    d_x = net.backward(d, inputs=True)
    (wanted * torch.from_numpy(d)).sum().backward()
    assert_close(d_x, x.grad)
    np.testing.assert_array_equal(net.backward(d, parameters=False, inputs=slice(-2, None)), d_x[:, -2:])
    assert net.backward(d) is None
    for name, p in module.named_parameters():
        assert_close(net.parameters(net.grad)[name], p.grad)
    for name, buffer in module.named_buffers():
        assert_close(net.state_dict()[name], buffer)


def test_the_first_network_alone(rng):
    net = make(rng, 2, warmup=9)
    x = rng.standard_normal((B, 5), np.float32)
    both, out = net.forward(x), net.forward_cached(x, first=1)
    np.testing.assert_array_equal(out, both[:1])
    net.grad[:] = np.nan
    net.backward(np.ones_like(out))
    half = len(net.grad) // 2
    assert (net.grad[half:] == 0).all() and np.isfinite(net.grad[:half]).all() and net.grad[:half].any()


def test_acting_leaves_what_an_update_kept_and_the_statistics(rng):
    net = make(rng, None, warmup=9)
    out = net.forward_batch(rng.standard_normal((B, 5), np.float32))
    before = net.state_dict()
    net.backward(np.ones_like(out))
    wanted = net.grad.copy()
    row = rng.standard_normal((1, 5), np.float32)
    np.testing.assert_allclose(net.forward(row)[0], net.forward(np.repeat(row, 8, 0))[3], rtol=1e-5, atol=1e-6)
    net.backward(np.ones_like(out))
    np.testing.assert_array_equal(net.grad, wanted)
    assert all(np.array_equal(x, before[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize("n", [None, 2])
def test_to_torch_shares_memory_and_computes_the_same(rng, n):
    net = make(rng, n, warmup=9)
    module, x = net.to_torch().eval(), rng.standard_normal((B, 5), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(outputs(net, module, torch.from_numpy(x)), net.forward(x), rtol=1e-5, atol=1e-5)
        assert set(module.state_dict()) == set(net.state_dict())
        next(module.parameters()).fill_(0.5)
    assert (net.vector[:5] == 0.5).all()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_share_nothing_and_are_whole(rng, way):
    net = make(rng, 2, warmup=1)
    other, x = way(net), rng.standard_normal((B, 5), np.float32)
    with pytest.raises(RuntimeError, match="backward needs forward_cached or forward_batch"):
        other.backward(np.ones((2, B, 2), np.float32))
    before = net.state_dict()
    np.testing.assert_array_equal(other.forward_batch(x), copy.deepcopy(net).forward_batch(x))
    other.vector += 1
    assert all(np.array_equal(value, before[name]) for name, value in net.state_dict().items())
    other.load_state_dict(before)
    assert other.steps == net.steps == 3 and other._layers[0][0].linear.vector.base is not None
    np.testing.assert_array_equal(other.forward(x), net.forward(x))


def test_a_state_that_does_not_fit_changes_nothing(rng):
    net = make(rng, None, warmup=9)
    before, state = net.state_dict(), {name: x + 1 for name, x in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing \['0.running_var'\], unexpected \['x'\]"):
        net.load_state_dict({**{k: v for k, v in state.items() if k != "0.running_var"}, "x": np.zeros(1)})
    with pytest.raises(ValueError, match=r"BatchNormMLP: 7.weight must have shape \(2, 9\), got \(9, 2\)"):
        net.load_state_dict({**state, "7.weight": state["7.weight"].T})
    assert all(np.array_equal(x, before[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.0.running_mean", np.nan, "0.0.running_mean must be finite"),
        ("1.3.running_var", np.inf, "1.3.running_var must be finite and >= 0"),
        ("1.3.running_var", -1.0, "1.3.running_var must be finite and >= 0"),
        ("0.0.num_batches_tracked", -1, "num_batches_tracked must be >= 0, got -1"),
    ],
)
def test_statistics_that_cannot_be(rng, name, value, message):
    net = make(rng, 2, warmup=2)
    before = net.state_dict()
    with pytest.raises(ValueError, match=f"^BatchNormMLP: {message}$"):
        net.load_state_dict({**before, "0.1.bias": before["0.1.bias"] + 1, name: np.full_like(before[name], value)})
    assert all(np.array_equal(x, before[name]) for name, x in net.state_dict().items())


def test_an_agent_with_statistics_that_are_not_finite_is_not_saved(tmp_path):
    agent = CrossQ("Pendulum-v1", hidden=(8,), critic_hidden=(8,))
    agent.critics.statistics()[1][...] = np.inf
    with pytest.raises(InputError, match="^weights are not finite at step 0"):
        agent.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
