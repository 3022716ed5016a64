"""Replay buffers built on the kernels.  NumPy only: torch is imported when a buffer is given a device."""

from fastrl.replay.batch import Batch
from fastrl.replay.buffer import ReplayBuffer
from fastrl.replay.hindsight import HindsightReplay
from fastrl.replay.limiter import SampleToInsertRatio
from fastrl.replay.offline import from_minari, from_saved
from fastrl.replay.prioritized import PrioritizedReplay
from fastrl.replay.samplers import ReplaySampler
from fastrl.replay.sequences import SequenceBatch, SequenceReplay
from fastrl.replay.shared import ReplayWriter

__all__ = [
    "Batch",
    "HindsightReplay",
    "PrioritizedReplay",
    "ReplayBuffer",
    "ReplaySampler",
    "ReplayWriter",
    "SampleToInsertRatio",
    "SequenceBatch",
    "SequenceReplay",
    "from_minari",
    "from_saved",
]
