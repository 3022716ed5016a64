"""Bad input of n_step_gather: one text on every backend, and nothing written."""

import numpy as np
import pytest

import fastrl

from .helpers import BAD, C, Item, N, Ring, arguments, histories


@pytest.mark.parametrize(("name", "value", "error", "text"), BAD, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_input_is_named_and_nothing_is_written(gather, name, value, error, text):
    call = arguments()
    call[name] = value
    outs = call["out"] if isinstance(call["out"], tuple) else (call["out"],)
    before = [out.copy() for out in outs if out is not None]
    with pytest.raises(error) as caught:
        gather(**call)
    assert str(caught.value).startswith(f"n_step_gather: {name}{text if text.startswith('[') else ' ' + text}")
    for out, was in zip((out for out in outs if out is not None), before, strict=True):
        np.testing.assert_array_equal(out, was)


def test_the_good_call_is_good(gather):
    gather(**arguments())


@pytest.mark.parametrize("name", ["rewards", "terminated", "truncated", "indices", "next_values", "cut"])
def test_out_that_is_an_input(gather, name):
    memory = np.zeros(12 * 8, np.uint8)
    dtype = arguments()[name].dtype
    shape = (12,) if name == "indices" else (6, 2)
    call = arguments() | {"indices": np.zeros(12, np.int64)}
    call[name] = memory[: 12 * dtype.itemsize].view(dtype).reshape(shape)
    floats, ints = np.zeros(12, np.float32), memory.view(np.int64)
    for out, at in (
        ((memory[:48].view(np.float32), floats, np.zeros(12, np.int64)), 0),
        ((floats, floats[:], ints), 1),
    ):
        wanted = f"out[{at}] must not share memory with {name if at == 0 else 'out[0]'}"
        with pytest.raises(ValueError) as caught:
            gather(**(call | {"out": out}))
        assert str(caught.value) == f"n_step_gather: {wanted}"
    assert not memory.any() and not floats.any()


def test_flags_that_are_not_read_are_not_checked(gather):
    call = arguments()
    terminated = np.full((C, N), 9, np.uint8)
    terminated[:4] = [[0, 0], [1, 0], [0, 1], [0, 0]]
    call |= {"terminated": terminated, "indices": np.array([0, 3])}
    call["out"] = None
    assert gather(**call)[2].tolist() == [2, 5]


def test_the_first_bad_flag_of_many_is_named(gather, threads):
    ring = Ring([[Item(1.0)] * 50_000], 50_000, one=True, flags="uint8")
    ring.terminated[40_000], ring.truncated[20_010], ring.terminated[49_000] = 5, 6, 7
    for n in (1, 4):
        threads(n)
        with pytest.raises(ValueError, match=r"n_step_gather: truncated\[20010\] is 6, must be 0 or 1"):
            ring.call(gather, np.arange(50_000), 0.9, 20)


@pytest.fixture
def threads():
    before = fastrl.get_num_threads()
    yield fastrl.set_num_threads
    fastrl.set_num_threads(before)


def test_thread_count_changes_nothing(gather, threads):
    ring = Ring(histories([5000] * 4, 7, end=0.02), 4097)
    indices = np.random.default_rng(0).integers(0, 4097 * 4, 20_011)
    found = []
    for n in (1, 2, 16):
        threads(n)
        found.append([x.tobytes() for x in ring.call(gather, indices, 0.99, 10, values=True)])
    assert found[0] == found[1] == found[2]
