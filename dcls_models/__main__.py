"""``python -m dcls_models``: what is installed, and where its commands (train, eval, hub) are.

The commands are folders of a checkout. Where this package runs from one (``pip install -e .``),
``python -m dcls_models train ...`` runs them from any folder.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__

COMMANDS = {
    "train": "train, fine-tune, validate and predict",
    "eval": "measure accuracy, robustness, Grad-CAM, receptive fields, kernels and speed",
    "hub": "convert, export and publish weights",
}
CHECKOUT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of the checkout that the package is installed from, or says where commands are."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    here = [name for name in COMMANDS if (CHECKOUT / name / "__main__.py").is_file()]
    if command in here:
        path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
        run = [sys.executable, "-m", command, *arguments]
        try:
            return subprocess.run(run, env=os.environ | {"PYTHONPATH": path}).returncode
        except KeyboardInterrupt:  # which the command has heard too
            return 130
    if command in COMMANDS:
        print(f"error: {command} is not installed with the library. {_where(here)}", file=sys.stderr)
        return 1
    if command not in ("", "-h", "--help"):
        print(f"error: there is no command {command!r}, but {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    print(f"dcls_models {__version__}: timm models with learnable spacings, timm.list_models('*dcls*')\n")
    for name, what in COMMANDS.items():
        print(f"  python -m {name:5}  {what}")
    print(f"\n{_where(here)}")
    return 0


def _where(here: Sequence[str]) -> str:
    if here:
        return (
            f"The commands are folders of the checkout {CHECKOUT}: run them there, or "
            "python -m dcls_models COMMAND anywhere."
        )
    return (
        "The commands are folders of the repository, which a wheel does not hold: clone it, run pip install "
        "-e '.[all]' in the clone, and the commands there."
    )


if __name__ == "__main__":
    sys.exit(main())
