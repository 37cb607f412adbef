"""Long lines on a narrow terminal: broken between words, with a hanging indent."""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import TextIO

GAP = re.compile(r"\s{2,}")
"""Between columns, and before the first."""
COMMAND = re.compile(r"\b(?:pvc-export|pvc-live|pvc-serve|pip|python3?|make|apt-get|tritonserver) \S|\./\w+\.sh")
MOST_INDENT = 34


def fitted(text: str, width: int) -> str:
    """`text` in lines of at most `width` characters. A line with a command stays whole, so that it can be copied."""
    return "\n".join(_hanging(line, width) for line in text.split("\n"))


def _hanging(line: str, width: int) -> str:
    if len(line) <= width or COMMAND.search(line):
        return line
    indent = max((gap.end() for gap in GAP.finditer(line) if gap.end() <= min(MOST_INDENT, width // 2)), default=0)
    first = line[:indent]
    return textwrap.fill(
        line[len(first) :],
        width,
        initial_indent=first,
        subsequent_indent=" " * (indent or 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def fitted_to(stream: TextIO, text: str) -> str:
    """`text` as it is for a file or a pipe, whose lines are data; fitted to the width of a terminal."""
    return fitted(text, shutil.get_terminal_size().columns) if stream.isatty() else text
