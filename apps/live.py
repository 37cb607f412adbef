"""A live session: a camera, a file or a network stream, watched by a bundle; in a window, into a video file, or both.

Its command line is watch.py. However a session ends, the recording so far is completed and kept.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from engines import open_bundle
from engines.bundle import Runtime
from engines.manifest import Manifest
from engines.signals import Signals
from engines.terminal import fail, print_json

from .addresses import Address
from .capture import open_source
from .meters import Meter
from .recorder import Recorder
from .report import Log, describe
from .session import LiveSession
from .watcher import Watcher, require_endless
from .window import Window

QUESTION, ASK_EVERY_S = "What happens?", 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A session whose parts do not contradict each other. Raises ValueError, by option, for what no session can do.

    question  None where each scene brings its own
    fps       of a raw stream; of a folder of pictures or a pattern, where None is picture_sequences.DEFAULT_FPS
    seed      None for all but the synthetic source
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

    def __post_init__(self) -> None:
        address, question, record = self.address, self.question, self.record
        if question is not None and not question.strip():
            raise ValueError("--ask is empty; expected a question")
        if question is not None and question != question.encode(errors="replace").decode():
            raise ValueError("--ask is not valid text in this terminal's encoding; expected UTF-8")
        if self.seed is not None and address.kind != "synthetic":
            raise ValueError(f"--seed is for --source synthetic; {address.name} shows what it shows")
        if self.fps is not None and address.kind not in ("file", "url"):
            raise ValueError(f"--fps is for raw videos and for pictures; {address.name} has its own pace")
        if self.every_frame and not address.may_wait:
            raise ValueError(f"--every-frame needs a file or 'synthetic'; {address.name} does not wait for a model")
        if record is not None and address.kind == "file" and record.resolve() == Path(address.target).resolve():
            raise ValueError(f"--record would replace the source {record}; name another file")


def run(request: Request, signals: Signals) -> int:
    """One session, from opening everything to the summary. Returns the exit code; raises PVCError before it began."""
    log = Log(as_json=request.as_json)
    require_endless(Manifest.load(request.bundle))  # known at once, while the rest may take its time
    with ExitStack() as stack:
        window = None
        if not request.headless:  # before PyAV is imported: see window.py
            window = Window()
            stack.callback(window.close)
        source = open_source(
            request.address, every_frame=request.every_frame, fps=request.fps, seed=request.seed or 0,
            question=request.question, say=log.notice,
        )  # fmt: skip
        stack.callback(source.close)
        recorder = None
        if request.record is not None:
            recorder = Recorder(request.record, source_fps=source.device.fps)
            stack.callback(recorder.abort)
        bundle = open_bundle(
            request.bundle, runtime=request.runtime, trust_engines=request.trust_engines, threads=request.threads
        )
        watcher = Watcher(
            bundle, request.question or QUESTION, ask_every_s=request.ask_every_s,
            max_new_tokens=request.max_new_tokens,
        )  # fmt: skip
        log.say(f"{source.device.name} -> {request.bundle}, which runs on {bundle.runs_on}. Ctrl-C ends.")
        if watcher.random_weights:
            log.say("The weights are random: the tokens below are no answer to anything.")
        session = LiveSession(
            source=source, watcher=watcher, meter=Meter(), log=log, signals=signals, window=window, recorder=recorder,
            max_frames=request.max_frames,
        )  # fmt: skip
        session.run()
    return _conclude(session, request, log, signals)


def _conclude(session: LiveSession, request: Request, log: Log, signals: Signals) -> int:
    """Say how it went. Returns the exit code."""
    source = {"source": request.address.name, "seed": request.seed}
    summary = {"bundle": str(request.bundle), **source, **session.summary()}
    for line in describe(summary):
        log.say(line)
    if session.error is not None:
        return fail(session.error, as_json=request.as_json, summary=summary)
    if request.as_json:
        print_json(summary)
    return 0 if signals.number == signal.SIGINT else signals.exit_code or 0
