"""A few short calls of every CUDA op against the reference, and captured in graphs.

They are what `.ci/gpu.sh` runs under compute-sanitizer.  A test that needs no GPU holds the ops here to those of the
extension's stub.
"""

import ast
import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from cuda_graphs import captured

from fastrl import SumTree, conjugate_gradient
from fastrl.kernels import SumTreeReference, conjugate_gradient_reference
from fastrl.kernels._core.backends import choose
from fastrl.kernels.tanh_normal import reference as tanh_normal_reference

torch = pytest.importorskip("torch", reason="CUDA tensors need torch, which is not installed")

SEED, COUNTER = 2**40 + 7, 2**33 - 2
ROWS = [33, 600]  # of one block, of several
SHAPES = [(130, 2), (17, 300)]  # scanned along time by a block, and by a thread each


def put(x):
    """An array on the device, a generator's state with the word that is there only; anything else as it is."""
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype == np.uint64:
        return torch.tensor([*x.tolist(), 0], device="cuda")
    return torch.from_numpy(x.copy()).cuda()


def same(found, wanted, tolerance):
    if not isinstance(wanted, tuple):
        found, wanted = (found,), (wanted,)
    for got, want in zip(found, wanted, strict=True):
        got = got.cpu().numpy()
        assert got.dtype == want.dtype and got.shape == want.shape
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(
            got / scale, want / scale, **tolerance(want.dtype if want.dtype.kind == "f" else "float64")
        )


# ---- functions: the arguments of calls, which are those of the reference ---------------------------------------------


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def state():
    return np.array([SEED, COUNTER], np.uint64)


def categorical(rng, B):
    logits, uniform = floats(rng, B, 5), rng.random(B)
    action, grads = rng.integers(0, 5, B), (floats(rng, B), floats(rng, B))
    yield "categorical_sample", (logits, state(), None)
    yield "categorical_sample", (logits, None, uniform)
    yield "categorical_log_prob_entropy", (logits, action)
    yield "categorical_log_prob_entropy_backward", (logits, action, *grads)


def normal(rng, B):
    mean, action, noise, grad = (floats(rng, B, 3) for _ in range(4))
    grads = floats(rng, B), floats(rng, B)
    for log_std in (floats(rng, 3), floats(rng, B, 3)):
        yield "normal_sample", (mean, log_std, None, state(), True)
        yield "normal_sample_backward", (log_std, noise, grad, grads[0])
        yield "normal_log_prob_entropy", (mean, log_std, action)
        yield "normal_log_prob_entropy_backward", (mean, log_std, action, *grads, True, True, True)


def tanh_normal(rng, B):
    mean, noise, grad = (floats(rng, B, 3) for _ in range(3))
    action, grad_log_prob = np.tanh(floats(rng, B, 3)), floats(rng, B)
    options = (-1.0, 1.0, -math.inf, math.inf, 0.0)
    for log_std in (floats(rng, 3), floats(rng, B, 3)):
        yield "tanh_normal_sample", (mean, log_std, None, state(), *options, True)
        _, _, saved = tanh_normal_reference.tanh_normal_sample(mean, log_std, noise, None, *options, True)
        yield "tanh_normal_sample_backward", (saved, log_std, grad, grad_log_prob, *options, True, True)
        yield "tanh_normal_log_prob", (mean, log_std, action, *options)
        yield "tanh_normal_log_prob_backward", (mean, log_std, action, grad_log_prob, *options, True, True, True)
    yield "tanh_normal_mode", (mean, -1.0, 1.0)
    yield "tanh_normal_mode_backward", (mean, grad, -1.0, 1.0)


def n_step_gather(rng, B):
    rewards, values = floats(rng, 50, 4), floats(rng, 50, 4)
    ends = [rng.random((50, 4)) < 0.1 for _ in range(3)]
    cursor = np.array([0, 7, 49, 7])
    yield "n_step_gather", (rewards, *ends[:2], rng.integers(0, 200, B), cursor, 50, 0.97, 3, values, ends[2], None)


