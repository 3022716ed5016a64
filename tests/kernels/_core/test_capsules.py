"""DLPack capsules that no producer should make: one error, whatever their fields, and their memory is not read."""

import numpy as np
import pytest
from capsules import Managed, Producer, Versioned, integers

INDICES = np.array([1, 0])
MEMORY = np.arange(6, dtype=np.float32)


def capsule(struct=Versioned, **fields):
    """A sound [2, 3] float32 one but for the fields given."""
    struct = struct()
    t = struct.tensor
    sound = {"device_type": 1, "ndim": 2, "code": 2, "bits": 32, "lanes": 1, "data": MEMORY.ctypes.data}
    for name, value in {**sound, "shape": integers([2, 3]), **fields}.items():
        setattr(t, name, value)
    if isinstance(struct, Versioned):
        struct.major = 1
    return Producer(struct)


@pytest.mark.parametrize("struct", [Managed, Versioned])
def test_a_sound_one(loader, struct):
    producer = capsule(struct)
    np.testing.assert_array_equal(loader.gather_rows(producer, INDICES), MEMORY.reshape(2, 3)[INDICES])
    strided = capsule(struct, strides=integers([-(2**62), 2]), shape=integers([1, 3]))  # of one row it means nothing
    np.testing.assert_array_equal(loader.gather_rows(strided, INDICES[1:]), [[0, 2, 4]])


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"shape": None}, "no shape"),
        ({"ndim": -1}, "ndim is -1"),
        ({"ndim": 2**31 - 1}, "at most 16 dimensions"),
        ({"shape": integers([2, -3])}, r"shape\[1\] is -3"),
        ({"shape": integers([2**62, 3])}, "more bytes than there are addresses"),
        ({"strides": integers([2**61, 1])}, "strides reach beyond all addresses"),
        ({"strides": integers([-(2**63), 1])}, "strides reach beyond all addresses"),
        ({"byte_offset": 2**63}, "byte_offset is beyond all addresses"),
        ({"byte_offset": 2**63 - 24}, "byte_offset is beyond all addresses"),
        ({"bits": 0}, "elements have 0 bits"),
        ({"bits": 4}, "elements have 4 bits"),
        ({"lanes": 0}, "elements have 0 bits"),
        ({"data": None}, "no data"),
        ({"device_type": 99}, "device"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
@pytest.mark.parametrize("struct", [Managed, Versioned])
def test_unsound_ones(cpp, struct, fields, what):
    for call in (
        lambda: cpp.gather_rows(capsule(struct, **fields), INDICES),
        lambda: cpp.gather_rows([MEMORY, capsule(struct, **fields)], INDICES),
        lambda: cpp.gather_rows(MEMORY.reshape(2, 3), INDICES, out=capsule(struct, **fields)),
    ):
        with pytest.raises(ValueError, match=rf"^gather_rows: (arrays|out)\S* .*{what}"):
            call()
    np.testing.assert_array_equal(MEMORY, np.arange(6))
