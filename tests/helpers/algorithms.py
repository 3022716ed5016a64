"""The algorithms by what they have in common."""

from fastrl.agents import ALGORITHMS

DEEP = {name: cls for name, cls in ALGORITHMS.items() if hasattr(cls.config_class, "hidden")}  # the others: tables
