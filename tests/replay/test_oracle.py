"""All features of the replay buffers in combination, against plain lists of episodes."""

import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_oracle import EVENTS, LEAVES, Envs, Lists, batched
from replay_worlds import RINGS, space_of, with_ring

from fastrl.replay import PrioritizedReplay, ReplayBuffer


@st.composite
def cases(draw):
    num_envs = draw(st.integers(1, 3))
    frames = draw(st.sampled_from([1, 2, 3, 4]))
    return {
        "num_envs": num_envs,
        "frames": frames,
        "kind": draw(st.sampled_from(sorted(LEAVES))),
        "capacity": draw(st.integers(1, 14)),
        "n": draw(st.integers(1, 4)),
        "gamma": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "apart": frames == 1 and draw(st.booleans()),
        "prioritized": draw(st.booleans()),
        "ring": draw(st.sampled_from(sorted(RINGS))),
        "padding": draw(st.sampled_from(["reset", "zero", "noop"])),
        "values": draw(st.sampled_from([1, 2, 9])),
        "seed": draw(st.integers(0, 2**16)),
        "steps": draw(
            st.lists(
                st.tuples(
                    st.lists(st.sampled_from(EVENTS), min_size=num_envs, max_size=num_envs),
                    st.sampled_from([*["add"] * 6, "extend", "extend", "clear", "save", "pickle"]),
                ),
                min_size=1,
                max_size=40,
            )
        ),
    }


def new_buffer(case, **options):
    cls = PrioritizedReplay if case["prioritized"] else ReplayBuffer
    with with_ring(case["ring"]):
        return cls(
            case["capacity"], space_of(case["kind"], case["frames"]), ((), np.int64), case["num_envs"],
            n_step=case["n"], gamma=case["gamma"], frame_stack=case["frames"], store_next_obs=case["apart"], seed=0,
            **options,
        )  # fmt: skip


def replaced(case, buffer, how):
    """A copy of the buffer that must go on as it would."""
    with with_ring(case["ring"]):
        if how == "pickle":
            return pickle.loads(pickle.dumps(buffer))
        other = new_buffer(case)
        with tempfile.TemporaryDirectory() as folder:
            buffer.save(Path(folder) / "file")
            other.load(Path(folder) / "file")
        return other


def write(buffer, lists, kind, waiting):
    """Give the steps that wait to the buffer, one by one or in one call, and to the lists."""
    if not waiting:
        return
    whole = [batched(kind, rows) for rows in waiting]
    starts = []
    for (_, kept, start), rows in zip(whole, waiting, strict=True):
        said = [s is not None for s in start]
        # `episode_start` is said of all environments of a call or of none: of the others what would hold without.
        starts.append(
            [bool(s) if s is not None else c for s, c in zip(start, lists.cut, strict=True)] if any(said) else None
        )
        for env, (row, keep) in enumerate(zip(rows, kept, strict=True)):
            if keep:
                lists.add(env, *row[:6], start=None if starts[-1] is None else starts[-1][env])
            else:
                lists.cut[env] = True
    if len(waiting) == 1:
        arguments, kept, _ = whole[0]
        buffer.add(*arguments, mask=None if kept.all() else kept, episode_start=starts[0])
        return
    stack = lambda values: (  # noqa: E731
        {k: stack([v[k] for v in values]) for k in values[0]}
        if isinstance(values[0], dict)
        else tuple(map(stack, zip(*values, strict=True)))
        if isinstance(values[0], tuple)
        else np.stack(values)
    )
    columns = [stack(values) for values in zip(*(arguments for arguments, _, _ in whole), strict=True)]
    buffer.extend(*columns, mask=np.stack([kept for _, kept, _ in whole]))


def check(buffer, lists, case, tolerance):
    held = lists.held()
    assert len(buffer) == len(held)
    everything = buffer.transitions()
    assert everything.indices.tolist() == sorted(held)
    lists.check(everything, case["kind"], 1, tolerance)
    lists.check(buffer[everything.indices], case["kind"], case["n"], tolerance)
    if not held:
        return
    batch = buffer.sample(5)
    lists.check(batch, case["kind"], case["n"], tolerance)
    if case["prioritized"]:
        old = np.concatenate((batch.indices, np.arange(case["num_envs"])[np.array(lists.count) > 0]))
        stale = buffer.update_priorities(old, np.linspace(0.1, 2, len(old)))
        assert stale == sum(number not in held for number in old.tolist())


def run(case, tolerance, storage=None):
    envs = Envs(case["kind"], case["num_envs"], case["frames"], case["padding"], case["seed"], case["values"])
    share = -(-case["capacity"] // case["num_envs"])
    lists = Lists(case["num_envs"], share, case["n"], case["gamma"])
    buffer, waiting = new_buffer(case, storage=storage), []
    for events, how in case["steps"]:
        rows = envs.step(events)
        if how == "extend" and all(row[7] is None for row in rows):
            waiting.append(rows)
            continue
        write(buffer, lists, case["kind"], waiting)
        write(buffer, lists, case["kind"], [rows])
        waiting = []
        if how == "clear":
            buffer.clear()
            lists.clear()
        elif storage is not None and how in ("save", "pickle"):
            buffer.close()
            buffer = new_buffer(case, storage=storage)
        elif how in ("save", "pickle"):
            buffer = replaced(case, buffer, how)
        check(buffer, lists, case, tolerance)
    write(buffer, lists, case["kind"], waiting)
    check(buffer, lists, case, tolerance)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_everything_in_combination(tolerance, case):
    run(case, tolerance)


@pytest.mark.skipif(os.name == "nt", reason="folders need Linux or macOS")
@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_everything_in_a_folder(tolerance, case):
    with tempfile.TemporaryDirectory() as folder:
        run(case, tolerance, Path(folder) / "folder")


@pytest.mark.long
@settings(max_examples=20_000, deadline=None)
@given(case=cases())
def test_everything_in_20_000_combinations(tolerance, case):
    run(case, tolerance)
