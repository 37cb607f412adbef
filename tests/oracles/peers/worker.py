"""The worker process for elsewhere.py, in a peer's environment: runs one step at a time and times it by its own clock.

Each line on standard input is the name of a step. The reply goes to the file descriptor that the first argument names,
because libraries may print to standard output: a line of JSON, then the bytes of a float32 array. Needs only numpy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Run = Callable[[], Any]


def serve(runs: Mapping[str, Run], versions: Mapping[str, str], facts: Mapping[str, Any] | None = None) -> None:
    """Reply to requests until standard input ends. The clock is this process's CPU time."""
    out = os.fdopen(int(sys.argv[1]), "wb")
    _say(out, {"versions": dict(versions), "facts": dict(facts or {})})
    for line in sys.stdin:
        started = time.process_time()
        result = runs[line.strip()]()
        seconds = time.process_time() - started
        array = np.ascontiguousarray(result, np.float32)
        _say(out, {"seconds": seconds, "shape": array.shape})
        out.write(array.tobytes())
        out.flush()


def _say(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()
