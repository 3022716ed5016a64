"""For griffe: the docstrings' own line breaks, which Markdown would lose, where a line was ended on purpose.

Equations stand one a line.  A line that was only full would not have taken the first word of the next one.
"""

import re
from itertools import pairwise

import griffe

FULL = 100  # characters, of the 120 less the deepest indentation
OWN_BLOCK = re.compile(r"\s*(>>>|\.\.\.|- |[A-Z][a-z]+:$|\w[\w, ]*: |$)")


class LineBreaks(griffe.Extension):
    """Ends such lines with the two spaces that are Markdown's line break."""

    def on_instance(self, *, node, obj, agent, **kwargs):
        if obj.docstring:
            obj.docstring.value = with_breaks(obj.docstring.value)


def with_breaks(text):
    """The text with two spaces at the end of each line that was ended on purpose.

    >>> with_breaks("y = x\\nz = y")
    'y = x  \\nz = y'
    """
    lines = text.split("\n")
    doctest = False
    for i, (line, after) in enumerate(pairwise(lines)):
        doctest = line.lstrip().startswith(">>>") or (doctest and bool(line.strip()))
        if doctest or not line.strip() or OWN_BLOCK.match(after):
            continue
        if len(line) + 1 + len(after.split()[0]) <= FULL:
            lines[i] = line + "  "
    return "\n".join(lines)
