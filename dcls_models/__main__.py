"""``python -m dcls_models train|eval|hub ...``: the commands of this installation, from any folder.

They are folders beside the package in a checkout, and ``dcls_models/commands`` where a wheel was installed.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from . import __version__

COMMANDS = {
    "train": "train, fine-tune, validate and predict",
    "eval": "measure accuracy, robustness, Grad-CAM, receptive fields, kernels and speed",
    "hub": "convert, export and publish weights",
}
PACKAGE = Path(__file__).resolve().parent
HOME = PACKAGE / "commands" if (PACKAGE / "commands").is_dir() else PACKAGE.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, or one of its parts (``train.audio``), and returns its exit status."""
    module, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    command = module.partition(".")[0]
    if command in COMMANDS:
        if missing := _missing(command):
            print(
                f"error: {command} needs {', '.join(missing)}, which an extra brings: pip install "
                f"'.[{command}]' in a checkout, or 'FILE.whl[{command}]'",
                file=sys.stderr,
            )
            return 1
        return _run(module, [_shipped(argument) for argument in arguments])
    if module not in ("", "-h", "--help"):
        print(f"error: there is no command {module!r}, but {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    print(f"dcls_models {__version__}: timm models with learnable spacings, timm.list_models('*dcls*')\n")
    for name, what in COMMANDS.items():
        print(f"  python -m dcls_models {name:5}  {what}")
    print(f"\nTheir code and the recipes (configs/) are in {HOME}")
    return 0


def _run(module: str, arguments: Sequence[str]) -> int:
    """In a process of its own, in which a ``train.py`` of the current folder does not hide the command."""
    places = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")]), str(Path.cwd())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1"}
    try:
        return subprocess.run([sys.executable, "-m", module, *arguments], env=environment).returncode
    except KeyboardInterrupt:  # which the command has heard too
        return 130


def _shipped(argument: str) -> str:
    """The file of a recipe, such as ``configs/finetune.yaml``, where there is none in the current folder."""
    shipped = HOME / argument
    here = not argument.startswith("configs/") or Path(argument).exists() or not shipped.is_file()
    return argument if here else str(shipped)


def _missing(command: str) -> list[str]:
    """The packages of a command that are not installed, as far as the metadata say."""
    try:
        wanted = [n for n in requires("dcls_models") or [] if re.search(rf"extra == .{command}\b", n)]
    except PackageNotFoundError:  # a checkout that was never installed
        return []
    names = [re.split(r"[^\w.-]", need)[0] for need in wanted]
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
