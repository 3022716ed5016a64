"""Samples per insert: what is allowed when, and threads that wait for each other."""

import threading

import pytest

from fastrl.replay import SampleToInsertRatio


def test_the_ratio_is_kept_within_its_tolerance():
    """Whoever may go on does, at random: the excess stays inside, and neither is ever stuck."""
    limiter = SampleToInsertRatio(4.0, min_size=10, tolerance=20.0)
    assert not limiter.sample(1, timeout=0)
    assert limiter.insert(10) and limiter.inserted == 10
    while limiter.sampled < 2000:
        while limiter.sample(8, timeout=0):
            assert 4 * (limiter.inserted - 10) - limiter.sampled >= -20
        assert 4 * (limiter.inserted - 10) - limiter.sampled - 8 < -20
        while limiter.insert(3, timeout=0):
            assert 4 * (limiter.inserted - 10) - limiter.sampled <= 20
        assert 4 * (limiter.inserted + 3 - 10) - limiter.sampled > 20
    assert abs(limiter.sampled / (limiter.inserted - 10) - 4) < 0.1


def test_threads_wait_for_each_other():
    limiter = SampleToInsertRatio(2.0, min_size=5, tolerance=16.0)
    excess = []

    def run(step, n, times):
        for _ in range(times):
            assert step(n)
            excess.append(2 * (limiter.inserted - 5) - limiter.sampled)

    threads = [
        threading.Thread(target=run, args=args) for args in ((limiter.insert, 1, 805), (limiter.sample, 16, 100))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert (limiter.inserted, limiter.sampled) == (805, 1600)
    assert max(excess) <= 16 + 2 and min(excess[5:]) >= -32  # read a step of the other thread late


def test_bad_arguments():
    for arguments, message in (
        ({"samples_per_insert": 0.0, "min_size": 1}, "samples_per_insert must be > 0"),
        ({"samples_per_insert": float("nan"), "min_size": 1}, "samples_per_insert must be finite"),
        ({"samples_per_insert": 1.0, "min_size": 0}, "min_size must be >= 1"),
        ({"samples_per_insert": 8.0, "min_size": 1, "tolerance": 4.0}, "tolerance must be >= 8.0, got 4.0"),
    ):
        with pytest.raises(ValueError, match=f"replay: {message}"):
            SampleToInsertRatio(**arguments)
    limiter = SampleToInsertRatio(2.0, min_size=5, tolerance=10.0)
    with pytest.raises(ValueError, match="n must be <= 20.0, got 21"):
        limiter.sample(21)
    with pytest.raises(ValueError, match="n must be <= 10.0, got 11"):
        limiter.insert(11)
    for call in (limiter.insert, limiter.sample):
        with pytest.raises(ValueError, match="n must be >= 1"):
            call(0)
    assert limiter.inserted == limiter.sampled == 0
