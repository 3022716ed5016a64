"""The processes of this machine, by /proc."""

import contextlib
import os


def processes():
    """pid -> (state, pid of the parent, process group)."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    state, parent, group = file.read().rsplit(")", 1)[1].split()[:3]
            except OSError:  # it has ended
                continue
            found[int(entry)] = state, int(parent), int(group)
    return found


def descendants(pid):
    found, level, listed = set(), {pid}, processes()
    while level:
        level = {child for child, (_, parent, _) in listed.items() if parent in level} - found
        found |= level
    return found


def running_in_group(number):
    """The processes of a group that have not ended."""
    return [pid for pid, (state, _, group) in processes().items() if group == number and state != "Z"]


def working_in(folder):
    """The processes that have not ended and whose working folder it is."""
    found = []
    for pid in processes():
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if os.path.samefile(f"/proc/{pid}/cwd", folder):
                found.append(pid)
    return found


def command_line(pid):
    """For messages: empty if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(200).replace(b"\0", b" ").decode(errors="replace")
    return ""
