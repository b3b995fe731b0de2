"""``python -m train.audio``: trains and fine-tunes models that tag sounds."""

from typing import Any

from pytorch_lightning.cli import ArgsType, LightningArgumentParser

from train.audio.data import Sounds
from train.audio.module import Tagger
from train.audio.report import TagReport
from train.cli import TrainCLI
from train.launch import launch


class AudioCLI(TrainCLI):
    """The best checkpoint is that of the highest mean average precision."""

    monitor = "val/map"
    own = "front_end"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Training, and measuring a checkpoint; the rest is for ``python -m eval``."""
        return {k: v for k, v in TrainCLI.subcommands().items() if k in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the report, and links what one part knows to what another needs."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(TagReport, "report")
        parser.link_arguments("model.name", "data.like")
        for known in ("class_names", "one_label", "front_end"):
            parser.link_arguments(f"data.{known}", f"model.{known}", apply_on="instantiate")


def main(args: ArgsType = None) -> None:
    """Runs ``fit`` or ``validate``."""
    parser: dict[str, Any] = {"prog": "python -m train.audio", "description": __doc__}
    launch(AudioCLI, Tagger, Sounds, parser, args)
