"""Several processes write into one replay buffer: nothing is torn or lost, whoever is killed."""

import copy
import errno
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from replay_killed import ENVS, KINDS, add_some, forked, forks, transition, write_shared
from replay_worlds import ACTION, OBS

from fastrl import _backend
from fastrl.replay import PrioritizedReplay, ReplayBuffer, SequenceReplay, lanes

if os.name == "nt":
    pytest.skip("writers need Linux or macOS", allow_module_level=True)


pytestmark = pytest.mark.skipif(_backend._C is None, reason="writers need the compiled extension")


def steps(rng, n, envs):
    """Arguments of `add` for n steps, with ends and steps left out."""
    for _ in range(n):
        ends, kept = rng.random((2, envs)) < 0.2, rng.random(envs) < 0.8
        yield (
            rng.standard_normal((envs, 3), np.float32), rng.integers(4, size=envs), rng.random(envs),
            rng.standard_normal((envs, 3), np.float32), ends[0], ends[1], kept,
        )  # fmt: skip


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplay, SequenceReplay])
def test_writers_give_what_add_gives(cls, ready):
    options = {"length": 3} if cls is SequenceReplay else {}
    one, shared = (cls(60, OBS, ACTION, 6, n_step=3, seed=0, **options) for _ in range(2))
    writers = shared.writers(3, steps=7)
    for i, arguments in enumerate(steps(np.random.default_rng(0), 50, 6)):
        one.add(*arguments)
        for w, writer in enumerate(writers):
            part = [x[2 * w : 2 * w + 2] for x in arguments]
            writer.add(*(part if ready else map(np.ndarray.tolist, part)))
        if i % 5 == 4:
            assert shared.receive() == 15
    a, b = one.transitions(), shared.transitions()
    for name, x, y in zip(a._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert len(one) == len(shared)
    for x, y in zip(one[a.indices], shared[a.indices], strict=True):  # with n steps
        np.testing.assert_array_equal(x, y)
    assert shared._tree.state_dict()["priorities"].tolist() == one._tree.state_dict()["priorities"].tolist()


def test_one_environment_needs_no_axis_and_frames_and_dicts_work():
    space = {"a": ((2, 3), np.uint8), "b": ((2,), np.float64)}
    buffer = ReplayBuffer(10, space, ACTION, 2, frame_stack=2)
    a, b = buffer.writers(2)
    frames = lambda k: {"a": np.array([[k] * 3, [k + 1] * 3], np.uint8), "b": np.array([k, k + 1.0])}  # noqa: E731
    for k in range(4):
        a.add(frames(k), k, 1, frames(k + 1), False, np.bool_(k == 3))
        b.add(frames(k), [k], [1.0], frames(k + 1), [False], [False])
    batch = buffer.transitions()
    assert batch.action.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and batch.truncated.tolist() == [False] * 6 + [True, False]
    for i, k in enumerate(batch.action):
        for key, value in frames(int(k) + 1).items():
            np.testing.assert_array_equal(batch.next_obs[key][i], value)
    with pytest.raises(ValueError, match=r"replay.add: next_obs must be obs shifted by one frame"):
        a.add(frames(1), 1, 1, frames(3), False, False)
    assert buffer.receive() == 0


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"obs": np.zeros((2, 4))}, ValueError, r"obs must have shape \(2, 3\), got \(2, 4\)"),
        ({"reward": np.array([0, np.nan])}, ValueError, r"reward\[1\] must be finite"),
        ({"reward": np.array([0, 1e300])}, ValueError, r"reward\[1\] must be finite in float32"),
        ({"terminated": None}, (TypeError, ValueError), "terminated must be"),
        ({"action": np.zeros(2)}, ValueError, "action must have dtype int64"),
        ({"mask": np.zeros(3, bool)}, ValueError, "mask must have shape"),
    ],
)
def test_bad_items(change, error, text):
    buffer = ReplayBuffer(10, OBS, ACTION, 2)
    (writer,) = buffer.writers(1)
    good = {"obs": np.zeros((2, 3), np.float32), "action": np.zeros(2, int), "reward": np.zeros(2)}
    good |= {"next_obs": good["obs"], "terminated": np.zeros(2, bool), "truncated": np.zeros(2, bool)}
    with pytest.raises(error, match=f"replay.add: {text}"):
        writer.add(**{**good, **change})
    assert buffer.receive() == 0 and len(buffer) == 0
    writer.add(**good)
    assert buffer.receive() == 1 and len(buffer) == 2


