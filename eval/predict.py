"""``python -m eval predict``: what single images show, or what is heard in sounds, as the model expects."""

import argparse
from pathlib import Path
from typing import Any

from dcls_models.loading import takes_sounds
from eval.audio import predict as of_sounds
from eval.classification import predict as of_images


def run(arguments: argparse.Namespace) -> None:
    """Says what a model makes of the files."""
    if takes_sounds(arguments.model, arguments.checkpoint):
        of_sounds.run(arguments, arguments.images)
    else:
        of_images.run_predict(arguments)


def add_commands(commands: Any) -> None:
    """Adds ``predict``."""
    of_images.add_commands(commands)
    command = commands.choices["predict"]
    command.add_argument("--labels", type=Path, help="AudioSet's class_labels_indices.csv, for its models")
    command.set_defaults(run=run)
