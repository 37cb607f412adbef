"""The page's command line options."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from apps.web.options import WebOptions, add_options, web_options

from .conftest import TOKEN


def parsed(*arguments: str) -> WebOptions | None:
    parser = ArgumentParser()
    add_options(parser)
    return web_options(parser.parse_args(arguments))


def test_without_web_there_is_no_page_and_its_options_say_so() -> None:
    assert parsed() is None
    with pytest.raises(ValueError, match="need --web"):
        parsed("--port", "9000")


def test_defaults_are_those_of_this_machine_alone() -> None:
    options = parsed("--web")
    assert options == WebOptions() and options.is_local and options.token({}) is None


def test_every_option_is_read(tmp_path: Path) -> None:
    found = parsed(
        "--web", "--host", "::1", "--port", "0", "--served-as", "a.example", "--served-as", "b.example",
        "--viewers", "3", "--web-fps", "5", "--web-width", "320", "--web-files", str(tmp_path), "--no-frame-after", "7",
        "--hang-after", "9",
    )  # fmt: skip
    assert found == WebOptions(
        host="::1", port=0, served_as=("a.example", "b.example"), viewers=3, picture_fps=5.0, picture_width=320,
        files=tmp_path, no_frame_s=7.0, hang_s=9.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "70000"), ("--port", "-1"), ("--host", " "), ("--viewers", "0"), ("--viewers", "101"),
        ("--web-fps", "0"), ("--web-fps", "nan"), ("--web-width", "8"), ("--web-files", "/no/such/folder"),
        ("--served-as", "https://cam.example"), ("--served-as", "cam.example:443"), ("--no-frame-after", "0"),
        ("--hang-after", "nan"),
    ],
)  # fmt: skip
def test_what_no_page_can_do_is_named_by_its_option(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} "):
        parsed("--web", option, value)


@pytest.mark.parametrize(
    "options", [{"host": "0.0.0.0"}, {"host": "192.168.1.5"}, {"host": "::"}, {"served_as": ("cam.example",)}], ids=str
)
def test_where_others_can_reach_it_a_token_is_made_again_each_time(options: dict[str, object]) -> None:
    made = WebOptions(**options)  # type: ignore[arg-type]
    first, second = made.token({}), made.token({})
    assert first is not None and len(first) >= 40 and first != second


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_on_this_machine_only_a_token_that_is_given_counts(host: str) -> None:
    options = WebOptions(host=host)
    assert options.token({}) is None and options.token({"PVC_LIVE_TOKEN": TOKEN}) == TOKEN


@pytest.mark.parametrize("token", ["", "short", "caf\u00e9" * 5, "line\nbreak" * 5])
def test_a_token_that_could_be_guessed_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="PVC_LIVE_TOKEN is too short or not printable ASCII; expected 16"):
        WebOptions().token({"PVC_LIVE_TOKEN": token})
