"""The command line: how each option is interpreted, and which values are refused."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import pytest

from apps.events.options import CHANGE, KINDS, EventOptions, add_options
from apps.segments import QUOTA_BYTES, SEGMENT_S

ROOT = Path(__file__).parent.parent.parent.parent


def options(*arguments: str) -> EventOptions:
    parser = ArgumentParser()
    add_options(parser)
    return EventOptions.of(parser.parse_args(arguments))


def test_without_an_option_nothing_is_made_of_answers() -> None:
    assert options() == EventOptions()


def test_every_option_arrives() -> None:
    found = options(
        "--ask-when", "change", "--change", "0.3", "--alert", "fire", "--alert", "/smoke/i", "--alert-after", "2",
        "--log", "a.jsonl", "--webhook", "https://a/b", "--webhook", "http://c", "--mqtt", "mqtt://h/t",
        "--deliver", "answer, alert", "--snapshots", "shots", "--keep-snapshots", "9", "--record-folder", "rec",
        "--segment", "60", "--segment-size", "500M", "--record-quota", "1.5G",
    )  # fmt: skip
    assert (found.ask_when, found.change, [rule.text for rule in found.alerts]) == ("change", 0.3, ["fire", "/smoke/i"])
    assert (found.after, found.log, found.webhooks) == (2, Path("a.jsonl"), ("https://a/b", "http://c"))
    assert found.broker is not None and found.broker.host == "h" and found.kinds == ("answer", "alert")
    assert (found.snapshots, found.max_snapshots) == (Path("shots"), 9)
    assert (found.record_folder, found.segment_s) == (Path("rec"), 60.0)
    assert (found.segment_bytes, found.quota_bytes) == (500 * 2**20, 3 * 2**29)


def test_defaults_are_those_of_the_parts() -> None:
    found = options("--ask-when", "change", "--record-folder", "rec", "--webhook", "http://a")
    assert (found.change, found.segment_s, found.quota_bytes, found.kinds) == (CHANGE, SEGMENT_S, QUOTA_BYTES, KINDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--change 0.3", "--change is only for --ask-when change"),
        ("--ask-when change --change 0", "--change is 0; expected a distance above 0"),
        ("--ask-when change --change nan", "--change is nan; expected"),
        ("--ask-when change --change 2.5", "--change is 2.5; expected"),
        ("--alert /(/", "--alert '/(/' is not a regular expression"),
        ("--alert-after 2", "--alert-after needs --alert"),
        ("--alert fire --alert-after 0", "--alert-after is 0; expected 1 or more"),
        ("--webhook ftp://a", "--webhook is not an http"),
        ("--mqtt http://a", "--mqtt is not a broker's address"),
        ("--deliver alert", "--deliver needs --webhook or --mqtt"),
        ("--webhook http://a --deliver alerts", "--deliver is 'alerts', expected one of"),
        ("--keep-snapshots 5", "--keep-snapshots needs --snapshots"),
        ("--snapshots a --keep-snapshots 0", "--keep-snapshots is 0; expected 1"),
        ("--segment 60", "--segment needs --record-folder"),
        ("--segment-size 5M", "--segment-size needs --record-folder"),
        ("--record-quota 5G", "--record-quota needs --record-folder"),
        ("--record-folder a --segment 0.5", "--segment is 0.5; expected 1 second"),
        ("--record-folder a --segment inf", "--segment is inf; expected 1 second"),
        ("--record-folder a --segment-size big", "--segment-size is 'big', expected a size such as 2GiB"),
        ("--record-folder a --record-quota 20", "--record-quota is 20 bytes; expected 1M"),
        ("--record-folder a --record-quota -5G", "--record-quota is '-5G'"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_option(arguments: str, message: str) -> None:
    arguments = arguments.replace("--record-quota -5G", "--record-quota=-5G")
    with pytest.raises(ValueError) as caught:
        options(*arguments.split(" "))
    assert message in str(caught.value)


def test_the_help_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = ArgumentParser(usage="pvc-live", formatter_class=RawDescriptionHelpFormatter)
    add_options(parser)
    assert max(map(len, parser.format_help().splitlines())) <= 80


def test_reading_the_command_line_imports_no_package_that_a_kit_lacks() -> None:
    program = (
        "import sys, apps.events.opening\n"
        "lacks = {'paho', 'starlette', 'uvicorn', 'websockets', 'prometheus_client', 'typer', 'rich', 'torch'}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & lacks))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