def scans(rng, shape):
    rewards, values, following, log_rhos = (floats(rng, *shape) for _ in range(4))
    ends, traces = [rng.random(shape) < 0.1 for _ in range(2)], rng.random(shape).astype(np.float32)
    mask = rng.random(shape) < 0.9
    yield "reverse_affine_scan", (traces, rewards, None, None)
    yield "gae", (rewards, values, following, *ends, 0.97, 0.9, mask, None)
    yield "discounted_returns", (rewards, *ends, 0.97, following, None, None)
    yield "lambda_returns", (rewards, following, *ends, 0.97, 0.8, None, None)
    yield "vtrace", (rewards, values, following, *ends, log_rhos / 4, 0.97, 0.9, 1.0, 0.9, math.inf, None, None)
    yield "off_policy_returns", (rewards, values, following, traces, *ends, 0.97, None, None)
    for n in (3, 70):  # two ways to sum
        yield "n_step_returns", (rewards, following, *ends, 0.97, n, None, None, None)


CALLS = {categorical: ROWS, normal: ROWS, tanh_normal: ROWS, n_step_gather: ROWS, scans: SHAPES}  # and their sizes


@pytest.mark.parametrize(("calls", "size"), [(calls, size) for calls, sizes in CALLS.items() for size in sizes])
def test_functions(compiled, tolerance, calls, size):
    reference = importlib.import_module(f"fastrl.kernels.{calls.__name__}.reference")
    for op, arguments in calls(np.random.default_rng(0), size):
        moved = [put(x) for x in arguments]
        found, wanted = getattr(compiled, op)(*moved), getattr(reference, op)(*arguments)
        same(found, wanted, tolerance)
        for x, y in zip(moved, arguments, strict=True):
            if isinstance(y, np.ndarray) and y.dtype == np.uint64:
                assert x.tolist() == [*y.tolist(), 0] != [SEED, COUNTER, 0]


@pytest.mark.parametrize("calls", CALLS)
def test_functions_captured(compiled, tolerance, calls):
    """All calls in one graph, replayed with other arguments where the first ones were."""
    reference = importlib.import_module(f"fastrl.kernels.{calls.__name__}.reference")
    size = CALLS[calls][0]
    held = [(op, [put(x) for x in arguments]) for op, arguments in calls(np.random.default_rng(0), size)]
    graph, found = captured(lambda: [getattr(compiled, op)(*arguments) for op, arguments in held])
    for seed in (1, 2):
        new = list(calls(np.random.default_rng(seed), size))
        for (_, old), (_, arguments) in zip(held, new, strict=True):
            for x, y in zip(old, arguments, strict=True):
                if isinstance(x, torch.Tensor):
                    x.copy_(put(y))
        graph.replay()
        for (op, arguments), results in zip(new, found, strict=True):
            same(results, getattr(reference, op)(*arguments), tolerance)


# ---- conjugate gradient: its functions are steps of a loop -----------------------------------------------------------

SOLVERS = {"cg_start", "cg_step", "cg_direction"}


def solved(solve, diagonal, b, inverse, function):
    """x after some steps, preconditioned by nothing, by a diagonal, or by a function."""
    preconditioner = (lambda r: r if inverse is None else inverse * r) if function else inverse
    return solve(lambda v: diagonal * v, b, max_iter=4, rtol=0.0, x0=b, preconditioner=preconditioner)[0]


