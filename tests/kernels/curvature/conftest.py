"""Curvature products are of torch modules, but for those of an MLP: without torch they alone are collected."""

import importlib.util
from pathlib import Path

if importlib.util.find_spec("torch") is None:
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_mlp.py"]
