"""`fastrl.jax.SumTree` draws what `fastrl.SumTree` draws, inside JAX programs."""

import importlib
import re

import numpy as np
import pytest

import fastrl
from fastrl import _backend

jax = pytest.importorskip("jax", reason="jax is not installed")
if _backend._C is None:
    pytest.skip("needs the compiled extension", allow_module_level=True)

import jax.numpy as jnp  # noqa: E402

import fastrl.jax as fj  # noqa: E402

enable_x64 = (jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")).enable_x64


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with enable_x64(request.param == "float64"):
        yield request.param


def pair(capacity, dtype, seed=0, n=None):
    """A tree of each kind with the same priorities."""
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, capacity, n or 2 * capacity)
    priorities = rng.exponential(size=len(indices)).astype(dtype) * (rng.random(len(indices)) < 0.8)
    theirs = fastrl.SumTree(capacity, dtype=np.dtype(dtype))
    theirs.update(indices, priorities)
    return fj.SumTree(capacity, dtype).update(indices, priorities), theirs


def drawn(theirs, key, n, stratified=True):
    """What `fastrl.SumTree` draws when its generator begins with the bits of the key."""
    low, high = map(int, jax.random.bits(key, (2,), jnp.uint32))
    tree = fastrl.SumTree(theirs.capacity, dtype=theirs.dtype, seed=low | high << 32)
    tree.update(np.arange(tree.capacity), theirs.state_dict()["priorities"])
    return tree.sample(n, stratified=stratified)


def same_draws(found, wanted):
    wide = jax.config.jax_enable_x64
    assert [x.dtype for x in found] == ([np.int64, np.float64] if wide else [np.int32, np.float32])
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1].astype(found[1].dtype))
    return True


def same_tree(mine, theirs):
    np.testing.assert_array_equal(mine.priorities, theirs.state_dict()["priorities"])
    assert mine.total.dtype == theirs.dtype and mine.total == theirs.dtype.type(theirs.total)
    return True


@pytest.mark.parametrize("capacity", [1, 16, 17, 1000, 4097])
def test_the_same_draws(capacity, dtype):
    mine, theirs = pair(capacity, dtype)
    assert same_tree(mine, theirs)
    key = jax.random.key(capacity)
    for n, stratified in ((1, True), (64, True), (300, False)):
        found = mine.sample(key, n, stratified=stratified)
        assert same_draws(found, drawn(theirs, key, n, stratified))
    assert same_draws(mine.sample(jax.random.PRNGKey(3), 5), drawn(theirs, jax.random.key(3), 5))


def test_updates(dtype):
    mine, theirs = pair(100, dtype)
    update = jax.jit(lambda tree, i, p: tree.update(i, p))
    tiny = np.finfo(dtype).smallest_subnormal
    for indices, priorities in (
        ([5, 7, 5], [1.0, 2.0, 3.0]),  # the last of equal indices wins
        ([], []),
        ([0, 99], [tiny, 0.0]),  # raised to a normal number
        ([3, 4], [2.5, 2.5]),
    ):
        indices, priorities = np.array(indices, np.int32), np.array(priorities, dtype)
        mine = update(mine, indices, priorities)
        theirs.update(indices, priorities)
        assert same_tree(mine, theirs)
    assert mine.priorities[0] == np.finfo(dtype).smallest_normal
    for indices, priority in ((3, 2.5), ([1, 2], 4), (np.array([8], np.int64), 0)):
        mine = mine.update(jnp.asarray(indices), priority)
        theirs[np.atleast_1d(indices)] = float(priority)
        assert same_tree(mine, theirs)
    assert "capacity=100" in repr(mine)


