"""Runs whose terminal is closed, and whose first process is killed: what was learned is saved, and nothing is left."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import SMALL

from fastrl.agents import DQN
from fastrl.cli import seeds

if os.name == "nt":
    pytest.skip("POSIX signals", allow_module_level=True)

TRAIN = [sys.executable, "-m", "fastrl", "train", "dqn", "--env", "CartPole-v1", *SMALL, "--total-steps", "10000000"]


@pytest.fixture(autouse=True)
def no_nohup():
    """Under nohup these tests, and so the processes that they start, would ignore a hangup."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def until(true, what):
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def rows(run):
    table = Path(run, "progress.csv")
    return table.read_text().count("\n") if table.exists() else 0


def steps(run):
    return DQN.load(run).steps


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def in_terminal(argv):
    """The process, at the head of a session in a terminal of its own, and the other end of that."""
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    shell = f"exec {shlex.join(map(str, argv))} <{name} >{name} 2>&1"
    process = subprocess.Popen(["sh", "-c", shell], start_new_session=True)
    return process, ours, theirs


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="opening a terminal makes it that of the session")
@pytest.mark.parametrize("more", [[], ["--seeds", "2", "--jobs", "2"]])
def test_a_terminal_that_is_closed(more, tmp_path):
    out = tmp_path / "run"
    process, ours, theirs = in_terminal([*TRAIN, *more, "--out", out])
    each = [out / "seed0", out / "seed1"] if more else [out]
    try:
        until(lambda: all(rows(run) > 1 for run in each), "training does not begin")
        os.close(theirs)
        os.close(ours)
        assert process.wait(timeout=120) == 128 + signal.SIGHUP
    finally:
        process.kill()
    assert all(steps(run) >= 1000 for run in each)


def test_a_hangup_that_is_ignored_or_comes_twice(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        how = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(["nohup", *TRAIN, "--out", str(tmp_path / "kept")], **how)
        other = subprocess.Popen([*TRAIN, "--out", str(tmp_path / "ended")], **how)
    try:
        until(lambda: rows(tmp_path / "kept") > 1 and rows(tmp_path / "ended") > 1, "training does not begin")
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            other.send_signal(signal.SIGHUP)
        assert other.wait(timeout=120) == 128 + signal.SIGHUP
        before = rows(tmp_path / "kept")
        until(lambda: rows(tmp_path / "kept") > before + 1 or process.poll() is not None, "training does not go on")
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    finally:
        process.kill()
        other.kill()
    said = (tmp_path / "log").read_text()
    assert said.count("fastrl: terminated at step") == 2 and "Traceback" not in said
    assert steps(tmp_path / "ended") >= 1000 and steps(tmp_path / "kept") >= 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of it")
def test_seeds_end_with_the_process_that_was_killed(tmp_path):
    out = tmp_path / "runs"
    argv = [*TRAIN, "--seeds", "2", "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: rows(out / "seed0") > 1 and rows(out / "seed1") > 1, "training does not begin")
        pids = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    finally:
        process.kill()
        process.wait()
    assert len(pids) == 2
    until(lambda: not any(map(alive, pids)), "the seeds go on")
    assert steps(out / "seed0") >= 1000 and steps(out / "seed1") >= 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of it")
def test_a_seed_whose_parent_died_before_it_could_say(tmp_path):
    code = seeds.START.format(path=sys.path, parent=2**30)
    assert subprocess.run([sys.executable, "-c", code, "list"], stdout=subprocess.DEVNULL).returncode == 143


ENDLESS = """
import gymnasium as gym
import numpy as np

class Endless(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.5, False, False, {}

gym.register("Endless-v0", Endless)
"""


@pytest.mark.parametrize("more", [[], ["--seeds", "2", "--jobs", "2"]])
def test_an_evaluation_at_the_end_that_is_ended_is_made_up_for(more, tmp_path):
    """A run whose training is done had no result for good."""
    (tmp_path / "endless_env.py").write_text(ENDLESS)
    run, env = [sys.executable, "-m", "fastrl", "train"], ["--env", "endless_env:Endless-v0"]
    how = {"cwd": tmp_path, "stdin": subprocess.DEVNULL, "text": True}
    first = [*run, "dqn", *env, *SMALL, "--total-steps", "150", "--max-episode-steps", "0", *more, "--out", "out"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(first, stdout=log, stderr=log, **how)
    each = [tmp_path / "out" / f"seed{i}" for i in range(2)] if more else [tmp_path / "out"]
    logs = [run.with_suffix(".log") for run in each] if more else [tmp_path / "log"]
    try:
        until(lambda: all(log.exists() and "evaluating:" in log.read_text() for log in logs), "there is no evaluation")
        process.terminate()
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    finally:
        process.kill()
    said = (tmp_path / "log").read_text()
    assert said.count("terminated in the evaluation at the end, which is made up for with: ") == len(each)
    assert not any("result" in json.loads((folder / "run.json").read_text()) for folder in each)
    again = subprocess.run([*run, "--resume", "out", *env, "--max-episode-steps", "10"], capture_output=True, **how)
    assert again.returncode == 0, again.stderr
    for folder in each:
        assert json.loads((folder / "run.json").read_text())["result"] == {"steps": 150, "greedy_returns": [5.0] * 20}
    assert again.stdout.count(" 5.0 ") >= len(each)
    if more:
        assert "of 2 seeds; IQM 5.0" in again.stdout and again.stdout.count(" done ") == 2
    once_more = subprocess.run([*run, "--resume", "out", *env], capture_output=True, **how)
    assert ("done before" if more else "is finished: 150 of 150 steps") in once_more.stdout
