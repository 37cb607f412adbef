"""Names in a wheel: `engines` and `apps` are too common for site-packages (docs/decisions/0002)."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RENAMED = {"engines": "pvc_engines", "apps": "pvc_apps"}
IMPORT = re.compile(rf"^(\s*(?:from|import)\s+)({'|'.join(RENAMED)})\b", re.MULTILINE)


class RenamingBuild(build_py):
    """Builds as usual, then renames two packages and every import of them. An editable install stays as it is."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        library = Path(self.build_lib)
        for name, new_name in RENAMED.items():
            if (library / name).is_dir():
                (library / name).rename(library / new_name)
        for path in library.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(IMPORT.sub(lambda m: m[1] + RENAMED[m[2]], text), encoding="utf-8")


setup(cmdclass={"build_py": RenamingBuild})
