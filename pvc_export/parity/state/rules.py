"""Rules that must hold bit for bit: a stream's state (level G), the rows of a batch (H), determinism (I).

The bundle's CPU sessions run short streams of check_clip's frames, forwards and backwards. There is no reference and no
tolerance: two ways to the same state must give the same caches, encode the next frame alike, and score alike.
A rule that cannot run gives the reason, and its `passed` is None. Nothing here imports torch, because the last rule
starts a process that imports this module.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from engines import open_bundle, open_stream
from engines.bundle import Bundle
from engines.errors import FrameError, PVCError
from engines.memory import Array, Tensor
from engines.session import Session

from ..clip import QUESTION, Frame, check_clip
from ..levels import Rule
from .trial import (
    Broken,
    NotExecuted,
    Seen,
    Trial,
    copied,
    new_stream,
    pushed,
    require_same,
    run_on_copies,
    seen_by,
    tapped,
)

LARGEST_TWICE = 2 << 30
"""Bytes of the largest bundle that is opened a second time while the first is open."""
Feeds = list[dict[str, Array]]
"""The inputs of each run of a graph."""


def check_rules(bundle: Bundle, *, num_frames: int | None = None, scratch: Path | None = None) -> tuple[Rule, ...]:
    """Check every rule of levels G, H and I, in that order.

    bundle      on CPU sessions, as opened by open_on_cpu
    num_frames  length of a stream: by default one more than the window, so that the ring wraps, or as many as fit in
                the context. In all, twelve times as many frames are pushed
    scratch     where to put a temporary folder for saved streams; default the system's
    """
    with tempfile.TemporaryDirectory(prefix="pvc-rules-", dir=scratch) as folder:
        trial = Trial.of(bundle, num_frames, Path(folder))
        return tuple(_judged(trial, level, name, rule) for level, name, rule in RULES)


def _judged(trial: Trial, level: str, name: str, rule: Callable[[Trial], str]) -> Rule:
    try:
        return Rule(level=level, name=name, passed=True, detail=rule(trial))
    except NotExecuted as reason:
        return Rule(level=level, name=name, passed=None, detail=str(reason))
    except Broken as fault:
        return Rule(level=level, name=name, passed=False, detail=str(fault))
    except PVCError as error:
        return Rule(level=level, name=name, passed=False, detail=error.what)


# -- G: state ----------------------------------------------------------------------------------------------------


def _reset(trial: Trial) -> str:
    stream = pushed(trial.stream(), trial.backwards)
    stream.ask(QUESTION, max_new_tokens=2, keep=True)
    stream.reset()
    require_same(trial.seen(pushed(stream, trial.clip)), trial.alone)
    return f"{len(trial.clip)} frames after a reset, {len(trial.alone)} tensors"


def _interleaved(trial: Trial) -> str:
    first, second = trial.stream(), trial.stream()
    for one, other in zip(trial.clip, trial.backwards, strict=True):
        first.push(one)
        second.push(other)
    require_same(trial.seen(first), trial.alone, "the first stream: ")
    require_same(trial.seen(second), trial.alone_backwards, "the second stream: ")
    return f"2 streams of {len(trial.clip)} frames"


def _forked(trial: Trial) -> str:
    parent = pushed(trial.stream(), trial.clip[: trial.middle])
    before = trial.seen(parent)
    fork = parent.fork()
    require_same(trial.seen(fork), before, "a new fork: ")
    require_same(trial.seen(pushed(fork, trial.clip[trial.middle :])), trial.alone, "a continued fork: ")
    fork.ask(QUESTION, max_new_tokens=2, keep=True)
    fork.reset()
    require_same(trial.seen(parent), before, "the parent of a continued fork: ")
    require_same(trial.seen(pushed(parent, trial.clip[trial.middle :])), trial.alone, "the parent, continued: ")
    return f"forked after {trial.middle} of {len(trial.clip)} frames"


def _saved(trial: Trial) -> str:
    stream = pushed(trial.stream(), trial.clip[: trial.middle])
    stream.save(trial.folder / "stream.npz")
    opened = open_stream(trial.folder / "stream.npz", trial.bundle)
    require_same(trial.seen(opened), trial.seen(stream), "an opened stream: ")
    require_same(trial.seen(pushed(opened, trial.clip[trial.middle :])), trial.alone, "an opened stream, continued: ")
    return f"saved after {trial.middle} of {len(trial.clip)} frames"


class _Lost(Exception):
    """Raised by a session whose device is lost."""


def _failed(trial: Trial) -> str:
    """Push an invalid frame; then let each graph that a frame passes through fail after it has run."""
    lost = ""

    def around(session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = session.run(inputs)
        if session.spec.name == lost:
            raise _Lost
        return outputs

    stream = pushed(trial.stream(tapped(trial.bundle, around)), trial.clip[: trial.middle])
    before = trial.seen(stream)
    graphs = ("trunk", "temporal", "compressor", "embed", "llm")
    for graph in ("", *graphs):
        lost = graph
        try:
            stream.push(trial.clip[-1] if graph else np.zeros((8, 8), np.uint8))
        except (_Lost, FrameError):
            lost = ""
        else:
            raise Broken(f"a frame failed in '{graph or 'preprocess'}', but no error was raised")
        require_same(trial.seen(stream), before, f"after a frame that failed in '{graph or 'preprocess'}': ")
    require_same(trial.seen(pushed(stream, trial.clip[trial.middle :])), trial.alone, "continued after failed frames: ")
    return f"{len(graphs) + 1} ways to fail"


def _inputs_stay(trial: Trial) -> str:
    """A run must not change its inputs; in a cache updated in place it may change only the new rows."""
    num_runs = 0

    def around(session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nonlocal num_runs
        num_runs += 1
        spec, own = session.spec, copied(inputs, session.memory)
        outputs = session.run(inputs)
        for state in spec.states if spec.aliases else ():
            new = state.rows(int(own["write_index"][0]), own["inputs_embeds"].shape[1])
            own[state.input][new] = session.memory.to_host(inputs[state.input])[new]
        now = {name: session.memory.to_host(tensor) for name, tensor in inputs.items()}
        require_same(now, own, f"input of '{spec.name}' after a run: ")
        return outputs

    trial.seen(pushed(trial.stream(tapped(trial.bundle, around)), trial.clip[:2]))
    return f"{num_runs} runs of {len(trial.bundle.sessions)} graphs"


# -- H: batch ----------------------------------------------------------------------------------------------------


def _batch_alike(trial: Trial) -> str:
    streams, num_runs = _several_streams(trial), 0
    for graph, runs in streams[0].items():
        for feeds in runs:
            num_runs += 1
            outputs = run_on_copies(trial.bundle.sessions[graph], _stacked([feeds] * len(streams)))
            for row in range(1, len(streams)):
                require_same(_row(outputs, row), _row(outputs, 0), f"'{graph}', row {row} of equal ones: ")
    return f"{len(streams)} equal rows, {num_runs} runs"


def _batch_permuted(trial: Trial) -> str:
    streams, num_runs = _several_streams(trial), 0
    turned = [*streams[1:], streams[0]]
    for graph in streams[0]:
        for here, there in zip(_batches(streams, graph), _batches(turned, graph), strict=True):
            num_runs += 1
            outputs, moved = (run_on_copies(trial.bundle.sessions[graph], feeds) for feeds in (here, there))
            for row in range(len(streams)):
                other = (row + 1) % len(streams)
                where = f"'{graph}', stream {other} in row {row} and in row {other}: "
                require_same(_row(moved, row), _row(outputs, other), where)
    return f"{len(streams)} streams turned by one, {num_runs} runs"


def _several_streams(trial: Trial) -> list[dict[str, Feeds]]:
    """For each stream of a full batch, every graph's inputs while it encodes a frame and scores a question. The frames
    differ, and so do the lengths, if one pass can take both."""
    count = trial.bundle.manifest.limits.streams
    if count == 1:
        raise NotExecuted("this bundle serves one stream at a time; export with --streams 2 for a batch")
    clip = trial.clip
    for lengths in ([1 + i % 2 for i in range(count)], [1] * count):
        streams = [_feeds_of(trial, [clip[(i + k) % len(clip)] for k in range(n)]) for i, n in enumerate(lengths)]
        shapes = [[[a.shape for a in run.values()] for runs in feeds.values() for run in runs] for feeds in streams]
        if all(own == shapes[0] for own in shapes):
            break
    return streams


def _feeds_of(trial: Trial, frames: Sequence[Frame]) -> dict[str, Feeds]:
    found: dict[str, Feeds] = {name: [] for name in trial.bundle.sessions}

    def around(session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found[session.spec.name].append(copied(inputs, session.memory))
        return session.run(inputs)

    stream = pushed(trial.stream(tapped(trial.bundle, around)), frames)
    for runs in found.values():
        runs.clear()
    trial.seen(stream)
    return found


def _batches(streams: list[dict[str, Feeds]], graph: str) -> list[dict[str, Array]]:
    return [_stacked(list(runs)) for runs in zip(*(feeds[graph] for feeds in streams), strict=True)]


def _stacked(rows: Feeds) -> dict[str, Array]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _row(outputs: Mapping[str, Array], row: int) -> Seen:
    return {name: array[row] for name, array in outputs.items()}


# -- I: determinism ----------------------------------------------------------------------------------------------


def _twice(trial: Trial) -> str:
    num_runs = 0
    for graph, runs in _feeds_of(trial, trial.clip[:2]).items():
        for feeds in runs:
            num_runs += 1
            first, second = (run_on_copies(trial.bundle.sessions[graph], feeds) for _ in range(2))
            require_same(second, first, f"'{graph}', run again: ")
    return f"{num_runs} runs of {len(trial.bundle.sessions)} graphs"


def _new_session(trial: Trial) -> str:
    _require_room(trial.bundle)
    from ..bfloat16_on_cpu import open_on_cpu  # imports torch

    with open_on_cpu(trial.bundle.folder) as bundle:
        seen = trial.seen(pushed(trial.stream(bundle), trial.clip))
    require_same(seen, trial.alone)
    return f"{len(trial.clip)} frames, {len(seen)} tensors"


NEW_PROCESS = """
import sys
from pvc_export.parity.state.rules import write_alone

