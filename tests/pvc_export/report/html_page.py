"""A report's page as a reader sees it: its words, and a check that it fetches nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = '<script>alert("x")</script> \x1b[31m\u202egnp.exe & "q" \x00\ud800'
"""A hostile name that a user or a model may have given something."""
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Text and attributes of a page, and the nesting of its tags, which must be correct."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def require_self_contained(html: str) -> None:
    page = Page(html)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "action", "data", "poster", "srcset"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:80])
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _, _ in page.attributes}
    assert "@import" not in html and "url(" not in html and "http://" not in html and "https://" not in html
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes


def require_clean(document: str) -> None:
    """Require that the document has no control characters and no lone surrogates."""
    document.encode()
    assert not re.search("[\x00-\x08\x1b\u202e]", document)
