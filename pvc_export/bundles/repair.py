"""Proof of a suggestion: export again with the island that the culprit asks for, until the check passes.

The check's own limits decide, not the culprit's: a repair that was only suggested is none.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engines.errors import ParityError

from ..graphs.models import LoadedModel
from ..parity.check import check_bundle
from ..parity.culprit.find import Culprit, find_culprit
from ..terminal.console import Console
from .export import ExportRequest, write_graphs

MAX_ISLANDS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What a bundle needs in order to pass.

    islands   beyond those of the request;  passed  whether a bundle with them did;  culprits  one a failed try
    """

    islands: tuple[str, ...]
    passed: bool
    culprits: tuple[Culprit, ...]

    def text(self) -> str:
        if not self.passed:
            tried = ", ".join(self.islands) or "none"
            return f"No repair was found. Float32 islands that were tried, all together: {tried}"
        if not self.islands:
            return (
                "Exported again as it is, the check passes: the model is fine, and this bundle was changed or made by "
                "another version. Export it again"
            )
        flags = " ".join(f"--island {name}" for name in self.islands)
        return f"Exported again with {flags}, the check passes"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def repair(
    loaded: LoadedModel, request: ExportRequest, *, scratch: Path, console: Console, num_questions: int = 200
) -> Repair:
    """Export the graphs into `scratch`, check, and add the culprit's island, until the check passes or none is left.

    num_questions   as check_bundle's, on every rung: an operation of the LLM leaves its range in torch's rung alone,
                    since ONNX Runtime's CPU computes float16 in float32
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
                try:
                    parity = check_bundle(folder, loaded, num_questions=num_questions, scratch=scratch, progress=report)
                    passed, stage.note = parity.passed, parity.summary()
                except ParityError as error:
                    passed, stage.note = False, str(error).splitlines()[0]
            if passed:
                return Repair(islands=islands, passed=True, culprits=tuple(culprits))
            culprit = find_culprit(folder, loaded, scratch=scratch)
        if culprit is None or culprit.island is None:
            break
        culprits.append(culprit)
        islands = (*(name for name in islands if not name.startswith(f"{culprit.island}.")), culprit.island)
    return Repair(islands=islands, passed=False, culprits=tuple(culprits))
