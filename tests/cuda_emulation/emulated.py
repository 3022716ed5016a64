"""A pytest plugin, for a process of its own: "cuda" is the CPU, and `fastrl._C_cuda` the module that `build.py` made.

So the CUDA tests run as they are.  What a GPU alone has (streams, graphs, several devices, waiting) is left out.
"""

import importlib.util
import os
import re
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

from fastrl import _backend

LEFT_OUT = re.compile(
    # streams, graphs, devices
    r"captured|graph|stream|waiting|waits|second_device|mixed_devices|cpu_tensors_are_refused|of_the_device|on_the_gpu"
    # what compares device names, and what no kernel of ours serves
    r"|host_side_checks|errors_are_those|gather_rows"
    r"|torch.reference|torch.on.cuda|torch.on.cpu|1000003|600000"
)


class CudaIsTheCpu(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if name == "__get__" and owner is torch.Tensor.is_cuda:
            return True
        if func is torch.Tensor.cuda:
            return args[0]
        args = tuple("cpu" if isinstance(a, str) and a == "cuda" else a for a in args)
        kwargs = {k: "cpu" if k == "device" and str(v).startswith("cuda") else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


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


# What takes longest: much the same as others on more numbers.
LONG = re.compile(r"long_horizon|1030|600|989|4096|4097|4095|-200-|-25[56]-|many_duplicates")


def pytest_collection_modifyitems(config, items):
    short = os.environ.get("FASTRL_EMULATION_SHORT")
    left_out = [item for item in items if LEFT_OUT.search(item.name) or (short and LONG.search(item.name))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
