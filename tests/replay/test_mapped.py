"""Replay buffers in a folder: they go on bit for bit, outlive a kill, and refuse what is not theirs."""

import errno
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from replay_killed import ENVS, KINDS, forked, forks, transition, write_and_flush
from replay_worlds import ACTION, BOTH, OBS, fill

from fastrl import cli
from fastrl.replay import PrioritizedReplay, ReplayBuffer, SequenceReplay, mapped, storage

if os.name == "nt":
    pytest.skip("folders need Linux or macOS", allow_module_level=True)


def held(buffer):
    return [int(k) for k in buffer.transitions().indices]


@BOTH
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 9, 10, 40])
def test_a_closed_buffer_goes_on_bit_for_bit(tmp_path, state, cls, n_step, steps):
    options = {"n_step": n_step, "seed": 3}
    memory = fill(cls(20, OBS, ACTION, 2, **options), steps)
    buffer = fill(cls(20, OBS, ACTION, 2, storage=tmp_path / "folder", **options), steps)
    for i in range(3):
        assert state(buffer) == state(memory)
        buffer.close()
        buffer = cls(20, OBS, ACTION, 2, storage=str(tmp_path / "folder"), n_step=n_step, seed=99)
        assert state(buffer) == state(memory)
        for each in (buffer, memory):
            fill(each, 5, rng=i)
        if len(memory):
            assert buffer.sample(8).obs.tobytes() == memory.sample(8).obs.tobytes()


def test_every_kind_goes_on(tmp_path, state):
    for kind in KINDS:
        memory, buffer = KINDS[kind](seed=0), KINDS[kind](seed=0, storage=tmp_path / kind)
        for k in range(100):
            if k % 30 == 29:
                buffer.close()
                buffer = KINDS[kind](seed=0, storage=tmp_path / kind)
                assert state(buffer) == state(memory)
            for each in (memory, buffer):
                each.add(*transition(kind, k))
        assert buffer.sample(8).obs.tobytes() == memory.sample(8).obs.tobytes()


@pytest.mark.parametrize("since", [0, 1, 5, 19, 20, 21, 50])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_was_flushed_is_there_but_for_what_was_overwritten(tmp_path, kind, since):
    buffer, most = KINDS[kind](storage=tmp_path / "folder"), 20
    for k in range(43 + since):
        buffer.add(*transition(kind, k))
        if k == 42:
            buffer.flush()
    del buffer
    found = mapped.describe(tmp_path / "folder")
    for _ in range(2):  # opening it loses nothing more
        buffer = KINDS[kind](storage=tmp_path / "folder")
        check(buffer, kind, 43)
        assert held(buffer) == [k * ENVS + e for k in range(min(43 + since + 1 - most, 43), 43) for e in range(ENVS)]
        assert found["transitions"] == len(held(buffer)) and found["added since"] == since * ENVS
        del buffer
    buffer = KINDS[kind](storage=tmp_path / "folder")
    for k in range(43, 100):
        buffer.add(*transition(kind, k))
        if k in (43, 45, 99):
            check(buffer, kind, k + 1, [43])
    assert len(held(buffer)) == most * ENVS


def check(buffer, kind, end, reopened=()):
    """Every transition is whole, and they are the newest ones before `end`; episodes end where it was `reopened`."""
    batch = buffer.transitions()
    numbers = batch.indices // ENVS
    assert numbers.size == 0 or numbers.max() == end - 1
    for i, k in enumerate(numbers):
        wanted = transition(kind, k)
        for column, values in zip(batch[:6], wanted, strict=True):
            np.testing.assert_array_equal(column[i], values[batch.indices[i] % ENVS])
    # The returns of n steps; a kill may have cost the oldest step in the first environment alone.
    for k in numbers[batch.indices % ENVS == 0].tolist() if kind == "stacks" else ():
        batch = buffer[np.array([k * ENVS])]
        m = min(3, 7 - k % 7, *(at - k for at in (*reopened, end) if at > k))
        np.testing.assert_array_equal(batch.next_obs[0], transition(kind, k + m - 1)[3][0])


