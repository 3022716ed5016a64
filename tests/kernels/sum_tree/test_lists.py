"""`tree[...]` with lists and slices, as other libraries' trees take them."""

import numpy as np
import pytest


@pytest.fixture(params=["numpy", "torch"])
def tree(request, kernels):
    dtype = np.float64
    if request.param == "torch":
        dtype = pytest.importorskip("torch").float64
    made = kernels.SumTree(20, dtype=dtype, seed=0)
    made[:] = [float(k) for k in range(20)]
    return made


def values(tree):
    return np.asarray(tree[:]).tolist()


def test_slices_and_lists_are_read(tree):
    p = list(range(20))
    assert values(tree) == p and tree.total == sum(p)
    for indices in (slice(3, 9), slice(None, None, 7), slice(-3, None), slice(9, 3), slice(15, 99), slice(5, 0, -2)):
        assert np.asarray(tree[indices]).tolist() == p[indices]
    assert np.asarray(tree[[4, 1, 1]]).tolist() == [4, 1, 1]
    assert np.asarray(tree[[]]).tolist() == [] and np.asarray(tree[range(2, 6)]).tolist() == [2, 3, 4, 5]
    assert type(tree[:]) is type(tree.sample(1)[1])


def test_negative_ints_count_from_the_end(tree):
    assert tree[-1] == 19 and tree[np.int64(-20)] == 0
    assert np.asarray(tree[[-1, 3, -20]]).tolist() == [19, 3, 0]
    tree[-2] = 0.25
    tree[[-1, 0]] = [1.0, 2.0]
    assert values(tree) == [2.0, *range(1, 18), 0.25, 1.0]
    with pytest.raises(IndexError, match=r"indices\[0\] is -21, outside \[0, 20\)"):
        tree[-21]


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
def test_small_ints_of_numpy_count_from_the_end(kernels, kind):
    tree = kernels.SumTree(100_000, dtype=np.float64)
    tree[-1], tree[kind(-100)] = 3.0, 5.0
    tree[[kind(-2), kind(7)]] = [1.0, 2.0]
    assert tree[kind(-1)] == 3 and tree[99_900] == 5 and tree[99_998] == 1 and tree[7] == 2
    assert tree[[kind(-1), kind(7), kind(-100)]].tolist() == [3, 2, 5]
    with pytest.raises(IndexError, match=r"indices\[0\] is -100, outside \[0, 50\)"):
        kernels.SumTree(50)[[kind(-100)]]


def test_slices_and_lists_are_written(tree):
    wanted = [float(k) for k in range(20)]
    tree[2:5] = 0.5
    wanted[2:5] = [0.5] * 3
    tree[[7, 7, 0]] = [1.0, 2.0, 3]
    wanted[7], wanted[0] = 2.0, 3.0
    tree[[9, 8]] = 4
    wanted[9] = wanted[8] = 4.0
    tree[9:10] = np.float32(6)
    wanted[9] = 6.0
    tree[[]] = []
    tree[18:] = tree[[4, 5]]
    wanted[18:] = [0.5, 5.0]
    assert values(tree) == wanted and tree.total == sum(wanted) and tree.max == max(wanted)


@pytest.mark.parametrize(
    ("indices", "priorities", "error", "text"),
    [
        ([0, 20], 1.0, IndexError, r"sum_tree.update: indices\[1\] is 20, outside \[0, 20\)"),
        ([-1, -21], 1.0, IndexError, r"indices\[1\] is -21, outside"),
        (-21, 1.0, IndexError, r"indices\[0\] is -21, outside"),
        (np.array([-1]), np.ones(1, np.float32), IndexError, r"indices\[0\] is -1, outside"),
        ([0.5], 1.0, ValueError, "indices must have dtype int64 or int32, got float64"),
        ([True, False], 1.0, ValueError, "indices must have dtype int64 or int32, got bool"),
        ([[0, 1]], 1.0, ValueError, "indices must have shape"),
        ([0, 1], [1.0], ValueError, "priorities must have shape"),
        (slice(0, 2), [1.0, -1.0], ValueError, r"priorities\[1\] is -1"),
        ([0], None, TypeError, "priorities must be"),
        ([0], [None], TypeError, r"priorities must be a number or a list of numbers, got \[None\]"),
        ([0, 1], ["a", 1.0], TypeError, "priorities must be a number or a list of numbers"),
        ([0, 1], [[1.0], [1.0, 2.0]], TypeError, "priorities must be a number or a list of numbers"),
    ],
)
def test_errors_change_nothing(tree, indices, priorities, error, text):
    before = values(tree)
    with pytest.raises(error, match=text):
        tree[indices] = priorities
    assert values(tree) == before
