"""Learning curves over seeds: which logs are found and grouped, the numbers that are drawn, and the picture itself."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from fastrl import plot
from fastrl.agents.config import InputError

DQN = {"double": False, "n_step": 1, "gamma": 0.99, "hidden": [64, 64], "num_envs": 1, "device": "cpu"}


def write_log(path, steps, values, column="episode_return"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{step},{value},0.5" for step, value in zip(steps, values, strict=True)]
    path.write_text("\n".join([f"step,{column},loss", *rows]) + "\n")


def write_run(run, steps, values, env="CartPole-v1", algorithm="dqn", kwargs=None, wrappers=None, **config):
    write_log(run / "progress.csv", steps, values)
    (run / "checkpoint").mkdir()
    saved = {"algorithm": algorithm, "env": env, "config": {**DQN, **config}}
    if kwargs or wrappers:
        saved |= {"env_kwargs": kwargs or {}, "wrappers": wrappers or []}
    (run / "checkpoint" / "config.json").write_text(json.dumps(saved))


def labels(*paths):
    return [(g.environment, g.label, g.seeds) for g in plot.group_runs(plot.read_runs([Path(p) for p in paths]))]


def test_interquartile_mean_and_interval_of_a_known_case(tmp_path):
    """Four seeds at 0 and one at 30: a draw with k of the latter has the mean 10 (k - 1) for k = 1 ... 4."""
    for seed, value in enumerate([0, 0, 30, 0, 0]):
        write_run(tmp_path / str(seed), [10, 20], [value, 7.0], seed=seed)
    (group,) = plot.group_runs(plot.read_runs([tmp_path]))
    assert group.steps.tolist() == [10, 20] and group.seeds == 5
    assert group.iqm.tolist() == [0, 7]
    # P(k >= 4) = 0.007 < 2.5 % < P(k >= 3) = 0.058
    assert group.low.tolist() == [0, 7] and group.high.tolist() == [20, 7]


def test_few_seeds(tmp_path):
    for seed, value in enumerate([1.0, 5.0]):
        write_run(tmp_path / "two" / str(seed), [10, 20], [value, value], seed=seed)
    (group,) = plot.group_runs(plot.read_runs([tmp_path]))
    assert (group.iqm[0], group.low, group.high, group.seeds) == (3, None, None, 2)
    (group,) = plot.group_runs(plot.read_runs([tmp_path / "two" / "1"]))
    assert group.iqm.tolist() == [5, 5] and group.low is None and group.high is None and group.seeds == 1
    write_run(tmp_path / "three", [10, 20], [3, 3], seed=2)
    (group,) = plot.group_runs(plot.read_runs([tmp_path]))
    assert (group.iqm[0], group.low[0], group.high[0]) == (3, 1, 5)


def test_curves_logged_at_different_steps(tmp_path):
    """Lines of slope 1, 2, 6, 3 through 0, so of interquartile mean 2.5 at every step of the common grid."""
    for seed, (slope, start, end, every) in enumerate(
        [(1, 8, 999, 8), (2, 5, 1000, 7), (6, 2, 1003, 11), (3, 1, 990, 3)]
    ):
        steps = np.arange(start, end, every)
        write_run(tmp_path / str(seed), steps, slope * steps, seed=seed)
    (group,) = plot.group_runs(plot.read_runs([tmp_path]))
    assert group.steps[0] == 8 and group.steps[-1] == 988 and (np.diff(group.steps) > 0).all()
    np.testing.assert_allclose(group.iqm, 2.5 * group.steps, rtol=1e-12)
    assert (group.low <= group.iqm).all() and (group.iqm <= group.high).all()


def test_groups_and_labels(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", [1, 2], [0, 1], seed=seed, device="cpu" if seed else "cuda")
        write_run(tmp_path / f"b{seed}", [1, 2], [0, 1], seed=seed, double=True, n_step=3)
        write_run(tmp_path / f"c{seed}", [1, 2], [0, 1], seed=seed, double=True, env="Acrobot-v1")
        write_run(tmp_path / f"d{seed}", [1, 2], [0, 1], seed=seed, algorithm="not_known", hidden=[8])
    assert labels(tmp_path) == [
        ("CartPole-v1", "DQN (n_step=1)", 2),
        ("CartPole-v1", "DQN (double, n_step=3)", 2),
        ("Acrobot-v1", "DQN (double)", 2),  # alone there, so only the switch is named
        ("CartPole-v1", "not_known", 2),
    ]


def test_runs_in_other_environments_of_the_same_id_are_other_groups(tmp_path):
    """A mean over them would be of different tasks.  What all have in common is not named."""
    limit, stack = "TimeLimit(max_episode_steps=9)", "FrameStackObservation(stack_size=4)"
    made = {
        "a": ({}, []),
        "b": ({"sutton_barto_reward": True}, []),
        "c": ({"sutton_barto_reward": True, "name": "x"}, [limit]),
        "d": ({}, [limit, stack]),
        "e": ({}, [stack, limit]),
    }
    for name, (kwargs, wrappers) in made.items():
        for seed in range(2):
            write_run(tmp_path / f"{name}{seed}", [1, 2], [0, 1], seed=seed, kwargs=kwargs, wrappers=wrappers)
    write_run(tmp_path / "f", [1, 2], [0, 1], algorithm="not_known", kwargs={"sutton_barto_reward": True})
    assert [(label, number) for _, label, number in labels(tmp_path)] == [
        ("DQN", 2),
        ("DQN (sutton_barto_reward=true)", 2),
        (f"DQN (sutton_barto_reward=true, name=x, {limit})", 2),
        (f"DQN ({limit}, {stack})", 2),
        (f"DQN ({stack}, {limit})", 2),
        ("not_known (sutton_barto_reward=true)", 1),
    ]
    assert [label for _, label, _ in labels(tmp_path / "b0", tmp_path / "b1")] == ["DQN"]
    assert [label for _, label, _ in labels(tmp_path / "d0", tmp_path / "c0")] == [
        f"DQN ({stack})",
        "DQN (sutton_barto_reward=true, name=x)",
    ]


def test_a_run_without_a_checkpoint_yet_is_known_by_its_run_json(tmp_path):
    write_run(tmp_path / "saved", [1, 2], [0, 1], seed=0)
    write_log(tmp_path / "killed" / "progress.csv", [1, 2], [0, 1])
    told = {"algorithm": "dqn", "env": "CartPole-v1", "env_kwargs": {}, "wrappers": [], "config": {**DQN, "seed": 1}}
    (tmp_path / "killed" / "run.json").write_text(json.dumps(told))
    assert labels(tmp_path) == [("CartPole-v1", "DQN", 2)]
    (tmp_path / "killed" / "run.json").write_text('{"of": "another program"}')
    assert labels(tmp_path / "killed") == [("", tmp_path.name, 1)]
    (tmp_path / "killed" / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json is not JSON"):
        plot.read_runs([tmp_path / "killed"])


def test_a_run_saved_before_a_hyperparameter_existed_has_its_default(tmp_path):
    write_run(tmp_path / "new", [1, 2], [0, 1], seed=0)
    write_run(tmp_path / "old", [1, 2], [0, 1], seed=1)
    path = tmp_path / "old" / "checkpoint" / "config.json"
    saved = json.loads(path.read_text())
    del saved["config"]["n_step"], saved["config"]["double"]
    path.write_text(json.dumps(saved))
    assert labels(tmp_path) == [("CartPole-v1", "DQN", 2)]


def test_logs_without_a_checkpoint_are_grouped_by_folder(tmp_path):
    for algorithm, env, variant in [
        ("a2c", "CartPole-v1", "x"),
        ("dqn", "CartPole-v1", "x"),
        ("dqn", "Acrobot-v1", "y"),
    ]:
        for seed in range(3):
            write_log(tmp_path / algorithm / env / variant / f"seed{seed}.csv", [1, 2], [0, 1], "greedy_return")
    assert labels(tmp_path) == [("CartPole-v1", "a2c x", 3), ("Acrobot-v1", "dqn y", 3), ("CartPole-v1", "dqn x", 3)]
    assert labels(tmp_path / "a2c") == [("CartPole-v1", "x", 3)]
    write_log(tmp_path / "sweep" / "slow" / "run0" / "progress.csv", [1, 2], [0, 1])
    write_log(tmp_path / "sweep" / "slow" / "run1" / "progress.csv", [1, 2], [0, 1])
    assert labels(tmp_path / "sweep") == [("", "slow", 2)]


def test_finding_logs(tmp_path, monkeypatch):
    for seed in range(3):
        write_run(tmp_path / "runs" / f"s{seed}", [1, 2], [0, 1], seed=seed)
    (tmp_path / "runs" / "notes.csv").write_text("name,value\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    one = [("CartPole-v1", "DQN", 3)]
    assert labels("runs") == labels("runs/s*") == labels("runs/s0", "runs/s1", "runs/s2/progress.csv") == one
    assert labels("runs", "runs/s1", tmp_path / "runs" / "s1") == one  # each once
    for path, pattern in [("empty", "no run here"), ("nothing", "no such file"), ("runs/notes.csv", "is not a log")]:
        with pytest.raises(InputError, match=pattern):
            plot.read_runs([Path(path)])


def test_other_columns(tmp_path):
    write_run(tmp_path / "run", [1, 2], [3, 4], seed=0)
    (run,) = plot.read_runs([tmp_path / "run"], "loss")
    assert (run.column, run.values.tolist()) == ("loss", [0.5, 0.5])
    with pytest.raises(InputError, match="has no column 'los'; it has step, episode_return, loss"):
        plot.read_runs([tmp_path / "run"], "los")


def test_evaluations_of_runs(tmp_path, recwarn):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), [1, 2, 3], [1, 2, 3], seed=seed)
        write_log(tmp_path / str(seed) / "evaluations.csv", [2, 3], [10 + seed, 20 + seed], "return_mean")
    (group,) = plot.group_runs(plot.read_runs([tmp_path]))  # and no word of the other tables
    assert (group.seeds, group.column, group.iqm.tolist()) == (2, "episode_return", [1, 2, 3]) and not recwarn.list
    for paths in ([tmp_path], [tmp_path / "0", tmp_path / "1"], [tmp_path / "0", tmp_path / "1" / "evaluations.csv"]):
        (group,) = plot.group_runs(plot.read_runs(paths, "return_mean"))
        assert (group.label, group.seeds, group.iqm.tolist()) == ("DQN", 2, [10.5, 20.5])


def test_unfinished_and_broken_logs(tmp_path):
    write_run(tmp_path / "good", [1, 2, 3], ["nan", 5, 6], seed=0)  # no episode had ended at step 1
    with (tmp_path / "good" / "progress.csv").open("a") as file:
        file.write("4,7")  # a crash in the middle of a line
    write_run(tmp_path / "young", [1], ["nan"], seed=1)
    with pytest.warns(UserWarning, match="left out: .*young.* holds no number in episode_return yet"):
        (run,) = plot.read_runs([tmp_path])
    assert run.steps.tolist() == [2, 3] and run.values.tolist() == [5, 6]
    with pytest.raises(InputError, match="holds no number in episode_return yet"):
        plot.read_runs([tmp_path / "young"])
    write_log(tmp_path / "bad" / "progress.csv", [1, 2], [1, "x"])
    with pytest.raises(InputError, match="episode_return at step 2 is no number, but 'x'"):
        plot.read_runs([tmp_path / "bad"])
    for text, pattern in [("{", "is not JSON"), ("[1]", "is not that of a checkpoint")]:
        (tmp_path / "good" / "checkpoint" / "config.json").write_text(text)
        with pytest.raises(InputError, match=pattern):
            plot.read_runs([tmp_path / "good"])


def test_seeds_that_are_no_numbers(tmp_path):
    for name, seed in (("0", []), ("1", {"a": 1}), ("2", [])):
        write_run(tmp_path / name, [1, 2], [1, 2], seed=seed)
    with pytest.warns(UserWarning, match="some of the 3 runs have the same seed"):
        (group,) = plot.group_runs(plot.read_runs([tmp_path]))
    assert group.seeds == 3 and group.iqm.tolist() == [1, 2]


def test_runs_that_do_not_fit_together(tmp_path):
    write_run(tmp_path / "0", [1, 2, 3], [1, 2, 3], seed=0)
    write_run(tmp_path / "1", [1, 2], [1, 2], seed=1)
    with pytest.warns(UserWarning, match="DQN on CartPole-v1: the runs end at steps 2 to 3; drawn to the first"):
        (group,) = plot.group_runs(plot.read_runs([tmp_path]))
    assert group.steps[-1] == 2
    write_run(tmp_path / "2", [1, 2], [1, 2], seed=1)
    with pytest.warns(UserWarning, match="some of the 2 runs have the same seed"):
        plot.group_runs(plot.read_runs([tmp_path / "1", tmp_path / "2"]))
    for late in (tmp_path / "3", tmp_path / "-1"):  # whichever comes first
        write_run(late, [8, 9], [1, 2], seed=9)
        with pytest.warns(
            UserWarning, match=f"left out: {late}.*, steps 8 to 9: no step in common with .*, steps 1 to"
        ):
            (group,) = plot.group_runs(plot.read_runs([tmp_path]))
        assert (group.seeds, group.steps[-1]) == (3, 2)
        shutil.rmtree(late)


def test_odd_runs_are_left_out_and_named(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"good{seed}", [1, 2], [1, 2], seed=seed)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "broken", [1, 2], [1, 2], seed=2)
    (tmp_path / "broken" / "checkpoint" / "config.json").write_text("[" * 100_000)
    write_log(tmp_path / "words" / "progress.csv", [1, 2], [1, "x"])
    write_log(tmp_path / "other" / "progress.csv", [1, 2], [1, 2], column="reward")
    with pytest.warns(UserWarning) as warned:
        runs = plot.read_runs(sorted(tmp_path.iterdir()))
    assert [run.path.parent.name for run in runs] == ["good0", "good1"]
    texts = sorted(str(w.message) for w in warned)
    assert len(texts) == 4 and all(text.startswith(f"left out: {tmp_path}") for text in texts)
    for text, pattern in zip(
        texts, ["broken.*is not JSON", "empty: no run", "other.*no column", "words.*no number"], strict=True
    ):
        assert re.search(pattern, text), text
    with pytest.raises(InputError, match="nothing to plot: .*empty.*; .*words"):
        plot.read_runs([tmp_path / "empty", tmp_path / "words"])


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".PDF", b"%PDF"), (".svg", b"<?xml")])
def test_picture(suffix, magic, tmp_path):
    for seed in range(3):
        for env in ("CartPole-v1", "Acrobot-v1"):
            write_run(tmp_path / env / f"{seed}", [10, 20], [seed, 5 * seed], env=env, seed=seed)
        write_run(tmp_path / f"double{seed}", [10, 20], [seed, 4], seed=seed, double=True)
    out = tmp_path / "new" / f"curves{suffix}"
    plot.draw(plot.group_runs(plot.read_runs([tmp_path])), out, "Two environments")
    assert out.read_bytes().startswith(magic) and [path.name for path in out.parent.iterdir()] == [out.name]
    if suffix == ".svg":
        text = out.read_text()
        for shown in ("Two environments", "CartPole-v1", "Acrobot-v1", "DQN, 3 seeds", "DQN (double), 3 seeds"):
            assert f"<!-- {shown} -->" in text
    if suffix == ".png":
        from matplotlib.colors import to_rgb
        from matplotlib.image import imread

        pixels = imread(out)[..., :3]
        for colour in plot.COLOURS[:2]:
            assert (abs(pixels - np.array(to_rgb(colour))).max(-1) < 0.01).sum() > 100
        assert not (abs(pixels - np.array(to_rgb(plot.COLOURS[2]))).max(-1) < 0.01).any()


def test_a_dollar_sign_is_no_formula(tmp_path):
    name = r"$\frac{$"
    for seed in range(2):
        write_log(tmp_path / name / f"seed{seed}.csv", [1, 2], [0, 1])
    out = tmp_path / "curves.svg"
    plot.draw(plot.group_runs(plot.read_runs([tmp_path])), out, f"title {name}")
    assert f"<!-- title {name} -->" in out.read_text() and f"<!-- {name}, 2 seeds -->" in out.read_text()


def test_picture_and_table_are_two_files(tmp_path):
    with pytest.raises(InputError, match=r"must be two files, got '.*c.svg' for both"):
        plot.check_outputs(tmp_path / "c.svg", tmp_path / "x" / ".." / "c.svg")


def test_table(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), [10, 20], [seed, 0.25], seed=seed)
    write_run(tmp_path / "x", [10], [2], seed=0, env="Acrobot-v1")
    out = tmp_path / "numbers.csv"
    plot.write_table(plot.group_runs(plot.read_runs([tmp_path])), out)
    assert out.read_text().splitlines() == [
        "environment,group,column,seeds,step,iqm,low,high",
        "CartPole-v1,DQN,episode_return,3,10,1,0,2",
        "CartPole-v1,DQN,episode_return,3,20,0.25,0.25,0.25",
        "Acrobot-v1,DQN,episode_return,1,10,2,,",
    ]
    plot.check_outputs(Path("c.svg"), out)  # such a table may be replaced
    (tmp_path / "mine.csv").write_text("keep\n")
    with pytest.raises(
        InputError, match="mine.csv exists and is not a table of plotted numbers; it is not overwritten"
    ):
        plot.check_outputs(Path("c.svg"), tmp_path / "mine.csv")
