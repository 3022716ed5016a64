"""What a replay buffer gives."""

from __future__ import annotations

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """B transitions: NumPy arrays, or torch tensors if the buffer has a device.

    Of a Dict or Tuple space `obs`, `next_obs` or `action` are dicts or tuples of such arrays.
    """

    obs: Any
    """[B, *shape of an observation], dtype of the space."""
    action: Any
    """[B, *shape of an action]; int64 for discrete actions, else dtype of the space."""
    reward: Any
    """[B] float32; with n_step > 1 of m <= n_step steps: sum_{k<m} gamma^k r_{t+k}."""
    next_obs: Any
    """Like `obs`: the observation really reached after m steps; of the last step of an episode the final one."""
    terminated: Any
    """[B] bool: the last of the m steps ended in a terminal state; nothing is bootstrapped from `next_obs`."""
    truncated: Any
    """[B] bool: a limit cut the episode after the last of the m steps; bootstrap from `next_obs`."""
    indices: Any
    """[B] int64: the number k * num_envs + e of transition k of environment e, for `update_priorities` and
    ``buffer[indices]``.  No two transitions ever have the same.  On the CPU."""
    weights: Any
    """[B] float32: importance weights in [0, 1], 0 only by underflow; all 1 in a uniform buffer."""
    discount: Any
    """[B] float32: gamma^m (1 - terminated), so that the target is reward + discount * V(next_obs)."""


def to_device(batch: Any, torch: Any, device: Any) -> Any:
    """A named tuple of NumPy arrays, or tensors, as one of tensors on this device; indices stay on the CPU."""

    def move(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, dict):
            return {key: move(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return tuple(map(move, value))
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        return tensor.to(device, non_blocking=True)

    fields = zip(batch._fields, batch, strict=True)
    return type(batch)(*[torch.from_numpy(x) if name == "indices" else move(x) for name, x in fields])
