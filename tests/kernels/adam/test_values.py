"""adam_step on every backend: plain loops as oracle, layouts."""

import math

import numpy as np
import pytest

import fastrl

from .helpers import SHAPES, arrays, close, state_of

HYPERPARAMETERS = [
    {},
    {"lr": 0.1, "beta1": 0.0, "beta2": 0.0},
    {"beta1": 0.5, "beta2": 0.99, "eps": 1e-3},
    {"beta1": 0.3, "weight_decay": 0.1},
    {"lr": 0.0, "weight_decay": 0.01},
]


def gaps(x):
    """A view of every second item, backwards, of a poisoned array."""
    wide = np.full([2 * n + 1 for n in x.shape], np.nan, x.dtype)
    view = wide[(..., *(slice(2 * n - 1, None, -2) if n else slice(0, 0) for n in x.shape))]
    view[...] = x
    return view


LAYOUTS = {
    "C": lambda x: x.copy(),
    "Fortran": lambda x: np.asarray(x.copy(order="F")),
    "middle first": lambda x: np.ascontiguousarray(np.moveaxis(x, 1, 0)).swapaxes(0, 1) if x.ndim > 1 else x.copy(),
    "gaps": gaps,
}


def adam_oracle(p, g, m, v, t, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """One number's step, by the equations of the paper in Python floats; t counts from 1."""
    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return p - lr * m_hat / (math.sqrt(v_hat) + eps), m, v


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_step_is_that_of_the_paper(step, dtype, layout, rng, tolerance):
    for keywords in HYPERPARAMETERS:
        keywords = {"lr": 1e-3, **keywords}
        start = arrays(rng, dtype)
        params, (exp_avgs, exp_avg_sqs, steps) = [LAYOUTS[layout](x) for x in start], state_of(start)
        exp_avg_sqs = [LAYOUTS[layout](x) for x in exp_avg_sqs]
        expected = [[(float(x), 0.0, 0.0) for x in p.ravel()] for p in start]
        for t in range(1, 4):
            grads = arrays(rng, dtype)
            kept = [g.copy() for g in grads]
            step(params, grads, exp_avgs, exp_avg_sqs, steps, **keywords)
            for numbers, grad in zip(expected, kept, strict=True):
                for j, g in enumerate(grad.ravel()):
                    p, m, v = numbers[j]
                    numbers[j] = adam_oracle(p, float(g), m, v, t, **keywords)
            for grad, copy in zip(grads, kept, strict=True):
                np.testing.assert_array_equal(grad, copy)
            assert [float(s) for s in steps] == [t] * len(SHAPES)
        for k, found in enumerate((params, exp_avgs, exp_avg_sqs)):
            wanted = [np.array([n[k] for n in e]).reshape(p.shape) for e, p in zip(expected, start, strict=True)]
            close(found, wanted, tolerance)


def test_layouts_agree_to_the_bit(step, rng):
    """And do not write between the items of a view."""
    start, grads = arrays(rng), arrays(rng)
    results = []
    for layout in LAYOUTS.values():
        params, (m, v, steps) = [layout(x) for x in start], state_of(start)
        step(params, [layout(g) for g in grads], m, [layout(x) for x in v], steps, lr=0.1)
        results.append(params)
        for p in params:
            if layout is gaps and p.base is not None:
                assert np.isnan(p.base).sum() == p.base.size - p.size
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(x, y)


def test_float64_steps_and_mixed_dtypes(step, rng, tolerance):
    params = [*arrays(rng, "float32", [(5,)]), *arrays(rng, "float64", [(5,)])]
    params[1][:] = params[0]
    grads = [np.ones_like(p) for p in params]
    m, v, _ = state_of(params)
    steps = [np.array(3.0), np.array(3.0, np.float32)]
    step(params, grads, m, v, steps, lr=0.5)
    assert [float(s) for s in steps] == [4, 4] and m[1].dtype == np.float64
    np.testing.assert_allclose(params[0], params[1], **tolerance("float32"))


def test_empty_lists(step):
    step([], [], [], [], [], lr=0.1)


def test_nan_stays_where_it_is(step, rng):
    params = arrays(rng, shapes=[(40,)])
    grads, (m, v, steps) = arrays(rng, shapes=[(40,)]), state_of(params)
    grads[0][7] = np.nan
    step(params, grads, m, v, steps, lr=0.1)
    for x in (params[0], m[0], v[0]):
        assert np.flatnonzero(np.isnan(x)).tolist() == [7]


def test_results_do_not_depend_on_the_number_of_threads(rng):
    """Above the size at which other threads are asked."""
    start, grads = (arrays(rng, shapes=[(700_003,), (300_001,), (5,)]) for _ in range(2))
    before, results = fastrl.get_num_threads(), []
    try:
        for threads in (1, 3):
            fastrl.set_num_threads(threads)
            params, state = [x.copy() for x in start], state_of(start)
            fastrl.adam_step(params, grads, *state, lr=0.1)
            results.append(params)
    finally:
        fastrl.set_num_threads(before)
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)
