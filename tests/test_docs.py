"""Everything the documents name exists: files, names in them, links, and commands with their options."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

import apps.serving.options
import apps.watch
import pvc_export.cli

from .documented.commands import ROOT, blocks

TASKS = ("docs/tour.md", "docs/extend.md", "docs/export.md", "docs/report.md", "docs/proven.md", "docs/device.md")
NOT_CARRIED = (".venv/", "build/")
"""Folders that commands create and no checkout contains."""
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"[\w./-]*(?:/|\.(?:py|json|md|toml|txt|j2|jpg|png|gif))")
NAME_IN_FILE = re.compile(r"`([\w./-]+\.py)` `(\w+(?:\.\w+)*)`")
COMMAND = re.compile(r"(pvc-export|pvc-live|pvc-serve|python -m)\b((?:(?! or | and )[^\n`#|;&),])*)")
OPTION = re.compile(r"(?<!\S)(-[a-zA-Z]|--[a-z][a-z0-9-]*)(?![\w-])")
MODULE = re.compile(r"\w+(?:\.\w+)+$")
PARSERS = {"pvc-live": apps.watch.make_parser, "pvc-serve": apps.serving.options.make_parser}
OURS = ("apps", "engines", "pvc_export", "pvc_ref", "tests")


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "Makefile"]


# -- paths and links -------------------------------------------------------------------------------------------------


def missing_paths(text: str) -> list[str]:
    """Return the code spans that are paths to nothing. `a/b.py::test_name` must contain that test."""
    wrong = []
    for span in SPAN.findall(text):
        path, _, test = span.partition("::")
        if not PATH.fullmatch(path) or path.startswith(NOT_CARRIED) or "/" not in path:
            continue
        if not (ROOT / path).exists() or (test and test not in names_in(ROOT / path)):
            wrong.append(span)
    return wrong


def missing_names(text: str) -> list[str]:
    """Return the pairs "`file.py` `name`" whose file does not define or import the name."""
    pairs = NAME_IN_FILE.findall(text)
    return [f"{name} in {path}" for path, name in pairs if not set(name.split(".")) <= names_in(ROOT / path)]


@cache
def names_in(path: Path) -> set[str]:
    """Return every function, class and variable of a file, including methods and fields."""
    if not path.exists():
        return set()
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def dead_links(text: str, document: Path) -> list[str]:
    """Return the relative links to nothing, and those to a #section that the document does not have."""
    wrong = []
    for link in LINK.findall(text):
        path, _, section = link.partition("#")
        target = document.parent / path if path else document
        if "://" in link:
            continue
        read = text if target == document else target.read_text(encoding="utf-8") if section and target.exists() else ""
        if not target.exists() or (section and section not in sections(read)):
            wrong.append(link)
    return wrong


def sections(text: str) -> set[str]:
    """Return the anchors of a document's headings."""
    titles = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", *TASKS])
def test_every_path_and_name_in_it_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert missing_paths(text) == [] and missing_names(text) == []


def test_the_chinese_readme_has_the_links_and_commands_of_the_english_one() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert set(LINK.findall(chinese)) ^ set(LINK.findall(english)) == {"README.md", "README.zh-CN.md"}
    assert [*command_lines(chinese)] == [*command_lines(english)]


def test_every_page_is_reached_from_the_readme() -> None:
    """By links, in a few steps, but for the lab book's own pages."""
    reached, new = set[Path](), {ROOT / "README.md"}
    while new:
        reached |= new
        links = {(page.parent / link.partition("#")[0]).resolve() for page in new for link in page_links(page)}
        new = {page for page in links if page.suffix == ".md" and page.is_file()} - reached
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} - reached == set()


def page_links(page: Path) -> list[str]:
    return [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]


def test_the_links_of_both_readmes_and_their_sections_are_looked_at() -> None:
    chinese = ROOT / "README.zh-CN.md"
    assert {ROOT / "README.md", chinese} <= set(documents())
    links = "## 已证明\n[a](#已证明) [b](#没有) [c](docs/performance.md#a-plan) [d](docs/performance.md#no-plan)"
    assert dead_links(links, chinese) == ["#没有", "docs/performance.md#no-plan"]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_resolves(document: Path) -> None:
    assert dead_links(document.read_text(encoding="utf-8"), document) == []


def test_every_claim_names_what_shows_it() -> None:
    """Either a test file, or a command that everyone can run."""
    claims = (ROOT / "docs/proven.md").read_text(encoding="utf-8").partition("## Limits")[0]
    lines = [line.split("|")[1:-1] for line in claims.splitlines() if line.startswith("| ")]
    rows = [line for line in lines if line[0].strip() != "claim"]
    assert len(rows) > 20 and all(len(row) == 3 for row in rows)
    for claim, _, shown_by in rows:
        assert re.search(r"`(tests/[\w/]+\.py|pvc-export \w+|make \w+)", shown_by), claim


