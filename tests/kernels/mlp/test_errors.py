"""What is refused, in the same words by every backend, and with nothing written."""

import numpy as np
import pytest

import fastrl


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (((3,),), ValueError, r"MLP: sizes must be 2 to 64 numbers in [1, 16777216], got (3,)"),
        (((3, 0),), ValueError, r"MLP: sizes must be 2 to 64 numbers in [1, 16777216], got (3, 0)"),
        (((3, 2.0),), TypeError, r"MLP: sizes must be ints, got (3, 2.0)"),
        (((3, 2), "gelu"), ValueError, "MLP: activation must be one of relu, tanh, silu, none, got 'gelu'"),
    ],
)
def test_settings(backend, arguments, error, text):
    with pytest.raises(error) as caught:
        fastrl.MLP(*arguments)
    assert str(caught.value) == text


def test_numpy_ints(backend):
    found = fastrl.MLP(np.array([3, 2, 1]), n=np.int32(2), seed=0)
    wanted = fastrl.MLP((3, 2, 1), n=2, seed=0)
    assert (found.sizes, found.n) == (wanted.sizes, wanted.n) and type(found.sizes[0]) is type(found.n) is int
    np.testing.assert_array_equal(found.vector, wanted.vector)


@pytest.mark.parametrize("dueling", [3, -1, 2.0, None])
def test_atoms(backend, dueling):
    wanted = f"MLP: dueling must be a bool, or an int that divides the 4 outputs, got {dueling!r}"
    with pytest.raises(ValueError) as caught:
        fastrl.MLP((2, 3, 4), dueling=dueling)
    assert str(caught.value) == wanted


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n": 0}, "MLP: n must be None or an int in [1, 1024], got 0"),
        ({"n": True}, "MLP: n must be None or an int in [1, 1024], got True"),
        ({"dueling": True}, "MLP: dueling needs at least one hidden layer, got sizes (3, 2)"),
        ({"vector": zeros(7)}, "MLP: vector must have shape (8,), got (7,)"),
        ({"vector": np.zeros(8)}, "MLP: vector must have dtype float32, got float64"),
        ({"vector": zeros(16)[::2]}, "MLP: vector must be contiguous"),
        ({"grad": zeros(8, 1)}, "MLP: grad must have shape (8,), got (8, 1)"),
    ],
)
def test_more_settings(backend, settings, text):
    with pytest.raises(ValueError) as caught:
        fastrl.MLP((3, 2), **settings)
    assert str(caught.value) == text


@pytest.mark.parametrize("call", ["forward", "forward_cached"])
@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (zeros(3), ValueError, "MLP: x must have shape [B, C], got (3,)"),
        (zeros(4, 2), ValueError, "MLP: x must have 3 columns, got 2"),
        (np.zeros((4, 3)), ValueError, "MLP: x must have dtype float32, got float64"),
        ([[1.0, 2.0, 3.0]], TypeError, "MLP: x[0] must be an array, got list"),
        (None, TypeError, "MLP: x must be an array, got NoneType"),
        ((zeros(4, 2), zeros(3, 1)), ValueError, "MLP: x[1] must have 4 rows like x[0], got 3"),
        ((zeros(4, 2), zeros(4, 2)), ValueError, "MLP: x must have 3 columns, got 4"),
        ((), ValueError, "MLP: x must have 3 columns, got 0"),
    ],
)
def test_inputs(backend, call, x, error, text):
    with pytest.raises(error) as caught:
        getattr(fastrl.MLP((3, 2)), call)(x)
    assert str(caught.value) == text


def test_backward(backend):
    net = fastrl.MLP((3, 5, 2), n=2, seed=0)
    with pytest.raises(RuntimeError, match="^MLP: backward needs a forward_cached before it$"):
        net.backward(zeros(2, 4, 2))
    net.forward_cached(zeros(4, 3))
    net.grad[:] = 7
    wanted = "MLP: d_out must have shape (2, 4, 2) like the outputs of forward_cached, got (4, 2)"
    with pytest.raises(ValueError) as caught:
        net.backward(zeros(4, 2))
    assert str(caught.value) == wanted
    with pytest.raises(ValueError, match="MLP: d_out must have dtype float32, got float64"):
        net.backward(np.zeros((2, 4, 2)))
    with pytest.raises(ValueError, match="MLP: inputs must name at least one of 3 columns"):
        net.backward(zeros(2, 4, 2), inputs=slice(3, None))
    with pytest.raises(TypeError, match="MLP: inputs must be None, a bool or a slice without a step"):
        net.backward(zeros(2, 4, 2), inputs=slice(0, 3, 2))
    with pytest.raises(ValueError, match=r"MLP: first must be an int in \[1, 2\], got 3"):
        net.forward(zeros(4, 3), first=3)
    assert (net.grad == 7).all()