write_alone(*sys.argv[1:])
"""


def _new_process(trial: Trial) -> str:
    _require_room(trial.bundle)
    if trial.bundle.manifest.precision == "bf16":
        raise NotExecuted("a CPU runs bfloat16 through widened graphs, which a runtime without torch and onnx lacks")
    found = trial.folder / "alone.npz"
    command = [sys.executable, "-c", NEW_PROCESS, str(trial.bundle.folder.resolve()), str(len(trial.clip)), str(found)]
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotExecuted(f"a second process could not be started: {error}") from error
    if result.returncode < 0:
        raise NotExecuted(f"the second process was killed by signal {-result.returncode}, likely out of memory")
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["it printed no error"]
        raise Broken(f"the second process exited with {result.returncode}: {said[-1]}")
    with np.load(found) as file:
        require_same({name: file[name] for name in file.files}, trial.alone)
    return f"{len(trial.clip)} frames, {len(trial.alone)} tensors, without torch"


def write_alone(folder: str, num_frames: str, found: str) -> None:
    """In the new process: write the state of a stream of the clip as .npz. Raises RuntimeError if torch is loaded."""
    seen = _alone(Path(folder), int(num_frames))
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported by the runtime")
    np.savez(found, **seen)  # type: ignore[arg-type]


def _alone(folder: Path, num_frames: int) -> Seen:
    bundle = open_bundle(folder, runtime="cpu", unchecked=True)
    return seen_by(pushed(new_stream(bundle, num_frames), check_clip(num_frames)), bundle)


def _require_room(bundle: Bundle) -> None:
    num_bytes = sum(entry.num_bytes for name, entry in bundle.manifest.files.items() if name.startswith("graphs/"))
    if num_bytes > LARGEST_TWICE:
        raise NotExecuted(
            f"the graphs take {num_bytes / 2**30:.1f} GiB, too much to open them twice (limit "
            f"{LARGEST_TWICE / 2**30:.1f} GiB)"
        )


RULES: tuple[tuple[str, str, Callable[[Trial], str]], ...] = (
    ("G", "a stream that was reset is a fresh one", _reset),
    ("G", "two interleaved streams are two separate ones", _interleaved),
    ("G", "a fork is its parent, and leaves it alone", _forked),
    ("G", "a stream that is saved and opened goes on", _saved),
    ("G", "a frame that fails changes nothing", _failed),
    ("G", "a run leaves its inputs alone, but for new rows of a cache in place", _inputs_stay),
    ("H", "equal rows of a batch are equal", _batch_alike),
    ("H", "streams in another order give the same, in that order", _batch_permuted),
    ("I", "the same inputs give the same bits", _twice),
    ("I", "in a new session as well", _new_session),
    ("I", "in a new process as well", _new_process),
)
