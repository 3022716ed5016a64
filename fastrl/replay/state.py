"""The state of a replay buffer as a JSON header and arrays: what is saved, pickled and copied."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.kernels import SumTree
from fastrl.replay.storage import Reader
from fastrl.replay.store import saved_rows

LAYOUT = 2
# What reading a file can raise that nobody made, or somebody made up.
DAMAGES = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
Array = NDArray[Any]
_LARGEST = float(np.finfo(np.float32).max)  # of a priority: trees are float32


def read(
    reader: Reader,
    config: dict[str, Any],
    columns: list[Array],
    num_envs: int,
    most: int,
    frames: int,
    every: bool,
    stored: list[Array] | None = None,
    deferred: Collection[int] = (),
) -> tuple[dict[str, Any], list[Array]]:
    """The header, and what `Store.arrays` gives; ValueError for what no buffer has.

    `columns`: empty ones of priorities, obs, action, reward, terminated, truncated, cut and maybe next_obs or depth, to
    be filled.  `config`: what the file must agree in.  `every`: each transition held has a priority.  `stored`: what is
    in the file in the place of the columns, which are filled already.  `deferred`: of `Reader.read_into`.
    """
    header: Any = reader.header
    check_config(header, config)
    layout = header.get("layout", 1)
    slots = len(columns[0]) // num_envs - 1
    if layout == 1 and stored is None:
        used: Any = header.get("slots")
        if not _is(used, int, slots + 1):
            raise ValueError(f"damaged: slots is {used!r}")
        reader.read_into([column[: used * num_envs] for column in columns])
        return _from_layout_1(header, columns, num_envs, slots)
    if layout != LAYOUT:
        raise ValueError(f"of layout {layout!r}, this fastrl reads up to {LAYOUT}")
    sides = [("extras", columns[1][0].nbytes)] + ([("heads", (frames - 1) * columns[1][0].nbytes)] * (frames > 1))
    _check_header(header, num_envs, slots * num_envs, [name for name, _ in sides])
    added, start = (np.array(header[name], np.int64) for name in ("added", "start"))
    rows = saved_rows(added, slots)
    flags = [np.zeros(len(columns[0]), np.bool_) for _ in sides]
    data = [np.zeros((header[name], length), np.uint8) for name, length in sides]
    beside = [array for pair in zip(flags, data, strict=True) for array in pair]
    reader.read_into(
        [c[:rows] for c in stored or columns] + [a[:rows] if a.dtype == np.bool_ else a for a in beside], deferred
    )
    _check_arrays(columns, held_rows(added, start, slots, most), flags, data, every)
    if frames > 1 and columns[7].max() >= frames:
        raise ValueError("damaged: a depth is that of no frame")
    return header, [*columns, *beside]


def damage(error: Exception) -> str:
    """One of `DAMAGES` in words."""
    return str(error) if isinstance(error, ValueError) else f"damaged: {type(error).__name__}: {error}"


def check_config(header: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise ValueError unless the header is that of a buffer of this configuration."""
    if not isinstance(header.get("config"), dict):
        raise ValueError("damaged: its header is not that of a buffer")
    # What files of before these arguments do not say.
    old = {"store_next_obs": False} if header.get("layout", 1) == 1 else {}
    theirs = {"frame_stack": 1, **old, **header["config"]}
    differing = [
        f"{name} {theirs.get(name)!r} (here {config.get(name)!r})"
        for name in {**config, **theirs}
        if theirs.get(name) != config.get(name)
    ]
    if differing:
        raise ValueError(f"of a buffer with {', '.join(differing)}")


def settle(tree: SumTree, added: Array, start: Array, slots: int, most: int, priority: float) -> None:
    """Make the tree fit the ring again, after something (Ctrl-C) came between the two."""
    now = tree.state_dict()["priorities"]
    held = held_rows(added, start, slots, most)
    wanted = np.where(held, np.where(now > 0, now, priority), 0).astype(now.dtype)
    rows = np.flatnonzero(now != wanted)
    tree.update(rows, wanted[rows])


def held_rows(added: Array, start: Array, slots: int, most: int) -> NDArray[np.bool_]:
    """[(slots + 1) * num_envs]: which rows hold a transition that can be drawn, `most` of each environment."""
    age = (added - 1 - np.arange(slots)[:, None]) % slots  # [slots, num_envs], from the newest
    held = (added - 1 - age >= start) & (age < most)
    return np.concatenate((held, np.zeros((1, len(added)), np.bool_))).reshape(-1)


def _is(value: Any, kind: type, most: int) -> bool:
    """JSON's true is an int to Python, and 1.0 is equal to 1."""
    return isinstance(value, int) and type(value) is kind and 0 <= value <= most


