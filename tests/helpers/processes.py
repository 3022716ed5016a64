"""The processes of this machine, by /proc."""

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
