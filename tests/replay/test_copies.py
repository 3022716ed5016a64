"""Copies by pickle, copy, deepcopy, spawn and fork; crafted files; files of earlier layouts."""

import copy
import json
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

import fastrl
from fastrl.replay import PrioritizedReplay, ReplayBuffer, storage

OBS = ((3,), np.float32)
ACTION = ((), np.int64)
BOTH = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay])


def fill(buffer, steps, seed=0):
    """With ends, differing observations and steps left out."""
    rng, n = np.random.default_rng(seed), buffer.num_envs
    obs = rng.standard_normal((n, 3), np.float32)
    for _ in range(steps):
        reached = rng.standard_normal((n, 3), np.float32)
        ends = rng.random((3, n)) < 0.15
        buffer.add(obs, rng.integers(4, size=n), rng.random(n), reached, ends[0], ends[1], ~ends[2])
        obs = np.where(rng.random((n, 1)) < 0.7, reached, rng.standard_normal((n, 3), np.float32))
    return buffer


def go_on(buffer):
    """What a buffer does next."""
    out = []
    for i in range(5):
        fill(buffer, 3, seed=i)
        batch = buffer.sample(16)
        out += [np.asarray(column).tobytes() for column in batch]
        if isinstance(buffer, PrioritizedReplay):
            buffer.update_priorities(batch.indices, batch.reward)
    return out


def cloudpickled(buffer):
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(buffer))


