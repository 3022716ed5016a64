"""The spaces of observations and actions: which arrays an element has, and how they are stored and given back."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_MAX_AXES = 15  # of an item: a column of them has one more, and the kernels take 16


class Leaf(NamedTuple):
    """One array of an element."""

    path: str  # "['camera'][0]", or "" where it is the only one
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int  # bytes into the record

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Space:
    """An array, or a Dict / Tuple of spaces to any depth.

    A single array is stored as it is.  The arrays of a Dict or Tuple lie beside each other in a record of bytes, so
    that an element is one item of one column, whose arrays are strided views.

    Args:
        name: of the argument, for errors.
        space: a Gymnasium space, a pair (shape, dtype), or a dict of these.
        frames: > 1: every array is a stack of so many frames, and a frame of each is what is stored.
        index: store a single integer as int64, which indexing with it needs.
    """

    def __init__(self, name: str, space: Any, *, frames: int = 1, index: bool = False) -> None:
        self.name, self.frames = name, frames
        self.leaves: list[Leaf] = []
        self._size = 0
        self._index = index
        self._tree = self._parse(space, "")
        self.is_single = self._tree == 0
        self.shape: tuple[int, ...] = self.leaves[0].shape if self.is_single else (-(-self._size // 8) * 8,)
        self.dtype: np.dtype[Any] = self.leaves[0].dtype if self.is_single else np.dtype(np.uint8)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def __repr__(self) -> str:
        lead = [self.frames] if self.frames > 1 else []
        texts = [f"{leaf.path}{': ' if leaf.path else ''}{leaf.dtype}{[*lead, *leaf.shape]}" for leaf in self.leaves]
        return ", ".join(texts)

    def _parse(self, space: Any, path: str) -> Any:
        """The structure: dicts and tuples of the numbers of leaves."""
        kinds = {c.__name__ for c in type(space).__mro__}
        parts = getattr(space, "spaces", space if isinstance(space, Mapping) else None)
        if isinstance(parts, Mapping) and parts and (isinstance(space, Mapping) or "Dict" in kinds):
            return {key: self._parse(part, f"{path}[{key!r}]") for key, part in parts.items()}
        if isinstance(parts, (tuple, list)) and parts and "Tuple" in kinds:
            return tuple(self._parse(part, f"{path}[{i}]") for i, part in enumerate(parts))
        shape, dtype = _shape_and_dtype(f"{self.name}{path}", space)
        if self.frames > 1:
            if shape[:1] != (self.frames,):
                raise ValueError(
                    f"replay: {self.name}{path} must have shape ({self.frames}, ...) with frame_stack={self.frames}, "
                    f"the newest frame last, as Gymnasium's FrameStackObservation gives it, got {shape}"
                )
            shape = shape[1:]
        if self._index and shape == () and dtype.kind in "iu":
            dtype = np.dtype(np.int64)
        start = -(-self._size // dtype.itemsize) * dtype.itemsize  # aligned
        self.leaves.append(Leaf(path, shape, dtype, start))
        self._size = start + self.leaves[-1].nbytes
        return len(self.leaves) - 1

    @property
    def keys(self) -> set[Any]:
        """Of a Dict."""
        return set(self._tree) if isinstance(self._tree, dict) else set()

    def config(self) -> tuple[Any, Any]:
        """Shape and dtype as JSON has them, of each array."""
        if self.is_single:
            return list(self.shape), self.dtype.name
        return {x.path: list(x.shape) for x in self.leaves}, {x.path: x.dtype.name for x in self.leaves}

    def views(self, column: Array) -> list[Array]:
        """Of a column [..., *shape] each array of its elements, [..., *shape of the leaf], without a copy."""
        if self.is_single:
            return [column]
        parts = (column[..., leaf.offset : leaf.offset + leaf.nbytes] for leaf in self.leaves)
        return [
            part.view(leaf.dtype).reshape(*column.shape[:-1], *leaf.shape)
            for part, leaf in zip(parts, self.leaves, strict=True)
        ]

    def join(self, arrays: Sequence[Any]) -> Any:
        """An array of each leaf as an element has them: the array, or dicts and tuples of them."""
        return arrays[0] if self.is_single else _fill(self._tree, arrays)

    def pack(self, value: Any, num_envs: int) -> Any:
        """`convert` of one step in the fewest steps: a record of each environment; None for what it has to look at.

        That is anything but a flat dict or tuple of arrays, each of its dtype and contiguous.  A single array: itself.
        """
        if self.is_single:
            return value
        if type(value) is not type(self._tree) or len(value) != len(self._tree):
            return None
        lead = (num_envs, self.frames) if self.frames > 1 else (num_envs,)
        record = np.zeros((*lead, *self.shape), np.uint8)
        for key, number in self._tree.items() if isinstance(self._tree, dict) else enumerate(self._tree):
            if type(number) is not int or (isinstance(value, dict) and key not in value):
                return None
            leaf, array = self.leaves[number], value[key]
            if isinstance(array, np.generic):
                array = np.asarray(array)
            if type(array) is not np.ndarray or array.dtype != leaf.dtype or not array.flags.c_contiguous:
                return None
            full = (*lead, *leaf.shape)
            if array.shape != full and (num_envs > 1 or array.shape != full[1:]):
                return None
            record[..., leaf.offset : leaf.offset + leaf.nbytes] = array.reshape(*lead, -1).view(np.uint8)
        return record

    def convert(self, name: str, value: Any, lead: tuple[int, ...], num_envs: int) -> Array:
        """Elements ``[*lead, num_envs]``, or ``[*lead]`` where num_envs is 1, as stored: [steps, num_envs, ...]."""
        stack = (self.frames,) if self.frames > 1 else ()
        leads = ((*lead, num_envs, *stack), (*lead, *stack))[: 2 if num_envs == 1 else 1]
        full = (*(lead or (1,)), num_envs, *stack)
        if self.is_single:
            return convert(name, value, self.dtype, [(*x, *self.shape) for x in leads]).reshape(*full, *self.shape)
        column = np.zeros((*full, *self.shape), np.uint8)
        values: list[tuple[str, Any]] = []
        _take(name, self._tree, value, values)
        for (path, part), leaf, view in zip(values, self.leaves, self.views(column), strict=True):
            view[...] = convert(path, part, leaf.dtype, [(*x, *leaf.shape) for x in leads]).reshape(view.shape)
        return column


def _shape_and_dtype(name: str, space: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        shape, dtype = space if type(space) is tuple else (space.shape, space.dtype)
        shape = tuple(operator.index(n) for n in shape)
        dtype = None if dtype is None else np.dtype(dtype).newbyteorder("=")
    except (AttributeError, TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in "biuf":
        raise TypeError(
            f"replay: {name} must be a Box, Discrete, MultiDiscrete or MultiBinary space, a Dict or Tuple of these, or "
            f"a pair (shape, dtype) with a real dtype, got {space!r}"
        )
    if any(n < 1 for n in shape):
        raise ValueError(f"replay: {name} must have no empty axis, got shape {shape}")
    if len(shape) > _MAX_AXES:
        raise ValueError(f"replay: {name} must have at most {_MAX_AXES} axes, got {len(shape)}")
    return shape, dtype


def _fill(tree: Any, arrays: Sequence[Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _fill(part, arrays) for key, part in tree.items()}
    return tuple(_fill(part, arrays) for part in tree) if isinstance(tree, tuple) else arrays[tree]


def _take(path: str, tree: Any, value: Any, found: list[tuple[str, Any]]) -> None:
    """Append the parts of `value` in the order of the leaves."""
    if isinstance(tree, dict):
        if not isinstance(value, Mapping) or set(value) != set(tree):
            got = f"keys {sorted(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
            raise TypeError(f"{path} must be a dict with keys {sorted(map(str, tree))}, got {got}")
        for key, part in tree.items():
            _take(f"{path}[{key!r}]", part, value[key], found)
    elif isinstance(tree, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(tree):
            got = f"{len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
            raise TypeError(f"{path} must be a tuple of {len(tree)}, got {got}")
        for i, part in enumerate(tree):
            _take(f"{path}[{i}]", part, value[i], found)
    else:
        found.append((path, value))


def convert(
    name: str, value: Any, dtype: np.dtype[Any], shapes: Sequence[tuple[int, ...]], check: bool = True
) -> Array:
    """`value` as a C-contiguous array of this dtype, having one of the shapes; check=False lets a float overflow."""
    try:
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("must not be a masked array, whose mask would be ignored: give filled(value)")
        array = np.asarray(value)
        if array.dtype != dtype:
            array = _cast(array, dtype, check)
        if array.shape not in shapes:
            raise ValueError(f"must have shape {shapes[-1]}, got {array.shape}")
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that requires grad
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{name} {error}") from None
    return np.ascontiguousarray(array)


def _cast(array: Array, dtype: np.dtype[Any], check: bool) -> Array:
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
