"""Curvature products are of torch modules: without torch there is nothing to collect."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]
