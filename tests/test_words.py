"""The prose of the code: openers that explain nothing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pvc_ref", "pvc_export", "engines", "apps", "tests")
CLAUSE = re.compile(r"(What|How|Where|Which|Why|Whether|Who|Whose)\b(?![^.\n]*\?)")
"""The docstring of a module or a class is a sentence or the name of a thing; a question may stand."""
OPENER = re.compile(r"\b(Unusual|Of note|Special):")


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Those of the module and its classes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def wrong_words(source: str) -> list[str]:
    """Docstrings that begin with a clause, and openers without content, with their line numbers."""
    found = [f"{line}: {text[:60]!r}" for line, text in docstrings(source) if CLAUSE.match(text)]
    lines = source.splitlines()
    return found + [f"{n}: {text.strip()[:60]!r}" for n, text in enumerate(lines, 1) if OPENER.search(text)]


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_are_sentences_or_names_of_things(package: str) -> None:
    wrong = {
        path.relative_to(ROOT).as_posix(): found
        for path in sorted((ROOT / package).rglob("*.py"))
        if (found := wrong_words(path.read_text(encoding="utf-8")))
    }
    assert wrong == {}


def test_a_clause_and_an_opener_are_found_and_a_question_is_not() -> None:
    source = '"""What a check compares."""\nclass Place:\n    """Where it is."""\n'
    assert wrong_words(source) == ["1: 'What a check compares.'", "3: 'Where it is.'"]
    assert wrong_words("# Un" + "usual: two of them\n") == ["1: '# Un" + "usual: two of them'"]
    assert wrong_words('"""Is it right? What a check compares."""\ndef where(): "Where it is."\n') == []
    assert wrong_words('"""What does a check compare?"""\n') == []
