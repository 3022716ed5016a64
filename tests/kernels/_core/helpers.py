"""What the tests of this op share."""

import numpy as np

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
INDICES = np.array([3, 0, 3], np.int64)


class Producer:
    """Nothing but the DLPack protocol."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OldProducer(Producer):
    """From before DLPack 1.0: no keywords but stream, and an unversioned capsule."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


class CapsuleOnly:
    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **kwargs):
        return self.capsule

    def __dlpack_device__(self):
        return (1, 0)
