"""Puts the folders of the commands into a wheel, below the package; all the rest is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("train", "eval", "hub", "configs")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "space")


class WithCommands(build_py):
    """Copies them to ``dcls_models/commands``; an editable install finds them where they are."""

    def run(self) -> None:
        """Builds the library, then copies."""
        super().run()
        if not self.editable_mode:
            for folder in FOLDERS:
                target = Path(self.build_lib, "dcls_models", "commands", folder)
                shutil.copytree(folder, target, ignore=LEFT_OUT, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithCommands})
