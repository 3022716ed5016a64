"""pickle, copy, deepcopy, spawn: what saving and loading the state gives, and nothing shared."""

import copy
import io
import multiprocessing
import pickle

import numpy as np
import pytest

import fastrl
from fastrl.kernels import Generator, SumTreeReference


def by_pickle(protocol):
    return lambda x: pickle.loads(pickle.dumps(x, protocol))


def by_cloudpickle(x):
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    return pickle.loads(cloudpickle.dumps(x))


def by_joblib(x):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    file = io.BytesIO()
    joblib.dump(x, file)
    file.seek(0)
    return joblib.load(file)


def by_torch_save(x):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    **{f"pickle {protocol}": by_pickle(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "cloudpickle": by_cloudpickle,
    "joblib": by_joblib,
    "torch.save": by_torch_save,
}


@pytest.fixture(params=[pytest.param(way, id=name) for name, way in WAYS.items()])
def copied(request):
    return request.param


@pytest.fixture(params=["public", "reference", "numba"])
def tree_class(request, monkeypatch):
    if request.param == "reference":
        return SumTreeReference
    if request.param == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
        from fastrl.kernels.sum_tree._numba import NumbaCore

        monkeypatch.setattr(fastrl.SumTree, "_core_class", NumbaCore)
    return fastrl.SumTree


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tree(tree_class, oracle, copied, dtype):
    rng = np.random.default_rng(0)
    tree = tree_class(500, dtype=dtype, seed=4)
    tree.update(rng.integers(0, 500, 300), 10.0 ** rng.uniform(-9, 9, 300))
    tree.sample(33)
    other = copied(tree)
    assert type(other) is tree_class and oracle.snapshot(other) == oracle.snapshot(tree)
    for a, b in zip(other.sample(50), tree.sample(50), strict=True):
        assert type(a) is type(b) is np.ndarray
        np.testing.assert_array_equal(a, b)
    before = oracle.snapshot(tree)
    other.update(np.arange(500), 1.0)
    other.sample(7)
    assert oracle.snapshot(tree) == before, "the copy shares something"


def test_tree_of_tensors(copied):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tree = fastrl.SumTree(9, dtype=torch.float64, seed=4)
    tree.update(torch.arange(9), torch.ones(9))
    for a, b in zip(copied(tree).sample(5), tree.sample(5), strict=True):
        assert type(a) is torch.Tensor and torch.equal(a, b)


@pytest.mark.parametrize("way", ["pickle 5", "deepcopy"])
def test_shared_generator_stays_shared_within_one_copy(way):
    generator = Generator(3)
    trees = [fastrl.SumTree(4, generator=generator) for _ in range(2)]
    a, b = WAYS[way](trees)
    assert a.generator is b.generator is not generator
    a.update(np.arange(4), 1.0)
    a.sample(10)
    assert b.generator.counter == 10 and generator.counter == 0


def test_copy_of_a_tree_leaves_the_default_generator_alone(copied):
    tree = fastrl.SumTree(4)
    tree.update(np.arange(4), 1.0)
    other = copied(tree)
    before = tree.generator.state_dict()
    assert other.generator.state_dict() == before
    other.sample(10)
    assert tree.generator.state_dict() == before


def test_generator(copied):
    for generator in (Generator(2**64 - 1), Generator()):
        generator.load_state_dict({"seed": generator.seed, "counter": 2**63})
        other = copied(generator)
        assert other.state_dict() == generator.state_dict() and other.device == "cpu"
        other.manual_seed(1)
        assert generator.counter == 2**63


def test_spawned_worker():
    tree = fastrl.SumTree(100, seed=1)
    tree.update(np.arange(100), np.arange(100.0))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        drawn = pool.apply(fastrl.SumTree.sample, (tree, 20))  # a function that a child can import
    for found, wanted in zip(drawn, tree.sample(20), strict=True):
        assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("method", ["auto", "func", "double_backward"])
@pytest.mark.parametrize("some", [False, True], ids=["all parameters", "some"])
def test_fisher_vector_product(copied, method, some):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    policy = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    chosen = [policy[2].bias, policy[0].weight] if some else None
    fisher = fastrl.FisherVectorProduct(policy, torch.randn(7, 3), 0.3, method=method, parameters=chosen)
    fisher.refresh(torch.randn(9, 3))
    other = copied(fisher)
    v = torch.randn(fisher.shape[0])
    assert other.method == fisher.method and other.damping == 0.3
    assert torch.equal(other(v), fisher(v))
    kept = fisher(v)
    if copied is not copy.copy:
        with torch.no_grad():
            policy[0].weight.add_(1)
        assert torch.equal(other(v), kept)
        other.refresh()
        assert torch.equal(other(v), kept), "the copy's policy is its own"
    other.refresh(torch.zeros(2, 3))
    assert torch.equal(fisher(v), kept)
