"""Renames packages in the wheel: `engines` and `apps` are too common for site-packages (docs/decisions/0002)."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

RENAMED = {"engines": "pvc_engines", "apps": "pvc_apps"}
ENTRY_POINT = re.compile(rf"^(\s*[\w.-]+\s*=\s*)({'|'.join(RENAMED)})\b", re.MULTILINE)
IMPORT = re.compile(rf"^(\s*(?:from|import)\s+)({'|'.join(RENAMED)})\b", re.MULTILINE)


class RenamingBuild(build_py):
    """Builds as usual, then renames two packages and every import of them. An editable install is left unchanged."""

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


class RenamingWheel(bdist_wheel):
    """Also renames the packages in the wheel's entry points, just before the files are packed."""

    def write_wheelfile(self, wheelfile_base: str, *args: str, **kwargs: str) -> None:
        super().write_wheelfile(wheelfile_base, *args, **kwargs)
        if "editable_wheel" in self.distribution.command_obj:
            return
        path = Path(wheelfile_base) / "entry_points.txt"
        text = path.read_text(encoding="utf-8")
        path.write_text(ENTRY_POINT.sub(lambda m: m[1] + RENAMED[m[2]], text), encoding="utf-8")


setup(cmdclass={"build_py": RenamingBuild, "bdist_wheel": RenamingWheel})
