"""Parity check of any ONNX graph with declared state pairs: for models other than PVC.

    pvc-export check --reference pkg.module:Model --graph model.onnx --state past=present [--state ...] [--steps N]

The reference is a torch.nn.Module, or a class or function that makes one without arguments, named 'pkg.module:Name' or
'path/to/file.py:Name'. Its forward takes the graph's inputs by name as torch tensors ('_' stands for any character
that a Python name cannot have). It returns a dict by output name, or a tensor or tuple in the order of the graph's
outputs. It runs in float32 on the CPU, and once more in float64, if it can, as the noise floor. States are arguments
and results: the same inputs must give the same outputs. The module is only imported; no pickle is ever loaded.

States are named in pairs; each begins as zeros.
    --state past=present           the output is the next step's input. A dynamic axis with another name in the output
                                   ('past' and 'total') grows: it begins with no rows and is followed, like a KV cache
    --state past=new@append:AXIS   the output holds new rows only; they are appended to the input along AXIS
    ...@start:N                    the growing axis begins with N rows of zeros, if the graph cannot take an empty one
    ...@crossed                    the pair is intended, although the names suggest other pairs
    --state 'cached_*=new_cached_*'   all pairs that match the pattern
    --no-state OUTPUT              not a state, although its name looks like one
Both sides follow a wrong pair alike, so no number reveals it; names.py warns when the names contradict a pair.
Every other input is drawn from a seed, by the rules of draw.py: floats normal, uint8 over its range, integers that
index a table over all its rows, masks that leave something visible, bool 0..1. An integer whose range neither the graph
nor --bound gives makes the check 'not shown', which is not a pass.
    --bound NAME=LOW:HIGH          both ends included: positions 0:511, an attention mask 1:1; floats become uniform
    --size AXIS=N, AXIS=A+B        an axis that must have one size, or that is the sum of others: total=past+new
    --batch-axis AXIS              the batch axis, if its name does not show it
    --tolerance METRIC=LIMIT       rel_l2, worst_token or max_abs, instead of the measured limit

Levels (those of parity/levels.py that need no ring and no text). After a fault, every check that can still run does:
    A  graph        onnx.checker, strict shape inference, the state pairs, ONNX Runtime's CPU opens it
    B  one step     one step from the zero state: every output and state output against the reference
    C  shapes       the same with each dynamic axis at 1 and at two sizes that B did not use
    D  stream       each side with its own state; and every step again on the reference's state, which separates a
                    wrong step from an error that only accumulates
    E  drift        whether the error grows over the stream, judged like a bundle's (parity/drift/report.py)
    G  state rules  the zero state starts a fresh stream, streams do not mix, inputs are not modified: bit for bit
    H  batch        a row of a batch gives what it gives alone, and equal rows stay equal
    I  determinism  the same bits again, and in a new session
Not covered: bfloat16 inputs or outputs, and sequences.
The allowed error of an output is measured during the check (the rule is at the top of limits.py), or given with
--tolerance: a quantized graph is expected to differ by more than float rounding.
Nothing is known about the model, so it is compared with itself wherever possible. A wrong state is located by
experiment (causes.py), since "the outputs differ" does not help with someone else's graph.
"""

from __future__ import annotations

from ..graphs.machine import fitting_threads
from ..parity.levels import heading
from ..parity.recording import Progress
from .declare import declare
from .files import load_graph, without_links
from .findings import Findings
from .levels import check_drift, check_file, check_shapes, check_sizes, check_step, check_stream
from .reference import NoiseFloor, Reference, load_reference
from .report import ForeignReport
from .request import ForeignRequest
from .runs import judged
from .session import GraphSession, RunFailed
from .sides import Sides, Streamed
from .state_rules import check_batch, check_determinism, check_states
from .states import Declared

CHECKS = {
    "B": check_step, "C": check_sizes, "D": check_stream, "E": check_drift, "G": check_states, "H": check_batch,
    "I": check_determinism,
}  # fmt: skip
"""The function that checks each of report.LEVELS, except A."""


def check_foreign(request: ForeignRequest, progress: Progress = lambda _: None) -> ForeignReport:
    """Run every level. A difference is not an error here: the report has it, with everything else that still ran.

    `progress` is called with the fraction done, 0 to 1.
    Raises ModelError for a file that is not a graph or whose weights are missing, and for a reference that cannot be
    imported, made, called with the graph's inputs, or compared with its outputs; SpecError for names and pairs that
    the graph cannot have; BackendUnavailable without ONNX Runtime.
    """
    model = load_graph(request.graph)
    with without_links(request.graph, model) as readable:
        return _climb(request, declare(model, request, readable), progress)


def _climb(request: ForeignRequest, declared: Declared, progress: Progress) -> ForeignReport:
    module = load_reference(request.reference)
    double, streamed = NoiseFloor(module, declared), Streamed()
    reference = Reference(module, declared)
    try:
        session = GraphSession(declared)
    except RunFailed as error:
        left = {heading(level): "the graph cannot be opened" for level in CHECKS}
        found = check_file(declared, error) + Findings(not_executed=left)
    else:
        sides = Sides(request, declared, session, reference, double, streamed, progress)
        found = check_file(declared)
        with fitting_threads(module):
            later = [judged(level, sides, check) for level, check in CHECKS.items()]
        found = sum(later, start=found + check_shapes(declared.untrue | streamed.untrue))
        progress(1.0)
    return ForeignReport(
        **found.parts(),
        request=request,
        declared=declared,
        floor_missing=double.missing,
        touched={name: len(rows) for name, rows in streamed.touched.items()},
    )
