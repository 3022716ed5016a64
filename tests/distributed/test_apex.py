"""Ape-X on Ray: whole runs, and processes that are killed in them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from processes import descendants

pytest.importorskip("ray")

from fastrl.agents import InputError
from fastrl.distributed.cluster import import_ray

ray = import_ray("tests")  # before anything else imports it, so that it listens on 127.0.0.1 alone

from fastrl.distributed import ApeX  # noqa: E402

SMALL = {"hidden": (16,), "chunk": 25, "num_envs": 2, "learning_starts": 200, "batch_size": 32}
ENV = """
import gymnasium as gym
class Odd(Exception):  # does not unpickle
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
from gymnasium.envs.classic_control import CartPoleEnv
class Breaks(CartPoleEnv):
    steps = 0
    def step(self, action):
        self.steps += 1
        if self.steps == 70:
            raise self.error
        return super().step(action)
    error = OSError("the cart is gone")
class BreaksOddly(Breaks):
    error = Odd("cart", "pole")
gym.register("Breaks-v0", Breaks, max_episode_steps=50)
gym.register("BreaksOddly-v0", BreaksOddly, max_episode_steps=50)
"""


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error",
        object_store_memory=2**27,
    )  # fmt: skip
    yield
    ray.shutdown()


def test_a_run_learns_and_counts(cluster, tmp_path):
    agent = ApeX("CartPole-v1", seed=1, shards=2, broadcast_every=5, **SMALL)
    before, heard = agent.online.vector.copy(), []
    agent.learn(2000, folder=tmp_path / "run", callback=lambda a: heard.append((a.steps, len(a.envs.ended))))
    assert 2000 <= agent.steps < 2100 and (agent.online.vector != before).any()
    rows = list(csv.DictReader((tmp_path / "run" / "progress.csv").open()))
    assert {"updates_per_s", "sample_age", "policy_lag", "replay_ratio", "lost_actors"} <= set(rows[0])
    last = rows[-1]
    assert [last[name] for name in ("lost_actors", "lost_shards", "lost_transitions")] == ["0", "0", "0"]
    # 16 draws of each of 1800 transitions are 900 updates, but for what is under way at the end.
    assert 500 <= agent.n_updates <= 1000 and float(last["policy_lag"]) > 0 and 0 < float(last["sample_age"]) < 2100
    assert [s for s, _ in heard] == list(range(50, agent.steps + 1, 50))
    assert sum(n for _, n in heard) == agent.envs.episodes > 20
    loaded = ApeX.load(tmp_path / "run")
    assert loaded.n_updates == agent.n_updates and (loaded.online.vector == agent.online.vector).all()
    loaded.learn(4000, folder=tmp_path / "run", progress=False)  # goes on, with an empty buffer
    assert loaded.steps >= 4000 and loaded.n_updates > agent.n_updates
    assert json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())["replay"] is False


def test_the_example_of_the_page_runs(cluster):
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace = {}
    exec(compile(block.replace("50_000", "2_000"), "docs/distributed.md", "exec"), namespace)
    assert namespace["agent"].steps >= 2000 and namespace["agent"].config.actors == 2


def kill_in_turn(kinds, every):
    """A callback that kills the first process of one of `kinds` every so many chunks, and counts."""
    killed = []

    def callback(agent):
        if agent.steps % every == 0 and len(killed) < len(kinds):
            group = getattr(agent._fleet, kinds[len(killed)])
            ray.kill(group[0].handle)
            killed.append(agent.steps)

    return callback, killed


def test_killed_actors_and_shards_are_replaced_and_counted(cluster):
    agent = ApeX("CartPole-v1", seed=2, **SMALL)
    callback, killed = kill_in_turn(["actors", "shards", "actors", "shards"], 400)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        agent.learn(3000, callback=callback, progress=False)
    assert killed == [400, 800, 1200, 1600] and agent.steps >= 3000
    # What dies between a call and its answer is noticed at the answer.
    assert (agent._numbers["lost_actors"], agent._numbers["lost_shards"]) == (2, 2)
    assert 0 < agent._numbers["lost_transitions"] <= 3000
    texts = [str(w.message) for w in said]
    for member in ("actor 0", "shard 0"):
        assert any(text.startswith(f"{member} has died and was replaced: The actor died") for text in texts), texts
    assert agent.n_updates > 500


@pytest.mark.slow
def test_fifty_kills_at_random(cluster):
    agent = ApeX("CartPole-v1", seed=3, actors=3, shards=2, **{**SMALL, "chunk": 10})
    rng, next_kill, killed = np.random.default_rng(0), 100, []

    def callback(agent):
        nonlocal next_kill
        if agent.steps >= next_kill and len(killed) < 50:
            group = (agent._fleet.actors, agent._fleet.shards)[int(rng.integers(2))]
            ray.kill(group[rng.integers(len(group))].handle)
            killed.append(agent.steps)
            next_kill += int(rng.integers(40, 200))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent.learn(9000, callback=callback, progress=False)
    lost = agent._numbers
    # One that is killed again before it has answered is the same loss.
    assert len(killed) == 50 and 25 <= lost["lost_actors"] + lost["lost_shards"] <= 50
    assert agent.steps >= 9000 and agent.n_updates > 500 and np.isfinite(agent.online.vector).all()


@pytest.mark.parametrize(
    ("env", "error", "text"),
    [("Breaks", OSError, "the cart is gone"), ("BreaksOddly", RuntimeError, r"(?s)actor \d: .*cart and pole")],
)
def test_an_error_of_the_environment_ends_the_run(env, error, text, cluster, tmp_path, monkeypatch):
    (tmp_path / "breaking.py").write_text(ENV)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ray.shutdown()
    agent = ApeX(f"breaking:{env}-v0", **SMALL)
    with pytest.raises(error, match=text):
        agent.learn(5000, progress=False)
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there():
    ray.shutdown()
    agent = ApeX("CartPole-v1", address="127.0.0.1:1", **SMALL)
    with pytest.raises(InputError, match="address: no Ray cluster answers at 127.0.0.1:1: "):
        agent.learn(1000, progress=False)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_signal_saves_and_stops_ray(tmp_path):
    argv = ["train", "apex", "--env", "CartPole-v1", "--total-steps", "1000000", "--out", str(tmp_path / "run")]
    code = "import sys; from fastrl.cli import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen([sys.executable, "-c", code, *argv], stderr=subprocess.PIPE, text=True) as run:
        table = tmp_path / "run" / "progress.csv"
        until = time.monotonic() + 240
        while not (table.exists() and len(table.read_text().splitlines()) > 2) and time.monotonic() < until:
            time.sleep(0.2)
        below = descendants(run.pid)
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM and "terminated at step" in err
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists() and len(below) > 4
    until = time.monotonic() + 30
    while (left := [pid for pid in below if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []
