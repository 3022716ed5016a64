"""A pytest plugin, for a process of its own: "cuda" is the CPU, and `fastrl._C_cuda` the module that `build.py` made.

So the CUDA tests run as they are.  What a GPU alone has (streams, several devices, waiting) is left out; a graph's
work is done again, and what a capture would refuse is an error.
"""

import importlib.util
import os
import re
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastrl import _backend

LEFT_OUT = re.compile(
    # streams, devices
    r"stream|waiting|waits|second_device|mixed_devices|cpu_tensors_are_refused|of_the_device|on_the_gpu"
    # what compares device names, and what no kernel of ours serves
    r"|host_side_checks|errors_are_those|test_gather_rows$"
    r"|torch.reference|torch.on.cuda|torch.on.cpu|1000003|600000"
)


def on_the_cpu(x):
    return "cpu" if isinstance(x, (str, torch.device)) and str(x).startswith("cuda") else x


class CudaIsTheCpu(TorchFunctionMode):
    """Every tensor says that it is on "cuda:0", and what is to go there stays."""

    BY_THE_HOST = ("cuda", "cpu", "numpy", "tolist", "from_numpy")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if name in self.BY_THE_HOST and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{name} cannot be captured in a CUDA graph")
        if name == "__get__" and owner is torch.Tensor.is_cuda:
            return True
        if name == "__get__" and owner is torch.Tensor.device:
            return torch.device("cuda:0")
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        return func(*map(on_the_cpu, args), **{k: on_the_cpu(v) for k, v in (kwargs or {}).items()})


class Capture(TorchDispatchMode):
    """Refuses what cannot be captured: to read what the device has computed, and to bring numbers from the host."""

    REFUSED = re.compile(r"aten::(_local_scalar_dense|nonzero|masked_select|equal|is_nonzero|unique|lift_fresh)")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func.name().startswith("aten::index") and isinstance(args[1], (list, tuple))
        masked = masked and any(x is not None and x.dtype == torch.bool for x in args[1])  # how many there are is read
        if masked or self.REFUSED.match(func.name()):
            raise RuntimeError(f"{func.name()} cannot be captured in a CUDA graph")
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        torch.cuda.is_current_stream_capturing = lambda: True
        return super().__enter__()

    def __exit__(self, *error):
        torch.cuda.is_current_stream_capturing = lambda: False
        return super().__exit__(*error)


class DoneAgain:
    """In the place of a CUDA graph: a replay does the work again, and its results go to where the first ones are."""

    def __init__(self, work):
        self.work = work
        self.results = self.captured()

    def captured(self):
        with Capture():
            return self.work()

    def replay(self):
        for kept, new in zip(tree_leaves(self.results), tree_leaves(self.captured()), strict=True):
            if isinstance(kept, torch.Tensor):
                kept.copy_(new)


def captured(work):
    graph = DoneAgain(work)
    return graph, graph.results


def load(path):
    """The emulated module, in the place of `fastrl._C_cuda`."""
    spec = importlib.util.spec_from_file_location("_C_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _backend._C_cuda = module
    _backend.cuda_backend = lambda: ("cuda", "emulation")
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
    torch.cuda.current_device, torch.cuda.is_current_stream_capturing = lambda: 0, lambda: False
    torch.cuda.current_stream = lambda device=None: SimpleNamespace(synchronize=lambda: None)
    CudaIsTheCpu().__enter__()
    return module


def pytest_configure(config):
    load(os.environ["FASTRL_EMULATION_MODULE"])
    importlib.import_module("cuda_graphs").captured = captured


# What takes longest: much the same as others on more numbers.
LONG = re.compile(r"long_horizon|1030|600|989|4096|4097|4095|-200-|-25[56]-|many_duplicates")


def pytest_collection_modifyitems(config, items):
    short = os.environ.get("FASTRL_EMULATION_SHORT")
    left_out = [item for item in items if LEFT_OUT.search(item.name) or (short and LONG.search(item.name))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
