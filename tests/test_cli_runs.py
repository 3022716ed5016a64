"""Runs from the command line when things go wrong: one line, an exit code, and nothing lost or begun for nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest

from fastrl import cli
from fastrl.agents import DQN

SMALL = ["--hidden", "16", "--learning-starts", "100", "--train-every", "10", "--updates", "1", "--batch-size", "16"]
TRAIN = ["train", "dqn", "--env", "CartPole-v1", *SMALL]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and pipes")

ENVS = """
import gymnasium as gym, numpy as np

class Endless(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    fails_at = None
    closed = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        if Endless.fails_at is not None:
            Endless.fails_at -= 1
            if Endless.fails_at < 0:
                raise KeyError("the simulator has gone")
        return np.zeros(2, np.float32), 0.5, False, False, {}

    def close(self):
        Endless.closed += 1

gym.register("Mine-v0", Endless)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The class of ``mine_envs:Mine-v0``, in an empty working folder."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine_envs.py").write_text(ENVS)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    yield lambda: sys.modules["mine_envs"].Endless
    sys.modules.pop("mine_envs", None)
    gym.registry.pop("Mine-v0", None)


def last_line(capsys):
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_two_runs_begun_in_the_same_second(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260102-030405")
    for _ in range(3):
        assert cli.main([*TRAIN, "--total-steps", "20"]) == 0
    stem = "CartPole-v1-dqn-seed0-20260102-030405"
    assert sorted(os.listdir("runs")) == [stem, f"{stem}-2", f"{stem}-3"]
    assert all(DQN.load(Path("runs") / name).steps == 20 for name in os.listdir("runs"))


def test_default_folder_of_a_module_has_no_colon_and_resumes(mine, capsys):
    env = ["--env", "mine_envs:Mine-v0"]
    assert cli.main(["train", "dqn", *env, *SMALL, "--total-steps", "150", "--max-episode-steps", "30"]) == 0
    out, err = capsys.readouterr()
    assert "15.0 +- 0.0" in out and "20 of 20 episodes were cut at 30 steps (--max-episode-steps)" in err
    (run,) = Path("runs").iterdir()
    assert re.fullmatch(r"mine_envs_Mine-v0-dqn-seed0-\d{8}-\d{6}", run.name)
    assert mine().closed == 2  # training's and the evaluation's
    # A checkpoint does not choose what is imported: who runs it says so.
    for argv in (["eval", str(run)], ["train", "--resume", str(run), "--total-steps", "200"]):
        assert cli.main(argv) == 2
        assert "imports the module 'mine_envs'" in last_line(capsys)
    assert cli.main(["eval", str(run), *env, "--episodes", "2", "--max-episode-steps", "50"]) == 0
    assert "25.0 +- 0.0" in capsys.readouterr().out
    resume = ["train", "--resume", str(run), *env, "--total-steps", "200", "--max-episode-steps", "1"]
    assert cli.main(resume) == 0 and DQN.load(run, env=env[1]).steps == 200


def test_an_environment_that_raises(mine, capsys):
    argv = ["train", "dqn", "--env", "mine_envs:Mine-v0", *SMALL, "--total-steps", "2000", "--max-episode-steps", "9"]
    assert cli.main([*argv, "--total-steps", "20", "--out", "first"]) == 0  # imports it
    mine().fails_at = 1300
    assert cli.main([*argv, "--out", "run"]) == 1
    line = last_line(capsys)
    assert re.match(r"fastrl: KeyError: 'the simulator has gone' \(.*mine_envs.py, line 18\) at step 1300; saved", line)
    assert line.endswith("go on with: fastrl train --resume run --env mine_envs:Mine-v0")
    mine().fails_at = None
    assert DQN.load("run", env="mine_envs:Mine-v0").steps == 1300
    # At once: nothing stays, of a folder that was asked for or not.
    for out in (["--out", "nothing"], []):
        mine().fails_at = 0
        assert cli.main([*argv, *out]) == 1
        assert last_line(capsys).endswith("at step 0; nothing is saved")
    assert sorted(os.listdir()) == ["first", "run", "runs"] and os.listdir("runs") == []
    # In the evaluation: the run is complete.
    mine().fails_at = 405
    assert cli.main([*argv, "--total-steps", "400", "--out", "complete"]) == 1
    out, err = capsys.readouterr()
    assert "saved in" in out and err.splitlines()[-1].endswith("in an evaluation")
    mine().fails_at = 402  # a load goes through the 400 again
    assert cli.main(["eval", "complete", "--env", "mine_envs:Mine-v0"]) == 1
    assert last_line(capsys).endswith("in an evaluation")
    mine().fails_at = 100
    assert cli.main(["eval", "complete", "--env", "mine_envs:Mine-v0"]) == 2
    assert re.search("cannot be brought back: KeyError: 'the simulator has gone'$", last_line(capsys))
    mine().fails_at = None
    assert DQN.load("complete", env="mine_envs:Mine-v0").steps == 400


def test_what_is_refused_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argv in (["--total-steps", "0"], ["--save-every", "0"], ["--out", "x" * 300], ["--out", "y" * 5000]):
        assert cli.main([*TRAIN, *argv]) == 2
        last_line(capsys)
    assert not any(path.is_file() for path in tmp_path.rglob("*")) and os.listdir(tmp_path) in ([], ["runs"])
    assert not any(path.name.startswith("CartPole") for path in tmp_path.rglob("*"))


def test_resume_of_a_finished_run(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert cli.main([*TRAIN, "--total-steps", "150", "--out", run]) == 0
    before = {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()}
    capsys.readouterr()
    for more in ([], ["--total-steps", "150"]):
        assert cli.main(["train", "--resume", run, *more]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{run} is finished: 150 of") and "to go on: --total-steps N" in out
    assert cli.main(["train", "--resume", run, "--total-steps", "100"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"{run} already has 150 steps, more than --total-steps 100: nothing was done; for its returns:"
    )
    for wrong in (["--total-steps", "0"], ["--jobs", "2"]):
        assert cli.main(["train", "--resume", run, *wrong]) == 2
    assert {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()} == before
    DQN("CartPole-v1", hidden=(8,)).save(tmp_path / "bare" / "checkpoint")
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(tmp_path / "bare")]) == 2
    assert last_line(capsys).endswith("does not say how far it was to go: give --total-steps N")


def test_resume_of_a_run_that_was_killed_says_what_is_lost(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main([*TRAIN, "--total-steps", "150", "--out", str(run)]) == 0
    first = f"logs and checkpoint: {run}"
    assert capsys.readouterr().err.splitlines()[0] == first
    table = run / "progress.csv"
    table.write_bytes(table.read_bytes() + table.read_bytes().splitlines(True)[-1].replace(b"150", b"1190", 1))
    lost = "; at least 1,040 later ones were not saved, and are made again"
    for total, before, after in ((200, 150, lost), (250, 200, "")):
        assert cli.main(["train", "--resume", str(run), "--total-steps", str(total)]) == 0
        line = capsys.readouterr().err.splitlines()[0]
        assert line == f"{first}; goes on after {before} environment steps{after}"
        assert [row.split(b",")[0] for row in table.read_bytes().splitlines()[-2:]] == [b"%d" % before, b"%d" % total]


@posix
def test_resume_of_a_run_that_is_in_use(tmp_path, capsys):
    from fastrl._files import locked
    from fastrl.agents.training import LOCK

    run = tmp_path / "run"
    assert cli.main([*TRAIN, "--total-steps", "150", "--out", str(run)]) == 0
    with locked(run / LOCK):
        capsys.readouterr()
        assert cli.main(["train", "--resume", str(run), "--total-steps", "300"]) == 2
        assert last_line(capsys) == f"fastrl: {run} is in use: another process trains there"
        assert cli.main(["eval", str(run), "--episodes", "1"]) == 0  # to look at it is no harm
    assert DQN.load(run).steps == 150


def test_ctrl_c_in_an_evaluation_shows_what_there_is(tmp_path, monkeypatch, capsys):
    run = str(tmp_path / "run")
    assert cli.main([*TRAIN, "--total-steps", "150", "--out", run]) == 0
    play = DQN._play

    def interrupted(self, episodes, *args):
        for number, episode in enumerate(play(self, episodes, *args)):
            if number == 3:
                raise KeyboardInterrupt
            yield episode

    monkeypatch.setattr(DQN, "_play", interrupted)
    for argv in (["eval", run], ["train", "--resume", run, "--total-steps", "160"]):
        capsys.readouterr()
        assert cli.main(argv) == 130
        out, err = capsys.readouterr()
        assert "interrupted after 3 of 20 episodes" in err and re.search(r"greedy, 3 episodes|episodes +│ 3", out)


def test_a_long_evaluation_says_how_far_it_is(mine, monkeypatch, capsys):
    argv = ["train", "dqn", "--env", "mine_envs:Mine-v0", *SMALL, "--total-steps", "20", "--out", "run"]
    assert cli.main([*argv, "--max-episode-steps", "1"]) == 0
    now = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))  # a second a look
    capsys.readouterr()
    assert cli.main(["eval", "run", "--env", "mine_envs:Mine-v0", "--max-episode-steps", "300"]) == 0
    assert "evaluating: step 300 of episode 1 of 20" in capsys.readouterr().err
    assert cli.main(["eval", "run", "--env", "mine_envs:Mine-v0", "--max-episode-steps", "-1"]) == 2


def start(*argv, **kwargs):
    return subprocess.Popen([sys.executable, "-m", "fastrl", *map(str, argv)], text=True, **kwargs)


@posix
def test_sigterm(tmp_path):
    process = start(*TRAIN, "--total-steps", "10000000", "--out", tmp_path / "run", stderr=subprocess.PIPE)
    deadline, table = time.monotonic() + 120, tmp_path / "run" / "progress.csv"
    while time.monotonic() < deadline and not (table.exists() and table.read_text().count("\n") > 1):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 143 and "Traceback" not in err
    line = re.fullmatch(
        r"fastrl: terminated at step (\d+); saved up to step \1; go on with: fastrl train --resume .*run",
        err.splitlines()[-1],
    )
    assert line and DQN.load(tmp_path / "run").steps == int(line[1])


@posix
@pytest.mark.parametrize("argv", [["--help"], ["info"], ["train", "--help"], ["train", "dqn", "--help"]], ids=" ".join)
def test_output_that_nobody_reads(argv):
    read, write = os.pipe()
    os.close(read)
    process = start(*argv, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    err = process.communicate(timeout=120)[1]
    assert err == "" and process.returncode in (1, 141)  # 1: what rich makes of it


@posix
def test_progress_that_nobody_reads(tmp_path):
    """`2>&1 | head -1`: what was learned up to the second line is saved."""
    argv = [*TRAIN, "--total-steps", "50000", "--save-every", "50000", "--out", tmp_path / "run"]
    process = start(*argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr.readline().startswith("logs and checkpoint: ")
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert DQN.load(tmp_path / "run").steps == 5000


@posix
def test_ctrl_c_before_anything_is_loaded(tmp_path):
    (tmp_path / "gymnasium.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = start(*TRAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "fastrl: interrupted\n")


def test_config_files_that_are_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert cli.main([*TRAIN, "--config", "deep.json"]) == 2
    assert last_line(capsys) == "fastrl: --config deep.json is nested too deeply"
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.json")
        assert cli.main([*TRAIN, "--config", "pipe.json"]) == 2
        assert last_line(capsys) == "fastrl: --config pipe.json is not a regular file"
    assert cli.main(["eval", "/"]) == 2  # at once: no disk is searched for runs
    assert last_line(capsys) == "fastrl: /: no checkpoint here"


def test_a_folder_that_has_runs_in_it_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*TRAIN, "--total-steps", "20", "--out", "all/seed0"]) == 0
    Path("all/seed1").mkdir()
    Path("all/seed1/progress.csv").write_text("step\n")  # killed before its first checkpoint
    capsys.readouterr()
    for argv in (["eval", "all"], ["train", "--resume", "."], ["train", "dqn", "--resume", "."]):
        assert cli.main(argv) == 2
        assert last_line(capsys) == f"fastrl: {argv[-1]} is no run, but has 2 runs in it, such as all/seed0"
    assert cli.main(["eval", "all/seed1"]) == 2
    assert last_line(capsys).endswith("no checkpoint here: the run has not come to its first (--save-every)")
    what = "which fastrl list {} shows; info is of the storage of a replay buffer"
    for path, said in {
        "all": f"all has 2 runs in it, {what}",
        "all/seed0": f"all/seed0 is a run, {what}",
        "nope": "nope: no such file or folder; usage: fastrl info [STORAGE]",
    }.items():
        assert cli.main(["info", path]) == 2
        assert last_line(capsys) == f"fastrl: {said.format(path)}"


def test_plot_says_what_it_replaces_and_leaves_out(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*TRAIN, "--total-steps", "1500", "--out", "runs/a"]) == 0
    Path("runs/odd").mkdir()
    capsys.readouterr()
    for replaced in (False, True):
        assert cli.main(["plot", "runs/a", "runs/odd", "-o", "c.png"]) == 0
        out, err = capsys.readouterr()
        assert ("c.png (replaced)" in out) == replaced
        assert err.startswith("fastrl: warning: left out: runs/odd: no run here") and err.count("\n") == 1


def test_the_manifest_has_the_command(tmp_path, monkeypatch, capsys):
    argv = [*TRAIN, "--total-steps", "20", "--out", str(tmp_path / "a run")]
    monkeypatch.setattr(sys, "argv", ["fastrl", *argv])
    assert cli.main() == 0
    manifest = json.loads((tmp_path / "a run" / "checkpoint" / "manifest.json").read_text())
    assert manifest["made_by"]["command"] == f"fastrl {' '.join(argv[:-1])} '{argv[-1]}'"


def test_the_status_shows_no_number_that_is_not_there_yet(mine, capsys):
    """No episode ends in Mine-v0, and nothing is learned before learning_starts."""
    flags = [*SMALL, "--learning-starts", "1500", "--max-episode-steps", "1", "--total-steps", "3000"]
    assert cli.main(["train", "dqn", "--env", "mine_envs:Mine-v0", *flags]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step 1000/3000  [\d,]+ steps/s", lines[0])
    assert re.fullmatch(r"step 2000/3000  [\d,]+ steps/s  loss [\d.e-]+", lines[1])


def test_a_result_that_is_read_by_a_program_has_whole_paths(tmp_path, capsys):
    run = tmp_path / ("a long name " * 8).strip()
    assert cli.main([*TRAIN, "--total-steps", "20", "--out", str(run)]) == 0
    assert f"saved in                          │ {run} " in capsys.readouterr().out


def test_warnings_have_no_colours(capsys):
    from fastrl.cli.errors import warn

    warn(UserWarning("\x1b[33mWARN: the  environment\nis old\x1b[0m"))
    assert capsys.readouterr().err == "fastrl: warning: the environment is old\n"
