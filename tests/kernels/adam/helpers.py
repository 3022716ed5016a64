"""What the tests of this op share."""

import numpy as np

SHAPES = [(3, 17), (), (0, 4), (1,), (2, 5, 3), (64, 33), (1003,)]


def arrays(rng, dtype="float32", shapes=SHAPES):
    return [np.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def zeros_like(like):
    return [np.zeros(x.shape, x.dtype) for x in like]


def state_of(params):
    return zeros_like(params), zeros_like(params), [np.zeros((), np.float32) for _ in params]


def close(found, wanted, tolerance):
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, **tolerance(x.dtype))


def adam_lists():
    f = np.float32
    return {
        "params": [np.ones((2, 3), f), np.ones(4, f)],
        "grads": [np.full((2, 3), 2, f), np.full(4, 2, f)],
        "exp_avgs": [np.full((2, 3), 3, f), np.full(4, 3, f)],
        "exp_avg_sqs": [np.full((2, 3), 4, f), np.full(4, 4, f)],
        "steps": [np.array(5, f), np.array(6, f)],
    }