COPIES = {
    "pickle": lambda buffer: pickle.loads(pickle.dumps(buffer)),
    "pickle-2": lambda buffer: pickle.loads(pickle.dumps(buffer, protocol=2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "cloudpickle": cloudpickled,
}


@BOTH
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("steps", [0, 1, 9, 40])
@pytest.mark.parametrize(("num_envs", "apart"), [(1, False), (3, False), (3, True)])
def test_a_copy_is_what_save_and_load_give(tmp_path, cls, how, steps, num_envs, apart):
    def make(seed):
        return cls(10 * num_envs, OBS, ACTION, num_envs, n_step=3, gamma=0.9, store_next_obs=apart, seed=seed)

    original = fill(make(4), steps)
    if steps == 40:
        original.sample(3)
        original.clear()
        fill(original, 5)
    original.note = ["anything"]
    other = COPIES[how](original)
    loaded = make(99)
    for buffer, name in ((original, "original"), (other, "other")):
        buffer.save(tmp_path / name)
    loaded.load(tmp_path / "original")
    assert (tmp_path / "original").read_bytes() == (tmp_path / "other").read_bytes()
    assert type(other) is cls and other.note == ["anything"] and repr(other) == repr(original)
    fill(other, 2)  # the original does not see it
    original.save(tmp_path / "later")
    assert (tmp_path / "original").read_bytes() == (tmp_path / "later").read_bytes()
    other = COPIES[how](original)
    assert go_on(other) == go_on(loaded) == go_on(original)


def test_a_copy_with_a_device_and_settings():
    pytest.importorskip("torch")
    buffer = fill(PrioritizedReplay(20, OBS, ACTION, device="cpu", beta=0.5, beta_steps=50, normalize="tree"), 30)
    other = copy.deepcopy(buffer)
    assert other.device == buffer.device and other.beta == buffer.beta
    for a, b in zip(other.transitions(), buffer.transitions(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


class Mine(ReplayBuffer):
    def __init__(self, name):
        super().__init__(8, OBS, ACTION, seed=0)
        self.name = name


def test_a_subclass_with_arguments_of_its_own():
    other = copy.deepcopy(fill(Mine("x"), 5))
    assert type(other) is Mine and other.name == "x" and len(other) > 0


@BOTH
def test_spawn(cls):
    buffer = fill(cls(20, OBS, ACTION, 2, seed=1), 30)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(cls.sample, (buffer, 16))  # a function that a child can import
    for column, wanted in zip(found, buffer.sample(16), strict=True):
        assert column.tobytes() == wanted.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@BOTH
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_another_thread_is_inside(cls):
    """The child finds no lock of a thread that it does not have, and no half a transition."""
    buffer = cls(64, ((1000,), np.float32), ACTION, 2, seed=0)
    stop = threading.Event()

    def collect():
        k = 0
        while not stop.is_set():
            obs = np.full((2, 1000), k, np.float32)
            buffer.add(obs, [k, k], [k, k], obs + 1, [False] * 2, [k % 7 == 0] * 2)
            buffer.sample(32)
            k += 1

    threads = [threading.Thread(target=collect) for _ in range(2)]
    buffer.add(
        *(np.zeros((2, *s)) if i != 1 else [0, 0] for i, s in enumerate([(1000,), (), (), (1000,)])), *[[0, 0]] * 2
    )
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    batch = buffer.sample(64)
                    whole = (batch.obs == batch.obs[:, :1]).all() and (batch.obs[:, 0] == batch.reward).all()
                    buffer.add(np.zeros((2, 1000)), [0, 0], [0, 0], np.ones((2, 1000)), [0, 0], [0, 0])
                    code = 0 if whole and len(buffer) else 2
                finally:
                    os._exit(code)
            assert _wait(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _wait(child):
    """The exit code, or an error when the child hangs."""
    done = threading.Event()
    timer = threading.Timer(60, lambda: done.is_set() or os.kill(child, 9))
    timer.start()
    _, status = os.waitpid(child, 0)
    done.set()
    timer.cancel()
    return os.waitstatus_to_exitcode(status)


# ---- files ----------------------------------------------------------------------------------------------------------


def crafted(path, change, out):
    """The file with its header changed, and right checksums."""
    with open(path, "rb") as file:
        header = storage.Reader(file).header
        rest = file.read()[:-4]
    storage.write(out, change(header), [np.frombuffer(rest, np.uint8)])


HEADERS = {
    name: (lambda header, name=name, value=value: {**header, name: value})
    for name, value in {
        "added": "x", "start": None, "broken": [2, 0], "steps": 1.5, "extras": -1, "new_priority": float("nan"),
        "generator": {"seed": 1}, "config": [], "layout": 3,
    }.items()
}  # fmt: skip
HEADERS |= {
    "no added": lambda h: {k: v for k, v in h.items() if k != "added"},
    "no generator": lambda h: {k: v for k, v in h.items() if k != "generator"},
    "no config": lambda h: {k: v for k, v in h.items() if k != "config"},
    "no new_priority": lambda h: {k: v for k, v in h.items() if k != "new_priority"},
    "a list": lambda h: [1, 2],
    "huge added": lambda h: {**h, "added": [10**30, 1]},
    "more added": lambda h: {**h, "added": [n + 1 for n in h["added"]]},
    "fewer added": lambda h: {**h, "added": [n - 1 for n in h["added"]]},
    "true added": lambda h: {**h, "added": [True, True]},
    "one added": lambda h: {**h, "added": h["added"][:1]},
    "start after added": lambda h: {**h, "start": [n + 1 for n in h["added"]]},
    "start late": lambda h: {**h, "start": h["added"]},
    "broken numbers": lambda h: {**h, "broken": [0, 1]},
    "more extras": lambda h: {**h, "extras": h["extras"] + 1},
    "a priority beyond float32": lambda h: {**h, "new_priority": 1e39},
    "negative priority": lambda h: {**h, "new_priority": -1.0},
    "whole priority": lambda h: {**h, "new_priority": 1},
    "a generator of strings": lambda h: {**h, "generator": {"seed": "a", "counter": "b"}},
    "a large seed": lambda h: {**h, "generator": {"seed": 2**64, "counter": 0}},
}


@BOTH
@pytest.mark.parametrize("what", HEADERS)
def test_a_crafted_header_is_refused_whole(tmp_path, cls, what):
    original = fill(cls(12, OBS, ACTION, 2, seed=0), 4)
    original.save(tmp_path / "good")
    crafted(tmp_path / "good", HEADERS[what], tmp_path / "bad")
    buffer = fill(cls(12, OBS, ACTION, 2, seed=5), 20)
    buffer.save(tmp_path / "before")
    with pytest.raises(ValueError, match="replay.load: .*bad is (damaged|of layout)") as caught:
        buffer.load(tmp_path / "bad")
    assert "\n" not in str(caught.value)
    buffer.save(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, "its priorities do not fit"),
        (0, np.inf, "its priorities do not fit"),
        (0, -1.0, "its priorities do not fit"),
        (0, 0.0, "its priorities do not fit"),
        (3, np.nan, "a reward is not finite"),
        (4, 2, "a flag is neither 0 nor 1"),
        (6, 255, "a flag is neither 0 nor 1"),
        (7, 1, "its extra observations do not fit"),
    ],
)
def test_crafted_arrays_are_refused_whole(tmp_path, column, value, message):
    buffer = PrioritizedReplay(12, OBS, ACTION, 2, seed=0)
    buffer.extend(*(np.zeros((3, 2, *s), t) for s, t in ((OBS), ACTION, ((), float), OBS, ((), bool), ((), bool))))
    header, arrays = buffer._state()
    changed = [array.copy() for array in arrays]
    target = changed[column].view(np.uint8) if column >= 4 else changed[column]
    target[2] = value
    storage.write(tmp_path / "bad", header, changed)
    buffer.save(tmp_path / "before")
    with pytest.raises(ValueError, match=f"replay.load: .*bad is damaged: {message}"):
        buffer.load(tmp_path / "bad")
    buffer.save(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


# What fastrl at layout 1 gave for tests/replay/layout_1.replay, by action: obs, reward, next_obs, terminated,
# truncated, discount; and the priorities.
LAYOUT_1 = {
    5: ([0, 1, 1], 8.0, [0, 1, 3], False, False, 0.25),
    6: ([0, 1, 2], 9.5, [0, 1, 4], True, False, 0.0),
    7: ([0, 1, 3], 7.0, [0, 1, 4], True, False, 0.0),
    8: ([0, 2, 0], 12.5, [0, 2, 2], False, False, 0.25),
    9: ([0, 2, 1], 14.0, [0, 2, 3], False, False, 0.25),
    10: ([0, 2, 2], 10.0, [0, 2, 3], False, False, 0.5),
    105: ([1, 1, 2], 105.0, [1, 1, 3], False, True, 0.5),
    107: ([1, 2, 1], 161.0, [1, 2, 3], False, True, 0.25),
    108: ([1, 2, 2], 108.0, [1, 2, 3], False, True, 0.5),
    109: ([1, 3, 0], 164.0, [1, 3, 2], False, False, 0.25),
    110: ([1, 3, 1], 110.0, [1, 3, 2], False, False, 0.5),
}
PRIORITIES_1 = {107: 1.9331824779510498, 9: 1.0000005960464478, 110: 1.5157170295715332, 105: 2.626528024673462}


def test_a_file_of_the_first_layout(tmp_path):
    path = Path(__file__).with_name("layout_1.replay")
    buffer = PrioritizedReplay(14, OBS, ACTION, 2, n_step=2, gamma=0.5, seed=9)
    buffer.load(path)
    assert len(buffer) == len(LAYOUT_1) and buffer._new_priority == 2.626528024673462
    np.testing.assert_allclose(buffer.beta, 0.4 + 0.6 * 21 / 100_000, rtol=1e-12)
    held = buffer.transitions()
    for b, action in enumerate(buffer[held.indices].action.tolist()):
        item = tuple(np.asarray(column)[b].tolist() for column in buffer[held.indices])
        obs, _, reward, next_obs, terminated, truncated, _, _, discount = item
        assert (obs, reward, next_obs, terminated, truncated, discount) == LAYOUT_1[action]
        row, _ = buffer._locate("", held.indices[b : b + 1])
        assert float(buffer._tree[row][0]) == np.float32(PRIORITIES_1.get(action, 1.0))
    buffer.add(np.array([[0, 2, 3], [1, 3, 2]]), [11, 111], [11, 111], np.ones((2, 3)), [0, 0], [0, 0])
    assert buffer[held.indices].reward[-1] == 10 + 0.5 * 11  # the episode goes on
    buffer.save(tmp_path / "new")
    again = PrioritizedReplay(14, OBS, ACTION, 2, n_step=2, gamma=0.5)
    again.load(tmp_path / "new")
    assert go_on(again) == go_on(buffer)


@pytest.mark.parametrize(
    ("name", "value"),
    [("slot", [9, 0]), ("slot", "x"), ("broken", [1, 0]), ("broken", None), ("added", "x"), ("slots", 99),
     ("slots", -1), ("new_priority", float("nan")), ("new_priority", None), ("generator", None)],
)  # fmt: skip
def test_a_crafted_file_of_the_first_layout(tmp_path, name, value):
    crafted(Path(__file__).with_name("layout_1.replay"), lambda h: {**h, name: value}, tmp_path / "bad")
    buffer = PrioritizedReplay(14, OBS, ACTION, 2, n_step=2, gamma=0.5, seed=9)
    buffer.save(tmp_path / "before")
    with pytest.raises(ValueError, match="replay.load: .*bad is damaged"):
        buffer.load(tmp_path / "bad")
    buffer.save(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


def test_the_header_is_json_of_a_few_numbers(tmp_path):
    buffer = fill(ReplayBuffer(1000, OBS, ACTION, seed=0), 100)
    buffer.save(tmp_path / "file")
    with open(tmp_path / "file", "rb") as file:
        assert len(json.dumps(storage.Reader(file).header)) < 600


def test_unseeded_copies_share_the_default_generator():
    fastrl.manual_seed(3)
    buffer = fill(ReplayBuffer(20, OBS, ACTION), 30)
    text = pickle.dumps(buffer)
    first = buffer.sample(8).indices.tolist()
    assert pickle.loads(text).sample(8).indices.tolist() == first
