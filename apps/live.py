"""A live session: a bundle watches a camera, file or network stream, shown in a window or page or recorded to video.

The command line is watch.py. However a session ends, the recording so far is completed and kept.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from engines import Bundle, open_bundle
from engines.bundle import Runtime
from engines.manifest import Manifest
from engines.signals import Signals
from engines.terminal import fail, print_json

from .addresses import Address
from .browser import BrowserCamera
from .capture import open_source
from .events.opening import make_trigger, open_announcer, open_recorder
from .events.options import EventOptions
from .keeper import Keeper
from .listeners import Commands
from .meters import Meter
from .notes import Notes
from .recorder import Recorder
from .report import Log, describe
from .segments import SegmentedRecorder
from .session import LiveSession
from .switching import Switching
from .triggers import OnTrigger
from .watchdog import Watchdog
from .watcher import Watcher, require_endless
from .web.options import WebOptions
from .window import Window

if TYPE_CHECKING:
    from .web.server import Page

QUESTION, ASK_EVERY_S, SAVE_EVERY_S = "What happens?", 5.0, 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Consistent options of a session. Raises ValueError, naming the option, for an impossible combination.

    question      None if each scene has its own question
    fps           for a raw stream, a folder of pictures or a pattern; for pictures None is
                  picture_sequences.DEFAULT_FPS
    seed          None except for the synthetic source
    remember      characters of past answers kept as text after their frames are gone; 0 keeps none
    state         file the stream is saved to every save_every_s, and resumed from with `resume`
    web           None without a page
    """

    bundle: Path
    address: Address
    question: str | None
    ask_every_s: float
    fps: float | None
    seed: int | None
    max_new_tokens: int
    headless: bool
    record: Path | None
    every_frame: bool
    max_frames: int | None
    runtime: Runtime
    trust_engines: bool
    threads: int | None
    as_json: bool
    remember: int = 0
    state: Path | None = None
    save_every_s: float = SAVE_EVERY_S
    resume: bool = False
    events: EventOptions = field(default_factory=EventOptions)
    web: WebOptions | None = None

    def __post_init__(self) -> None:
        address, question, record = self.address, self.question, self.record
        if question is not None and not question.strip():
            raise ValueError("--ask is empty; expected a question")
        if question is not None and question != question.encode(errors="replace").decode():
            raise ValueError("--ask is not valid text in this terminal's encoding; expected UTF-8")
        if self.seed is not None and address.kind != "synthetic":
            raise ValueError(f"--seed is only for --source synthetic; {address.name} has no random content")
        if self.fps is not None and address.kind not in ("file", "url"):
            raise ValueError(f"--fps is only for raw videos and pictures; {address.name} sets its own frame rate")
        if self.every_frame and not address.may_wait:
            raise ValueError(f"--every-frame needs a file or 'synthetic'; {address.name} does not wait for the model")
        if record is not None and address.kind == "file" and record.resolve() == Path(address.target).resolve():
            raise ValueError(f"--record would overwrite the source {record}; name another file")
        if self.record is not None and self.events.record_folder is not None:
            raise ValueError("--record and --record-folder record the same frames; give only one of them")
        if self.resume and self.state is None:
            raise ValueError("--resume needs the file it resumes from; add --state FILE")
        if address.kind == "browser" and self.web is None:
            raise ValueError("--source browser uses the camera of a viewer of the page; add --web")


def run(request: Request, signals: Signals) -> int:
    """Run one session, from opening to summary. Returns the exit code; raises PVCError if it could not begin."""
    log = Log(as_json=request.as_json)
    require_endless(Manifest.load(request.bundle))  # checked first, since the rest may be slow
    with ExitStack() as stack:
        session = _open(request, signals, log, stack)
        session.run()
    return _conclude(session, request, log, signals)


