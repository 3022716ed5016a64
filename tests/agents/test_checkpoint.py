"""Checkpoints: exact resume in a new process, whole or not at all, and damage noticed."""

import hashlib
import json
import os
import pickletools
import stat
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from safetensors import SafetensorError

from fastrl.agents import DQN, checkpoint
from fastrl.agents.checkpoint import load_checkpoint, save_checkpoint
from fastrl.agents.config import InputError
from fastrl.agents.parts import parts_state

SMALL = {
    "hidden": (16,),
    "learning_starts": 100,
    "train_every": 4,
    "updates": 1,
    "batch_size": 16,
    "buffer_size": 500,
    "epsilon_steps": 700,
    "learning_rate_steps": 800,
    "per_beta_steps": 700,
    "target_every": 10,
}
ALL = {"double": True, "dueling": True, "prioritized": True, "num_envs": 2}


def tensors(agent):
    return parts_state(agent._parts())[1]


def assert_same(a, b):
    x, y = tensors(a), tensors(b)
    assert x.keys() == y.keys()
    assert all(np.array_equal(x[k], y[k]) for k in x)
    assert a.rng.bit_generator.state == b.rng.bit_generator.state
    assert a.envs.obs.tobytes() == b.envs.obs.tobytes()
    assert (a.steps, a.n_updates, a.envs.episodes) == (b.steps, b.n_updates, b.envs.episodes)
    assert a.envs.recent == b.envs.recent
    assert a.metrics() == b.metrics()
    x, y = a.buffer.sample(64), b.buffer.sample(64)
    assert all(map(np.array_equal, x, y))


@pytest.mark.parametrize("switches", [{}, ALL, {"exploration": "boltzmann", "tau": 0.01}], ids=["plain", "all", "soft"])
def test_resume_in_a_new_process_is_exact(switches, tmp_path):
    straight = DQN("CartPole-v1", **SMALL, **switches).learn(900, progress=False)
    DQN("CartPole-v1", **SMALL, **switches).learn(600, progress=False).save(tmp_path / "a")
    code = (
        "import sys; from fastrl.agents import DQN; DQN.load(sys.argv[1]).learn(900, progress=False).save(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"], check=True)
    assert_same(straight, DQN.load(tmp_path / "b"))


def test_save_does_not_disturb_training(tmp_path):
    agent = DQN("CartPole-v1", **SMALL, **ALL).learn(300, progress=False)
    agent.save(tmp_path / "a")
    agent.learn(600, progress=False)
    assert_same(agent, DQN("CartPole-v1", **SMALL, **ALL).learn(600, progress=False))


