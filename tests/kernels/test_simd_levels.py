"""Every loop exists once per instruction set: each must be right on a machine that has it, and the search and the scans
must give the same bits."""

import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import hashlib
import numpy as np
from fastrl import SumTree, _C
digest = hashlib.sha256()
rng = np.random.default_rng(0)
for capacity in (1, 15, 16, 17, 257, 70_001):
    for dtype in (np.float32, np.float64):
        tree = SumTree(capacity, dtype=dtype, seed=1)
        indices = rng.integers(0, capacity, 3 * capacity)
        tree[indices] = np.exp(rng.normal(0, 15, len(indices))) * (rng.random(len(indices)) < 0.7)
        tree[0] = 1.0
        total = tree.total
        for result in (
            *tree.sample(999),
            *tree.sample(999, stratified=False),
            *tree.sample(min(len(tree), 20), replacement=False),
            tree.sample_weighted(999, 0.5)[0],
            tree.find(np.array([0.0, total, np.nextafter(total, 0), total / 3])),
            np.array([total, tree.min, tree.max]),
        ):
            digest.update(result.tobytes())
print(_C.simd_level(), digest.hexdigest(), sep="|")
"""


def run(level):
    environment = {**os.environ, "FASTRL_SIMD_LEVEL": str(level)}
    out = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT] if sys.version_info >= (3, 11) else [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return out.stdout.strip().split("|")


def test_every_simd_level_gives_the_same_bits():
    pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    names, digests = zip(*(run(level) for level in (1, 3, 4)), strict=True)
    if len(set(names)) == 1:
        pytest.skip(f"this build or processor has one level only: {names[0]}")
    assert len(set(digests)) == 1, dict(zip(names, digests, strict=True))


class Results(dict):
    """What calls on the same random numbers gave."""

    def __init__(self, dtype):
        self.rng, self.dtype = np.random.default_rng(7), np.dtype(dtype)

    def floats(self, *shape):
        return self.rng.normal(size=shape).astype(self.dtype)

    def add(self, name, values):
        for i, value in enumerate(values if isinstance(values, tuple) else (values,)):
            if value is not None:
                self[f"{name}[{i}] {self.dtype}"] = np.asarray(value)


def of_both_dtypes(results):
    import fastrl
    from fastrl import kernels

    rng, dtype, floats, add = results.rng, results.dtype.type, results.floats, results.add
    logits, mean, log_std, action = 3 * floats(61, 7), floats(61, 5), floats(5) - 1, floats(61, 5)
    inside = np.tanh(action) * dtype(0.9)
    add("categorical_sample", kernels.categorical_sample(logits, generator=fastrl.Generator(3)))
    chosen = rng.integers(0, 7, 61)
    add("categorical_log_prob_entropy", kernels.categorical_log_prob_entropy(logits, chosen))
    add("normal_sample", kernels.normal_sample(mean, log_std, generator=fastrl.Generator(3)))
    add("normal_log_prob_entropy", kernels.normal_log_prob_entropy(mean, log_std, action))
    for correction in ("stable", "epsilon"):
        sample = kernels.tanh_normal_sample(mean, log_std, generator=fastrl.Generator(3), correction=correction)
        add(f"tanh_normal_sample {correction}", sample)
        add(f"tanh_normal_log_prob {correction}", kernels.tanh_normal_log_prob(mean, log_std, inside))
    add("tanh_normal_mode", kernels.tanh_normal_mode(mean))
    a = floats(67, 67) / 8
    matrix = a + a.T + 5 * np.eye(67, dtype=dtype)
    product = lambda v: (matrix * v).sum(1)  # noqa: E731 (no BLAS: under QEMU one is wrong now and then)
    add("conjugate_gradient", kernels.conjugate_gradient(product, floats(67), max_iter=20, rtol=0.0)[0])
    lists = [[floats(1003)] for _ in range(3)]
    lists.append([np.abs(floats(1003))])
    step = [np.array(4.0, np.float32)]
    kernels.adam_step(*lists, step, lr=1e-2, weight_decay=0.1)
    add("adam_step", tuple(x[0] for x in lists))
    terminated, truncated = rng.random((2, 67, 13)) < 0.05
    r, v, nv, rho = (floats(67, 13) for _ in range(4))
    for columns in (slice(None), slice(0, 8), 0):  # a row of vectors and a rest, whole vectors, along time
        args = (r[:, columns], v[:, columns], nv[:, columns], terminated[:, columns], truncated[:, columns])
        where = str(columns)
        add(f"gae {where}", kernels.gae(*args, gamma=0.99, lam=0.95))
        add(f"vtrace {where}", kernels.vtrace(*args, rho[:, columns], gamma=0.99))
        add(f"n_step_returns {where}", kernels.n_step_returns(args[0], *args[2:], gamma=0.99, n=3))
        add(f"reverse_affine_scan {where}", kernels.reverse_affine_scan(args[0], args[1]))
    items = rng.integers(0, 67 * 13, 301)
    add(
        "n_step_gather",
        kernels.n_step_gather(r, terminated, truncated, items, 5, 67, gamma=0.99, n=3, next_values=nv),
    )
    lower = floats(61, 15) / 2
    add("quadratic_advantage", kernels.quadratic_advantage(mean, lower, action))


def of_float32(results):
    import fastrl
    from fastrl.kernels.curvature.mlp import MLPFisherProduct

    rng, floats, add = results.rng, results.floats, results.add
    logits, chosen = 3 * floats(61, 7), rng.integers(0, 7, 61)
    mean, log_std, action = floats(61, 5), floats(5) - 1, floats(61, 5)
    inside = np.tanh(action) * np.float32(0.9)
    rewards, discounts, weights = floats(61), np.abs(floats(61)).clip(0, 0.9), np.abs(floats(61))
    atoms, after, actions = floats(61, 3, 51), floats(61, 3, 51), rng.integers(0, 3, 61)
    batch, support = (atoms, actions, rewards, discounts, after), {"v_min": -4.0, "v_max": 5.0}
    probs = np.exp(after[:, 0]) / np.exp(after[:, 0]).sum(1, keepdims=True)
    add("categorical_projection", fastrl.categorical_projection(probs, rewards, discounts, **support))
    add("two_hot", fastrl.two_hot(rewards, 51, **support))
    add("c51_loss", tuple(fastrl.c51_loss(*batch, weights=weights, **support)))
    add("c51_actor_loss", tuple(fastrl.c51_actor_loss(after[:, 0], **support)))
    add("quantile_huber_loss", tuple(fastrl.quantile_huber_loss(*batch, weights=weights)))
    q, next_q, critics = floats(61, 7), floats(61, 7), floats(2, 61)
    for loss in ("mse", "huber"):
        batch = q, chosen, rewards, discounts, next_q
        add(f"q_learning_loss {loss}", tuple(fastrl.q_learning_loss(*batch, weights=weights, loss=loss)))
        add(f"q_regression_loss {loss}", tuple(fastrl.q_regression_loss(critics, rewards, loss=loss)))
    add("min_q_targets", fastrl.min_q_targets(critics, rewards, discounts, next_log_prob=weights, temperature=0.2))
    add("min_q_loss", tuple(fastrl.min_q_loss(critics)))
    add("value_loss", tuple(fastrl.value_loss(rewards, weights, old_values=discounts, clip_range=0.2)))
    ppo = {"clip_range": 0.2, "entropy_coef": 0.01, "kl_coef": 0.5}
    old = -np.abs(floats(61))
    found = fastrl.ppo_categorical_loss(logits, chosen, old, rewards, old_logits=q, **ppo)
    add("ppo_categorical_loss", tuple(found))
    before = {"old_mean": mean + 0.1 * action, "old_log_std": log_std + 0.1}
    add("ppo_normal_loss", tuple(fastrl.ppo_normal_loss(mean, log_std, inside, old, rewards, **before, **ppo)))
    for activation in ("relu", "tanh", "silu"):
        net, obs = fastrl.MLP((5, 33, 17, 1), activation, seed=0), floats(61, 5)
        for scale in (None, floats(1)):
            vector = floats(len(net.vector) + (scale is not None))
            add(
                f"MLPFisherProduct {activation}, {'categorical' if scale is None else 'gaussian'}",
                MLPFisherProduct(net, scale, obs, 0.1)(vector),
            )
        add(f"cem_argmax {activation}", fastrl.cem_argmax(net, obs[:, :3], noise=floats(2, 65, 2))[1])


def compute():
    """What most ops but the tree and MLP make of the same numbers, and the level that did."""
    from fastrl import _backend

    results = [Results(np.float32), Results(np.float64), Results(np.float32)]
    of_both_dtypes(results[0]), of_both_dtypes(results[1]), of_float32(results[2])
    level = _backend._C.simd_level() if _backend.CPU_BACKEND == "cpp" else ""
    return {"level": np.asarray(level), **results[0], **results[1], **results[2]}


@pytest.fixture(scope="module")
def by_level(tmp_path_factory):
    pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    code = "import runpy, sys, numpy as np; np.savez(sys.argv[2], **runpy.run_path(sys.argv[1])['compute']())"
    found = {}
    for level in ("reference", "1", "3", "4"):
        path = tmp_path_factory.mktemp("levels") / f"{level}.npz"
        how = {"FASTRL_BACKEND": "cpp", "FASTRL_SIMD_LEVEL": level} if level.isdigit() else {"FASTRL_BACKEND": level}
        subprocess.run([sys.executable, "-c", code, __file__, path], env={**os.environ, **how}, check=True)
        with np.load(path) as file:
            found[level] = dict(file)
    return found


def need_level(by_level, level):
    name, lesser = by_level[level]["level"], [by_level[x]["level"] for x in by_level if x.isdigit() and x < level]
    if name in lesser:
        pytest.skip(f"this build or processor has no level {level}: {name} serves")


@pytest.mark.parametrize("level", ["1", "3", "4"])
def test_every_level_is_right(by_level, level, tolerance):
    need_level(by_level, level)
    right = by_level["reference"]
    assert set(by_level[level]) == set(right)
    for name in sorted(set(right) - {"level"}):
        np.testing.assert_allclose(by_level[level][name], right[name], **tolerance(name.split()[-1]), err_msg=name)


@pytest.mark.parametrize("level", ["3", "4"])
def test_scans_and_adam_at_every_level(by_level, level, tolerance):
    """The same bits, but for one environment: along time its steps are added up in vectors."""
    need_level(by_level, level)
    for name, right in by_level["1"].items():
        if name.startswith(("gae", "vtrace", "n_step", "reverse", "adam")):
            tol = tolerance(name.split()[-1]) if " 0[" in name else {"rtol": 0, "atol": 0}
            np.testing.assert_allclose(by_level[level][name], right, **tol, err_msg=name)
