"""Build a wheel that also holds configs/ and the programs of launch/, inside the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RESOURCES = {"configs": "*.yaml", "launch": "*.py"}
"""Folders next to the package in a checkout -> the files to install."""


class BuildWithResources(build_py):
    """Copy resources into the package; an editable installation reads them in place."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder, pattern in RESOURCES.items():
            for path in sorted(Path(folder).rglob(pattern)):
                target = Path(self.build_lib, "multitask_vl", path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithResources})
