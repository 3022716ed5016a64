"""Cases of kernels that the CUDA tests run too small: conjugate gradient over several blocks."""

import numpy as np
import pytest

import fastrl

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 3, 1024, 1025, 5000])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_gradient(n, dtype, preconditioned):
    rng = np.random.default_rng(n)
    diagonal = torch.from_numpy(rng.uniform(0.5, 2, n)).to(dtype)
    b = torch.from_numpy(rng.normal(size=n)).to(dtype)
    inverse = 1 / (diagonal + 0.1) if preconditioned else None
    x, *_ = fastrl.conjugate_gradient(
        lambda v: diagonal * v, b, damping=0.1, max_iter=50, rtol=1e-7, preconditioner=inverse
    )
    np.testing.assert_allclose(x.numpy(), (b / (diagonal + 0.1)).numpy(), rtol=1e-4, atol=1e-5)
