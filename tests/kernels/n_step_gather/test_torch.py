"""n_step_gather of tensors, by torch's operations, and under torch.compile."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.kernels import n_step_gather as public_n_step_gather
from fastrl.kernels import n_step_gather_reference

from .helpers import BAD, C, N, Ring, arguments, histories, with_keywords


def as_torch(torch, call):
    return {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in call.items()}


def test_torch_tensors(gather, torch):
    ring = Ring(histories([70, 60, 9], 8), 33, dtype="float64")
    indices = np.array([ring.index(*item) for item in ring.all_items()])
    wanted = ring.call(gather, indices, 0.9, 3, values=True, cuts=True)
    call = {
        "rewards": ring.rewards, "terminated": ring.terminated, "truncated": ring.truncated, "indices": indices,
        "cursor": ring.cursor, "size": ring.size, "next_values": ring.values, "cut": ring.cut, "gamma": 0.9, "n": 3,
    }  # fmt: skip
    tensors = as_torch(torch, call)
    tensors["next_values"].requires_grad_()
    out = (
        *(torch.full((len(indices),), 77.0, dtype=torch.float64) for _ in range(2)),
        torch.zeros(len(indices)).long(),
    )
    for found in (gather(**tensors), gather(**tensors, out=out)):
        for a, b in zip(found, wanted, strict=True):
            assert isinstance(a, torch.Tensor) and not a.requires_grad
            np.testing.assert_array_equal(a.numpy(), b)
    assert found is out


def test_numpy_and_torch_are_not_mixed(gather, torch):
    for name in ("terminated", "truncated", "indices", "size", "next_values", "cut"):
        call = arguments() | {"out": None}
        call[name] = torch.from_numpy(call[name])
        with pytest.raises(TypeError) as caught:
            gather(**call)
        wanted = f"n_step_gather: {name} must be a numpy.ndarray like rewards, got a torch.Tensor"
        assert str(caught.value) == wanted
    call = as_torch(torch, arguments() | {"out": None}) | {"cut": arguments()["cut"]}
    with pytest.raises(TypeError, match=r"n_step_gather: cut must be a torch.Tensor like rewards, got a numpy.ndarray"):
        gather(**call)


def test_meta_tensors(gather, torch):
    call = as_torch(torch, arguments() | {"out": None})
    call["rewards"] = torch.ones(C, N, device="meta")
    with pytest.raises(ValueError, match="n_step_gather: rewards has no data|n_step_gather: rewards must be on cpu"):
        gather(**call)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 9), envs=st.integers(1, 3), values=st.booleans())
def test_the_torch_version(torch, tolerance, device, seed, n, envs, values):
    """What serves CUDA tensors, also on the CPU, where it is never chosen."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

    def gather(*arguments, **keywords):
        def move(x):
            return torch.from_numpy(np.array(x)).to(device) if isinstance(x, np.ndarray) else x

        call = with_keywords(importlib.import_module("fastrl.kernels.n_step_gather._torch").fallback.n_step_gather)
        found = call(*map(move, arguments), **{k: move(v) for k, v in keywords.items()})
        assert all(x.device.type == device for x in found)
        return tuple(x.cpu().numpy() for x in found)

    ring = Ring(histories([20] * envs, seed, cut=0.1), 7, dtype="float64")
    ring.check(gather, tolerance, 0.9, n, values, cuts=True)


@pytest.mark.parametrize(("name", "value", "error", "text"), BAD, ids=lambda x: x if isinstance(x, str) else None)
def test_errors_of_the_torch_version(torch, name, value, error, text):
    if isinstance(value, np.ndarray) and value.dtype.name in ("float16", "int8"):
        pytest.skip("the same text, but for the tensor's kind")
    call = as_torch(torch, arguments()) | {"out": None}
    call[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) and name != "out" else value
    if name == "out" or (error is TypeError and name not in ("gamma", "n")):
        pytest.skip("worded for tensors")
    with pytest.raises(error) as caught:
        with_keywords(importlib.import_module("fastrl.kernels.n_step_gather._torch").fallback.n_step_gather)(**call)
    assert str(caught.value).startswith(f"n_step_gather: {name}{text if text.startswith('[') else ' ' + text}")


def test_the_public_function():
    """Whatever backend it chose."""
    assert fastrl.kernels.n_step_gather is public_n_step_gather
    ring = Ring(histories([70, 60], 9), 33)
    indices = np.array([ring.index(*item) for item in ring.all_items()])
    wanted = ring.call(n_step_gather_reference, indices, 0.9, 3, values=True)
    found = ring.call(public_n_step_gather, indices, 0.9, 3, values=True)
    np.testing.assert_array_equal(found[2], wanted[2])
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6, atol=1e-6)
    with pytest.raises(TypeError):
        public_n_step_gather(ring.rewards, ring.terminated, ring.truncated, indices, 0, 33, 0.9, 3)


