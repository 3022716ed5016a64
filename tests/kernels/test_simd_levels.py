"""The search exists once per instruction set: each must give the same bits on a machine that has it."""

import os
import subprocess
import sys

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
