"""The algorithms by what they have in common."""

from fastrl.agents import ALGORITHMS

DEEP = {  # the others: tables, and what learns from a fixed batch
    name: cls
    for name, cls in ALGORITHMS.items()
    if hasattr(cls.config_class, "hidden") and cls.counts == "environment steps"
}
