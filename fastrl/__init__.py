"""fastrl: compiled kernels for deep reinforcement learning, and thin agents on top of them.

``import fastrl`` loads NumPy and nothing heavier; ``fastrl.agents`` needs the ``agents`` extra (PyTorch, Gymnasium).
"""

from fastrl._backend import get_num_threads, set_num_threads
from fastrl.kernels import Generator, SumTree, gather_rows, manual_seed
from fastrl.replay import PrioritizedReplay, ReplayBuffer

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "PrioritizedReplay",
    "ReplayBuffer",
    "SumTree",
    "__version__",
    "gather_rows",
    "get_num_threads",
    "manual_seed",
    "set_num_threads",
]
