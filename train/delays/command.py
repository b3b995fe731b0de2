"""``python -m train.delays``: trains spiking networks, and compares them (``study``)."""

import sys

from pytorch_lightning.cli import ArgsType, LightningArgumentParser

from train.cli import TrainCLI
from train.delays import study
from train.delays.data import SpikeData
from train.delays.module import NarrowDelays, SpikingClassifier
from train.delays.report import DelaysReport
from train.launch import launch


class DelaysCLI(TrainCLI):
    """The best checkpoint is that of the highest accuracy."""

    monitor = "val/top1"
    own = "delays"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the narrowing and the report, and links what the data know to what the model needs."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(NarrowDelays, "narrow")
        parser.add_lightning_class_args(DelaysReport, "report")
        parser.link_arguments("data.channels", "model.inputs", apply_on="instantiate")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    before_test = before_predict = TrainCLI.before_validate


def main(args: ArgsType = None) -> None:
    """Runs ``fit``, ``validate``, ``test`` or ``study``."""
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list) and words[:1] == ["study"]:
        study.main(words[1:])
        return
    description = "Trains spiking networks with learned delays; study: compares them with fixed ones."
    launch(
        DelaysCLI,
        SpikingClassifier,
        SpikeData,
        {"prog": "python -m train.delays", "description": description},
        args,
    )
