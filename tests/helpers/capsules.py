"""DLPack capsules with any fields, those that no producer should have among them."""

import ctypes


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("ctx", ctypes.c_void_p), ("deleter", DELETER)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("ctx", ctypes.c_void_p), ("deleter", DELETER),
        ("flags", ctypes.c_uint64), ("tensor", Tensor),
    ]  # fmt: skip


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Producer:
    """Exports a `Managed` or `Versioned` struct, which it keeps alive; `deleted` counts the calls of its deleter."""

    def __init__(self, struct, *, name=None, says=(1, 0), deleter=True):
        self.struct, self.says = struct, says
        self.exported = self.deleted = 0
        self.name = name or (b"dltensor_versioned" if isinstance(struct, Versioned) else b"dltensor")
        self.deleter = DELETER(self.delete)
        struct.deleter = self.deleter if deleter else DELETER(0)

    def delete(self, pointer):
        self.deleted += 1

    def __dlpack__(self, **kwargs):
        self.exported += 1
        return new_capsule(ctypes.addressof(self.struct), self.name, None)

    def __dlpack_device__(self):
        return self.says


def integers(values):
    """An array of int64 for `shape` or `strides`."""
    return (ctypes.c_int64 * max(len(values), 1))(*values)
