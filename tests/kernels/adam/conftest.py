import pytest

from ..backends import load_kernels


@pytest.fixture(scope="session")
def step(backend_name):
    """`adam_step` of a backend, with the keywords of the public function."""
    kernels = load_kernels("adam", backend_name)

    def adam_step(*lists, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        return kernels.adam_step(*lists, lr, beta1, beta2, eps, weight_decay)

    return adam_step
