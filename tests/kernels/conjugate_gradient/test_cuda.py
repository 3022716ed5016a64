"""The CUDA kernels of conjugate gradient over several blocks, and from other streams; skipped without a GPU."""

import numpy as np
import pytest

from fastrl import _backend, conjugate_gradient

torch = pytest.importorskip("torch", reason="CUDA tensors need torch, which is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if _backend.cuda_backend()[0] != "cuda":
    pytest.skip(_backend.cuda_backend()[1], allow_module_level=True)

SIZES = [1, 3, 1024, 1025, 5000, 600_000]  # a block takes 1024 at least, and there are 512 blocks at most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("preconditioner", [None, "array", "function"])
def test_several_blocks(n, dtype, preconditioner):
    rng = np.random.default_rng(n)
    diagonal = torch.from_numpy(rng.uniform(0.5, 2, n)).to("cuda", dtype)
    b = torch.from_numpy(rng.normal(size=n)).to("cuda", dtype)
    inverse = 1 / (diagonal + 0.1)
    preconditioners = {None: None, "array": inverse, "function": lambda r: inverse * r}
    x, info = conjugate_gradient(
        lambda v: diagonal * v, b, damping=0.1, max_iter=50, rtol=1e-6, preconditioner=preconditioners[preconditioner]
    )
    wanted = b.double() / (diagonal.double() + 0.1)
    np.testing.assert_allclose(x.cpu().numpy(), wanted.cpu().numpy(), rtol=1e-4, atol=1e-5)
    assert info.status == "converged" and info.residual_norm <= 1e-6 * float(b.double().norm()) * (1 + 1e-9)


def test_another_stream_may_look_at_the_info():
    b = torch.ones(5000, device="cuda")
    conjugate_gradient(lambda v: 2 * v, b)  # loads what is loaded late
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        _, info = conjugate_gradient(lambda v: 2 * v, b)
    assert info.status == "converged"
