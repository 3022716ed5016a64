"""The search for the best action: by hand, on every backend, for functions, and what it finds."""

import numpy as np
import pytest

import fastrl
from fastrl.kernels import MLP, Generator, cem_argmax, cem_argmax_reference, normal_sample

# Around the 64 rows that the C++ kernel works on together.
SIZES = [(1, 3, 1, 64), (5, 3, 2, 63), (128, 17, 6, 65), (2, 1, 1, 1), (0, 3, 1, 8)]


def by_hand(q, obs, noise, elites, std):
    """Loops over states and samples; `q` of one state and one action."""
    actions, values = [], []
    for s in obs:
        mean, sigma, best = np.zeros(noise.shape[2]), np.full(noise.shape[2], std), (-np.inf, None)
        for eps in noise:
            tried = [np.clip(mean + sigma * e, -1, 1).astype(np.float32) for e in eps]
            found = [q(s, a) for a in tried]
            ranked = sorted(range(len(tried)), key=lambda i: (-found[i], i))[:elites]
            if found[ranked[0]] > best[0] or best[1] is None:
                best = found[ranked[0]], tried[ranked[0]]
            chosen = np.array([tried[i] for i in ranked], np.float64)
            mean, sigma = chosen.mean(0), chosen.std(0)
        actions.append(best[1])
        values.append(best[0])
    return np.array(actions, np.float32).reshape(-1, noise.shape[2]), np.array(values, np.float32)


