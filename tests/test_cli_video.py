"""`fastrl eval --video`."""

import re
import sys

import pytest
from commands import SMALL, fails, tree

from fastrl import cli


def test_eval_with_video(run_folder, tmp_path, capsys):
    import imageio_ffmpeg

    from fastrl.agents import DQN

    argv = ["eval", str(run_folder), "--episodes", "3", "--seed", "7", "--video", str(tmp_path / "new" / "videos")]
    assert cli.main([*argv, "--video-episodes", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    returns = DQN.load(run_folder).evaluate(3, seed=7)
    assert f"{returns.mean():.1f} +- {returns.std():.1f}" in out  # of all three
    folder = tmp_path / "new" / "videos"
    names = [f"CartPole-v1-dqn-step1500-seed7-episode-{i}.mp4" for i in (0, 1)]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all(name in re.sub(r"[\s│]", "", out) for name in names)
    frames = [imageio_ffmpeg.count_frames_and_secs(str(folder / name))[0] for name in names]
    # CartPole's return is the number of its steps; moviepy loses the last frame now and then, by rounding.
    assert all(r <= n <= r + 1 for n, r in zip(frames, returns[:2], strict=True))
    # Again into the same folder: refused while one would be overwritten, and without noise otherwise.
    before = tree(folder)
    fails(argv, "episode-0.mp4 exists; nothing is overwritten", capsys)
    assert tree(folder) == before
    assert cli.main([*argv[:5], "8", *argv[6:]]) == 0
    assert capsys.readouterr().err == "" and len(list(folder.iterdir())) == 3


def test_eval_with_video_that_cannot_be_written(run_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("keep")
    fails(["eval", run_folder, "--video", tmp_path / "file"], "cannot write to .*file", capsys)
    assert (tmp_path / "file").read_text() == "keep"


@pytest.mark.parametrize(
    ("package", "pattern"), [("moviepy", "video needs moviepy"), ("pygame", "pygame is not installed")]
)
def test_eval_with_video_without_the_video_extra(package, pattern, run_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    argv = ["eval", run_folder, "--video", tmp_path / "videos"]
    fails(argv, rf'{pattern}.*pip install "fastrl-kernels\[video\]"', capsys)
    assert not list(tmp_path.rglob("*.mp4"))


def test_eval_with_video_of_an_environment_without_pictures(tmp_path, capsys):
    import gymnasium as gym
    from gymnasium.envs.classic_control import CartPoleEnv

    class Blind(CartPoleEnv):
        metadata = {"render_modes": ["human"]}  # noqa: RUF012

    gym.register("Blind-v0", Blind, max_episode_steps=10)
    try:
        argv = ["train", "dqn", "--env", "Blind-v0", "--total-steps", "50", *SMALL, "--out", str(tmp_path / "run")]
        assert cli.main(argv) == 0
        capsys.readouterr()
        argv = ["eval", tmp_path / "run", "--video", tmp_path / "videos"]
        fails(argv, "Blind-v0 cannot be filmed: of render modes it has human, not rgb_array", capsys)
    finally:
        del gym.registry["Blind-v0"]
    assert not (tmp_path / "videos").exists()