def test_a_tree_is_a_value_and_a_donated_one_is_updated_in_place():
    tree, theirs = pair(1000, "float32")
    other = tree.update(jnp.array([3]), jnp.array([50.0]))
    assert same_tree(tree, theirs) and other.priorities[3] == 50
    arrays = jax.tree.leaves(tree)[:2]
    before = [x.unsafe_buffer_pointer() for x in arrays]
    update = jax.jit(lambda tree, i, p: tree.update(i, p), donate_argnums=0)
    after = update(tree, jnp.array([4]), jnp.array([60.0]))
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after)[:2]] == before
    assert all(x.is_deleted() for x in arrays)
    theirs.update(4, 60.0)
    assert same_tree(after, theirs)


def test_inside_scan(dtype):
    mine, theirs = pair(500, dtype)
    keys = jax.random.split(jax.random.key(0), 20)

    def step(tree, key):
        indices, probabilities = tree.sample(key, 32)
        return tree.update(indices, probabilities.astype(dtype) * 7), indices

    last, indices = jax.jit(lambda tree: jax.lax.scan(step, tree, keys))(mine)
    for key, found in zip(keys, indices, strict=True):
        wanted, probabilities = drawn(theirs, key, 32)
        np.testing.assert_array_equal(found, wanted)
        theirs.update(wanted, probabilities.astype(dtype) * np.dtype(dtype).type(7))
    assert same_tree(last, theirs)


def test_vmap():
    pairs = [pair(100, "float32", seed) for seed in range(6)]
    trees = jax.tree.map(lambda *x: jnp.stack(x), *(mine for mine, _ in pairs))
    keys = jax.random.split(jax.random.key(1), 6)
    draw = jax.vmap(lambda tree, key: tree.sample(key, 16))
    wanted = [drawn(theirs, key, 16) for (_, theirs), key in zip(pairs, keys, strict=True)]
    wanted = tuple(np.stack(x) for x in zip(*wanted, strict=True))
    assert same_draws(draw(trees, keys), wanted)
    nested = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), (trees, keys))
    found = jax.jit(jax.vmap(draw))(*nested)
    assert same_draws([x.reshape(6, 16) for x in found], wanted)
    # Trees along one axis, keys along the other.
    found = jax.vmap(jax.vmap(lambda tree, key: tree.sample(key, 16), (None, 0)), (0, None))(trees, keys)
    assert same_draws([np.diagonal(x, 0, 0, 1).T for x in found], wanted)
    # One tree, many keys; then it becomes many.
    found = jax.vmap(lambda key: pairs[0][0].sample(key, 16)[0])(keys)
    np.testing.assert_array_equal(found[3], drawn(pairs[0][1], keys[3], 16)[0])
    many = jax.vmap(lambda i: pairs[0][0].update(i, 9.0))(jnp.arange(6))
    assert many.priorities.shape == (6, 100) and (jnp.diagonal(many.priorities) == 9).all()
    pairs[0][1].update(2, 9.0)
    assert same_tree(jax.tree.map(lambda x: x[2], many), pairs[0][1])
    more = jax.vmap(lambda tree, i: tree.update(i, jnp.float32(3)))(trees, jnp.arange(12).reshape(6, 2))
    for k, (_, theirs) in enumerate(pairs[1:], 1):
        theirs.update(np.array([2 * k, 2 * k + 1]), 3.0)
        assert same_tree(jax.tree.map(lambda x, k=k: x[k], more), theirs)


def test_no_gradient_flows_through_a_tree():
    tree, _ = pair(50, "float32")

    def loss(x):
        _, probabilities = tree.update(jnp.arange(50), x).sample(jax.random.key(0), 8)
        return (probabilities * x[:8]).sum()

    x = jnp.arange(1.0, 51.0)
    _, probabilities = tree.update(jnp.arange(50), x).sample(jax.random.key(0), 8)
    np.testing.assert_array_equal(jax.grad(loss)(x)[:8], probabilities)


