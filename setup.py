"""What does a wheel hold beside the packages: the programs of launch/ and the YAMLs of configs/, in multitask_vl."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BESIDE = {"launch": "*.py", "configs": "*.yaml"}
"""Folders beside the package, where a checkout has them, and what of them is installed."""


class WithPrograms(build_py):
    """Copies them into the package; an editable installation reads them where they are."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder, pattern in BESIDE.items():
            for path in sorted(Path(folder).rglob(pattern)):
                target = Path(self.build_lib, "multitask_vl", path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": WithPrograms})
