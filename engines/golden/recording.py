"""A golden recording: the float32 reference's outputs for a short stream, and the limits rounding allows, in one file.

It lets a device check its engines without torch. The stream is long enough to wrap the ring. Then a question is read
and an answer with given tokens is fed token by token, so that nothing depends on what the device would have answered.
Only some rows of every graph's outputs are stored, a few megabytes even for an 8B model. The limits are measured from
the model itself (parity/limits.py).

golden.npz    frames   uint8 (F, S, S, 3) RGB, the trunk's input
              values/GRAPH/TENSOR   float32 (runs, rows, C)
              columns/GRAPH/TENSOR  the columns of C that are stored, if not all
              facts    UTF-8 JSON: everything else
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError
from ..memory import Array

GOLDEN_NAME = "golden.npz"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """Rows that the LLM reads in one pass: tokens, followed by the embeddings of a frame, if one is given."""

    ids: tuple[int, ...]
    frame: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Samples of one output, in some runs of its graph (counted from 0).

    values   float32 (runs, rows, C): rows spread evenly over all rows the output has along its last axis
    columns  the stored columns of C; None: all
    limits   metric (engines/metrics.py) -> largest allowed difference of a device's output
    """

    graph: str
    tensor: str
    runs: tuple[int, ...]
    values: Array
    columns: Array | None
    limits: Mapping[str, float]

    @property
    def name(self) -> str:
        """Such as 'temporal/features'."""
        return f"{self.graph}/{self.tensor}"

    def of(self, array: Array) -> Array:
        """The same rows and columns of a device's output, values unchanged."""
        return sampled(array, self.values.shape[1], self.columns)


def sampled(array: Array, num_rows: int, columns: Array | None = None) -> Array:
    """(..., C) -> (num_rows, C): rows spread evenly from first to last; repeated if there are fewer."""
    rows = array.reshape(-1, array.shape[-1])
    chosen: Array = rows[np.linspace(0, len(rows) - 1, num_rows).round().astype(int)]
    return chosen if columns is None else np.take(chosen, columns, axis=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """A recording.

    weights_sha256  fingerprint of the recorded model, as in the manifest
    time_divisor    as in VisionEncoder
    passes          prompt and answer: first the passes that read the prompt, then one for each of `tokens`
    tokens          the answer that is fed
    likeliest       the reference's likeliest token after the prompt and after each token
    ties            largest lead of that token, in logits, that rounding may reverse (parity/limits.py)
    """

    weights_sha256: str
    frames: Array
    time_divisor: int
    passes: tuple[Pass, ...]
    tokens: tuple[int, ...]
    likeliest: tuple[int, ...]
    ties: tuple[float, ...]
    samples: tuple[Samples, ...]

    def save(self, path: Path) -> None:
        facts = {
            "format": FORMAT,
            "weights_sha256": self.weights_sha256,
            "time_divisor": self.time_divisor,
            "passes": [[one.ids, one.frame] for one in self.passes],
            "tokens": self.tokens,
            "likeliest": self.likeliest,
            "ties": self.ties,
            "samples": [[one.graph, one.tensor, one.runs, dict(one.limits)] for one in self.samples],
        }
        arrays = {f"values/{one.name}": one.values for one in self.samples}
        arrays |= {f"columns/{one.name}": one.columns for one in self.samples if one.columns is not None}
        text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, facts=text, frames=self.frames, **arrays)

    @staticmethod
    def load(path: Path) -> Golden:
        """Read a recording. Raises BundleError if the file is missing or unreadable."""
        if not path.is_file():
            raise BundleError(
                f"{path} does not exist: this bundle has no golden recording",
                expected="a bundle from a kit, or one exported with --golden",
                fix="export it again with --golden, or compare it with its model: pvc-export check",
            )
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return _from_arrays({name: file[name] for name in file.files})
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"{path} cannot be read as a golden recording: {error!r}",
                cause="it is truncated, or another version of pvc-export wrote it",
                fix="copy it again, or export the bundle again",
            ) from error


def _from_arrays(arrays: dict[str, Any]) -> Golden:
    facts = json.loads(arrays["facts"].tobytes().decode())
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}, expected {FORMAT}")
    return Golden(
        weights_sha256=facts["weights_sha256"],
        frames=arrays["frames"],
        time_divisor=facts["time_divisor"],
        passes=tuple(Pass(ids=tuple(ids), frame=frame) for ids, frame in facts["passes"]),
        tokens=tuple(facts["tokens"]),
        likeliest=tuple(facts["likeliest"]),
        ties=tuple(facts["ties"]),
        samples=tuple(
            Samples(
                graph=graph,
                tensor=tensor,
                runs=tuple(runs),
                values=arrays[f"values/{graph}/{tensor}"],
                columns=arrays.get(f"columns/{graph}/{tensor}"),
                limits=limits,
            )
            for graph, tensor, runs, limits in facts["samples"]
        ),
    )