def test_memory_that_changed_under_it(backend):
    net = fastrl.MLP((3, 2), seed=0)
    net.forward_cached(zeros(1, 3))
    net.vector = zeros(9)
    with pytest.raises(ValueError, match=r"^MLP: vector must have shape \(8,\), got \(9,\)$"):
        net.forward(zeros(1, 3))
    net.grad = zeros(8)
    net.grad.flags.writeable = False
    with pytest.raises(ValueError, match="^MLP: grad must be writable$"):
        net.backward(zeros(1, 2))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_memory_that_its_owner_resized(backend, kind):
    """A call looks at the memory anew, so none reads or writes what is gone."""
    torch = pytest.importorskip("torch")
    vector, grad, x = zeros(8), zeros(8), zeros(1, 3)
    if kind == "torch":
        vector, grad, x = map(torch.from_numpy, (vector.copy(), grad.copy(), x))
    net = fastrl.MLP((3, 2), vector=vector, grad=grad, seed=0)
    adam, d_out = fastrl.FlatAdam(vector, grad), net.forward_cached(x)
    for owned, resized in ((vector, "vector"), (grad, "grad")):
        if kind == "torch":
            owned.resize_(4)
        else:
            owned.resize(4, refcheck=False)
        with pytest.raises(ValueError, match=rf"^MLP: {resized} must have shape \(8,\), got \(4,\)$"):
            net.forward(x) if resized == "vector" else net.backward(d_out)
        with pytest.raises(ValueError, match=r"^FlatAdam: "):
            adam.step()
        assert adam.steps == 0
        if kind == "torch":
            owned.resize_(8)
        else:
            owned.resize(8, refcheck=False)
    assert adam.steps == 0 and net.forward(x).shape == (1, 2)


def test_foreign_vectors(backend):
    """What is no vector of float32 that can be written is refused by its name."""
    readonly = zeros(8)
    readonly.flags.writeable = False
    for vector, error, text in (
        ([0.0] * 8, TypeError, "must be an array, got list"),
        (np.zeros(8, ">f4"), ValueError, "must have dtype float32, got >f4"),
        (np.zeros(33, np.uint8)[1:].view(np.float32), ValueError, "must be contiguous"),
        (zeros(8)[::-1], ValueError, "must be contiguous"),
        (readonly, ValueError, "must be writable"),
    ):
        for name in ("vector", "grad"):
            with pytest.raises(error) as caught:
                fastrl.MLP((3, 2), **{name: vector})
            assert str(caught.value) == f"MLP: {name} {text}"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(backend, bad):
    """Who asks for the norm learns of it from the step itself; agents stop by it."""
    p, g = zeros(5), np.ones(5, np.float32)
    g[3] = bad
    norm = fastrl.FlatAdam(p, g).step(max_grad_norm=1.0)
    assert not np.isfinite(norm)


def test_states(backend):
    net = fastrl.MLP((3, 2), seed=0)
    before, state = net.vector.copy(), net.state_dict()
    with pytest.raises(ValueError, match=r"MLP: state_dict does not fit: missing \['0.bias'\], unexpected \[\]"):
        net.load_state_dict({"0.weight": zeros(2, 3)})
    with pytest.raises(ValueError, match=r"MLP: 0.bias must have shape \(2,\), got \(3,\)"):
        net.load_state_dict({"0.weight": zeros(2, 3), "0.bias": zeros(3)})
    np.testing.assert_array_equal(net.vector, before)
    net.vector[:] = 0
    net.load_state_dict(state)
    np.testing.assert_array_equal(net.vector, before)


