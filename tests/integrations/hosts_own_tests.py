"""The tests of Stable-Baselines3 and of sb3-contrib, with the classes of `fastrl.integrations` in the place of theirs.

    python tests/integrations/hosts_own_tests.py DIR [options of pytest]

DIR: the folder tests of a clone of either repository, of the version that is installed.  pytest shows at the end which
classes were not compiled (images, Dict observations), and whose tests ran the host's own code therefore.
"""

import importlib
import sys

import pytest

HOMES = {"stable_baselines3": "fastrl.integrations.sb3", "sb3_contrib": "fastrl.integrations.sb3_contrib"}


def substitute() -> list[str]:
    """Put ours where the tests import from, before they do; the names of the classes."""
    names = []
    for host, ours in HOMES.items():
        there, here = importlib.import_module(host), importlib.import_module(ours)
        for name in here.__all__:
            if hasattr(there, name):  # an algorithm
                setattr(there, name, getattr(here, name))
                names.append(name)
    return names


if __name__ == "__main__":
    folder, *options = sys.argv[1:]
    print("ours:", ", ".join(substitute()))
    sys.exit(pytest.main([folder, "--rootdir", folder, "-p", "no:cacheprovider", "-p", "no:xdist", *options]))
