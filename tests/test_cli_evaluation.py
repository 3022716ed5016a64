"""Evaluations, the best agent and an end at a return from the command line."""

import json
import re
import shutil

from commands import fails

from fastrl import cli
from fastrl.agents import DQN

SMALL = ["--hidden", "16", "--learning-starts", "100", "--train-every", "10", "--updates", "1", "--batch-size", "16"]
TRAIN = ["train", "dqn", "--env", "CartPole-v1", *SMALL]
JUDGED = ["--eval-every", "200", "--eval-episodes", "2"]


def test_evaluations_the_best_agent_and_an_end_at_a_return(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main([*TRAIN, "--total-steps", "400", "--out", str(run), *JUDGED]) == 0
    assert re.search(r"best agent .*best", capsys.readouterr().out, re.DOTALL)
    assert len((run / "evaluations.csv").read_text().splitlines()) == 3
    assert cli.main(["train", "--resume", str(run), "--total-steps", "9000", "--stop-at", "5", *JUDGED]) == 0
    assert "(stop_at): training ends" in capsys.readouterr().err
    assert DQN.load(run).steps == 600 and DQN.load(run / "best").steps in (200, 400, 600)
    assert cli.main(["eval", str(run / "best"), "--episodes", "2"]) == 0
    capsys.readouterr()
    assert cli.main([*TRAIN, "--out", str(tmp_path / "none"), "--eval-every", "0"]) == 2
    assert capsys.readouterr().err == "fastrl: --eval-every must be >= 1, got 0\n" and not (tmp_path / "none").exists()


def begun(run, *more):
    flags = ["--total-steps", "400", "--max-episode-steps", "7", "--out", str(run), *JUDGED, *more]
    assert cli.main([*TRAIN, *flags]) == 0


def steps_of_evaluations(run):
    return [int(line.split(",")[0]) for line in (run / "evaluations.csv").read_text().splitlines()[1:]]


def test_resume_goes_on_with_the_options_of_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    begun(run)
    kept = {"save_every": 10_000, "eval_every": 200, "eval_episodes": 2, "stop_at": None, "max_episode_steps": 7}
    assert json.loads((run / "run.json").read_text())["options"] == kept
    assert cli.main(["train", "--resume", str(run / "checkpoint"), "--total-steps", "700"]) == 0
    assert steps_of_evaluations(run) == [200, 400, 600] and "cut at 7 steps" in capsys.readouterr().err
    assert (run / "evaluations.csv").read_text().splitlines()[-1].split(",")[2] == "2"
    # What is given anew counts from now on.
    again = ["train", "--resume", str(run), "--total-steps", "1000", "--eval-every", "100", "--stop-at", "9999"]
    assert cli.main(again) == 0
    assert steps_of_evaluations(run) == [200, 400, 600, 700, 800, 900, 1000]
    assert json.loads((run / "run.json").read_text())["options"] == {**kept, "eval_every": 100, "stop_at": 9999.0}


def test_a_run_that_a_return_has_ended_is_finished(tmp_path, capsys):
    run = tmp_path / "run"
    begun(run, "--stop-at", "5")
    assert DQN.load(run).steps == 200
    for more in ([], ["--total-steps", "800"], ["--stop-at", "5"]):
        capsys.readouterr()
        assert cli.main(["train", "--resume", str(run), *more]) == 0
        assert "is finished: its return has reached 5 (--stop-at) at step 200; to go on:" in capsys.readouterr().out
    assert cli.main(["train", "--resume", str(run), "--stop-at", "none"]) == 0
    assert DQN.load(run).steps == 400 and steps_of_evaluations(run) == [200, 400]


def test_options_of_a_run_that_are_none(run_folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    told = json.loads((run / "run.json").read_text())
    for options, message in (
        ({"stop_at": "high"}, "run.json: stop_at must be float | None, got 'high'"),
        ({"eval_every": 0}, "--eval-every must be >= 1, got 0"),
        ([1], r"run.json: options must be an object, got \[1\]"),
    ):
        (run / "run.json").write_text(json.dumps(told | {"options": options}))
        fails(["train", "--resume", run, "--total-steps", "1600"], message, capsys)
    # One of a version that kept none, or more.
    (run / "run.json").write_text(json.dumps(told | {"options": {"resume": "elsewhere", "new": 1}}))
    assert cli.main(["train", "--resume", str(run), "--total-steps", "1600"]) == 0
    assert DQN.load(run).steps == 1600 and not (run / "evaluations.csv").exists()