B2, B = zeros(4, 2), zeros(4)
ACTIONS = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda f: f.q_learning_loss(B, ACTIONS, B, B, B2), ValueError, "q must have shape [B, C], got (4,)"),
        (lambda f: f.q_learning_loss(B2, ACTIONS[:3], B, B, B2), ValueError, "actions must have shape (4,), got (3,)"),
        (
            lambda f: f.q_learning_loss(B2, B, B, B, B2),
            ValueError,
            "actions must have dtype int64 or int32, got float32",
        ),
        (lambda f: f.q_learning_loss(B2, ACTIONS + 2, B, B, B2), IndexError, "actions[0] must be in [0, 2), got 2"),
        (lambda f: f.q_learning_loss(B2, ACTIONS, B[:1], B, B2), ValueError, "rewards must have shape (4,), got (1,)"),
        (
            lambda f: f.q_learning_loss(B2, ACTIONS, B, B, B2[:2]),
            ValueError,
            "next_q must have shape (4, 2), got (2, 2)",
        ),
        (
            lambda f: f.q_learning_loss(B2, ACTIONS, B, B, B2, loss="l1"),
            ValueError,
            "loss must be mse or huber, got 'l1'",
        ),
        (lambda f: f.q_learning_loss(B2[:0], ACTIONS, B, B, B2), ValueError, "q must have at least one row"),
        (lambda f: f.min_q_targets(B, B, B), ValueError, "next_q must have shape [B, C], got (4,)"),
        (lambda f: f.min_q_targets(B2.T, B, B, temperature=np.nan), ValueError, "temperature must be finite, got nan"),
        (
            lambda f: f.min_q_targets(B2.T, B, B, next_log_prob=B2),
            ValueError,
            "next_log_prob must have shape (4,), got (4, 2)",
        ),
        (lambda f: f.q_regression_loss(B2.T, B2), ValueError, "targets must have shape (4,), got (4, 2)"),
        (lambda f: f.min_q_loss(B2[:0]), ValueError, "q must have at least one row"),
        (lambda f: f.value_loss(B, zeros(3)), ValueError, "returns must have shape (4,), got (3,)"),
        (lambda f: f.value_loss(B, B, clip_range=0.1), ValueError, "old_values and clip_range must be given together"),
        (lambda f: f.value_loss(B, B, coef=-1), ValueError, "coef must be finite and >= 0, got -1.0"),
        (lambda f: f.ppo_categorical_loss(B2, ACTIONS - 1, B, B), IndexError, "actions[0] must be in [0, 2), got -1"),
        (
            lambda f: f.ppo_categorical_loss(B2, ACTIONS, B, B, clip_range=0),
            ValueError,
            "clip_range must be > 0, got 0.0",
        ),
        (
            lambda f: f.ppo_categorical_loss(B2, ACTIONS, B2, B),
            ValueError,
            "old_log_probs must have shape (4,), got (4, 2)",
        ),
        (
            lambda f: f.ppo_normal_loss(B2, zeros(2), B2, 0.5, B),
            TypeError,
            "old_log_probs must be an array, got float",
        ),
        (lambda f: f.ppo_normal_loss(B2, B, B2, B, B), ValueError, "log_std must have shape (2,), got (4,)"),
        (
            lambda f: f.ppo_normal_loss(B2, zeros(2), B2, B, B, old_mean=B2),
            ValueError,
            "old_mean and old_log_std must be given together",
        ),
        (
            lambda f: f.ppo_normal_loss(B2, zeros(2), B2, B, np.zeros(4)),
            ValueError,
            "advantages must have dtype float32, got float64",
        ),
    ],
)
def test_losses(backend, call, error, text):
    with pytest.raises(error) as caught:
        call(fastrl)
    assert str(caught.value).split(": ", 1)[1] == text


def test_flat_adam(backend):
    p, g = zeros(5), zeros(5)
    with pytest.raises(ValueError, match=r"FlatAdam: grad must have shape \(5,\), got \(4,\)"):
        fastrl.FlatAdam(p, g[:4])
    optimizer = fastrl.FlatAdam(p, g)
    refused = {
        "max_grad_norm must be > 0, got 0.0": {"max_grad_norm": 0},
        "tau must be in [0, 1], got 1.5": {"tau": 1.5},
        "lr must be finite and >= 0, got -1.0": {"lr": -1},
        "target must have shape (5,), got (4,)": {"target": zeros(4)},
        "target must not share memory with vector": {"target": p},
        "average must be writable": {"average": np.broadcast_to(np.float32(0), 5).copy()},
    }
    refused["average must be writable"]["average"].flags.writeable = False
    g[:] = 1
    for text, arguments in refused.items():
        with pytest.raises(ValueError) as caught:
            optimizer.step(**arguments)
        assert str(caught.value) == f"FlatAdam: {text}"
    assert not p.any() and optimizer.steps == 0 and (g == 1).all()
