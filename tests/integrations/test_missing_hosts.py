"""An integration without its host names the package and how to install it."""

import subprocess
import sys

import pytest

BLOCK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.parametrize(
    ("statement", "missing", "package", "install"),
    [
        ("from fastrl.integrations.sb3 import DQN", "stable_baselines3", "stable-baselines3", "fastrl-kernels[sb3]"),
        ("from fastrl.integrations.sb3_contrib import TQC", "sb3_contrib", "sb3-contrib", "sb3-contrib"),
        ("from fastrl.integrations.tianshou import SegmentTree", "tianshou", "Tianshou", "tianshou"),
        ("from fastrl.integrations.torchrl import GAE", "tensordict", "TorchRL", "torchrl"),
        ("from fastrl.integrations.skrl import compute_gae", "skrl", "skrl", "skrl[torch]"),
        ("import fastrl.integrations.rllib", "ray", "RLlib", "ray[rllib]"),
        ("from fastrl.agents import DQN", "gymnasium", "agents need gymnasium", "fastrl-kernels[agents]"),
    ],
    ids=lambda value: value if "import" in value else "",
)
def test_a_host_that_is_not_there(statement, missing, package, install):
    code = BLOCK.format(missing=["stable_baselines3", missing]) + statement
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = found.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ") and package in last and "pip install" in last, last
    assert install in last