def test_bad_writers(monkeypatch):
    buffer = ReplayBuffer(10, OBS, ACTION, 6)
    with pytest.raises(ValueError, match=r"replay.writers: n must divide num_envs = 6, got 4"):
        buffer.writers(4)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(OSError, match=r"replay.writers: 3 lanes of .* bytes in .*: No space left"):
            buffer.writers(3)
    buffer.writers(2)
    with pytest.raises(ValueError, match=r"replay.writers: the buffer has writers already"):
        buffer.writers(2)


def lane_of(writer):
    return Path(writer.__reduce__()[1][0])


@forks
def test_nothing_is_left_behind():
    buffer = ReplayBuffer(10, OBS, ACTION)
    (writer,) = buffer.writers(1)
    path = lane_of(writer)
    assert path.exists()
    read, write = os.pipe()

    def die():
        killed = ReplayBuffer(10, OBS, ACTION)
        os.write(write, os.fsencode(lane_of(killed.writers(1)[0])))
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(die), 0)
    left = Path(os.fsdecode(os.read(read, 1000)))
    del buffer
    assert not path.exists()
    other = ReplayBuffer(10, OBS, ACTION)  # what the killed one left is removed
    assert lane_of(other.writers(1)[0]).exists() and left.parent == path.parent and not left.exists()
    os.close(read), os.close(write)
    with pytest.raises(RuntimeError, match="the buffer of this writer is gone"):
        writer.add(np.zeros(3), 0, 0.0, np.zeros(3), False, False)


def test_a_spawned_process():
    buffer = ReplayBuffer(100, OBS, ACTION)
    (writer,) = buffer.writers(1, steps=4)
    process = multiprocessing.get_context("spawn").Process(target=add_some, args=(writer, 30))
    process.start()
    while process.is_alive():
        buffer.receive()
    buffer.receive()
    assert buffer.transitions().reward.tolist() == list(range(30)) and process.exitcode == 0


