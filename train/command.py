"""``python -m train``: trains and uses image classifiers."""

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.cli import ArgsType, LightningArgumentParser

from dcls_models.files import check_writable
from dcls_models.folders import holds_folders
from dcls_models.loading import Run
from dcls_models.provenance import state_dict_sha256
from train.cli import TrainCLI
from train.data import Images
from train.launch import launch
from train.models import has_weights
from train.module import Classifier
from train.readers import VAL_NAMES
from train.report import PredictionWriter, Report, predictions_file


class ClassifierCLI(TrainCLI):
    """The best checkpoint is that of the highest top-1 accuracy."""

    monitor, task = "val/top1", "accuracy"
    own = "cutmix"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the report, and links what one part knows to what another needs."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(Report, "report")
        parser.link_arguments("model.name", "data.like")
        parser.link_arguments("data.augment_splits", "model.augment_splits")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Makes sure that what the run leaves is not taken for data.

        Raises:
            ValueError: If the run's folder is in a folder of images.
        """
        super().before_instantiate_classes()
        config = self.config[self.subcommand]
        # resolve() would fail where links go in a circle
        root, run = config["data"]["root"], Path(os.path.realpath(config["trainer"]["default_root_dir"]))
        if root is None or config["data"]["dataset"] or self.subcommand != "fit":
            return
        folders = [Path(root) / name for name in ("train", "test", *VAL_NAMES)]
        read = [folder for folder in folders if holds_folders(folder)] or [Path(root)]
        for folder in (Path(os.path.realpath(f)) for f in read):
            if run == folder or folder in run.parents:
                raise ValueError(
                    f"the run's folder {run} is in {folder}: its pictures would be taken for data; choose "
                    "another --trainer.default_root_dir"
                )

    def read_checkpoint(self, config: Any, run: Run) -> None:
        """Takes the names of the classes from it to predict, which needs no training images."""
        super().read_checkpoint(config, run)
        if self.config["subcommand"] == "predict":
            config["data"]["names"] = run.model["class_names"]

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Adds the writer of predictions."""
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "predict":
            trainer.callbacks.append(PredictionWriter())
        return trainer

    def before_validate(self) -> None:
        """Makes sure that there is something to measure: published weights do as well.

        Raises:
            ValueError: If the weights, or those of the head, are random.
        """
        hp = self.model.hparams
        if not (hp["pretrained"] and has_weights(hp["name"], hp["model_kwargs"] or {})):
            super().before_validate()
        published, classes = self.model.model.pretrained_cfg.get("num_classes"), hp["num_classes"]
        if not self.config[self.subcommand]["ckpt_path"] and published != classes:
            raise ValueError(
                f"the published weights are for {published} classes, the data have {classes}: the "
                "head would be random; give --ckpt_path (last, or a file)"
            )

    before_test = before_validate

    def before_predict(self) -> None:
        """Likewise, and that the result can be written."""
        self.before_validate()
        check_writable(predictions_file(self.trainer), "the list of predictions")

    def result(self, metrics: dict[str, float]) -> dict[str, Any]:
        """As ``eval accuracy`` writes it: of the averaged weights where there are any."""
        end = "" if self.model.ema is None else "_ema"
        stage = "val" if self.subcommand == "validate" else self.subcommand
        chosen = {k: metrics[f"{stage}/{k}{end}"] for k in ("top1", "top5", "loss")}
        weights = list(self.model.evaluated().values())[-1]
        data, hp = self.datamodule.hparams, self.model.hparams
        return {
            **super().result(chosen),
            "n": self.model.measured,
            "unreadable": self.datamodule.unreadable(),
            "dataset": data["dataset"] or str(data["root"]),
            "split": "test" if self.datamodule.has_test() and stage == "test" else data["val_split"],
            "classes": hp["num_classes"],
            "state_dict_sha256": state_dict_sha256(weights),
            "param_count": sum(p.numel() for p in weights.parameters()),
            **{k: data[k] for k in ("img_size", "crop_pct", "interpolation")},
            "device": str(self.trainer.strategy.root_device),
            "pictures": [],
        }


def main(args: ArgsType = None) -> None:
    """Runs ``fit``, ``validate``, ``test`` or ``predict``."""
    parser = {"prog": "python -m train", "description": "Trains and uses image classifiers."}
    launch(ClassifierCLI, Classifier, Images, parser, args)
