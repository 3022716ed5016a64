"""The recipes of docs/from-your-library.md run as they stand."""

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastrl

TEXT = (Path(__file__).parents[2] / "docs" / "from-your-library.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("k", range(len(BLOCKS)))
def test_recipe(k, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for host in re.findall(
        "stable_baselines3|torchrl|tianshou|skrl|rllib", BLOCKS[k].replace("sb3", "stable_baselines3")
    ):
        if host == "rllib":
            pytest.skip("test_rllib.py runs it, on Ray")
        pytest.importorskip(host)
    assert len(BLOCKS[k].splitlines()) <= 10
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of a fallback
        exec(compile(BLOCKS[k], "docs", "exec"), {})


def test_a_trained_policy_acts():
    pytest.importorskip("stable_baselines3")
    example = Path(__file__).parents[2] / "examples" / "act_from_torch.py"
    out = subprocess.run([sys.executable, example, "--calls", "10"], capture_output=True, text=True, timeout=300)
    assert re.search(r"Stable-Baselines3: .* us by fastrl.MLP", out.stdout), out.stderr  # the actions are the same


def test_cleanrls_loop_is_one_call():
    """The lines that docs puts in place of the loop, on arrays as ppo.py has them: `dones[t]` is that of step t - 1."""
    torch = pytest.importorskip("torch")
    T, N = 9, 3
    g = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(T, N, generator=g) for _ in range(2))
    next_value, every_done = torch.randn(1, N, generator=g), (torch.rand(T + 1, N, generator=g) < 0.3).float()
    dones, next_done = every_done[:-1], every_done[-1]
    lines = re.findall(r"^\+ {12}(.*)$", TEXT, re.MULTILINE)
    names = {"dones": dones, "next_done": next_done, "values": values, "next_value": next_value, "rewards": rewards}
    names |= {"torch": torch, "fastrl": fastrl, "args": SimpleNamespace(gamma=0.98, gae_lambda=0.9)}
    exec("\n".join(lines), names)
    wanted = torch.zeros(T, N)
    for t in range(T):  # sum_k (gamma lambda)^k delta_{t+k} up to the end of the episode
        weight = torch.ones(N)
        for k in range(t, T):
            following = values[k + 1] if k + 1 < T else next_value[0]
            wanted[t] += weight * (rewards[k] + 0.98 * (1 - every_done[k + 1]) * following - values[k])
            weight = weight * 0.98 * 0.9 * (1 - every_done[k + 1])
    torch.testing.assert_close(names["advantages"], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(names["returns"], wanted + values, rtol=1e-5, atol=1e-5)


def test_cleanrls_buffer_takes_its_arguments():
    pytest.importorskip("stable_baselines3")
    import gymnasium as gym
    import numpy as np

    from fastrl.integrations.sb3 import ReplayBuffer

    box, discrete = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2)
    rb = ReplayBuffer(100, box, discrete, "cpu", handle_timeout_termination=False)
    rng = np.random.default_rng(0)
    for k in range(10):  # the order of its own buffer
        rb.add(rng.random((1, 3)), rng.random((1, 3)), np.array([k % 2]), np.array([k]), np.array([k == 9]), {})
    data = rb.sample(64)
    assert data.actions.shape == (64, 1) and data.rewards.flatten().max() <= 9
    assert ((data.rewards == 9) == (data.dones == 1)).all() and (data.dones == 1).any()


def test_there_are_recipes():
    assert len(BLOCKS) >= 6 and BLOCKS[0].startswith("from fastrl.integrations.sb3 import SAC")