@forks
def test_a_writer_is_one_processs_and_a_dead_buffer_is_noticed():
    buffer = ReplayBuffer(100, OBS, ACTION)
    (writer,) = buffer.writers(1, steps=3)
    read, write = os.pipe()
    pid = forked(lambda: [add_some(writer, 1), os.write(write, b"."), time.sleep(60)])
    os.read(read, 1)
    with pytest.raises(BlockingIOError, match="another process uses this writer"):
        add_some(writer, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    add_some(writer, 2)
    buffer._lanes._lanes[0][0][0][0] = pid  # as if the buffer were that process's
    with pytest.raises(RuntimeError, match="the process of the buffer has ended"):
        add_some(writer, 1)
    assert buffer.receive() == 3
    os.close(read), os.close(write)


@pytest.mark.parametrize("end", ["close", "del"])
def test_a_writer_of_a_closed_buffer_does_not_wait(tmp_path, end):
    held = [ReplayBuffer(100, OBS, ACTION, storage=tmp_path / "folder" if end == "close" else None)]
    (writer,) = held[0].writers(1, steps=2)
    add_some(writer, 2)
    said = []

    def add():
        while len(said) < 2:
            try:
                add_some(writer, 3)
            except RuntimeError as error:
                said.append(str(error))

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    buffer = held.pop()
    if end == "close":
        buffer.close()
    del buffer
    thread.join(10)
    assert said == ["replay.add: the buffer of this writer is closed or gone"] * 2


def test_close_takes_in_what_writers_add_while_it_flushes(tmp_path, monkeypatch):
    buffer = ReplayBuffer(100, OBS, ACTION, storage=tmp_path / "folder")
    (writer,) = buffer.writers(1)
    flush, counts = buffer._flush, []

    def flush_and_add(**options):
        flush(**options)
        counts.append(len(buffer))
        if len(counts) == 1:
            add_some(writer, 3)

    monkeypatch.setattr(buffer, "_flush", flush_and_add)
    add_some(writer, 2)
    buffer.close()
    assert counts == [2, 5] and len(ReplayBuffer(100, OBS, ACTION, storage=tmp_path / "folder")) == 5


@forks
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_zombie_is_dead():
    pid = forked(lambda: os._exit(0))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not lanes._is_alive(pid) and lanes._is_alive(os.getpid())
    os.waitpid(pid, 0)


@forks
def test_a_writer_stays_taken_whatever_else_its_process_does():
    buffer = ReplayBuffer(100, OBS, ACTION)
    (writer,) = buffer.writers(1)
    add_some(writer, 1)
    ReplayBuffer(10, OBS, ACTION).writers(1)

    def use():
        with pytest.raises(BlockingIOError, match="another process uses this writer"):
            add_some(writer, 1)
        os._exit(7)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(use), 0)[1]) == 7


def test_one_copy_of_a_writer_at_a_time():
    buffer = ReplayBuffer(100, OBS, ACTION)
    (writer,) = buffer.writers(1)
    one, other = pickle.loads(pickle.dumps(writer)), copy.deepcopy(writer)
    add_some(one, 1)
    for _ in range(2):
        with pytest.raises(BlockingIOError, match="another copy of this writer is used here"):
            add_some(other, 1)
    add_some(one, 1)
    del one
    add_some(other, 1)
    assert buffer.receive() == 3


def test_writers_leave_no_open_files():
    def use():
        buffer = ReplayBuffer(100, OBS, ACTION)
        add_some(buffer.writers(1)[0], 1)

    gc.collect()
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        use()
    assert len(os.listdir("/dev/fd")) == before


def count(writer, k, mask=None, episode_start=None):
    x = np.full((2, 3), k, np.float32)
    writer.add(x, [0, 0], [k, k], x + 1, [False, False], [False, False], mask, episode_start)


def returns(buffer, env):
    numbers = buffer.transitions().indices
    return buffer[numbers[numbers % 2 == env]].reward.tolist()


@pytest.mark.parametrize("what", ["new_episodes", "clear", "load"])
def test_what_begins_episodes_does_so_for_writers(tmp_path, what):
    buffer = ReplayBuffer(100, OBS, ACTION, 2, n_step=3, gamma=1.0)
    (writer,) = buffer.writers(1)
    count(writer, 1), count(writer, 2)
    if what == "load":
        buffer.save(tmp_path / "file")
        count(writer, 5)
        buffer.load(tmp_path / "file")
    else:
        getattr(buffer, what)()  # the steps that wait belong to what was before
    before = [] if what == "clear" else [1 + 2, 2]
    assert returns(buffer, 0) == before
    count(writer, 10, mask=[True, False], episode_start=[False, False])
    buffer.receive()
    count(writer, 20, episode_start=[False, False]), count(writer, 40)
    buffer.receive()
    assert returns(buffer, 0) == [*before, 10 + 20 + 40, 20 + 40, 40]
    assert returns(buffer, 1) == [*before, 20 + 40, 40]


def test_an_environment_begins_with_its_first_step_that_is_not_left_out():
    buffer = ReplayBuffer(100, OBS, ACTION, 2, n_step=3, gamma=1.0)
    writer = copy.deepcopy(buffer.writers(1)[0])
    count(writer, 1)
    writer = None
    writer = copy.deepcopy(buffer._lanes.writers[0])
    count(writer, 10, mask=[True, False])
    count(writer, 20, episode_start=[False, False])
    buffer.receive()
    assert returns(buffer, 0) == [1, 10 + 20, 20] and returns(buffer, 1) == [1, 20]


