"""What the policy heads (categorical, normal) share: arguments, the generator, and their references' arithmetic.

The references run on NumPy arrays, and on torch tensors for what is on a GPU: `xp` is the module of either.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastrl.kernels import _arrays
from fastrl.kernels.generator import Generator, _default, advance, default_generator, philox4x32_reference

_MASK32 = 0xFFFFFFFF
_FLOATS = ("float32", "float64")
_HALVES = ("float16", "bfloat16")  # taken as they are on a GPU


def requires_grad(*arrays: Any) -> bool:
    """Whether autograd records a call with these arguments."""
    for x in arrays:
        if getattr(x, "requires_grad", False):
            return bool(sys.modules["torch"].is_grad_enabled())
    return False


def wants_grad(*arrays: Any) -> bool:
    """`requires_grad` in eager mode, where derivatives that the kernels do not have are refused."""
    if requires_grad(*arrays):
        for x in arrays:
            if _arrays.is_tensor(x):
                _arrays.check_not_transformed(x, "fastrl: a kernel's argument")
                _refuse_tangent(x)
        return True
    forward_ad = sys.modules.get("torch.autograd.forward_ad")
    if forward_ad is not None and getattr(forward_ad, "_current_level", -1) >= 0:
        for x in arrays:
            _refuse_tangent(x)
    return False


def _refuse_tangent(x: Any) -> None:
    forward_ad = sys.modules.get("torch.autograd.forward_ad")
    if forward_ad is None or forward_ad._current_level < 0 or not _arrays.is_tensor(x):
        return
    if forward_ad.unpack_dual(x).tangent is not None:
        raise RuntimeError(
            "fastrl: the kernels have no forward-mode derivatives, and the tangent of a dual tensor would be lost: "
            "use reverse mode (torch.autograd.grad), or detach()"
        )


# ---- half precision on a CPU: float32 inside ----------------------------------------------------------------------


def is_half(first: Any) -> bool:
    """Whether it is a float16 or bfloat16 array on a CPU, where the kernels take neither."""
    if getattr(first, "itemsize", 4) != 2 or getattr(first, "is_cuda", False):
        return False
    return _arrays.dtype_name(first) in _HALVES


def to_float32(x: Any) -> Any:
    """An array of half precision in float32, with its gradient; anything else as it is."""
    if _arrays.dtype_name(x) not in _HALVES:
        return x
    return x.float() if _arrays.is_tensor(x) else x.astype("float32")


def to_half(result: Any, first: Any) -> Any:
    """A float32 result in the dtype of `first`."""
    return result.to(first.dtype) if _arrays.is_tensor(result) else result.astype(first.dtype)


def state_of(generator: Generator | None, first: Any, op: str) -> Any:
    """The state of `generator`, or of the default one, on the device of the array `first`."""
    device = str(first.device) if getattr(first, "is_cuda", False) else "cpu"
    if generator is None:
        generator = _default.get(device)
        return generator.state if generator is not None else default_generator(device).state
    if not isinstance(generator, Generator):
        raise TypeError(f"{op}: generator must be a fastrl.Generator, got {type(generator).__name__}")
    if generator.device != device:
        raise ValueError(f"{op}: generator must be on {device} like the arrays, got {generator.device}")
    return generator.state


# ---- arguments ---------------------------------------------------------------------------------------------------


def load(
    obj: Any, where: str, dtypes: tuple[str, ...] = _FLOATS, first: Any = None, name: str = "", same_dtype: bool = False
) -> Any:
    """`obj` as a NumPy view, or detached where it is on a GPU; `first`, called `name`, is the array it must be like."""
    like = obj if first is None else first
    if not (_arrays.is_tensor(like) and like.is_cuda):
        array = _arrays.load(obj, where, dtypes)
        kind, wanted = _arrays.kind_name(obj), _arrays.kind_name(like)
        if kind != wanted:
            raise TypeError(f"{where} must be a {wanted} like {name}, got a {kind}")
    else:
        array = _arrays.load_tensor(obj, where, (*_FLOATS, *_HALVES) if dtypes == _FLOATS else dtypes, like, name)
    if same_dtype and _dtype(array) != _dtype(first):
        raise ValueError(f"{where} must have dtype {_dtype(first)} like {name}, got {_dtype(array)}")
    return array


def load_matrix(obj: Any, where: str, first: Any, name: str) -> Any:
    """An array of the kind, dtype and shape of `first`, in float64."""
    array = load(obj, where, first=first, name=name, same_dtype=True)
    if tuple(array.shape) != tuple(first.shape):
        raise ValueError(f"{where} must have shape {tuple(first.shape)} like {name}, got {tuple(array.shape)}")
    return to_float64(array)


def load_row_grad(obj: Any, where: str, first: Any, name: str) -> Any:
    """The gradient [B, 1] of a result [B], in float64; 0.0 for None."""
    if obj is None:
        return 0.0
    array = load(obj, where, first=first, name=name, same_dtype=True)
    if tuple(array.shape) != (first.shape[0],):
        raise ValueError(f"{where} must have shape ({first.shape[0]},), got {tuple(array.shape)}")
    return to_float64(array)[:, None]


def _dtype(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def module_of(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def to_float64(array: Any) -> Any:
    xp = module_of(array)
    return xp.asarray(array, dtype=xp.float64)


def hand_back(result: Any, first: Any, dtype: str = "") -> Any:
    """A result in `dtype`, or else the dtype of `first`, as the kind of array that `first` is."""
    if not isinstance(result, np.ndarray):
        return result.to(getattr(sys.modules["torch"], dtype or _dtype(first)))
    with np.errstate(over="ignore"):
        return _arrays.like(result.astype(dtype or _dtype(first)), first)


# ---- random numbers ----------------------------------------------------------------------------------------------


def _words(state: Any, n: int) -> Any:
    """The Philox blocks [n, 4] that the next n elements take; a CUDA state is read and advanced on its device."""
    if isinstance(state, np.ndarray):
        seed, counter = advance(state, n)
        block = np.uint64(counter) + np.arange(n, dtype=np.uint64)  # wraps at 2^64, as the counter does
        words = np.zeros((n, 4), np.int64)
        words[:, 0], words[:, 1] = block & np.uint64(_MASK32), block >> np.uint64(32)
        return philox4x32_reference(words, (seed & _MASK32, seed >> 32))
    torch = sys.modules["torch"]
    start = state.clone()
    state[1] += n
    block = start[1] + torch.arange(n, device=state.device)
    words = torch.zeros((n, 4), dtype=torch.int64, device=state.device)
    words[:, 0], words[:, 1] = block & _MASK32, (block >> 32) & _MASK32
    return philox4x32_reference(words, (start[0] & _MASK32, (start[0] >> 32) & _MASK32))


def _uniform(low: Any, high: Any) -> Any:
    return to_float64((high << 21) | (low >> 11)) * 2.0**-53


def uniforms(state: Any, n: int) -> Any:
    """n float64 uniforms in [0, 1) from the first 53 bits of the blocks."""
    words = _words(state, n)
    return _uniform(words[:, 0], words[:, 1])


def normals(state: Any, n: int) -> Any:
    """n float64 standard normals, four a block: of its words x, sqrt(-2 log u) times cos(2 pi v) and sin(2 pi v).

    (u, v) = ((x0 | 1) 2^-32, x1 2^-32) gives elements 0 and 1 of the block's four, (x2, x3) likewise 2 and 3.
    """
    words = _words(state, -(-n // 4))
    xp = module_of(words)
    u = to_float64(words[:, ::2] | 1) * 2.0**-32
    angle = to_float64(words[:, 1::2]) * (2.0 * np.pi * 2.0**-32)
    radius = xp.sqrt(-2.0 * xp.log(u))
    return xp.stack((radius * xp.cos(angle), radius * xp.sin(angle)), -1).reshape(-1)[:n]
