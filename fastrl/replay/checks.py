"""What a replay buffer is given, checked and converted, with errors that say which argument is wrong."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.spaces import Space, convert

_MAX_ROWS = 2**31 - 1  # of a SumTree
_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(np.bool_)

_NAMES = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "mask", "episode_start")


def check_int(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"replay: {name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"replay: {name} must be >= {least}, got {value}")
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


def check_indices(where: str, numbers: NDArray[Any]) -> None:
    if numbers.ndim != 1:
        raise ValueError(f"{where}: indices must have shape [B], got {numbers.shape}")
    if numbers.size and numbers.dtype.char not in "ilq":
        raise ValueError(f"{where}: indices must have dtype int64 or int32, got {numbers.dtype}")


def load_torch(device: Any) -> tuple[Any, Any]:
    """torch and the device, or None and None."""
    if device is None:
        return None, None
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            'replay: a device needs torch: pip install "fastrl-kernels[torch]"; device=None gives NumPy arrays'
        ) from error
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"replay: device must be None or a torch device, got {device!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"replay: device is {device}, but torch finds no CUDA device")
    return torch, device


def check_memory(capacity: int, num_envs: int, slots: int, item_bytes: tuple[int, int], *, warn: bool) -> str:
    """What the storage takes, in words; a warning if this machine has less memory, since it is only filled in use."""
    rows = slots * num_envs
    if rows > _MAX_ROWS:
        more = slots - -(-capacity // num_envs)  # slots of an environment than transitions
        most = (_MAX_ROWS // num_envs - more) * num_envs
        if most < 1:
            raise ValueError(f"replay: num_envs must be at most {_MAX_ROWS // (more + 1)}, got {num_envs}")
        raise ValueError(f"replay: capacity must be at most {most} with num_envs={num_envs}, got {capacity}")
    obs, action = item_bytes
    rest = 20  # reward 4, flags 3, the sum tree 5, a pointer 8
    size = rows * (obs + action + rest)
    text = f"{rows} rows of {obs} (observations) + {action} (action) + {rest} bytes take {size / 2**30:.1f} GiB"
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return text
    if warn and size > memory:
        warnings.warn(f"replay: {text}, more than the {memory / 2**30:.1f} GiB of this machine", stacklevel=3)
    return text


def check_items(
    where: str, lead: tuple[int, ...], num_envs: int, obs: Space, action: Space, arguments: tuple[Any, ...]
) -> list[Any]:
    """The arguments of `add` (lead = ()) or `extend` (lead = (steps,)) as contiguous arrays [steps, num_envs, ...]."""
    items: list[Any] = []
    leads = ((*lead, num_envs), lead)[: 2 if num_envs == 1 else 1]
    for name, value in zip(_NAMES, arguments, strict=True):
        if value is None and name in ("mask", "episode_start"):
            items.append(None)
            continue
        try:
            if name in ("obs", "next_obs", "action"):
                items.append((action if name == "action" else obs).convert(name, value, lead, num_envs))
                continue
            array = convert(name, value, _FLOAT32 if name == "reward" else _BOOL, leads, check=name != "reward")
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}{_order_hint(num_envs, *arguments[:4])}") from None
        items.append(array.reshape(*(lead or (1,)), num_envs))
    bad = ~np.isfinite(items[2])
    if items[6] is not None:
        bad &= items[6]  # what is left out may be nonsense
    if bad.any():
        i = int(bad.argmax())
        value = to_numpy(arguments[2]).reshape(-1)[i]
        raise ValueError(f"{where}: reward{position(i, lead, num_envs)} must be finite in float32, got {value}")
    return items


def position(i: int, lead: tuple[int, ...], num_envs: int) -> str:
    """Where item i of [steps, num_envs] is in the array that the caller gave."""
    at = [str(i // num_envs)] * len(lead) + [str(i % num_envs)] * (num_envs > 1)
    return f"[{', '.join(at)}]" if at else ""


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


def to_numpy(array: Any) -> NDArray[Any]:
    if type(array) is np.ndarray:  # the usual one, in the fewest steps
        return array
    if hasattr(array, "detach"):  # a torch tensor; float64 because NumPy has no bfloat16
        array = array.detach()
        array = (array.double() if array.is_floating_point() else array).cpu()
    return np.asarray(array)
