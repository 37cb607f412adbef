"""Parity of any ONNX graph with declared state pairs: the check of a model that is not PVC.

    pvc-export check --reference pkg.module:Model --graph model.onnx --state past=present [--state ...] [--steps N]

The reference is a torch.nn.Module, or a class or function that makes one without arguments, named 'pkg.module:Name' or
'path/to/file.py:Name'. Its forward takes the graph's inputs by name as torch tensors (a character that no Python name
has may be '_') and returns a dict by output name, or a tensor or tuple in the order of the graph's outputs. It runs in
float32 on the CPU, and once more in float64, as the noise floor, if it can. States are arguments and results: the same
inputs must give the same outputs. Importing that module is all that is done with it; no pickle is ever loaded.

States are named in pairs; each begins as zeros.
    --state past=present           the output is the next step's input. A dynamic axis with another name in the output
                                   ('past' and 'total') grows: it begins with no rows and is followed, like a KV cache
    --state past=new@append:AXIS   the output holds new rows only; they are appended to the input along AXIS
    ...@start:N                    the growing axis begins with N rows of zeros, where a graph cannot take an empty one
A wrong pair would be followed on both sides, where nothing can tell: the pairs are the user's word.
Every other input is drawn from a seed: floats normal, uint8 over its range, other integers and bool 0..1.
    --bound NAME=LOW:HIGH          both ends included: token ids 0:31999, an attention mask 1:1; floats become uniform
    --size AXIS=N, AXIS=A+B        an axis that must have one size, or that is the sum of others: total=past+new

The levels, those of parity/levels.py that need no ring and no words. After a fault, whatever can go on does:
    A  graph        onnx.checker, strict shape inference, the state pairs, ONNX Runtime's CPU opens it
    B  one step     one step from the zero state: every output and state output against the reference
    C  shapes       the same with each dynamic axis at 1 and at two sizes that B did not use
    D  stream       each side with its own state; and every step fed the reference's, which tells a wrong step from
                    one that only accumulates
    E  drift        whether the error grows over the stream, judged like a bundle's (parity/drift/report.py)
    G  state rules  the zero state starts anew, streams do not mix, inputs are left alone: bit for bit
    H  batch        a row of a batch is what it is alone, and equal rows stay equal
    I  determinism  the same bits again, and in a new session
Not covered: bfloat16 inputs or outputs, sequences, and quantized graphs, which are meant to be further off.
How far off an output may be is measured on the spot, by the rule at the top of limits.py.
Nothing is known of the model, so it is held against itself wherever that is possible; and a wrong state is looked for
by experiment (causes.py), since "the outputs differ" does not help with somebody else's graph.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engines.errors import SpecError

from ..graphs.sessions import fitting_threads
from ..parity.drift.report import Drift
from ..parity.recording import Progress
from .declare import declare
from .levels import Streamed, check_drift, check_file, check_sizes, check_step, check_stream
from .reference import NoiseFloor, Reference, load_reference
from .report import LEVELS, NUM_STEPS, ForeignReport, Level
from .runs import judged
from .session import GraphSession, RunFailed, load_graph
from .sides import Sides
from .state_rules import check_batch, check_determinism, check_states
from .states import Bound, Declared, StatePair, parse_bound, parse_size


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignRequest:
    """What to check, as the command line says it. Raises SpecError for text that is no pair, size or bound.

    reference  'pkg.module:Name' or 'path/to/file.py:Name'
    states     'INPUT=OUTPUT', '...@append:AXIS', '...@start:N'
    steps      of the stream, at least 1; a slope needs 16
    sizes      'AXIS=N' or 'AXIS=OTHER+OTHER'
    bounds     'INPUT=LOW:HIGH', both included
    seed       of every input that is drawn
    """

    reference: str
    graph: Path
    states: tuple[str, ...] = ()
    steps: int = NUM_STEPS
    sizes: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"--steps is {self.steps}", expected="at least 1", fix=f"leave it out for {NUM_STEPS}")
        self.pairs(), self.parsed_sizes(), self.parsed_bounds()

    def pairs(self) -> tuple[StatePair, ...]:
        return tuple(StatePair.parse(text) for text in self.states)

    def parsed_sizes(self) -> dict[str, str]:
        """Axis -> a number or a sum of axes."""
        return dict(parse_size(text) for text in self.sizes)

    def parsed_bounds(self) -> dict[str, Bound]:
        """Input -> its smallest and largest value."""
        return dict(parse_bound(text) for text in self.bounds)

    def command(self) -> str:
        """The check without --steps, as a command line."""
        options = {"--state": self.states, "--size": self.sizes, "--bound": self.bounds}
        words = ["pvc-export", "check", "--reference", self.reference, "--graph", str(self.graph)]
        words += [word for option, values in options.items() for value in values for word in (option, value)]
        return shlex.join([*words, *(["--seed", str(self.seed)] if self.seed else [])])


def check_foreign(request: ForeignRequest, progress: Progress = lambda _: None) -> ForeignReport:
    """Climb the ladder. A difference is not an error here: it is in the report, with everything else that still ran.

    `progress` is called with the fraction done, 0 to 1.
    Raises ModelError for a graph file that is none, and for a reference that cannot be imported, made, called with the
    graph's inputs, or held against its outputs; SpecError for names and pairs that the graph cannot have;
    BackendUnavailable without ONNX Runtime.
    """
    model = load_graph(request.graph)
    declared = declare(
        request.graph, model, states=request.pairs(), sizes=request.parsed_sizes(), bounds=request.parsed_bounds()
    )
    module = load_reference(request.reference)
    double = NoiseFloor(module, declared)
    with fitting_threads(module):
        levels, drifts = _climb(request, declared, Reference(module, declared), double, progress)
    return ForeignReport(
        path=request.graph,
        graph=request.graph.name,
        reference=request.reference,
        plain_command=request.command(),
        dtype=declared.wiring.dtype,
        num_steps=request.steps,
        floor_missing=double.missing,
        states=tuple(pair.text() for pair in declared.states),
        drawn=tuple(declared.drawn_as(port) for port in declared.drawn),
        sizes=declared.sizes,
        results=tuple(levels),
        drifts=drifts,
    )


def _climb(
    request: ForeignRequest, declared: Declared, reference: Reference, double: NoiseFloor, progress: Progress
) -> tuple[list[Level], tuple[Drift, ...]]:
    try:
        session = GraphSession(declared)
    except RunFailed as error:
        unreached = [Level(letter=letter, not_executed="the graph does not open") for letter in LEVELS[1:]]
        return [check_file(declared, error), *unreached], ()
    sides = Sides(declared=declared, session=session, reference=reference, double=double, seed=request.seed)
    levels = [check_file(declared, None), judged("B", sides, check_step)]
    progress(0.1)
    levels.append(judged("C", sides, check_sizes))
    progress(0.2)
    streamed = Streamed()
    follow = partial(
        check_stream, streamed=streamed, num_steps=request.steps, progress=lambda x: progress(0.2 + 0.7 * x)
    )
    levels.append(judged("D", sides, follow))
    drifts = streamed.drifts(sides.unit)
    levels += [
        judged("E", sides, partial(check_drift, drifts=drifts)),
        judged("G", sides, check_states),
        judged("H", sides, partial(check_batch, floors=streamed.floors)),
        judged("I", sides, check_determinism),
    ]
    progress(1.0)
    return levels, drifts
