"""Curvature products are of torch modules, but for those of an MLP: without torch they alone are collected."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_[!m]*.py"]
