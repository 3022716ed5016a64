"""Logs, progress, Ctrl-C, and one short run that must learn."""

import csv
import os
import signal

import numpy as np
import pytest

from fastrl.agents import DQN
from fastrl.agents.config import InputError

SMALL = {"hidden": (16,), "learning_starts": 100, "train_every": 10, "updates": 1, "batch_size": 16}
SMALL |= {"learning_rate_steps": 5000}  # of its own, so that parts make a whole


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_logs_and_checkpoint_in_the_run_folder(tmp_path):
    DQN("CartPole-v1", **SMALL).learn(2500, folder=tmp_path / "run", progress=False)
    rows = read(tmp_path / "run" / "progress.csv")
    assert [int(row["step"]) for row in rows] == [1000, 2000, 2500]
    assert float(rows[-1]["episode_return"]) > 5 and float(rows[-1]["steps_per_s"]) > 0
    assert float(rows[-1]["loss"]) > 0
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    # A resumed run goes on in the same table; what a crash left behind the checkpoint is dropped.
    with (tmp_path / "run" / "progress.csv").open("a") as file:
        file.write(",".join(["9000"] + [""] * (len(rows[0]) - 1)) + "\n")
    DQN.load(tmp_path / "run").learn(4000, folder=tmp_path / "run", progress=False)
    assert [int(row["step"]) for row in read(tmp_path / "run" / "progress.csv")] == [1000, 2000, 2500, 3000, 4000]
    assert DQN.load(tmp_path / "run").steps == 4000


@pytest.mark.parametrize("broken", ["15", "1500,1.5", "x" * 30 + "\n", "\n,,\n", "1500,1\n", "\0\0"])
def test_what_a_crash_left_in_the_table_is_dropped(broken, tmp_path):
    DQN("CartPole-v1", **SMALL).learn(1500, folder=tmp_path, progress=False)
    table = tmp_path / "progress.csv"
    whole = table.read_bytes()
    table.write_bytes(whole + broken.encode())
    DQN.load(tmp_path).learn(1600, folder=tmp_path, progress=False)
    assert table.read_bytes().startswith(whole)
    assert [int(row["step"]) for row in read(table)] == [1000, 1500, 1600]


