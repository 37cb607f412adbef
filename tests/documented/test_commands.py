"""Every command line that README and docs show is run: for real, up to where an export begins, or it says where.

PVC_DOCS=all (make docs) executes the exports too.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
import typer.main

from engines.manifest import Manifest
from pvc_export import cli
from pvc_export.commands import check as commands_check
from pvc_export.graphs.models import LoadedModel, load_reference
from pvc_export.parity import check
from pvc_export.parity.report import ParityReport

from ..pvc_export.conftest import check_stream_alone
from ..test_docs import wrong_commands
from .blocks import openai_block
from .commands import ADDRESS, ROOT, commands, name_of, pages, words_of
from .running import Here, asked, filled, in_a_process, served
from .sandbox import Sandbox, put_inputs
from .table import TABLE
from .ways import Asked, Elsewhere, Heavy, Run, Serve, Table, Way, value_of

EVERYTHING = os.environ.get("PVC_DOCS") == "all"
Kind = TypeVar("Kind", bound=Way)


def of_kind(kind: type[Kind], table: Table = TABLE) -> list[tuple[str, Kind]]:
    return [(command, way) for command, way in table.items() if isinstance(way, kind)]


class Begun(BaseException):
    """Raised in place of the work of minutes, with what it was to work on."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments


# -- the table and the pages -------------------------------------------------------------------------------------------


def not_run(text: str, table: Table = TABLE) -> list[str]:
    """Commands of a page that no entry is for."""
    return [command for command in commands(text) if command not in table]


def not_shown(texts: list[str], table: Table = TABLE) -> list[str]:
    """Entries that no page shows any more."""
    shown = {command for text in texts for command in commands(text)}
    return [command for command in table if command not in shown]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_command_of_it_is_run(page: Path) -> None:
    assert not_run(page.read_text(encoding="utf-8")) == [], "add what is missing to tests/documented/table.py"


def test_every_entry_is_a_command_that_a_page_shows() -> None:
    assert not_shown([page.read_text(encoding="utf-8") for page in pages()]) == []


def test_every_command_of_pvc_export_is_on_a_page() -> None:
    program: Any = typer.main.get_command(cli.app)
    assert set(program.commands) <= {words_of(command)[1] for command in TABLE if command.startswith("pvc-export ")}


# -- for real ----------------------------------------------------------------------------------------------------------


@cache
def checked(folder: Path) -> ParityReport:
    """A bundle's stream beside its reference, once for all commands that check the bundle."""
    loaded = load_reference(Manifest.load(folder), None, None, on_disk=True)
    return check.check_bundle(folder, loaded, ladder=False, num_questions=0)


def stream_alone(patch: pytest.MonkeyPatch) -> None:
    """Checks of the bundle's stream, without ladder, questions, conversations and state rules: a tenth of the time."""
    patch.setattr(commands_check, "check_bundle", lambda folder, *_, **__: checked(folder.resolve()))
    check_stream_alone(patch)


def run_it(command: str, way: Run, box: Sandbox, here: Here, patch: pytest.MonkeyPatch) -> None:
    for before in way.after:
        earlier = TABLE[before]
        if before not in box.done and isinstance(earlier, Run):
            run_it(before, earlier, box, here, patch)
    words = filled(command, way.names, way.adds)
    with patch.context() as only:
        if way.alone and not EVERYTHING:
            stream_alone(only)
        is_script = words[0] == "python" and words[1] != "-m"
        ended = in_a_process(words, box.root) if is_script else here.run(words)
    assert ended.code == way.code, ended.text
    ended.says(*way.says)
    missing = [name for name in way.makes if not (box.root / name).exists()]
    assert not missing, f"{missing} were not made\n{ended.text}"
    box.done.add(command)


