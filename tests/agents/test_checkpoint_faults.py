"""Checkpoints that somebody reads, writes, kills, links or edits meanwhile: one whole state, or one clear error."""

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import fastrl
from fastrl.agents import DQN, PPO, checkpoint
from fastrl.agents.config import InputError
from fastrl.cli.train import _hyperparameters

SMALL = {"hidden": (8,), "learning_starts": 20, "train_every": 4, "updates": 1, "batch_size": 8, "buffer_size": 50}
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX files, signals and locks")


@pytest.fixture(scope="module")
def agent():
    return DQN("CartPole-v1", **SMALL).learn(100, progress=False)


@pytest.fixture
def saved(agent, tmp_path):
    agent.save(tmp_path / "a")
    return tmp_path / "a"


def edit(folder, name, change):
    """Change a JSON file of a checkpoint, and its checksum with it."""
    value = json.loads((folder / name).read_text())
    value = change(value) or value
    put(folder, name, json.dumps(value).encode())


def put(folder, name, data):
    (folder / name).write_bytes(data)
    if name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))


def save_number(folder, n):
    checkpoint.save_checkpoint(folder, {"n": n}, {"n": n}, {"w": torch.full((100,), float(n))})


WRITER = """
import sys
from itertools import count
import torch
from fastrl.agents.checkpoint import save_checkpoint
for n in count(1):
    w = {"w": torch.full((100,), float(n))}
    save_checkpoint(sys.argv[1], {"n": n}, {"n": n}, w, lambda path: path.write_text(str(n)))
"""


def test_folders_of_the_user_beside_it_are_left_alone(agent, tmp_path):
    for name in ("a.old", "a.new", "a.tmp", ".a.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text(name)
    (tmp_path / "b.old").write_text("a file")
    (tmp_path / "b.new").write_text("a file")
    for _ in range(2):
        agent.save(tmp_path / "a")
        agent.save(tmp_path / "b")
    names = {"a", "a.old", "a.new", "a.tmp", ".a.old", "b", "b.old", "b.new"}
    assert set(os.listdir(tmp_path)) == names
    assert all((tmp_path / n / "thesis.tex").read_text() == n for n in ("a.old", "a.new", "a.tmp", ".a.old"))
    assert DQN.load(tmp_path / "a").steps == 100


def test_a_backup_is_not_taken_for_the_checkpoint(saved):
    saved.rename(f"{saved}.old")
    with pytest.raises(InputError, match="no checkpoint here"):
        DQN.load(saved)


@posix
def test_reading_while_another_process_writes(tmp_path):
    """Every load is one whole state: of one save, and none that is older than one seen before."""
    folder = tmp_path / "a"
    save_number(folder, 0)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)])
    try:
        seen, loads = 0, 0
        while seen < 40:
            with checkpoint.load_checkpoint(folder) as found:
                n = found.state["n"]
                assert n >= seen and found.config == {"n": n} and (found.tensors["w"] == n).all()
                assert n == 0 or found.replay.read() == str(n).encode()
            assert checkpoint.load_config(folder)["n"] >= n
            seen, loads = n, loads + 1
        assert writer.poll() is None and loads >= 2
    finally:
        writer.kill()
        writer.wait()