def test_files_and_no_pickle(tmp_path):
    DQN("CartPole-v1", **SMALL).learn(200, progress=False).save(tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"config.json", "model.safetensors", "state.json", "replay", "manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    for path in (tmp_path / "a").iterdir():
        with pytest.raises(ValueError):
            list(pickletools.genops(path.read_bytes()))


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_mode_of_ordinary_ones(umask, tmp_path):
    agent, before = DQN("CartPole-v1", **SMALL), os.umask(umask)
    try:
        agent.learn(10, folder=tmp_path / "run", progress=False)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run" / "checkpoint").iterdir()}
    assert "model.safetensors" in modes and set(modes.values()) == {0o666 & ~umask}, modes


@pytest.fixture
def saved(tmp_path):
    agent = DQN("CartPole-v1", **SMALL).learn(200, progress=False)
    agent.save(tmp_path / "a")
    return tmp_path / "a"


def test_arrays_of_any_strides_come_back(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {"T": x.T, "step": x[:, ::2], "number": np.asarray(7), "none": x[:0]}
    save_checkpoint(tmp_path / "a", {}, {}, arrays)
    found = load_checkpoint(tmp_path / "a").tensors
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert found["number"].shape == () and found["none"].shape == (0, 3, 4)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "state.json", "replay", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_one_clear_error(saved, name, damage):
    data = bytearray((saved / name).read_bytes())
    if damage == "remove":
        (saved / name).unlink()
    else:
        # In the manifest a digit of a checksum: the command line, which nothing depends on, may stand in its middle.
        at = data.index(b'"config.json": "') + 20 if name == "manifest.json" else len(data) // 2
        data[at] ^= 1
        (saved / name).write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(InputError) as error:
        DQN.load(saved)
    assert "\n" not in str(error.value) and str(saved) in str(error.value)


@pytest.mark.long
def test_every_bit_and_every_length(tmp_path):
    """Every bit of every file flipped in turn, every length cut: a clear error, or the same is read."""
    folder, n = tmp_path / "a", 1234567
    save_checkpoint(folder, {"n": n}, {"n": n}, {"w": np.array([n])}, lambda path: path.write_text(str(n)))
    refused = loaded = 0
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        flips = ((i, 1 << bit) for i in range(len(good)) for bit in range(8))
        damaged = [good[:i] + bytes([good[i] ^ bit]) + good[i + 1 :] for i, bit in flips]
        for data in damaged + [good[:i] for i in range(len(good))]:
            path.write_bytes(data)
            try:
                with load_checkpoint(folder) as found:
                    assert found.config == found.state == {"n": n} and found.tensors["w"].tolist() == [n]
                    assert found.replay.read() == b"1234567"
                loaded += 1
                assert path.name == "manifest.json"  # the command line and the versions in it, say
            except InputError as error:
                refused += 1
                assert "\n" not in str(error) and str(folder) in str(error)
        path.write_bytes(good)
    assert refused > loaded > 0


def test_a_crash_while_saving_keeps_the_earlier_checkpoint(saved, monkeypatch):
    agent = DQN.load(saved).learn(400, progress=False)
    for name in ("save_file", "_write_json", "_sha256", "fsync"):
        with monkeypatch.context() as patch:

            def crash(*_, **__):
                raise KeyboardInterrupt

            patch.setattr(checkpoint, name, crash)
            with pytest.raises(KeyboardInterrupt):
                agent.save(saved)
        assert DQN.load(saved).steps == 200, name
    # Between the two renames: the earlier one has stepped aside and comes back.
    rename, calls = type(saved).rename, []

    def second_fails(self, to):
        calls.append(to)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(type(saved), "rename", second_fails)
        with pytest.raises(KeyboardInterrupt):
            agent.save(saved)
    assert DQN.load(saved).steps == 200
    # A process that dies there leaves it aside, where it is found.
    saved.rename(saved.parent / ".a.fastrl-old")
    assert DQN.load(saved).steps == 200
    agent.save(saved)
    assert DQN.load(saved).steps == 400
    assert [path.name for path in saved.parent.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("fsync", OSError(28, "No space left on device")),
        ("save_file", SafetensorError("I/O error:\nNo space left on device (os error 28)")),
    ],
)
def test_full_disk_is_an_input_error_and_keeps_the_earlier_checkpoint(saved, where, error, monkeypatch):
    def full(*_):
        raise error

    agent = DQN.load(saved).learn(300, progress=False)
    monkeypatch.setattr(checkpoint, where, full)
    with pytest.raises(InputError, match=r"^cannot write checkpoint .*: .*No space left on device"):
        agent.save(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["a"]
    assert DQN.load(saved).steps == 200


def test_foreign_folder_is_left_alone(saved, tmp_path):
    agent = DQN.load(saved)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="is not a checkpoint"):
        agent.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    with pytest.raises(InputError, match="no checkpoint here"):
        DQN.load(tmp_path / "mine")


def test_other_environment_algorithm_and_setting_are_refused(saved):
    with pytest.raises(InputError, match="is of CartPole-v1, not Acrobot-v1"):
        DQN.load(saved, env="Acrobot-v1")

    def edit(change):
        config = json.loads((saved / "config.json").read_text())
        change(config)
        (saved / "config.json").write_text(json.dumps(config))
        manifest = json.loads((saved / "manifest.json").read_text())
        manifest["files"]["config.json"] = hashlib.sha256((saved / "config.json").read_bytes()).hexdigest()
        (saved / "manifest.json").write_text(json.dumps(manifest))

    edit(lambda c: c["config"].update(hidden=[32]))
    with pytest.raises(InputError, match="does not fit"):
        DQN.load(saved)
    edit(lambda c: c.update(algorithm="sac"))
    with pytest.raises(InputError, match="is of algorithm 'sac', not 'dqn'"):
        DQN.load(saved)


def test_environment_object_starts_new_episodes_and_says_so(tmp_path):
    def make():
        return gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")

    DQN(make(), **SMALL).learn(300, progress=False).save(tmp_path / "a")
    with pytest.warns(UserWarning, match="new episodes begin"):
        agent = DQN.load(tmp_path / "a", env=make())
    agent.learn(600, progress=False)
    assert agent.steps == 600 and np.isfinite(agent.metrics()["loss"])

    # A single environment is brought back, wrappers and all.
    def wrapped():
        env = gym.make("CartPole-v1")
        return gym.wrappers.TransformObservation(env, lambda obs: obs / 2, env.observation_space)

    DQN(wrapped(), **SMALL).learn(310, progress=False).save(tmp_path / "b")
    with pytest.raises(InputError, match="give `env`"):
        DQN.load(tmp_path / "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = DQN.load(tmp_path / "b", env=wrapped())
    state = agent.envs.vec.envs[0].unwrapped.state
    np.testing.assert_array_equal(agent.envs.obs[0], (np.array(state, np.float32) / 2))
