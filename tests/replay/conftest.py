"""Fixtures of the replay buffers' tests."""

import pytest


@pytest.fixture
def state(tmp_path):
    """The bytes of the saved file: all that decides what a buffer will do, generator included."""

    def read(buffer):
        path = tmp_path / "state"
        buffer.save(path)
        return path.read_bytes()

    return read
