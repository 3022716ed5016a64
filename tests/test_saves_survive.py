"""Every save while its process is killed, its disk is full, it may not write, or signals arrive; forks beside threads.

What is there afterwards is one whole state, that of before or a later one, and nothing of ours lies beside it.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

if not hasattr(os, "fork"):
    pytest.skip("needs fork and POSIX signals", allow_module_level=True)

import resource

from fastrl import _files
from fastrl.agents import checkpoint, logs
from fastrl.agents.config import InputError
from fastrl.cli import runs
from fastrl.replay import PrioritizedReplay

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SIZE = 20_000  # numbers in a state: 160 kB, several writes


class Checkpoint:
    """The number that is saved is in each of its files."""

    def __init__(self, folder):
        self.path = folder / "checkpoint"

    def save(self, n):
        replay = lambda path: path.write_text(str(n))  # noqa: E731
        checkpoint.save_checkpoint(self.path, {"n": n}, {"n": n}, {"w": np.full(SIZE, float(n))}, replay)

    def read(self):
        with checkpoint.load_checkpoint(self.path) as found:
            n = found.state["n"]
            assert found.config == {"n": n} and (found.tensors["w"] == n).all() and found.replay.read() == b"%d" % n
            return n


class Replay:
    def __init__(self, folder):
        self.path = folder / "buffer"

    def buffer(self):
        return PrioritizedReplay(SIZE // 20, ((20,), np.float32), ((), np.int64), seed=0)

    def save(self, n):
        buffer, k = self.buffer(), 50
        many = np.full((k, 1, 20), n, np.float32)
        no = np.zeros((k, 1), bool)
        buffer.extend(many, no.astype(np.int64), many[..., 0], many, no, no)
        buffer.save(self.path)

    def read(self):
        buffer = self.buffer()
        buffer.load(self.path)
        held = buffer.transitions()
        n = int(held.reward[0])
        assert len(held.reward) == 50 and (held.reward == n).all() and (held.obs == n).all()
        return n


class Run:
    """run.json"""

    def __init__(self, folder):
        self.folder = folder

    def save(self, n):
        runs.write(self.folder, {"n": n, "history": [n] * 2000, "end": n})

    def read(self):
        found = runs.read(self.folder)
        assert found["history"] == [found["n"]] * 2000 and found["end"] == found["n"]
        return found["n"]


class Table:
    """progress.csv, opened anew for each row as a resumed run does: rows 1 .. n."""

    def __init__(self, folder):
        self.path = folder / "progress.csv"

    def save(self, n):
        table = logs._Table(self.path, ["step", "value", "text"], n - 1)
        table.write({"step": n, "value": n / 3, "text": "x" * 500})
        table.close()

    def read(self):
        rows = logs.complete_rows(self.path.read_text())
        assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
        assert all(float(row["value"]) == int(row["step"]) / 3 for row in rows)
        return len(rows)


KINDS = [Checkpoint, Replay, Run, Table]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def saver(request, tmp_path):
    (tmp_path / "here").mkdir()
    saver = request.param(tmp_path / "here")
    saver.save(1)
    saver.names = set(os.listdir(tmp_path / "here"))
    saver.folder = tmp_path / "here"
    return saver


def in_child(function):
    """Call it in a forked child; its exit status, 0 if it returned."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        function()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(1)


def kill(saver, rng):
    """A child saves on and on, and is killed in the middle; the number that it last said it had saved."""
    read, write = os.pipe()
    first = saver.read() + 1
    pid = os.fork()
    if not pid:
        try:
            for n in range(first, first + 1000):
                saver.save(n)
                os.write(write, n.to_bytes(4, "little"))
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb", buffering=0) as pipe:
        said = pipe.read(4)
        time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = (said + pipe.read())[-4:]
    return int.from_bytes(said, "little")


def kills(saver, count):
    rng = np.random.default_rng()
    for _ in range(count):
        said = kill(saver, rng)
        found = saver.read()
        assert said <= found <= said + 1
        if found > 100:  # the table becomes long
            saver.save(1)
    saver.save(saver.read() + 1)
    assert set(os.listdir(saver.folder)) == saver.names


def test_killed_saves(saver):
    kills(saver, 3)


@pytest.mark.long
def test_saves_killed_at_100_points(saver, report):
    kills(saver, 100)
    report("100 kills, nothing lost")


def fails(saver, before=lambda: None):
    """In a child: a save must raise one clear error."""

    def attempt():
        before()
        try:
            saver.save(2)
        except (InputError, OSError) as error:
            assert "\n" not in str(error) and str(error)
            return
        raise AssertionError("the save should have failed")

    assert in_child(attempt) == 0
    assert saver.read() == 1 and set(os.listdir(saver.folder)) == saver.names


