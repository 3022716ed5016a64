"""Outputs and gradients of MLP against plain float64."""

import copy
import pickle
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastrl

from .helpers import by_hand, dyadic

WIDTHS = st.sampled_from([1, 3, 15, 16, 17, 64, 255, 400])
BATCHES = st.sampled_from([1, 2, 3, 31, 256, 1000])
NETWORKS = st.sampled_from([None, 1, 2, 3, 4, 5])
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def check_all(net, x, d_out, close):
    wanted, grad, d_x = by_hand(net, x, d_out)
    close(net.forward(x), wanted)
    net.grad[:] = np.nan
    close(net.forward_cached(x), wanted)
    close(net.backward(d_out, inputs=True), d_x)
    close(net.grad, grad)


@settings(max_examples=15, **COMMON)
@given(st.lists(WIDTHS, min_size=2, max_size=4), BATCHES, NETWORKS, st.integers(0, 2**32))
def test_relu_networks_of_any_size(backend, close, sizes, batch, n, seed):
    rng = np.random.default_rng(seed)
    net = fastrl.MLP(sizes, n=n)
    net.vector[:] = dyadic(rng, net.vector.shape, 2**-5, 4)
    x = dyadic(rng, (batch, sizes[0]), 2**-2)
    out = (batch, sizes[-1]) if n is None else (n, batch, sizes[-1])
    check_all(net, x, dyadic(rng, out, 2**-3), close)


@settings(max_examples=15, **COMMON)
@given(
    st.lists(WIDTHS.filter(lambda w: w <= 64), min_size=3, max_size=5),
    st.sampled_from([1, 2, 3, 31, 130]),
    NETWORKS,
    st.sampled_from(["relu", "tanh", "silu", "none"]),
    st.booleans(),
    st.sampled_from([False, True, 2, 51]),
    st.integers(0, 2**32),
)
def test_activations_layer_norm_and_dueling(backend, close, sizes, batch, n, activation, layer_norm, dueling, seed):
    if layer_norm:  # of one or three numbers that are nearly equal 1 / sqrt(var + eps) loses all digits
        sizes = [sizes[0], *(max(w, 15) for w in sizes[1:-1]), sizes[-1]]
    if dueling > 1:  # atoms
        sizes = [*sizes[:-1], min(sizes[-1], 5) * dueling]
    rng = np.random.default_rng(seed)
    net = fastrl.MLP(sizes, activation, n=n, layer_norm=layer_norm, dueling=dueling, seed=seed)
    x = rng.standard_normal((batch, sizes[0]), np.float32)
    out = (batch, sizes[-1]) if n is None else (n, batch, sizes[-1])
    check_all(net, x, rng.standard_normal(out, np.float32), close)


@settings(max_examples=8, **COMMON)
@given(
    st.permutations([255, 400, 16, 17, 1]),
    st.sampled_from([1, 2, 31, 256]),
    st.sampled_from([None, 2]),
    st.sampled_from(["tanh", "silu"]),
    st.integers(0, 2**32),
)
def test_smooth_activations_of_wide_layers(backend, close, sizes, batch, n, activation, seed):
    """At the same tolerance, 1e-5 of the largest: rounding of a sum of 400 terms is about sqrt(400) 2^-24 = 1.2e-6."""
    rng = np.random.default_rng(seed)
    net = fastrl.MLP(sizes, activation, n=n, seed=seed)
    x = rng.standard_normal((batch, sizes[0]), np.float32)
    out = (batch, sizes[-1]) if n is None else (n, batch, sizes[-1])
    check_all(net, x, rng.standard_normal(out, np.float32), close)


