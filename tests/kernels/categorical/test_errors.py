"""Bad input of the categorical head: one text on every backend, and nothing drawn."""

import importlib

import numpy as np
import pytest

from fastrl.kernels import (
    Generator,
    categorical,
    categorical_log_prob_entropy,
    categorical_log_prob_entropy_reference,
    categorical_sample,
    categorical_sample_reference,
)

from .helpers import oracle_entropy, random_logits


def bad_calls(torch=None):
    z, a = np.zeros((5, 4), np.float32), np.zeros(5, np.int64)

    def both(*args):
        return categorical_log_prob_entropy(*args)

    def sample(*args, **kwargs):
        return categorical_sample(*args, **kwargs)

    where = "categorical_log_prob_entropy: "
    calls = {
        "too large": (both, (z, np.array([0, 3, 4, 9, 0])), IndexError, where + "action[2] is 4, outside [0, 4)"),
        "negative": (both, (z, np.array([0, -1, 4, 9, 0])), IndexError, where + "action[1] is -1, outside [0, 4)"),
        "int32 too large": (both, (z, np.full(5, 4, np.int32)), IndexError, where + "action[0] is 4, outside"),
        "list": (both, ([[0.0]], a), TypeError, where + "logits must be an array, got list"),
        "None": (both, (None, a), TypeError, where + "logits must be an array, got NoneType"),
        "action list": (both, (z, [0] * 5), TypeError, where + "action must be an array, got list"),
        "int": (both, (z.astype(int), a), ValueError, where + "logits must have dtype float32 or float64, got int64"),
        "float action": (
            both,
            (z, a.astype(np.float32)),
            ValueError,
            where + "action must have dtype int64 or int32, got float32",
        ),
        "bool action": (both, (z, a > 0), ValueError, where + "action must have dtype int64 or int32, got bool"),
        "vector": (both, (z[0], a), ValueError, where + "logits must have shape [B, K] with K >= 1, got (4,)"),
        "cube": (both, (z[None], a), ValueError, where + "logits must have shape [B, K] with K >= 1, got (1, 5, 4)"),
        "no actions": (
            both,
            (z[:, :0], a),
            ValueError,
            where + "logits must have shape [B, K] with K >= 1, got (5, 0)",
        ),
        "action short": (both, (z, a[1:]), ValueError, where + "action must have shape (5,), got (4,)"),
        "action matrix": (both, (z, a[:, None]), ValueError, where + "action must have shape (5,), got (5, 1)"),
        "sample list": (sample, ([[0.0]],), TypeError, "categorical_sample: logits must be an array, got list"),
        "sample vector": (sample, (z[0],), ValueError, "categorical_sample: logits must have shape [B, K] with K >= 1"),
        "sample int": (sample, (z.astype(int),), ValueError, "categorical_sample: logits must have dtype float32"),
    }
    if torch is not None:
        tz, ta = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
        calls |= {
            "mixed": (
                both,
                (tz, a),
                TypeError,
                where + "action must be a torch.Tensor like logits, got a numpy.ndarray",
            ),
            "mixed 2": (
                both,
                (z, ta),
                TypeError,
                where + "action must be a numpy.ndarray like logits, got a torch.Tensor",
            ),
            "meta": (both, (tz.to("meta"), ta), ValueError, where + "logits"),
            "sparse": (both, (tz.to_sparse(), ta), ValueError, where + "logits has no data"),
            "negative bit": (
                both,
                (torch._neg_view(tz), ta),
                ValueError,
                where + "logits must not be a lazily negated",
            ),
            "out of range with grad": (
                both,
                (tz.clone().requires_grad_(), ta + 4),
                IndexError,
                where + "action[0] is 4, outside [0, 4)",
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
    for module in ("reference", "fastrl.kernels.categorical._numba", "fastrl._C"):
        if module != "reference" and importlib.util.find_spec(module) is None:
            continue
        kernels = categorical.reference if module == "reference" else importlib.import_module(module)
        monkeypatch.setattr(categorical.backend, "cpu", kernels)
        outcomes[module] = {n: oracle.outcome(call, *args) for n, (call, args, *_) in bad_calls(torch).items()}
    for module, found in outcomes.items():
        assert found == outcomes["reference"], module


@pytest.mark.parametrize("generator", [0, np.random.default_rng(0), "seed"], ids=["int", "numpy", "str"])
def test_bad_generator(backend, generator):
    with pytest.raises(TypeError, match="categorical_sample: generator must be a fastrl.Generator, got"):
        categorical_sample(np.zeros((2, 2)), generator=generator)


def test_an_error_draws_nothing(backend):
    generator = Generator(0)
    for bad in (np.zeros(3), np.zeros((2, 0)), np.zeros((2, 2), int), [[0.0]]):
        with pytest.raises((TypeError, ValueError)):
            categorical_sample(bad, generator=generator)
    assert generator.counter == 0


def test_the_reference_is_public(rng, tolerance):
    z = random_logits(rng, 5, 3, np.float64)
    action, _ = categorical_sample_reference(z, generator=Generator(0))
    np.testing.assert_array_equal(action, categorical_sample(z, generator=Generator(0))[0])
    _, entropy = categorical_log_prob_entropy_reference(z, action)
    np.testing.assert_allclose(entropy, oracle_entropy(z), **tolerance(z.dtype))
