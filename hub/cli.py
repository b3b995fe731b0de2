"""The commands of ``hub``."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from dcls_models.files import expand_home
from dcls_models.options import Parser
from hub.card import write_card
from hub.convert import convert, key_values
from hub.download import download, verify
from hub.export import export_checkpoint
from hub.folder import Checked
from hub.publish import publish
from hub.published import write_cards


def run_convert(given: argparse.Namespace) -> None:
    """Converts a file of the authors and prints the report."""
    report = convert(given.file, given.model, given.out, key_values(given.model_kwargs))
    for name, value in report.items():
        print(f"{name.replace('_', ' ')}: {value}")
    _say_how_to_load(given.out)


def run_export(given: argparse.Namespace) -> None:
    """Exports a training checkpoint."""
    options = {
        name: getattr(given, name) for name in ("fused", "half", "onnx", "dynamic_size", "int8", "compare")
    }
    ema = None if given.weights is None else given.weights == "ema"
    export_checkpoint(given.checkpoint, given.out, given.results, ema, **options)
    print(f"wrote {given.out / 'model.safetensors'} and {given.out / 'config.json'}; use them with")
    _say_how_to_load(given.out)


def run_card(given: argparse.Namespace) -> None:
    """Writes a model card."""
    card = write_card(
        given.folder,
        given.results,
        given.dataset,
        given.license,
        given.repo,
        dataset_id=given.dataset_id,
        licence_link=given.license_link,
        picture=given.picture,
    )
    print(f"wrote {card}")


def run_cards(given: argparse.Namespace) -> None:
    """Writes the cards of the published models."""
    for card in write_cards(given.out):
        print(f"wrote {card}")


def run_publish(given: argparse.Namespace) -> None:
    """Publishes a folder, or shows what would be published."""
    options = {name: getattr(given, name) for name in ("push", "direct", "private", "overwrite", "tag")}
    publish(given.folder, given.repo, **options)


def run_download(given: argparse.Namespace) -> None:
    """Downloads a published model."""
    _say_sound(download(given.repo, given.revision, given.out, given.offline))
    if given.out:
        _say_how_to_load(given.out)


def run_verify(given: argparse.Namespace) -> None:
    """Checks a folder."""
    _say_sound(verify(given.folder, given.repo, given.revision))


def _say_sound(folder: Checked) -> None:
    print(f"{folder.path} is sound: {folder.config['architecture']}, {folder.parameters:,} parameters")
    print(f"sha256 of the weights: {folder.sha256}")


def _say_how_to_load(folder: Path) -> None:
    name = json.dumps(f"local-dir:{folder}", ensure_ascii=False)  # quoted as Python does
    print(f"  import timm, dcls_models; timm.create_model({name}, pretrained=True)")


def parser() -> argparse.ArgumentParser:
    """The subcommands and their options."""
    top = Parser(prog="python -m hub", description="Converts, exports and shares models.")
    commands = top.add_subparsers(dest="command", required=True)

    command = commands.add_parser("convert", help="a file of the authors to a folder that timm loads")
    command.add_argument("file", type=Path, help=".pth or .pth.tar")
    command.add_argument("--model", required=True, help="name of the model, such as convnext_dcls_tiny")
    command.add_argument("--out", type=Path, required=True, help="folder to write to")
    command.add_argument("--model-kwargs", nargs="*", default=[], metavar="KEY=VALUE", help="of another size")
    command.set_defaults(run=run_convert)

    command = commands.add_parser("export", help="a training checkpoint to a folder that timm loads")
    command.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of python -m train")
    command.add_argument("--out", type=Path, required=True, help="folder to write to")
    command.add_argument(
        "--results", type=Path, help="JSON of python -m eval accuracy, kept beside the weights"
    )
    command.add_argument("--weights", choices=["ema", "raw"], help="by default ema where it has both")
    command.add_argument("--fused", action="store_true", help="plain convolutions, for timm alone")
    command.add_argument("--half", action="store_true", help="weights in float16")
    command.add_argument("--onnx", action="store_true", help="write model.onnx too")
    command.add_argument("--dynamic-size", action="store_true", help="model.onnx for any height and width")
    command.add_argument("--int8", action="store_true", help="model.onnx with matrix products in int8")
    compare_help = "folder of images on which the int8 file is compared with the model"
    command.add_argument("--images", type=Path, dest="compare", metavar="FOLDER", help=compare_help)
    command.set_defaults(run=run_export)

    command = commands.add_parser("card", help="a model card from measured results")
    command.add_argument("folder", type=Path)
    command.add_argument("--repo", required=True, metavar="USER/NAME", help="where it will be published")
    command.add_argument(
        "--results", type=Path, nargs="+", required=True, help="JSON of python -m eval accuracy or audio"
    )
    command.add_argument(
        "--dataset", help="what was measured on, in words; by default as the results name it"
    )
    command.add_argument("--dataset-id", help="its id on the Hub, for .eval_results")
    command.add_argument("--license", required=True, help="of the weights, as the Hub spells it")
    command.add_argument("--license-link", help="where the terms stand")
    command.add_argument("--picture", type=Path, help="PNG of python -m eval kernels")
    command.set_defaults(run=run_card)

    command = commands.add_parser("cards", help="cards of the models with their authors' published weights")
    command.add_argument("out", type=Path, help="folder to write to")
    command.set_defaults(run=run_cards)

    command = commands.add_parser("publish", help="show what would be published; --push does it")
    command.add_argument("folder", type=Path)
    command.add_argument("repo", metavar="USER/NAME")
    command.add_argument("--push", action="store_true", help="send it")
    command.add_argument("--direct", action="store_true", help="to the main branch, not as a pull request")
    command.add_argument("--private", action="store_true", help="if the repository is new")
    command.add_argument("--overwrite", action="store_true", help="although it holds something else")
    command.add_argument("--tag", help="by default made of the sha256 of the weights")
    command.set_defaults(run=run_publish)

    command = commands.add_parser("download", help="fetch a published model and check it")
    command.add_argument("repo", metavar="USER/NAME")
    command.add_argument("--revision", default="main", help="branch, tag or commit")
    command.add_argument("--out", type=Path, help="folder to copy it to")
    command.add_argument("--offline", action="store_true", help="from the cache only")
    command.set_defaults(run=run_download)

    command = commands.add_parser("verify", help="check a folder, and against the Hub")
    command.add_argument("folder", type=Path)
    command.add_argument("--repo", metavar="USER/NAME", help="what it should be the same as")
    command.add_argument("--revision", default="main")
    command.set_defaults(run=run_verify)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand."""
    given = parser().parse_args(argv)
    expand_home(given)
    given.run(given)
