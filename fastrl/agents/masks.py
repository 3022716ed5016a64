"""Action masks: which of its discrete actions an environment allows now, and the best of those.

An environment has masks if the info of `reset` holds ``"action_mask"`` (as Gymnasium's Taxi), or if it, or a wrapper
around it, has a method ``action_masks()`` (as for sb3-contrib's MaskablePPO); the first goes before the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fastrl.agents.config import InputError
from fastrl.agents.spaces import actions_fit, values_of

Masks = NDArray[np.bool_]
KEY = "action_mask"


class MaskReader:
    """Reads the masks ``[K]`` of environments with discrete actions `space`, K the values of all parts of an action.

    Raises InputError for what is no mask, and for one that forbids all values of a part while the episode goes on.
    """

    def __init__(self, space: gym.Space[Any], name: str) -> None:
        self.name = name
        self.sizes: NDArray[np.int64] = values_of(space)[0]
        self.size = int(self.sizes.sum())
        self._starts = np.cumsum(self.sizes) - self.sizes

    def __call__(self, given: Any, ended: bool = False) -> Masks:
        """A mask as bools, a copy; of an episode that has `ended`, none (None, or nothing allowed) is all allowed."""
        if given is None and ended:
            return np.ones(self.size, np.bool_)
        if given is None:
            raise InputError(f'{self.name}: info["action_mask"] must be there at every reset and step, but is missing')
        mask = self._bools(given)
        if mask.shape != (self.size,):
            raise InputError(f"{self.name}: an action mask must have shape ({self.size},), got {mask.shape}")
        return self._allowing(mask, ended)

    def rows(self, given: Any, what: str) -> Masks:
        """Masks ``[B, K]`` of the user's, or one ``[K]`` as ``[1, K]``."""
        masks = self._bools(given)
        if masks.shape[-1:] != (self.size,) or masks.ndim > 2:
            raise InputError(f"{what} must have shape ({self.size},) or (B, {self.size}), got {masks.shape}")
        masks = masks.reshape(-1, self.size)
        for mask in masks:
            self._allowing(mask, False)
        return masks

    def _bools(self, given: Any) -> Masks:
        try:
            if isinstance(given, tuple):  # by part, as MultiDiscrete.sample takes them
                given = np.concatenate([np.ravel(part) for part in given])
            mask = np.asarray(given)
        except ValueError as error:  # rows of different lengths, or no part
            raise InputError(f"{self.name}: an action mask must be an array: {' '.join(str(error).split())}") from error
        if mask.dtype != np.bool_ and not np.isin(mask, (0, 1)).all():
            raise InputError(f"{self.name}: an action mask must hold bools, or 0 and 1, got {mask.dtype}")
        return mask.astype(np.bool_)

    def _allowing(self, mask: Masks, ended: bool) -> Masks:
        if np.logical_or.reduceat(mask, self._starts).all():
            return mask
        if ended:  # nobody acts there
            return np.ones(self.size, np.bool_)
        part = "" if len(self.sizes) == 1 else " of a part"
        raise InputError(f"{self.name}: the action mask forbids all actions{part}, but the episode goes on")


def reader_of(space: gym.Space[Any], name: str) -> MaskReader | None:
    """What reads masks of actions of `space`; None: there are none of such actions."""
    return MaskReader(space, name) if actions_fit(space, discrete=True, continuous=False, multi=True) else None


def method_of(env: Any) -> Callable[[], Any] | None:
    """``action_masks`` of the environment or of the outermost wrapper that has it."""
    while env is not None:
        method = getattr(env, "action_masks", None)
        if callable(method):
            return method  # type: ignore[no-any-return]
        env = getattr(env, "env", None)
    return None


def source_of(env: Any, info: Any) -> Callable[[Any], Any] | None:
    """What gives a single environment's mask, of the info of its last reset or step; None: it has none."""
    if isinstance(info, Mapping) and KEY in info:
        return lambda now: now.get(KEY) if isinstance(now, Mapping) else None
    method = method_of(env)
    return None if method is None else lambda _: method()


def masks_given(agent: Any, given: Any, n: int) -> Masks:
    """The `action_masks` of `predict` for `n` observations, as ``[n, K]``; raises InputError."""
    this = type(agent).__name__
    reader = reader_of(agent.envs.action_space, f"{this}.predict") if agent.masks else None
    if reader is None:
        why = "knows no masks" if not agent.masks else f"has action space {agent.envs.action_space}"
        raise InputError(f"predict: action_masks must be None, because {this} {why}")
    masks = reader.rows(given, "predict: action_masks")
    if len(masks) not in (1, n):
        raise InputError(f"predict: action_masks must have shape ({n}, {reader.size}), got {np.shape(given)}")
    return np.array(np.broadcast_to(masks, (n, reader.size)))


