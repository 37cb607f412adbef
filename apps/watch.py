"""pvc-live: the command line of a live session (live.py).

Exit codes: 0 ok (Ctrl-C is the normal end), 2 usage, 3 the model broke down, 4 environment, 6 bad input
(engines/errors.py), 128 + the number of any other signal.
Note: argparse and not typer, as a device's kit runs this file too, and has neither typer nor rich.
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
Watch a camera, a file or a network stream, and ask about it again and again.

The newest frame wins: what the model was too slow for is dropped and counted.
A context that is used up goes on from its last frames.
Ctrl-C ends and completes the recording; a second Ctrl-C kills. In the window:
q or Esc ends, space asks now."""
SOURCES = """\
sources:
  0 or /dev/video0      A USB camera.
  csi:0                 A camera on a Jetson's ribbon connector, 1280x720 at 30
                        frames per second; another mode: csi:0,1920x1080@30
  rtsp://USER:PASSWORD@HOST/PATH
                        A network camera, or any other URL. On a Jetson its
                        own decoder is used.
  clip.mp4              A video file.
  frames/ or frames/%03d.png
                        A folder of pictures, or a pattern of their names.
  'v4l2src ! videoconvert ! appsink'
                        A GStreamer pipeline.
  browser               The camera of whoever looks at the page: --web.
  synthetic             The world that the model 'shapes' was taught. It waits
                        for the model, and grades its answers."""


def main(*, prog: str = "pvc-live") -> None:
    """Entry point: errors meant for users become one message and an exit code, never a traceback."""
    as_json = "--json" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character of an answer must not end it all
    try:
        raise SystemExit(_watch(make_parser(prog)))
    except (PVCError, OSError) as error:
        raise SystemExit(fail(error, as_json=as_json)) from None


def make_parser(prog: str) -> ArgumentParser:
    """Every option of a session."""
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
    add = parser.add_argument_group("what is watched").add_argument
    add("--source", metavar="SOURCE", default="0", help="A camera, a video, pictures...: see below. [default: 0]")
    add(
        "--fps", metavar="FPS", type=_at_least(0.01),
        help="Of a raw stream such as a .h264 file, or of pictures. [default of pictures: 25]",
    )  # fmt: skip
    add("--seed", metavar="N", type=_at_least(0), help="Seed for the scenes of 'synthetic'. [default: 0]")
    add(
        "--every-frame", action="store_true",
        help="Process every frame of a file or a folder, however long that takes.",
    )  # fmt: skip
    add("--frames", metavar="N", type=_at_least(1), help="Stop after the model has seen this many frames.")


def _add_questions(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("what is asked").add_argument
    add(
        "--ask", metavar="QUESTION",
        help=f"The question. [default: {QUESTION!r}; with 'synthetic', a question of each scene's own]",
    )  # fmt: skip
    add(
        "--ask-every", metavar="SECONDS", type=_at_least(0.0),
        help="Seconds of video between questions (0 = every frame). 'synthetic' is asked once per scene, at its end. "
        f"[default: {ASK_EVERY_S:.0f}; with 'synthetic', every scene]",
    )  # fmt: skip
    add("--max-new-tokens", metavar="N", type=_at_least(1), default=32, help="Longest answer. [default: 32]")
    add(
        "--remember", metavar="CHARACTERS", type=_at_least(0), default=0,
        help="Tell the model its last answers, up to so many characters, when the frames that they were about are "
        "forgotten. [default: 0, nothing]",
    )  # fmt: skip


def _add_output(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("where it is shown").add_argument
    add("--headless", action="store_true", help="No window; answers go to standard output.")
    add(
        "--record", metavar="FILE", type=Path,
        help="Video file to record what is shown, such as out.mp4. An older one is replaced.",
    )  # fmt: skip
    add(
        "--state", metavar="FILE", type=Path,
        help="File to save the stream to, again and again and at the end, for --resume.",
    )  # fmt: skip
    add(
        "--save-every", metavar="SECONDS", type=_at_least(1.0), default=SAVE_EVERY_S,
        help=f"Seconds between two saves. [default: {SAVE_EVERY_S:.0f}]",
    )  # fmt: skip
    add("--resume", action="store_true", help="Go on with the stream of --state, if there is one yet.")
    add("--json", action="store_true", help="Print a summary as one JSON object and nothing else.")


def _add_runtime(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("what runs the bundle").add_argument
    add(
        "--runtime", choices=get_args(Runtime), default="auto",
        help="'target' is what the bundle was made for, 'cpu' ONNX Runtime, 'auto' what can run here. [default: auto]",
    )  # fmt: skip
    add(
        "--trust-engines", action="store_true",
        help="Load engines that another machine built. They are executable code.",
    )  # fmt: skip
    add(
        "--threads", metavar="N", type=_at_least(1),
        help="Threads of each graph on the CPU. [default: 1 for small graphs, else all]",
    )  # fmt: skip


def _at_least(minimum: Number) -> Callable[[str], Number]:
    """What reads a number of the minimum's own type."""
    kind = type(minimum)
    name = "whole number" if kind is int else "number"

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= minimum:  # nan is no more than anything
            raise ArgumentTypeError(f"'{text}' is not a {name} of {minimum} or more")
        return value

    return read


def _watch(parser: ArgumentParser) -> int:
    """The session that the command line asks for. Returns the exit code."""
    request = _request(parser)
    signals = Signals()
    signals.install(second_kills=True)
    try:
        return run(request, signals)
    except KeyboardInterrupt:
        print("interrupted before the first frame", file=sys.stderr)
        return signals.exit_code or 128 + signal.SIGINT


def _request(parser: ArgumentParser) -> Request:
    """Ends the process with exit code 2, and says why, where there is none."""
    told, unknown = parser.parse_known_args()
    if unknown:
        known = ["--" + name.replace("_", "-") for name in vars(told) if name != "bundle"]
        parser.error(f"there is no {' '.join(unknown)}. {did_you_mean(unknown[0], known)}".rstrip())
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
