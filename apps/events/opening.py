"""Opens the listeners that the options request, before the model, so that an unwritable place is an early error."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from queue import SimpleQueue

from apps.listeners import Listener
from apps.segments import SegmentedRecorder

from ..triggers import OnChange, OnTrigger, Schedule, Trigger
from .alerts import Alerts
from .announcer import Announcer
from .delivery import Deliveries, Delivery, Sink
from .log import EventLog
from .mqtt import PASSWORD, Mqtt
from .options import CHANGE, EventOptions
from .snapshots import Snapshots
from .webhook import AUTHORIZATION, Webhook


def make_trigger(options: EventOptions, *, ask_every_s: float) -> Trigger:
    """The trigger of the standing question; with 'change', ask_every_s is the shortest pause between two questions."""
    if options.ask_when == "change":
        return OnChange(CHANGE if options.change is None else options.change, pause_s=ask_every_s)
    return OnTrigger() if options.ask_when == "trigger" else Schedule(ask_every_s)


def open_announcer(
    options: EventOptions,
    *,
    others: Sequence[Listener],
    say: Callable[[str], None],
    recorder: SegmentedRecorder | None = None,
    troubles: SimpleQueue[str] | None = None,
) -> Announcer:
    """One Listener for everything the options request and for the others, such as a page. Set its standing_question.

    Raises as EventLog, Webhook, Mqtt and Snapshots do.
    """
    troubles = SimpleQueue() if troubles is None else troubles
    listeners = open_listeners(options, trouble=troubles.put)
    with ExitStack() as stack:
        for listener in listeners:
            stack.callback(listener.close)
        snapshots = None
        if options.snapshots is not None:
            snapshots = Snapshots(options.snapshots, trouble=troubles.put, max_files=options.max_snapshots)
        stack.pop_all()
    recorded = [] if recorder is None else [recorder]
    return Announcer(
        [*others, *recorded, *listeners], alerts=Alerts(options.alerts, after=options.after), snapshots=snapshots,
        troubles=troubles, say=say,
    )  # fmt: skip


def open_recorder(
    options: EventOptions, *, source_fps: float | None, trouble: Callable[[str], None]
) -> SegmentedRecorder | None:
    """The recorder of --record-folder, or None without the option. Raises BackendUnavailable."""
    if options.record_folder is None:
        return None
    return SegmentedRecorder(
        options.record_folder, source_fps=source_fps, trouble=trouble, segment_s=options.segment_s,
        max_segment_bytes=options.segment_bytes, quota_bytes=options.quota_bytes,
    )  # fmt: skip


def open_listeners(options: EventOptions, *, trouble: Callable[[str], None]) -> list[Listener]:
    """Deliveries and the log, in closing order. `trouble` is called on any thread."""
    listeners: list[Listener] = []
    log = None if options.log is None else EventLog(options.log, trouble=trouble)  # first, as it starts no thread
    sinks: list[Sink] = [Webhook(url, authorization=os.environ.get(AUTHORIZATION)) for url in options.webhooks]
    if options.broker is not None:
        sinks.append(Mqtt(options.broker, password=os.environ.get(PASSWORD)))
    if sinks:
        listeners.append(Deliveries([Delivery(sink, trouble=trouble) for sink in sinks], options.kinds))
    if log is not None:
        listeners.append(log)
    return listeners
