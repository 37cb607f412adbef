"""The page's files: they load nothing from another host, and every control has a name."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from apps.web.app import STATIC

FILES = sorted(path for path in STATIC.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))
ELSEWHERE = re.compile(r"""(?:https?:)?//[\w-]+\.[\w-]|@import|\burl\(|\bimport\(""")
SVG = "http://www.w3.org/2000/svg"


def fetched_elsewhere(text: str) -> list[str]:
    """Return what a browser would load from another host."""
    return ELSEWHERE.findall(text.replace(SVG, ""))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere(path: object) -> None:
    assert fetched_elsewhere(path.read_text(encoding="utf-8")) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text", ['<script src="https://cdn.example.com/x.js">', '<link href="//fonts.example.com/a">', "@import 'a.css';",
             "background: url(data:x)", "await import('./x.js')"],
)  # fmt: skip
def test_what_is_fetched_would_be_found(text: str) -> None:
    assert fetched_elsewhere(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_breaks_the_policy_or_puts_strangers_words_in_as_html(path: object) -> None:
    text = path.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        " style=",
        " onclick=",
    ):
        assert forbidden not in text


def test_every_module_that_is_imported_is_there_and_every_file_is_used() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in FILES}
    used = set(re.findall(r'static/([\w.]+)"', texts["index.html"] + texts["token.html"]))
    imported = {name for text in texts.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert used | imported == {name for name in texts if not name.endswith(".html")}
    assert all(len(text.splitlines()) <= 300 for text in texts.values())


class Controls(HTMLParser):
    """A page's ids, the targets of its labels, and the names of its controls."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.inputs: list[dict[str, str | None]] = []
        self.buttons: list[str] = []
        self._button: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "label":
            self.labelled.add(str(found.get("for")))
        if tag in ("input", "select", "textarea"):
            self.inputs.append(found)
        if tag == "button":
            self._button = str(found.get("aria-label") or "")

    def handle_data(self, data: str) -> None:
        if self._button is not None:
            self._button += data.strip()

    def handle_endtag(self, tag: str) -> None:
        if tag == "button" and self._button is not None:
            self.buttons.append(self._button)
            self._button = None


@pytest.mark.parametrize("name", ["index.html", "token.html"])
def test_every_control_has_a_name(name: str) -> None:
    page = Controls((STATIC / name).read_text(encoding="utf-8"))
    assert page.inputs and all(field["id"] in page.labelled for field in page.inputs)
    assert page.buttons and all(page.buttons) and len(page.ids) == len(set(page.ids))


def test_a_control_without_a_name_would_be_found() -> None:
    page = Controls('<input id="a"><button><svg></svg></button>')
    assert page.inputs[0]["id"] not in page.labelled and not all(page.buttons)


def test_every_part_that_a_script_asks_for_is_in_the_page() -> None:
    ids = set(Controls((STATIC / "index.html").read_text(encoding="utf-8")).ids)
    asked = {
        name for path in FILES if path.suffix == ".js" for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text())
    }
    assert asked <= ids and len(asked) > 20


def test_an_answer_is_read_out_politely_and_whole() -> None:
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.search(r'id="spoken"[^>]*aria-live="polite"', text) and '<html lang="en">' in text


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio as WCAG defines it, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [":root", ':root[data-theme="dark"]', ':root:not([data-theme="light"])'])
@pytest.mark.parametrize(
    ("ink", "paper", "least"),
    [
        ("text", "card", 7.0), ("text", "bg", 7.0), ("muted", "card", 4.5), ("muted", "bg", 4.5),
        ("accent", "card", 4.5), ("accent", "soft", 4.5), ("on-accent", "accent", 4.5), ("good", "card", 4.5),
        ("bad", "bad-soft", 4.5), ("warn", "warn-soft", 4.5), ("alert", "card", 4.5), ("field-line", "card", 3.0),
    ],
)  # fmt: skip
def test_text_can_be_read_in_both_themes(theme: str, ink: str, paper: str, least: float) -> None:
    text = (STATIC / "base.css").read_text(encoding="utf-8")
    block = text.partition(f"{theme} {{")[2].partition("}")[0]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    assert contrast(colors[ink], colors[paper]) >= least


def test_the_formula_of_contrast_is_wcags() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
