"""``python -m eval predict``: what single images show, or what is heard in sounds, as the model expects."""

import argparse
from pathlib import Path
from typing import Any

from dcls_models.loading import takes_sounds
from eval.audio import predict as of_sounds
from eval.classification import predict as of_images
from eval.options import named


def run(arguments: argparse.Namespace) -> None:
    """Says what a model makes of the files."""
    with named(arguments.model):
        sounds = takes_sounds(arguments.model, arguments.checkpoint)
    if arguments.labels and not sounds:
        raise ValueError("--labels names the classes of AudioSet's models, this one is of images")
    (of_sounds if sounds else of_images).run(arguments)


def add_commands(commands: Any) -> None:
    """Adds ``predict``."""
    of_images.add_commands(commands)
    command = commands.choices["predict"]
    command.add_argument("--labels", type=Path, help="AudioSet's class_labels_indices.csv, for its models")
    command.set_defaults(run=run)
