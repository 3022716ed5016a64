"""What every integration asks first: is this the host that its tests ran with?"""

from __future__ import annotations

from functools import cache
from importlib import metadata

version = cache(metadata.version)  # looking it up takes ten times as long as a kernel


def untested(package: str, tested: str) -> str | None:
    """Why the host's own code is to run instead of ours: its version is not ``tested.*``; None if it is."""
    found = version(package)
    return None if f"{found}.".startswith(f"{tested}.") else f"{package} is {found}, and {tested} is what was tested"
