"""Both sides of a comparison on the same inputs, and streams of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.errors import ModelError
from engines.memory import Array
from engines.metrics import metrics_of

from ..parity.drift.report import Sample
from ..parity.limits import NoiseTable
from ..parity.recording import Progress
from .draw import Moment
from .limits import Judge
from .reference import NoiseFloor, Reference
from .request import ForeignRequest
from .session import GraphSession, RunFailed
from .states import Declared, Sizes

Arrays = dict[str, Array]
"""Tensors by their ONNX names."""
NUM_RULE_STEPS = 4
"""Length of the streams of levels G, H and I."""
COMPARED = "BCD"
"""Levels that compare with the reference. A table row that only other levels read counts as not shown."""


@dataclass(kw_only=True, slots=True)
class Streamed:
    """Results of a stream that other levels use.

    samples  output -> its error at every step
    noise    the noise floor
    touched  input -> the table rows it read
    untrue   outputs whose shape is not the declared one -> how they differ
    """

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    noise: NoiseTable = field(default_factory=lambda: NoiseTable([]))
    touched: dict[str, set[int]] = field(default_factory=dict)
    untrue: dict[str, str] = field(default_factory=dict)

    def add(self, step: int, got: Arrays, want: Arrays, exact: Arrays | None) -> None:
        """Add one step of the graph's own stream, with the reference's in float32 and float64."""
        for name, b in want.items():
            if b.dtype.kind == "f" and got[name].shape == b.shape:
                true = b if exact is None else exact[name]
                error, floor, gap = (
                    metrics_of(*pair).rel_l2 for pair in ((got[name], true), (b, true), (got[name], b))
                )
                self.samples.setdefault(name, []).append(Sample(frame=step, error=error, floor=floor, gap=gap))


@dataclass(frozen=True, slots=True)
class Sides:
    """The graph, the reference in float32, its noise floor in float64, and the results of their stream."""

    request: ForeignRequest
    declared: Declared
    session: GraphSession
    reference: Reference
    double: NoiseFloor
    streamed: Streamed
    progress: Progress

    @property
    def judge(self) -> Judge:
        return Judge(self.declared.path.stem, self.declared.wiring.dtype, self.request.parsed_tolerances())

    def draw(self, level: str, step: int, sizes: Sizes) -> Arrays:
        """Inputs of one step except states: different at each level and step, the same in every check."""
        drawn = self.declared.draw(sizes, Moment(self.request.seed, level, step))
        if level in COMPARED:
            for name in self.declared.tables:
                self.streamed.touched.setdefault(name, set()).update(drawn[name].ravel().tolist())
        return drawn

    def first(self, level: str, step: int, sizes: Sizes) -> Arrays:
        """All inputs of one step from the zero state."""
        return self.draw(level, step, sizes) | self.declared.zero_states(sizes)

    def follow_reference(self, states: Arrays, outputs: Arrays) -> Arrays:
        """The reference's next states. Raises ModelError if its rows cannot be appended."""
        try:
            return self.declared.next_states(states, outputs)
        except ValueError as error:
            raise ModelError(
                f"the reference's state outputs do not continue its states: {error}",
                expected="new rows of the same shape, except along @append:AXIS",
                fix="correct the axis, or return only the new rows",
            ) from error

    def follow_graph(self, states: Arrays, outputs: Arrays) -> Arrays:
        """The graph's next states. Raises RunFailed if its rows cannot be appended."""
        try:
            return self.declared.next_states(states, outputs)
        except ValueError as error:
            raise RunFailed(f"its state outputs do not continue its states: {error}") from error


def draw_stream(sides: Sides, level: str, sizes: Sizes, *, first: int = 0) -> list[Arrays]:
    """Inputs of a stream from the zero state. The graph is run to know how its states grow. Raises RunFailed."""
    states, drawn = sides.declared.zero_states(sizes), list[Arrays]()
    for step in range(first, first + NUM_RULE_STEPS):
        drawn.append(sides.draw(level, step, sides.declared.sizes_with(sizes, states)))
        states = sides.follow_graph(states, sides.session.run(drawn[-1] | states))
    return drawn


def run_stream(sides: Sides, drawn: Sequence[Arrays], sizes: Sizes) -> list[Arrays]:
    """The graph's outputs at every step, starting from the zero state. Raises RunFailed."""
    states, outputs = sides.declared.zero_states(sizes), list[Arrays]()
    for inputs in drawn:
        outputs.append(sides.session.run(inputs | states))
        states = sides.follow_graph(states, outputs[-1])
    return outputs
