"""n_step_gather on every backend against whole histories in plain lists; other libraries' faults."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .helpers import Item, Ring, histories, poisoned


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