def test_a_failed_receive_loses_nothing(monkeypatch):
    buffer = ReplayBuffer(100, OBS, ACTION, 2, n_step=3, gamma=1.0)
    (writer,) = buffer.writers(1)
    count(writer, 1), count(writer, 2)
    ring = buffer._ring
    buffer._ring = None  # whose `write` raises
    with pytest.raises(AttributeError):
        buffer.receive()
    buffer._ring = ring

    def fail(*_):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(buffer, "_publish", fail)
        with pytest.raises(MemoryError, match="no room"):  # once they are in the ring
            buffer.receive()
    count(writer, 4)
    assert buffer.receive() == 1
    assert returns(buffer, 0) == [1 + 2, 2, 4] and len(buffer) == 6


@forks
def test_a_forked_copy_of_the_buffer_receives_nothing():
    buffer = ReplayBuffer(100, OBS, ACTION)
    (writer,) = buffer.writers(1)
    add_some(writer, 3)
    pid = forked(lambda: os._exit(10 + buffer.receive()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10
    assert buffer.receive() == 3


def kill_many(kind, kills):
    """Kill writers at any time, and start others in their place, while the buffer samples."""
    rng = np.random.default_rng()
    buffer = KINDS[kind](seed=0)
    writers, counts = buffer.writers(ENVS, steps=5), [0] * ENVS
    children = [None] * ENVS
    starts = {(e, 0) for e in range(ENVS)}

    def start(e):
        read, write = os.pipe()
        os.set_blocking(read, False)
        pid = forked(write_shared, writers[e], e, kind, counts[e], write)
        os.close(write)
        children[e] = pid, read

    def kill(e):
        pid, read = children[e]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        buffer.receive()
        with open(read, "rb", buffering=0) as pipe:
            returned = len(pipe.read() or b"")
        before, counts[e] = counts[e], int(buffer._store.counts[e])
        assert counts[e] - before in (returned, returned + 1)  # the last one was committed, and nobody told
        starts.add((e, counts[e]))

    for e in range(ENVS):
        start(e)
    for _ in range(kills):
        for _ in range(int(rng.integers(1, 6))):
            time.sleep(rng.random() * 0.004)
            buffer.receive()
            if len(buffer):
                batch = buffer.sample(8)
                if kind != "apart":
                    buffer.update_priorities(batch.indices, rng.random((8, 3) if kind == "sequences" else 8))
        e = int(rng.integers(ENVS))
        kill(e)
        batch = buffer.transitions()
        for i, number in enumerate(batch.indices):  # whole, and each in its place
            wanted = transition(kind, int(number) // ENVS)
            for column, values in zip(batch[:6], wanted, strict=True):
                np.testing.assert_array_equal(column[i], values[number % ENVS])
        start(e)
    for e in range(ENVS):
        kill(e)
    cut = {(int(n) % ENVS, int(n) // ENVS) for n in batch_of_cuts(buffer)}
    held = {(int(n) % ENVS, int(n) // ENVS) for n in buffer.transitions().indices}
    assert starts & held <= cut  # a new process begins episodes
    return buffer, counts


def batch_of_cuts(buffer):
    numbers = buffer.transitions().indices
    rows, _ = buffer._ring.locate(numbers)
    return numbers[buffer._store.columns[5][rows]]


@forks
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_killed_writers(kind):
    buffer, counts = kill_many(kind, 5)
    assert buffer._store.counts.tolist() == counts and sum(counts) > 5


@forks
@pytest.mark.slow
def test_100_killed_writers():
    buffer, counts = kill_many("plain", 100)
    assert buffer._store.counts.tolist() == counts and sum(counts) > 100
