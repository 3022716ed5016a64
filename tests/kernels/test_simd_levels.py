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


def compute(suffix=""):
    """What every other op makes of the same numbers; with ``_reference``, what its reference does."""
    import fastrl
    from fastrl import kernels

    def op(name):
        return getattr(kernels, name + suffix)

    results = {}
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(7)

        def floats(*shape, rng=rng, dtype=dtype):
            return rng.normal(size=shape).astype(dtype)

        def add(name, values, dtype=dtype):
            for i, value in enumerate(values if isinstance(values, tuple) else (values,)):
                results[f"{name}[{i}] {np.dtype(dtype)}"] = np.asarray(value)

        logits, mean, log_std, action = 3 * floats(61, 7), floats(61, 5), floats(5) - 1, floats(61, 5)
        inside = np.tanh(action) * dtype(0.9)
        add("categorical_sample", op("categorical_sample")(logits, generator=fastrl.Generator(3)))
        chosen = rng.integers(0, 7, 61)
        add("categorical_log_prob_entropy", op("categorical_log_prob_entropy")(logits, chosen))
        add("normal_sample", op("normal_sample")(mean, log_std, generator=fastrl.Generator(3)))
        add("normal_log_prob_entropy", op("normal_log_prob_entropy")(mean, log_std, action))
        for correction in ("stable", "epsilon"):
            sample = op("tanh_normal_sample")(mean, log_std, generator=fastrl.Generator(3), correction=correction)
            add(f"tanh_normal_sample {correction}", sample)
            add(f"tanh_normal_log_prob {correction}", op("tanh_normal_log_prob")(mean, log_std, inside))
        add("tanh_normal_mode", op("tanh_normal_mode")(mean))
        a = floats(67, 67) / 8
        matrix = a @ a.T + np.eye(67, dtype=dtype)
        add("conjugate_gradient", op("conjugate_gradient")(matrix.dot, floats(67), max_iter=20, rtol=0.0)[0])
        lists = [[floats(1003)] for _ in range(3)]
        lists.append([np.abs(floats(1003))])
        step = [np.array(4.0, np.float32)]
        op("adam_step")(*lists, step, lr=1e-2, weight_decay=0.1)
        add("adam_step", tuple(x[0] for x in lists))
        if suffix:
            continue
        terminated, truncated = rng.random((2, 67, 13)) < 0.05
        r, v, nv, rho = (floats(67, 13) for _ in range(4))
        for columns in (slice(None), slice(0, 8), 0):  # a row of vectors and a rest, whole vectors, along time
            args = (r[:, columns], v[:, columns], nv[:, columns], terminated[:, columns], truncated[:, columns])
            where = str(columns)
            add(f"gae {where}", kernels.gae(*args, gamma=0.99, lam=0.95))
            add(f"vtrace {where}", kernels.vtrace(*args, rho[:, columns], gamma=0.99))
            add(f"n_step_returns {where}", kernels.n_step_returns(args[0], *args[2:], gamma=0.99, n=3))
            add(f"reverse_affine_scan {where}", kernels.reverse_affine_scan(args[0], args[1]))
    return results


@pytest.fixture(scope="module")
def by_level(tmp_path_factory):
    pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    code = "import runpy, sys, numpy as np; np.savez(sys.argv[2], **runpy.run_path(sys.argv[1])['compute']())"
    found = {}
    for level in ("1", "3", "4"):
        path = tmp_path_factory.mktemp("levels") / f"{level}.npz"
        environment = {**os.environ, "FASTRL_SIMD_LEVEL": level, "FASTRL_BACKEND": "cpp"}
        subprocess.run([sys.executable, "-c", code, __file__, path], env=environment, check=True)
        with np.load(path) as file:
            found[level] = dict(file)
    return found


@pytest.mark.parametrize("level", ["1", "3", "4"])
def test_every_level_is_right(by_level, level, tolerance):
    for name, right in compute("_reference").items():
        np.testing.assert_allclose(by_level[level][name], right, **tolerance(name.split()[-1]), err_msg=name)


def test_scans_and_adam_at_every_level(by_level, tolerance):
    """The same bits, but for one environment: along time its steps are added up in vectors."""
    for name, right in by_level["1"].items():
        if name.startswith(("gae", "vtrace", "n_step", "reverse", "adam")):
            tol = tolerance(name.split()[-1]) if " 0[" in name else {"rtol": 0, "atol": 0}
            for level in ("3", "4"):
                np.testing.assert_allclose(by_level[level][name], right, **tol, err_msg=f"{name}, level {level}")