def check_list(name: str, values: Any, kind: type, most: list[int]) -> None:
    """Raise ValueError for what is no list of a number of each environment, from 0 to `most`."""
    if type(values) is not list or len(values) != len(most):
        raise ValueError(f"damaged: {name} is not a list of {len(most)}")
    for value, high in zip(values, most, strict=True):
        if not _is(value, kind, max(high, 1) if kind is bool else high):
            raise ValueError(f"damaged: {name} has {value!r}")


def _check_header(header: dict[str, Any], num_envs: int, rows: int, sides: list[str]) -> None:
    """Raise ValueError for a header of the right layout whose numbers no buffer has."""
    check_list("added", header.get("added"), int, [2**62 // num_envs] * num_envs)
    check_list("start", header.get("start"), int, header["added"])
    check_list("broken", header.get("broken"), bool, [1] * num_envs)
    for name, most in (("steps", 2**62), *((side, rows) for side in sides)):
        number = header.get(name)
        if not _is(number, int, most):
            raise ValueError(f"damaged: {name} is {number!r}")
    _check_priority(header)


def _check_priority(header: dict[str, Any]) -> None:
    priority = header.get("new_priority")
    if type(priority) is not float or not 1 <= priority <= _LARGEST:
        raise ValueError(f"damaged: new_priority is {priority!r}")


def _check_arrays(columns: list[Array], held: Array, marks: list[Array], data: list[Array], every: bool) -> None:
    """Raise ValueError for arrays that do not fit the header."""
    priorities, _, _, reward, *flags = columns[:7]  # flags: terminated, truncated, cut
    fits = np.array_equal(priorities > 0, held) if every else not (priorities > 0)[~held].any()
    if not fits or not np.isfinite(priorities).all():
        raise ValueError("damaged: its priorities do not fit the transitions that it holds")
    if not np.isfinite(reward).all():
        raise ValueError("damaged: a reward is not finite")
    if any(flag.view(np.uint8).max() > 1 for flag in (*flags, *marks)):
        raise ValueError("damaged: a flag is neither 0 nor 1")
    if any(np.count_nonzero(a) != len(b) for a, b in zip(marks, data, strict=True)) or (marks[0] & ~held).any():
        raise ValueError("damaged: its extra observations do not fit the transitions that it holds")


def _from_layout_1(
    header: dict[str, Any], old: list[Array], num_envs: int, slots: int
) -> tuple[dict[str, Any], list[Array]]:
    """The state that a file of the first layout holds, in which an episode's end took a slot of its own.

    `old`: priorities, obs, action, reward, terminated, truncated and cut, each with all rows.
    """
    slot, broken, steps = header.get("slot"), header.get("broken"), header.get("added")
    checks: tuple[tuple[Any, type, int], ...] = ((slot, int, slots - 1), (broken, bool, 1))
    for values, kind, most in checks:
        if type(values) is not list or len(values) != num_envs:
            raise ValueError(f"damaged: slot or broken is not a list of {num_envs}")
        if not all(_is(value, kind, most) for value in values):
            raise ValueError("damaged: slot or broken is out of range")
    if not _is(steps, int, 2**62):
        raise ValueError(f"damaged: added is {steps!r}")
    assert slot is not None
    new = [np.zeros_like(column) for column in old]
    obs, added = old[1], []
    rows: list[int] = []
    extras: list[Array] = []
    for e in range(num_envs):
        order = (slot[e] + 1 + np.arange(slots)) % slots  # from the oldest slot to the newest
        order = order[old[0][order * num_envs + e] > 0]
        n = len(order)
        if n == slots:
            raise ValueError("damaged: it holds more transitions than fit")
        added.append(n)
        if n == 0:
            continue
        source, target = order * num_envs + e, np.arange(n) * num_envs + e
        for to, column in zip(new, old, strict=True):
            to[target] = column[source]
        new[6][target[1:]] |= order[1:] != (order[:-1] + 1) % slots
        new[6][target[:1]] = True
        new[1][n * num_envs + e] = obs[source[-1] + num_envs]
        for i in range(n - 1):
            if obs[source[i] + num_envs].tobytes() != obs[source[i + 1]].tobytes():
                rows.append(int(target[i]))
                extras.append(np.frombuffer(obs[source[i] + num_envs].tobytes(), np.uint8))
    by_row = np.argsort(np.array(rows, np.int64))
    has_extra = np.zeros(len(obs), np.bool_)
    has_extra[np.array(rows, np.int64)] = True
    data = np.array(extras, np.uint8).reshape(len(rows), obs[0].nbytes)[by_row]
    converted = {
        "added": added, "start": [0] * num_envs, "broken": broken, "steps": steps,
        "extras": len(rows), "new_priority": header.get("new_priority"), "generator": header.get("generator"),
    }  # fmt: skip
    _check_priority(converted)
    held = held_rows(np.array(added), np.zeros(num_envs, np.int64), slots, slots - 1)
    _check_arrays(new, held, [has_extra], [data], True)
    return converted, [*new, has_extra, data]
