"""The Space: its maps by their definition, and its page in a browser where there is one."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

import dcls_models
from hub.export import export

SPACE = Path(__file__).parent.parent / "hub" / "space"
TINY = timm.list_models("test_*_dcls")  # one of each family


@pytest.fixture(scope="module")
def look() -> ModuleType:
    spec = importlib.util.spec_from_file_location("look", SPACE / "look.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image() -> Image.Image:
    pixels = torch.randint(0, 255, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((120, 80))


def by_definition(model: torch.nn.Module, x: torch.Tensor, threshold: bool) -> torch.Tensor:
    """The maps from the derivative of the best logit, by autograd through the rest of the model alone."""
    stages = model.forward_intermediates(x, intermediates_only=True)
    activations = stages[-1].detach().requires_grad_()
    logits = model.forward_head(model.norm_pre(activations))
    logits[0, logits.argmax()].backward()
    alpha = activations.grad.sum((2, 3)) / activations[0, 0].numel()
    weighted = alpha[0, :, None, None] * activations[0].detach()
    channels = [w.clamp(min=0) for w in weighted] if threshold else list(weighted)
    mean = sum(channels) / len(channels)
    mean = mean if threshold else mean.clamp(min=0)
    mean = (mean - mean.min()) / (mean.max() - mean.min())
    mean = torch.where(mean < 0.3, 0.3, mean) if threshold else mean
    return F.interpolate(mean[None, None], x.shape[-2:], mode="bilinear")[0, 0]


@pytest.mark.parametrize("threshold", [False, True])
def test_maps_are_what_they_are_defined_as(look: ModuleType, image: Image.Image, threshold: bool) -> None:
    model = timm.create_model("test_convnext_dcls", num_classes=9, ls_init_value=1.0).eval()
    found = look.grad_cam(model, image, threshold)
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(found, by_definition(model, look.inputs_of(model, image), threshold))
    assert found.max() <= 1 and found.min() >= (0.3 if threshold else 0)


@pytest.mark.parametrize("name", TINY)
def test_every_family_can_be_looked_at(name: str, look: ModuleType, image: Image.Image) -> None:
    model = timm.create_model(name, num_classes=9).eval()
    best = look.predict(model, image)
    assert len(best) == 5 and list(best.values()) == sorted(best.values(), reverse=True)
    for threshold in (False, True):
        assert look.overlay(image, look.grad_cam(model, image, threshold)).size == (320, 320)
    layers = look.layers_of(model)
    assert layers
    figure = look.draw_positions(next(iter(layers.values())))
    assert "elements" in figure.axes[0].get_title()


def test_it_needs_the_library_of_this_version() -> None:
    wheel = re.search(r"dcls_models-(.+?)-py3", (SPACE / "requirements.txt").read_text())
    assert wheel[1] == dcls_models.__version__


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """The address of the app, with two models and some examples."""
    pytest.importorskip("gradio", reason="pip install gradio")
    for name in ("one", "two"):
        export(timm.create_model("test_convnext_dcls", num_classes=9).eval(), tmp_path / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [
        sys.executable,
        str(SPACE / "app.py"),
        *(f"local-dir:{tmp_path / name}" for name in ("one", "two")),
    ]
    app = subprocess.Popen(command, env={**env, "PYTHONPATH": str(SPACE.parent.parent)})
    for _ in range(120):
        time.sleep(1)
        assert app.poll() is None, "the app has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield f"http://127.0.0.1:{port}"
    app.terminate()
    app.wait(30)


@pytest.mark.slow
def test_the_page_in_a_browser(page: str, image: Image.Image, tmp_path: Path) -> None:
    """Opt-in; ``DCLS_SCREENSHOT=FILE`` keeps what it looks like."""
    selenium = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium or not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,2000"):
        options.add_argument(argument)
    service = selenium.ChromeService(shutil.which("chromedriver"))
    browser = selenium.Chrome(options, service)
    try:
        browser.get(page)
        image.save(tmp_path / "given.png")

        def shown(selector: str, at_least: int) -> list[str]:
            for _ in range(120):
                found = browser.find_elements("css selector", selector)
                if len(found) >= at_least:
                    return [element.text for element in found]
                time.sleep(0.5)
            raise AssertionError(f"{selector}: {len(found)} of {at_least}\n{browser.page_source[:2000]}")

        shown("input[type=file]", 1)
        assert "Convolutions that learn where to look" in browser.find_element("tag name", "body").text
        browser.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "given.png"))
        shown("[data-testid=label-output-value], .output-class", 2)
        shown("img[src*='/file=']", 4)
        time.sleep(3)  # for the pictures to be painted
        browser.save_screenshot(os.environ.get("DCLS_SCREENSHOT", str(tmp_path / "page.png")))
        assert Image.open(os.environ.get("DCLS_SCREENSHOT", str(tmp_path / "page.png"))).width > 1000
        text = browser.find_element("tag name", "body").text
        assert text.count("learned positions") == 2 and "Threshold-Grad-CAM" in text and "Error" not in text
    finally:
        browser.quit()
