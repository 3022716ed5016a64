"""Several processes draw from one replay buffer: nothing is torn, whoever is killed."""

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time

import numpy as np
import pytest
from replay_killed import KINDS, TORN, forked, forks, sample_shared, transition, update_all
from replay_worlds import ACTION, OBS

from fastrl import _backend
from fastrl.replay import HindsightReplay, PrioritizedReplay, SequenceReplay

if os.name == "nt":
    pytest.skip("samplers need Linux or macOS", allow_module_level=True)

pytestmark = pytest.mark.skipif(_backend._C is None, reason="samplers need the compiled extension")


def hindsight(**options):
    goal = ((2,), np.float32)
    return HindsightReplay(
        20, {"observation": goal, "achieved_goal": goal, "desired_goal": goal}, ((), np.int64),
        compute_reward=lambda achieved, desired, info: -np.linalg.norm(achieved - desired, axis=-1), **options,
    )  # fmt: skip


def filled(kind, **options):
    buffer = KINDS[kind](seed=0, **options)
    for k in range(25):
        buffer.add(*transition(kind, k))
    return buffer


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = tuple(a.values()), tuple(b.values())
    if isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif a is not None:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_samplers_give_what_sample_gives(kind):
    one, shared = filled(kind), filled(kind)
    samplers = shared.samplers(2, 8, ahead=3)
    for turn in range(3):
        assert shared.serve() == (6 if turn == 0 else 12 if kind != "apart" else 6)
        assert shared.serve() == 0
        drawn = [(sampler, one.sample(8)) for sampler in samplers for _ in range(3)]
        errors = np.random.default_rng(turn).random((6, 8, 3) if kind == "sequences" else (6, 8))
        for (sampler, wanted), td_errors in zip(drawn, errors, strict=True):
            batch = sampler.sample()
            assert_same(batch, wanted)
            if kind != "apart":
                sampler.update_priorities(batch.indices, td_errors)
                one.update_priorities(wanted.indices, td_errors)
            batch.obs[:] = 0  # the caller's own
    shared.serve()
    assert_same(shared._tree.state_dict()["priorities"], one._tree.state_dict()["priorities"])


@pytest.mark.parametrize("device", [None, "cpu"])
def test_dicts_goals_and_devices(device):
    if device:
        pytest.importorskip("torch")
    one, shared = hindsight(seed=0, device=device), hindsight(seed=0, device=device)
    (sampler,) = shared.samplers(1, 16)
    for k in range(20):
        obs, after = (
            {key: np.full(2, x) for key in ("observation", "achieved_goal", "desired_goal")} for x in (k, k + 1)
        )
        for buffer in (one, shared):
            buffer.add(obs, 0, -1.0, after, False, k % 5 == 4)
    shared.serve()
    if device is None:
        assert_same(sampler.sample(), one.sample(16))
        return
    batch, wanted = sampler.sample(), one.sample(16)
    for x, y in zip((*batch.obs.values(), *batch[1:3]), (*wanted.obs.values(), *wanted[1:3]), strict=True):
        assert x.device.type == "cpu" and (x == y).all()


