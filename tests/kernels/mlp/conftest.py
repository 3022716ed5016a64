"""How float32 networks are compared with float64 ones."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def close(tolerance):
    """Sums of many float32 terms are compared with the largest of their array: rounding is relative to that."""

    def check(found, wanted):
        found, wanted = np.asarray(found), np.asarray(wanted)
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        t, scale = tolerance(found.dtype), max(1.0, np.abs(wanted).max(initial=0))
        np.testing.assert_allclose(found, wanted, rtol=t["rtol"], atol=t["rtol"] * scale)

    return check
