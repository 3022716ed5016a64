"""What the tests of the command line share."""

import re

from fastrl import cli

SMALL = [
    "--learning-rate-steps",
    "2000",
    "--per-beta-steps",
    "2000",
    "--hidden",
    "16",
    "--learning-starts",
    "100",
    "--train-every",
    "10",
    "--updates",
    "1",
    "--batch-size",
    "16",
]


def tree(folder):
    """Every file below `folder` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fails(argv, pattern, capsys, code=2):
    assert cli.main([str(arg) for arg in argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastrl: ") and err.count("\n") == 1, err
    assert re.search(pattern, err), err
