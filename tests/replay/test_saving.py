"""Saving and loading: bit for bit, or refused and the buffer as it was."""

import tracemalloc

import numpy as np
import pytest
from replay_worlds import ACTION, BOTH, OBS, fill

from fastrl.replay import PrioritizedReplay, ReplayBuffer, storage


@BOTH
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 4, 9, 10, 11, 40])
def test_save_and_load_go_on_bit_for_bit(tmp_path, state, cls, num_envs, steps, n_step):
    def go_on(buffer):
        out = []
        for i in range(8):
            fill(buffer, 3, rng=i)
            batch = buffer.sample(16)
            out += [column.tobytes() for column in batch]
            if cls is PrioritizedReplay:
                buffer.update_priorities(batch.indices, batch.reward)
        return out

    original = fill(cls(10 * num_envs, OBS, ACTION, num_envs, n_step=n_step, seed=4), steps)
    if steps and cls is PrioritizedReplay:
        original.update_priorities(original.sample(5).indices, [0.1, 3.0, 0.0, 1e3, 7.0])
    path = tmp_path / "buffer"
    original.save(path)
    restored = fill(cls(10 * num_envs, OBS, ACTION, num_envs, n_step=n_step, seed=99), 5, rng=1)
    restored.load(str(path))
    assert state(restored) == path.read_bytes()
    assert len(restored) == len(original)
    assert go_on(restored) == go_on(original)


def test_only_what_was_written_is_saved(tmp_path):
    buffer = fill(ReplayBuffer(100_000, OBS, ACTION, seed=0), 10)
    buffer.save(tmp_path / "small")
    assert (tmp_path / "small").stat().st_size < 2000


def test_load_restores_the_default_generator(tmp_path):
    import fastrl

    fastrl.manual_seed(3)
    buffer = fill(ReplayBuffer(10, OBS, ACTION), 10)
    buffer.save(tmp_path / "buffer")
    drawn = buffer.sample(8).indices.tolist()
    buffer.load(tmp_path / "buffer")
    assert buffer.sample(8).indices.tolist() == drawn


def test_a_device_loads_what_none_has_saved(tmp_path):
    pytest.importorskip("torch")
    plain = fill(ReplayBuffer(10, OBS, ACTION, seed=0), 10)
    plain.save(tmp_path / "buffer")
    buffer = ReplayBuffer(10, OBS, ACTION, device="cpu")
    buffer.load(tmp_path / "buffer")
    np.testing.assert_array_equal(buffer.sample(8).obs.numpy(), plain.sample(8).obs)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: PrioritizedReplay(11, OBS, ACTION, 2), r"capacity 10 \(here 11\)"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 1), r"num_envs 2 \(here 1\)"),
        (lambda: PrioritizedReplay(10, ((4,), np.float32), ACTION, 2), r"obs_shape \[3\] \(here \[4\]\)"),
        (lambda: PrioritizedReplay(10, ((3,), np.float64), ACTION, 2), r"obs_dtype 'float32' \(here 'float64'\)"),
        (lambda: PrioritizedReplay(10, OBS, ((2,), np.int64), 2), r"action_shape \[\] \(here \[2\]\)"),
        (lambda: PrioritizedReplay(10, OBS, ((), np.float32), 2), "action_dtype"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 2, alpha=0.7), r"alpha 0.6 \(here 0.7\)"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 2, eps=0.1), "eps"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 2, n_step=3), r"n_step 1 \(here 3\)"),
        (lambda: PrioritizedReplay(10, OBS, ACTION, 2, gamma=0.9), r"gamma 0.99 \(here 0.9\)"),
        (lambda: ReplayBuffer(10, OBS, ACTION, 2), "class 'PrioritizedReplay' .*, alpha 0.6 "),
    ],
)
def test_load_into_another_configuration(tmp_path, state, other, difference):
    fill(PrioritizedReplay(10, OBS, ACTION, 2, seed=0), 10).save(tmp_path / "buffer")
    buffer = fill(other(), 0)
    before = state(buffer)
    with pytest.raises(ValueError, match=f"replay.load: .*buffer is of a buffer with .*{difference}"):
        buffer.load(tmp_path / "buffer")
    assert state(buffer) == before
    # the schedule of beta may change, the data do not depend on it
    PrioritizedReplay(10, OBS, ACTION, 2, beta=0.5, beta_steps=7).load(tmp_path / "buffer")


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.long)])
def test_a_damaged_file_is_refused(tmp_path, state, bits):
    """One or every bit of every byte flipped in turn, every length cut: a clear error, and the buffer as it was."""
    buffer = fill(PrioritizedReplay(4, OBS, ACTION, 1, seed=0), 10)
    path = tmp_path / "buffer"
    buffer.save(path)
    good = path.read_bytes()
    fill(buffer, 2)
    before = state(buffer)
    rng = np.random.default_rng(0)
    damaged = [
        good[:i] + bytes([good[i] ^ (1 << bit)]) + good[i + 1 :]
        for i in range(len(good))
        for bit in rng.permutation(8)[:bits]
    ]
    damaged += [good[:n] for n in range(len(good))] + [good + b"\0", b"", b"\0" * 500, good[::-1], good * 2]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"replay.load: .*buffer is (damaged|not a file|of format version)"):
            buffer.load(path)
    assert state(buffer) == before
    path.write_bytes(good)
    buffer.load(path)
    assert state(buffer) == good


