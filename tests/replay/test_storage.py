"""The container of save / load: what is on the disk after a crash, a full disk or in a read-only folder."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fastrl.replay import storage

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
    content[7] = 2
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="of format version 2, this fastrl reads 1"):
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
    """The temporary file stays behind, and neither hides the old file nor hinders the next write."""
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


def test_a_temporary_file_of_the_same_process_number(tmp_path):
    (tmp_path / f".file.{os.getpid()}.tmp").write_bytes(b"left behind" * 1000)
    storage.write(tmp_path / "file", {"n": 1}, ARRAYS)
    assert os.listdir(tmp_path) == ["file"] and read(tmp_path / "file")[0] == {"n": 1}


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
