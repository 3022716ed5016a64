"""fastrl.integrations.tianshou inside Tianshou's buffers."""

# ruff: noqa: NPY002 (the host draws from NumPy's global generator)
import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("tianshou")

import tianshou.data as host
import torch
from tianshou.algorithm import Algorithm
from tianshou.algorithm.modelfree.reinforce import DiscountedReturnComputation
from tianshou.data import Batch

from fastrl.integrations import _version
from fastrl.integrations import tianshou as ours

SETTINGS = {"alpha": 0.6, "beta": 0.4}
HOSTS = Algorithm.compute_episodic_return, Algorithm.compute_nstep_return  # a recipe of docs puts ours there
assert all(f.__module__.startswith("tianshou") for f in HOSTS)


def fill(buffer, n, envs=None):
    for k in range(n):
        step = Batch(obs=np.full(1, k), obs_next=np.full(1, k + 1), act=0, rew=float(k), terminated=k % 5 == 4)
        step.update(truncated=False, info=Batch())
        if envs:
            buffer.add(Batch.stack([step] * envs))
        else:
            buffer.add(step)
    return buffer


@pytest.mark.parametrize("size", [1, 7, 16, 989])
def test_the_tree_is_the_hosts(size):
    rng = np.random.default_rng(size)
    trees = host.SegmentTree(size), ours.SegmentTree(size)
    assert isinstance(trees[1], host.SegmentTree)
    indices, values = rng.integers(0, size, 40), rng.random(40)
    for tree in trees:
        tree[np.arange(size)] = rng.spawn(1)[0].random(size) * 0 + 0.5
        tree[indices] = values  # of equal ones the last
        tree[0] = 0.25
    theirs, mine = trees
    assert len(mine) == size and mine[0] == 0.25
    np.testing.assert_array_equal(mine[np.arange(size)], theirs[np.arange(size)])
    np.testing.assert_array_equal(mine[indices.reshape(8, 5)], theirs[indices.reshape(8, 5)])
    for ends in [(), (0,), (0, size), (size // 3, size // 2 + 1), (0, -1)]:
        assert mine.reduce(*ends) == pytest.approx(theirs.reduce(*ends), rel=1e-12)
    u = rng.random(50) * theirs.reduce()
    np.testing.assert_array_equal(mine.get_prefix_sum_idx(u), theirs.get_prefix_sum_idx(u.copy()))
    assert mine.get_prefix_sum_idx(u[0]) == theirs.get_prefix_sum_idx(float(u[0]))


def test_bad_input_changes_nothing():
    tree = ours.SegmentTree(4)
    tree[np.arange(4)] = np.ones(4)
    with pytest.raises(IndexError, match="indices"):
        tree[np.array([0, 4])] = np.ones(2)
    with pytest.raises(ValueError, match="priorities"):
        tree[np.array([0, 1])] = np.array([2.0, np.nan])
    assert tree.reduce() == 4


@pytest.mark.parametrize("vector", [False, True])
def test_samples_are_the_hosts(vector):
    found = []
    for module in (host, ours):
        if vector:
            buffer = fill(module.PrioritizedVectorReplayBuffer(60, 3, **SETTINGS), 15, 3)
        else:
            buffer = fill(module.PrioritizedReplayBuffer(30, **SETTINGS), 40)
        np.random.seed(0)
        for _ in range(3):
            batch, indices = buffer.sample(16)
            buffer.update_weight(indices, batch.rew + 0.1)
        found.append((indices, batch.rew, batch.weight))
        assert isinstance(buffer, host.ReplayBuffer) and len(buffer) == (45 if vector else 30)
    for theirs, mine in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_weights_are_those_of_the_paper():
    buffer = fill(ours.PrioritizedReplayBuffer(4, weight_norm=False, **SETTINGS), 4)
    p = np.array([0.2, 2.0, 3.0, 8.0])
    buffer.update_weight(np.arange(4), p)
    np.testing.assert_allclose(buffer.get_weight(np.arange(4)), (p / p.min()) ** (-0.6 * 0.4), rtol=1e-5)


def test_a_pickle_goes_on_alike():
    buffer = fill(ours.PrioritizedReplayBuffer(20, **SETTINGS), 20)
    buffer.update_weight(np.arange(20), np.linspace(0.1, 3, 20))
    draws = []
    for b in (buffer, pickle.loads(pickle.dumps(buffer))):
        np.random.seed(1)
        draws.append(b.sample(32)[1])
    np.testing.assert_array_equal(*draws)


def test_another_version_is_said(monkeypatch):
    monkeypatch.setattr(_version, "version", lambda package: "3.0")
    with pytest.warns(UserWarning, match=r"tianshou is 3\.0, and 2\.0 is what was tested"):
        ours.PrioritizedReplayBuffer(4, **SETTINGS)


def played(envs, steps, seed=0):
    """A buffer of rings that are filled more than once, with terminations, time limits and episodes that go on."""
    rng = np.random.default_rng(seed)
    buffer = host.VectorReplayBuffer(13 * envs, envs)
    for k in range(steps):
        steps_of = Batch(obs=np.full((envs, 1), k), obs_next=np.full((envs, 1), k + 1), act=np.zeros(envs))
        terminated = rng.random(envs) < 0.15
        steps_of.update(rew=rng.normal(size=envs), terminated=terminated, info=Batch())
        steps_of.update(truncated=(rng.random(envs) < 0.15) & ~terminated)
        ids = np.flatnonzero(rng.random(envs) < 0.9)  # so that the rings are not equally full
        if len(ids):
            buffer.add(steps_of[ids], buffer_ids=ids)
    return buffer


@pytest.mark.parametrize("steps", [7, 40])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_episodic_returns_are_the_hosts(steps, gamma):
    buffer = played(3, steps)
    batch, indices = buffer.sample(0)
    rng = np.random.default_rng(1)
    v, after = (torch.from_numpy(rng.normal(size=(len(indices), 1)).astype(np.float32)) for _ in range(2))
    assert batch.truncated.any() and batch.terminated.any() and len(buffer.unfinished_index())
    for how in (
        {"v_s_": after, "v_s": v, "gae_lambda": 0.8},
        {"v_s_": after.numpy(), "gae_lambda": 0.8},
        {"v_s_": after, "v_s": v, "gae_lambda": 0.0},
        {"gae_lambda": 1.0},
    ):
        found = [
            compute(copy.deepcopy(batch), buffer, indices, gamma=gamma, **how)
            for compute in (HOSTS[0], ours.compute_episodic_return)
        ]
        for theirs, mine in zip(*found, strict=True):
            assert mine.dtype == theirs.dtype == np.float64 and mine.shape == (len(indices),)
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="gae_lambda must be 1 without v_s_, got 0.5"):
        ours.compute_episodic_return(batch, buffer, indices, gae_lambda=0.5)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("outputs", [(), (1,), (3,)])
def test_n_step_returns_are_the_hosts(n, outputs):
    buffer = played(3, 40)
    batch, indices = buffer.sample(64)
    q = torch.from_numpy(np.random.default_rng(2).normal(size=(64, *outputs)).astype(np.float32))
    asked, found = [], []
    for compute in (HOSTS[1], ours.compute_nstep_return):

        def target(of, last):
            assert of is buffer and not torch.is_grad_enabled()
            asked.append(last)
            return q.clone()

        got = compute(Batch(batch, weight=np.ones(64)), buffer, indices, target, 0.9, n)
        assert got.weight.dtype == torch.float32
        found.append(got.returns)
    np.testing.assert_array_equal(*asked)
    theirs, mine = found
    assert mine.dtype == theirs.dtype and mine.shape == theirs.reshape(64, -1).shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="one length, got 64 and 3"):
        ours.compute_nstep_return(batch, buffer, indices[:3], target)
    kept = q.clone()
    ours.compute_nstep_return(Batch(batch), buffer, indices, lambda *_: q, 0.9, n)
    assert torch.equal(q, kept)


def test_algorithms_take_our_returns(monkeypatch):
    """REINFORCE's returns, standardised over three rounds, which it asks of the class."""
    buffer, called = played(3, 30), []
    batch, indices = buffer.sample(0)

    def compute(*args, **kwargs):
        called.append(kwargs)
        return ours.compute_episodic_return(*args, **kwargs)

    found = []
    for function in (HOSTS[0], compute):
        monkeypatch.setattr(Algorithm, "compute_episodic_return", staticmethod(function))
        returns = DiscountedReturnComputation(gamma=0.9, return_standardization=True)
        found.append([returns.add_discounted_returns(Batch(batch), buffer, indices).returns for _ in range(3)])
    assert len(called) == 3
    for theirs, mine in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
