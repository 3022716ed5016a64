"""What the tests of this op share."""

import numpy as np
from hypothesis import strategies as st

CAPACITIES = [1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511, 512, 513, 4095, 4096, 4097]
DTYPES = [np.float32, np.float64]
capacities = st.sampled_from(CAPACITIES) | st.integers(1, 600)
dtypes = st.sampled_from(DTYPES)


def filled(kernels, priorities, **kwargs):
    tree = kernels.SumTree(len(priorities), dtype=priorities.dtype.type, **(kwargs or {"seed": 0}))
    tree.update(np.arange(len(priorities)), priorities)
    return tree
