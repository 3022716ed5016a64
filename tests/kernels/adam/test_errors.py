"""What adam_step refuses: one text on every backend, and nothing written."""

import math

import numpy as np
import pytest

from .helpers import adam_lists


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