@pytest.mark.parametrize("settings", [{}, {"activation": "tanh", "layer_norm": True}, {"activation": "silu"}])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_loops(backend, rng, size, settings):
    rows, n, a, samples = size
    q = MLP((n + a, 24, 16, 1), seed=4, **settings)
    q.vector *= 2
    obs, noise = (rng.standard_normal(shape, np.float32) for shape in ((rows, n), (3, samples, a)))
    elites = min(samples, 5)
    action, value = cem_argmax(q, obs, noise=noise, elites=elites, std=0.7)
    assert action.dtype == value.dtype == np.float32 and action.shape == (rows, a) and value.shape == (rows,)
    wanted = by_hand(lambda s, u: float(q.forward((s[None], u[None]))[0, 0]), obs, noise, elites, 0.7)
    # Ranked by values that differ in their rounding: what is found is as good, to that.
    np.testing.assert_allclose(value, wanted[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(value, q.forward((obs, action))[:, 0], rtol=1e-5, atol=1e-5)
    same = (abs(action - wanted[0]) < 1e-4).all(1)
    assert same.mean() > 0.95 if rows else same.size == 0
    reference = cem_argmax_reference(q, obs, noise=noise, elites=elites, std=0.7)
    np.testing.assert_allclose(value, reference[1], rtol=1e-4, atol=1e-4)


def test_it_finds_the_maximum(backend):
    """Q = -|s - a|_1, made of ReLUs; the best action is s where that is inside, else the nearest bound."""
    q = MLP((4, 4, 1))
    q.vector[:] = 0
    w = q.parameters()
    for j in range(2):
        for k, sign in enumerate((1, -1)):
            w["0.weight"][2 * j + k, [j, 2 + j]] = sign, -sign
    w["2.weight"][:] = -1
    obs = np.array([[0.3, -0.6], [2.0, 0.0], [0.0, 0.0]], np.float32)
    action, value = cem_argmax(q, obs, iterations=6, samples=200, elites=20, generator=Generator(0))
    np.testing.assert_allclose(action, np.clip(obs, -1, 1), atol=0.02)
    np.testing.assert_allclose(value, -abs(obs - action).sum(1), atol=1e-5)
    one, _ = cem_argmax(q, obs, iterations=1, samples=200, elites=20, generator=Generator(0))
    assert abs(one - np.clip(obs, -1, 1)).sum() > abs(action - np.clip(obs, -1, 1)).sum()


@pytest.mark.parametrize("samples", [127, 128, 129])
def test_around_the_samples_that_are_ranked_without_sorting(backend, rng, samples):
    q = MLP((5, 24, 16, 1), seed=4)
    obs, noise = rng.standard_normal((100, 3), np.float32), rng.standard_normal((2, samples, 2), np.float32)
    found = cem_argmax(q, obs, noise=noise, elites=20)
    wanted = cem_argmax_reference(q, obs, noise=noise, elites=20)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-4)
    assert (abs(found[0] - wanted[0]) < 1e-4).all(1).mean() > 0.95


@pytest.mark.parametrize("samples", [24, 129])
def test_of_equal_values_the_first_are_the_elites(backend, samples):
    """Q = relu(a - 3/4) is 0 for all of the first iteration; one action of the second shows the mean and deviation."""
    q = MLP((2, 8, 1))
    q.vector[:] = 0
    w = q.parameters()
    w["0.weight"][0, 1], w["0.bias"][0], w["2.weight"][0, 0] = 1, -0.75, 1
    noise = np.zeros((2, samples, 1), np.float32)
    noise[0, :, 0] = np.linspace(0.5, -1, samples)
    noise[0, 1] = -0.5  # the first three: 1/2, -1/2 and about 1/2
    noise[1, 5] = 1.6
    action, value = cem_argmax(q, np.zeros((1, 1), np.float32), noise=noise, elites=3)
    first = noise[0, :3].astype(np.float64)
    wanted = first.mean() + 1.6 * first.std()
    assert 0.75 < wanted < 1
    np.testing.assert_allclose([action[0, 0], value[0]], [wanted, wanted - 0.75], atol=1e-6)


def test_seeds_strides_kinds_and_threads(backend, torch, rng):
    q = MLP((5, 64, 64, 1), seed=1)
    obs = rng.standard_normal((300, 3), np.float32)
    action, value = cem_argmax(q, obs, samples=32, generator=Generator(7))
    generator, zero = Generator(7), np.zeros((2 * 32, 2), np.float32)
    noise = normal_sample(zero, zero[0], generator=generator)[0].reshape(2, 32, 2)
    for given in (obs, np.asfortranarray(obs), np.repeat(obs, 2, 1)[:, ::2], obs[::-1].copy()[::-1]):
        for eps in (noise, np.asfortranarray(noise)):
            found = cem_argmax(q, given, noise=eps)
            np.testing.assert_array_equal(found[0], action)
            np.testing.assert_array_equal(found[1], value)
    drawn = Generator(7)
    found = cem_argmax(q, torch.from_numpy(obs), samples=32, generator=drawn)
    assert drawn.counter == generator.counter == 2 * 32 * 2 // 4
    np.testing.assert_array_equal(found[0].numpy(), action)
    np.testing.assert_array_equal(cem_argmax(q, obs[40:41], noise=noise)[0], action[40:41])
    before = fastrl.get_num_threads()
    try:
        fastrl.set_num_threads(3)
        np.testing.assert_array_equal(cem_argmax(q, obs, noise=noise)[0], action)
    finally:
        fastrl.set_num_threads(before)


def test_functions_and_values_that_are_nan(backend, torch):
    obs = np.array([[[0.5]], [[-0.5]]], np.float32)  # any shape behind B
    kept = {}

    def q(s, a):
        kept["shapes"] = s.shape, a.shape
        return -((a[:, 0] - s[:, 0, 0]) ** 2)

    action, value = cem_argmax(q, obs, 1, samples=50, iterations=4, generator=Generator(1))
    assert kept["shapes"] == ((100, 1, 1), (100, 1))
    np.testing.assert_allclose(action[:, 0], [0.5, -0.5], atol=0.02)
    tensors = cem_argmax(q, torch.from_numpy(obs), 1, samples=50, iterations=4, generator=Generator(1))
    np.testing.assert_allclose(tensors[0], action, atol=1e-5)
    np.testing.assert_allclose(tensors[1], value, atol=1e-5)
    weight = torch.ones(1, requires_grad=True)
    kept["value"] = cem_argmax(lambda s, a: a[:, 0] * weight, torch.from_numpy(obs), 1, generator=Generator(1))[1]
    assert not kept["value"].requires_grad
    some, _ = cem_argmax(lambda s, a: np.where(a[:, 0] > 0, np.nan, a[:, 0]), obs, 1, generator=Generator(1))
    assert (some <= 0).all() and (some > -0.2).all()
    _, none = cem_argmax(lambda s, a: np.full(len(a), np.nan, np.float32), obs, 1, generator=Generator(1))
    assert np.isnan(none).all()
    broken = MLP((2, 8, 1), seed=0)
    broken.vector[:] = np.nan
    assert np.isnan(cem_argmax(broken, obs[:, 0], generator=Generator(1))[1]).all()


Q, X = MLP((4, 8, 1), seed=0), np.zeros((5, 3), np.float32)
BAD = {
    "q": (("net", X), {}, TypeError, "q must be an MLP or a function, got str"),
    "two outputs": ((MLP((4, 8, 2)), X), {}, ValueError, "q must be one network with one output, got MLP"),
    "twins": ((MLP((4, 8, 1), n=2), X), {}, ValueError, "q must be one network with one output, got MLP"),
    "list": ((Q, [[0.0] * 3]), {}, TypeError, "obs must be an array, got list"),
    "float64": ((Q, X.astype(np.float64)), {}, ValueError, "obs must have dtype float32, got float64"),
    "vector": ((Q, X[0]), {}, ValueError, "obs must have shape [B, ...], got (3,)"),
    "columns": ((Q, X, 2), {}, ValueError, "obs must have shape (B, 2), beside 2 of the 4 inputs of q, got (5, 3)"),
    "no action": ((Q, np.zeros((5, 4), np.float32)), {}, ValueError, "n_actions must be an int in [1, 2**20], got 0"),
    "no number": ((lambda s, a: a[:, 0], X), {}, ValueError, "n_actions must be an int in [1, 2**20], got None"),
    "iterations": ((Q, X), {"iterations": 0}, ValueError, "iterations must be an int in [1, 2**20], got 0"),
    "samples": ((Q, X), {"samples": 2.5}, ValueError, "samples must be an int in [1, 2**20], got 2.5"),
    "elites": ((Q, X), {"elites": 65}, ValueError, "elites must be an int in [1, samples = 64], got 65"),
    "no elites": ((Q, X), {"elites": 0}, ValueError, "elites must be an int in [1, samples = 64], got 0"),
    "std": ((Q, X), {"std": 0.0}, ValueError, "std must be > 0, got 0.0"),
    "nan": ((Q, X), {"std": np.nan}, ValueError, "std must be finite and >= 0, got nan"),
    "noise": ((Q, X), {"noise": X}, ValueError, "noise must have shape [T, N, A], got (5, 3)"),
    "noise of two": ((Q, X, 1), {"noise": X.reshape(1, 3, 5)}, ValueError, "noise must have shape [T, N, 1]"),
    "column": ((lambda s, a: a, X, 1), {}, ValueError, "shape (320,), got a ndarray (320, 1)"),
    "no values": ((lambda s, a: None, X, 1), {}, ValueError, "shape (320,), got a NoneType ()"),
    "generator": ((Q, X), {"generator": 3}, TypeError, "generator must be a fastrl.Generator, got int"),
}  # fmt: skip


def test_numpy_ints(backend):
    settings = {"iterations": np.int64(2), "samples": np.uint8(8), "elites": np.int32(3)}
    found = cem_argmax(Q, X, np.int64(1), **settings, generator=Generator(3))
    wanted = cem_argmax(Q, X, 1, iterations=2, samples=8, elites=3, generator=Generator(3))
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", BAD)
def test_errors(backend, name):
    args, keywords, error, text = BAD[name]
    with pytest.raises(error) as raised:
        cem_argmax(*args, **keywords)
    assert text in str(raised.value) and "\n" not in str(raised.value)
