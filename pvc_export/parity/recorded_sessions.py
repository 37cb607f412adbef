"""Sessions that remember what they returned: how a check sees every output of every graph without its own runtime.

Of a cache that a graph updates in place, the rows that were new.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engines.memory import Array, Tensor
from engines.session import Session

Calls = dict[str, list[dict[str, Array]]]
"""For each graph, the outputs of each of its runs, in order, on the host."""


class Recorder:
    """Wraps sessions. Give `sessions` to whatever runs them, and read `calls` afterwards.

    `frames` holds every frame that the trunk was fed, uint8 (S, S, 3).
    """

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self.calls: Calls = {name: [] for name in sessions}
        self.frames: list[Array] = []
        self.sessions: dict[str, Session] = {name: _Recorded(s, self) for name, s in sessions.items()}

    def restart(self) -> Calls:
        """Hand over what was recorded so far, and begin anew."""
        calls, self.calls = self.calls, {name: [] for name in self.sessions}
        return calls


class _Recorded:
    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session, self._recorder = session, recorder
        self.spec, self.memory, self.computes_in = session.spec, session.memory, session.computes_in

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.spec.name == "trunk":
            self._recorder.frames += list(np.array(self.memory.to_host(inputs["frame"])))
        outputs = self._session.run(inputs)
        recorded = {name: self.memory.to_host(t) for name, t in outputs.items() if name not in self.spec.aliases}
        self._recorder.calls[self.spec.name].append(recorded | self._written(inputs, outputs))
        return outputs

    def _written(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Of each cache that was updated in place, a copy of the rows of this call: (1, L, K, D)."""
        written = {}
        for state in self.spec.states if self.spec.aliases else ():
            start, count = int(self.memory.to_host(inputs["write_index"])[0]), inputs["inputs_embeds"].shape[1]
            rows = self.memory.fetch(outputs[state.output], state, start, count)
            written[state.output] = state.as_rows(rows)
        return written
