"""The `fastrl` command: what works, and every wrong input as one line on stderr and exit code 2."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from algorithms import DEEP
from commands import SMALL, fails, tree

import fastrl
from fastrl import cli
from fastrl.agents import ALGORITHMS
from fastrl.cli.algorithms import ALGORITHMS as NAMES


def test_train_eval_and_resume(run_folder, capsys, tmp_path):
    assert {"progress.csv", "checkpoint"} <= {path.name for path in run_folder.iterdir()}
    assert cli.main(["eval", str(run_folder), "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    assert "DQN (prioritized) on CartPole-v1" in out and "1,500 environment steps" in out
    # On to 2000 steps in another folder, and the same without a break.
    argv = ["--total-steps", "2000", "--out"]
    assert cli.main(["train", "dqn", "--resume", str(run_folder), *argv, str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "return, greedy, 20 episodes" in out and "2,000" in out and "steps/s" in out
    straight = [
        "train",
        "dqn",
        "--env",
        "CartPole-v1",
        "--seed",
        "3",
        "--prioritized",
        *SMALL,
        *argv,
        str(tmp_path / "b"),
    ]
    assert cli.main(straight) == 0
    a, b = (tmp_path / name / "checkpoint" for name in "ab")
    for name in ("config.json", "model.safetensors", "replay"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.mark.parametrize("name", sorted(set(DEEP) - {"dqn"}))
def test_every_algorithm_trains_evaluates_and_resumes(name, tmp_path, capsys):
    run, env = tmp_path / "run", "CartPole-v1" if ALGORITHMS[name].discrete else "Pendulum-v1"
    argv = ["train", name, "--env", env, "--num-envs", "8", "--total-steps", "600", "--hidden", "16"]
    assert cli.main([*argv, "--out", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"on {env}" in out and "return, greedy, 20 episodes" in out
    saved = json.loads((run / "checkpoint" / "config.json").read_text())
    assert (saved["algorithm"], saved["config"]["num_envs"], saved["config"]["hidden"]) == (name, 8, [16])
    steps = ALGORITHMS[name].load(run).steps
    assert cli.main(["train", name, "--resume", str(run), "--total-steps", str(steps + 100)]) == 0
    assert ALGORITHMS[name].load(run).steps >= steps + 100
    assert cli.main(["eval", str(run), "--episodes", "2"]) == 0
    assert f"on {env}" in capsys.readouterr().out


def test_plot_of_runs(run_folder, tmp_path, capsys):
    picture, table = tmp_path / "new" / "curves.png", tmp_path / "numbers.csv"
    argv = ["plot", str(run_folder), "-o", str(picture), "--csv", str(table)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "CartPole-v1 DQN (prioritized)" in out and "at step 1,500, 1 seed" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = table.read_text().splitlines()
    assert lines[0] == "environment,group,column,seeds,step,iqm,low,high"
    assert [line.split(",")[4] for line in lines[1:]] == ["1000", "1500"]
    assert cli.main(argv) == 0  # its own files are replaced
    capsys.readouterr()
    before = tree(run_folder)
    fails([*argv[:4], "--csv", run_folder / "progress.csv"], "progress.csv exists and is not a table", capsys)
    fails([*argv[:4], "--y", "los"], "no column 'los'; it has step, .*loss", capsys)
    fails(["plot", run_folder, "-o", run_folder / "progress.csv" / "c.png"], "cannot write .*c.png", capsys)
    fails(["plot", run_folder / "checkpoint" / "state.json", "-o", picture], "is not a log", capsys)
    assert tree(run_folder) == before


@pytest.mark.parametrize("name", ["matplotlib", "scipy"])
def test_plot_without_the_plot_extra(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    fails(["plot", tmp_path, "-o", tmp_path / "c.png"], rf'need {name}; .*pip install "fastrl-kernels\[plot\]"', capsys)


def test_default_run_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "dqn", "--env", "CartPole-v1", "--total-steps", "200", *SMALL]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"CartPole-v1-dqn-seed0-\d{8}-\d{6}", run.name)
    assert run.name[:20] in capsys.readouterr().out.replace("\n", "")


def test_config_file_and_flags_over_it(tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({"gamma": 0.5, "hidden": [8], "double": True, "max_grad_norm": None}))
    argv = ["train", "dqn", "--env", "CartPole-v1", "--total-steps", "50", "--config", str(tmp_path / "c.json")]
    assert cli.main([*argv, "--gamma", "0.6", "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())["config"]
    assert (config["gamma"], config["hidden"], config["double"]) == (0.6, [8], True)
    assert config["max_grad_norm"] is None and config["batch_size"] == 64


def test_documented_config_line(run_folder, tmp_path, monkeypatch, capsys):
    """The line of docs/agents.md as it stands: hyperparameters from another run's checkpoint."""
    docs = Path(__file__).parents[1] / "docs" / "agents.md"
    (line,) = re.findall(r"^fastrl (train .*--config .*)$", docs.read_text(), re.MULTILINE)
    shutil.copytree(run_folder, tmp_path / "runs" / "X")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(NAMES, "dqn", NAMES["dqn"]._replace(total_steps=200))
    assert cli.main(shlex.split(line)) == 0
    (new,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "X")
    a, b = (json.loads((path / "checkpoint" / "config.json").read_text()) for path in (run_folder, new))
    assert a == b and b["config"]["prioritized"] and b["config"]["hidden"] == [16]