@pytest.mark.parametrize("n", [33, 1100])  # of one block, of several
def test_conjugate_gradient(compiled, monkeypatch, n):
    called = set()

    class Recorded:
        def __getattr__(self, name):
            called.add(name)
            return getattr(compiled, name)

    monkeypatch.setattr(choose("fastrl.kernels.conjugate_gradient"), "cuda", Recorded())
    rng = np.random.default_rng(n)
    diagonal, b = rng.uniform(1, 2, n).astype(np.float32), floats(rng, n)
    for inverse in (None, 1 / diagonal):
        for function in (False, True):
            found, wanted = (
                solved(solve, *map(to, (diagonal, b, inverse)), function)
                for solve, to in ((conjugate_gradient, put), (conjugate_gradient_reference, lambda x: x))
            )
            np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert called >= SOLVERS


# ---- the tree --------------------------------------------------------------------------------------------------------

TREE = {  # method of the extension's tree: a call of the public one
    "update": lambda tree, i, x: tree.update(i, x),
    "update_from_td_errors": lambda tree, i, x: tree.update_from_td_errors(i, x - 1, 0.6, 1e-3),
    "get": lambda tree, i, x: tree[i],
    "find": lambda tree, i, x: tree.find(8 * x),
    "sample": lambda tree, i, x: (
        *tree.sample(99), *tree.sample(99, stratified=False), *tree.sample(9, replacement=False),
    ),
    "sample_weighted": lambda tree, i, x: (
        *tree.sample_weighted(99, 0.4, "batch"), *tree.sample_weighted(99, 0.4, "tree"),
    ),
}  # fmt: skip


def trees(capacity):
    """The same tree on the device and of the reference, and indices with duplicates and values for both."""
    rng = np.random.default_rng(capacity)
    every, priorities = np.arange(capacity), rng.uniform(1, 2, capacity).astype(np.float32)
    given = rng.integers(0, capacity, 300), rng.uniform(1, 2, 300).astype(np.float32)
    ours = SumTree(capacity, dtype=torch.float32, device="cuda", seed=5)
    theirs = SumTreeReference(capacity, dtype=np.float32, seed=5)
    ours.update(put(every), put(priorities))
    theirs.update(every, priorities)
    return ours, theirs, [put(x) for x in given], given


def same_trees(ours, theirs, found, wanted):
    if wanted is not None:
        for got, want in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, wanted)), strict=True):
            np.testing.assert_allclose(got.cpu().numpy(), want, rtol=1e-5)
    every = np.arange(ours.capacity)
    np.testing.assert_allclose(ours[put(every)].cpu().numpy(), theirs[every], rtol=1e-5)
    np.testing.assert_allclose(ours.total, theirs.total, rtol=1e-5)
    assert ours.generator.state_dict() == theirs.generator.state_dict()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("capacity", [17, 300, 5000])  # levels of 16 children
@pytest.mark.parametrize("method", TREE)
def test_tree(method, capacity):
    ours, theirs, moved, given = trees(capacity)
    same_trees(ours, theirs, TREE[method](ours, *moved), TREE[method](theirs, *given))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("method", TREE)
def test_tree_captured(method):
    ours, theirs, (indices, values), given = trees(300)
    graph, found = captured(lambda: TREE[method](ours, indices, values))
    TREE[method](theirs, *given)  # the call before the capture
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        new = rng.integers(0, 300, 300), rng.uniform(1, 2, 300).astype(np.float32)
        indices.copy_(put(new[0]))
        values.copy_(put(new[1]))
        graph.replay()
        same_trees(ours, theirs, found, TREE[method](theirs, *new))


# ---- none is missing -------------------------------------------------------------------------------------------------


def test_every_op_of_the_extension_is_here():
    stub = Path(importlib.import_module("fastrl").__file__).parent / "_C_cuda.pyi"
    body = ast.parse(stub.read_text(encoding="utf-8")).body
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)} - {"devices"}
    (tree,) = (node for node in body if isinstance(node, ast.ClassDef))
    methods = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} - {"__init__"}
    rng = np.random.default_rng(0)
    here = {op for calls, sizes in CALLS.items() for op, _ in calls(rng, sizes[0])}
    assert here | SOLVERS == functions and set(TREE) == methods
