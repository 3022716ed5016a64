"""What is refused, in the same words by every backend."""

import numpy as np
import pytest

import fastrl


def zeros(*shape):
    return np.zeros(shape, np.float32)


P, B, X, A = zeros(4, 3), zeros(4), zeros(4, 2, 3), np.zeros(4, np.int64)
ON = {"v_min": -1, "v_max": 1}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda f: f.categorical_projection(B, B, B, **ON), ValueError, "probs must have shape [B, N], got (4,)"),
        (
            lambda f: f.categorical_projection(zeros(4, 1), B, B, **ON),
            ValueError,
            "probs must have at least 2 atoms, got 1",
        ),
        (
            lambda f: f.categorical_projection(P, B[:2], B, **ON),
            ValueError,
            "rewards must have shape (4,), got (2,)",
        ),
        (
            lambda f: f.categorical_projection(P, B, B, v_min=1, v_max=1),
            ValueError,
            "v_min must be < v_max, got 1.0 and 1.0",
        ),
        (
            lambda f: f.categorical_projection(P, B, B, v_min=-1e308, v_max=1e308),
            ValueError,
            "v_min and v_max must be between -1e200 and 1e200, got -1e+308 and 1e+308",
        ),
        (
            lambda f: f.categorical_projection(P, B, B, v_min=np.nan, v_max=1),
            ValueError,
            "v_min must be finite, got nan",
        ),
        (
            lambda f: f.categorical_projection(P, B, B, v_min="0", v_max=1),
            TypeError,
            "v_min must be a float, got str",
        ),
        (
            lambda f: f.categorical_projection(P.astype(np.float64), B, B, **ON),
            ValueError,
            "probs must have dtype float32, got float64",
        ),
        (lambda f: f.categorical_projection([1], B, B, **ON), TypeError, "probs must be an array, got list"),
        (lambda f: f.two_hot(B, 1, **ON), ValueError, "n_atoms must be an int in [2, 16777216], got 1"),
        (lambda f: f.two_hot(P, 3, **ON), ValueError, "values must have shape [B], got (4, 3)"),
        (lambda f: f.two_hot(B, 3, v_min=2, v_max=1), ValueError, "v_min must be < v_max, got 2.0 and 1.0"),
        (lambda f: f.c51_loss(P, A, B, B, X, **ON), ValueError, "logits must have shape [B, A, N], got (4, 3)"),
        (
            lambda f: f.c51_loss(X[:, :, :1], A, B, B, X[:, :, :1], **ON),
            ValueError,
            "logits must have at least 2 atoms, got 1",
        ),
        (lambda f: f.c51_loss(X[:0], A, B, B, X, **ON), ValueError, "logits must have at least one row"),
        (lambda f: f.c51_loss(X, A + 2, B, B, X, **ON), IndexError, "actions[0] must be in [0, 2), got 2"),
        (
            lambda f: f.c51_loss(X, A, B, B, X[:, :, :2], **ON),
            ValueError,
            "next_logits must have shape (4, 2, 3), got (4, 2, 2)",
        ),
        (
            lambda f: f.c51_loss(X, A, B, B, X, next_logits_online=X[:1], **ON),
            ValueError,
            "next_logits_online must have shape (4, 2, 3), got (1, 2, 3)",
        ),
        (
            lambda f: f.c51_loss(X, A, B, B, X, weights=zeros(3), **ON),
            ValueError,
            "weights must have shape (4,), got (3,)",
        ),
        (lambda f: f.c51_loss(X, A, B, B, X, v_min=3, v_max=1), ValueError, "v_min must be < v_max, got 3.0 and 1.0"),
        (lambda f: f.c51_actor_loss(X, **ON), ValueError, "logits must have shape [B, N], got (4, 2, 3)"),
        (lambda f: f.c51_actor_loss(P[:0], **ON), ValueError, "logits must have at least one row"),
        (lambda f: f.c51_actor_loss(P[:, :1], **ON), ValueError, "logits must have at least 2 atoms, got 1"),
        (lambda f: f.c51_actor_loss(P.astype(int), **ON), ValueError, "logits must have dtype float32, got int64"),
        (lambda f: f.c51_actor_loss(P, v_min=3, v_max=1), ValueError, "v_min must be < v_max, got 3.0 and 1.0"),
        (
            lambda f: f.quantile_huber_loss(X[:, :, :0], A, B, B, X),
            ValueError,
            "quantiles must have at least one quantile",
        ),
        (
            lambda f: f.quantile_huber_loss(X, A, B, B, X[:, :, :0]),
            ValueError,
            "next_quantiles must have at least one quantile",
        ),
        (
            lambda f: f.quantile_huber_loss(X, A, B, B, X[:, :1]),
            ValueError,
            "next_quantiles must have shape [4, 2, N], got (4, 1, 3)",
        ),
        (
            lambda f: f.quantile_huber_loss(X, A, B, B, X, taus=B),
            ValueError,
            "taus must have shape (4, 3), got (4,)",
        ),
        (lambda f: f.quantile_huber_loss(X, A, B, B, X, kappa=0), ValueError, "kappa must be > 1e-300, got 0.0"),
        (
            lambda f: f.quantile_huber_loss(X, A, B, B, X, kappa=1e-310),  # whose inverse is not finite
            ValueError,
            "kappa must be > 1e-300, got 1e-310",
        ),
        (
            lambda f: f.quantile_huber_loss(X, A, B, B, X, kappa=np.inf),
            ValueError,
            "kappa must be finite and >= 0, got inf",
        ),
    ],
)
def test_errors(backend, call, error, text):
    with pytest.raises(error) as caught:
        call(fastrl)
    assert str(caught.value).split(": ", 1)[1] == text
