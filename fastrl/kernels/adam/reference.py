"""Adam in NumPy, and the checks of its arguments, which the backends written in Python share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrl.kernels._core import arrays as _arrays

_LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps")


class ReferenceAdam:
    """The arguments of a call, taken in and checked, and the arithmetic; the Numba backend replaces the arithmetic."""

    def adam_step(
        self, params: Any, grads: Any, exp_avgs: Any, exp_avg_sqs: Any, steps: Any,
        lr: Any, beta1: Any, beta2: Any, eps: Any, weight_decay: Any,
    ) -> None:  # fmt: skip
        lists = self._load_lists(dict(zip(_LISTS, (params, grads, exp_avgs, exp_avg_sqs, steps), strict=True)))
        lr = self._rate(lr, params)
        beta1, beta2 = (
            _arrays.load_float(x, f"adam_step: {name}", "in [0, 1)") for name, x in (("beta1", beta1), ("beta2", beta2))
        )
        eps, weight_decay = (
            _arrays.load_float(eps, "adam_step: eps"),
            _arrays.load_float(weight_decay, "adam_step: weight_decay"),
        )
        _check_apart(lists)
        if params:
            self._update_all(lists, lr, beta1, beta2, eps, weight_decay)

    def _load_lists(self, lists: dict[str, Any]) -> dict[str, list[Any]]:
        params = lists["params"]
        for name, arrays in lists.items():
            if not isinstance(arrays, (list, tuple)):
                raise TypeError(f"adam_step: {name} must be a list or tuple of arrays, got {type(arrays).__name__}")
            if len(arrays) != len(params):
                raise ValueError(f"adam_step: {name} must have {len(params)} arrays like params, got {len(arrays)}")
        loaded: dict[str, list[Any]] = {name: [] for name in lists}
        for i in range(len(params)):
            for name, arrays in lists.items():
                where = f"adam_step: {name}[{i}]"
                array = self._load(arrays[i], where, params[0])
                like = array if name == "params" else loaded["params"][i]
                shape, wanted = tuple(array.shape), tuple(like.shape)
                if name == "steps":
                    if shape != ():
                        raise ValueError(f"{where} must have shape (), got {shape}")
                elif array.dtype != like.dtype:
                    dtypes = _arrays.dtype_name(like), _arrays.dtype_name(array)
                    raise ValueError(f"{where} must have dtype {dtypes[0]} like params[{i}], got {dtypes[1]}")
                elif shape != wanted:
                    raise ValueError(f"{where} must have shape {wanted} like params[{i}], got {shape}")
                self._check_memory(array, where, name, like)
                loaded[name].append(array)
        return loaded

    # What differs between NumPy and torch.
    def _load(self, obj: Any, where: str, first: Any) -> Any:
        array = _arrays.load(obj, where, _arrays.FLOATS)
        kind, wanted = _arrays.kind_name(obj), _arrays.kind_name(first)
        if kind != wanted:
            raise TypeError(f"{where} must be a {wanted} like params[0], got a {kind}")
        return array

    def _check_memory(self, array: Any, where: str, name: str, first: Any) -> None:
        if not array.flags.aligned:
            raise ValueError(f"{where} must be aligned")
        if name == "grads":
            return
        if not array.flags.writeable:
            raise ValueError(f"{where} must be writable")
        if _arrays.overlaps_itself(array):
            raise ValueError(f"{where} must not overlap itself")

    def _rate(self, lr: Any, params: Any) -> Any:
        return _arrays.load_float(lr, "adam_step: lr")

    def _update_all(
        self, lists: dict[str, list[Any]], lr: float, beta1: float, beta2: float, eps: float, decay: float
    ) -> None:
        for i, step in enumerate(lists["steps"]):
            if not step >= 0:
                raise ValueError(f"adam_step: steps[{i}] must be >= 0, got {float(step)!r}")
        for p, g, m, v, step in zip(*lists.values(), strict=True):
            step += 1
            t = float(step)
            bias1, bias2 = 1 - beta1**t, 1 - beta2**t
            with np.errstate(all="ignore"):
                self._update(p, g, m, v, decay, 1 - beta1, beta2, 1 - beta2, 1 / math.sqrt(bias2), eps, lr / bias1)

    def _update(
        self, p: Any, g: Any, m: Any, v: Any, decay: float, weight1: float, beta2: float, weight2: float,
        inverse_root: float, eps: float, size: float,
    ) -> None:  # fmt: skip
        if decay:
            g = g + decay * p
        # From the nearer end, as torch has it.
        m[...] = m + weight1 * (g - m) if weight1 < 0.5 else g - (1 - weight1) * (g - m)
        v[...] = v * beta2 + weight2 * g * g
        p -= size * m / (np.sqrt(v) * inverse_root + eps)


def _layout(array: Any) -> tuple[int, int, list[tuple[int, int]]]:
    """Address, bytes of an item, and (stride in bytes, length) of each dimension longer than 1."""
    if isinstance(array, np.ndarray):
        address, size, strides = array.__array_interface__["data"][0], array.itemsize, array.strides
    else:
        address, size = array.data_ptr(), array.element_size()
        strides = tuple(s * size for s in array.stride())
    return address, size, [(s, n) for s, n in zip(strides, array.shape, strict=True) if n != 1]


def is_dense(array: Any) -> bool:
    """Whether the items fill their memory without a gap or an overlap, in any order of the dimensions."""
    _, expected, dims = _layout(array)
    for stride, length in sorted(dims):
        if stride != expected and 0 not in array.shape:
            return False
        expected *= length
    return True


def _check_apart(lists: dict[str, list[Any]]) -> None:
    """Nothing that is written shares memory with another array of the call."""
    extents = []
    places = [(i, name) for i in range(len(lists["params"])) for name in lists]
    for position, (i, name) in enumerate(places):
        array = lists[name][i]
        if 0 in array.shape:
            continue
        address, size, dims = _layout(array)
        start = address + sum(s * (n - 1) for s, n in dims if s < 0)
        end = address + size + sum(s * (n - 1) for s, n in dims if s > 0)
        extents.append((start, position, end, f"{name}[{i}]", name != "grads"))
    longest: list[Any] = [None, None]  # the one that ends last, of all and of the written, among those seen
    for extent in sorted(extents):
        start, position, end, name, written = extent
        held = longest[0 if written else 1]
        if held is not None and start < held[2]:
            low, high = sorted((extent, held), key=lambda e: int(e[1]))
            raise ValueError(f"adam_step: {high[3]} must not share memory with {low[3]}")
        for k in (0, 1) if written else (0,):
            if longest[k] is None or end > longest[k][2]:
                longest[k] = extent


adam_step = ReferenceAdam().adam_step

__all__ = ["adam_step"]