# -- commands --------------------------------------------------------------------------------------------------------


def command_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield each program in the text's code (code spans, blocks, Makefile lines), with the rest of its command."""
    of_makefile = [line for line in text.splitlines() if line.startswith("\t")]
    shown = [line for block in blocks(text) for line in block.lines]
    for code in (*SPAN.findall(text), *of_makefile, *shown):
        yield from COMMAND.findall(code.replace("$(BIN)/", ""))


def wrong_commands(text: str) -> list[str]:
    return [f"{program}{rest}: {problem}" for program, rest in command_lines(text) if (problem := wrong(program, rest))]


def wrong(program: str, rest: str) -> str:
    """Return what is wrong with a command, or an empty string."""
    words = rest.split()
    if program == "python -m":
        return wrong_module(words[0] if words else "", rest)
    if program in PARSERS:
        return unknown_options(rest, set(OPTION.findall(PARSERS[program](program).format_help())))
    command: Any = typer.main.get_command(pvc_export.cli.app)
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None or not name.isalpha() or not name.islower():
        return ""  # the program itself, or a placeholder
    if name not in command.commands:
        return f"there is no command '{name}'"
    parameters = command.commands[name].params
    known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return unknown_options(rest, known)


def unknown_options(rest: str, known: set[str]) -> str:
    unknown = [option for option in OPTION.findall(rest) if option not in known]
    return f"it has no {', '.join(unknown)}" if unknown else ""


def wrong_module(name: str, rest: str) -> str:
    if not MODULE.match(name) or not name.startswith(OURS):
        return ""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:  # python -m PACKAGE
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or spec.origin is None:
        return "there is no such module"
    source = Path(spec.origin).read_text(encoding="utf-8")
    if '__name__ == "__main__"' not in source:
        return "it is not a program"
    unknown = [option for option in OPTION.findall(rest) if f'"{option}"' not in source]
    return f"it has no {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_it_exists_with_its_options(document: Path) -> None:
    assert wrong_commands(document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("package", OURS[:-1])
def test_every_command_that_a_message_names_exists_with_its_options(package: str) -> None:
    """The word after `pvc-export` may be an ordinary word of the sentence, unless an option follows."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for text in strings_in(path.read_text(encoding="utf-8")):
            for program, rest in COMMAND.findall(text):
                problem = wrong(program, rest)
                assert not problem or (problem.startswith("there is no command") and "-" not in rest), (path, text)


def strings_in(source: str) -> Iterator[str]:
    """Yield every string of a Python file, including docstrings, with {} for an f-string's values."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


# -- proof that these tests can fail -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "`pvc-export chek build/shapes`",
        "`pvc-export check build/shapes --repport page.html`",
        "    .venv/bin/pvc-export trt -x FOLDER      # in a block",
        "`pvc-live build/shapes --sorce 0`",
        "`pvc-serve build/shapes --sessoins 4`",
        "`python -m pvc_export.noise`",
        "`python -m pvc_export.parity.metrics`",
        "\t@$(BIN)/python -m pvc_export.studies.limits --sedes 6",
    ],
)
def test_a_command_that_is_not_there_is_found(text: str) -> None:
    assert len(wrong_commands(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "`pvc-export` and `pvc-export trt | onnx`",
        "`pvc-export trt -m FOLDER --fp16 -o build/x`",
        "    .venv/bin/pvc-live build/shapes --source 0 --ask 'What do you see?'    # --this is a comment",
        "`python -m pvc_export.studies.limits --only tiny --write`, `python -m pytest -q`",
        "In prose, pvc-export has no --such option.",
    ],
)
def test_a_command_that_is_there_is_not(text: str) -> None:
    assert wrong_commands(text) == []


def test_paths_names_and_links_that_lead_nowhere_are_found() -> None:
    text = "`engines/nowhere.py`, `tests/test_docs.py::test_nothing`, `docs/none/`, `engines/cache.py`, `build/x.json`"
    assert missing_paths(text) == ["engines/nowhere.py", "tests/test_docs.py::test_nothing", "docs/none/"]
    names = "`engines/cache.py` `RingCache.feeds`, `engines/cache.py` `RingCache.feed`, `engines/gone.py` `x`"
    assert missing_names(names) == ["RingCache.feed in engines/cache.py", "x in engines/gone.py"]
    links = "# A section\n[a](docs/log.md) [b](docs/lag.md) [c](#a-section) [d](#no-section) [e](https://example.org)"
    links += " [f](docs/numerics.md#words) [g](docs/numerics.md#swords)"
    assert dead_links(links, ROOT / "README.md") == ["docs/lag.md", "#no-section", "docs/numerics.md#swords"]
