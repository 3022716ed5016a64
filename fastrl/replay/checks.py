"""What a replay buffer is given, checked and converted, with errors that say which argument is wrong."""

from __future__ import annotations

import math
import operator
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_ROWS = 2**31 - 1  # of a SumTree
_MAX_AXES = 15  # of an item: a column of them has one more, and the kernels take 16

_NAMES = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "mask", "episode_start")


def check_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"replay: {name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"replay: {name} must be >= 1, got {value}")
    return int(value)


def check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"replay: {name} must be a bool, got {type(value).__name__}")
    return bool(value)


def check_float(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"replay: {name} must be a float, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"replay: {name} must be finite and >= 0, got {value}")
    return float(value)


def check_space(name: str, space: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an element of the space."""
    try:
        shape, dtype = space if type(space) is tuple else (space.shape, space.dtype)
        shape = tuple(operator.index(n) for n in shape)
        dtype = None if dtype is None else np.dtype(dtype).newbyteorder("=")
    except (AttributeError, TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in "biuf":
        raise TypeError(
            f"replay: {name} must be a Box, Discrete, MultiDiscrete or MultiBinary space, or a pair (shape, dtype) "
            f"with a real dtype, got {space!r}; flatten a Dict or Tuple space"
        )
    if any(n < 1 for n in shape):
        raise ValueError(f"replay: {name} must have no empty axis, got shape {shape}")
    if len(shape) > _MAX_AXES:
        raise ValueError(f"replay: {name} must have at most {_MAX_AXES} axes, got {len(shape)}")
    return shape, dtype


def load_torch(device: Any) -> tuple[Any, Any]:
    """torch and the device, or None and None."""
    if device is None:
        return None, None
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            'replay: a device needs torch: pip install "fastrl-kernels[agents]"; device=None gives NumPy arrays'
        ) from error
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"replay: device must be None or a torch device, got {device!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"replay: device is {device}, but torch finds no CUDA device")
    return torch, device


def check_memory(capacity: int, num_envs: int, slots: int, item_bytes: tuple[int, int]) -> str:
    """What the storage takes, in words; a warning if this machine has less memory, since it is only filled in use."""
    rows = slots * num_envs
    if rows > _MAX_ROWS:
        most = (_MAX_ROWS // num_envs - 2) * num_envs
        raise ValueError(f"replay: capacity must be at most {most} with num_envs={num_envs}, got {capacity}")
    obs, action = item_bytes
    rest = 20  # reward 4, flags 3, the sum tree 5, a pointer 8
    size = rows * (obs + action + rest)
    text = f"{rows} rows of {obs} (observations) + {action} (action) + {rest} bytes take {size / 2**30:.1f} GiB"
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return text
    if size > memory:
        warnings.warn(f"replay: {text}, more than the {memory / 2**30:.1f} GiB of this machine", stacklevel=3)
    return text


def check_items(
    where: str,
    lead: tuple[int, ...],
    num_envs: int,
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[np.dtype[Any], ...],
    arguments: tuple[Any, ...],
) -> list[Any]:
    """The arguments of `add` (lead = ()) or `extend` (lead = (steps,)) as contiguous arrays [steps, num_envs, ...]."""
    items: list[Any] = []
    for name, value, shape, dtype in zip(_NAMES, arguments, shapes, dtypes, strict=True):
        if value is None and name in ("mask", "episode_start"):
            items.append(None)
            continue
        allowed = ((*lead, num_envs, *shape), (*lead, *shape))[: 2 if num_envs == 1 else 1]
        try:
            array = _convert(value, dtype, allowed, check=name != "reward")
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that requires grad
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{where}: {name} {error}{_order_hint(num_envs, *arguments[:4])}") from None
        items.append(array.reshape(*(lead or (1,)), num_envs, *shape))
    bad = ~np.isfinite(items[2])
    if items[6] is not None:
        bad &= items[6]  # what is left out may be nonsense
    if bad.any():
        t, e = np.argwhere(bad)[0]
        at = ", ".join([str(t)] * len(lead) + [str(e)] * (num_envs > 1))
        value = to_numpy(arguments[2]).reshape(-1)[t * num_envs + e]
        raise ValueError(f"{where}: reward{f'[{at}]' if at else ''} must be finite in float32, got {value}")
    return items


def warn_of_differing(method: str) -> None:
    warnings.warn(
        f"replay.{method}: most observations differ from the next_obs before them, so each is stored twice and n-step "
        "returns go on over the difference: say where episodes begin (episode_start=), or that next_obs is to be kept "
        "apart (store_next_obs=True)",
        stacklevel=3,
    )


def _order_hint(num_envs: int, obs: Any, action: Any, reward: Any, next_obs: Any) -> str:
    """For who gives the arguments in the order of other libraries."""
    try:
        other = np.shape(action) == np.shape(obs) != np.shape(next_obs) and np.shape(next_obs) in ((), (num_envs,))
    except (TypeError, ValueError, RuntimeError):
        return ""
    if not other:
        return ""
    return (
        "; the order is obs, action, reward, next_obs, terminated, truncated (that of Stable-Baselines3 and CleanRL is "
        "obs, next_obs, action, reward, done): name the arguments"
    )


def _convert(value: Any, dtype: np.dtype[Any], shapes: tuple[tuple[int, ...], ...], check: bool = True) -> NDArray[Any]:
    """`value` as a C-contiguous array of this dtype, having one of the shapes; check=False lets a float overflow."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("must not be a masked array, whose mask would be ignored: give filled(value)")
    array = np.asarray(value)
    if array.dtype != dtype:
        array = _cast(array, dtype, check)
    if array.shape not in shapes:
        raise ValueError(f"must have shape {shapes[-1]}, got {array.shape}")
    return np.ascontiguousarray(array)


def _cast(array: NDArray[Any], dtype: np.dtype[Any], check: bool) -> NDArray[Any]:
    """A float takes any number, rounded; an integer or a flag only those that it represents."""
    kind = array.dtype.kind
    if kind not in "biufc":
        raise TypeError(f"must be numbers of dtype {dtype}, got dtype {array.dtype}")
    if kind == "c" or (kind == "f" and dtype.kind != "f"):
        raise ValueError(f"must have dtype {dtype}, got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    if dtype.kind != "f":
        if not (cast == array).all():
            raise ValueError(f"must fit in dtype {dtype}, got {array.dtype} values from {array.min()} to {array.max()}")
    elif check:
        overflow = np.isinf(cast) & np.isfinite(array)
        if overflow.any():
            raise ValueError(f"must fit in dtype {dtype}, got {array[overflow][0]}")
    return cast


def to_numpy(array: Any) -> NDArray[Any]:
    if hasattr(array, "detach"):  # a torch tensor; float64 because NumPy has no bfloat16
        array = array.detach()
        array = (array.double() if array.is_floating_point() else array).cpu()
    return np.asarray(array)
