"""Bad input of conjugate_gradient."""

import importlib
import math

import numpy as np
import pytest

from fastrl.kernels import CGInfo

cg = importlib.import_module("fastrl.kernels.conjugate_gradient.solve")


EYE, ONES = np.eye(3), np.ones(3)
ERRORS = {
    "matvec": (TypeError, "matvec must be callable, or have matvec or @, got int", lambda f: f(3, ONES)),
    "b list": (TypeError, "b must be a numpy.ndarray or a torch.Tensor, got list", lambda f: f(EYE, [1.0])),
    "b dtype": (ValueError, "b must have dtype float32 or float64, got int64", lambda f: f(EYE, np.ones(3, int))),
    "b shape": (ValueError, "b must have shape [n], got (3, 1)", lambda f: f(EYE, np.ones((3, 1)))),
    "x0 shape": (ValueError, "x0 must have shape (3,) like b, got (2,)", lambda f: f(EYE, ONES, x0=np.ones(2))),
    "x0 dtype": (
        ValueError,
        "x0 must have dtype float64 like b, got float32",
        lambda f: f(EYE, ONES, x0=np.ones(3, np.float32)),
    ),
    "x0 list": (TypeError, "x0 must be an array, got list", lambda f: f(EYE, ONES, x0=[1.0])),
    "max_iter": (TypeError, "max_iter must be an int, got float", lambda f: f(EYE, ONES, max_iter=1.0)),
    "max_iter bool": (TypeError, "max_iter must be an int, got bool", lambda f: f(EYE, ONES, max_iter=True)),
    "max_iter < 0": (ValueError, "max_iter must be >= 0, got -1", lambda f: f(EYE, ONES, max_iter=-1)),
    "rtol": (ValueError, "rtol must be finite and >= 0, got nan", lambda f: f(EYE, ONES, rtol=math.nan)),
    "atol": (ValueError, "atol must be finite and >= 0, got -1.0", lambda f: f(EYE, ONES, atol=-1.0)),
    "damping": (ValueError, "damping must be finite and >= 0, got inf", lambda f: f(EYE, ONES, damping=math.inf)),
    "damping str": (TypeError, "damping must be a number, got str", lambda f: f(EYE, ONES, damping="1")),
    "preconditioner": (
        TypeError,
        "preconditioner must be callable, or have matvec or @, got float",
        lambda f: f(EYE, ONES, preconditioner=1.0),
    ),
    "preconditioner shape": (
        ValueError,
        "preconditioner must have shape (3,) like b, got (3, 3)",
        lambda f: f(EYE, ONES, preconditioner=EYE),
    ),
    "result shape": (
        ValueError,
        "the result of matvec must have shape (3,) like b, got (2,)",
        lambda f: f(lambda p: p[:2], ONES),
    ),
    "result column": (
        ValueError,
        "the result of matvec must have shape (3,) like b, got (3, 1)",
        lambda f: f(lambda p: p[:, None], ONES),
    ),
    "result dtype": (
        ValueError,
        "the result of matvec must have dtype float64 like b, got float32",
        lambda f: f(lambda p: p.astype(np.float32), ONES),
    ),
    "result None": (
        TypeError,
        "the result of matvec must be an array, got NoneType",
        lambda f: f(lambda p: None, ONES),
    ),
    "result list": (TypeError, "the result of matvec must be an array, got list", lambda f: f(lambda p: [1.0], ONES)),
    "first result": (
        ValueError,
        "the result of matvec must have shape (3,) like b, got (2,)",
        lambda f: f(lambda p: p[:2], ONES, x0=ONES),
    ),
    "preconditioned": (
        ValueError,
        "the result of preconditioner must have shape (3,) like b, got (1,)",
        lambda f: f(EYE, ONES, preconditioner=lambda r: r[:1]),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(solve, case):
    kind, text, call = ERRORS[case]
    with pytest.raises(kind) as error:
        call(solve)
    assert str(error.value) == f"conjugate_gradient: {text}"


def test_kinds_do_not_mix(solve, torch):
    with pytest.raises(TypeError, match=r"the result of matvec must be a numpy.ndarray like b, got a torch.Tensor"):
        solve(torch.from_numpy, ONES)
    with pytest.raises(TypeError, match=r"the result of matvec must be a torch.Tensor like b, got a numpy.ndarray"):
        solve(lambda p: p.numpy(), torch.ones(3))
    with pytest.raises(TypeError, match=r"x0 must be a torch.Tensor like b, got a numpy.ndarray"):
        solve(torch.eye(3), torch.ones(3), x0=np.ones(3, np.float32))


def test_errors_of_the_operator_pass(solve):
    def fails(p):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        solve(fails, ONES)


def test_info():
    info = CGInfo(3, 0.5, "converged")
    iterations, norm, status = info
    assert (iterations, norm, status) == (3, 0.5, "converged")
    assert repr(info) == "CGInfo(iterations=3, residual_norm=0.5, status='converged')"


@pytest.mark.parametrize("size", [1e-320, 1e-170, 1e160, 1e300])
def test_right_hand_sides_whose_squares_leave_float64(solve, size):
    b = np.array([size, -size])
    x, info = solve(np.diag([2.0, 4.0]), b, max_iter=5)
    assert info.status == "converged"
    np.testing.assert_allclose(x, b / np.array([2.0, 4.0]), rtol=1e-3 if size < 1e-300 else 1e-12)
    assert 0 <= info.residual_norm <= 1e-4 * size


def test_a_huge_tolerance_is_met_at_once(solve):
    x, info = solve(np.eye(2), np.ones(2), atol=1e200)
    assert (info.iterations, info.status) == (0, "converged") and not x.any()


@pytest.mark.parametrize("start", [None, 3.0])
@pytest.mark.parametrize("preconditioner", [None, "array", "function"])
@pytest.mark.parametrize("b", [[1e300], [1e300, 1.0], [-1e308, 1e-300]])
def test_a_solution_beyond_the_dtype_is_a_breakdown(solve, torch, start, preconditioner, b):
    """||b||^2 leaves float64, and x = 1e20 b is infinite: x is the start, finite, and the residual its own."""
    b = np.array(b)
    x0 = None if start is None else np.full_like(b, start)
    inverse = {None: None, "array": np.full_like(b, 1e20), "function": lambda r: 1e20 * r}[preconditioner]
    x, info = solve(lambda v: 1e-20 * v, b, x0=x0, preconditioner=inverse)
    np.testing.assert_array_equal(x, np.zeros_like(b) if x0 is None else x0)
    assert info.status == "breakdown" and info.iterations == 0
    assert info.residual_norm == pytest.approx(abs(b[0]), rel=1e-12)
    # One that is inside is found.
    x, info = solve(lambda v: 0.5 * v, b / 10, x0=x0)
    np.testing.assert_allclose(x[0], b[0] / 5, rtol=1e-12)
    assert info.status == "converged"


def test_a_natural_gradient_step_beyond_the_dtype_is_none(torch):
    from fastrl import natural_gradient_step

    step, info = natural_gradient_step(lambda v: 1e-20 * v, torch.tensor([1e300], dtype=torch.float64), max_kl=0.01)
    assert step.tolist() == [0.0] and info.status == "breakdown" and info.scale == 0