def test_out_tells_autograd(torch):
    """A backward pass that kept what `out` held raises, as with torch's own operations in place."""
    ring = torch.ones(8), torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    w, out = torch.ones(3, requires_grad=True), (torch.ones(3), torch.ones(3), torch.zeros(3, dtype=torch.int64))
    loss = (w * out[0]).sum()
    fastrl.n_step_gather(*ring, torch.arange(3), 0, 8, gamma=0.5, n=2, out=out)
    assert [x._version for x in out] == [1, 1, 1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def compile_calls(torch):
    """Calls of the public function and of the registered op: with numbers, and with arrays and all that is optional."""
    ring = Ring(histories((20, 9, 13), 5, cut=0.1), 16)
    rewards, values, terminated, truncated, cut, cursor, size = map(
        torch.from_numpy, (ring.rewards, ring.values, ring.terminated, ring.truncated, ring.cut, ring.cursor, ring.size)
    )
    indices = torch.tensor([ring.index(*item) for item in ring.all_items()])
    slots = torch.arange(16)[:7]
    full = torch.zeros(16), torch.zeros(16, dtype=torch.bool), torch.zeros(16, dtype=torch.bool), slots
    ends = rewards, terminated, truncated, indices
    public = [
        lambda r: fastrl.n_step_gather(r[:, 0] * 0 + 1, *full[1:], 3, 16, gamma=0.9, n=3),
        lambda r: fastrl.n_step_gather(1 * r, *ends[1:], cursor, size, gamma=0.5, n=4, next_values=1 * values, cut=cut),
    ]
    registered = [
        (*full, None, None, 3, 16, 0.9, 3, None, None),
        (*ends, cursor, size, 0, 0, 0.5, 4, values, cut),
    ]
    return rewards.nan_to_num(), public, registered


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch._dynamo.reset()
    rewards, public, _ = compile_calls(torch)
    compiled = torch.compile(lambda r: [f(r) for f in public], backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for found, call in zip(compiled(rewards), public, strict=True):
        for x, y in zip(found, call(rewards), strict=True):
            assert torch.equal(x, y) and x.dtype == y.dtype


@pytest.mark.filterwarnings("ignore")
def test_out_is_written_in_a_compiled_call():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch._dynamo.reset()
    ring = torch.ones(8), torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    indices = torch.arange(3)
    out = torch.full((3,), np.nan), torch.full((3,), np.nan), torch.full((3,), -1)

    def fn(*out):
        return fastrl.n_step_gather(*ring, indices, 0, 8, gamma=0.5, n=2, out=out)

    torch.compile(fn, backend="aot_eager", fullgraph=True)(*out)
    assert [x.tolist() for x in out] == [[1.5] * 3, [0.25] * 3, [1, 2, 3]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize(
    ("position", "bad", "text"),
    [(0, (2, 3), r"out\[0\] must have shape \(3,\), got"), (2, (3,), r"out\[2\] must have dtype int64, got float32")],
)
def test_out_is_checked_in_a_compiled_call(fullgraph, position, bad, text):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch._dynamo.reset()
    ring = torch.ones(8), torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    out = [torch.full((3,), -1.0), torch.full((3,), -1.0), torch.full((3,), -1)]
    out[position] = torch.full(bad, -1.0)

    def fn(*out):
        return fastrl.n_step_gather(*ring, torch.arange(3), 0, 8, gamma=0.5, n=2, out=out)

    with pytest.raises(Exception, match=f"n_step_gather: {text}"):
        torch.compile(fn, backend="eager", fullgraph=fullgraph)(*out)
    assert all((x == -1).all() for x in out)


@pytest.mark.filterwarnings("ignore")
def test_arrays_that_want_a_gradient_are_constants_in_a_compiled_call():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch._dynamo.reset()
    rewards, none, w = torch.arange(8.0), torch.zeros(8, dtype=torch.bool), torch.ones(8, requires_grad=True)

    def loss(w):
        values = 2 * w
        returns = fastrl.n_step_gather(
            w * rewards, none, none, torch.arange(8), 0, 8, gamma=0.5, n=2, next_values=values
        )[0]
        return ((returns - values) ** 2).mean()

    (wanted,) = torch.autograd.grad(loss(w), w)
    (found,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(w), w)
    torch.testing.assert_close(found, wanted)


def test_opcheck():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import fastrl.kernels.n_step_gather._torch  # noqa: F401 (registers the op)

    for args in compile_calls(torch)[2]:
        results = torch.library.opcheck(torch.ops.fastrl.n_step_gather, args)
        assert set(results.values()) == {"SUCCESS"}, results
