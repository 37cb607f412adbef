"""Sessions that remember what they returned: how a check sees every output of every graph without its own runtime."""

from __future__ import annotations

from collections.abc import Mapping

from engines.memory import Array, Tensor
from engines.session import Session

Calls = dict[str, list[dict[str, Array]]]
"""For each graph, the outputs of each of its runs, in order, on the host."""


class Recorder:
    """Wraps sessions. Give `sessions` to whatever runs them, and read `calls` afterwards."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self.calls: Calls = {name: [] for name in sessions}
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
        outputs = self._session.run(inputs)
        self._recorder.calls[self.spec.name].append(
            {name: self.memory.to_host(tensor) for name, tensor in outputs.items()}
        )
        return outputs
