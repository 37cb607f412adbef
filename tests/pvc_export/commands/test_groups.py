"""`pvc-export --help`: its commands in groups."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import typer.main

import pvc_export.cli
from pvc_export.terminal.groups import GROUPS


def help_of(columns: int) -> str:
    command = [sys.executable, "-m", "pvc_export.cli", "--help"]
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": str(columns), "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_every_command_is_in_one_group() -> None:
    program: Any = typer.main.get_command(pvc_export.cli.app)
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(program.commands)


def test_help_shows_every_group_with_its_commands_within_80_columns() -> None:
    text = help_of(80)
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    shown = re.findall(r"^  (\w+) {2,}|^(\w.*):$", text, re.MULTILINE)
    order = [title or name for name, title in shown if title != "Options"]
    assert order == [word for title, names in GROUPS.items() for word in (title, *names)]
    assert not re.search(r"\w\.\.\.$", text, re.MULTILINE), "no description is cut off"
