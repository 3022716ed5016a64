"""The Python twin of csrc/binding: how the backends written in Python take arrays in, with the same error texts."""

from __future__ import annotations

import functools
import math
import numbers
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

A = TypeVar("A")  # a kind of array: NumPy's, torch's or another's; results are of that of the arguments

_MAX_DIMS = 16
_text_of = functools.lru_cache(64)(str)  # of a dtype, which takes NumPy a microsecond
FLOATS = ("float32", "float64")
INTS = ("int64", "int32")
HALVES = ("float16", "bfloat16")  # taken as they are on a GPU


def torch() -> Any:
    """The module, which whoever made a tensor has imported."""
    return sys.modules["torch"]


def load(obj: Any, where: str, dtypes: tuple[str, ...] = (), shape: tuple[int, ...] | None = None) -> Any:
    """`obj` as a NumPy view of the same memory; `where` is "<op>: <argument>" for the error texts.

    NumPy arrays, torch CPU tensors and DLPack producers are taken.  `dtypes` are the names allowed (all if empty);
    `shape` the shape wanted, with -1 for any length.
    """
    if isinstance(obj, np.ndarray):
        if isinstance(obj, np.ma.MaskedArray):
            raise TypeError(f"{where} must not be a masked array, whose mask would be ignored: give filled(value)")
        array = np.asarray(obj)
        name = _text_of(array.dtype)
    elif is_tensor(obj):
        check_not_transformed(obj, where)
        if obj.device.type not in ("cpu", "meta"):
            raise ValueError(f"{where} must be on cpu, got {obj.device}")
        if obj.is_neg() or obj.is_conj():
            raise ValueError(
                f"{where} must not be a lazily negated or conjugated view: call resolve_neg() / resolve_conj()"
            )
        name = dtype_name(obj)
        plain = obj.layout == torch().strided and not (obj.is_meta or obj.is_nested or obj.is_quantized)
        if not plain or type(obj).__name__ == "FakeTensor":
            raise ValueError(f"{where} has no data (a fake, meta or sparse tensor?)")
        data = obj.detach()
        # NumPy has no bfloat16: its bits as int16, which `like` turns back.
        array = data.view(torch().int16).numpy() if obj.dtype == torch().bfloat16 else data.numpy()
    elif hasattr(type(obj), "__dlpack__"):
        try:
            device_type, device_id = obj.__dlpack_device__()
            if device_type == 1:
                array = np.from_dlpack(obj)
        except Exception:
            kind = type(obj).__name__
            hint = ": inside jax.jit and the like use fastrl.jax" if kind.endswith("Tracer") else ""
            raise ValueError(f"{where} could not be read through DLPack ({kind}){hint}") from None
        if device_type != 1:
            raise ValueError(f"{where} must be on cpu, got DLPack device {int(device_type)}:{int(device_id)}")
        name = str(array.dtype)
    else:
        raise TypeError(f"{where} must be an array, got {type(obj).__name__}")
    if array.ndim > _MAX_DIMS:
        raise ValueError(f"{where} must have at most {_MAX_DIMS} dimensions, got {array.ndim}")
    if dtypes and name not in dtypes:
        raise ValueError(f"{where} must have dtype {' or '.join(dtypes)}, got {name}")
    if shape is not None and (
        array.ndim != len(shape) or any(s not in (-1, n) for s, n in zip(shape, array.shape, strict=True))
    ):
        wanted = "[" + ", ".join("B" if s == -1 else str(s) for s in shape) + "]"
        raise ValueError(f"{where} must have shape {wanted}, got {tuple(array.shape)}")
    return array


