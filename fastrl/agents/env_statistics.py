"""The running statistics of Gymnasium's normalising wrappers: saved, restored, and lent to evaluations."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, VectorWrapper
from gymnasium.wrappers.utils import RunningMeanStd

from fastrl.agents.config import warn

STATISTICS = ("obs_rms", "return_rms")  # NormalizeObservation's and NormalizeReward's, which outlive an episode


class Statistics:
    """Those of the wrappers around a vector environment, and of the wrappers of each environment in it.

    Of an AsyncVectorEnv, whose environments are in other processes: of the outermost wrapper of each kind.
    """

    def __init__(self, outer: Any, singles: Sequence[gym.Env[Any, Any]]) -> None:
        self._around = normalising(outer) if isinstance(outer, VectorWrapper) else []
        self._inside: list[list[Any]] = [normalising(env) for env in singles]
        self._saved: list[list[dict[str, Any]]] = []  # of a checkpoint; what there is to lend without environments
        inner = getattr(outer, "unwrapped", None)
        self._remote: Any = inner if isinstance(inner, AsyncVectorEnv) else None
        self._names: list[str] = []  # of those in other processes
        if self._remote is not None:  # asking for what is not there would end the processes
            self._names = [name for name in STATISTICS if all(self._remote.call("has_wrapper_attr", name))]
            self._fetch()

    def learned(self) -> list[dict[str, Any]]:
        """What an environment needs to be seen as the first of these is, from the outside in; copies."""
        self._fetch()
        found = [read(w) for w in [*self._around, *(self._inside[0] if self._inside else [])]]
        return copy.deepcopy(found or (self._saved[0] if self._saved else []))

    def state(self) -> list[list[dict[str, Any]]]:
        """JSON types only: what `learned` gives, and the same of each further environment, without what is around."""
        first = [typed(s) for s in self.learned()]
        found = [first, *([typed(read(w)) for w in wrappers] for wrappers in self._inside[1:])]
        return found if any(found) else []

    def load(self, saved: list[list[dict[str, Any]]]) -> tuple[bool, bool]:
        """Give the wrappers what was saved: each environment its own, or all of another number what the first had.

        Returns whether there was something to give, and a wrapper for all that observations are normalised by.
        """
        self._saved = saved
        if not any(saved):
            return False, True
        self._fetch()
        given, rest = hand_over(saved[0], self._around)
        complete = not normalised(rest if not self._inside else hand_over(rest, self._inside[0])[1])
        for i, wrappers in enumerate(self._inside):
            own = saved[i] if i and len(saved) == len(self._inside) else rest
            given += hand_over(own, wrappers)[0]
        for j, name in enumerate(self._names):
            self._remote.set_attr(name, [getattr(wrappers[j], name) for wrappers in self._inside])
        return bool(given), complete

    def _fetch(self) -> None:
        """Read those in other processes into what stands for their wrappers."""
        if not self._names:
            return
        try:
            found = [self._remote.get_attr(name) for name in self._names]
        except Exception:  # it is closed, or an environment has raised
            warn("the AsyncVectorEnv no longer answers: statistics of its wrappers are those that were read last")
            return
        pairs = [[SimpleNamespace(**{n: x}) for x in xs] for n, xs in zip(self._names, found, strict=True)]
        self._inside = [list(wrappers) for wrappers in zip(*pairs, strict=True)]


def normalising(env: Any) -> list[Any]:
    """The wrappers with running statistics, of an environment or a vector environment, the outermost first."""
    found = []
    while isinstance(env, (gym.Wrapper, VectorWrapper)):
        if any(isinstance(vars(env).get(name), RunningMeanStd) for name in STATISTICS):
            found.append(env)
        env = env.env
    return found


def hand_over(states: Sequence[dict[str, Any]], wrappers: Sequence[Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Give each state to the next wrapper of its kind; the wrappers that got one, and the states that are left."""
    free, given, left = list(wrappers), [], []
    for state in states:
        wrapper = next((w for w in free if _kind(read(w)) == _kind(state)), None)
        if wrapper is None:
            left.append(state)
            continue
        free.remove(wrapper)
        write(wrapper, copy.deepcopy(state))
        given.append(wrapper)
    return given, left


@contextlib.contextmanager
def lent_statistics(states: Sequence[dict[str, Any]], env: gym.Env[Any, Any], keep: bool) -> Iterator[bool]:
    """While `env` is evaluated, give its wrappers these statistics, one after another, and let them stand still.

    `keep`: they have them afterwards, too.  Yields whether there was a wrapper for all that observations are normalised
    by.
    """
    wrappers = normalising(env)
    before = [(w, copy.deepcopy(read(w)), getattr(w, "update_running_mean", True)) for w in wrappers]
    given, left = hand_over(states, wrappers)
    for wrapper in given:
        wrapper.update_running_mean = False
    try:
        yield not normalised(left)
    finally:
        for wrapper, state, update in before:
            wrapper.update_running_mean = update
            if not keep:
                write(wrapper, state)


def normalised(states: Sequence[dict[str, Any]]) -> bool:
    """Are there statistics of observations?"""
    return any("obs_rms" in state for state in states)


def read(wrapper: Any) -> dict[str, Any]:
    """Its statistics: name, field, value; not copied."""
    state = {name: dict(vars(vars(wrapper)[name])) for name in STATISTICS if name in vars(wrapper)}
    if "discounted_reward" in vars(wrapper):  # the return that NormalizeReward carries
        state["discounted_reward"] = {"": wrapper.discounted_reward}
    return state


def write(wrapper: Any, state: Mapping[str, Any]) -> None:
    """Give it what `read` or `typed` gave."""
    for name, fields in state.items():
        for field, saved in fields.items():
            if field:
                setattr(getattr(wrapper, name), field, _value(saved))
            elif name in vars(wrapper):  # not those of vectors, nor in other processes
                setattr(wrapper, name, _value(saved))


def typed(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics as JSON has them; their dtypes are not always those that a new wrapper begins with."""
    return {
        name: {
            field: {"dtype": x.dtype.str, "values": x.tolist()} if isinstance(x, np.ndarray | np.generic) else x
            for field, x in fields.items()
        }
        for name, fields in statistics.items()
    }


def _value(saved: Any) -> Any:
    return np.array(saved["values"], saved["dtype"]) if isinstance(saved, dict) else saved


def _kind(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is normalised, and its shape."""
    return {name: np.shape(_value(state[name]["mean"])) for name in STATISTICS if name in state}
