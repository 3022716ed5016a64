"""Replay buffers built on the kernels.  NumPy only: torch is imported when a buffer is given a device."""

from fastrl.replay.buffer import Batch, PrioritizedReplay, ReplayBuffer

__all__ = ["Batch", "PrioritizedReplay", "ReplayBuffer"]
