"""Where each parameter lies in the vector of one network, and how it is called."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

ACTIVATIONS = ("relu", "tanh", "silu", "none")


class Parameter(NamedTuple):
    name: str
    shape: tuple[int, ...]
    begin: int
    start: float  # the initial value,
    bound: float  # or uniform within this

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.shape)


def layout(sizes: tuple[int, ...], layer_norm: bool, dueling: int) -> list[Parameter]:
    """In the order of the vector.  Of the two streams of a dueling network each kind lies side by side.

    `dueling`: the outputs of the value's stream, 0 if there are no streams.
    """
    found: list[Parameter] = []

    def add(name: str, shape: tuple[int, ...], start: float, bound: float) -> None:
        found.append(Parameter(name, shape, found[-1].end if found else 0, start, bound))

    shapes, step = list(pairwise(sizes)), 2 + layer_norm
    trunk = len(shapes) - 2 if dueling else len(shapes)
    for k, (n_in, n_out) in enumerate(shapes[:trunk]):
        bound = n_in**-0.5
        add(f"{step * k}.weight", (n_out, n_in), 0, bound)
        add(f"{step * k}.bias", (n_out,), 0, bound)
        if layer_norm and k + 1 < len(shapes):
            add(f"{step * k + 1}.weight", (n_out,), 1, 0)
            add(f"{step * k + 1}.bias", (n_out,), 0, 0)
    if dueling:
        (n_in, width), (_, n_out) = shapes[-2:]
        streams = [f"{step * trunk}.{stream}" for stream in ("value", "advantage")]
        for kind, shape in (("weight", (width, n_in)), ("bias", (width,))):
            for stream in streams:
                add(f"{stream}.0.{kind}", shape, 0, n_in**-0.5)
        for kind, start in (("weight", 1), ("bias", 0)) if layer_norm else ():
            for stream in streams:
                add(f"{stream}.1.{kind}", (width,), start, 0)
        for stream, outputs in zip(streams, (int(dueling), n_out), strict=True):
            add(f"{stream}.{step}.weight", (outputs, width), 0, width**-0.5)
            add(f"{stream}.{step}.bias", (outputs,), 0, width**-0.5)
    return found


def size_of(parameters: list[Parameter]) -> int:
    return parameters[-1].end
