"""The version of sb3-contrib that these were checked against."""

from fastrl.integrations._version import untested
from fastrl.integrations.sb3.networks import CannotCompile

TESTED = "2.9"


def check_version() -> None:
    reason = untested("sb3-contrib", TESTED)
    if reason:
        raise CannotCompile(reason)
