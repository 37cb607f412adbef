"""pvc-live: a camera, a file or a network stream, watched by a bundle; in a window, into a video file, or both.

Exit codes: 0 ok (Ctrl-C is the normal end), 2 usage, 3 the model broke down, 4 environment, 6 bad input
(engines/errors.py), 128 + the number of any other signal. However it ends, the recording so far is completed and kept.
"""

from __future__ import annotations

import io
import math
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from engines import open_bundle
from engines.errors import PVCError
from engines.manifest import Manifest
from engines.signals import Signals
from engines.terminal import fail, print_json

from .addresses import Address, parse_address
from .capture import open_source
from .meters import Meter
from .recorder import Recorder
from .report import Log, describe
from .session import LiveSession
from .watcher import Watcher, require_endless
from .window import Window

QUESTION, ASK_EVERY_S = "What happens?", 5.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class RuntimeName(str, Enum):
    """engines.bundle.Runtime, for --runtime."""

    auto = "auto"
    target = "target"
    cpu = "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A command line whose parts do not contradict each other. Raises BadParameter for what no session can do.

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
    runtime: RuntimeName
    trust_engines: bool
    threads: int | None
    as_json: bool

    def __post_init__(self) -> None:
        address, question, record = self.address, self.question, self.record
        if question is not None and not question.strip():
            raise typer.BadParameter("--ask is empty; expected a question")
        if question is not None and question != question.encode(errors="replace").decode():
            raise typer.BadParameter("--ask is not valid text in this terminal's encoding; expected UTF-8")
        if math.isnan(self.ask_every_s):
            raise typer.BadParameter("--ask-every is not a number; expected seconds")
        if self.seed is not None and address.kind != "synthetic":
            raise typer.BadParameter(f"--seed is for --source synthetic; {address.name} shows what it shows")
        if self.fps is not None and address.kind not in ("file", "url"):
            raise typer.BadParameter(f"--fps is for raw videos and for pictures; {address.name} has its own pace")
        if self.every_frame and not address.may_wait:
            raise typer.BadParameter(
                f"--every-frame needs a file or 'synthetic'; {address.name} does not wait for a model"
            )
        if record is not None and address.kind == "file" and record.resolve() == Path(address.target).resolve():
            raise typer.BadParameter(f"--record would replace the source {record}; name another file")


@app.command()
def live(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by pvc-export or make demo.")] = Path(
        "build/demo"
    ),
    source: Annotated[
        str,
        typer.Option(
            help="Camera number, /dev/video0, csi:0 on a Jetson, rtsp://... or another URL, FILE, a folder of "
            "pictures, a pattern such as frames/%03d.png, 'synthetic', or a pipeline."
        ),
    ] = "0",
    ask: Annotated[
        str | None,
        typer.Option(help=f"The question. [default: {QUESTION!r}; with 'synthetic', a question of each scene's own]"),
    ] = None,
    ask_every: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Seconds of video between questions (0 = every frame). 'synthetic' is asked once per scene, at "
            f"its end. [default: {ASK_EVERY_S:.0f}; with 'synthetic', every scene]",
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.01, help="Of a raw stream such as a .h264 file, or of pictures (default: 25).")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for the scenes of 'synthetic'. [default: 0]")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    headless: Annotated[bool, typer.Option("--headless", help="No window; answers go to standard output.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Video file to record what is shown, such as out.mp4. An older one is replaced.")
    ] = None,
    every_frame: Annotated[
        bool, typer.Option("--every-frame", help="Process every frame of a file or a folder, however long that takes.")
    ] = False,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after the model has seen this many frames.")] = None,
    runtime: Annotated[RuntimeName, typer.Option(help="What runs the bundle.")] = RuntimeName.auto,
    trust_engines: Annotated[
        bool, typer.Option("--trust-engines", help="Load engines that another machine built. They are executable code.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each graph on the CPU. Default: 1 for small graphs, else all.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as one JSON object and nothing else.")
    ] = False,
) -> None:
    """Watch a camera, a file or a network stream, and ask about it again and again.

    The newest frame wins: what the model was too slow for is dropped and counted. Ctrl-C ends and completes the
    recording; a second Ctrl-C kills. In the window: q or Esc ends, space asks now.

    'synthetic' shows the world that the model 'shapes' was taught, which waits for the model, and grades its answers.
    """
    address = parse_address(source)
    if address.kind == "synthetic":
        ask_every, seed = ask_every or 0.0, seed or 0
    elif ask is None:
        ask = QUESTION
    request = Request(
        bundle=bundle, address=address, question=ask, ask_every_s=ASK_EVERY_S if ask_every is None else ask_every,
        fps=fps, seed=seed, max_new_tokens=max_new_tokens, headless=headless, record=record, every_frame=every_frame,
        max_frames=frames, runtime=runtime, trust_engines=trust_engines, threads=threads, as_json=as_json,
    )  # fmt: skip
    signals = Signals()
    signals.install(second_kills=True)
    try:
        exit_code = run(request, signals)
    except KeyboardInterrupt:
        print("interrupted before the first frame", file=sys.stderr)
        exit_code = signals.exit_code or 128 + signal.SIGINT
    raise typer.Exit(exit_code)


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
            request.bundle, runtime=request.runtime.value, trust_engines=request.trust_engines, threads=request.threads
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


def main() -> None:
    """Entry point: errors meant for users become one message and an exit code, never a traceback."""
    as_json = "--json" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character of an answer must not end it all
    try:
        app()
    except (PVCError, OSError) as error:
        raise SystemExit(fail(error, as_json=as_json)) from None


if __name__ == "__main__":
    main()