def test_another_runs_folder_is_left_alone(tmp_path):
    first = DQN("CartPole-v1", **SMALL).learn(200, folder=tmp_path / "run", progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    DQN("CartPole-v1", **SMALL).learn(100, progress=False).save(tmp_path / "bare" / "a")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for agent, folder in (
        (DQN("CartPole-v1", **SMALL), "run"),
        (DQN("CartPole-v1", **SMALL), "mine"),
        (DQN.load(tmp_path / "bare" / "a"), "run"),
        (DQN.load(tmp_path / "bare" / "a"), "bare/a"),
    ):
        with pytest.raises(InputError, match="is not empty and not of this agent's run; nothing is overwritten"):
            agent.learn(400, folder=tmp_path / folder, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Its own run goes on: the same object, or one loaded from there.
    first.learn(300, folder=tmp_path / "run", progress=False)
    DQN.load(tmp_path / "run" / "checkpoint").learn(400, folder=tmp_path / "run", progress=False)
    assert DQN.load(tmp_path / "run").steps == 400


@pytest.mark.parametrize("prioritized", [False, True])
def test_divergence_is_an_input_error_and_keeps_the_last_checkpoint(prioritized, tmp_path):
    agent = DQN("CartPole-v1", prioritized=prioritized, **SMALL).learn(500, folder=tmp_path, progress=False)
    agent.online.vector[:] = np.nan
    at = 510 if prioritized else 1000  # the next update, where it would be a priority, or the next line of the log
    with pytest.raises(InputError, match=f"^loss is not finite at step {at}, but nan: training diverged"):
        agent.learn(3000, folder=tmp_path, progress=False)
    assert DQN.load(tmp_path).steps == 500


def test_periodic_checkpoints(tmp_path, monkeypatch):
    agent, saved = DQN("CartPole-v1", **SMALL), []
    monkeypatch.setattr(agent, "save", lambda folder: saved.append(agent.steps))
    agent.learn(1000, folder=tmp_path, save_every=300, progress=False)
    assert saved == [300, 600, 900, 1000]


def test_lines_now_and_then_without_a_terminal(capsys):
    DQN("CartPole-v1", **{**SMALL, "train_every": 50}).learn(10_000, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step 1000/10000") and "steps/s" in lines[0] and "loss" in lines[0]
    DQN("CartPole-v1", **SMALL).learn(500, progress=False)
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_saves_after_the_step(tmp_path, monkeypatch):
    agent = DQN("CartPole-v1", **SMALL)
    step = agent.envs.step

    def interrupted(action):
        if agent.steps == 700:
            os.kill(os.getpid(), signal.SIGINT)
        return step(action)

    monkeypatch.setattr(agent.envs, "step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="checkpoint saved"):
        agent.learn(5000, folder=tmp_path / "run", progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = DQN.load(tmp_path / "run")
    assert resumed.total_steps == 5000  # what `fastrl train --resume` goes on to
    resumed.learn(1000, progress=False)
    straight = DQN("CartPole-v1", **SMALL).learn(1000, progress=False)
    assert resumed.metrics() == straight.metrics() and resumed.steps == 1000


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file"):
        DQN("CartPole-v1", **SMALL).learn(100, folder=tmp_path / "file" / "run", progress=False)


def test_learns_cartpole():
    """One fast seed with all switches; `bench/learning.py` has the five of each, and their bars.

    A random policy gets 22.  How far above it one seed is after so few steps depends on how the processor rounds.
    """
    agent = DQN("CartPole-v1", double=True, dueling=True, prioritized=True, seed=0).learn(15_000, progress=False)
    assert agent.evaluate(20).mean() >= 100


def test_numbers_of_steps_may_be_numpys(tmp_path):
    agent = DQN("CartPole-v1", **SMALL).learn(np.int64(30), folder=tmp_path, save_every=np.uint8(10), progress=False)
    assert type(agent.total_steps) is int and agent.total_steps == agent.steps == DQN.load(tmp_path).total_steps == 30
    with pytest.warns(UserWarning, match="^save_every has no effect without folder$"):
        agent.learn(4e1, save_every=np.float32(10), progress=False)
    assert type(agent.total_steps) is int and agent.steps == 40
    with pytest.warns(UserWarning, match="^eval_episodes has no effect without eval_every or stop_at$"):
        agent.learn(50, eval_episodes=2, progress=False)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 200.5, np.float64(200.5), "200", None, True, np.True_, [200]], ids=repr
)
def test_numbers_of_steps_that_are_none_start_nothing(value, tmp_path):
    agent = DQN("CartPole-v1", **SMALL).learn(10, progress=False)
    for name in ("total_steps", "save_every"):
        if name == "save_every" and value is None:
            continue  # never
        settings = {"total_steps": 200, name: value}
        with pytest.raises(InputError, match=f"^{name} must be an int, got "):
            agent.learn(**settings, folder=tmp_path / "run", progress=False)
    assert agent.steps == agent.total_steps == 10 and not (tmp_path / "run").exists()


def test_what_learn_refuses_leaves_the_agent_as_it_was(tmp_path):
    agent = DQN("CartPole-v1", **SMALL).learn(20, progress=False)
    (tmp_path / "mine").write_text("keep")
    for settings, text in (
        ({"total_steps": 20}, "total_steps must be > 20"),
        ({"total_steps": 40, "save_every": 0}, "save_every must be >= 1, got 0"),
        ({"total_steps": 40, "folder": tmp_path}, "not empty and not of this agent's run"),
        ({"total_steps": 40, "folder": tmp_path / "mine" / "run"}, "cannot write to"),
    ):
        with pytest.raises(InputError, match=text):
            agent.learn(**settings, progress=False)
        assert (agent.steps, agent.total_steps, agent.run_folder) == (20, 20, None)
    assert agent.learn(30, progress=False).total_steps == 30
