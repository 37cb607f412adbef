"""Step 6: replay a bundle's golden recording on the card: values, tokens, the same bits twice, two rows."""

from __future__ import annotations

from pathlib import Path

from engines.bundle import open_graphs
from engines.golden.check import load_golden, play
from engines.manifest import Manifest

from ..terminal.numbers import share
from .hardware import Hardware
from .section import Found


def play_golden(hardware: Hardware, folder: Path) -> Found:
    """Replay the recording. Unlike the ladder's rungs on the card, it includes LLM and head."""
    golden = load_golden(folder, Manifest.load(folder))
    check = play(open_graphs(folder, runtime="target", cuda=hardware.cuda()), golden)
    worst = [(f"{one.graph}, {one.tensor} at {one.where}", f"{share(one.share())} of its limit")
             for one in check.report.worst()]  # fmt: skip
    words = {True: "holds", False: "DOES NOT HOLD", None: "not executed"}
    rules = [(rule.name, f"{words[rule.passed]}: {rule.detail}") for rule in check.report.rules]
    passed = check.report.passed
    return Found(
        facts=(("runs on", check.runs_on), *worst, *rules),
        data=check.to_json() | {"bundle": folder.name},
        state="shown" if passed else "failed",
        error="" if passed else check.report.summary(),
    )