class VectorMasks:
    """The masks ``[N, K]`` of a vector environment, which has them in ``info`` or a method (its environments' count).

    `now` is of the observations to act on.
    """

    def __init__(self, reader: MaskReader, vec: Any, n: int, info: Any) -> None:
        self.reader, self.n = reader, n
        self._method = None if isinstance(info, Mapping) and KEY in info else _vector_method(vec)
        self.now = np.ones((n, reader.size), np.bool_)
        self.begin(info, np.ones(n, np.bool_))

    def begin(self, info: Any, which: NDArray[np.bool_]) -> None:
        """Take the masks of the episodes that `which` environments have begun."""
        self.now = np.where(which[:, None], self._read(info, np.zeros(self.n, np.bool_), which), self.now)

    def step(self, info: Any, done: NDArray[np.bool_], same_step: bool) -> Masks:
        """Take the masks after a step; returns those of the observations really reached.

        `done`: whose episode has ended; with `same_step` autoreset a new one has begun there.
        """
        ended = np.zeros_like(done) if same_step else done
        self.now = reached = self._read(info, ended, np.ones(self.n, np.bool_))
        if same_step and done.any():
            final = info.get("final_info") if self._method is None and isinstance(info, Mapping) else None
            final, reached = final if isinstance(final, Mapping) else {}, reached.copy()
            reached[done] = self._rows(final, done, done)[done]
        return reached

    def _read(self, info: Any, ended: NDArray[np.bool_], which: NDArray[np.bool_]) -> Masks:
        if self._method is not None:
            info = {KEY: self._method()}
        return self._rows(info if isinstance(info, Mapping) else {}, ended, which)

    def _rows(self, info: Any, ended: NDArray[np.bool_], which: NDArray[np.bool_]) -> Masks:
        rows, there = info.get(KEY), info.get(f"_{KEY}", np.ones(self.n, np.bool_))
        if rows is not None and len(rows) != self.n:
            raise InputError(f"{self.reader.name}: there must be {self.n} action masks, got {len(rows)}")
        masks = np.ones((self.n, self.reader.size), np.bool_)
        for i in np.flatnonzero(which):
            masks[i] = self.reader(rows[i] if rows is not None and there[i] else None, bool(ended[i]))
        return masks


def vector_masks(reader: MaskReader | None, vec: Any, n: int, info: Any) -> VectorMasks | None:
    """Those of the vector environment `vec`, of the info of its first reset; None: it has none, or there is no reader.

    Raises InputError for masks in a list of infos, as Gymnasium's DictInfoToList gives them.
    """
    if reader is None:
        return None
    if isinstance(info, (list, tuple)) and any(isinstance(one, Mapping) and KEY in one for one in info):
        wanted = "in the info must be an array, in a dict as Gymnasium's vector environments give it"
        raise InputError(f"{reader.name}: action masks {wanted}, got a {type(info).__name__} of infos")
    there = (isinstance(info, Mapping) and KEY in info) or _vector_method(vec) is not None
    return VectorMasks(reader, vec, n, info) if there else None


def _vector_method(vec: Any) -> Callable[[], Any] | None:
    if (method := method_of(vec)) is not None:
        return method
    methods = [method_of(env) for env in getattr(getattr(vec, "unwrapped", None), "envs", [])]
    return (lambda: [m() for m in methods]) if methods and None not in methods else None  # type: ignore[misc]


def masked(values: Any, allowed: Any) -> Any:
    """Values or logits ``[B, K]`` with -inf where an action is not `allowed`; None: all are."""
    if allowed is None:
        return values
    if isinstance(values, np.ndarray):
        return np.where(allowed, values, values.dtype.type(-np.inf))
    return values.masked_fill(~allowed, -np.inf)


def random_allowed(allowed: Masks, rng: np.random.Generator) -> NDArray[np.int64]:
    """Actions ``[B]``, uniform among those that are allowed."""
    return masked(rng.random(allowed.shape), allowed).argmax(1)  # type: ignore[no-any-return]


def of_allowed(outputs: Any, choosers: Any, allowed: Any) -> Any:
    """Of network outputs ``[B, K]`` or ``[B, K, N]`` those of the best allowed action of `choosers` ``[B, K]``.

    In the same shape, the same K times: whichever action is the best of them, the target is that of an allowed one.
    """
    best = masked(choosers, allowed).argmax(1)
    if isinstance(outputs, np.ndarray):
        chosen = outputs[np.arange(len(outputs)), best]
        return np.ascontiguousarray(np.broadcast_to(chosen[:, None], outputs.shape))
    rows = best.reshape(-1, *[1] * (outputs.ndim - 1)).expand(-1, 1, *outputs.shape[2:])
    return outputs.gather(1, rows).expand(outputs.shape).contiguous()
