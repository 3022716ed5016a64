"""`layout`: rollouts of other axes than time, environment."""

import numpy as np
import pytest

import fastrl

from .test_inputs import FLAGGED, FLOATS, new_out, results, rollout, same

TO = {"NT": lambda x: x.T, "TN1": lambda x: x[..., None], "NT1": lambda x: x.T[..., None]}
FROM = {"NT": lambda x: x.T, "TN1": lambda x: x[..., 0], "NT1": lambda x: x[..., 0].T}


@pytest.fixture(params=FLAGGED)
def problem(request, kernels):
    """An op on each backend, with a mask and every flag."""
    return request.param, getattr(kernels.scans, request.param), rollout(request.param, np.random.default_rng(5))


def turned(kwargs, layout):
    return {name: np.ascontiguousarray(TO[layout](x)) if np.ndim(x) else x for name, x in kwargs.items()}


@pytest.mark.parametrize("layout", TO)
def test_results_are_those_of_time_major_arrays(problem, layout):
    op, _, kwargs = problem
    call = getattr(fastrl, op)
    wanted = call(**kwargs)
    given = turned(kwargs, layout)
    found = call(**given, layout=layout)
    for x in results(found):
        assert x.shape == given["rewards"].shape and x.flags.c_contiguous
    same(tuple(FROM[layout](x) for x in results(found)), wanted)


@pytest.mark.parametrize("layout", TO)
def test_backends_take_the_views(problem, layout):
    """What the public function makes of them: transposed views, as each backend gets them."""
    _, call, kwargs = problem
    views = {name: FROM[layout](x) if np.ndim(x) else x for name, x in turned(kwargs, layout).items()}
    same(call(**views), call(**kwargs))


@pytest.mark.parametrize("layout", TO)
@pytest.mark.parametrize("op", FLAGGED)
def test_out_is_written(op, layout):
    kwargs = rollout(op, np.random.default_rng(6))
    out = tuple(np.ascontiguousarray(TO[layout](x)) for x in new_out(op, (7, 5)))
    given = out if len(out) > 1 else out[0]
    assert getattr(fastrl, op)(**turned(kwargs, layout), layout=layout, out=given) is given
    same(tuple(FROM[layout](x) for x in out), getattr(fastrl, op)(**kwargs))


@pytest.mark.parametrize("layout", TO)
def test_values_of_one_more_step_and_weights_of_each_step(layout):
    rng = np.random.default_rng(7)
    rewards, values = rng.standard_normal((7, 5)), rng.standard_normal((8, 5))
    discounts, lam = rng.random((2, 7, 5))
    wanted = fastrl.gae(rewards, values, None, None, None, discounts=discounts, lam=lam)
    x, v, d, w = (TO[layout](a) for a in (rewards, values, discounts, lam))
    found = fastrl.gae(x, v, None, None, None, discounts=d, lam=w, layout=layout)
    same(tuple(FROM[layout](y) for y in found), wanted)


def test_tensors_and_torch_compile(torch):
    kwargs = rollout("gae", np.random.default_rng(8))
    tensors = {name: torch.from_numpy(x) if np.ndim(x) else x for name, x in turned(kwargs, "NT1").items()}

    def call(rewards):
        return fastrl.gae(**{**tensors, "rewards": 2 * rewards}, layout="NT1")

    found = call(tensors["rewards"])
    assert all(x.is_contiguous() and x.shape == (5, 7, 1) for x in found)
    same(tuple(x[..., 0].T for x in found), fastrl.gae(**{**kwargs, "rewards": 2 * kwargs["rewards"]}))
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(tensors["rewards"])
    assert all(torch.equal(x, y) for x, y in zip(compiled, found, strict=True))


WRONG = np.zeros((7, 5), np.float32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"layout": "BT"}, "layout must be one of TN, NT, TN1, NT1, got 'BT'"),
        ({"layout": "NT1"}, 'rewards must have shape [N, T, 1], which is layout="NT1", got (5, 7)'),
        ({"values": np.zeros((7, 5))}, "values must have shape (5, 7) like rewards, got (7, 5)"),
        ({"mask": np.zeros((5, 7, 1))}, 'mask must have shape [N, T], which is layout="NT", got (5, 7, 1)'),
        ({"values": np.zeros((5, 8))}, "values must have shape (5, 7) like rewards, got (5, 8)"),
        ({"layout": ["NT"]}, "layout must be one of TN, NT, TN1, NT1, got ['NT']"),
        ({"out": (WRONG, WRONG)}, "out[0] must have shape (5, 7) like rewards, got (7, 5)"),
        ({"gamma": 1.5}, "gamma must be in [0, 1], got 1.5"),
    ],
)
def test_errors(change, text):
    out = tuple(np.full((5, 7), np.nan, np.float32) for _ in range(2))
    kwargs = {"layout": "NT", "out": out, **turned(rollout("gae", np.random.default_rng(9)), "NT"), **change}
    with pytest.raises(ValueError) as caught:
        fastrl.gae(**kwargs)
    assert str(caught.value) == f"gae: {text}"
    assert np.isnan(out).all()


def test_every_scan_with_rewards_has_it():
    assert set(FLAGGED) == {op for op in FLOATS if "rewards" in FLOATS[op]}
