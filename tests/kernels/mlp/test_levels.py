"""Every instruction set computes the same within rounding, on a machine that has it."""

import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import sys
import numpy as np
from fastrl import MLP, FlatAdam, _C
rng = np.random.default_rng(0)
found = []
for sizes in ((4, 64, 64, 2), (3, 1), (15, 17, 16, 5), (1, 255, 130, 1)):
    for activation in ("relu", "tanh", "silu"):
        for layer_norm in (False, True):
            net = MLP(sizes, activation, n=2, layer_norm=layer_norm, dueling=len(sizes) > 2, seed=0)
            for batch in (1, 2, 7, 200):
                x = rng.standard_normal((batch, sizes[0]), np.float32)
                out = net.forward_cached(x)
                d_out = rng.standard_normal(out.shape, np.float32)
                found += [net.forward(x), out, net.backward(d_out, inputs=True), net.grad.copy()]
            net.grad[:] = rng.standard_normal(net.grad.shape)
            FlatAdam(net.vector, net.grad).step(max_grad_norm=0.1)
            found.append(net.vector)
np.savez(sys.argv[1], level=_C.simd_level(), **{str(i): x for i, x in enumerate(found)})
"""


def test_levels(tmp_path):
    pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    runs = []
    for level in (4, 3, 1):
        path, environment = tmp_path / f"{level}.npz", {**os.environ, "FASTRL_SIMD_LEVEL": str(level)}
        subprocess.run([sys.executable, "-c", SCRIPT, str(path)], env=environment, check=True)
        runs.append(np.load(path))
    for run in runs[1:]:
        for name in runs[0].files[1:]:
            wanted = runs[0][name]
            scale = max(1.0, np.abs(wanted).max())
            np.testing.assert_allclose(run[name], wanted, rtol=1e-5, atol=1e-5 * scale)
