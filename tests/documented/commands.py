"""Code on the pages: their blocks, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
"""Address of pvc-serve on the pages."""
NOT_FOR_USERS = ("log.md", "study.md")
"""The lab book, and a page that a command writes."""
PROGRAMS = (
    "pvc-export", "pvc-live", "pvc-serve", "python", "python3", "make", "pip", "ray", "curl", "sudo", "systemctl",
    "journalctl", "rsync", "tritonserver", "optimum-cli", "ssh", "docker", "git", "apt-get", "export",
)  # fmt: skip
NO_COMMANDS = (
    "true", "bundle", "camera", "摄像头画面", "levels", "FAIL", "onnx", '{"video":', "histogram_quantile(0.99,",
)  # fmt: skip
"""First words of blocks that show an output, a drawing or a file."""
SHELLS = ("sh", "bash", "shell", "console")
"""Fences whose lines are commands; those without a language show files."""
SERVICE = re.compile(r"ExecStart=(?:\S*/)?(.*)")
CELL = re.compile(r"^\|[^|]*\| `([^`|]+)` \|", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """Code of a page. language: of a fence, "" where it names none, None of an indented block."""

    language: str | None
    lines: tuple[str, ...]


def pages() -> list[Path]:
    """What users read."""
    docs = sorted((ROOT / "docs").glob("*.md"))
    return [*sorted(ROOT.glob("README*.md")), *(page for page in docs if page.name not in NOT_FOR_USERS)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[Block]:
    """Fenced and indented code, in the page's order. A line that is not indented ends an indented block."""
    language: str | None = None
    lines: list[str] = []
    for line in [*text.splitlines(), "the end"]:
        if line.startswith("    ") if language is None else not line.startswith("```"):
            lines.append(line if language is not None else line[4:])
            continue
        if lines:
            yield Block(language, tuple(lines))
        lines = []
        if line.startswith("```"):
            language = line[3:].strip() if language is None else None


def python_blocks(text: str) -> list[str]:
    return ["\n".join(block.lines) for block in blocks(text) if block.language == "python"]


def commands(text: str) -> list[str]:
    """Every command line in a page's blocks, and in its tables where it fills the second cell; joined, without its
    comment. Raises ValueError for a block that is neither commands nor known as something else."""
    found: list[str] = []
    for block in blocks(text):
        if services := [match[1] for line in block.lines if (match := SERVICE.match(line))]:
            found += services
        elif block.language is None and block.lines[0].split()[0] not in NO_COMMANDS:
            before = found[-1:]
            for line in joined(block.lines):
                if line.startswith("--"):  # goes on with the last command of the block in front; two spaces end it
                    found += [f"{command} {line.partition('  ')[0]}" for command in before]
                else:
                    found.append(known(line))
        elif block.language in SHELLS:
            found += map(known, joined(block.lines))
    return [*dict.fromkeys([*found, *(cell for cell in CELL.findall(text) if is_command(cell))])]


def known(line: str) -> str:
    """The line. Raises ValueError unless it begins with a program."""
    if is_command(line):
        return line
    raise ValueError(
        f"neither a known program nor a known output: {line!r}. Its first word belongs into PROGRAMS or NO_COMMANDS of "
        f"{name_of(Path(__file__))}"
    )


def is_command(line: str) -> bool:
    program = line.split()[0]
    return program in PROGRAMS or program.startswith("./")


def joined(lines: tuple[str, ...]) -> list[str]:
    """Lines that end in a backslash with the one after; no comments, no folder of the environment, no empty lines."""
    text = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    bare = (without_comment(line).strip().removeprefix(".venv/bin/") for line in text.splitlines())
    return [line for line in bare if line]


def without_comment(line: str) -> str:
    """A # begins one where a shell says so: after a space, and not within quotes."""
    quote = ""
    for index, letter in enumerate(line):
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        elif letter == "#" and not quote and (index == 0 or line[index - 1].isspace()):
            return line[:index]
    return line


def words_of(command: str) -> list[str]:
    return shlex.split(command)
