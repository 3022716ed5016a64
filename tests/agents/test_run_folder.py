"""A run folder when things go wrong: two trainers, kills, failing environments, logs that cannot grow, SIGTERM."""

import csv
import errno
import os
import signal
import threading
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from fastrl.agents import DQN, PPO, DQNConfig, logs
from fastrl.agents.config import InputError
from fastrl.agents.evaluation import evaluate
from fastrl.agents.training import LOCK

SMALL = {"hidden": (16,), "learning_starts": 100, "train_every": 10, "updates": 1, "batch_size": 16}

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and locks")


class Failing(CartPoleEnv):
    """Raises at one of its steps."""

    def __init__(self, at=1500, error=None):
        super().__init__()
        self.left, self.error = at, error or ZeroDivisionError("division by zero")

    def step(self, action):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().step(action)


class Endless(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.5, False, False, {}


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@posix
def test_two_agents_in_one_run_folder(tmp_path, monkeypatch):
    run = tmp_path / "run"
    first = DQN("CartPole-v1", **SMALL).learn(1000, folder=run, progress=False)
    second, step, refused = DQN.load(run), first.envs.step, []

    def meanwhile(action):
        if first.steps == 1100:
            with pytest.raises(InputError, match="run is in use: another process trains there"):
                second.learn(1300, folder=run, progress=False)
            refused.append(True)
        return step(action)

    monkeypatch.setattr(first.envs, "step", meanwhile)
    first.learn(1200, folder=run, progress=False)
    assert refused and DQN.load(run).steps == 1200 and not (run / LOCK).exists()
    assert [int(row["step"]) for row in read(run / "progress.csv")] == [1000, 1200]
    assert second.steps == 1000


@posix
def test_new_folder_is_for_one_of_two(tmp_path, monkeypatch):
    first, second = DQN("CartPole-v1", **SMALL), DQN("CartPole-v1", **SMALL)
    step = first.envs.step

    def meanwhile(action):
        with pytest.raises(InputError, match="is in use"):
            second.learn(100, folder=tmp_path / "run", progress=False)
        return step(action)

    monkeypatch.setattr(first.envs, "step", meanwhile)
    first.learn(20, folder=tmp_path / "run", progress=False)
    assert DQN.load(tmp_path / "run").steps == 20


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), InputError("the reward of X must be finite")], ids=str)
def test_what_was_learned_is_saved_when_the_environment_raises(error, tmp_path):
    agent = DQN(Failing(1500, error), **SMALL)
    with pytest.raises(type(error)) as raised:
        agent.learn(3000, folder=tmp_path / "run", progress=False)
    assert raised.value is error and agent.steps == 1500
    resumed = DQN.load(tmp_path / "run", env=Failing(10**9))
    assert resumed.steps == 1500 and resumed.total_steps == 3000
    assert resumed.learn(1600, folder=tmp_path / "run", progress=False).steps == 1600


def test_an_earlier_checkpoint_is_not_lost_when_the_environment_raises_at_once(tmp_path):
    PPO(Failing(10**9), n_steps=64, num_envs=1).learn(128, folder=tmp_path / "run", progress=False)
    agent = PPO.load(tmp_path / "run", env=Failing(200))
    with pytest.raises(ZeroDivisionError):
        agent.learn(1000, folder=tmp_path / "run", progress=False)
    assert PPO.load(tmp_path / "run", env=Failing()).steps >= 128


@pytest.mark.parametrize("there", [False, True])
def test_nothing_stays_of_a_run_that_came_to_nothing(there, tmp_path):
    run = tmp_path / "run"
    if there:
        run.mkdir()
    agent = DQN(Failing(0), **SMALL)
    with pytest.raises(ZeroDivisionError):
        agent.learn(100, folder=run, progress=False)
    assert list(tmp_path.rglob("*")) == ([run] if there else [])


def test_rows_survive_a_death_while_the_table_is_opened(tmp_path, monkeypatch):
    DQN("CartPole-v1", **SMALL).learn(1500, folder=tmp_path, progress=False)
    before = (tmp_path / "progress.csv").read_bytes()
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def die(*_):
                raise KeyboardInterrupt

            agent = DQN.load(tmp_path)
            patch.setattr(os, name, die)
            with pytest.raises(KeyboardInterrupt):
                agent.learn(1600, folder=tmp_path, progress=False)
        assert (tmp_path / "progress.csv").read_bytes() == before


def test_a_damaged_line_takes_no_other_with_it():
    text = 'step,a\r\n1,x\r\n2,"\r\n3,"y\r\n' + "4," + "z" * 200_000 + "\r\n" + "9" * 5000 + ",w\r\n5\r\n6,v\r\n7,u"
    assert [row["step"] for row in logs.complete_rows(text)] == ["1", "2", "3", "6"]
    lost = "\0" * 50  # a page
    text = f"step,a\r\n1,x\r\n20,{lost}y\r\n4{lost}0,z\r\n{lost}5,v\r\n6,{lost}\r\n{lost}\r\n7,w\r\n"
    assert logs.complete_rows(text) == [{"step": "1", "a": "x"}, {"step": "7", "a": "w"}]
    assert logs.complete_rows(f"step,a{lost}b\r\n1,x\r\n") == logs.complete_rows(f"{lost}step,a\r\n1,x\r\n") == []
    assert logs.complete_rows("") == logs.complete_rows("x" * 200_000 + "\n1\n") == []


