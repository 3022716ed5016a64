"""Fixtures of this op's tests."""

import pytest

from .problems import fit


@pytest.fixture(params=[(40, 7), (1030, 1), (3, 300)], ids=str)
def shape(request, kernels):
    return fit(kernels, request.param[0]), request.param[1]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param