def load_tensor(obj: Any, where: str, dtypes: tuple[str, ...], first: Any, name: str) -> Any:
    """`obj` as a detached tensor on the device of `first`, the first array of the call, which is called `name`."""
    if not isinstance(obj, torch().Tensor):
        if isinstance(obj, np.ma.MaskedArray):
            raise TypeError(f"{where} must not be a masked array, whose mask would be ignored: give filled(value)")
        if isinstance(obj, np.ndarray) or hasattr(type(obj), "__dlpack__"):
            raise TypeError(f"{where} must be a torch.Tensor like {name}, got a {kind_name(obj)}")
        raise TypeError(f"{where} must be an array, got {type(obj).__name__}")
    check_not_transformed(obj, where)
    if obj.is_meta or obj.layout != torch().strided or type(obj).__name__ == "FakeTensor":
        raise ValueError(f"{where} has no data (a fake, meta or sparse tensor?)")
    if obj.device != first.device:
        raise ValueError(f"{where} must be on {first.device} like {name}, got {obj.device}")
    if obj.is_neg() or obj.is_conj():
        raise ValueError(
            f"{where} must not be a lazily negated or conjugated view: call resolve_neg() / resolve_conj()"
        )
    dtype = dtype_name(obj)
    if dtypes and dtype not in dtypes:
        raise ValueError(f"{where} must have dtype {' or '.join(dtypes)}, got {dtype}")
    return obj.detach()


def load_on_device(
    obj: Any, where: str, dtypes: tuple[str, ...] = FLOATS, first: Any = None, name: str = "", same_dtype: bool = False
) -> Any:
    """`obj` as a NumPy view, or detached where it is on a GPU; `first`, called `name`, is the array it must be like."""
    like = obj if first is None else first
    if not (is_tensor(like) and like.is_cuda):
        array = load(obj, where, dtypes)
        kind, wanted = kind_name(obj), kind_name(like)
        if kind != wanted:
            raise TypeError(f"{where} must be a {wanted} like {name}, got a {kind}")
    else:
        array = load_tensor(obj, where, (*FLOATS, *HALVES) if dtypes == FLOATS else dtypes, like, name)
    if same_dtype and dtype_name(array) != dtype_name(first):
        raise ValueError(f"{where} must have dtype {dtype_name(first)} like {name}, got {dtype_name(array)}")
    return array


def load_matrix(obj: Any, where: str, first: Any, name: str) -> Any:
    """An array of the kind, dtype and shape of `first`, in float64."""
    array = load_on_device(obj, where, first=first, name=name, same_dtype=True)
    if tuple(array.shape) != tuple(first.shape):
        raise ValueError(f"{where} must have shape {tuple(first.shape)} like {name}, got {tuple(array.shape)}")
    return to_float64(array)


def load_row_grad(obj: Any, where: str, first: Any, name: str) -> Any:
    """The gradient [B, 1] of a result [B], in float64; 0.0 for None."""
    if obj is None:
        return 0.0
    array = load_on_device(obj, where, first=first, name=name, same_dtype=True)
    if tuple(array.shape) != (first.shape[0],):
        raise ValueError(f"{where} must have shape ({first.shape[0]},), got {tuple(array.shape)}")
    return to_float64(array)[:, None]


