"""Calls of CUDA that fail, as no test makes a GPU's: an error is raised once, and nothing is left to later calls."""

import ctypes
import os

import pytest

import fastrl

torch = pytest.importorskip("torch")
emulation = ctypes.CDLL(os.environ["FASTRL_EMULATION_MODULE"])
current_device = ctypes.c_int.in_dll(emulation, "emulation_device")
last_error = ctypes.c_int.in_dll(emulation, "emulation_last_error")
failing = (ctypes.c_char * 32).in_dll(emulation, "emulation_failing")


@pytest.fixture
def tree():
    tree = fastrl.SumTree(16, dtype=torch.float32, device="cuda", seed=0)
    tree.update(torch.arange(4), 1.0)
    return tree


@pytest.fixture
def another_device():
    current_device.value = 1
    yield
    current_device.value = 0


def test_a_failed_call_leaves_no_error_behind(tree):
    indices, errors = torch.tensor([1, 2]), torch.full((2,), 3.0)
    failing.value = b"cudaMemsetAsync"
    with pytest.raises(RuntimeError, match="update_from_td_errors: CUDA error: a call was to fail"):
        tree.update_from_td_errors(indices, errors, 1.0, 0.0)
    assert last_error.value == 0 and tree.total == 4
    assert tree.update_from_td_errors(indices, errors, 1.0, 0.0) == 3 and tree.total == 8


def test_the_error_of_another_library_is_not_raised(tree):
    last_error.value = 2
    tree.update(torch.tensor([0]), 2.0)
    assert tree.total == 5


@pytest.mark.usefixtures("another_device")
def test_the_device_of_the_arrays_is_used_and_the_one_before_restored(tree):
    tree.update(torch.tensor([0]), 2.0)
    assert tree.total == 5 and current_device.value == 1


@pytest.mark.usefixtures("another_device")
def test_nothing_is_launched_where_the_device_cannot_be_used(tree):
    failing.value = b"cudaSetDevice"
    with pytest.raises(RuntimeError, match="a call was to fail"):
        tree.update(torch.tensor([0]), 2.0)
    assert tree.total == 4 and (current_device.value, last_error.value) == (1, 0)
    tree.update(torch.tensor([0]), 2.0)
    assert tree.total == 5
