"""pvc-live: the command line of a live session (live.py).

Exit codes: 0 ok (Ctrl-C is the normal end), 2 usage, 3 the model's output is not finite, 4 environment, 6 bad input
(engines/errors.py), 128 + the number of any other signal.
Note: argparse instead of typer, since a device's kit also runs this file and has neither typer nor rich.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args

from engines.bundle import Runtime
from engines.errors import PVCError
from engines.signals import Signals
from engines.terminal import did_you_mean, fail

from .addresses import parse_address
from .events import options as event_options
from .live import ASK_EVERY_S, QUESTION, SAVE_EVERY_S, Request, run
from .web import options as web

Number = TypeVar("Number", int, float)
DESCRIPTION = """\
Watch a camera, a file or a network stream, and ask a question about it
repeatedly.

The newest frame wins: frames the model is too slow for are dropped and counted.
When the context is full, the stream continues from its last frames.
Ctrl-C ends the session and completes the recording; a second Ctrl-C kills it.
In the window: q or Esc ends, space asks now."""
SOURCES = """\
sources:
  0 or /dev/video0      A USB camera.
  csi:0                 A camera on a Jetson's ribbon connector, 1280x720 at 30
                        frames per second; another mode: csi:0,1920x1080@30
  rtsp://USER:PASSWORD@HOST/PATH
                        A network camera, or any other URL. On a Jetson the
                        hardware decoder is used.
  clip.mp4              A video file.
  frames/ or frames/%03d.png
                        A folder of pictures, or a pattern of file names.
  'v4l2src ! videoconvert ! appsink'
                        A GStreamer pipeline.
  browser               The camera of someone viewing the page; needs --web.
  synthetic             Rendered scenes like those the model 'shapes' was
                        trained on. They wait for the model, and its answers
                        are graded."""


def main(*, prog: str = "pvc-live") -> None:
    """Entry point: errors meant for users become one message and an exit code, never a traceback."""
    as_json = "--json" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer's character unknown to the terminal must not end it all
    try:
        raise SystemExit(_watch(make_parser(prog)))
    except (PVCError, OSError) as error:
        raise SystemExit(fail(error, as_json=as_json)) from None


def make_parser(prog: str) -> ArgumentParser:
    """The parser with all options of a session."""
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [OPTIONS] [BUNDLE]",
        description=DESCRIPTION,
        epilog=SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    bundle = "Folder made by pvc-export or make demo. [default: build/demo]"
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, default=Path("build/demo"), help=bundle)
    _add_input(parser)
    _add_questions(parser)
    event_options.add_options(parser)
    _add_output(parser)
    web.add_options(parser)
    _add_runtime(parser)
    return parser


def _add_input(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("input").add_argument
    add(
        "--source", metavar="SOURCE", default="0",
        help="What to watch: a camera, a video, pictures and others, listed below. [default: 0]",
    )  # fmt: skip
    add(
        "--fps", metavar="FPS", type=_at_least(0.01),
        help="Frame rate of a raw stream, such as a .h264 file, or of pictures. [default for pictures: 25]",
    )  # fmt: skip
    add("--seed", metavar="N", type=_at_least(0), help="Seed for the scenes of 'synthetic'. [default: 0]")
    add(
        "--every-frame", action="store_true",
        help="Process every frame of a file or folder, however long that takes.",
    )  # fmt: skip
    add("--frames", metavar="N", type=_at_least(1), help="Stop after the model has seen this many frames.")


def _add_questions(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("questions").add_argument
    add(
        "--ask", metavar="QUESTION",
        help=f"The question. [default: {QUESTION!r}; with 'synthetic', each scene's own question]",
    )  # fmt: skip
    add(
        "--ask-every", metavar="SECONDS", type=_at_least(0.0),
        help="Seconds of video between questions (0 = every frame). 'synthetic' is asked once per scene, at its end. "
        f"[default: {ASK_EVERY_S:.0f}; with 'synthetic', every scene]",
    )  # fmt: skip
    add("--max-new-tokens", metavar="N", type=_at_least(1), default=32, help="Maximum tokens per answer. [default: 32]")
    add(
        "--remember", metavar="CHARACTERS", type=_at_least(0), default=0,
        help="Keep the last answers, up to this many characters, in the model's context after their frames are "
        "forgotten. [default: 0, nothing]",
    )  # fmt: skip


def _add_output(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--headless", action="store_true", help="Open no window; print answers to standard output.")
    add(
        "--record", metavar="FILE", type=Path,
        help="Record the annotated frames to this video file, such as out.mp4. An existing file is replaced.",
    )  # fmt: skip
    add(
        "--state", metavar="FILE", type=Path,
        help="Save the stream to this file regularly and at the end, for --resume.",
    )  # fmt: skip
    add(
        "--save-every", metavar="SECONDS", type=_at_least(1.0), default=SAVE_EVERY_S,
        help=f"Seconds between two saves. [default: {SAVE_EVERY_S:.0f}]",
    )  # fmt: skip
    add("--resume", action="store_true", help="Continue the stream saved in --state, if the file exists.")
    add("--json", action="store_true", help="Print only a summary, as one JSON object.")


def _add_runtime(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("runtime").add_argument
    add(
        "--runtime", choices=get_args(Runtime), default="auto",
        help="'target': the runtime the bundle was exported for. 'cpu': ONNX Runtime. 'auto': what runs here. "
        "[default: auto]",
    )  # fmt: skip
    add(
        "--trust-engines", action="store_true",
        help="Load engines built on another machine. Engines are executable code.",
    )  # fmt: skip
    add(
        "--threads", metavar="N", type=_at_least(1),
        help="CPU threads per graph. [default: 1 for small graphs, else all]",
    )  # fmt: skip


def _at_least(minimum: Number) -> Callable[[str], Number]:
    """An argparse type: a number of the minimum's type, at least the minimum."""
    kind = type(minimum)
    name = "whole number" if kind is int else "number"

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= minimum:  # false for nan too
            raise ArgumentTypeError(f"'{text}' is not a {name} of {minimum} or more")
        return value

    return read


