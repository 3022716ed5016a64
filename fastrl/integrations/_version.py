"""What every integration asks first: is there the host, and is it the one that its tests ran with?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata

version = cache(metadata.version)  # looking it up takes ten times as long as a kernel


@contextmanager
def installed(package: str, install: str, *modules: str) -> Iterator[None]:
    """Say in the ImportError which `package` is missing when one of its `modules` is, and how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in modules:
            raise
        needs = f"this needs {package}, which is not installed (no module {error.name})"
        raise ModuleNotFoundError(f"{needs}: pip install {install}", name=error.name) from None


def untested(package: str, tested: str) -> str | None:
    """Why the host's own code is to run instead of ours: its version is not ``tested.*``; None if it is."""
    found = version(package)
    return None if f"{found}.".startswith(f"{tested}.") else f"{package} is {found}, and {tested} is what was tested"
