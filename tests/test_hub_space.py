"""The Space: its maps by their definition, and its page in a browser where there is one."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

import dcls_models

SPACE = Path(__file__).parent.parent / "hub" / "space"
PAIR = ("dcls", "dense")
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
    figure = look.draw_layer(next(iter(layers.values())))
    assert "elements" in figure.axes[0].get_title()


@pytest.mark.parametrize("name", ["test_convnext", "resnet18"])
def test_a_dense_model_shows_its_weights(name: str, look: ModuleType) -> None:
    layers = look.layers_of(timm.create_model(name, num_classes=9).eval())
    layer = next(iter(layers.values()))
    picture = look.draw_layer(layer).axes[0]
    assert f"{layer.weight.numel():,} weights" in picture.get_title() and len(picture.images) == 1


def test_what_ships_is_a_pair_that_reads_the_digits_that_ship(look: ModuleType) -> None:
    models = [timm.create_model(f"local-dir:{SPACE / 'models' / n}", pretrained=True).eval() for n in PAIR]
    assert [len({type(layer) for layer in look.layers_of(model).values()}) for model in models] == [1, 1]
    files = sorted((SPACE / "examples" / "digits").glob("*.png"))
    assert len(files) == 6 and len(list((SPACE / "examples" / "photos").glob("*.jpg"))) == 2
    for model in models:
        best = [next(iter(look.predict(dcls_models.deploy(model), Image.open(file)))) for file in files]
        assert sum(said == file.stem for said, file in zip(best, files, strict=True)) >= 5


def test_it_needs_the_library_of_this_version() -> None:
    wheel = re.search(r"dcls_models-(.+?)-py3", (SPACE / "requirements.txt").read_text())
    assert wheel[1] == dcls_models.__version__


@pytest.fixture(params=[(), ("random:test_convnext_dcls",)], ids=["what ships", "random"])
def page(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the app, started by its one command, with what ships or with random weights."""
    pytest.importorskip("gradio", reason="pip install gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, str(SPACE / "app.py"), *request.param]
    app = subprocess.Popen(command, env={**env, "PYTHONPATH": str(SPACE.parent.parent)})
    for _ in range(240):
        time.sleep(1)
        assert app.poll() is None, "the app has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield f"http://127.0.0.1:{port}"
    app.terminate()
    app.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_in_a_browser(page: str, image: Image.Image, tmp_path: Path) -> None:
    """Opt-in; ``DCLS_SCREENSHOT=FILE`` keeps what it looks like when it opens."""
    selenium = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium or not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,2600"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
    ):
        options.add_argument(argument)
    browser = selenium.Chrome(options, selenium.ChromeService(shutil.which("chromedriver")))

    def wait_for(what: Callable[[], object]) -> None:
        for _ in range(240):
            if what():
                return
            time.sleep(0.5)
        raise AssertionError(browser.page_source[:3000])

    def text() -> str:
        return str(browser.find_element("tag name", "body").text)

    def maps() -> list[str]:
        found = browser.find_elements("css selector", "img[src*='/file=']")
        return [str(picture.get_attribute("src")) for picture in found]

    try:
        browser.get(page)
        wait_for(lambda: text().count("The most probable classes") == 2 and len(maps()) >= 5)
        time.sleep(3)  # for the pictures to be painted
        shot = os.environ.get("DCLS_SCREENSHOT", str(tmp_path / "page.png"))
        browser.save_screenshot(shot)
        assert Image.open(shot).width > 1000
        opened, before = text(), maps()
        assert "(learned spacings)" in opened and "(dense)" in opened and opened.count("Weights ") == 2
        for sentence in ("Where the last stage speaks", "The same without", "Dots: ", "Squares: "):
            assert sentence in opened
        image.save(tmp_path / "given.png")
        browser.find_element(
            "css selector", "button[aria-label='Clear'], button[aria-label='Remove Image']"
        ).click()
        wait_for(lambda: browser.find_elements("css selector", "input[type=file]"))
        browser.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "given.png"))
        wait_for(lambda: len(maps()) >= 5 and not set(maps()) & set(before[-4:]))
        assert "Error" not in text()
    finally:
        browser.quit()
