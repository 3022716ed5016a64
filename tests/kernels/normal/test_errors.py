"""Bad input of the normal head: one text on every backend, and nothing drawn."""

import importlib

import numpy as np
import pytest

from fastrl.kernels import (
    Generator,
    normal,
    normal_log_prob_entropy,
    normal_log_prob_entropy_reference,
    normal_sample,
)

from .helpers import inputs, oracle_log_prob

x, s = np.zeros((5, 3), np.float32), np.zeros(3, np.float32)
where, draw = "normal_log_prob_entropy: ", "normal_sample: "


def given(*args):
    return normal_log_prob_entropy(*args)


def sample(*args, noise=None):
    return normal_sample(*args, noise=noise, generator=Generator(0))


def with_noise(*args):
    return sample(*args[:-1], noise=args[-1])


BAD = {
    "list": (given, ([[0.0]], s, x), TypeError, where + "mean must be an array, got list"),
    "std list": (given, (x, [0.0] * 3, x), TypeError, where + "log_std must be an array, got list"),
    "action None": (given, (x, s, None), TypeError, where + "action must be an array, got NoneType"),
    "std float": (given, (x, 0.0, x), TypeError, where + "log_std must be an array, got float"),
    "int": (given, (x.astype(int), s, x), ValueError, where + "mean must have dtype float32 or float64, got int64"),
    "std dtype": (
        given,
        (x, s.astype(np.float64), x),
        ValueError,
        where + "log_std must have dtype float32 like mean, got float64",
    ),
    "action dtype": (
        given,
        (x, s, x.astype(np.float64)),
        ValueError,
        where + "action must have dtype float32 like mean, got float64",
    ),
    "vector": (given, (x[0], s, x), ValueError, where + "mean must have shape [B, A], got (3,)"),
    "std short": (
        given,
        (x, s[1:], x),
        ValueError,
        where + "log_std must have shape (3,) or (5, 3) like mean, got (2,)",
    ),
    "std rows": (
        given,
        (x, x[1:], x),
        ValueError,
        where + "log_std must have shape (3,) or (5, 3) like mean, got (4, 3)",
    ),
    "std one": (given, (x, s[:1], x), ValueError, where + "log_std must have shape (3,) or (5, 3)"),
    "action shape": (
        given,
        (x, s, x[:, 1:]),
        ValueError,
        where + "action must have shape (5, 3) like mean, got (5, 2)",
    ),
    "action rank": (given, (x, s, s), ValueError, where + "action must have shape (5, 3) like mean, got (3,)"),
    "sample list": (sample, ([[0.0]], s), TypeError, draw + "mean must be an array, got list"),
    "sample cube": (sample, (x[None], s), ValueError, draw + "mean must have shape [B, A], got (1, 5, 3)"),
    "sample std": (
        sample,
        (x, s[1:]),
        ValueError,
        draw + "log_std must have shape (3,) or (5, 3) like mean, got (2,)",
    ),
    "noise list": (with_noise, (x, s, [0.0]), TypeError, draw + "noise must be an array, got list"),
    "noise shape": (
        with_noise,
        (x, s, x[1:]),
        ValueError,
        draw + "noise must have shape (5, 3) like mean, got (4, 3)",
    ),
    "noise dtype": (
        with_noise,
        (x, s, x.astype(np.float64)),
        ValueError,
        draw + "noise must have dtype float32 like mean, got float64",
    ),
}


def bad_calls(torch=None):
    calls = dict(BAD)
    if torch is not None:
        tx, ts = torch.zeros(5, 3), torch.zeros(3)
        calls |= {
            "mixed": (
                given,
                (tx, s, tx),
                TypeError,
                where + "log_std must be a torch.Tensor like mean, got a numpy.ndarray",
            ),
            "mixed 2": (
                given,
                (x, s, tx),
                TypeError,
                where + "action must be a numpy.ndarray like mean, got a torch.Tensor",
            ),
            "meta": (given, (tx, ts, tx.to("meta")), ValueError, where + "action"),
            "negative bit": (given, (tx, torch._neg_view(ts), tx), ValueError, where + "log_std must not be a lazily"),
            "noise with grad": (
                with_noise,
                (tx, ts, tx.clone().requires_grad_()),
                ValueError,
                draw + "noise must not require a gradient",
            ),
        }
    return calls


@pytest.mark.parametrize("name", bad_calls())
def test_errors(backend, name):
    call, args, error, text = bad_calls()[name]
    with pytest.raises(error) as raised:
        call(*args)
    assert text in str(raised.value)


def test_errors_with_tensors(backend, torch):
    for name, (call, args, error, text) in bad_calls(torch).items():
        with pytest.raises(error) as raised:
            call(*args)
        assert text in str(raised.value), name


def test_same_error_texts(torch, oracle, monkeypatch):
    """Whole texts, of the reference and of the installed backends."""
    outcomes = {}
    for module in ("reference", "fastrl.kernels.normal._numba", "fastrl._C"):
        if module != "reference" and importlib.util.find_spec(module) is None:
            continue
        kernels = normal.reference if module == "reference" else importlib.import_module(module)
        monkeypatch.setattr(normal.backend, "cpu", kernels)
        outcomes[module] = {n: oracle.outcome(call, *args) for n, (call, args, *_) in bad_calls(torch).items()}
    for module, found in outcomes.items():
        assert found == outcomes["reference"], module


def test_an_error_draws_nothing(backend):
    generator, x = Generator(0), np.zeros((2, 3))
    for mean, log_std in ((x[0], x), (x, x[0, 1:]), (x.astype(int), x), (x, [0.0])):
        with pytest.raises((TypeError, ValueError)):
            normal_sample(mean, log_std, generator=generator)
    with pytest.raises(TypeError, match="normal_sample: generator must be a fastrl.Generator, got int"):
        normal_sample(x, x, generator=3)
    assert generator.counter == 0


def test_the_reference_is_public(rng):
    mean, log_std, action = inputs(rng, 5, 3, np.float64, True)
    log_prob, _ = normal_log_prob_entropy_reference(mean, log_std, action)
    np.testing.assert_allclose(log_prob, oracle_log_prob(mean, log_std, action), rtol=1e-12)
