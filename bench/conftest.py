"""`pytest bench/bench_*.py`: one pytest-benchmark test per contender, grouped by case and size.

pytest-benchmark runs the contenders one after another; for ratios run compare.py, which interleaves them.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _harness import NotApplicable, size_label


def pytest_generate_tests(metafunc):
    if "contender" in metafunc.fixturenames:
        metafunc.parametrize(
            "contender",
            [
                pytest.param((case, size, name), id=f"{case.name} {size_label(size)} {name}")
                for case in metafunc.module.CASES
                for size in case.sizes
                for name in case.contenders
            ],
            indirect=True,
        )


@pytest.fixture
def contender(request, benchmark):
    """Times one contender after its answer check; skips a peer that is not installed."""
    case, size, name = request.param

    def run():
        try:
            call = case.contenders[name](**size)
        except (ImportError, NotApplicable) as reason:
            pytest.skip(f"{name}: {reason}")
        benchmark.group = f"{case.name} {size_label(size)}"
        benchmark(call)

    return run
