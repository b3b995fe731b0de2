"""The command line of ``hub``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hub.export import export


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand."""
    parser = argparse.ArgumentParser(prog="python -m hub", description="Exports trained models.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("export", help="a training checkpoint to a folder that timm loads")
    command.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of python -m train")
    command.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args(argv)
    folder = export(arguments.checkpoint, arguments.out)
    print(f"wrote {folder / 'model.safetensors'} and {folder / 'config.json'}; use them with")
    print(f'  import timm, dcls_models; timm.create_model("local-dir:{folder}", pretrained=True)')


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