@pytest.mark.parametrize("columns", [slice(0, 1), slice(3, None), slice(2, 5), slice(-2, None)])
def test_gradients_of_some_inputs_only(backend, close, rng, columns):
    net = fastrl.MLP((7, 17, 1), "tanh", n=2, seed=0)
    x, d_out = rng.standard_normal((40, 7), np.float32), rng.standard_normal((2, 40, 1), np.float32)
    net.forward_cached((x[:, :3], x[:, 3:]))
    before = net.grad.copy()
    d_x = net.backward(d_out, parameters=False, inputs=columns)
    close(d_x, by_hand(net, x, d_out)[2][:, columns])
    np.testing.assert_array_equal(net.grad, before)


def test_the_first_networks_only(backend, close, rng):
    net = fastrl.MLP((3, 16, 2), n=3, seed=0)
    x, d_out = rng.standard_normal((9, 3), np.float32), rng.standard_normal((2, 9, 2), np.float32)
    wanted, grad, d_x = by_hand(net, x, d_out, first=2)
    close(net.forward(x, first=2), wanted)
    close(net.forward_cached(x, first=2), wanted)
    net.grad[:] = 5
    close(net.backward(d_out, inputs=True), d_x)
    close(net.grad, grad)


def test_strides_and_parts_do_not_matter(backend, rng):
    net = fastrl.MLP((6, 33, 5), "silu", seed=0)
    x, d = rng.standard_normal((50, 6), np.float32), rng.standard_normal((50, 5), np.float32)
    wanted = net.forward_cached(x)
    net.backward(d)
    grad = net.grad.copy()
    wide = np.full((50, 12), np.nan, np.float32)
    wide[:, ::2] = x
    for given_x in (np.asfortranarray(x), wide[:, ::2], (x[:, :1], x[:, 1:4].copy(), x[:, 4:]), x[::-1].copy()[::-1]):
        np.testing.assert_array_equal(net.forward_cached(given_x), wanted)
        np.testing.assert_array_equal(net.forward(given_x), wanted)
        net.backward(np.asfortranarray(d))
        np.testing.assert_array_equal(net.grad, grad)


def test_no_rows(backend):
    net = fastrl.MLP((3, 5, 2), n=2, seed=0)
    x = np.empty((0, 3), np.float32)
    assert net.forward(x).shape == net.forward_cached(x).shape == (2, 0, 2)
    net.grad[:] = 1
    assert net.backward(np.empty((2, 0, 2), np.float32), inputs=True).shape == (0, 3)
    assert not net.grad.any()


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "none"])
@pytest.mark.parametrize("batch", [1, 40])
def test_nan_stays_in_its_network(backend, rng, activation, batch):
    net, sound = (fastrl.MLP((3, 16, 2), activation, n=3, seed=0) for _ in range(2))
    net.parameters()["1.0.weight"][2, 1] = np.nan
    x, d = rng.standard_normal((batch, 3), np.float32), np.ones((3, batch, 2), np.float32)
    for call in ("forward", "forward_cached"):
        out, wanted = getattr(net, call)(x), getattr(sound, call)(x)
        assert np.isnan(out[1]).all()
        np.testing.assert_array_equal(out[[0, 2]], wanted[[0, 2]])
    net.backward(d), sound.backward(d)
    third = len(net.vector) // 3
    assert np.isnan(net.grad[third : 2 * third]).any()
    for part in (slice(third), slice(2 * third, None)):
        np.testing.assert_array_equal(net.grad[part], sound.grad[part])


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_large_inputs_saturate(backend, close, activation):
    net = fastrl.MLP((1, 1, 1), activation)
    net.vector[:] = [1, 0, 1, 0]
    x = np.array([[-1e30], [-200], [-88], [-30], [-1e-30], [0], [1e-30], [30], [88], [200]], np.float32)
    wanted, _, d_x = by_hand(net, x, np.ones_like(x))
    close(net.forward_cached(x), wanted)
    close(net.forward(x[:1]), wanted[:1])
    found = net.backward(np.ones_like(x), inputs=True)
    close(found, d_x)
    assert np.isfinite(net.grad).all()


