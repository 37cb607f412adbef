"""`optimum-cli export pvc -m FOLDER OUT [options of pvc-export onnx]`. optimum finds it by this file's location.

Note: it runs `pvc-export onnx` and returns its exit code, so options, messages and Ctrl-C behave the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class PVCExportCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="pvc", help="Export a PVC video model to streaming ONNX graphs, and check them.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="Checkpoint folder, 'shapes' or 'tiny'.")
        parser.add_argument("output", help="Bundle folder to write.")
        parser.add_argument(
            "options", nargs=argparse.REMAINDER, help="Options of pvc-export onnx: --fp16, --window 16, ..."
        )

    def run(self) -> None:
        arguments = ["onnx", "--model", self.args.model, "--output", self.args.output, *self.args.options]
        raise SystemExit(subprocess.run([sys.executable, "-m", "pvc_export.cli", *arguments]).returncode)


REGISTER_COMMANDS = [(PVCExportCommand, ExportCommand)]
