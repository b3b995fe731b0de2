"""A DCLS model beside its dense twin: what they say of an image, where they look, what their kernels are."""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import timm
from look import draw_layer, grad_cam, layers_of, overlay, predict
from matplotlib.figure import Figure
from torch import nn

import dcls_models
from dcls_models.files import one_line
from dcls_models.images import EXTENSIONS, read_image
from dcls_models.models._build import plain_name

HERE = Path(__file__).parent
SHIPPED = [f"local-dir:{HERE / 'models' / name}" for name in ("dcls", "dense")]
KINDS = {
    "Grad-CAM": "Where the last stage speaks for the first answer: yellow most, violet least.",
    "Threshold-Grad-CAM": "The same without what speaks against it, and with all below 0.3 lifted to 0.3.",
}
POSITIONS = (
    "Dots: the elements of all kernels of the layer, where training put them; red is positive, blue negative."
)
GRID = "Squares: how large the weights of all kernels of the layer are at each place of their fixed grid."


@dataclass
class Shown:
    """A model, the same deployed, and what is to be said of it."""

    title: str
    weights: str
    model: nn.Module
    deployed: nn.Module


def load(name: str) -> Shown:
    """A model by what the command line takes; ``random:NAME`` has random weights and needs no download."""
    source, colon, place = name.partition(":")
    random = source == "random" and bool(colon)
    model = timm.create_model(place if random else name, pretrained=not random).eval()
    cfg: Any = model.pretrained_cfg
    if random:
        weights = "random: its answers mean nothing"
    elif name in SHIPPED:
        weights = "trained on 1437 handwritten digits; it knows nothing else"
    else:
        weights = f"of {place}" if colon else f"as published: {cfg.get('origin_url') or cfg.get('hf_hub_id')}"
    return Shown(cfg["architecture"], weights, model, dcls_models.deploy(model))


def with_twin(names: Sequence[str]) -> list[str]:
    """The models to show: beside a single DCLS model of timm's registry, the dense one of the same blocks."""
    twin = plain_name(names[0]) if names else ""
    bare = twin.removeprefix("random:")
    return [*names, twin] if len(names) == 1 and twin != names[0] and timm.is_model(bare) else list(names)


def answer(shown: Shown, file: str | None) -> list[Any]:
    """What is shown of one model for an image: its answers, how long they took, and a map of each kind."""
    if file is None:
        return [None, "", *[None] * len(KINDS)]
    try:
        given = read_image(file, exif=True)  # turned as browsers and people see it
    except (OSError, ValueError) as error:
        raise gr.Error(f"this cannot be read as an image: {one_line(error)}") from error
    start = time.perf_counter()
    best = predict(shown.deployed, given)
    took = (
        f"The most probable classes, by the deployed model, in {1e3 * (time.perf_counter() - start):.0f} ms."
    )
    maps = [overlay(given, grad_cam(shown.model, given, kind == "Threshold-Grad-CAM")) for kind in KINDS]
    return [best, took, *maps]


def column(shown: Shown, image: gr.Image, first: str | None) -> None:
    """One model, with the first example answered."""
    layers = layers_of(shown.model)
    numbers = sum(p.numel() for p in shown.model.parameters())
    learned = any(hasattr(layer, "positions") for layer in layers.values())

    def draw(layer: str | None) -> Figure | None:
        return draw_layer(layers[layer]) if layer else None

    best, took, *maps = answer(shown, first)
    with gr.Column():
        kind = "learned spacings" if learned else "dense"
        gr.Markdown(f"### {shown.title} ({kind})\n{numbers:,} parameters. Weights {shown.weights}.")
        label, time_taken = gr.Label(best, label="answers"), gr.Markdown(took)
        pictures = []
        for (kind, sentence), picture in zip(KINDS.items(), maps, strict=True):
            pictures.append(gr.Image(picture, label=kind, height=320))
            gr.Markdown(sentence)
        choice = gr.Dropdown(list(layers), label="layer", value=next(iter(layers), None))
        plot = gr.Plot(draw(choice.value), label="kernels")
        gr.Markdown(POSITIONS if learned else GRID)
    image.change(lambda file: answer(shown, file), image, [label, time_taken, *pictures])
    choice.change(draw, choice, plot)


def build(names: Sequence[str], examples: Path) -> gr.Blocks:
    """The page for some models, one column each, opened with the first example."""
    models = [load(name) for name in with_twin(names)]
    files = sorted(str(p) for p in examples.rglob("*") if p.suffix.lower() in EXTENSIONS)
    files = files[:: -(-len(files) // 8)] if files else []
    first = files[0] if files else None
    with gr.Blocks(title="Convolutions that learn where to look") as page:
        gr.Markdown("# Convolutions that learn where to look\nTake an example, or give an image of your own.")
        # the file itself: gradio would turn images of 16 bits nearly white
        image = gr.Image(first, type="filepath", image_mode=None, label="image", height=320)
        gr.Markdown("The image that both models are asked about.")
        if files:
            gr.Examples(files, image)
        with gr.Row():
            for shown in models:
                column(shown, image, first)
    return page


def main() -> None:
    """Serves the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    given = os.environ.get("MODELS", "").split() or SHIPPED  # MODELS is for a Space
    parser.add_argument(
        "models",
        nargs="*",
        default=given,
        help="timm's name, local-dir:FOLDER, hf-hub:USER/NAME or random:NAME; by default two that ship",
    )
    parser.add_argument("--examples", type=Path, help="folder of images; by default one that ships")
    arguments = parser.parse_args()
    ours = HERE / "examples" / ("digits" if arguments.models == SHIPPED else "photos")
    build(arguments.models, arguments.examples or ours).launch()


if __name__ == "__main__":
    main()
