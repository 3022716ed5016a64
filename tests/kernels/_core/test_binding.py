"""How functions and classes of the compiled module take their arguments: csrc/binding/function.h and class.h."""

import copy
import gc
import inspect
import weakref

import numpy as np
import pytest

_C = pytest.importorskip("fastrl._C")


def core(**changes):
    arguments = {"capacity": 4, "dtype": "float64", "state": np.zeros(2, np.uint64), "tensor_type": None, **changes}
    return _C.SumTreeCore(**arguments)


def test_by_position_and_by_keyword():
    state = np.array([3, 0], np.uint64)
    by_position = _C.draw(state, 5, False)
    state[1] = 0
    assert np.array_equal(by_position, _C.draw(normal=False, n=np.int64(5), state=state))
    state[1] = 0
    assert np.array_equal(by_position, _C.draw(state, normal=0, n=5))


@pytest.mark.parametrize(
    "args, kwargs, text",
    [
        ((1, 2, 3, 4), {}, r"draw\(\) takes at most 3 arguments, got 4"),
        ((1, 2), {}, r"draw\(\) missing required argument 'normal'"),
        ((), {"n": 1, "normal": True}, r"draw\(\) missing required argument 'state'"),
        ((1, 2), {"normal": True, "x": 1}, r"draw\(\) got an unexpected keyword argument 'x'"),
        ((1, 2, True), {"n": 1}, r"draw\(\) got multiple values for argument 'n'"),
        ((1, 2.0, True), {}, r"draw\(\): n must be an int of 64 bits, got float"),
        ((1, 2**63, True), {}, r"draw\(\): n must be an int of 64 bits, got int"),
        ((1, 2, "yes"), {}, r"draw\(\): normal must be a bool, got str"),
    ],
)
def test_wrong_calls(args, kwargs, text):
    with pytest.raises(TypeError, match=text):
        _C.draw(*args, **kwargs)


def test_wrong_values():
    with pytest.raises(TypeError, match=r"set_num_threads\(\): n must be an int of 32 bits, got int"):
        _C.set_num_threads(2**40)
    with pytest.raises(TypeError, match=r"SumTreeCore\(\): dtype must be a str, got int"):
        core(dtype=3)
    with pytest.raises(TypeError, match=r"MlpCore\(\): sizes must be a list of ints, got int"):
        _C.MlpCore(3, "relu", 1, False, False, False)
    with pytest.raises(TypeError, match=r"MlpFisher\(\): layers must be a list, got int"):
        _C.MlpFisher(1, 2, 3, [])
    vectors = [np.zeros(2, np.float32) for _ in range(4)]
    with pytest.raises(TypeError, match=r"flat_adam\(\): lr must be a float, got str"):
        _C.flat_adam(*vectors, None, None, "lr", 0.9, 0.9, 1e-8, 0.0, 1.0, 0.0, 0.0, 0.0)


def test_an_error_inside_bool_comes_out():
    class Odd:
        def __bool__(self):
            raise KeyError("odd")

    with pytest.raises(KeyError, match="odd"):
        _C.draw(np.zeros(2, np.uint64), 2, Odd())


def test_defaults_are_none():
    assert _C.SumTreeCore(4, "float32", np.zeros(2, np.uint64)).total == 0


def test_objects():
    tree = core()
    tree.update(np.arange(4), np.ones(4))
    assert (len(tree), tree.total) == (4, 4)
    with pytest.raises(TypeError, match="SumTreeCore.__init__ was called already"):
        tree.__init__(4, "float64", np.zeros(2, np.uint64))
    assert tree.total == 4
    with pytest.raises(TypeError, match="SumTreeCore.__init__ must be called first"):
        len(_C.SumTreeCore.__new__(_C.SumTreeCore))
    with pytest.raises(TypeError, match="descriptor 'update'"):
        _C.SumTreeCore.update(np.zeros(2), 0, 0.0)
    with pytest.raises(AttributeError):
        tree.total = 3
    with pytest.raises(TypeError, match="cannot pickle"):
        copy.deepcopy(tree)
    gone = weakref.ref(tree)
    del tree
    gc.collect()
    assert gone() is None


def test_what_an_object_holds_is_let_go_of():
    state = np.zeros(2, np.uint64)
    gone = weakref.ref(state)
    tree = core(state=state)
    del state
    assert gone() is not None
    del tree
    gc.collect()
    assert gone() is None
    with pytest.raises(ValueError, match="capacity must be in"):  # nothing is left of an object that was not made
        core(capacity=0)


def test_signatures():
    assert str(inspect.signature(_C.gather_rows)) == "(arrays, indices, out)"
    assert str(inspect.signature(_C.SumTreeCore)) == "(capacity, dtype, state, tensor_type=None)"
    assert str(inspect.signature(_C.SumTreeCore.update)) == "(self, /, indices, priorities)"
    assert str(inspect.signature(_C.SumTreeCore.clear)) == "(self, /)"
    assert (_C.gather_rows.__name__, _C.gather_rows.__module__) == ("gather_rows", "fastrl._C")
    assert _C.SumTreeCore.__module__ == "fastrl._C"
