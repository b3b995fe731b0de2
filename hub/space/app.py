"""Two models side by side: what they say of an image, where they look, what their kernels learned."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import timm
from look import draw_positions, grad_cam, layers_of, overlay, predict
from matplotlib.figure import Figure
from torch import nn

import dcls_models  # noqa: F401  (registers the models)
from dcls_models.files import one_line
from dcls_models.images import EXTENSIONS, read_image

KINDS = {"Grad-CAM": False, "Threshold-Grad-CAM": True}


def column(name: str, model: nn.Module, image: gr.Image) -> None:
    """What is shown of one model."""
    layers = layers_of(model)

    def look(file: str | None) -> list[Any]:
        if file is None:
            return [None, None, None]
        try:
            given = read_image(file)
        except (OSError, ValueError) as error:
            raise gr.Error(f"this cannot be read as an image: {one_line(error)}") from error
        maps = [overlay(given, grad_cam(model, given, threshold)) for threshold in KINDS.values()]
        return [predict(model, given), *maps]

    def draw(layer: str | None) -> Figure | None:
        return draw_positions(layers[layer]) if layer else None

    first = next(iter(layers), None)
    with gr.Column():
        gr.Markdown(f"### {name}\n`{model.pretrained_cfg['architecture']}`")
        label = gr.Label(label="top 5")
        with gr.Row():
            maps = [gr.Image(label=kind, height=320) for kind in KINDS]
        choice = gr.Dropdown(list(layers), label="layer", value=first)
        plot = gr.Plot(draw(first), label="learned positions")
    image.change(look, image, [label, *maps])
    choice.change(draw, choice, plot)


def build(names: Sequence[str], examples: Path) -> gr.Blocks:
    """The page for some models, one column each."""
    models = [(name, timm.create_model(name, pretrained=True).eval()) for name in names]
    with gr.Blocks(title="Convolutions that learn where to look") as page:
        gr.Markdown("# Convolutions that learn where to look\nGive an image, or take an example.")
        # the file itself: gradio would turn images of 16 bits nearly white
        image = gr.Image(type="filepath", image_mode=None, label="image", height=320)
        files = sorted(str(p) for p in examples.rglob("*") if p.suffix.lower() in EXTENSIONS)
        if files:
            gr.Examples(files[:: -(-len(files) // 8)], image)
        with gr.Row():
            for name, model in models:
                column(name, model, image)
    return page


def main() -> None:
    """Serves the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    given = os.environ.get("MODELS", "").split()  # on a Space
    parser.add_argument("models", nargs="*", default=given, help="local-dir:FOLDER or hf-hub:USER/NAME")
    parser.add_argument("--examples", type=Path, default=Path(__file__).parent / "examples")
    arguments = parser.parse_args()
    if not arguments.models:
        parser.error("name the models to show, or set MODELS")
    build(arguments.models, arguments.examples).launch()


if __name__ == "__main__":
    main()
