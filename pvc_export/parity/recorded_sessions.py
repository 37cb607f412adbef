"""Sessions that record their outputs, so that a check sees every output of every graph in the product's runtime.

For a cache updated in place, only its new rows are recorded; for a state in codes, its values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engines.memory import Array, Tensor
from engines.session import Session, Wrapped, written_rows

from .value_states import decoded

Calls = dict[str, list[dict[str, Array]]]
"""Graph -> the outputs of each of its runs, in order, on the host."""


class Recorder:
    """Wrapper of sessions. Give `sessions` to whatever runs them, and read `calls` afterwards.

    `frames` has every frame fed to the trunk, uint8 (S, S, 3).
    """

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self.calls: Calls = {name: [] for name in sessions}
        self.frames: list[Array] = []
        self.sessions: dict[str, Session] = {name: Wrapped(s, self._run) for name, s in sessions.items()}

    def restart(self) -> Calls:
        """Return the calls recorded so far, and start a new recording."""
        calls, self.calls = self.calls, {name: [] for name in self.sessions}
        return calls

    def _run(self, session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        spec, memory = session.spec, session.memory
        if spec.name == "trunk":
            self.frames += list(np.array(memory.to_host(inputs["frame"])))
        outputs = session.run(inputs)
        recorded = {name: memory.to_host(t) for name, t in outputs.items() if name not in spec.aliases}
        self.calls[spec.name].append(decoded(recorded | _written(session, inputs, outputs)))
        return outputs


def _written(session: Session, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Array]:
    """For each cache updated in place, a copy of the rows of this call: (1, L, K, D)."""
    states = session.spec.states if session.spec.aliases else ()
    return {state.output: written_rows(session, state, inputs, outputs) for state in states}