@pytest.mark.parametrize(("command", "way"), of_kind(Run))
def test_it_runs(command: str, way: Run, box: Sandbox, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    run_it(command, way, box, here, monkeypatch)


@pytest.mark.parametrize(("command", "way"), of_kind(Serve))
def test_it_serves_and_answers_what_its_page_asks(
    command: str, way: Serve, box: Sandbox, here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(filled(command, {}, way.adds), box.root) as (address, line):
        assert way.says in line
        requests = [(each, one) for each, one in of_kind(Asked) if one.server == command]
        for each, one in requests:
            words = filled(each, one.names)
            words = [word.replace(ADDRESS, address) for word in words]
            ended = asked(words, box.root) if words[0] == "curl" else here.run(words)
            assert ended.code == 0, ended.text
            ended.says(*one.says)
        if requests:
            openai_block(address, box.root)


# -- what takes minutes ------------------------------------------------------------------------------------------------


def begin(command: str, way: Heavy, here: Here, patch: pytest.MonkeyPatch) -> None:
    """Run it until the work would begin, and look at what was asked for."""

    def stop(*arguments: Any, **_: Any) -> None:
        raise Begun(arguments)

    with patch.context() as only:
        only.setattr(way.begins, stop)
        with pytest.raises(Begun) as begun:
            ended = here.run(filled(command, way.names))
            pytest.fail(f"it ended with {ended.code} before {way.begins}:\n{ended.text}")
    assert {name: value_of(begun.value.arguments, name) for name in way.asks} == dict(way.asks)


@pytest.mark.parametrize(("command", "way"), of_kind(Heavy))
def test_it_gets_as_far_as_the_work_of_minutes(
    command: str, way: Heavy, box: Sandbox, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(command, way, here, monkeypatch)


@pytest.mark.skipif(not EVERYTHING, reason="takes minutes each: make docs")
@pytest.mark.parametrize(("command", "way"), [(each, way) for each, way in of_kind(Heavy) if way.small is not None])
def test_it_does_the_work_of_minutes(command: str, way: Heavy, tiny: LoadedModel, tmp_path: Path) -> None:
    put_inputs(tmp_path, tiny)
    ended = in_a_process(filled(command, way.names, way.small or ""), tmp_path)
    assert ended.code == 0, ended.text
    assert [name for name in way.makes if not (tmp_path / name).exists()] == []


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def stands(by: str) -> bool:
    """Whether there is such a test file or make target."""
    return by.removeprefix("make ") in targets() if by.startswith("make ") else (ROOT / by).is_file()


@pytest.mark.parametrize(("command", "way"), [*of_kind(Elsewhere), *of_kind(Heavy)])
def test_what_stands_for_it_elsewhere_is_there(command: str, way: Elsewhere | Heavy) -> None:
    by = way.by if isinstance(way, Elsewhere) else way.elsewhere
    assert stands(by) if by else isinstance(way, Heavy) and way.small is not None


def unknown_parts(command: str) -> list[str]:
    """Of `make X`, targets that the Makefile lacks; of `pip install 'x[a,b]'`, extras that the project lacks."""
    words = words_of(command)
    if words[0] == "make":
        return [word for word in words[1:] if "=" not in word and word not in targets()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = set(re.findall(r"^([\w-]+) = \[", extras, re.MULTILINE))
    asked_for = {extra for word in words for found in re.findall(r"\[(.+)\]", word) for extra in found.split(",")}
    files = [word for before, word in zip(words, words[1:], strict=False) if before in ("-c", "-r")]
    return sorted(asked_for - known) + [name for name in files if not (ROOT / name).is_file()]


@pytest.mark.parametrize("command", [each for each in TABLE if each.startswith(("make ", "pip "))])
def test_every_target_and_extra_of_it_exists(command: str) -> None:
    assert unknown_parts(command) == []


def test_make_finds_a_rule_for_every_target_that_a_page_names() -> None:
    named = [words_of(each)[1] for each in TABLE if each.startswith("make ")]
    made = subprocess.run(["make", "-n", "-o", ".venv/.installed", *named], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


# -- these tests can fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["    pvc-export inspect FOLDER --no-such", "    .venv/bin/pvc-live build/nowhere   # a comment", "    ./new.sh"],
)
def test_a_command_that_no_test_runs_is_found(text: str) -> None:
    assert len(not_run(text)) == 1


def test_an_unknown_program_is_found() -> None:
    with pytest.raises(ValueError, match="neither a known program nor a known output: 'frobnicate all'"):
        not_run("Type\n\n    frobnicate all\n")


def test_an_entry_that_no_page_shows_is_found() -> None:
    table: Table = {"make demo": TABLE["make demo"], "make tea": Elsewhere("there is no tea", "make test")}
    assert not_shown(["    make demo       # as ever"], table) == ["make tea"]


@pytest.mark.parametrize("command", ["pvc-export exprot -m FOLDER", "pvc-export inspect FOLDER --shown"])
def test_a_command_and_an_option_that_are_gone_are_found(command: str, box: Sandbox, here: Here) -> None:
    assert here.run(filled(command, {})).code == 2
    assert len(wrong_commands(f"`{command}`")) == 1


def test_an_export_that_asks_for_something_else_is_found(
    box: Sandbox, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, way = next((each, one) for each, one in of_kind(Heavy) if "--fp32" in each)
    with pytest.raises(AssertionError):
        begin(command.replace("--fp32", "--fp16"), way, here, monkeypatch)


def test_a_target_an_extra_and_a_stand_in_that_are_gone_are_found() -> None:
    assert unknown_parts("make tea") == ["tea"] and unknown_parts("make demo FILE=clip.mp4") == []
    assert unknown_parts("pip install -c nowhere.txt -e '.[export,tea]'") == ["tea", "nowhere.txt"]
    assert not stands("tests/test_nowhere.py") and not stands("make tea")