@pytest.mark.parametrize("cell", ["", "x", "\0\0", "\ufffd"])
def test_a_damaged_evaluation_does_not_stop_a_run(cell, tmp_path):
    table = tmp_path / "evaluations.csv"
    DQN("CartPole-v1", **SMALL).learn(1500, folder=tmp_path, progress=False, eval_every=500, eval_episodes=1)
    lines = table.read_bytes().decode().split("\r\n")
    assert [line.partition(",")[0] for line in lines] == ["step", "500", "1000", "1500", ""]
    cells = lines[2].split(",")
    cells[3] = cell
    lines[2] = ",".join(cells)
    table.write_bytes("\r\n".join(lines).encode())
    DQN.load(tmp_path).learn(2000, folder=tmp_path, progress=False, eval_every=500, eval_episodes=1)
    found = table.read_bytes().decode().split("\r\n")
    assert found[:3] == [lines[0], lines[1], lines[3]] and found[3].startswith("2000,") and found[4:] == [""]


def test_time_goes_on_at_a_resume(tmp_path):
    DQN("CartPole-v1", **SMALL).learn(1000, folder=tmp_path, progress=False)
    table = tmp_path / "progress.csv"
    header, row = table.read_text().splitlines()
    cells = row.split(",")
    cells[header.split(",").index("time_s")] = "5000.25"
    table.write_text(f"{header}\n{','.join(cells)}\n")
    DQN.load(tmp_path).learn(2000, folder=tmp_path, progress=False)
    first, second = (float(row["time_s"]) for row in read(table))
    assert first == 5000.25 < second < 6000


@pytest.mark.parametrize("which", ["table", "events"])
def test_a_log_that_cannot_grow_is_one_line(which, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    agent = DQN("CartPole-v1", **SMALL).learn(500, folder=tmp_path, progress=False)
    if which == "table":
        write = csv.DictWriter.writerow
        monkeypatch.setattr(
            csv.DictWriter, "writerow", lambda t, row: write(t, row) if "step" in row.values() else full()
        )
    else:
        monkeypatch.setattr(logs._Events, "write", full)
    threads = threading.active_count()
    with pytest.raises(InputError, match=f"^cannot write the logs in {tmp_path}: File too large$"):
        agent.learn(3000, folder=tmp_path, progress=False)
    assert threading.active_count() == threads and DQN.load(tmp_path).steps == 1000


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    DQN("CartPole-v1", **SMALL).learn(2500, folder=tmp_path, progress=False)
    agent = DQN.load(tmp_path)
    agent.steps = 1800  # as if the last checkpoint were of that step: what follows it happens again
    agent.learn(2200, folder=tmp_path, progress=False)
    found = EventAccumulator(str(tmp_path)).Reload()
    rows = read(tmp_path / "progress.csv")
    tags = found.Tags()["scalars"]
    assert {tag.partition("/")[2] for tag in tags} == set(rows[0]) - {"step"}
    assert {tag.partition("/")[0] for tag in tags} == {"rollout", "time", "train"}
    assert [event.step for event in found.Scalars("rollout/episode_return")] == [1000, 2000, 2200]
    np.testing.assert_allclose(
        [event.value for event in found.Scalars("train/loss")], [float(row["loss"]) for row in rows], rtol=1e-6
    )


def test_tensorboard_has_the_hyperparameters(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    DQN("CartPole-v1", **SMALL).learn(200, folder=tmp_path / "run", progress=False)
    content = EventAccumulator(str(tmp_path / "run")).Reload().PluginTagToContent("hparams")
    data = {tag: HParamsPluginData.FromString(value) for tag, value in content.items()}
    columns = data["_hparams_/experiment"].experiment
    values = data["_hparams_/session_start_info"].session_start_info.hparams
    assert {info.name for info in columns.hparam_infos} == set(values) == {f.name for f in fields(DQNConfig)}
    assert [info.name.tag for info in columns.metric_infos] == ["rollout/episode_return", "eval/return_mean"]
    assert values["learning_starts"].number_value == 100 and values["double"].bool_value is False
    assert values["hidden"].string_value == "(16,)" and values["loss"].string_value == "mse"


@posix
def test_sigterm_saves_after_the_step(tmp_path, monkeypatch):
    agent = DQN("CartPole-v1", **SMALL)
    step = agent.envs.step

    def terminated(action):
        if agent.steps == 700:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(action)

    monkeypatch.setattr(agent.envs, "step", terminated)
    with pytest.raises(SystemExit) as stop:
        agent.learn(5000, folder=tmp_path / "run", progress=False)
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert DQN.load(tmp_path / "run").steps == 701


@posix
def test_sigterm_of_a_program_that_handles_it_itself(tmp_path):
    handler = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, handler)
    try:
        agent = DQN("CartPole-v1", **SMALL)
        step = agent.envs.step

        def look(action):
            assert signal.getsignal(signal.SIGTERM) is handler
            return step(action)

        agent.envs.step = look
        assert agent.learn(50, folder=tmp_path / "run", progress=False).steps == 50
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_evaluation_has_an_end():
    agent = DQN(Endless(), **SMALL)
    with pytest.warns(UserWarning, match=r"2 of 2 episodes were cut at 70 steps \(max_steps\)"):
        assert agent.evaluate(2, env=Endless(), max_steps=70).tolist() == [35.0, 35.0]
    with pytest.warns(UserWarning, match="1 of 1 episodes were cut at 30000 steps"):
        assert agent.evaluate(1, env=Endless()).tolist() == [15_000.0]
    assert evaluate(lambda obs: 0, Endless(), 1, 0, max_steps=5).tolist() == [2.5]
    limited = gym.wrappers.TimeLimit(Endless(), 40_000)
    for no_cap in (None, 0):
        assert evaluate(lambda obs: 0, limited, 1, 0, max_steps=no_cap).tolist() == [20_000.0]
    for value, pattern in ((-1, "max_steps must be >= 0 or None, got -1"), (2.5, "max_steps must be an int")):
        with pytest.raises(InputError, match=pattern):
            agent.evaluate(1, env=Endless(), max_steps=value)
