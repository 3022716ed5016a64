"""What the tests of this op share."""

import numpy as np
import pytest

SHAPE = (4, 3)
FLOATS = {
    "reverse_affine_scan": ("a", "b"),
    "gae": ("rewards", "values", "next_values"),
    "discounted_returns": ("rewards", "next_values"),
    "lambda_returns": ("rewards", "next_values"),
    "n_step_returns": ("rewards", "next_values"),
    "vtrace": ("rewards", "values", "next_values", "log_rhos"),
    "off_policy_returns": ("rewards", "q_values", "next_state_values", "traces"),
}
FLAGS = dict.fromkeys(FLOATS, ("terminated", "truncated", "mask")) | {
    "reverse_affine_scan": (),
    "n_step_returns": ("terminated", "truncated", "cut", "mask"),
}
NUMBERS = {op: {"gamma": 0.9} for op in FLOATS} | {
    "reverse_affine_scan": {},
    "gae": {"gamma": 0.9, "lam": 0.8},
    "lambda_returns": {"gamma": 0.9, "lam": 0.8},
    "vtrace": {"gamma": 0.9, "lam": 0.8, "rho_clip": 1.0, "c_clip": 1.0, "pg_rho_clip": 1.0},
}
OUTS = {"gae": 2, "vtrace": 2, "n_step_returns": 3}
TE, VE = TypeError, ValueError


def good(op, shape=SHAPE):
    kwargs = {name: np.full(shape, 0.5, np.float32) for name in FLOATS[op]}
    kwargs |= {name: np.zeros(shape, bool) for name in FLAGS[op]}
    kwargs |= NUMBERS[op]
    return kwargs | ({"n": 2} if op == "n_step_returns" else {})


def new_out(op, shape=SHAPE, dtype=np.float32):
    """A list, of poisoned arrays."""
    outs = [np.full(shape, np.nan, dtype) for _ in range(OUTS.get(op, 1))]
    if op == "n_step_returns":
        outs[2] = np.full(shape, -7)
    return outs


def given(outs):
    return tuple(outs) if len(outs) > 1 else outs[0]


def must_raise(kernels, op, kwargs, error, text, outs=None):
    """Without out and with it, and then not a byte of it changes."""
    for targets in (None, outs if outs is not None else new_out(op)):
        arrays = [x for x in targets or () if isinstance(x, np.ndarray)]
        before = [x.tobytes() for x in arrays]
        with pytest.raises(error) as caught:
            getattr(kernels.scans, op)(**kwargs, **({} if targets is None else {"out": given(targets)}))
        assert str(caught.value) == f"{op}: {text}"
        assert type(caught.value) is error
        assert [x.tobytes() for x in arrays] == before


def like(shape, first):
    return f"must have shape {shape} like {first}"
