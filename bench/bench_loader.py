"""What a call of a kernel costs before it computes anything: four inputs checked, two results allocated."""

import numpy as np
from _harness import Case

from fastrl.kernels._core import arrays as _arrays


def numpy_arrays(elements):
    return [np.full((elements, 1), i, np.float32) for i in range(4)]


def torch_tensors(elements):
    import torch

    return [torch.full((elements, 1), float(i)) for i in range(4)]


def checked(probe, inputs):
    results = probe(*inputs)
    assert len(results) == 2
    for result in results:
        assert type(result) is type(inputs[0]) and result.shape == inputs[0].shape and result.dtype == inputs[0].dtype
    return lambda: probe(*inputs)


def python_probe(a, b, c, d):
    """The same checks in Python, as the backends written in Python do them."""
    first = _arrays.load(a, "probe: a", ("float32", "float64"))
    for name, x in (("b", b), ("c", c), ("d", d)):
        _arrays.load(x, f"probe: {name}", (str(first.dtype),), first.shape)
    return tuple(_arrays.like(np.empty_like(first), a) for _ in range(2))


def compiled(make):
    def build(elements):
        from fastrl._C import _probe

        return checked(_probe, make(elements))

    return build


def in_python(probe, make):
    return lambda elements: checked(probe, make(elements))


def allocate_only(a, b, c, d):
    return np.empty_like(a), np.empty_like(a)


CONTENDERS = {
    "fastrl": compiled(numpy_arrays),
    "fastrl, torch tensors": compiled(torch_tensors),
    "checks in Python": in_python(python_probe, numpy_arrays),
    "checks in Python, torch tensors": in_python(python_probe, torch_tensors),
    "two np.empty_like, nothing checked": in_python(allocate_only, numpy_arrays),
}
CASES = [Case("call", [{"elements": 1}, {"elements": 1000}], CONTENDERS)]


def test_loader(contender):
    contender()