@pytest.mark.parametrize("size", [0, 10, 4000, 100_000])
def test_a_file_that_may_not_grow(saver, size):
    if size > {Checkpoint: 1e6, Replay: 5000, Run: 5000, Table: 600}[type(saver)]:
        pytest.skip("the file is smaller")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    fails(saver, limit)


def test_a_folder_that_may_not_be_written_to(saver, tmp_path):
    for path in (tmp_path, *tmp_path.parents):  # others may look at what is in it
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o005:
                path.chmod(path.stat().st_mode | 0o055)
    saver.folder.chmod(0o555)

    def as_nobody():
        if os.getuid() == 0:  # who may write anywhere
            os.setgid(65534)
            os.setuid(65534)

    fails(saver, as_nobody)
    saver.folder.chmod(0o755)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_full_disk(kind, tmp_path, report):
    """A disk of 800 kB: after each file that fills it up a bit more a save is whole, or fails and leaves the last."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        saver, failed, n = kind(disk), 0, 1
        saver.save(1)
        names = set(os.listdir(disk))
        for k in range(100):
            (disk / f"fill{k}").touch()
            with contextlib.suppress(OSError), open(disk / f"fill{k}", "wb") as file:
                file.write(bytes(8000))
            try:
                saver.save(n + 1)
                n += 1
            except (InputError, OSError) as error:
                assert "No space left" in str(error) or getattr(error, "errno", 0) == 28, error
                failed += 1
                n = saver.read() if kind is Table else n  # a row is whole, or is not there
            assert saver.read() == n
        assert failed and {name for name in os.listdir(disk) if not name.startswith("fill")} == names
        report(f"{failed} of 100 saves failed for want of space, nothing lost")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_signals_while_saving_and_loading(saver):
    """System calls that a signal interrupts are made again."""
    count = 0

    def seen(*_):
        nonlocal count
        count += 1

    def work():
        signal.signal(signal.SIGALRM, seen)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for n in range(2, 12):
            saver.save(n)
            assert saver.read() == n
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert count > 0

    assert in_child(work) == 0
    assert saver.read() == 11 and set(os.listdir(saver.folder)) == saver.names


def forks_beside_threads(folder, seconds):
    """Threads that add, draw, weigh and save one buffer, while children draw from their copies; calls and children."""
    buffer = PrioritizedReplay(500, ((3,), np.float32), ((), np.int64), seed=0)
    row = np.zeros(3, np.float32), 0, 1.0, np.zeros(3, np.float32), False, False
    for _ in range(100):
        buffer.add(*row)
    stop, errors, calls = threading.Event(), [], [0, 0, 0, 0]

    def forever(i, call):
        try:
            while not stop.is_set():
                call()
                calls[i] += 1
        except BaseException as error:
            errors.append(error)

    def draw():
        batch = buffer.sample(64)
        buffer.update_priorities(batch.indices, np.abs(np.random.default_rng(0).normal(size=64)))

    work = [lambda: buffer.add(*row), draw, draw, lambda: buffer.save(folder / "buffer")]
    threads = [threading.Thread(target=forever, args=item) for item in enumerate(work)]
    for thread in threads:
        thread.start()
    began, children = time.monotonic(), 0
    try:
        while time.monotonic() < began + seconds and not errors:

            def child():
                signal.alarm(60)  # a child that hangs dies
                for _ in range(5):
                    draw()
                    buffer.add(*row)

            assert in_child(child) == 0
            children += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads) and children and all(calls)
    return sum(calls), children


def test_forks_beside_threads(tmp_path):
    forks_beside_threads(tmp_path, 1)


@pytest.mark.long
def test_forks_beside_threads_for_a_minute(tmp_path, report):
    calls, children = forks_beside_threads(tmp_path, 60)
    report(f"{calls} calls of 4 threads, {children} children, none hung")


def test_leftovers_of_others_stay(tmp_path):
    """What a save removes are its own leftovers, and only those of the dead."""
    (tmp_path / ".run.json.0123456789abcdef.fastrl-tmp").write_text("of a dead process")
    (tmp_path / ".other.json.0123456789abcdef.fastrl-tmp").write_text("of another file")
    new, file = _files.temporary(tmp_path / "run.json", None)
    runs.write(tmp_path, {"n": 1})
    with file:
        assert set(os.listdir(tmp_path)) == {"run.json", ".other.json.0123456789abcdef.fastrl-tmp", new.name}
