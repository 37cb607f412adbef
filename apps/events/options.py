"""Command-line options for processing answers and for long recordings.

Note: argparse and the standard library only, since a device's kit uses this module.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from apps.listeners import EventKind
from apps.segments import QUOTA_BYTES, SEGMENT_S
from engines.sizes import parse_size
from engines.terminal import one_of

from .alerts import Rule, parse_rule
from .mqtt import PASSWORD, Broker, parse_broker
from .snapshots import MAX_FILES
from .webhook import AUTHORIZATION, check_webhook

When = Literal["schedule", "change", "trigger"]
CHANGE = 0.1
"""Distance for 'change', measured on the demo model, whose tokens also depend on time. A still picture, with or without
noise: up to 0.08. A square appearing with a sixth of the picture's side: 0.17. Between two scenes: 0.2 to 0.85. Other
models have other distances."""
KINDS: tuple[EventKind, ...] = ("alert", "alert-end", "trouble", "end")
"""The kinds of event delivered by default."""
MIN_BYTES = 2**20


def add_options(parser: ArgumentParser) -> None:
    """Add the option groups. An option not given is None, so that one given without effect can be refused."""
    _add_answers(parser)
    _add_recording(parser)


@dataclass(frozen=True, kw_only=True, slots=True)
class EventOptions:
    """Consistent options. Raises ValueError, naming the option.

    change         distance for OnChange; None unless ask_when is 'change'
    after          consecutive answers that begin and end an alert
    kinds          the events sent to webhooks and the broker
    segment_bytes  None: a segment ends by time only
    """

    ask_when: When = "schedule"
    change: float | None = None
    alerts: tuple[Rule, ...] = ()
    after: int = 1
    log: Path | None = None
    webhooks: tuple[str, ...] = ()
    broker: Broker | None = None
    kinds: tuple[EventKind, ...] = KINDS
    snapshots: Path | None = None
    max_snapshots: int = MAX_FILES
    record_folder: Path | None = None
    segment_s: float = SEGMENT_S
    segment_bytes: int | None = None
    quota_bytes: int = QUOTA_BYTES

    def __post_init__(self) -> None:
        if self.change is not None and self.ask_when != "change":
            raise ValueError("--change is only for --ask-when change")
        if self.change is not None and not 0 < self.change <= 2:
            raise ValueError(f"--change is {self.change:g}; expected a distance above 0 and up to 2")
        if self.after < 1:
            raise ValueError(f"--alert-after is {self.after}; expected 1 or more answers")
        if self.max_snapshots < 1:
            raise ValueError(f"--keep-snapshots is {self.max_snapshots}; expected 1 or more")
        if not 1 <= self.segment_s < float("inf"):
            raise ValueError(f"--segment is {self.segment_s:g}; expected 1 second or more")
        for option, size in (("--segment-size", self.segment_bytes), ("--record-quota", self.quota_bytes)):
            if size is not None and size < MIN_BYTES:
                raise ValueError(f"{option} is {size} bytes; expected 1M or more")
        for url in self.webhooks:
            check_webhook(url)

    @classmethod
    def of(cls, told: Namespace) -> EventOptions:
        """Build from parsed arguments. Raises ValueError, naming the option."""
        _refuse_without(told, ("alert_after",), needed=("alert",))
        _refuse_without(told, ("deliver",), needed=("webhook", "mqtt"))
        _refuse_without(told, ("keep_snapshots",), needed=("snapshots",))
        _refuse_without(told, ("segment", "segment_size", "record_quota"), needed=("record_folder",))
        when: When = told.ask_when or "schedule"
        quota = told.record_quota
        return cls(
            ask_when=when,
            change=told.change if when != "change" or told.change is not None else CHANGE,
            alerts=tuple(map(parse_rule, told.alert or ())),
            after=1 if told.alert_after is None else told.alert_after,
            log=told.log,
            webhooks=tuple(told.webhook or ()),
            broker=None if told.mqtt is None else parse_broker(told.mqtt),
            kinds=KINDS if told.deliver is None else _kinds(told.deliver),
            snapshots=told.snapshots,
            max_snapshots=MAX_FILES if told.keep_snapshots is None else told.keep_snapshots,
            record_folder=told.record_folder,
            segment_s=SEGMENT_S if told.segment is None else told.segment,
            segment_bytes=None if told.segment_size is None else parse_size(told.segment_size, option="--segment-size"),
            quota_bytes=QUOTA_BYTES if quota is None else parse_size(quota, option="--record-quota"),
        )


def _add_answers(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("answers, alerts and events").add_argument
    add(
        "--ask-when", choices=get_args(When),
        help="When the question is asked. 'schedule': every --ask-every seconds. 'change': when the picture differs "
        "from that of the last question, at most every --ask-every seconds. 'trigger': on SIGUSR1. "
        "[default: schedule]",
    )  # fmt: skip
    add(
        "--change", metavar="DISTANCE", type=float,
        help="With --ask-when change: the smallest difference that counts, as mean cosine distance of the frames' "
        f"tokens, 0 to 2. [default: {CHANGE:g}]",
    )  # fmt: skip
    add(
        "--alert", metavar="PATTERN", action="append",
        help="Raise an alert when an answer contains these words, or matches this /regular expression/ (/.../i: ignore "
        "case). Repeatable.",
    )  # fmt: skip
    add(
        "--alert-after", metavar="N", type=int,
        help="Consecutive answers needed to begin an alert, and to end it. [default: 1]",
    )  # fmt: skip
    add("--log", metavar="FILE", type=Path, help="Append every event to this file, as a line of JSON.")
    add(
        "--webhook", metavar="URL", action="append",
        help=f"POST events to this address as JSON. The Authorization header is the environment variable "
        f"{AUTHORIZATION}. Repeatable.",
    )  # fmt: skip
    add(
        "--mqtt", metavar="URL",
        help="Publish events to this MQTT broker: mqtt://USER@HOST:PORT/TOPIC, or mqtts://. The password is the "
        f"environment variable {PASSWORD}.",
    )  # fmt: skip
    add(
        "--deliver", metavar="KINDS",
        help="Kinds of event that webhooks and the broker get, separated by commas: "
        f"{', '.join(get_args(EventKind))}. [default: {','.join(KINDS)}]",
    )  # fmt: skip
    add("--snapshots", metavar="FOLDER", type=Path, help="Save pictures of alerts and requested moments here.")
    add(
        "--keep-snapshots", metavar="N", type=int,
        help=f"Number of pictures kept; older ones are removed. [default: {MAX_FILES}]",
    )  # fmt: skip


def _add_recording(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("long recordings").add_argument
    add(
        "--record-folder", metavar="FOLDER", type=Path,
        help="Record the annotated frames into this folder, in files of a few minutes, with an index of their events.",
    )  # fmt: skip
    add("--segment", metavar="SECONDS", type=float, help=f"Length of each file. [default: {SEGMENT_S:.0f}]")
    add("--segment-size", metavar="SIZE", help="Also start a new file at this size, such as 500M.")
    add(
        "--record-quota", metavar="SIZE",
        help=f"Total size of the files; above it the oldest are removed. [default: {QUOTA_BYTES // 2**30}G]",
    )  # fmt: skip


def _refuse_without(told: Namespace, options: tuple[str, ...], *, needed: tuple[str, ...]) -> None:
    if any(getattr(told, name) is not None for name in needed):
        return
    for name in options:
        if getattr(told, name) is not None:
            raise ValueError(f"{_spelled(name)} needs {' or '.join(map(_spelled, needed))}")


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kinds(text: str) -> tuple[EventKind, ...]:
    known: tuple[EventKind, ...] = get_args(EventKind)
    names = [one_of("--deliver", name.strip(), known) for name in text.split(",")]
    return tuple(kind for kind in known if kind in names)