def module_of(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else torch()


def to_float64(array: Any) -> Any:
    xp = module_of(array)
    return xp.asarray(array, dtype=xp.float64)


def hand_back(result: Any, first: Any, dtype: str = "") -> Any:
    """A result in `dtype`, or else the dtype of `first`, as the kind of array that `first` is."""
    if not isinstance(result, np.ndarray):
        return result.to(getattr(torch(), dtype or dtype_name(first)))
    with np.errstate(over="ignore"):
        return like(result.astype(dtype or dtype_name(first)), first)


def overlaps_itself(array: Any) -> bool:
    """Whether two items may share memory: each dimension must step over all that the shorter steps reach."""
    if isinstance(array, np.ndarray):
        reach, strides = array.itemsize, array.strides
    else:
        reach = array.element_size()
        strides = tuple(s * reach for s in array.stride())
    for stride, length in sorted((abs(s), n) for s, n in zip(strides, array.shape, strict=True) if n != 1):
        if stride < reach and 0 not in array.shape:
            return True
        reach += stride * (length - 1)
    return False


def share_memory(x: Any, y: Any) -> bool:
    """Whether the memory from the first to the last item of x meets that of y, which is of the same kind."""
    if isinstance(x, np.ndarray):
        return np.may_share_memory(x, y)

    def extent(t: Any) -> tuple[int, int]:
        reach = sum(s * (k - 1) for s, k in zip(t.stride(), t.shape, strict=True))
        return t.data_ptr(), t.data_ptr() + (reach + 1) * t.element_size() if t.numel() else t.data_ptr()

    (a, b), (c, d) = extent(x), extent(y)
    return a < d and c < b


def out_list(out: Any, count: int, op: str) -> list[Any]:
    """The arrays that `count` results, more than one, are to be written to."""
    if not isinstance(out, (tuple, list)) or len(out) != count:
        got = f"{len(out)} arrays" if isinstance(out, (tuple, list)) else type(out).__name__
        raise ValueError(f"{op}: out must be {count} arrays, got {got}")
    return list(out)


def check_target(target: Any, op: str, name: str, others: Iterable[tuple[str, Any]]) -> None:
    """An array to write to: writable, and none of its memory twice, nor in any of `others`."""
    if isinstance(target, np.ndarray) and not target.flags.writeable:
        raise ValueError(f"{op}: {name} must be writable")
    if overlaps_itself(target):
        raise ValueError(f"{op}: {name} must not overlap itself")
    for other_name, other in others:
        if share_memory(target, other):
            raise ValueError(f"{op}: {name} must not share memory with {other_name}")


def like(result: Any, obj: Any) -> Any:
    """The NumPy array `result` as the kind of array that `obj` is, without a copy."""
    if isinstance(obj, np.ndarray):
        return result
    if is_tensor(obj):
        tensor = torch().from_numpy(result)
        return (
            tensor.view(torch().bfloat16) if obj.dtype == torch().bfloat16 and tensor.dtype == torch().int16 else tensor
        )
    if hasattr(obj, "__array_namespace__"):
        return obj.__array_namespace__().from_dlpack(result)
    return result


def assign(view: Any, value: Any) -> None:
    """`value`, an array or tensor of any device, into `view`, one of another perhaps."""
    if isinstance(view, np.ndarray):
        view[...] = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    else:
        view.detach()[...] = view.detach().new_tensor(value) if isinstance(value, np.ndarray) else value


def mark_written(out: Any) -> None:
    """Tell autograd that the tensors in `out` have changed: a backward pass that kept one of them raises then."""
    for x in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(x, np.ndarray):  # asked first: what torch is asked takes longer
            continue
        # In a compiled call torch's own copy_ writes, which does this itself.
        if is_tensor(x) and not is_compiling():
            torch().autograd.graph.increment_version(x)


def kind_name(obj: Any) -> str:
    """The kind of array that `obj` is: all arrays of a call are of one."""
    if isinstance(obj, np.ndarray):
        return "numpy.ndarray"
    return "torch.Tensor" if is_tensor(obj) else type(obj).__name__


def is_tensor(obj: Any) -> bool:
    """Whether it is torch's: while another thread imports torch, sys.modules holds a part of it, without tensors."""
    return isinstance(obj, getattr(sys.modules.get("torch"), "Tensor", ()))


def dtype_name(obj: Any) -> str:
    return str(getattr(obj, "dtype", "")).removeprefix("torch.")


def is_bfloat16(obj: Any) -> bool:
    return dtype_name(obj) == "bfloat16"


def check_not_transformed(tensor: Any, where: str) -> None:
    """A tensor inside vmap, grad or jvp of torch.func stands for others and has no memory of its own."""
    functorch = sys.modules.get("torch._C._functorch")
    if functorch is not None and functorch.is_functorch_wrapped_tensor(tensor):
        raise RuntimeError(
            f"{where} is inside a transform of torch.func (vmap, grad, jvp, ...), which the kernels do not support: "
            "call them outside it, on the whole batch, with torch.autograd.grad for gradients"
        )


def scalar_of(value: Any) -> Any:
    """The number in an array without dimensions (of NumPy, of torch on the CPU, of JAX), or else `value` itself."""
    is_array = isinstance(value, np.ndarray) or hasattr(type(value), "__dlpack__")
    if is_array and getattr(value, "ndim", 1) == 0 and not getattr(value, "is_cuda", False):
        return value.item()
    return value


def is_number(value: Any, kind: type = numbers.Real) -> bool:
    """Whether it is a number of the abstract class `kind`: Python's and NumPy's scalars, but not bool."""
    return isinstance(value, kind) and not isinstance(value, bool)


def is_int(value: Any) -> bool:
    return is_number(value, numbers.Integral)


def to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int beyond float64: every check refuses inf by its own text
        return math.inf


_RANGES: dict[str, Callable[[float], bool]] = {
    "finite": lambda x: abs(x) < math.inf,
    "finite and >= 0": lambda x: 0 <= x < math.inf,
    ">= 0": lambda x: x >= 0,
    "in [0, 1]": lambda x: 0 <= x <= 1,
    "in [0, 1)": lambda x: 0 <= x < 1,
}


def load_float(value: Any, where: str, wanted: str = "finite and >= 0") -> float:
    """A parameter in the range that `wanted` names."""
    if type(value) is not float:
        if not is_number(value):
            raise TypeError(f"{where} must be a float, got {type(value).__name__}")
        value = to_float(value)
    if not _RANGES[wanted](value):
        raise ValueError(f"{where} must be {wanted}, got {value!r}")
    return float(value)


def is_compiling() -> bool:
    """Whether torch.compile traces the caller: then the op registered in kernels/_torch.py is to be called."""
    torch = sys.modules.get("torch")
    try:
        return torch is not None and torch.compiler.is_compiling()
    except AttributeError:  # another thread is importing it
        return False


def requires_grad(*arrays: Any) -> bool:
    """Whether autograd records a call with these arguments."""
    for x in arrays:
        if getattr(x, "requires_grad", False):
            return bool(torch().is_grad_enabled())
    return False


def wants_grad(*arrays: Any) -> bool:
    """`requires_grad` in eager mode, where derivatives that the kernels do not have are refused."""
    if requires_grad(*arrays):
        for x in arrays:
            if is_tensor(x):
                check_not_transformed(x, "fastrl: a kernel's argument")
                _refuse_tangent(x)
        return True
    forward_ad = sys.modules.get("torch.autograd.forward_ad")
    if forward_ad is not None and getattr(forward_ad, "_current_level", -1) >= 0:
        for x in arrays:
            _refuse_tangent(x)
    return False


def _refuse_tangent(x: Any) -> None:
    forward_ad = sys.modules.get("torch.autograd.forward_ad")
    if forward_ad is None or forward_ad._current_level < 0 or not is_tensor(x):
        return
    if forward_ad.unpack_dual(x).tangent is not None:
        raise RuntimeError(
            "fastrl: the kernels have no forward-mode derivatives, and the tangent of a dual tensor would be lost: "
            "use reverse mode (torch.autograd.grad), or detach()"
        )


def is_half(first: Any) -> bool:
    """Whether it is a float16 or bfloat16 array on a CPU, where the kernels take neither."""
    if getattr(first, "itemsize", 4) != 2 or getattr(first, "is_cuda", False):
        return False
    return dtype_name(first) in HALVES


def to_float32(x: Any) -> Any:
    """An array of half precision in float32, with its gradient; anything else as it is."""
    if dtype_name(x) not in HALVES:
        return x
    return x.float() if is_tensor(x) else x.astype("float32")


def to_half(result: Any, first: Any) -> Any:
    """A float32 result in the dtype of `first`."""
    return result.to(first.dtype) if is_tensor(result) else result.astype(first.dtype)