def test_foreign_and_missing_files(tmp_path, state):
    buffer = fill(ReplayBuffer(4, OBS, ACTION, 1, seed=0), 10)
    before = state(buffer)
    np.savez(tmp_path / "foreign.npz", a=np.zeros(1000))
    (tmp_path / "text").write_text('{"config": {}}' * 99)
    for name in ("foreign.npz", "text"):
        with pytest.raises(ValueError, match="is not a file of a fastrl replay buffer"):
            buffer.load(tmp_path / name)
    for name, error in (("missing", FileNotFoundError), (".", OSError)):
        with pytest.raises(error):
            buffer.load(tmp_path / name)
    with pytest.raises(OSError, match="nowhere"):
        buffer.save(tmp_path / "nowhere" / "buffer")
    assert state(buffer) == before


def test_load_has_no_second_copy(tmp_path):
    obs = ((1 << 20,), np.uint8)

    def step(buffer, k):
        buffer.add(*(np.full(1 << 20, k, np.uint8), 0, k, np.full(1 << 20, k + 1, np.uint8), False, False))

    original, buffer = ReplayBuffer(20, obs, ACTION, seed=0), ReplayBuffer(20, obs, ACTION, seed=0)
    for k in range(5):
        step(original, k)
    for _ in range(40):
        step(buffer, 99)
    original.save(tmp_path / "file")
    address, allocated = buffer._store.columns[0].ctypes.data, []
    tracemalloc.start()
    try:
        buffer.load(tmp_path / "file")
        allocated.append(tracemalloc.get_traced_memory()[1])
        buffer.save(tmp_path / "again")
    finally:
        tracemalloc.stop()
    assert allocated[0] < 4 << 20 and buffer._store.columns[0].ctypes.data == address
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    for k in range(5, 30):
        step(original, k), step(buffer, k)
    for each, name in ((original, "file"), (buffer, "again")):
        each.save(tmp_path / name)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()


def test_a_file_that_fails_while_it_is_read(tmp_path, monkeypatch):
    fill(ReplayBuffer(10, OBS, ACTION, seed=0), 8).save(tmp_path / "file")
    buffer = fill(ReplayBuffer(10, OBS, ACTION, seed=0), 25)

    def fail(self):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(storage.Reader, "read_deferred", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            buffer.load(tmp_path / "file")
    assert len(buffer) == 0
    assert len(fill(buffer, 3)) == 3
    buffer.load(tmp_path / "file")
    assert len(buffer) == 8
