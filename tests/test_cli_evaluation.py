"""Evaluations, the best agent and an end at a return from the command line."""

import re

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
