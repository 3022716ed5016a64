"""n_step_gather on every backend against whole histories in plain lists; the faults of other libraries by name."""

import importlib
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.kernels import n_step_gather as public_n_step_gather
from fastrl.kernels import n_step_gather_reference


def with_keywords(gather):
    def call(
        rewards, terminated, truncated, indices, cursor, size, *, gamma, n, next_values=None, cut=None, out=None
    ):  # fmt: skip
        return gather(rewards, terminated, truncated, indices, cursor, size, gamma, n, next_values, cut, out)

    return call


@pytest.fixture(scope="session", params=["reference", "numba", "cpp"])
def gather(request):
    if request.param == "reference":
        return n_step_gather_reference
    if request.param == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
        return with_keywords(importlib.import_module("fastrl.kernels.n_step_gather._numba").n_step_gather)
    return with_keywords(pytest.importorskip("fastrl._C", reason="the C++ extension is not built").n_step_gather)


class Item(NamedTuple):
    reward: float
    value: float = 0.0
    terminated: int = 0
    truncated: int = 0
    cut: int = 0


def oracle(history, t, gamma, n, values, cuts):
    """The return of item t of one environment's whole history: no ring, no modulo."""
    terms, k = [], 0
    while True:
        item = history[t + k]
        terms.append(gamma**k * item.reward)
        k += 1
        if item.terminated or item.truncated or k == n or t + k == len(history) or (cuts and history[t + k].cut):
            break
    discount = 0.0 if item.terminated else gamma**k
    if values and discount:
        terms.append(discount * item.value)
    return math.fsum(terms), discount, t + k - 1


class Ring:
    """Histories of N environments written into rings of C slots; what is not written is poison."""

    def __init__(self, histories, slots, *, first=0, dtype="float32", flags="bool", one=False):
        self.histories, self.slots, self.first, self.one = histories, slots, first, one
        envs = len(histories)
        self.rewards = np.full((slots, envs), np.nan, dtype)
        self.values = np.full((slots, envs), np.nan, dtype)
        self.terminated, self.truncated, self.cut = (np.full((slots, envs), 1, flags) for _ in range(3))
        for env, history in enumerate(histories):
            for t, item in enumerate(history):
                at = (first + t) % slots, env
                self.rewards[at] = item.reward
                self.values[at] = np.nan if item.terminated else item.value
                self.terminated[at], self.truncated[at], self.cut[at] = item.terminated, item.truncated, item.cut
        self.cursor = np.array([(first + len(h)) % slots for h in histories])
        self.size = np.array([min(len(h), slots) for h in histories])
        if one:  # [C] instead of [C, 1]
            for name in ("rewards", "values", "terminated", "truncated", "cut"):
                setattr(self, name, getattr(self, name)[:, 0])
            self.cursor, self.size = int(self.cursor[0]), int(self.size[0])

    def index(self, env, t):
        return (self.first + t) % self.slots * len(self.histories) + env

    def all_items(self):
        return [
            (env, t)
            for env, history in enumerate(self.histories)
            for t in range(max(0, len(history) - self.slots), len(history))
        ]

    def call(self, gather, indices, gamma, n, values=False, cuts=False, view=lambda x: x, **keywords):
        return gather(
            view(self.rewards), view(self.terminated), view(self.truncated), indices, self.cursor, self.size,
            gamma=gamma, n=n, next_values=view(self.values) if values else None,
            cut=view(self.cut) if cuts else None, **keywords,
        )  # fmt: skip

    def check(self, gather, tolerance, gamma, n, values=False, cuts=False, view=lambda x: x, items=None):
        items = self.all_items() if items is None else items
        indices = np.array([self.index(*item) for item in items], np.int64)
        returns, discounts, last = self.call(gather, indices, gamma, n, values, cuts, view)
        assert returns.dtype == discounts.dtype == self.rewards.dtype and last.dtype == np.int64
        wanted = [oracle(self.histories[env], t, gamma, n, values, cuts) for env, t in items]
        for b, (env, _) in enumerate(items):
            assert last[b] == self.index(env, wanted[b][2])
        close = tolerance(self.rewards.dtype)
        np.testing.assert_allclose(returns, np.array([w[0] for w in wanted]), **close)
        np.testing.assert_allclose(discounts, np.array([w[1] for w in wanted]), **close)