def killed(folder, kind, rng):
    """Kill a process in the middle of its writes; the transitions that it said it had flushed."""
    read, write = os.pipe()
    pid = forked(write_and_flush, folder, kind, write)
    os.close(write)
    with open(read, "rb", buffering=0) as pipe:
        for _ in range(int(rng.integers(1, 5))):
            flushed = pipe.read(8)
        time.sleep(rng.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        flushed = (flushed + pipe.read())[-8:]
    return int.from_bytes(flushed, "little")


def kill_and_reopen(folder, kind, rng, reopened):
    flushed = killed(folder, kind, rng)
    found, added = mapped.describe(folder), np.load(folder / "added.npy")
    with open(folder / "state", "rb") as file:
        start = storage.Reader(file).header["start"]
    buffer = KINDS[kind](storage=folder)
    counts = buffer._store.counts.copy()
    assert counts[0] >= flushed and (added >= counts).all()
    assert found["transitions"] == len(held(buffer)) and found["open"] == "no"
    first = np.minimum(np.maximum(added + 1 - 20, start), counts)  # of what the dead process had not overwritten
    assert sorted(held(buffer)) == sorted(k * ENVS + e for e in range(ENVS) for k in range(first[e], counts[e]))
    check(buffer, kind, counts[0], reopened)
    reopened.append(counts[0])


def kills(folder, kind, times):
    rng, reopened = np.random.default_rng(), []
    for _ in range(times):
        kill_and_reopen(folder, kind, rng, reopened)


@forks
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_killed_writer(tmp_path, kind):
    kills(tmp_path / "folder", kind, 2)


@forks
@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_killed_writers(tmp_path, kind):
    kills(tmp_path / "folder", kind, 10)


@forks
@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_100_killed_writers(tmp_path, kind, report):
    kills(tmp_path / "folder", kind, 100)
    report("100 kills, nothing lost that was flushed")


def count(buffer, numbers):
    """Add a transition of each number, with it as its reward."""
    for k in numbers:
        buffer.add(np.full(3, k), 0, k, np.full(3, k + 1), False, False)


@pytest.mark.parametrize("since", [0, 3])
def test_episodes_go_on_after_close_alone(tmp_path, since):
    def new():
        return ReplayBuffer(50, OBS, ACTION, n_step=3, gamma=1.0, storage=tmp_path / "folder")

    buffer = new()
    count(buffer, range(5))
    buffer.close()
    buffer = new()
    count(buffer, [5])
    assert buffer[[3, 4]].reward.tolist() == [3 + 4 + 5, 4 + 5]
    buffer.flush()
    count(buffer, range(6, 6 + since))
    del buffer
    new()  # changes nothing
    buffer = new()
    count(buffer, [100, 101])
    assert buffer[[4, 5, 6]].reward.tolist() == [4 + 5, 5, 100 + 101]


@pytest.mark.parametrize("since", [0, 3])
def test_no_window_goes_across_what_was_lost(tmp_path, since):
    buffer = SequenceReplay(50, OBS, ACTION, length=4, seed=0, storage=tmp_path / "folder")
    count(buffer, range(6))
    buffer.flush()
    count(buffer, range(6, 6 + since))
    del buffer
    buffer = SequenceReplay(50, OBS, ACTION, length=4, seed=0, storage=tmp_path / "folder")
    count(buffer, range(100, 104))
    windows = {tuple(reward[mask]) for reward, mask in zip(*buffer.sample(100)[2::7], strict=True)}
    assert windows == {(0, 1, 2, 3), (4, 5), (100, 101, 102, 103)}


def test_one_at_a_time(tmp_path):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder"), 5)
    with pytest.raises(BlockingIOError, match=r"replay: another buffer or process has it open.*folder"):
        ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder")
    assert mapped.describe(tmp_path / "folder")["open"] == "by a process"
    buffer.close()
    for use in (buffer.flush, buffer.close, buffer.transitions, lambda: buffer.sample(1), lambda: fill(buffer, 1)):
        with pytest.raises(ValueError, match="replay: the buffer is closed"):
            use()
    assert len(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder")) == 5


def test_what_a_closed_buffer_says(tmp_path):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder"), 5)
    buffer.save(tmp_path / "file")
    buffer.close()
    assert repr(buffer).startswith("fastrl.ReplayBuffer(closed, capacity=10")
    for use in (lambda: buffer.load(tmp_path / "file"), lambda: buffer.writers(1), buffer.new_episodes, buffer.clear):
        with pytest.raises(ValueError, match="^replay: the buffer is closed$"):
            use()


def test_no_thread_adds_between_the_last_flush_and_the_close(tmp_path, monkeypatch):
    buffer = ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder")
    said, leave = [], buffer._leave

    def add():
        try:
            count(buffer, [1])
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=add)
    monkeypatch.setattr(buffer, "_leave", lambda why: [thread.start(), thread.join(0.1), leave(why)])
    buffer.close()
    thread.join()
    assert said == ["replay: the buffer is closed"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_closed_buffer_maps_nothing(tmp_path):
    buffer = ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder")
    maps = lambda: Path("/proc/self/maps").read_text().count(str(tmp_path))  # noqa: E731
    assert maps() == 7
    buffer.close()
    assert maps() == 0


def test_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "fcntl", None)
    with pytest.raises(RuntimeError, match="replay: storage needs Linux or macOS"):
        ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder")
    assert os.listdir(tmp_path) == []


@forks
def test_a_forked_child_leaves_the_folder_alone(tmp_path):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder"), 5)

    def use():
        with pytest.raises(ValueError, match="belongs to the process that forked"):
            fill(buffer, 1)
        assert "closed" in repr(buffer)
        os._exit(7)

    pid = forked(use)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert len(fill(buffer, 1)) == 6
    with pytest.raises(BlockingIOError):
        ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder")


def test_copies_are_in_memory_and_load_goes_into_the_folder(tmp_path, state):
    buffer = fill(PrioritizedReplay(10, OBS, ACTION, storage=tmp_path / "folder", seed=0), 25)
    copied = pickle.loads(pickle.dumps(buffer))
    fill(copied, 3, rng=5)
    with pytest.raises(ValueError, match="the buffer is in memory"):
        copied.flush()
    copied.save(tmp_path / "file")
    buffer.load(tmp_path / "file")
    assert state(buffer) == state(copied)
    del buffer  # the load was flushed
    buffer = PrioritizedReplay(10, OBS, ACTION, storage=tmp_path / "folder")
    assert held(buffer) == held(copied)[1:]


def test_an_interrupted_load_is_said(tmp_path, monkeypatch):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder"), 5)
    buffer.save(tmp_path / "file")
    monkeypatch.setattr(type(buffer), "flush", lambda self: None)
    buffer.load(tmp_path / "file")
    del buffer
    with pytest.raises(ValueError, match="it has no state; a load into it may have been interrupted"):
        ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder")


def test_a_load_that_fails_leaves_an_empty_folder(tmp_path, monkeypatch):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder"), 5)
    buffer.save(tmp_path / "file")

    def fail(self):
        raise OSError("the disk is gone")

    monkeypatch.setattr(storage.Reader, "read_deferred", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        buffer.load(tmp_path / "file")
    del buffer
    buffer = ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder")
    assert len(buffer) == 0 and len(fill(buffer, 3)) == 3


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="the columns take 5.03 GiB, more than is free on the disk"):
        ReplayBuffer(200_000_000, OBS, ((), np.uint8), storage=tmp_path / "folder")
    assert os.listdir(tmp_path) == []


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def damages(folder):
    """What may be there instead of a good folder: of each the name, and what makes it."""

    def edit(header):
        arrays = [np.zeros(12, np.float32), np.zeros((1, 3), np.float32), np.zeros(12, bool)]
        with open(folder / "state", "rb") as file:
            reader = storage.Reader(file)
            data = np.zeros((reader.header["extras"], 12), np.uint8)
            reader.read_into([*arrays, data])
        storage.write(folder / "state", {**reader.header, **header}, [*arrays, data])

    def truncate(name, size):
        os.truncate(folder / name, size)

    def header(name, text):
        with open(folder / f"{name}.npy", "r+b") as file:
            file.seek(10)
            file.write(text.ljust(117) + b"\n")

    for name in ("obs.npy", "added.npy", "reward.npy"):
        yield f"{name} cut", lambda name=name: truncate(name, (folder / name).stat().st_size - 1), "bytes instead of"
        yield f"{name} empty", lambda name=name: truncate(name, 0), "damaged"
        yield f"{name} longer", lambda name=name: truncate(name, 10_000), "10000 bytes instead of"
        yield f"{name} a folder", lambda name=name: [os.unlink(folder / name), os.mkdir(folder / name)], "not a file|no"
        yield f"{name} objects", lambda name=name: np.save(folder / name, np.array([{}])), "instead of"
    yield "reward.npy missing", lambda: os.unlink(folder / "reward.npy"), "reward.npy is missing"
    yield "a header of (", lambda: header("reward", b"("), "reward.npy: "
    yield "a header of no text", lambda: header("added", b"\xff"), "added.npy: "
    yield "state missing", lambda: os.unlink(folder / "state"), "it has no state"
    yield "state cut", lambda: truncate("state", 300), "cut off|checksum"
    yield "state text", lambda: (folder / "state").write_text("{}" * 500), "not a file of a fastrl replay buffer"
    yield "added before", lambda: np.save(folder / "added.npy", np.array([3])), "added.npy does not fit"
    yield "added huge", lambda: np.save(folder / "added.npy", np.array([2**63 - 1])), "added.npy does not fit"
    yield "not closed", lambda: edit({"closed": "no"}), "added.npy does not fit"
    yield "no runs", lambda: edit({"start": [26]}), "start has 26"
    yield "layout 1", lambda: edit({"layout": 1, "slots": 11}), "layout 1"
    yield "generator", lambda: edit({"generator": {"seed": "x"}}), "damaged"
    yield "a flag", lambda: np.save(folder / "cut.npy", np.full(12, 2, np.uint8).view(bool)), "a flag is neither"
    yield "a reward", lambda: np.save(folder / "reward.npy", np.full(12, np.nan, np.float32)), "is not finite"


def test_damaged_folders_are_refused(tmp_path):
    good, folder = tmp_path / "good", tmp_path / "folder"
    fill(ReplayBuffer(10, OBS, ACTION, storage=good, seed=0), 25).flush()
    shutil.copytree(good, folder)
    names = [name for name, _, _ in damages(folder)]
    assert len(set(names)) == len(names) > 20
    for i, name in enumerate(names):
        shutil.rmtree(folder)
        shutil.copytree(good, folder)
        _, damage, text = list(damages(folder))[i]
        damage()
        before = snapshot(folder)
        with pytest.raises(ValueError, match=rf"replay: .*folder is .*({text})"):
            ReplayBuffer(10, OBS, ACTION, storage=folder)
        assert snapshot(folder) == before, name
    shutil.rmtree(folder)
    shutil.copytree(good, folder)
    assert len(ReplayBuffer(10, OBS, ACTION, storage=folder)) == 9


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda p: ReplayBuffer(11, OBS, ACTION, storage=p), r"capacity 10 \(here 11\)"),
        (lambda p: ReplayBuffer(10, OBS, ACTION, 2, storage=p), r"num_envs 1 \(here 2\)"),
        (lambda p: ReplayBuffer(10, OBS, ACTION, n_step=2, storage=p), r"n_step 1 \(here 2\)"),
        (lambda p: ReplayBuffer(10, ((3,), np.float64), ACTION, storage=p), "obs_dtype 'float32'"),
        (lambda p: SequenceReplay(10, OBS, ACTION, length=2, storage=p), "class 'ReplayBuffer'"),
    ],
)
def test_another_buffers_folder(tmp_path, other, difference):
    buffer = fill(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder", seed=0), 25)
    buffer.close()
    before = snapshot(tmp_path / "folder")
    with pytest.raises(ValueError, match=f"replay: .*folder is of a buffer with .*{difference}"):
        other(tmp_path / "folder")
    assert snapshot(tmp_path / "folder") == before


def test_foreign_folders(tmp_path):
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "obs.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is neither empty nor the folder of a replay buffer"):
        ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "data")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="^replay: storage must be a folder, but .*file is a file$"):
        ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"replay: storage='.*folder' cannot be made, there is no .*nowhere'$"):
        ReplayBuffer(10, OBS, ACTION, storage=str(tmp_path / "nowhere" / "folder"))
    with pytest.raises(IsADirectoryError, match="replay.load: a file of `save` is needed"):
        ReplayBuffer(10, OBS, ACTION).load(tmp_path / "data")
    assert (tmp_path / "file").read_text() == "x" and os.listdir(tmp_path / "data") == ["obs.npy"]
    (tmp_path / "empty").mkdir()
    assert len(fill(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "empty"), 3)) == 3