@posix
def test_threads_saving_one_folder(tmp_path):
    errors = []

    def work(start):
        try:
            for n in range(start, start + 10):
                save_number(tmp_path / "a", n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(tmp_path) == ["a"]
    with checkpoint.load_checkpoint(tmp_path / "a") as found:
        assert found.state["n"] % 100 == 9 and (found.tensors["w"] == found.state["n"]).all()


KILL = """
import os, signal, sys
import torch
from fastrl import _files
from fastrl.agents import checkpoint

calls, deadly = 0, int(sys.argv[2])
def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for name in ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "chmod", "write"):
    setattr(os, name, counted(getattr(os, name)))
checkpoint.save_file = counted(checkpoint.save_file)
checkpoint.save_checkpoint(sys.argv[1], {"n": 2}, {"n": 2}, {"w": torch.full((100,), 2.0)}, lambda p: p.write_text("2"))
sys.exit(7)
"""


def kill_at(folder, call):
    """Save 2 over 1, die at this file call; True if it came so far."""
    save_number(folder, 1)
    done = subprocess.run([sys.executable, "-c", KILL, str(folder), str(call)], check=False)
    assert done.returncode in (7, -signal.SIGKILL)
    with checkpoint.load_checkpoint(folder) as found:
        n = found.state["n"]
        assert n in (1, 2) and (found.tensors["w"] == n).all()
    save_number(folder, 3)
    assert os.listdir(folder.parent) == ["a"]  # nothing is left of what died
    return done.returncode != 7


@posix
@pytest.mark.parametrize("call", [1, 8, 15, 22])
def test_killed_while_saving(call, tmp_path):
    assert kill_at(tmp_path / "a", call)


@posix
@pytest.mark.slow
def test_killed_at_each_file_call_of_a_save(tmp_path):
    call = 1
    while kill_at(tmp_path / "a", call):
        call += 1
    assert call > 20


@posix
def test_a_symbolic_link_stays_and_the_checkpoint_is_where_it_leads(agent, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/a")  # dangling at first
    for _ in range(3):
        agent.save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "disk") == ["a"]
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    assert DQN.load(tmp_path / "link").steps == 100
    (tmp_path / "disk" / "a").rename(tmp_path / "disk" / ".a.fastrl-old")  # a crash between the two renames
    assert DQN.load(tmp_path / "link").steps == 100


@posix
def test_modes_are_kept(agent, saved):
    saved.chmod(0o700)
    for path in saved.iterdir():
        path.chmod(0o600)
    agent.save(saved)
    assert saved.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o600}


