import pytest

from ..backends import load_kernels
from .helpers import with_keywords


@pytest.fixture(scope="session")
def gather(backend_name):
    """`n_step_gather` of a backend, with the keywords of the public function."""
    return with_keywords(load_kernels("n_step_gather", backend_name).n_step_gather)