def _open(request: Request, signals: Signals, log: Log, stack: ExitStack) -> LiveSession:
    """Open everything the session needs; the stack closes it."""
    window = None
    if not request.headless:  # before PyAV is imported: see window.py
        window = Window()
        stack.callback(window.close)
    commands, camera, troubles = Commands(), BrowserCamera(), SimpleQueue[str]()
    limits = request.web or WebOptions()
    watchdog = Watchdog(
        hang_s=limits.hang_s, no_frame_s=limits.no_frame_s, say=log.say,
        changed=lambda hang: troubles.put("the session is running normally again" if hang is None else str(hang)),
    )  # fmt: skip
    stack.callback(watchdog.close)
    pages = _pages(request, stack, commands, watchdog, camera, log)
    opened = partial(
        open_source, every_frame=request.every_frame, fps=request.fps, seed=request.seed or 0,
        question=request.question, say=log.notice, browser=camera,
    )  # fmt: skip
    source = opened(request.address)
    others = partial(open_source, say=log.notice, browser=camera)
    switching = Switching(lambda address: (opened if address == request.address else others)(address))
    closing = stack.enter_context(ExitStack())  # closes the source if opening fails
    closing.callback(source.close)
    recorders = _recorders(request, source.device.fps, troubles, stack)
    bundle = open_bundle(
        request.bundle, runtime=request.runtime, trust_engines=request.trust_engines, threads=request.threads
    )
    segments = [each for each in recorders if isinstance(each, SegmentedRecorder)]
    announcer = open_announcer(
        request.events, others=[watchdog, *pages], say=log.say, recorder=segments[0] if segments else None,
        troubles=troubles,
    )  # fmt: skip
    stack.callback(announcer.close)
    keeper = None if request.state is None else Keeper(request.state, every_s=request.save_every_s)
    watcher = _watcher(request, bundle, keeper, log)
    announcer.standing_question = lambda: watcher.question
    log.say(f"{source.device.name} -> {request.bundle}, running on {bundle.runs_on}. Press Ctrl-C to stop.")
    if watcher.random_weights:
        log.say("This bundle has random weights: the tokens below are not answers.")
    watchdog.start()
    session = LiveSession(
        source=source, watcher=watcher, meter=Meter(), log=log, signals=signals, listener=announcer,
        commands=commands, switching=switching, window=window, recorders=recorders, keeper=keeper,
        counted=[page.counted for page in pages], beat=watchdog.beat, max_frames=request.max_frames,
        still_after_s=limits.no_frame_s,
    )  # fmt: skip
    closing.pop_all()
    stack.callback(lambda: session.source.close())
    return session


def _pages(
    request: Request, stack: ExitStack, commands: Commands, watchdog: Watchdog, camera: BrowserCamera, log: Log
) -> list[Page]:
    """One page, or none. The web server is imported only if needed: a device's kit lacks it."""
    if request.web is None:
        return []
    from .web.server import open_page

    opened = open_page(
        request.web, commands=commands, watchdog=watchdog, camera=camera, source=request.address.target, say=log.say
    )
    return [stack.enter_context(opened)]


def _recorders(
    request: Request, source_fps: float | None, troubles: SimpleQueue[str], stack: ExitStack
) -> list[Recorder | SegmentedRecorder]:
    recorders: list[Recorder | SegmentedRecorder] = []
    if request.record is not None:
        recorders.append(Recorder(request.record, source_fps=source_fps))
    if (segments := open_recorder(request.events, source_fps=source_fps, trouble=troubles.put)) is not None:
        recorders.append(segments)
    for recorder in recorders:
        stack.callback(recorder.abort)
    return recorders


def _watcher(request: Request, bundle: Bundle, keeper: Keeper | None, log: Log) -> Watcher:
    """The watcher, with the saved stream if --resume is given."""
    trigger = make_trigger(request.events, ask_every_s=request.ask_every_s)
    if isinstance(trigger, OnTrigger) and (how := trigger.install()):
        log.say(f"The question is asked on {how}, or when someone asks on the page.")
    return Watcher(
        bundle, request.question or QUESTION, trigger=trigger, max_new_tokens=request.max_new_tokens,
        notes=Notes(request.remember) if request.remember else None,
        stream=keeper.resume(bundle, log.say) if keeper is not None and request.resume else None,
    )  # fmt: skip


def _conclude(session: LiveSession, request: Request, log: Log, signals: Signals) -> int:
    """Print the summary. Returns the exit code."""
    source = {"source": request.address.name, "seed": request.seed}
    summary = {"bundle": str(request.bundle), **source, **session.summary()}
    for line in describe(summary):
        log.say(line)
    if session.error is not None:
        return fail(session.error, as_json=request.as_json, summary=summary)
    if request.as_json:
        print_json(summary)
    return 0 if signals.number == signal.SIGINT else signals.exit_code or 0
