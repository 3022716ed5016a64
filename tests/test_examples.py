"""The files under examples/ run as they stand, each in a process of its own, as a user runs them."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# file -> (what it imports besides fastrl and NumPy, small arguments, what it must print)
CASES = {
    "ppo_gae.py": (("torch", "gymnasium"), ["--total-steps", "4096"], r"last 20 of \d+ episodes: (\d+\.\d)"),
    "act_from_torch.py": (("torch",), ["--calls", "20"], r"CleanRL: .* (\d+\.\d) us by fastrl.MLP"),
    "numpy_replay.py": ((), ["--states", "8"], r"prioritized +(\d+) updates.*\nuniform +(\d+) updates"),
    "tanh_normal_policy.py": (
        ("torch",),
        ["--steps", "100", "--backend", "aot_eager"],  # what needs no C++ compiler
        r"first (-?\d+\.\d+), last (-?\d+\.\d+); actions in \[(-?\d\.\d+), (-?\d\.\d+)\]",
    ),
    "cg_scipy.py": (("scipy",), ["--rows", "300", "--columns", "60"], r"plain: converged after (\d+)[\s\S]*converged"),
    "export_policy.py": (("torch", "gymnasium"), [], ""),
    "track_experiment.py": (("torch", "gymnasium"), [], ""),
    "cleanrl_ppo.py": (("gymnasium",), ["--total-timesteps", "10240"], r"last 20 of \d+ episodes: (\d+\.\d)"),
    "cleanrl_dqn.py": (
        ("gymnasium",),
        ["--total-timesteps", "3000", "--learning-starts", "500"],
        r"last 20 of (\d+) episodes: (\d+\.\d), loss (\d+\.\d+)",
    ),
    "cleanrl_sac.py": (
        ("gymnasium",),
        ["--total-timesteps", "600", "--learning-starts", "300", "--batch-size", "32"],
        r"last 10 of (\d+) episodes: -\d+\.\d, loss (\d+\.\d+)",
    ),
    "gae_jax.py": (("jax",), ["--steps", "129", "--envs", "3"], r"advantages \(129, 3\) float32, a JAX array"),
}


def run(name, arguments, *flags):
    """Standard output of an example, run outside the source tree."""
    command = [sys.executable, *flags, str(EXAMPLES / name), *arguments]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "FASTRL_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def numbers(name):
    needs, arguments, pattern = CASES[name]
    for library in needs:
        if find_spec(library) is None:
            pytest.skip(f"{name} needs {library}")
    out = run(name, arguments).stdout
    match = re.search(pattern, out)
    assert match, out
    return [float(x) for x in match.groups()]


def test_every_example_is_here_and_says_how_to_run_it():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(CASES)
    for name in CASES:
        docstring = (EXAMPLES / name).read_text().split('"""')[1]
        assert f"python examples/{name}" in docstring and len(docstring.splitlines()) <= 4


def test_a_policy_of_torch_acts():
    numbers("act_from_torch.py")  # it asserts that the actions are the same


def test_gae_in_a_ppo_script():
    (last,) = numbers("ppo_gae.py")
    assert last > 25  # a random policy gets 22 on CartPole-v1


def test_ppo_in_cleanrls_style():
    (last,) = numbers("cleanrl_ppo.py")
    assert last > 25


def test_dqn_and_sac_in_cleanrls_style():
    episodes, _, loss = numbers("cleanrl_dqn.py")
    assert episodes > 20 and 0 < loss < 100
    episodes, loss = numbers("cleanrl_sac.py")
    assert episodes == 3 and 0 < loss < 1000


def test_sum_tree_behind_a_numpy_buffer():
    prioritized, uniform = numbers("numpy_replay.py")
    assert prioritized < uniform / 2


def test_the_numpy_buffer_imports_no_torch():
    result = run("numpy_replay.py", ["--states", "2"], "-X", "importtime")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "|" in line}
    assert "fastrl" in imported and "numpy" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "numba", "gymnasium")}


def test_tanh_normal_in_a_compiled_module():
    first, last, least, most = numbers("tanh_normal_policy.py")
    assert last < first / 2 and -2 <= least < -1 and 1 < most <= 2


def test_conjugate_gradient_on_a_scipy_operator():
    (iterations,) = numbers("cg_scipy.py")  # the script itself compares with SciPy
    assert 10 < iterations < 300


def test_gae_on_jax_arrays():
    numbers("gae_jax.py")  # the script itself compares with lax.scan


def test_a_policy_is_exported(tmp_path):
    if find_spec("torch") is None or find_spec("gymnasium") is None:
        pytest.skip("export_policy.py needs torch and gymnasium")
    out = run("export_policy.py", [str(tmp_path)]).stdout  # the script itself compares with predict
    assert "torch.export: " in out and "ONNX: " in out and (tmp_path / "policy.pt2").stat().st_size > 1000


def test_a_run_is_tracked(tmp_path):
    if find_spec("torch") is None or find_spec("gymnasium") is None:
        pytest.skip("track_experiment.py needs torch and gymnasium")
    assert run("track_experiment.py", [str(tmp_path)]).stdout.startswith("6000 steps logged in ")
    if find_spec("wandb") is None:
        rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert rows[0]["config"]["algorithm"] == "dqn" and rows[0]["config"]["hidden"] == [32, 32]
        assert [row["step"] for row in rows if "loss" in row] == [1000, 2000, 3000, 4000, 5000, 6000]
        assert [row["step"] for row in rows if "eval_return" in row] == [2000, 4000, 6000]


@pytest.mark.slow
def test_the_notebook_of_a_script_taken_over():
    pytest.importorskip("torch")
    pytest.importorskip("gymnasium")
    text = (EXAMPLES / "ppo_from_script.ipynb").read_text(encoding="utf-8")
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 5
    namespace = {}
    for number, cell in enumerate(cells, 1):  # the cells themselves compare with what they replace
        exec(compile(cell, f"cell {number}", "exec"), namespace)
    assert namespace["mean_return"] > 60  # a random policy gets 22 on CartPole-v1
