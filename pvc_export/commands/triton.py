"""`pvc-export triton`: makes a Triton Inference Server model repository from a bundle."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from engines.terminal import print_json

from ..bundles.triton import TritonRequest, make_repository
from ..terminal.console import Console, size_text
from ..terminal.usage import usage_errors


def triton_command(
    *, bundle: Path, repository: Path | None, name: str | None, slots: int, idle_s: float, max_new_tokens: int,
    trust_engines: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make the repository. Raises BadParameter for an invalid model name, and the errors of make_repository."""
    with usage_errors():
        request = TritonRequest(
            bundle=bundle, repository=repository or Path("build/triton"), name=name or bundle.resolve().name,
            slots=slots, idle_s=idle_s, max_new_tokens=max_new_tokens, trust_engines=trust_engines,
        )  # fmt: skip
    console = Console(quiet=as_json)
    made = make_repository(request, console=console)
    if as_json:
        facts = {"repository": str(request.repository), "name": request.name, "slots": slots, "idle_s": idle_s}
        print_json(facts | asdict(made) | {"folder": str(made.folder)})
        return
    console.print(f"published {made.folder}")
    held = f"each with at least {size_text(made.state_bytes)} of caches"
    console.print(f"{slots} concurrent sequences on {'the first GPU' if made.on_gpu else 'the CPU'}, {held}")
    folder = shlex.quote(str(request.repository))
    console.print(f"next: tritonserver --model-repository={folder} (see {made.folder / 'README.md'})")