def edit_config(run, change):
    """Change a checkpoint's config.json, and its checksum with it."""
    path = run / "checkpoint" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["files"]["config.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def test_resume_on_another_device_than_the_saved_one(run_folder, tmp_path, monkeypatch, capsys):
    """A device that is not here stands for CUDA on a machine without it; the agent is loaded once."""
    from fastrl.agents import DQN

    shutil.copytree(run_folder, tmp_path / "run")
    edit_config(tmp_path / "run", lambda c: c["config"].update(device="cuda:99"))
    resume = ["train", "dqn", "--resume", str(tmp_path / "run"), "--total-steps", "1600"]
    fails(resume, "--device 'cuda:99' was asked for, but", capsys)
    load, calls = DQN.load, []
    monkeypatch.setattr(DQN, "load", lambda *args, **kwargs: calls.append(1) or load(*args, **kwargs))
    assert cli.main([*resume, "--device", "cpu"]) == 0
    assert calls == [1] and load(tmp_path / "run").steps == 1600


def test_config_and_checkpoint_of_another_algorithm(run_folder, tmp_path, capsys):
    shutil.copytree(run_folder, tmp_path / "run")
    edit_config(tmp_path / "run", lambda c: c.update(algorithm="sac"))
    fails(["train", "dqn", "--resume", tmp_path / "run"], "run is of algorithm 'sac', not 'dqn'", capsys)
    config = tmp_path / "run" / "checkpoint" / "config.json"
    fails([*TRAIN, "--config", config], "config.json is of algorithm 'sac', not 'dqn'", capsys)


def test_eval_of_a_negative_seed(run_folder, capsys):
    fails(["eval", run_folder, "--seed", "-1"], "seed must be >= 0, got -1", capsys)


@pytest.mark.parametrize("flag", [["--resume", "{}"], ["--resume={}"]])
def test_resume_takes_the_algorithm_from_the_checkpoint(run_folder, tmp_path, capsys, flag):
    shutil.copytree(run_folder, tmp_path / "run")
    flag = [part.format(tmp_path / "run") for part in flag]
    assert cli.main(["train", "--total-steps", "1600", *flag]) == 0
    assert "1,600" in capsys.readouterr().out
    fails(["train", *flag, "--total-steps", "1700", "--gamma", "0.5"], "gamma cannot be changed", capsys)


def test_resume_with_a_half_written_table(run_folder, tmp_path, capsys):
    shutil.copytree(run_folder, tmp_path / "run")
    with (tmp_path / "run" / "progress.csv").open("a") as file:
        file.write("15")
    assert cli.main(["train", "dqn", "--resume", str(tmp_path / "run"), "--total-steps", "1600"]) == 0
    lines = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1000", "1500", "1600"]


@pytest.mark.parametrize("flags", [[], ["--prioritized"]])
def test_diverging_run(flags, tmp_path, capsys):
    argv = ["train", "dqn", "--env", "CartPole-v1", "--total-steps", "3000", "--learning-rate", "1e30", *SMALL]
    assert cli.main([*argv, "--learning-rate-end", "1e30", *flags, "--out", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"fastrl: loss is not finite at step \d+, but (nan|inf): training diverged", last)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_no_memory(tmp_path, monkeypatch, capsys):
    from fastrl.agents import DQN

    def out_of_memory(*_, **__):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 160000000000 bytes.\nMore"
        )

    monkeypatch.setattr(DQN, "__init__", out_of_memory)
    fails([*TRAIN, "--out", tmp_path / "run"], "not enough memory: .* 160000000000 bytes", capsys)


TRAIN = ["train", "dqn", "--env", "CartPole-v1", "--total-steps", "100"]


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["train", "dqn", "--env", "Pendulum-v1"], "needs discrete actions.*Pendulum-v1 has action space Box"),
        (["train", "dqn", "--env", "NoSuchEnv-v3"], "cannot make environment 'NoSuchEnv-v3'"),
        (["train", "dqn", "--env", "nosuchmodule:Env-v3"], "cannot make environment 'nosuchmodule:Env-v3'"),
        (["train", "dqn"], "--env ENV is missing"),
        (["train", "alphago", "--env", "CartPole-v1"], "unknown algorithm 'alphago'; known are dqn"),
        (["play"], "unknown command 'play'; known are train, eval, plot, list, bench, info"),
        ([*TRAIN[:4], "--total-steps", "0"], "^fastrl: --total-steps must be >= 1, got 0$"),
        ([*TRAIN[:4], "--total-steps", "-5"], "^fastrl: --total-steps must be >= 1, got -5$"),
        ([*TRAIN[:4], "--total-steps", "many"], "^fastrl: --total-steps must be an integer or none, got 'many'$"),
        ([*TRAIN, "--buffer-size", "3000000000"], r"^fastrl: --buffer-size must be in \[1, 1e\+09\], got 3000000000"),
        ([*TRAIN, "--prioritized", "--per-alpha", "inf"], "^fastrl: --per-alpha must be finite and >= 0, got inf$"),
        ([*TRAIN, "--learning-rate", "inf"], "^fastrl: --learning-rate must be finite and >= 1e-12, got inf"),
        ([*TRAIN, "--gamma", "1.5"], r"^fastrl: --gamma must be in \[0, 1\], got 1.5"),
        ([*TRAIN, "--loss", "l1"], "^fastrl: --loss must be huber or mse, got 'l1'$"),
        ([*TRAIN, "--save-every", "0"], "^fastrl: --save-every must be >= 1, got 0$"),
        ([*TRAIN, "--threads", "0"], r"--threads must be in \[1, 1024\], got 0"),
        ([*TRAIN, "--threads", "100000"], r"--threads must be in \[1, 1024\], got 100000"),
        (["bench", "--threads", "1025"], r"--threads must be in \[1, 1024\], got 1025"),
        (["info", "bogus"], "^fastrl: bogus: no such file or folder"),
        (["info", "."], r"\. is no folder of a replay buffer: it has no file 'state'"),
        (["info", "--hlep"], "info takes a folder or a file or nothing, got '--hlep'"),
        (["info", "a", "b"], "info takes a folder or a file or nothing, got 'a b'; usage: fastrl info "),
        ([*TRAIN, "--device", "tpu"], "^fastrl: --device must be cpu, cuda or auto, got 'tpu'"),
        (
            ["train", "sarsa", "--env", "FrozenLake-v1", "--device", "cuda"],
            "^fastrl: --device must be cpu, got 'cuda'$",
        ),
        ([*TRAIN, "--config", "no/such.json"], "no/such.json: No such file"),
        (["eval", "no/such/run"], "no/such/run: no such folder"),
        (["eval"], "^fastrl: RUN is missing: fastrl eval RUN"),
        (["eval", "no/such/run", "--episodes", "0"], "--episodes must be >= 1, got 0"),
        (["eval", "no/such/run", "--video", "out", "--video-episodes", "0"], "--video-episodes must be >= 1, got 0"),
        (["plot"], "no run to plot"),
        (["plot", "no/such/run"], "-o FILE is missing"),
        (["plot", "no/such/run", "-o", "c.png"], "no/such/run: no such file or folder"),
        (["plot", "runs/*", "-o", "c.png"], r"runs/\*: no run here"),
        (["plot", "no/such/run", "-o", "c.bmp"], "must end in .png, .pdf or .svg, got 'c.bmp'"),
        (["plot", "no/such/run", "-oc.bmp"], "must end in .png, .pdf or .svg, got 'c.bmp'"),
        (["plot", "no/such/run", "-o=c.bmp"], "must end in .png, .pdf or .svg, got 'c.bmp'"),
        (["plot", "no/such/run", "-o"], "(?i)out"),
        (["train", "dqn", "--resume", "no/such/run"], "no/such/run: no such folder"),
        (["train", "--resume", "no/such/run"], "no/such/run: no such folder"),
        (["train", "--resume=no/such/run"], "no/such/run: no such folder"),
        (["train", "--resume"], "--resume RUN: the run's folder is missing"),
        (["train", "--resume", "--total-steps", "5"], "--resume RUN: the run's folder is missing"),
        ([*TRAIN, "--seed"], "^fastrl: --seed needs a value$"),
        ([*TRAIN, "--seed", "x"], "^fastrl: --seed must be an integer, got 'x'$"),
    ],
    ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else "",
)
def test_wrong_input(argv, pattern, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fails(argv, pattern, capsys)
    assert not any(tmp_path.rglob("*.csv")) and not any(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ('{"gama": 0.9}', "unknown setting 'gama'; did you mean gamma. known are .*gamma"),
        ('{"gamma": "0.9"}', "gamma must be float, got '0.9'"),
        ('{"double": 1}', "double must be bool, got 1"),
        ('{"hidden": 64}', r"hidden must be a list of int, as \[64, 64\], got 64"),
        ('{"batch_size": 2.5}', "batch_size must be int, got 2.5"),
        ('{"loss": "l1"}', "loss must be .*huber.*got 'l1'"),
        ("[1]", "must hold a JSON object"),
        ('{"gamma": ', "is not JSON"),
        ('{"algorithm": "dqn", "config": 3}', "config must be an object of hyperparameters, got 3"),
    ],
)
def test_wrong_config_file(text, pattern, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text(text)
    fails([*TRAIN, "--config", "c.json"], pattern, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_missing_package_of_an_environment(capsys, tmp_path):
    try:
        import Box2D  # noqa: F401
    except ImportError:
        fails(
            ["train", "dqn", "--env", "LunarLander-v3", "--out", tmp_path / "x"], "LunarLander-v3.*[Bb]ox2[Dd]", capsys
        )
        assert not (tmp_path / "x").exists()
    else:
        pytest.skip("Box2D is installed")


def test_missing_cuda(capsys, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    fails([*TRAIN, "--device", "cuda", "--out", tmp_path / "x"], "finds no CUDA device", capsys)
    assert not (tmp_path / "x").exists()


def test_output_folder_that_is_in_use(run_folder, capsys, tmp_path):
    before = tree(run_folder)
    what = f"exists and is not an empty folder; nothing is overwritten; to go on with that run: --resume {run_folder}"
    fails([*TRAIN, "--out", run_folder], re.escape(what), capsys)
    fails(
        ["train", "dqn", "--resume", run_folder, "--total-steps", "9000", "--out", run_folder], "exists and is", capsys
    )
    assert tree(run_folder) == before
    (tmp_path / "file").write_text("keep")
    fails([*TRAIN, "--out", tmp_path / "file"], "exists and is not an empty folder", capsys)
    assert (tmp_path / "file").read_text() == "keep"


@pytest.mark.parametrize("where", ["file/run", "/proc/fastrl/run", "/dev/null/run"])
def test_output_folder_that_cannot_be_made(where, capsys, tmp_path, monkeypatch):
    if where.startswith("/") and not os.path.exists(where.rsplit("/", 2)[0]):
        pytest.skip("a Linux path")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("keep")
    fails([*TRAIN, "--out", where], f"cannot write to {where}: ", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_folder(capsys, tmp_path):
    tmp_path.chmod(0o555)
    fails([*TRAIN, "--out", tmp_path / "run"], "cannot write to .*: Permission denied", capsys)


def test_resume_of_something_else(run_folder, capsys):
    before, resume = tree(run_folder), ["train", "dqn", "--resume", run_folder]
    fails([*resume, "--env", "Acrobot-v1"], "is of CartPole-v1, not Acrobot-v1", capsys)
    fails(
        [*resume, "--total-steps", "9000", "--gamma", "0.5", "--double"], "--gamma, --double cannot be changed", capsys
    )
    assert tree(run_folder) == before


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "state.json", "model.safetensors", "replay"])
def test_corrupt_checkpoint(run_folder, name, capsys, tmp_path):
    copy = tmp_path / "run"
    for path, data in tree(run_folder).items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(data[:-7] if path == f"checkpoint/{name}" else data)
    before = tree(copy)
    fails(["eval", copy], "damaged", capsys)
    fails(["train", "dqn", "--resume", copy, "--total-steps", "9000"], "damaged", capsys)
    assert tree(copy) == before


def test_version_info_and_usage(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastrl {fastrl.__version__}\n"
    assert cli.main(["info"]) == 0
    assert "sum_tree" in capsys.readouterr().out
    assert cli.main(["info", "--help"]) == 0 and cli.main(["info", "-h"]) == 0
    text = capsys.readouterr().out
    assert text.count("usage: fastrl info [STORAGE]\n") == 2 and "sum_tree" not in text
    assert cli.main(["--help"]) == 0 and cli.main([]) == 2
    assert "fastrl train ALGORITHM" in capsys.readouterr().out
    assert cli.main(["train", "--help"]) == 0 and cli.main(["train"]) == 2
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +[\d,]+  \w", text, re.MULTILINE) for name in ALGORITHMS)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "dqn", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--prioritized" in text and "--total-steps" in text and "--hyperparameters" not in text


BLOCK = """
import sys
for name in ("rich", "gymnasium", "safetensors", "tensorboard"):
    sys.modules[name] = None
from fastrl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_agents_extra():
    def run(*argv):
        return subprocess.run([sys.executable, "-c", BLOCK, *argv], capture_output=True, text=True)

    done = run("train", "dqn", "--env", "CartPole-v1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("fastrl: ") and 'pip install "fastrl-kernels[agents]"' in done.stderr
    done = run("info")
    assert done.returncode == 0 and "sum_tree cpu: " in done.stdout
    assert run("--version").stdout == f"fastrl {fastrl.__version__}\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "fastrl", "train", "dqn", "--env", "CartPole-v1", "--total-steps", "10000000"]
    process = subprocess.Popen([*command, *SMALL, "--out", tmp_path / "run"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        (csv := tmp_path / "run" / "progress.csv").exists() and csv.read_text().count("\n") > 1
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    last = err.splitlines()[-1]
    assert last.startswith("fastrl: interrupted at step ") and "checkpoint saved" in last and "--resume" in last
    assert "Traceback" not in err
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", "1"]) == 0