def test_a_checkpoint_of_the_first_release_of_the_format(tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(Path(__file__).parent / "data" / "dqn_format3", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # settings that it does not know have their defaults
        agent = DQN.load(folder)
    obs = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    assert agent.predict(obs).tolist() == [1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1]
    assert (agent.steps, agent.n_updates, agent.envs.episodes, len(agent.buffer)) == (100, 20, 2, 30)
    assert agent.learn(150, progress=False).steps == 150


class Image(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((1, 36, 36), np.uint8), {}


@pytest.mark.filterwarnings("ignore:.*look like images")
def test_agents_of_before_the_convolutional_networks_keep_their_mlp(tmp_path):
    DQN(Image(), network="mlp", hidden=(4,), buffer_size=100).save(tmp_path / "a")
    edit(tmp_path / "a", "config.json", lambda c: (c["config"].pop("network"), None)[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*lacks network")
        agent = DQN.load(tmp_path / "a", env=Image())
    assert isinstance(agent.online, fastrl.MLP) and agent.config.network == "mlp"
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert _hyperparameters("dqn", saved, "a").network == "mlp"  # as of --config and --resume


def test_a_checkpoint_of_another_format_says_who_wrote_it(saved):
    edit(saved, "manifest.json", lambda m: {**m, "format": 2, "made_by": {"fastrl": "0.0.1"}})
    text = fails(saved, f"unknown format 2, written by fastrl 0.0.1; this version, {fastrl.__version__}, reads 3$")
    edit(saved, "manifest.json", lambda m: {k: v for k, v in m.items() if k != "made_by"})
    assert fails(saved, "unknown format 2; this version").startswith(f"checkpoint {saved}") and text


def test_it_knows_what_wrote_it(saved):
    made_by = json.loads((saved / "manifest.json").read_text())["made_by"]
    assert set(made_by) == {"fastrl", "torch", "numpy", "gymnasium", "python", "command", "date"}
    assert made_by["torch"] == torch.__version__ and made_by["date"].endswith("+00:00")
    edit(saved, "manifest.json", lambda m: m["made_by"].update(fastrl="0.0.1", torch="9.9"))
    edit(saved, "config.json", lambda c: c["config"].update(invented=1))
    with pytest.raises(InputError, match=r"unknown setting 'invented'.* \(written with fastrl 0.0.1, torch 9.9; here"):
        DQN.load(saved)
    edit(saved, "config.json", lambda c: (c["config"].pop("invented"), c["config"].pop("gamma"))[:0])
    with pytest.warns(UserWarning, match="lacks gamma; the defaults are used .*written with fastrl 0.0.1"):
        DQN.load(saved)


def fails(folder, pattern, cls=DQN):
    with pytest.raises(InputError, match=pattern) as error:
        cls.load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


def test_the_manifest_must_name_all_files(saved):
    whole = json.loads((saved / "manifest.json").read_text())
    for files in ({}, {"config.json": "0"}, {**whole["files"], "x" * 5000: "0"}, {**whole["files"], "../b": "0"}):
        put(saved, "manifest.json", json.dumps({**whole, "files": files}).encode())
        fails(saved, "damaged: manifest.json must name config.json, model.safetensors, state.json$")
    del whole["files"]["replay"]
    put(saved, "manifest.json", json.dumps(whole).encode())
    fails(saved, "replay is missing")
    for text in (b"[" * 100_000, b"[]", b"{", b"\xff", b"", b'{"format": 3, "files": [1]}', b'{"format": 4}'):
        put(saved, "manifest.json", text)
        fails(saved, "damaged: manifest.json|unknown format")


@posix
@pytest.mark.parametrize("name", ["manifest.json", "config.json", "replay"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    fails(saved, "no checkpoint here|is not a regular file")


@pytest.mark.parametrize("path", ["/", "x" * 300, "a\0b", "a" * 5000])
def test_folders_that_can_be_none(agent, path):
    with pytest.raises(InputError):
        DQN.load(path)
    with pytest.raises(InputError):
        agent.save(path)


def places(value, path=()):
    """Every place in nested JSON; of lists only the first two items."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


def mutations(whole):
    for path in places(whole):
        for new in (None, "x", -1, 2**70, 1e308, float("nan"), [], {}, [["x"]], True):
            yield path, new, replaced(whole, path, new)


def crafted(saved, cls, every, env="CartPole-v1"):
    """Load each mutation of config.json and state.json: an InputError, or an agent that trains on."""
    counts = {"refused": 0, "ran": 0}
    for name in ("config.json", "state.json"):
        whole = json.loads((saved / name).read_text())
        for number, (path, new, value) in enumerate(mutations(whole)):
            if number % every or (path[-1:] in (("num_envs",), ("buffer_size",), ("updates",), ("hidden",)) and new):
                continue  # what is only large is no fault of the file
            put(saved, name, json.dumps(value).encode())
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    agent = cls.load(saved)
                    agent.learn(agent.steps + 8, progress=False)
                    agent.metrics()
                counts["ran"] += 1
            except InputError as error:
                assert "\n" not in str(error)
                counts["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{name} {path} = {new!r}: {type(error).__name__}: {error}") from error
        put(saved, name, json.dumps(whole).encode())
    return counts


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_crafted_json(saved, every):
    counts = crafted(saved, DQN, every)
    assert counts["refused"] > counts["ran"] > 0


def test_crafted_json_of_an_on_policy_agent(tmp_path):
    agent = PPO("CartPole-v1", hidden=(8,), n_steps=16, normalize_obs=True, normalize_rewards=True, num_envs=1)
    agent.learn(32, progress=False).save(tmp_path / "a")
    assert crafted(tmp_path / "a", PPO, 23)["refused"] > 0


def test_crafted_tensors(saved):
    from safetensors.torch import load_file, save

    whole = load_file(saved / "model.safetensors")
    for name in whole:
        for new in (
            None,
            torch.zeros(3, 5, 7),
            whole[name] + float("nan") if whole[name].is_floating_point() else None,
        ):
            tensors = {k: v for k, v in whole.items() if k != name}
            put(saved, "model.safetensors", save(tensors if new is None else {**tensors, name: new}))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    DQN.load(saved).learn(120, progress=False)
                except InputError as error:
                    assert "\n" not in str(error)
    for data in (b"", b"\0" * 100, b"\xff" * 8, save({"x": torch.zeros(2)})):
        put(saved, "model.safetensors", data)
        fails(saved, "damaged|does not fit")


def test_a_checkpoint_does_not_choose_what_is_imported(saved, tmp_path, monkeypatch):
    (tmp_path / "evil_mod.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(saved, "config.json", lambda c: c.update(env="evil_mod:CartPole-v1"))
    text = fails(
        saved, "imports the module 'evil_mod'; if that is meant, repeat it: env='evil_mod:CartPole-v1', or --env"
    )
    assert "evil_mod" not in sys.modules and text
    (tmp_path / "good_mod.py").write_text("import gymnasium")
    edit(saved, "config.json", lambda c: c.update(env="good_mod:CartPole-v1"))
    assert DQN.load(saved, env="good_mod:CartPole-v1").steps == 100
