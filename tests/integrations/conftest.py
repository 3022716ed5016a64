import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def logs_of_sb3(tmp_path_factory):
    """Stable-Baselines3 makes a folder for each run, by default in the system's temporary one, and leaves it there."""
    os.environ["SB3_LOGDIR"] = str(tmp_path_factory.mktemp("sb3"))
    yield
    del os.environ["SB3_LOGDIR"]