@pytest.mark.parametrize("extras", [{"layer_norm": True}, {"dueling": True}], ids=str)
def test_threads_do_not_change_bits(extras):
    pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    rng, before = np.random.default_rng(0), fastrl.get_num_threads()
    net = fastrl.MLP((20, 130, 130, 7), "tanh", n=2, seed=0, **extras)
    x, d = rng.standard_normal((1000, 20), np.float32), rng.standard_normal((2, 1000, 7), np.float32)
    found = []
    try:
        for threads in (1, 2, 3, 8):
            fastrl.set_num_threads(threads)
            found.append((net.forward(x), net.forward_cached(x), net.backward(d, inputs=True), net.grad.copy()))
    finally:
        fastrl.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_two_threads_on_one_object():
    pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    net, failures = fastrl.MLP((5, 64, 64, 3), seed=0), []
    wanted = {n: net.forward(np.ones((n, 5), np.float32)) for n in (1, 30, 300)}

    def work(n):
        x = np.ones((n, 5), np.float32)
        for _ in range(200):
            if not np.array_equal(net.forward(x), wanted[n]):
                failures.append(n)
            out = net.forward_cached(x)
            try:
                net.backward(np.ones_like(out), inputs=True)
            except (ValueError, RuntimeError):  # the other thread's batch was kept by then
                pass

    threads = [threading.Thread(target=work, args=(n,)) for n in wanted]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_copies_and_pickles(backend, rng):
    net = fastrl.MLP((3, 8, 2), "tanh", n=2, layer_norm=True, dueling=True, seed=3)
    x = rng.standard_normal((4, 3), np.float32)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        np.testing.assert_array_equal(other.forward(x), net.forward(x))
        other.vector += 1
        assert repr(other) == repr(net) == "MLP((3, 8, 2), 'tanh', n=2, layer_norm=True, dueling=True)"
        assert not np.array_equal(other.forward(x), net.forward(x))


def test_seeds_and_bounds(backend):
    first, second, other = (fastrl.MLP((10, 50, 4), layer_norm=True, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.vector, second.vector)
    assert not np.array_equal(first.vector, other.vector)
    views = first.parameters()
    assert list(views) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert 0.9 * 10**-0.5 < np.abs(views["0.weight"]).max() <= 10**-0.5
    assert 0.9 * 50**-0.5 < np.abs(views["3.weight"]).max() <= 50**-0.5
    assert (views["1.weight"] == 1).all() and not views["1.bias"].any()
    assert len(first.vector) == fastrl.MLP.num_parameters((10, 50, 4), layer_norm=True)


def test_given_memory_is_used_and_kept(backend, rng):
    flat, grads = rng.standard_normal(100, np.float32), np.zeros(100, np.float32)
    size = fastrl.MLP.num_parameters((2, 3, 1))
    before = flat.copy()
    net = fastrl.MLP((2, 3, 1), vector=flat[5 : 5 + size], grad=grads[5 : 5 + size])
    np.testing.assert_array_equal(flat, before)
    net.forward_cached(np.ones((4, 2), np.float32))
    net.backward(np.ones((4, 1), np.float32))
    assert grads[5 : 5 + size].any() and not grads[:5].any() and not grads[5 + size :].any()


def test_dueling_over_atoms_is_dueling_for_each(backend, close, rng):
    """out[a, j] = V_j + A[a, j] - mean_a A[a, j], by hand from the streams."""
    net = fastrl.MLP((3, 8, 4 * 5), "none", dueling=5, seed=0)
    p, x = net.parameters(), rng.standard_normal((7, 3), np.float32)
    value, advantage = (
        (x @ p[f"0.{s}.0.weight"].T + p[f"0.{s}.0.bias"]) @ p[f"0.{s}.2.weight"].T + p[f"0.{s}.2.bias"]
        for s in ("value", "advantage")
    )
    a = advantage.reshape(7, 4, 5)
    close(net.forward(x).reshape(7, 4, 5), value[:, None] + a - a.mean(1, keepdims=True))