def test_an_update_longer_than_a_batch_and_stale_ones():
    buffer = PrioritizedReplay(10, OBS, ACTION, seed=0, alpha=1, eps=1e-3)
    add = lambda k: buffer.add(np.full(3, k), 0, k, np.full(3, k + 1), False, False)  # noqa: E731
    (sampler,) = buffer.samplers(1, 4, ahead=1, min_size=10)
    for k in range(9):
        add(k)
        assert buffer.serve() == 0
    add(9)
    assert buffer.serve() == 1
    highest = int(sampler.sample().indices.max())
    numbers = np.arange(highest + 1)
    sampler.update_priorities(numbers.astype(np.int32), np.arange(highest + 1) + 5)
    add(10)  # over number 0
    assert buffer.serve() == 1 + -(-len(numbers) // 4)
    p = buffer._tree.state_dict()["priorities"]
    rows, _ = buffer._ring.locate(numbers[1:])
    np.testing.assert_allclose(p[rows], numbers[1:] + 5, rtol=1e-3)
    assert len(buffer) == 10


@pytest.mark.parametrize("storage", [False, True])
def test_updates_from_before_a_load_are_left_out(storage, tmp_path):
    def made(first, n, storage=None):
        buffer = PrioritizedReplay(100, OBS, ACTION, seed=0, alpha=1, eps=1e-6, storage=storage)
        for k in range(first, first + n):
            buffer.add(np.full(3, k), 0, k, np.full(3, k + 1), False, False)
        return buffer

    buffer = made(0, 50, tmp_path / "folder" if storage else None)
    made(1000, 80).save(tmp_path / "file")
    one, two = buffer.samplers(2, 8)
    buffer.serve()
    before = one.sample().indices
    two.sample()
    one.update_priorities(before, np.full(8, 500.0))  # sent, but not applied
    buffer.load(tmp_path / "file")
    held = one.sample()  # drawn before
    assert (held.obs < 50).all()
    one.update_priorities(held.indices, np.full(8, 600.0))
    assert buffer.serve() == 2 + 3  # updates, and batches in the place of those taken
    np.testing.assert_array_equal(buffer._tree.state_dict()["priorities"][:80], np.ones(80))
    for sampler in (one, two):
        batch = sampler.sample()
        while (batch.obs < 1000).any():
            batch = sampler.sample()
        sampler.update_priorities(batch.indices, np.full(8, 7.0))
        buffer.serve()
        rows, _ = buffer._ring.locate(batch.indices)
        assert np.allclose(buffer._tree[rows], 7)
    with pytest.raises(ValueError, match="not a file of a fastrl replay buffer"):
        buffer.load(__file__)
    two.update_priorities(batch.indices, np.full(8, 9.0))  # a load that failed forgets nothing
    buffer.serve()
    assert np.allclose(buffer._tree[rows], 9)
    if storage:
        buffer.close()


def test_bad_arguments():
    buffer = filled("plain")
    with pytest.raises(ValueError, match="replay.samplers: min_size must be at most 40, all .* can have, got 41"):
        buffer.samplers(1, 4, min_size=41)
    for much in ({"batch_size": 2**62}, {"batch_size": 4, "ahead": 2**62}):
        with pytest.raises(OSError, match="replay.samplers: 1 lanes of [0-9]+ bytes in "):
            buffer.samplers(1, **much)
    with pytest.raises(ValueError, match="replay: ahead must be >= 1, got 0"):
        buffer.samplers(1, 4, ahead=0)
    with pytest.raises(TypeError, match="replay: batch_size must be an int, got float"):
        buffer.samplers(1, 4.0)
    (sampler,) = buffer.samplers(1, 4)
    with pytest.raises(ValueError, match="replay.samplers: the buffer has samplers already"):
        buffer.samplers(1, 4)
    buffer.serve()
    indices, before = sampler.sample().indices, buffer._tree.state_dict()["priorities"]
    for arguments, error, text in [
        ((indices, [1.0, np.nan, 1.0, 1.0]), ValueError, r"td_errors\[1\] is nan, must be finite"),
        ((indices, np.ones(3)), ValueError, r"must both have shape \[B\], got \(4,\) and \(3,\)"),
        ((indices.astype(float), np.ones(4)), ValueError, "indices must have dtype int64 or int32, got float64"),
        ((indices, np.ones(4, bool)), ValueError, "td_errors must be real numbers, got bool"),
        (([1_000_000], [1.0]), IndexError, r"indices\[0\] is 1000000, which no batch here had"),
        (([-1], [1.0]), IndexError, r"indices\[0\] is -1, which no batch here had"),
    ]:
        with pytest.raises(error, match=f"replay.update_priorities: .*{text}"):
            sampler.update_priorities(*arguments)
    assert buffer.serve() == 1
    assert_same(buffer._tree.state_dict()["priorities"], before)
    uniform = filled("apart")
    (sampler,) = uniform.samplers(1, 4)
    uniform.serve()
    with pytest.raises(TypeError, match="the buffer of this sampler has no priorities"):
        sampler.update_priorities(sampler.sample().indices, np.ones(4))


@pytest.mark.parametrize(("length", "burn_in", "overlap"), [(1, 0, 0), (3, 2, 2), (3, 2, 0), (2, 3, 4), (5, 0, 1)])
def test_the_largest_min_size_of_sequences(length, burn_in, overlap):
    """Tried are episodes of every length."""

    def most(steps):
        buffer = SequenceReplay(
            20, ((1,), np.float32), ((), np.int64), 2, length=length, burn_in=burn_in, overlap=overlap
        )
        largest, zeros = 0, np.zeros((2, 1))
        for k in range(60):
            buffer.add(zeros, [0, 0], [0, 0], zeros, [k % steps == steps - 1] * 2, [False, False])
            largest = max(largest, len(buffer))
        return largest, buffer

    found = max(most(steps)[0] for steps in range(1, 25))
    buffer = most(1)[1]
    limit = buffer._most_items()
    assert found == limit if overlap <= burn_in else found <= limit
    with pytest.raises(ValueError, match=f"min_size must be at most {limit}, all that the buffer can have, got 10000"):
        buffer.samplers(1, 4, min_size=10_000)
    buffer.samplers(1, 4, min_size=limit)


def test_an_index_that_only_another_environment_has_had():
    buffer = PrioritizedReplay(10, OBS, ACTION, 2, seed=0)
    (sampler,) = buffer.samplers(1, 64)
    zeros = np.zeros((2, 3))
    for _ in range(4):
        buffer.add(zeros, [0, 0], [0, 0], zeros, [False, False], [False, False], mask=[False, True])
    buffer.serve()
    assert sampler.sample().indices.max() == 7
    sampler.update_priorities([6, 7], [1.0, 1.0])
    with pytest.warns(RuntimeWarning, match="outside the transitions added so far: what a sampler sent is left out"):
        buffer.serve()
    sampler.update_priorities([7], [3.0])
    assert buffer.serve() == 1  # once


def test_a_closed_or_dead_buffer_is_noticed(tmp_path):
    buffer = filled("plain", storage=tmp_path / "folder")
    (sampler,) = buffer.samplers(1, 4, ahead=1)
    buffer.serve()
    sampler.sample()
    said = []

    def wait():
        try:
            sampler.sample()
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    buffer.close()
    thread.join(10)
    assert said == ["replay.sample: the buffer of this sampler is closed or gone"]
    gone = filled("plain").samplers(1, 4)[0]
    with pytest.raises(RuntimeError, match="replay.sample: the buffer of this sampler is gone"):
        gone.sample()


@forks
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_end_of_the_buffers_process_and_copies():
    buffer = filled("plain")
    (sampler,) = buffer.samplers(1, 4, ahead=1)
    other = copy.deepcopy(sampler)
    buffer.serve()
    assert len(pickle.loads(pickle.dumps(sampler)).sample().obs) == 4
    buffer.serve()
    sampler.sample()
    with pytest.raises(BlockingIOError, match="another copy of this sampler is used here"):
        other.sample()
    assert os.waitstatus_to_exitcode(os.waitpid(forked(lambda: os._exit(10 + buffer.serve())), 0)[1]) == 10
    dead = forked(lambda: os._exit(0))
    os.waitpid(dead, 0)
    buffer._desk._lanes[0][0][0][0] = dead  # as if the buffer were that process's
    with pytest.raises(RuntimeError, match="replay.sample: the process of the buffer has ended"):
        sampler.sample()


def test_a_spawned_process():
    buffer = PrioritizedReplay(30, OBS, ACTION, seed=0, alpha=1, eps=1)
    for k in range(30):
        buffer.add(np.full(3, k), 0, k, np.full(3, k + 1), False, False)
    (sampler,) = buffer.samplers(1, 64)
    process = multiprocessing.get_context("spawn").Process(target=update_all, args=(sampler, 30))
    process.start()
    while process.is_alive():
        buffer.serve()
    buffer.serve()
    assert process.exitcode == 0
    assert sorted(buffer._tree.state_dict()["priorities"][:30]) == list(range(1, 31))


def kill_many(kind, kills):
    """Kill samplers at any time, and start others in their place, while the buffer goes round and serves."""
    rng = np.random.default_rng()
    buffer, k, said = filled(kind), 25, b""
    read, write = os.pipe()
    os.set_blocking(read, False)
    samplers = buffer.samplers(2, 16)
    started = 0
    children = [0, 0]

    def start(i):
        nonlocal started
        children[i] = forked(sample_shared, samplers[i], kind, started, write), started
        started += 1

    def kill(i):
        os.kill(children[i][0], signal.SIGKILL)
        os.waitpid(children[i][0], 0)

    def serve(seconds, until=lambda: False):
        nonlocal k, said
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            buffer.add(*transition(kind, k))
            k += 1
            buffer.serve()
            with contextlib.suppress(BlockingIOError):
                said += os.read(read, 10_000)

    start(0), start(1)
    for _ in range(kills):
        serve(rng.random() * 0.02)
        i = int(rng.integers(2))
        kill(i), start(i)
    # The last ones get batches, whatever those before them left.
    serve(60, until=lambda: {number for _, number in children} <= set(said))
    kill(0), kill(1)
    os.close(read), os.close(write)
    assert TORN not in said and {number for _, number in children} <= set(said)
    priorities = buffer._tree.state_dict()["priorities"]
    buffer._settle()  # changes nothing where the priorities are those of what is held
    if kind != "sequences":
        assert_same(buffer._tree.state_dict()["priorities"], priorities)


@forks
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_killed_samplers(kind):
    kill_many(kind, 5)


@forks
@pytest.mark.slow
def test_100_killed_samplers():
    kill_many("plain", 100)