def test_an_empty_tree_does_not_end_a_program():
    def draw(tree):
        return jax.lax.cond(tree.total > 0, lambda: tree.sample(jax.random.key(0), 4)[1], lambda: jnp.full(4, 2.0))

    empty, full = fj.SumTree(20), pair(20, "float32")[0]
    indices, probabilities = empty.sample(jax.random.key(0), 4)
    assert (indices == 0).all() and jnp.isnan(probabilities).all()
    found = jax.vmap(draw)(jax.tree.map(lambda *x: jnp.stack(x), empty, full))
    assert (found[0] == 2).all() and (found[1] < 1).all()


def test_arrays_that_are_not_aligned():
    tree, theirs = pair(1000, "float32")
    arrays = []
    for x in jax.tree.leaves(tree):
        memory = np.empty(x.nbytes + 128, np.uint8)
        start = -memory.ctypes.data % 64 + 16
        moved = memory[start : start + x.nbytes].view(x.dtype)
        moved[:] = x
        arrays.append(jax.dlpack.from_dlpack(moved))
    moved = jax.tree.unflatten(jax.tree.structure(tree), arrays)
    key = jax.random.key(0)
    assert same_draws(moved.sample(key, 40), drawn(theirs, key, 40))
    assert same_tree(moved.update(jnp.arange(0), jnp.arange(0.0)), theirs)


@pytest.mark.parametrize(
    "indices, priorities, text",
    [
        ([1, 100], [1.0, 1.0], "fastrl: sum_tree.update: indices[1] is 100, outside [0, 100)"),
        ([-1], [1.0], "fastrl: sum_tree.update: indices[0] is -1, outside [0, 100)"),
        ([1, 2], [1.0, np.nan], "fastrl: sum_tree.update: priorities[1] is nan, must be finite and >= 0"),
        ([1, 2], [-1.0, 1.0], "fastrl: sum_tree.update: priorities[0] is -1.000000, must be finite and >= 0"),
    ],
)
def test_wrong_values_end_the_program(indices, priorities, text):
    tree, theirs = pair(100, "float32")
    update = jax.jit(lambda tree, i, p: tree.update(i, p))
    with pytest.raises(Exception, match=re.escape(text)):
        jax.block_until_ready(update(tree, np.array(indices), np.array(priorities, np.float32)))
    assert same_tree(tree, theirs)


def many(tree):
    return jax.tree.map(lambda x: x[None], tree)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda tree: fj.SumTree(0), ValueError, "sum_tree: capacity must be in [1, 2147483647], got 0"),
        (lambda tree: fj.SumTree(2.0), TypeError, "sum_tree: capacity must be an int, got float"),
        (lambda tree: fj.SumTree(4, "int32"), ValueError, "sum_tree: dtype must be float32 or float64, got int32"),
        (lambda tree: fj.SumTree(4, "float64"), ValueError, "got float64 (which needs jax_enable_x64)"),
        (lambda tree: tree.update(jnp.ones(2), jnp.ones(2)), ValueError, "must have dtype int32 or int64, got"),
        (lambda tree: tree.update(jnp.arange(2), jnp.arange(2)), ValueError, "must have dtype float32 or float64, got"),
        (lambda tree: tree.update(jnp.zeros((2, 1), int), jnp.ones(2)), ValueError, "must have shape [B] or []"),
        (lambda tree: tree.update(jnp.arange(2), jnp.ones(3)), ValueError, "must have shape (2,) like indices, got"),
        (lambda tree: tree.sample(jax.random.key(0), 0), ValueError, "batch_size must be in [1, 2147483647], got 0"),
        (lambda tree: tree.sample(jax.random.key(0), True), TypeError, "batch_size must be an int, got bool"),
        (lambda tree: jax.jit(lambda n: tree.sample(jax.random.key(0), n))(3), TypeError, "must be an int, got"),
        (lambda tree: many(tree).sample(jax.random.key(0), 3), ValueError, "(1,) trees: use jax.vmap"),
        (lambda tree: many(tree).update(1, 1.0), ValueError, "(1,) trees: use jax.vmap"),
    ],
)  # fmt: skip
def test_errors(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call(fj.SumTree(10))
