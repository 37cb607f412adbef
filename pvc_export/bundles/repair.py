"""Test a suggested repair: export again with the island that the culprit suggests, until the check passes.

The check's limits decide, not the culprit's: an untested suggestion does not count as a repair.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from ..graphs.models import LoadedModel
from ..parity.check import check_bundle
from ..parity.culprit.find import find_culprit
from ..parity.culprit.record import Culprit, Repair
from ..terminal.console import Console
from .export import ExportRequest, write_graphs

MAX_ISLANDS = 6


def repair(
    loaded: LoadedModel, request: ExportRequest, *, scratch: Path, console: Console, num_questions: int = 200
) -> Repair:
    """Export the graphs into `scratch`, check, and add the culprit's island, until the check passes or none is left.

    num_questions   as for check_bundle, asked on every rung: an LLM operation overflows float16 on PyTorch's rung only,
                    because ONNX Runtime's CPU computes float16 in float32
    """
    islands: tuple[str, ...] = ()
    culprits: list[Culprit] = []
    target = replace(request.target, engine_graphs=(), builder=None)
    while len(islands) <= MAX_ISLANDS:
        own = replace(request, target=target, islands=(*request.islands, *islands))
        with tempfile.TemporaryDirectory(prefix="pvc-bisect-", dir=scratch) as name:
            folder = Path(name)
            write_graphs(loaded, own, folder, Console(quiet=True))
            label = f"export and check with {', '.join(islands)}" if islands else "export and check once more"
            with console.stage(label) as (stage, report):
                parity = check_bundle(folder, loaded, num_questions=num_questions, scratch=scratch, progress=report)
                stage.note = parity.summary()
            if parity.passed:
                return Repair(islands=islands, passed=True, culprits=tuple(culprits))
            culprit = find_culprit(folder, loaded, scratch=scratch)
        if culprit is None or culprit.island is None:
            break
        culprits.append(culprit)
        islands = (*(name for name in islands if not name.startswith(f"{culprit.island}.")), culprit.island)
    return Repair(islands=islands, passed=False, culprits=tuple(culprits))