def _watch(parser: ArgumentParser) -> int:
    """Run the session described by the command line. Returns the exit code."""
    request = _request(parser)
    signals = Signals()
    signals.install(second_kills=True)
    try:
        return run(request, signals)
    except KeyboardInterrupt:
        print("interrupted before the first frame", file=sys.stderr)
        return signals.exit_code or 128 + signal.SIGINT


def _request(parser: ArgumentParser) -> Request:
    """The session's options; exits with code 2 and a message if they are wrong."""
    told, unknown = parser.parse_known_args()
    if unknown:
        known = ["--" + name.replace("_", "-") for name in vars(told) if name != "bundle"]
        parser.error(f"unknown option: {' '.join(unknown)}. {did_you_mean(unknown[0], known)}".rstrip())
    address = parse_address(told.source)
    question, ask_every_s, seed = told.ask, told.ask_every, told.seed
    if address.kind == "synthetic":
        ask_every_s, seed = ask_every_s or 0.0, seed or 0
    elif question is None:
        question = QUESTION
    try:
        return Request(
            bundle=told.bundle, address=address, question=question,
            ask_every_s=ASK_EVERY_S if ask_every_s is None else ask_every_s, fps=told.fps, seed=seed,
            max_new_tokens=told.max_new_tokens, headless=told.headless, record=told.record,
            every_frame=told.every_frame, max_frames=told.frames, runtime=told.runtime,
            trust_engines=told.trust_engines, threads=told.threads, as_json=told.json, remember=told.remember,
            state=told.state, save_every_s=told.save_every, resume=told.resume,
            events=event_options.EventOptions.of(told), web=web.web_options(told),
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(prog=f"python -m {__spec__.name}")
