"""The container of save / load: what is on the disk after a crash, a full disk or in a read-only folder."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest

from fastrl._files import locked
from fastrl.replay import storage

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX files")

ARRAYS = [np.arange(10.0), np.ones((3, 4), np.bool_), np.zeros((0, 5), np.float16), np.array([[1, 2]], np.uint8)]


def read(path, arrays=ARRAYS):
    with open(path, "rb") as file:
        reader = storage.Reader(file)
        found = [np.full_like(array, 99) for array in arrays]
        reader.read_into(found)
    return reader.header, found


def test_round_trip(tmp_path):
    header = {"a": [1, 2.5, None, True], "seed": 2**64 - 1, "x": 0.1 + 0.2}
    storage.write(tmp_path / "file", header, ARRAYS)
    found, arrays = read(tmp_path / "file")
    assert found == header
    for array, wanted in zip(arrays, ARRAYS, strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert os.listdir(tmp_path) == ["file"]


def test_arrays_larger_than_a_chunk(tmp_path):
    array = np.random.default_rng(0).integers(256, size=3 * (1 << 20) + 17, dtype=np.uint8)
    storage.write(tmp_path / "file", {}, [array])
    np.testing.assert_array_equal(read(tmp_path / "file", [array])[1][0], array)


def version_1(header, arrays):
    """A file as it was before 0.2, each part behind the SHA-256 of all before it."""
    text = json.dumps(header).encode()
    start = b"\x93fastrl\x01" + len(text).to_bytes(8, "little") + text
    start += hashlib.sha256(start).digest() + b"".join(array.tobytes() for array in arrays)
    return start + hashlib.sha256(start).digest()


def test_files_of_version_1_are_read_and_their_checksums_too(tmp_path):
    arrays = [*ARRAYS, np.random.default_rng(0).integers(256, size=3 << 20, dtype=np.uint8)]
    good, path = version_1({"n": 1}, arrays), tmp_path / "file"
    path.write_bytes(good)
    header, found = read(path, arrays)
    assert header == {"n": 1}
    for array, wanted in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(array, wanted)
    at = 16 + len(b'{"n": 1}')
    for i in (16, at, at + 31, at + 32, len(good) // 2, len(good) - 33, len(good) - 32, len(good) - 1):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        with pytest.raises(ValueError, match=f"checksum of its {'header' if i < at + 32 else 'data'} does not fit"):
            read(path, arrays)
    for cut in (good[:-1], good[:-32], good[:at]):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match="^damaged"):
            read(path, arrays)


@pytest.mark.parametrize("n", [0, 1, 5, (1 << 20) + 3])
def test_files_mixed_out_of_two_are_refused(tmp_path, n):
    """Of one size each: the header of one before the data of another, and the other way round; halves; a page."""
    rng, files = np.random.default_rng(0), []
    for k in range(2):
        storage.write(tmp_path / "file", {"k": k}, [rng.integers(256, size=(2 << 20) + 5, dtype=np.uint8)])
        files.append((tmp_path / "file").read_bytes())
    at = 20 + len(b'{"k": 0}') + n
    page = 4096 * (1 + at // 4096)
    for a, b in (files, files[::-1]):
        for mixed in (a[:at] + b[at:], a[:page] + b[page : page + 4096] + a[page + 4096 :], a[:-4] + b[-4:]):
            (tmp_path / "file").write_bytes(mixed)
            with pytest.raises(ValueError, match="^damaged: the checksum of its data does not fit$"):
                read(tmp_path / "file", [np.empty((2 << 20) + 5, np.uint8)])


def test_the_checksums_are_those_of_zlib(tmp_path):
    storage.write(tmp_path / "file", {}, [np.arange(5, dtype=np.uint8)])
    start = b"\x93fastrl\x02" + bytes([2]) + bytes(7) + b"{}"
    data = bytes(range(5))
    sums = [zlib.crc32(x).to_bytes(4, "little") for x in (start, start + data)]
    assert (tmp_path / "file").read_bytes() == start + sums[0] + data + sums[1]


def test_without_a_thread_the_caller_sums(tmp_path, monkeypatch):
    arrays = [*ARRAYS, np.random.default_rng(0).integers(256, size=3 << 20, dtype=np.uint8)]
    storage.write(tmp_path / "a", {"n": 1}, arrays)

    def none(*_, **__):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading._start_new_thread", none, raising=False)
    monkeypatch.setattr("threading._start_joinable_thread", none, raising=False)  # of Python 3.13
    with pytest.raises(RuntimeError):
        threading.Thread(target=none).start()
    storage.write(tmp_path / "b", {"n": 1}, arrays)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(read(tmp_path / "b", arrays)[1][-1], arrays[-1])
    content = bytearray((tmp_path / "b").read_bytes())
    content[-50] ^= 1
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(ValueError, match="damaged: the checksum of its data does not fit"):
        read(tmp_path / "b", arrays)


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in "ab":
        storage.write(tmp_path / name, {"n": 1}, ARRAYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_arrays_of_another_size(tmp_path):
    storage.write(tmp_path / "file", {}, ARRAYS)
    for arrays in (ARRAYS[:-1], [*ARRAYS, np.zeros(1)]):
        with pytest.raises(ValueError, match="damaged: it has .* bytes instead of"):
            read(tmp_path / "file", arrays)


def test_a_newer_format_is_named(tmp_path):
    storage.write(tmp_path / "file", {}, ARRAYS)
    content = bytearray((tmp_path / "file").read_bytes())
    content[7] = 3
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="of format version 3, this fastrl reads up to 2"):
        read(tmp_path / "file")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, function):
    storage.write(tmp_path / "file", {"n": 1}, ARRAYS)

    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write(tmp_path / "file", {"n": 2}, ARRAYS)
    assert os.listdir(tmp_path) == ["file"] and read(tmp_path / "file")[0] == {"n": 1}


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    storage.write(tmp_path / "file", {"n": 1}, ARRAYS)
    with pytest.raises(KeyboardInterrupt), storage.atomic_write(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["file"] and read(tmp_path / "file")[0] == {"n": 1}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_leaves_the_old_file(tmp_path):
    """The temporary file stays behind, does not hide the old file, and is gone after the next write."""
    storage.write(tmp_path / "file", {"n": 1}, ARRAYS)
    code = (
        "import os, signal, sys\n"
        "from fastrl.replay import storage\n"
        "with storage.atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2 and read(tmp_path / "file")[0] == {"n": 1}
    storage.write(tmp_path / "file", {"n": 2}, ARRAYS)
    assert read(tmp_path / "file")[0] == {"n": 2}
    assert os.listdir(tmp_path) == ["file"]


@posix
def test_only_temporary_files_of_dead_writers_are_removed(tmp_path):
    """Those of a write under way, of another file and of other programs stay."""
    others = [".file.17.tmp", ".file.0123456789abcdef.fastrl-tmp.bak", ".other.0123456789abcdef.fastrl-tmp"]
    for name in [*others, ".file.0123456789abcdef.fastrl-tmp"]:
        (tmp_path / name).write_text("left behind")
    with storage.atomic_write(tmp_path / "file") as file:
        storage.write(tmp_path / "file", {"n": 1}, ARRAYS)
        assert sorted(set(os.listdir(tmp_path)) - set(others))[-1] == "file"
        file.write(b"the last one wins")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "file"])
    assert (tmp_path / "file").read_bytes() == b"the last one wins"


@posix
def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda n: "f" * 2 * n)
    (tmp_path / "victim").write_text("keep")
    (tmp_path / f".file.{'f' * 16}.fastrl-tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        storage.write(tmp_path / "file", {}, ARRAYS)
    assert (tmp_path / "victim").read_text() == "keep" and not (tmp_path / "file").exists()


@posix
def test_a_symbolic_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("there", "dangling"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "there").write_bytes(b"earlier")
    for name in ("there", "dangling"):
        for n in range(2):
            storage.write(tmp_path / name, {"n": n}, ARRAYS)
            assert (tmp_path / name).is_symlink() and read(tmp_path / "disk" / name)[0] == {"n": n}
    assert sorted(os.listdir(tmp_path / "disk")) == ["dangling", "there"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400])
def test_the_mode_of_a_file_is_kept(tmp_path, mode):
    storage.write(tmp_path / "file", {"n": 1}, ARRAYS)
    (tmp_path / "file").chmod(mode)
    storage.write(tmp_path / "file", {"n": 2}, ARRAYS)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    (tmp_path / "file").chmod(0o600)
    assert read(tmp_path / "file")[0] == {"n": 2}


@posix
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        before = os.stat(path)
        with pytest.raises(OSError, match="not a regular file"):
            storage.write(path, {}, ARRAYS)
        assert os.path.samestat(os.stat(path), before)
    with pytest.raises(IsADirectoryError):
        storage.write(tmp_path, {}, ARRAYS)


@pytest.mark.parametrize("text", [b"[1]", b"3", b"{", b"[" * 100_000, b"\xff", b'{"a": ' * 100_000])
def test_a_header_that_is_no_json_object(tmp_path, text):
    start = storage.MAGIC + len(text).to_bytes(8, "little") + text
    (tmp_path / "file").write_bytes(start + zlib.crc32(start).to_bytes(4, "little") + bytes(4))
    with pytest.raises(ValueError, match="^damaged: its header is no JSON object$"):
        read(tmp_path / "file", [])


@posix
def test_a_lock_is_for_one_and_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from fastrl._files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert path.exists()  # left behind, and nobody's
    with locked(path, wait=False), pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    assert not path.exists()


def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    storage.write(folder / "file", {"n": 1}, ARRAYS)
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(PermissionError, match="file"):
            storage.write(folder / "file", {"n": 2}, ARRAYS)
        assert os.listdir(folder) == ["file"] and read(folder / "file")[0] == {"n": 1}
    finally:
        folder.chmod(0o700)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotADirectoryError):
        storage.write(tmp_path / "file" / "deeper", {}, ARRAYS)