def histories(lengths, seed, end=0.2, cut=0.0):
    rng = np.random.default_rng(seed)

    def item():
        ends = rng.random() < end
        kind = rng.integers(3) if ends else -1  # terminated, truncated or both
        reward, value = (float(x) for x in rng.integers(-8, 9, 2) / 4)
        return Item(reward, value, int(kind in (0, 2)), int(kind in (1, 2)), int(rng.random() < cut))

    return [[item() for _ in range(length)] for length in lengths]


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    return raw


LAYOUTS = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "stepped": lambda x: np.repeat(x, 3, axis=0)[1::3],
    "wide": lambda x: np.repeat(x, 40, axis=0)[7::40],
    "environment-major": lambda x: np.ascontiguousarray(x.T).T,
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "unaligned": unaligned,
}


@settings(max_examples=100, deadline=None)
@given(
    slots=st.integers(1, 9),
    lengths=st.lists(st.integers(0, 25), min_size=1, max_size=4),
    one=st.booleans(),
    first=st.integers(0, 8),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    n=st.integers(1, 12),
    dtype=st.sampled_from(["float32", "float64"]),
    flags=st.sampled_from(["bool", "uint8"]),
    values=st.booleans(),
    cuts=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_against_whole_histories(
    gather, tolerance, slots, lengths, one, first, gamma, n, dtype, flags, values, cuts, seed
):
    one = one and len(lengths) == 1
    ring = Ring(
        histories(lengths, seed, cut=0.2), slots, first=first % slots, dtype=dtype, flags=flags, one=one
    )  # fmt: skip
    ring.check(gather, tolerance, gamma, n, values, cuts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layouts(gather, tolerance, dtype, layout):
    ring = Ring(histories([63, 40, 7], 1), 31, first=5, dtype=dtype)
    one = Ring(histories([99], 2), 64, first=63, dtype=dtype, one=True)
    for n in (1, 3, 10, 40):
        ring.check(gather, tolerance, 0.9, n, values=True, view=LAYOUTS[layout])
        one.check(gather, tolerance, 0.9, n, values=True, cuts=True, view=LAYOUTS[layout])


@pytest.mark.parametrize("batch", [0, 1, 19, 99, 989])
@pytest.mark.parametrize("wide", [False, True])
def test_batches(gather, tolerance, batch, wide):
    ring = Ring(histories([700, 300], 3, end=0.05), 257)
    items = [ring.all_items()[i] for i in np.random.default_rng(0).integers(0, 514, batch)]
    ring.check(gather, tolerance, 0.99, 5, values=True, items=items)
    indices = np.array([ring.index(*item) for item in items], np.int64 if wide else np.int32)
    spread = np.repeat(indices, 2)[::2]
    before = spread.copy()
    for a, b in zip(ring.call(gather, spread, 0.99, 5), ring.call(gather, indices, 0.99, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(spread, before)


def test_one_cursor_for_all_environments_or_one_each(gather):
    ring = Ring(histories([20, 20, 20], 4), 8)
    indices = np.array([ring.index(*item) for item in ring.all_items()])
    wanted = ring.call(gather, indices, 0.9, 4)
    ring.cursor, ring.size = int(ring.cursor[0]), np.int32(ring.size[0])
    for a, b in zip(ring.call(gather, indices, 0.9, 4), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    ring.cursor, ring.size = np.full(6, ring.cursor, np.int32)[::2], np.full(3, 8)
    for a, b in zip(ring.call(gather, indices, 0.9, 4), wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_empty(gather):
    for shape in ((0,), (0, 3), (5, 0), (7, 2)):
        floats, flags = np.zeros(shape, np.float32), np.zeros(shape, bool)
        found = gather(floats, flags, flags, np.zeros(0, np.int64), 0, 0, gamma=0.9, n=3, next_values=floats, cut=flags)
        assert [x.shape for x in found] == [(0,)] * 3
        assert [x.dtype.name for x in found] == ["float32", "float32", "int64"]


def test_n_of_any_size(gather, tolerance):
    ring = Ring([[Item(1.0)] * 50], 40, one=True)
    for n in (39, 40, 41, 2**31, 2**63 - 1, 2**70):
        ring.check(gather, tolerance, 0.5, n)


# ---- faults of other libraries ------------------------------------------------------------------------------------


def test_no_return_crosses_the_end_of_an_episode(gather, tolerance):
    """Every step is looked at, not only the last of the n (AgileRL)."""
    history = [Item(1.0), Item(10.0, terminated=1), Item(100.0), Item(1000.0), Item(10000.0)]
    ring = Ring([history], 5, one=True)
    returns, discounts, last = ring.call(gather, np.arange(5), 1.0, 4)
    assert returns.tolist() == [11, 10, 11100, 11000, 10000]
    assert discounts.tolist() == [0, 0, 1, 1, 1] and last.tolist() == [1, 1, 4, 4, 4]
    ring.check(gather, tolerance, 0.9, 4)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_the_last_start_states_of_an_episode_are_kept(gather, end):
    """Each with its shorter n, and with the value of the observation that the episode really ended in (CleanRL)."""
    history = [Item(1.0, 7.0)] * 5 + [Item(1.0, 50.0, **{end: 1})] + [Item(0.0, 999.0)] * 6
    ring = Ring([history], 12, one=True)
    returns, discounts, last = ring.call(gather, np.arange(6), 0.5, 3, values=True)
    tail = 0.0 if end == "terminated" else 50.0
    assert last.tolist() == [2, 3, 4, 5, 5, 5]
    assert returns.tolist()[:3] == [1.75 + 0.125 * 7] * 3
    assert returns.tolist()[3:] == [1.75 + 0.125 * tail, 1.5 + 0.25 * tail, 1 + 0.5 * tail]
    assert discounts.tolist()[3:] == ([0, 0, 0] if end == "terminated" else [0.125, 0.25, 0.5])


@pytest.mark.parametrize("cursor", range(6))
def test_no_return_crosses_the_write_cursor(gather, cursor):
    """The newest items are followed in memory by the oldest; the end of the memory is no end of the data."""
    rewards, none = np.arange(6.0), np.zeros(6, bool)
    order = [(cursor + t) % 6 for t in range(6)]  # oldest first
    returns, discounts, last = gather(rewards, none, none, np.array(order), cursor, 6, gamma=1.0, n=3)
    assert last.tolist() == [order[min(t + 2, 5)] for t in range(6)]
    assert returns.tolist() == [sum(order[t : t + 3]) for t in range(6)]
    assert (discounts == 1).all()


def test_both_flags_count_as_terminated(gather):
    ring = Ring([[Item(1.0, 5.0, terminated=1, truncated=1), Item(2.0, 5.0)]], 4, one=True)
    returns, discounts, _ = ring.call(gather, np.array([0]), 0.5, 3, values=True)
    assert returns.tolist() == [1] and discounts.tolist() == [0]


def test_nothing_behind_a_terminal_step_is_read(gather):
    nan, none = np.nan, np.zeros(4, bool)
    rewards, values = np.array([1.0, 2.0, nan, nan]), np.array([nan, nan, nan, nan])
    terminated = np.array([False, True, False, False])
    found = gather(rewards, terminated, none, np.array([0, 1]), 0, 4, gamma=0.5, n=3, next_values=values)
    assert found[0].tolist() == [2, 2] and found[1].tolist() == [0, 0]


@pytest.mark.filterwarnings("error")
def test_what_a_discount_of_0_hides(gather):
    """gamma = 0 leaves the first reward, whatever the later ones are."""
    for dtype in (np.float32, np.float64):
        rewards, none = np.array([1, np.nan, np.inf, 2], dtype), np.zeros(4, bool)
        indices, values = np.array([0, 3]), np.array([np.nan, np.nan, np.inf, np.nan], dtype)
        returns, discounts, last = gather(rewards, none, none, indices, 0, 4, gamma=0.0, n=3, next_values=values)
        assert returns.tolist() == [1, 2] and discounts.tolist() == [0, 0] and last.tolist() == [2, 3]
        assert gather(rewards, none, none, indices, 0, 4, gamma=0.0, n=2)[0].tolist() == [1, 2]


def test_a_nan_of_one_environment_stays_there(gather):
    ring = Ring(histories([30, 30], 5, end=0), 16, dtype="float64")
    ring.rewards[:, 1] = np.nan
    indices = np.arange(32)
    returns, _, _ = ring.call(gather, indices, 0.9, 5, values=True)
    assert (np.isnan(returns) == (indices % 2 == 1)).all()


def test_sums_are_float64_inside(gather):
    """1e8 + 1 - 1e8 is 0 in float32."""
    ring = Ring([[Item(1e8), Item(1.0), Item(-1e8)]], 3, one=True)
    returns, _, _ = ring.call(gather, np.array([0]), 1.0, 3)
    assert returns.dtype == np.float32 and returns.tolist() == [1.0]


# ---- out= ---------------------------------------------------------------------------------------------------------


def poisoned(batch, dtype="float32", step=1):
    outs = []
    for name in (dtype, dtype, "int64"):
        array = np.full(batch * abs(step), 77, name)
        outs.append(array[::step])
    return tuple(outs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", [1, 3, -1])
def test_out(gather, dtype, step):
    ring = Ring(histories([70, 60], 6), 33, dtype=dtype)
    indices = np.array([ring.index(*item) for item in ring.all_items()])
    wanted = ring.call(gather, indices, 0.9, 3, values=True)
    for kind in (tuple, list):
        out = kind(poisoned(len(indices), dtype, step))
        assert ring.call(gather, indices, 0.9, 3, values=True, out=out) is out
        for a, b in zip(out, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
            if step == 3:
                assert (a.base.reshape(-1, 3)[:, 1:] == 77).all()


# ---- errors -------------------------------------------------------------------------------------------------------

C, N = 6, 2


def arguments():
    return {
        "rewards": np.ones((C, N), np.float32),
        "terminated": np.zeros((C, N), bool),
        "truncated": np.zeros((C, N), np.uint8),
        "indices": np.array([0, 5, 2]),
        "cursor": 4,
        "size": np.array([4, 3]),
        "gamma": 0.9,
        "n": 3,
        "next_values": np.ones((C, N), np.float32),
        "cut": np.zeros((C, N), bool),
        "out": poisoned(3),
    }


def frozen(array):
    array.flags.writeable = False
    return array


def changed(name, at, value):
    array = arguments()[name].astype(np.uint8)
    array[at] = value
    return array


BAD = [
    ("rewards", None, TypeError, "must be an array, got NoneType"),
    ("rewards", [[1.0] * N] * C, TypeError, "must be an array, got list"),
    ("rewards", np.ones((C, N), np.float16), ValueError, "must have dtype float32 or float64, got float16"),
    ("rewards", np.ones((C, N), np.int64), ValueError, "must have dtype float32 or float64, got int64"),
    ("rewards", np.ones((C, N, 1), np.float32), ValueError, "must have shape [C] or [C, N], got (6, 2, 1)"),
    ("rewards", np.ones((), np.float32), ValueError, "must have shape [C] or [C, N], got ()"),
    ("terminated", np.zeros((C, N)), ValueError, "must have dtype bool or uint8, got float64"),
    ("terminated", np.zeros((C, N + 1), bool), ValueError, "must have shape (6, 2) like rewards, got (6, 3)"),
    ("terminated", np.zeros(C, bool), ValueError, "must have shape (6, 2) like rewards, got (6,)"),
    ("terminated", None, TypeError, "must be an array, got NoneType"),
    ("terminated", changed("terminated", (0, 0), 2), ValueError, "[0, 0] is 2, must be 0 or 1"),
    ("truncated", np.zeros((C + 1, N), bool), ValueError, "must have shape (6, 2) like rewards, got (7, 2)"),
    ("truncated", np.zeros((C, N), np.int8), ValueError, "must have dtype bool or uint8, got int8"),
    ("truncated", changed("truncated", (2, 1), 255), ValueError, "[2, 1] is 255, must be 0 or 1"),
    ("next_values", np.ones((C, N)), ValueError, "must have dtype float32 like rewards, got float64"),
    ("next_values", np.ones((C, N), np.int32), ValueError, "must have dtype float32 or float64, got int32"),
    ("next_values", np.ones(3, np.float32), ValueError, "must have shape (6, 2) like rewards, got (3,)"),
    ("cut", np.zeros((C, N), np.float32), ValueError, "must have dtype bool or uint8, got float32"),
    ("cut", np.zeros((N, C), bool), ValueError, "must have shape (6, 2) like rewards, got (2, 6)"),
    ("cut", changed("cut", (1, 0), 3), ValueError, "[1, 0] is 3, must be 0 or 1"),
    ("indices", [0, 1, 2], TypeError, "must be an array, got list"),
    ("indices", np.array([0.0, 1, 2]), ValueError, "must have dtype int64 or int32, got float64"),
    ("indices", np.array([True, False, True]), ValueError, "must have dtype int64 or int32, got bool"),
    ("indices", np.array([[0, 1, 2]]), ValueError, "must have shape [B], got (1, 3)"),
    ("indices", np.array([0, -1, 12]), IndexError, "[1] is -1, outside [0, 12)"),
    ("indices", np.array([0, 1 << 40, 2]), IndexError, "[1] is 1099511627776, outside [0, 12)"),
    ("indices", np.array([0, 2, 12], np.int32), IndexError, "[2] is 12, outside [0, 12)"),
    ("indices", np.array([0, 1, 99]), IndexError, "[1] is 1, a slot that holds no item (cursor 4, size 3)"),
    ("indices", np.array([7, 8, 2]), IndexError, "[1] is 8, a slot that holds no item (cursor 4, size 4)"),
    ("cursor", 6, ValueError, "must be in [0, 5], got 6"),
    ("cursor", -1, ValueError, "must be in [0, 5], got -1"),
    ("cursor", 2**70, ValueError, "must be in [0, 5], got 1180591620717411303424"),
    ("cursor", np.array([4, 6]), ValueError, "[1] must be in [0, 5], got 6"),
    ("cursor", np.array([4, 4, 4]), ValueError, "must have shape (2,), got (3,)"),
    ("cursor", np.array([4.0, 4.0]), ValueError, "must have dtype int64 or int32, got float64"),
    ("cursor", 4.0, TypeError, "must be an array, got float"),
    ("cursor", True, TypeError, "must be an array, got bool"),
    ("cursor", None, TypeError, "must be an array, got NoneType"),
    ("size", 7, ValueError, "must be in [0, 6], got 7"),
    ("size", np.array([-1, 3]), ValueError, "[0] must be in [0, 6], got -1"),
    ("size", np.array([[4, 3]]), ValueError, "must have shape (2,), got (1, 2)"),
    ("gamma", 1.5, ValueError, "must be in [0, 1], got 1.5"),
    ("gamma", -0.1, ValueError, "must be in [0, 1], got -0.1"),
    ("gamma", math.nan, ValueError, "must be in [0, 1], got nan"),
    ("gamma", 10**400, ValueError, "must be in [0, 1], got inf"),
    ("gamma", "0.9", TypeError, "must be a float, got str"),
    ("gamma", True, TypeError, "must be a float, got bool"),
    ("n", 0, ValueError, "must be >= 1, got 0"),
    ("n", -(2**70), ValueError, "must be >= 1, got -1180591620717411303424"),
    ("n", 3.0, TypeError, "must be an int, got float"),
    ("n", True, TypeError, "must be an int, got bool"),
    ("out", poisoned(3)[:2], ValueError, "must be 3 arrays, got 2 arrays"),
    ("out", poisoned(3)[0], ValueError, "must be 3 arrays, got ndarray"),
    ("out", poisoned(4), ValueError, "[0] must have shape (3,), got (4,)"),
    ("out", poisoned(3, "float64"), ValueError, "[0] must have dtype float32, got float64"),
    ("out", (*poisoned(3)[:2], np.zeros(3, np.int32)), ValueError, "[2] must have dtype int64, got int32"),
    ("out", (*poisoned(3)[:2], None), TypeError, "[2] must be an array, got NoneType"),
    ("out", (frozen(poisoned(3)[0]), *poisoned(3)[1:]), ValueError, "[0] must be writable"),
    ("out", (np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (3,), (0,)), *poisoned(3)[1:]), ValueError,
     "[0] must not overlap itself"),
]  # fmt: skip


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


# ---- torch --------------------------------------------------------------------------------------------------------


def as_torch(torch, call):
    return {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in call.items()}


def test_torch_tensors(gather, torch):
    ring = Ring(histories([70, 60, 9], 8), 33, dtype="float64")
    indices = np.array([ring.index(*item) for item in ring.all_items()])
    wanted = ring.call(gather, indices, 0.9, 3, values=True, cuts=True)
    call = {
        "rewards": ring.rewards, "terminated": ring.terminated, "truncated": ring.truncated, "indices": indices,
        "cursor": ring.cursor, "size": ring.size, "next_values": ring.values, "cut": ring.cut, "gamma": 0.9, "n": 3,
    }  # fmt: skip
    tensors = as_torch(torch, call)
    tensors["next_values"].requires_grad_()
    out = (
        *(torch.full((len(indices),), 77.0, dtype=torch.float64) for _ in range(2)),
        torch.zeros(len(indices)).long(),
    )
    for found in (gather(**tensors), gather(**tensors, out=out)):
        for a, b in zip(found, wanted, strict=True):
            assert isinstance(a, torch.Tensor) and not a.requires_grad
            np.testing.assert_array_equal(a.numpy(), b)
    assert found is out


def test_numpy_and_torch_are_not_mixed(gather, torch):
    for name in ("terminated", "truncated", "indices", "size", "next_values", "cut"):
        call = arguments() | {"out": None}
        call[name] = torch.from_numpy(call[name])
        with pytest.raises(TypeError) as caught:
            gather(**call)
        wanted = f"n_step_gather: {name} must be a numpy.ndarray like rewards, got a torch.Tensor"
        assert str(caught.value) == wanted
    call = as_torch(torch, arguments() | {"out": None}) | {"cut": arguments()["cut"]}
    with pytest.raises(TypeError, match=r"n_step_gather: cut must be a torch.Tensor like rewards, got a numpy.ndarray"):
        gather(**call)


def test_meta_tensors(gather, torch):
    call = as_torch(torch, arguments() | {"out": None})
    call["rewards"] = torch.ones(C, N, device="meta")
    with pytest.raises(ValueError, match="n_step_gather: rewards has no data|n_step_gather: rewards must be on cpu"):
        gather(**call)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 9), envs=st.integers(1, 3), values=st.booleans())
def test_the_torch_version(torch, tolerance, device, seed, n, envs, values):
    """What serves CUDA tensors, also on the CPU, where it is never chosen."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

    def gather(*arguments, **keywords):
        def move(x):
            return torch.from_numpy(np.array(x)).to(device) if isinstance(x, np.ndarray) else x

        call = with_keywords(importlib.import_module("fastrl.kernels.n_step_gather._torch").fallback.n_step_gather)
        found = call(*map(move, arguments), **{k: move(v) for k, v in keywords.items()})
        assert all(x.device.type == device for x in found)
        return tuple(x.cpu().numpy() for x in found)

    ring = Ring(histories([20] * envs, seed, cut=0.1), 7, dtype="float64")
    ring.check(gather, tolerance, 0.9, n, values, cuts=True)


@pytest.mark.parametrize(("name", "value", "error", "text"), BAD, ids=lambda x: x if isinstance(x, str) else None)
def test_errors_of_the_torch_version(torch, name, value, error, text):
    if isinstance(value, np.ndarray) and value.dtype.name in ("float16", "int8"):
        pytest.skip("the same text, but for the tensor's kind")
    call = as_torch(torch, arguments()) | {"out": None}
    call[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) and name != "out" else value
    if name == "out" or (error is TypeError and name not in ("gamma", "n")):
        pytest.skip("worded for tensors")
    with pytest.raises(error) as caught:
        with_keywords(importlib.import_module("fastrl.kernels.n_step_gather._torch").fallback.n_step_gather)(**call)
    assert str(caught.value).startswith(f"n_step_gather: {name}{text if text.startswith('[') else ' ' + text}")


def test_the_public_function():
    """Whatever backend it chose."""
    assert fastrl.kernels.n_step_gather is public_n_step_gather
    ring = Ring(histories([70, 60], 9), 33)
    indices = np.array([ring.index(*item) for item in ring.all_items()])
    wanted = ring.call(n_step_gather_reference, indices, 0.9, 3, values=True)
    found = ring.call(public_n_step_gather, indices, 0.9, 3, values=True)
    np.testing.assert_array_equal(found[2], wanted[2])
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6, atol=1e-6)
    with pytest.raises(TypeError):
        public_n_step_gather(ring.rewards, ring.terminated, ring.truncated, indices, 0, 33, 0.9, 3)


def test_out_tells_autograd(torch):
    """A backward pass that kept what `out` held raises, as with torch's own operations in place."""
    ring = torch.ones(8), torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    w, out = torch.ones(3, requires_grad=True), (torch.ones(3), torch.ones(3), torch.zeros(3, dtype=torch.int64))
    loss = (w * out[0]).sum()
    fastrl.n_step_gather(*ring, torch.arange(3), 0, 8, gamma=0.5, n=2, out=out)
    assert [x._version for x in out] == [1, 1, 1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- torch.compile -----------------------------------------------------------------------------------------------


def compile_calls(torch):
    """Calls of the public function and of the registered op: with numbers, and with arrays and all that is optional."""
    ring = Ring(histories((20, 9, 13), 5, cut=0.1), 16)
    rewards, values, terminated, truncated, cut, cursor, size = map(
        torch.from_numpy, (ring.rewards, ring.values, ring.terminated, ring.truncated, ring.cut, ring.cursor, ring.size)
    )
    indices = torch.tensor([ring.index(*item) for item in ring.all_items()])
    slots = torch.arange(16)[:7]
    full = torch.zeros(16), torch.zeros(16, dtype=torch.bool), torch.zeros(16, dtype=torch.bool), slots
    ends = rewards, terminated, truncated, indices
    public = [
        lambda r: fastrl.n_step_gather(r[:, 0] * 0 + 1, *full[1:], 3, 16, gamma=0.9, n=3),
        lambda r: fastrl.n_step_gather(1 * r, *ends[1:], cursor, size, gamma=0.5, n=4, next_values=1 * values, cut=cut),
    ]
    registered = [
        (*full, None, None, 3, 16, 0.9, 3, None, None),
        (*ends, cursor, size, 0, 0, 0.5, 4, values, cut),
    ]
    return rewards.nan_to_num(), public, registered


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch._dynamo.reset()
    rewards, public, _ = compile_calls(torch)
    compiled = torch.compile(lambda r: [f(r) for f in public], backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for found, call in zip(compiled(rewards), public, strict=True):
        for x, y in zip(found, call(rewards), strict=True):
            assert torch.equal(x, y) and x.dtype == y.dtype


@pytest.mark.filterwarnings("ignore")
def test_out_is_written_in_a_compiled_call():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch._dynamo.reset()
    ring = torch.ones(8), torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    indices = torch.arange(3)
    out = torch.full((3,), np.nan), torch.full((3,), np.nan), torch.full((3,), -1)

    def fn(*out):
        return fastrl.n_step_gather(*ring, indices, 0, 8, gamma=0.5, n=2, out=out)

    torch.compile(fn, backend="aot_eager", fullgraph=True)(*out)
    assert [x.tolist() for x in out] == [[1.5] * 3, [0.25] * 3, [1, 2, 3]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize(
    ("position", "bad", "text"),
    [(0, (2, 3), r"out\[0\] must have shape \(3,\), got"), (2, (3,), r"out\[2\] must have dtype int64, got float32")],
)
def test_out_is_checked_in_a_compiled_call(fullgraph, position, bad, text):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch._dynamo.reset()
    ring = torch.ones(8), torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    out = [torch.full((3,), -1.0), torch.full((3,), -1.0), torch.full((3,), -1)]
    out[position] = torch.full(bad, -1.0)

    def fn(*out):
        return fastrl.n_step_gather(*ring, torch.arange(3), 0, 8, gamma=0.5, n=2, out=out)

    with pytest.raises(Exception, match=f"n_step_gather: {text}"):
        torch.compile(fn, backend="eager", fullgraph=fullgraph)(*out)
    assert all((x == -1).all() for x in out)


@pytest.mark.filterwarnings("ignore")
def test_arrays_that_want_a_gradient_are_constants_in_a_compiled_call():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch._dynamo.reset()
    rewards, none, w = torch.arange(8.0), torch.zeros(8, dtype=torch.bool), torch.ones(8, requires_grad=True)

    def loss(w):
        values = 2 * w
        returns = fastrl.n_step_gather(
            w * rewards, none, none, torch.arange(8), 0, 8, gamma=0.5, n=2, next_values=values
        )[0]
        return ((returns - values) ** 2).mean()

    (wanted,) = torch.autograd.grad(loss(w), w)
    (found,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(w), w)
    torch.testing.assert_close(found, wanted)


def test_opcheck():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import fastrl.kernels.n_step_gather._torch  # noqa: F401 (registers the op)

    for args in compile_calls(torch)[2]:
        results = torch.library.opcheck(torch.ops.fastrl.n_step_gather, args)
        assert set(results.values()) == {"SUCCESS"}, results
