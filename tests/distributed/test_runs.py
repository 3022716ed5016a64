"""On Ray: whole runs, and processes that hang or are killed in them."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from processes import command_line, descendants, processes, working_in

if find_spec("ray") is None:  # which importing it would keep from listening on 127.0.0.1 alone, see import_ray
    pytest.skip("needs Ray", allow_module_level=True)

from fastrl.agents import InputError
from fastrl.agents.checkpoint import load_checkpoint
from fastrl.distributed.cluster import import_ray

ray = import_ray("tests")  # before anything else imports it, so that it listens on 127.0.0.1 alone

from fastrl.distributed import IMPALA, ApeX, ApeXDPG, ApeXR2D2  # noqa: E402

SMALL = {"hidden": (16,), "chunk": 25, "num_envs": 2, "learning_starts": 200, "batch_size": 32}
ROLLOUTS = {"hidden": (16,), "num_envs": 2, "n_steps": 25}
ENV = """
import os
import time
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
class Hangs(CartPoleEnv):  # once, in one process
    steps = 0
    def step(self, action):
        self.steps += 1
        if self.steps == 70:
            try:
                os.mkdir(os.environ["HANGS_ONCE"])
            except FileExistsError:
                pass
            else:
                time.sleep(600)
        return super().step(action)
gym.register("Hangs-v0", Hangs, max_episode_steps=50)
gym.register("Breaks-v0", Breaks, max_episode_steps=50)
gym.register("BreaksOddly-v0", BreaksOddly, max_episode_steps=50)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In which all processes find the module `breaking`."""
    path = tmp_path_factory.mktemp("breaking")
    (path / "breaking.py").write_text(ENV)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        patch.setenv("PYTHONPATH", str(path))
        patch.setenv("HANGS_ONCE", str(path / "once"))
        yield path


@pytest.fixture(scope="module")
def cluster(folder):
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
    # 16 draws of each of 1800 transitions are 900 updates, and four chunks under way may be drawn ahead of: 100 updates
    # for those that are counted as asked for, and 108 for the tolerance of the limiter.
    assert 500 <= agent.n_updates <= 1108 and float(last["policy_lag"]) > 0 and 0 < float(last["sample_age"]) < 2100
    assert [s for s, _ in heard] == list(range(50, agent.steps + 1, 50))
    assert sum(n for _, n in heard) == agent.envs.episodes > 20
    loaded = ApeX.load(tmp_path / "run")
    assert loaded.n_updates == agent.n_updates and (loaded.online.vector == agent.online.vector).all()
    loaded.learn(4000, folder=tmp_path / "run", progress=False)  # goes on, with an empty buffer
    assert loaded.steps >= 4000 and loaded.n_updates > agent.n_updates
    assert json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())["replay"] is False


def test_a_run_of_dpg(cluster, tmp_path):
    agent = ApeXDPG("Pendulum-v1", seed=1, **SMALL)
    before = [network.vector.copy() for network in (agent.actor, agent.critics)]
    agent.learn(1500, folder=tmp_path / "run", progress=False)
    assert agent.steps >= 1500 and agent.n_updates >= 800 and agent._numbers["lost_actors"] == 0
    assert all((network.vector != x).any() for network, x in zip((agent.actor, agent.critics), before, strict=True))
    loaded = ApeXDPG.load(tmp_path / "run")
    assert loaded.n_updates == agent.n_updates and (loaded.actor.vector == agent.actor.vector).all()


def test_a_run_of_r2d2(cluster, tmp_path):
    small = {"hidden": (8,), "memory_size": 8, "chunk": 24, "num_envs": 2, "length": 12, "learning_starts": 200}
    agent = ApeXR2D2("CartPole-v1", seed=1, shards=2, batch_size=8, **small)
    before = agent.online.vector.copy()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        agent.learn(1500, folder=tmp_path / "run", progress=False)
    assert not [w for w in said if "not writable" in str(w.message)]
    # A draw of each of 1300 transitions, and 55 updates for what is under way at the end.
    assert (
        agent.steps >= 1500
        and 100 <= agent.n_updates <= (agent.steps - 200) / 8 + 56
        and (agent.online.vector != before).any()
    )
    assert agent._numbers["stale_priorities"] == 0 and agent._numbers["lost_shards"] == 0
    loaded = ApeXR2D2.load(tmp_path / "run")
    assert loaded.n_updates == agent.n_updates and (loaded.online.vector == agent.online.vector).all()
    assert loaded.evaluate(1).shape == (1,)


def test_a_run_of_impala(cluster, tmp_path):
    agent, heard = IMPALA("CartPole-v1", seed=1, broadcast_every=2, **ROLLOUTS), []
    before = agent.policy.vector.copy()
    agent.learn(2000, folder=tmp_path / "run", callback=lambda a: heard.append(a.steps))
    assert 2000 <= agent.steps <= 2150 and agent.n_updates == agent.steps / 50  # several rollouts may come at once
    assert (agent.policy.vector != before).any()
    assert heard == list(range(50, agent.steps + 1, 50)) and agent.envs.episodes > 20
    last = list(csv.DictReader((tmp_path / "run" / "progress.csv").open()))[-1]
    assert last["lost_actors"] == "0" and 0 <= float(last["policy_lag"]) <= 5
    loaded = IMPALA.load(tmp_path / "run")
    loaded.learn(3000, folder=tmp_path / "run", progress=False)
    assert 3000 <= loaded.steps <= 3150 and loaded.n_updates == loaded.steps / 50


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


def test_killed_actors_of_impala(cluster):
    agent = IMPALA("CartPole-v1", seed=2, **ROLLOUTS)
    callback, killed = kill_in_turn(["actors"] * 3, 400)
    with pytest.warns(UserWarning, match="actor 0 has died and was replaced: The actor died"):
        agent.learn(2500, callback=callback, progress=False)
    assert killed == [400, 800, 1200] and agent.steps >= 2500 and agent.n_updates == agent.steps / 50
    assert agent._numbers["lost_actors"] == 3


def test_an_actor_that_hangs_is_replaced(cluster, folder):
    agent, lost = ApeX("breaking:Hangs-v0", **SMALL), []

    def callback(agent):
        if agent.steps >= 500:  # before, a process may take longer to begin
            agent._fleet.config = replace(agent.config, timeout=3.0)
        lost.append(agent._fleet.lost.actors)
        return not lost[-1]

    with pytest.warns(UserWarning, match=r"actor \d has not answered for 3 s \(timeout\) and is ended"):
        agent.learn(1_000_000, callback=callback, progress=False)
    assert (folder / "once").exists() and lost[-1] == 1 and len(lost) >= 10 and agent.n_updates > 0


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


def test_an_error_that_does_not_travel_ends_the_run(cluster):
    with pytest.raises(RuntimeError, match=r"(?s)actor \d: .*cart and pole"):
        ApeX("breaking:BreaksOddly-v0", **SMALL).learn(5000, progress=False)


def test_an_error_of_the_environment_ends_the_run_and_ray(folder):
    ray.shutdown()
    with pytest.raises(OSError, match="the cart is gone"):
        IMPALA("breaking:Breaks-v0", **ROLLOUTS).learn(5000, progress=False)
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there():
    ray.shutdown()
    agent = ApeX("CartPole-v1", address="127.0.0.1:1", **SMALL)
    with pytest.raises(InputError, match="address: no Ray cluster answers at 127.0.0.1:1: "):
        agent.learn(1000, progress=False)


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MAIN = "import sys; from fastrl.cli import main; sys.exit(main(sys.argv[1:]))"


def wait_until(true, seconds, why):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, why
        time.sleep(0.1)


def all_end(pids, seconds):
    """Processes, whose numbers are not used again so soon."""
    until, left = time.monotonic() + seconds, pids
    while left:
        assert time.monotonic() < until, f"left after {seconds} s: {left}"
        time.sleep(0.1)
        listed = processes()
        left = {pid: (listed[pid], command_line(pid)) for pid in left if pid in listed}


@pytest.mark.slow
@on_linux
def test_a_signal_saves_and_stops_ray(tmp_path):
    argv = ["train", "apex", "--env", "CartPole-v1", "--total-steps", "1000000", "--out", str(tmp_path / "run")]
    with subprocess.Popen([sys.executable, "-c", MAIN, *argv], stderr=subprocess.PIPE, text=True) as run:
        table = tmp_path / "run" / "progress.csv"
        wait_until(lambda: table.exists() and len(table.read_text().splitlines()) > 2, 240, "no progress")
        below = descendants(run.pid)
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM and "terminated at step" in err
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists() and len(below) > 4
    all_end(below, 30)


@pytest.fixture(scope="module")
def folders_of_killed():
    """Working folders of runs, of whose processes none is left at the end.

    Ray's idle agents look for the head for a minute first: that is waited for once.
    """
    folders = []
    yield folders
    all_end([pid for folder in folders for pid in working_in(folder)], 180)


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("algorithm", ["apex", "impala"])
def test_a_killed_learner_goes_on_from_its_checkpoint(algorithm, tmp_path, folders_of_killed):
    """kill -9 at random moments: Ray's processes end by themselves, and --resume has what was saved."""
    run, here, rng, done = tmp_path / "run", tmp_path / "here", np.random.default_rng(0), 0
    here.mkdir()  # the working folder of all processes of the run, by which they are known
    folders_of_killed.append(here)
    settings = ["--hidden", "16", "--num-envs", "2", *(["--learning-starts", "200"] if algorithm == "apex" else [])]
    argv = [
        algorithm,
        "--env",
        "CartPole-v1",
        "--out",
        run,
        "--total-steps",
        "1000000",
        "--save-every",
        "500",
        *settings,
    ]

    def command(*args):
        return [sys.executable, "-c", MAIN, "train", *map(str, args)]

    def saved():
        try:
            with load_checkpoint(run) as checkpoint:
                return checkpoint.state["steps"]
        except InputError:  # not yet
            return 0

    for _ in range(2):
        with subprocess.Popen(command(*argv), cwd=here, start_new_session=True, stderr=subprocess.DEVNULL) as learner:
            wait_until(lambda: saved() > done or learner.poll() is not None, 240, "no checkpoint")  # noqa: B023
            time.sleep(rng.uniform(0, 1.5))
            below = descendants(learner.pid)
            learner.kill()
        assert learner.returncode == -signal.SIGKILL and len(below) > 4
        # A run that goes on does not mind Ray's idle agents.
        all_end([pid for pid in below if "Agent" not in command_line(pid)], 60)
        assert saved() > done
        done, argv = saved(), ["--resume", run]
    ended = subprocess.run(
        command("--resume", run, "--total-steps", done + 1000), cwd=here, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert f"; goes on after {done:,} environment steps" in ended.stderr
    assert done + 1000 <= saved() < done + 2000
    steps = [int(row["step"]) for row in csv.DictReader((run / "progress.csv").open())]
    assert steps == sorted(set(steps)) and steps[-1] == saved()
    assert len(json.loads((run / "run.json").read_text())["history"]) == 3