def test_a_killed_creation_is_no_folder(tmp_path):
    (tmp_path / ".folder.fastrl-new").mkdir()
    (tmp_path / ".folder.fastrl-new" / "obs.npy").write_text("half")
    fill(ReplayBuffer(10, OBS, ACTION, storage=tmp_path / "folder"), 3)
    assert os.listdir(tmp_path) == ["folder"]


def test_one_command_shows_what_is_in_it(tmp_path, capsys):
    buffer = fill(PrioritizedReplay(10, OBS, ACTION, storage=tmp_path / "folder"), 25)
    buffer.save(tmp_path / "file")
    buffer.close()
    for name, more in (("folder", {"open": "no", "added since": 0}), ("file", {})):
        found = mapped.describe(tmp_path / name)
        assert {"class": "PrioritizedReplay", "capacity": 10, "added": 25, "transitions": 10, **more}.items() <= (
            found.items()
        )
        assert cli.main(["info", str(tmp_path / name)]) == 0
        text = capsys.readouterr().out
        assert "PrioritizedReplay" in text and "transitions" in text
    with open(tmp_path / "file", "rb") as file:
        header = storage.Reader(file).header
    many = {**header, "config": {**header["config"], "num_envs": 2**31 - 1}}  # no list of so many is made
    storage.write(tmp_path / "many", many, [])
    with pytest.raises(ValueError, match="many is damaged: it does not count the transitions of its 2147483647 env"):
        mapped.describe(tmp_path / "many")
    storage.write(tmp_path / "large", {**header, "config": {**header["config"], "capacity": 2**64}}, [])
    with pytest.raises(ValueError, match="large is damaged: capacity is 18446744073709551616 and num_envs 1$"):
        mapped.describe(tmp_path / "large")
    Path(tmp_path / "text").write_text("x")
    for bad in ("text", "missing", "."):
        assert cli.main(["info", str(tmp_path / bad)]) == 2
        assert capsys.readouterr().err.startswith("fastrl: ")
